//! Class requests on endpoint 0 (BOT §3). The kernel answers the standard requests.

/// Length of a setup packet in bytes.
pub const SETUP: usize = 8;

/// Class request to the interface, from the device.
const CLASS_IN: u8 = 0xa1;

/// Class request to the interface, to the device.
const CLASS_OUT: u8 = 0x21;

/// Get Max LUN.
const GET_MAX_LUN: u8 = 0xfe;

/// Bulk-Only Mass Storage Reset.
const RESET: u8 = 0xff;

/// How a request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// With this byte.
    Data(u8),
    /// Acknowledged: the device is reset.
    Reset,
    /// Not supported: endpoint 0 is halted.
    Stall,
}

/// Returns the answer to the request `setup`, for a device with `units` logical units.
pub fn reply(setup: [u8; SETUP], units: usize) -> Reply {
    let [kind, request, value_low, value_high, .., length_low, length_high] = setup;
    let value = u16::from_le_bytes([value_low, value_high]);
    let length = u16::from_le_bytes([length_low, length_high]);
    match (kind, request, value, length) {
        (CLASS_IN, GET_MAX_LUN, 0, 1..) => {
            Reply::Data(u8::try_from(units.saturating_sub(1)).unwrap_or(u8::MAX))
        }
        (CLASS_OUT, RESET, 0, 0) => Reply::Reset,
        _ => Reply::Stall,
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn class_requests_are_answered_and_others_refused() {
        let get = [0xa1, 0xfe, 0, 0, 0, 0, 1, 0];
        assert_eq!([0, 1, 8].map(|units| reply(get, units)), [0, 0, 7].map(Reply::Data));
        assert_eq!(reply([0x21, 0xff, 0, 0, 0, 0, 0, 0], 1), Reply::Reset);
        for setup in [
            [0xa1, 0xfe, 1, 0, 0, 0, 1, 0],
            [0xa1, 0xfe, 0, 0, 0, 0, 0, 0],
            [0x21, 0xfe, 0, 0, 0, 0, 1, 0],
            [0x21, 0xff, 0, 0, 0, 0, 1, 0],
            [0xa1, 0xff, 0, 0, 0, 0, 1, 0],
            [0xa1, 0x00, 0, 0, 0, 0, 1, 0],
        ] {
            assert_eq!(reply(setup, 1), Reply::Stall, "{setup:?}");
        }
    }
}
