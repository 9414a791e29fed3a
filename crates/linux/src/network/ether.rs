//! MAC addresses, ARP packets (RFC 826), and IPv4 and UDP headers of broadcast datagrams.

use std::fmt;
use std::net::Ipv4Addr;
use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A MAC address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The broadcast address.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Parses `52:54:00:12:34:56` or `52-54-00-12-34-56`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next()?;
            let fits = part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
            *byte = fits.then(|| u8::from_str_radix(part, 16).ok()).flatten()?;
        }
        parts.next().is_none().then_some(Self(bytes))
    }

    /// Returns whether it is neither a group address nor zero.
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// An ARP packet for IPv4 over Ethernet (RFC 826).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
struct Wire {
    hardware: U16,
    protocol: U16,
    hardware_length: u8,
    protocol_length: u8,
    operation: U16,
    sender_mac: [u8; 6],
    sender: [u8; 4],
    target_mac: [u8; 6],
    target: [u8; 4],
}

const _: () = assert!(size_of::<Wire>() == 28);

const ETHERNET: u16 = 1;
const IPV4: u16 = 0x0800;
const REQUEST: u16 = 1;

/// An ARP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Arp {
    /// A request; otherwise a reply.
    pub(super) request: bool,
    pub(super) sender_mac: Mac,
    pub(super) sender: Ipv4Addr,
    pub(super) target: Ipv4Addr,
}

impl Arp {
    /// An ARP probe: asks for `target` without claiming it (RFC 5227 §1.1).
    pub(super) fn probe(mac: Mac, target: Ipv4Addr) -> Self {
        Self { request: true, sender_mac: mac, sender: Ipv4Addr::UNSPECIFIED, target }
    }

    /// An ARP announcement: `mac` has `address` (RFC 5227 §1.1).
    pub(super) fn announcement(mac: Mac, address: Ipv4Addr) -> Self {
        Self { request: true, sender_mac: mac, sender: address, target: address }
    }

    /// Returns `None` for anything but a request or reply for IPv4 over Ethernet; ignores padding.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let (wire, _) = Wire::ref_from_prefix(bytes).ok()?;
        let kind = (wire.hardware.get(), wire.protocol.get());
        let lengths = (wire.hardware_length, wire.protocol_length);
        let known = kind == (ETHERNET, IPV4) && lengths == (6, 4);
        if !known || !matches!(wire.operation.get(), 1 | 2) {
            return None;
        }
        Some(Self {
            request: wire.operation.get() == REQUEST,
            sender_mac: Mac(wire.sender_mac),
            sender: wire.sender.into(),
            target: wire.target.into(),
        })
    }

    pub(super) fn emit(&self) -> Vec<u8> {
        let wire = Wire {
            hardware: ETHERNET.into(),
            protocol: IPV4.into(),
            hardware_length: 6,
            protocol_length: 4,
            operation: if self.request { REQUEST } else { REQUEST + 1 }.into(),
            sender_mac: self.sender_mac.0,
            sender: self.sender.octets(),
            target_mac: [0; 6],
            target: self.target.octets(),
        };
        wire.as_bytes().to_vec()
    }
}

/// The IPv4 header without options (RFC 791 §3.1), and the UDP header (RFC 768).
#[derive(Debug, Clone, Copy, IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct Headers {
    version: u8,
    service: u8,
    length: U16,
    identification: U16,
    fragment: U16,
    lifetime: u8,
    protocol: u8,
    checksum: U16,
    source: [u8; 4],
    destination: [u8; 4],
    source_port: U16,
    destination_port: U16,
    udp_length: U16,
    udp_checksum: U16,
}

const _: () = assert!(size_of::<Headers>() == 28);

const UDP: u8 = 17;

