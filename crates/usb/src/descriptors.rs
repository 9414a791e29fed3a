//! The interface and its endpoints, as the file `ep0` of `FunctionFS` takes them (kernel header
//! `linux/usb/functionfs.h`). Device, configuration and serial number are configured elsewhere.

/// Magic number of descriptors of version 2.
const DESCRIPTORS_V2: u32 = 3;

/// Magic number of strings.
const STRINGS: u32 = 2;

/// Flags of the descriptors: full, high and super speed.
const SPEEDS: u32 = 1 | 2 | 4;

/// US English.
const LANGUAGE: u16 = 0x0409;

/// The string of the interface.
const INTERFACE: &str = "storagetm";

/// Interface 0 with two endpoints: mass storage, SCSI, bulk-only (BOT §4.3); its string is number 1.
const INTERFACE_DESCRIPTOR: [u8; 9] = [9, 4, 0, 0, 2, 8, 6, 0x50, 1];

/// Companion of a super speed endpoint: 16 packets in a burst.
const COMPANION: [u8; 6] = [6, 0x30, 15, 0, 0, 0];

/// Endpoint addresses: 1 to the host, 2 from the host.
const ENDPOINTS: [u8; 2] = [0x81, 0x02];

/// Returns the descriptors for all speeds. File `ep1` is the bulk-in endpoint, `ep2` the bulk-out
/// one.
pub fn descriptors() -> Vec<u8> {
    let speed = |packet: u16, companion: &[u8]| {
        let [low, high] = packet.to_le_bytes();
        let mut bytes = INTERFACE_DESCRIPTOR.to_vec();
        for address in ENDPOINTS {
            bytes.extend_from_slice(&[7, 5, address, 2, low, high, 0]);
            bytes.extend_from_slice(companion);
        }
        bytes
    };
    let body = [speed(64, &[]), speed(512, &[]), speed(1024, &COMPANION)].concat();
    let counts = [3u32, 3, 5].map(u32::to_le_bytes).concat();
    with_head(DESCRIPTORS_V2, &[&SPEEDS.to_le_bytes(), &*counts, &body])
}

/// Returns the string of the interface.
pub fn strings() -> Vec<u8> {
    let counts = [1u32, 1].map(u32::to_le_bytes).concat();
    with_head(STRINGS, &[&*counts, &LANGUAGE.to_le_bytes(), INTERFACE.as_bytes(), &[0]])
}

/// Returns a magic number, the total length, and `parts`.
fn with_head(magic: u32, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let length = u32::try_from(body.len() + 8).unwrap_or(u32::MAX);
    [&magic.to_le_bytes()[..], &length.to_le_bytes(), &body].concat()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn descriptors_have_the_form_of_function_fs() {
        let bytes = descriptors();
        assert_eq!(bytes.len(), 24 + 23 + 23 + 35);
        let head = [3, 0, 0, 0, 105, 0, 0, 0, 7, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0, 5, 0, 0, 0];
        assert_eq!(bytes[..24], head);
        let full = [9, 4, 0, 0, 2, 8, 6, 0x50, 1, 7, 5, 0x81, 2, 64, 0, 0, 7, 5, 0x02, 2, 64, 0, 0];
        assert_eq!(bytes[24..47], full);
        let last = [7, 5, 0x02, 2, 0, 4, 0, 6, 0x30, 15, 0, 0, 0];
        assert_eq!(bytes[92..], last);
    }

    #[test]
    fn strings_have_the_form_of_function_fs() {
        let head = [2, 0, 0, 0, 28, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 9, 4];
        assert_eq!(strings(), [&head[..], b"storagetm\0"].concat());
    }
}
