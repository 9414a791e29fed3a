//! DHCP messages (RFC 2131 §2 and RFC 2132): emits those of a client, parses those of a server.

use super::super::ether::Mac;
use super::super::ip_parameter::prefix_len;
use std::net::Ipv4Addr;
use std::time::Duration;
use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The fixed part (RFC 2131 §2), and the cookie before the options.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Fixed {
    op: u8,
    htype: u8,
    hlen: u8,
    hops: u8,
    xid: U32,
    secs: U16,
    flags: U16,
    ciaddr: [u8; 4],
    yiaddr: [u8; 4],
    siaddr: [u8; 4],
    giaddr: [u8; 4],
    chaddr: [u8; 16],
    sname: [u8; 64],
    file: [u8; 128],
    cookie: [u8; 4],
}

const _: () = assert!(size_of::<Fixed>() == 240);

const BOOT_REQUEST: u8 = 1;
const BOOT_REPLY: u8 = 2;
const ETHERNET: u8 = 1;
/// The broadcast flag: the kernel does not receive unicast before it has the address (RFC 2131
/// §4.1).
const BROADCAST: u16 = 0x8000;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// The minimum length: old relays and servers drop shorter messages (RFC 1542 §2.1).
const SHORTEST: usize = 300;
/// The maximum length of the host name and other options.
const LONGEST_NAME: usize = 63;

mod option {
    pub(super) const PAD: u8 = 0;
    pub(super) const SUBNET_MASK: u8 = 1;
    pub(super) const ROUTER: u8 = 3;
    pub(super) const HOST_NAME: u8 = 12;
    pub(super) const INTERFACE_MTU: u8 = 26;
    pub(super) const REQUESTED_ADDRESS: u8 = 50;
    pub(super) const LEASE_TIME: u8 = 51;
    pub(super) const OVERLOAD: u8 = 52;
    pub(super) const MESSAGE_TYPE: u8 = 53;
    pub(super) const SERVER: u8 = 54;
    pub(super) const WANTED: u8 = 55;
    pub(super) const LONGEST_MESSAGE: u8 = 57;
    pub(super) const RENEWAL_TIME: u8 = 58;
    pub(super) const REBINDING_TIME: u8 = 59;
    pub(super) const CLIENT: u8 = 61;
    pub(super) const END: u8 = 255;
}

/// A message to a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question<'a> {
    pub(super) xid: u32,
    pub(super) mac: Mac,
    /// The time since the client started the exchange.
    pub(super) elapsed: Duration,
    pub(super) hostname: Option<&'a str>,
    pub(super) ask: Ask,
}

/// The kind of request (RFC 2131 §4.3.6, table 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// DHCPDISCOVER.
    Discover,
    /// DHCPREQUEST for an address, from a server if one offered it.
    Request { address: Ipv4Addr, server: Option<Ipv4Addr> },
    /// DHCPREQUEST to renew the address in use.
    Renew { address: Ipv4Addr },
}

impl Question<'_> {
    pub(super) fn emit(&self) -> Vec<u8> {
        let mut bytes = self.fixed().as_bytes().to_vec();
        let request = u8::from(self.ask != Ask::Discover);
        put(&mut bytes, option::MESSAGE_TYPE, &[1 + 2 * request]);
        let [a, b, c, d, e, f] = self.mac.0;
        put(&mut bytes, option::CLIENT, &[ETHERNET, a, b, c, d, e, f]);
        if let Ask::Request { address, server } = self.ask {
            put(&mut bytes, option::REQUESTED_ADDRESS, &address.octets());
            if let Some(server) = server {
                put(&mut bytes, option::SERVER, &server.octets());
            }
        }
        if let Some(name) = self.hostname {
            let name = name.as_bytes();
            put(&mut bytes, option::HOST_NAME, name.get(..LONGEST_NAME).unwrap_or(name));
        }
        put(&mut bytes, option::LONGEST_MESSAGE, &1472u16.to_be_bytes());
        put(&mut bytes, option::WANTED, &WANTED);
        bytes.push(option::END);
        bytes.resize(bytes.len().max(SHORTEST), option::PAD);
        bytes
    }

    fn fixed(&self) -> Fixed {
        let mut chaddr = [0; 16];
        chaddr[..6].copy_from_slice(&self.mac.0);
        let renew = match self.ask {
            Ask::Renew { address } => Some(address),
            _ => None,
        };
        Fixed {
            op: BOOT_REQUEST,
            htype: ETHERNET,
            hlen: 6,
            hops: 0,
            xid: self.xid.into(),
            secs: u16::try_from(self.elapsed.as_secs()).unwrap_or(u16::MAX).into(),
            flags: if renew.is_some() { 0 } else { BROADCAST }.into(),
            ciaddr: renew.map_or([0; 4], |address| address.octets()),
            yiaddr: [0; 4],
            siaddr: [0; 4],
            giaddr: [0; 4],
            chaddr,
            sname: [0; 64],
            file: [0; 128],
            cookie: COOKIE,
        }
    }
}

