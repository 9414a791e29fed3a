//! Wire structures of the bulk-only transport (USB Mass Storage Class, Bulk-Only Transport 1.0, §5).

#![allow(clippy::missing_errors_doc, reason = "functions that zerocopy derives")]

use zerocopy::byteorder::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Signature of a command block wrapper: `USBC`.
pub const CBW_SIGNATURE: u32 = 0x4342_5355;

/// Signature of a command status wrapper: `USBS`.
pub const CSW_SIGNATURE: u32 = 0x5342_5355;

/// Flag of a command block wrapper: the data is sent to the host.
pub const TO_HOST: u8 = 0x80;

/// Command block wrapper.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Cbw {
    /// [`CBW_SIGNATURE`].
    pub signature: U32,
    /// Echoed in the status wrapper.
    pub tag: U32,
    /// Number of bytes that the host transfers.
    pub length: U32,
    /// [`TO_HOST`]; the other bits are reserved.
    pub flags: u8,
    /// Logical unit, in the four low bits.
    pub lun: u8,
    /// Length of the command block, in the five low bits: 1 to 16.
    pub cdb_length: u8,
    /// The command block.
    pub cdb: [u8; 16],
}

const _: () = assert!(size_of::<Cbw>() == 31);

impl Cbw {
    /// Reads a wrapper. Returns the rule that is violated if it is not valid and meaningful (§6.2):
    /// for a device with `units` logical units.
    pub fn parse(bytes: &[u8], units: usize) -> Result<Self, &'static str> {
        let Ok(cbw) = Self::read_from_bytes(bytes) else { return Err("length of the CBW") };
        let rules = [
            (cbw.signature.get() == CBW_SIGNATURE, "signature of the CBW"),
            (cbw.flags & !TO_HOST == 0, "flags of the CBW"),
            (usize::from(cbw.lun) < units, "logical unit of the CBW"),
            ((1..=16).contains(&cbw.cdb_length), "length of the CDB"),
        ];
        match rules.iter().find(|(is_kept, _)| !is_kept) {
            Some((_, rule)) => Err(rule),
            None => Ok(cbw),
        }
    }

    /// Returns the command block, with zeros after its end.
    pub fn cdb(&self) -> [u8; 16] {
        let mut cdb = self.cdb;
        cdb.iter_mut().skip(self.cdb_length.into()).for_each(|byte| *byte = 0);
        cdb
    }
}

/// Status in a command status wrapper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// The command succeeded.
    Passed = 0,
    /// It failed: there is sense data.
    Failed = 1,
    /// The host and the command disagree on the data, and the host resets the device.
    PhaseError = 2,
}

/// Command status wrapper.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Csw {
    /// [`CSW_SIGNATURE`].
    pub signature: U32,
    /// That of the command.
    pub tag: U32,
    /// The length in the command wrapper, less what was processed.
    pub residue: U32,
    /// [`Status`].
    pub status: u8,
}

const _: () = assert!(size_of::<Csw>() == 13);

impl Csw {
    /// Returns the status of the command `tag`.
    pub fn new(tag: U32, residue: u32, status: Status) -> Self {
        let signature = CSW_SIGNATURE.into();
        Self { signature, tag, residue: residue.into(), status: status as u8 }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    const READ_10: [u8; 31] = [
        0x55, 0x53, 0x42, 0x43, 0x78, 0x56, 0x34, 0x12, 0x00, 0x10, 0x00, 0x00, 0x80, 0x00, 0x0a,
        0x28, 0, 0, 0, 0, 0x10, 0, 0, 8, 0, 0xff, 0, 0, 0, 0, 0,
    ];

    #[test]
    fn wrappers_have_the_bytes_of_the_standard() {
        let cbw = Cbw::parse(&READ_10, 1).unwrap();
        assert_eq!((cbw.tag.get(), cbw.length.get()), (0x1234_5678, 4096));
        assert_eq!(cbw.cdb(), [0x28, 0, 0, 0, 0, 0x10, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(cbw.as_bytes(), READ_10);
        let csw = Csw::new(cbw.tag, 7, Status::PhaseError);
        let bytes = [0x55, 0x53, 0x42, 0x53, 0x78, 0x56, 0x34, 0x12, 7, 0, 0, 0, 2];
        assert_eq!(csw.as_bytes(), bytes);
    }

    #[test]
    fn wrapper_that_breaks_a_rule_is_not_valid() {
        let changed = |at: usize, value| {
            let mut bytes = READ_10;
            bytes[at] = value;
            Cbw::parse(&bytes, 2).err()
        };
        assert_eq!(Cbw::parse(&READ_10[..30], 1), Err("length of the CBW"));
        assert_eq!(Cbw::parse(&[&READ_10[..], &[0]].concat(), 1), Err("length of the CBW"));
        assert_eq!(changed(0, 0), Some("signature of the CBW"));
        assert_eq!(changed(12, 0x81), Some("flags of the CBW"));
        assert_eq!((changed(13, 1), changed(13, 2)), (None, Some("logical unit of the CBW")));
        assert_eq!(changed(13, 0x10), Some("logical unit of the CBW"));
        assert_eq!((changed(14, 0), changed(14, 17)), (Some("length of the CDB"), changed(14, 42)));
        assert_eq!((changed(14, 1), changed(14, 16)), (None, None));
    }
}