/// Returns a broadcast datagram from a source address that the kernel would not choose, such as
/// 0.0.0.0. A payload longer than 65 507 bytes is truncated.
pub(super) fn broadcast(source: (Ipv4Addr, u16), port: u16, payload: &[u8]) -> Vec<u8> {
    let payload = payload.get(..65_507).unwrap_or(payload);
    let udp_length = u16::try_from(payload.len() + 8).unwrap_or(u16::MAX);
    let mut headers = Headers {
        version: 0x45,
        service: 0,
        length: u16::try_from(payload.len() + 28).unwrap_or(u16::MAX).into(),
        identification: 0.into(),
        fragment: 0.into(),
        lifetime: 64,
        protocol: UDP,
        checksum: 0.into(),
        source: source.0.octets(),
        destination: [0xff; 4],
        source_port: source.1.into(),
        destination_port: port.into(),
        udp_length: udp_length.into(),
        udp_checksum: 0.into(),
    };
    let pseudo = sum(&source.0.octets()) + sum(&[0xff; 4]) + u64::from(UDP) + u64::from(udp_length);
    let datagram = sum(headers.as_bytes().get(20..).unwrap_or_default()) + sum(payload);
    // A checksum of zero is sent as its complement: zero means none (RFC 768).
    let udp_checksum = fold(pseudo + datagram);
    headers.udp_checksum = if udp_checksum == 0 { u16::MAX } else { udp_checksum }.into();
    headers.checksum = fold(sum(headers.as_bytes().get(..20).unwrap_or_default())).into();
    let mut bytes = headers.as_bytes().to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

/// Returns the sum of the 16-bit words; an odd byte at the end is the upper half of one (RFC 1071).
fn sum(bytes: &[u8]) -> u64 {
    let word = |pair: &[u8]| match pair {
        [high, low] => u64::from(u16::from_be_bytes([*high, *low])),
        [high] => u64::from(*high) << 8,
        _ => 0,
    };
    bytes.chunks(2).map(word).sum()
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

    #[test]
    fn mac_addresses_are_parsed_and_printed() {
        assert_eq!(Mac::parse("52:54:00:12:34:56"), Some(MAC));
        assert_eq!(Mac::parse("52-54-00-12-34-56"), Some(MAC));
        assert_eq!(MAC.to_string(), "52:54:00:12:34:56");
        for wrong in ["", "52:54", "52:54:00:12:34:56:78", "52:54:0:12:34:56", "+2:54:00:12:34:56"]
        {
            assert_eq!(Mac::parse(wrong), None, "{wrong}");
        }
        assert!(MAC.is_unicast() && !Mac::BROADCAST.is_unicast() && !Mac([0; 6]).is_unicast());
    }

    #[test]
    fn arp_probe_golden_bytes() {
        let bytes = [
            0, 1, 8, 0, 6, 4, 0, 1, // Ethernet, IPv4, their lengths, a request
            0x52, 0x54, 0, 0x12, 0x34, 0x56, 0, 0, 0,
            0, // from this card, which has no address
            0, 0, 0, 0, 0, 0, 169, 254, 7, 9, // who has 169.254.7.9?
        ];
        let probe = Arp::probe(MAC, [169, 254, 7, 9].into());
        assert_eq!(probe.emit(), bytes);
        let mut padded = bytes.to_vec();
        padded.resize(46, 0);
        assert_eq!(Arp::parse(&padded), Some(probe));
    }

    #[test]
    fn other_packets_are_rejected() {
        let bytes = Arp::announcement(MAC, [169, 254, 7, 9].into()).emit();
        for cut in 0..bytes.len() {
            assert_eq!(Arp::parse(&bytes[..cut]), None, "{cut} bytes");
        }
        for (place, byte) in [(1, 6), (2, 0x86), (4, 8), (5, 16), (7, 3), (6, 1)] {
            let mut other = bytes.clone();
            other[place] = byte;
            assert_eq!(Arp::parse(&other), None, "byte {place}");
        }
    }

    #[test]
    fn checksums_of_a_datagram_are_right() {
        let source = Ipv4Addr::new(10, 0, 0, 5);
        for payload in [&b"odd"[..], b"even", b""] {
            let bytes = broadcast((source, 68), 67, payload);
            assert_eq!(bytes.len(), 28 + payload.len());
            assert_eq!(fold(sum(&bytes[..20])), 0);
            let length = u64::try_from(8 + payload.len()).unwrap();
            let pseudo = sum(&source.octets()) + sum(&[0xff; 4]) + 17 + length;
            assert_eq!(fold(sum(&bytes[20..]) + pseudo), 0);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_parse_without_panic(bytes in proptest::collection::vec(0..=255u8, 0..64)) {
            if let Some(packet) = Arp::parse(&bytes) {
                assert_eq!(Arp::parse(&packet.emit()), Some(packet));
            }
        }
    }
}