const WANTED: [u8; 7] = [
    option::SUBNET_MASK,
    option::ROUTER,
    option::INTERFACE_MTU,
    option::LEASE_TIME,
    option::SERVER,
    option::RENEWAL_TIME,
    option::REBINDING_TIME,
];

fn put(bytes: &mut Vec<u8>, code: u8, value: &[u8]) {
    let Ok(length) = u8::try_from(value.len()) else { return };
    if length > 0 {
        bytes.extend_from_slice(&[code, length]);
        bytes.extend_from_slice(value);
    }
}

/// A message of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// DHCPOFFER.
    Offer { address: Ipv4Addr, server: Ipv4Addr },
    /// DHCPACK.
    Ack(Terms),
    /// DHCPNAK.
    Nak,
}

/// The parameters of an offer or acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Terms {
    pub(super) address: Ipv4Addr,
    pub(super) prefix: u8,
    pub(super) server: Ipv4Addr,
    pub(super) router: Option<Ipv4Addr>,
    pub(super) mtu: Option<u32>,
    /// `None` is an infinite lease.
    pub(super) lease: Option<Duration>,
    pub(super) renewal: Option<Duration>,
    pub(super) rebinding: Option<Duration>,
}

/// Parses a message of a server to the client `mac` in the exchange `xid`.
///
/// Returns `None` if it is for another client, malformed, or offers an unusable address.
pub(super) fn parse(bytes: &[u8], mac: Mac, xid: u32) -> Option<Answer> {
    let (fixed, rest) = Fixed::ref_from_prefix(bytes).ok()?;
    let ours = fixed.xid.get() == xid && fixed.chaddr.starts_with(&mac.0);
    if fixed.op != BOOT_REPLY || fixed.cookie != COOKIE || !ours {
        return None;
    }
    let options = Options::new(fixed, rest);
    // Link-local addresses cannot be leased (RFC 3927 §1.6).
    let address = usable(fixed.yiaddr.into()).filter(|address| !address.is_link_local());
    let server = options.address(option::SERVER);
    match options.get(option::MESSAGE_TYPE)? {
        [2] => Some(Answer::Offer { address: address?, server: server? }),
        [5] => options.terms(address?, server?).map(Answer::Ack),
        [6] => Some(Answer::Nak),
        _ => None,
    }
}

/// Returns whether it is a usable unicast address.
fn usable(address: Ipv4Addr) -> Option<Ipv4Addr> {
    let reserved = address.octets()[0] == 0 || address.octets()[0] >= 224;
    (!reserved && !address.is_loopback()).then_some(address)
}

/// The option areas: after the fixed part, and in its two text fields if these are overloaded.
struct Options<'a>([&'a [u8]; 3]);

impl<'a> Options<'a> {
    fn new(fixed: &'a Fixed, rest: &'a [u8]) -> Self {
        let overload = match find(rest, option::OVERLOAD) {
            Some([lent]) => *lent,
            _ => 0,
        };
        let file = if overload & 1 == 0 { &[][..] } else { &fixed.file };
        let sname = if overload & 2 == 0 { &[][..] } else { &fixed.sname };
        Self([rest, file, sname])
    }

