//! The descriptors of the device, which the kernel has where the device is a gadget.

/// Speed of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speed {
    High,
    Super,
}

/// Types of descriptors.
const DEVICE: u8 = 1;
const CONFIGURATION: u8 = 2;
const STRING: u8 = 3;
const BINARY_OBJECT_STORE: u8 = 15;

/// Manufacturer and interface, product, serial number. They are numbered from 1.
const STRINGS: [&str; 3] = ["storagetm", "Disks of a test", "0123456789ABCDEF"];

/// USB 2.0 extension and SuperSpeed capability.
const CAPABILITIES: [u8; 22] = [
    5,
    BINARY_OBJECT_STORE,
    22,
    0,
    2, // two capabilities
    7,
    16,
    2,
    2,
    0,
    0,
    0, // link power management
    10,
    16,
    3,
    0,
    0x0e,
    0,
    1,
    10,
    0xff,
    7, // high and super speed
];

impl Speed {
    /// Returns the number of Linux' `enum usb_device_speed`.
    pub(super) fn number(self) -> u32 {
        match self {
            Self::High => 3,
            Self::Super => 5,
        }
    }

    /// Returns the largest packet of a bulk endpoint in bytes.
    pub(super) fn packet(self) -> usize {
        match self {
            Self::High => 512,
            Self::Super => 1024,
        }
    }

    /// Returns the device descriptor.
    pub(super) fn device(self) -> [u8; 18] {
        let (version, packet) = match self {
            Self::High => (0x02, 64),
            // As a power of two.
            Self::Super => (0x03, 9),
        };
        [18, DEVICE, 0, version, 0, 0, 0, packet, 0x6b, 0x1d, 4, 1, 0, 1, 1, 2, 3, 1]
    }

    /// Returns a descriptor by `wValue` of the request for it.
    pub(super) fn descriptor(self, value: [u8; 2]) -> Option<Vec<u8>> {
        match (value[1], value[0]) {
            (DEVICE, 0) => Some(self.device().to_vec()),
            (CONFIGURATION, 0) => Some(self.configuration()),
            (STRING, 0) => Some(vec![4, STRING, 9, 4]),
            (STRING, number) => string(STRINGS.get(usize::from(number).checked_sub(1)?)?),
            (BINARY_OBJECT_STORE, 0) if self == Self::Super => Some(CAPABILITIES.to_vec()),
            _ => None,
        }
    }

    fn configuration(self) -> Vec<u8> {
        let interface = self.interface();
        let [low, high] = u16::try_from(interface.len() + 9).unwrap_or(u16::MAX).to_le_bytes();
        [&[9, CONFIGURATION, low, high, 1, 1, 0, 0xc0, 1][..], &interface].concat()
    }

    /// Returns interface and endpoints, which the function declares for full, high and super speed
    /// in this order, behind 24 bytes with the numbers of its descriptors.
    fn interface(self) -> Vec<u8> {
        let declared = usb::descriptors::descriptors();
        let (head, mut rest) = declared.split_at(24);
        let mut chosen = Vec::new();
        let index = if self == Self::High { 1 } else { 2 };
        for count in head[12..].chunks(4).map(|count| count[0]).take(index + 1) {
            let lengths = (0..count).scan(0, |at, _| {
                *at += usize::from(rest[*at]);
                Some(*at)
            });
            let length = lengths.last().unwrap_or(0);
            let (ours, others) = rest.split_at(length);
            (chosen, rest) = (ours.to_vec(), others);
        }
        chosen
    }
}

fn string(text: &str) -> Option<Vec<u8>> {
    let characters: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let length = u8::try_from(characters.len() + 2).ok()?;
    Some([&[length, STRING][..], &characters].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_has_the_endpoints_of_its_speed() {
        let high = Speed::High.descriptor([0, CONFIGURATION]).unwrap();
        assert_eq!(high[..9], [9, 2, 32, 0, 1, 1, 0, 0xc0, 1]);
        assert_eq!(high[25..], [7, 5, 2, 2, 0, 2, 0]);
        let fast = Speed::Super.descriptor([0, CONFIGURATION]).unwrap();
        assert_eq!((fast.len(), &fast[25..31]), (44, &[6, 0x30, 15, 0, 0, 0][..]));
        assert_eq!(Speed::High.descriptor([0, BINARY_OBJECT_STORE]), None);
        assert_eq!(Speed::High.descriptor([9, STRING]), None);
    }
}