    fn get(&self, code: u8) -> Option<&'a [u8]> {
        self.0.iter().find_map(|place| find(place, code))
    }

    /// Returns the first address of an option.
    fn address(&self, code: u8) -> Option<Ipv4Addr> {
        usable(Ipv4Addr::from(*self.get(code)?.first_chunk::<4>()?))
    }

    fn seconds(&self, code: u8) -> Option<u32> {
        self.get(code)?.try_into().ok().map(u32::from_be_bytes)
    }

    fn duration(&self, code: u8) -> Option<Duration> {
        self.seconds(code).map(|seconds| Duration::from_secs(seconds.into()))
    }

    fn terms(&self, address: Ipv4Addr, server: Ipv4Addr) -> Option<Terms> {
        let mask = self.get(option::SUBNET_MASK).and_then(|mask| mask.try_into().ok());
        let prefix = mask.and_then(|mask: [u8; 4]| prefix_len(mask.into()));
        let mtu = self.get(option::INTERFACE_MTU).and_then(|mtu| mtu.try_into().ok());
        let lease = self.seconds(option::LEASE_TIME)?;
        Some(Terms {
            address,
            // Without a mask assume 24 bits, which is the most common.
            prefix: prefix.filter(|prefix| *prefix > 0).unwrap_or(24),
            server,
            router: self.address(option::ROUTER),
            // IPv6 requires at least 1280 bytes.
            mtu: mtu.map(u16::from_be_bytes).filter(|mtu| *mtu >= 1280).map(u32::from),
            lease: (lease != u32::MAX).then(|| Duration::from_secs(lease.into())),
            renewal: self.duration(option::RENEWAL_TIME),
            rebinding: self.duration(option::REBINDING_TIME),
        })
    }
}

/// Returns the first option of a kind; stops at the first that is truncated.
fn find(mut bytes: &[u8], wanted: u8) -> Option<&[u8]> {
    loop {
        let (code, rest) = bytes.split_first()?;
        match *code {
            option::PAD => bytes = rest,
            option::END => return None,
            code => {
                let (length, rest) = rest.split_first()?;
                let (value, rest) = rest.split_at_checked(usize::from(*length))?;
                if code == wanted {
                    return Some(value);
                }
                bytes = rest;
            }
        }
    }
}

#[cfg(test)]
pub(super) mod server {
    //! Messages of a server, for tests.

    use super::*;

    /// Returns a reply to `question` with options (code and value).
    pub(crate) fn answer(question: &[u8], yiaddr: [u8; 4], options: &[(u8, &[u8])]) -> Vec<u8> {
        let (fixed, _) = Fixed::ref_from_prefix(question).unwrap();
        let fixed = Fixed { op: BOOT_REPLY, yiaddr, ..*fixed };
        let mut bytes = fixed.as_bytes().to_vec();
        for (code, value) in options {
            put(&mut bytes, *code, value);
        }
        bytes.push(option::END);
        bytes
    }

    /// Returns the kind of a client's message, and its options by code.
    pub(crate) fn read(question: &[u8], code: u8) -> Option<&[u8]> {
        find(&question[240..], code)
    }
}

#[cfg(test)]
mod tests {
    use super::server::{answer, read};
    use super::*;

    const MAC: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
    const XID: u32 = 0x1122_3344;

    fn question(ask: Ask) -> Vec<u8> {
        let elapsed = Duration::from_secs(3);
        Question { xid: XID, mac: MAC, elapsed, hostname: Some("box"), ask }.emit()
    }

    #[test]
    fn discover_golden_bytes() {
        let bytes = question(Ask::Discover);
        assert_eq!(bytes.len(), SHORTEST);
        assert_eq!(bytes[..12], [1, 1, 6, 0, 0x11, 0x22, 0x33, 0x44, 0, 3, 0x80, 0]);
        assert_eq!(bytes[28..34], MAC.0);
        assert_eq!(bytes[236..243], [99, 130, 83, 99, 53, 1, 1]);
        assert_eq!(read(&bytes, 61), Some(&[1, 0x52, 0x54, 0, 0x12, 0x34, 0x56][..]));
        assert_eq!(read(&bytes, 12), Some(&b"box"[..]));
        assert_eq!(read(&bytes, 50), None);
    }

    #[test]
    fn requests_have_the_address_in_the_right_field() {
        let address = Ipv4Addr::new(10, 0, 0, 5);
        let server = Some(Ipv4Addr::new(10, 0, 0, 1));
        let bytes = question(Ask::Request { address, server });
        assert_eq!(read(&bytes, 53), Some(&[3][..]));
        assert_eq!(read(&bytes, 50), Some(&[10, 0, 0, 5][..]));
        assert_eq!(read(&bytes, 54), Some(&[10, 0, 0, 1][..]));
        assert_eq!(bytes[12..16], [0; 4]);
        let bytes = question(Ask::Renew { address });
        assert_eq!((read(&bytes, 50), read(&bytes, 54)), (None, None));
        assert_eq!((&bytes[10..12], &bytes[12..16]), (&[0, 0][..], &[10, 0, 0, 5][..]));
    }

    fn ack(options: &[(u8, &[u8])]) -> Option<Answer> {
        let mut all: Vec<(u8, &[u8])> =
            vec![(53, &[5]), (54, &[10, 0, 0, 1]), (51, &[0, 0, 0, 60])];
        all.extend_from_slice(options);
        parse(&answer(&question(Ask::Discover), [10, 0, 0, 5], &all), MAC, XID)
    }

    fn terms(options: &[(u8, &[u8])]) -> Terms {
        match ack(options) {
            Some(Answer::Ack(terms)) => terms,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn acknowledgement_is_parsed() {
        let terms = terms(&[
            (1, &[255, 255, 240, 0]),
            (3, &[10, 0, 0, 1, 10, 0, 0, 2]),
            (26, &[5, 0]),
            (58, &[0, 0, 0, 30]),
        ]);
        assert_eq!((terms.address, terms.prefix), ([10, 0, 0, 5].into(), 20));
        assert_eq!(terms.router, Some([10, 0, 0, 1].into()));
        assert_eq!((terms.mtu, terms.lease), (Some(1280), Some(Duration::from_secs(60))));
        assert_eq!((terms.renewal, terms.rebinding), (Some(Duration::from_secs(30)), None));
    }

    #[test]
    fn invalid_options_are_ignored() {
        let terms =
            terms(&[(1, &[255, 0, 255, 0]), (3, &[224, 0, 0, 1]), (26, &[0, 68]), (58, &[1])]);
        assert_eq!((terms.prefix, terms.router, terms.mtu, terms.renewal), (24, None, None, None));
    }

    #[test]
    fn options_in_overloaded_fields_are_parsed() {
        let mut bytes = answer(&question(Ask::Discover), [10, 0, 0, 5], &[(52, &[3])]);
        bytes[108..112].copy_from_slice(&[53, 1, 2, 255]);
        bytes[44..51].copy_from_slice(&[54, 4, 10, 0, 0, 1, 255]);
        let offer = Answer::Offer { address: [10, 0, 0, 5].into(), server: [10, 0, 0, 1].into() };
        assert_eq!(parse(&bytes, MAC, XID), Some(offer));
    }

    #[test]
    fn messages_for_others_and_malformed_ones_are_ignored() {
        let options: [(u8, &[u8]); 3] = [(53, &[5]), (54, &[10, 0, 0, 1]), (51, &[0, 0, 0, 60])];
        let bytes = answer(&question(Ask::Discover), [10, 0, 0, 5], &options);
        assert!(parse(&bytes, MAC, XID).is_some());
        assert_eq!(parse(&bytes, MAC, XID + 1), None);
        assert_eq!(parse(&bytes, Mac([2; 6]), XID), None);
        assert_eq!(parse(&question(Ask::Discover), MAC, XID), None, "an echo of ours");
        for cut in 0..bytes.len() - 1 {
            assert_eq!(parse(&bytes[..cut], MAC, XID), None, "{cut} bytes");
        }
        for address in [[0; 4], [127, 0, 0, 1], [169, 254, 7, 9], [224, 0, 0, 1], [255; 4]] {
            let bytes = answer(&question(Ask::Discover), address, &options);
            assert_eq!(parse(&bytes, MAC, XID), None, "{address:?}");
        }
    }

    #[test]
    fn infinite_lease_is_parsed() {
        let options: [(u8, &[u8]); 3] = [(53, &[5]), (54, &[10, 0, 0, 1]), (51, &[255; 4])];
        let bytes = answer(&question(Ask::Discover), [10, 0, 0, 5], &options);
        let Some(Answer::Ack(terms)) = parse(&bytes, MAC, XID) else { panic!() };
        assert_eq!(terms.lease, None);
    }

    proptest::proptest! {
        #[test]
        fn no_options_panic(options in proptest::collection::vec(0..=255u8, 0..400)) {
            let mut bytes = answer(&question(Ask::Discover), [10, 0, 0, 5], &[]);
            bytes.truncate(240);
            bytes.extend_from_slice(&options);
            let _ = parse(&bytes, MAC, XID);
        }
    }
}
