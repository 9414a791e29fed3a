//! The table of supported commands, with the bits of the CDB that are evaluated. A CDB with any
//! other bit is refused, and the same bits are reported as CDB usage data.

use crate::wire::{opcode as op, reservation};

/// A supported command.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Supported {
    pub(crate) opcode: u8,
    /// The service action, for an operation code that has several.
    pub(crate) action: Option<u8>,
    /// The bits that are evaluated. The first byte is the operation code itself.
    usage: [u8; 16],
}

impl Supported {
    /// Creates an entry. `usage` begins with the second byte of the CDB; what is missing is zero.
    const fn new(opcode: u8, action: Option<u8>, usage: &[u8]) -> Self {
        let mut all = [0; 16];
        all[0] = opcode;
        let mut at = 0;
        while at < usage.len() {
            all[at + 1] = usage[at];
            at += 1;
        }
        Self { opcode, action, usage: all }
    }

    /// Evaluates of the bytes of a block only the first, which is a list identifier.
    const fn without_block(mut self, list_id: u8) -> Self {
        self.usage[2] = list_id;
        let mut at = 3;
        while at < 10 {
            self.usage[at] = 0;
            at += 1;
        }
        self
    }

    /// Returns the CDB usage data (SPC-4 §6.35.3).
    pub(crate) fn usage(&self) -> &[u8] {
        &self.usage[..cdb_len(self.opcode)]
    }

    /// Returns the first byte with a bit that is not evaluated. Bytes beyond the length of the CDB are
    /// ignored: USB hosts pad CDBs.
    pub(crate) fn wrong_byte(&self, cdb: &[u8; 16]) -> Option<u8> {
        let ignored = u128::MAX.checked_shr(8 * u32::from(CDB_LEN[usize::from(self.opcode >> 5)]));
        let evaluated = u128::from_be_bytes(self.usage) | ignored.unwrap_or(0);
        let wrong = u128::from_be_bytes(*cdb) & !evaluated;
        #[allow(clippy::cast_possible_truncation, reason = "less than 16")]
        (wrong != 0).then_some((wrong.leading_zeros() / 8) as u8)
    }
}

/// Lengths of CDBs by group code (SPC-4 §4.2.5.1). Zero is not defined by it.
const CDB_LEN: [u8; 8] = [6, 10, 10, 0, 16, 12, 0, 0];

/// Returns the length of a CDB in bytes.
pub(crate) fn cdb_len(opcode: u8) -> usize {
    CDB_LEN[usize::from(opcode >> 5)].into()
}

/// DPO, FUA and the obsolete FUA_NV.
const FLAGS: u8 = 0x1a;
/// DPO and BYTCHK.
const VERIFY: u8 = 0x16;
/// The group number.
const GROUP: u8 = 0x1f;

const fn six(opcode: u8, usage: [u8; 4]) -> Supported {
    Supported::new(opcode, None, &usage)
}

/// A command with flags, a block, a group number and a length.
const fn ten(opcode: u8, flags: u8) -> Supported {
    Supported::new(opcode, None, &[flags, 255, 255, 255, 255, GROUP, 255, 255])
}

const fn twelve(opcode: u8, flags: u8) -> Supported {
    Supported::new(opcode, None, &[flags, 255, 255, 255, 255, 255, 255, 255, 255, GROUP])
}

const fn sixteen(opcode: u8, action: Option<u8>, flags: u8, group: u8) -> Supported {
    let f = 255;
    Supported::new(opcode, action, &[flags, f, f, f, f, f, f, f, f, f, f, f, f, group])
}

const fn persistent_in(action: u8) -> Supported {
    let usage = [0x1f, 0, 0, 0, 0, 0, 255, 255];
    Supported::new(op::PERSISTENT_RESERVE_IN, Some(action), &usage)
}

const fn persistent_out(action: u8) -> Supported {
    let usage = [0x1f, 255, 0, 0, 255, 255, 255, 255];
    Supported::new(op::PERSISTENT_RESERVE_OUT, Some(action), &usage)
}

/// All supported commands, in ascending order of the operation codes.
#[rustfmt::skip]
pub(crate) const TABLE: &[Supported] = &[
    six(op::TEST_UNIT_READY, [0, 0, 0, 0]),
    six(op::REQUEST_SENSE, [0, 0, 0, 255]),
    six(op::READ_6, [0x1f, 255, 255, 255]),
    six(op::WRITE_6, [0x1f, 255, 255, 255]),
    six(op::INQUIRY, [0x01, 255, 255, 255]),
    six(op::MODE_SELECT_6, [0x11, 0, 0, 255]),
    six(op::RESERVE_6, [0, 0, 0, 0]),
    six(op::RELEASE_6, [0, 0, 0, 0]),
    six(op::MODE_SENSE_6, [0x08, 255, 255, 255]),
    six(op::START_STOP_UNIT, [0x01, 0, 0x0f, 0xf7]),
    six(op::PREVENT_ALLOW, [0, 0, 0, 0x03]),
    Supported::new(op::READ_FORMAT_CAPACITIES, None, &[0, 0, 0, 0, 0, 0, 255, 255]),
    Supported::new(op::READ_CAPACITY_10, None, &[0, 255, 255, 255, 255, 0, 0, 1]),
    ten(op::READ_10, FLAGS),
    ten(op::WRITE_10, FLAGS),
    ten(op::WRITE_AND_VERIFY_10, VERIFY),
    ten(op::VERIFY_10, VERIFY),
    ten(op::PRE_FETCH_10, 0x02),
    ten(op::SYNCHRONIZE_CACHE_10, 0x06),
    Supported::new(op::READ_DEFECT_DATA_10, None, &[0, 0x1f, 0, 0, 0, 0, 255, 255]),
    ten(op::WRITE_SAME_10, 0x08),
    Supported::new(op::UNMAP, None, &[0, 0, 0, 0, 0, GROUP, 255, 255]),
    Supported::new(op::MODE_SELECT_10, None, &[0x11, 0, 0, 0, 0, 0, 255, 255]),
    Supported::new(op::MODE_SENSE_10, None, &[0x18, 255, 255, 0, 0, 0, 255, 255]),
    persistent_in(reservation::READ_KEYS),
    persistent_in(reservation::READ_RESERVATION),
    persistent_in(reservation::REPORT_CAPABILITIES),
    persistent_in(reservation::READ_FULL_STATUS),
    persistent_out(reservation::REGISTER),
    persistent_out(reservation::RESERVE),
    persistent_out(reservation::RELEASE),
    persistent_out(reservation::CLEAR),
    persistent_out(reservation::PREEMPT),
    persistent_out(reservation::PREEMPT_AND_ABORT),
    persistent_out(reservation::REGISTER_AND_IGNORE),
    sixteen(op::EXTENDED_COPY, Some(op::EXTENDED_COPY_LID1), 0x1f, 0).without_block(0),
    sixteen(op::RECEIVE_COPY_RESULTS, Some(op::RECEIVE_COPY_STATUS), 0x1f, 0).without_block(255),
    sixteen(op::RECEIVE_COPY_RESULTS, Some(op::RECEIVE_COPY_PARAMETERS), 0x1f, 0)
        .without_block(255),
    sixteen(op::READ_16, None, FLAGS, GROUP),
    Supported::new(op::COMPARE_AND_WRITE, None, &[
        FLAGS, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 255, GROUP,
    ]),
    sixteen(op::WRITE_16, None, FLAGS, GROUP),
    sixteen(op::ORWRITE_16, None, FLAGS, GROUP),
    sixteen(op::WRITE_AND_VERIFY_16, None, VERIFY, GROUP),
    sixteen(op::VERIFY_16, None, VERIFY, GROUP),
    sixteen(op::PRE_FETCH_16, None, 0x02, GROUP),
    sixteen(op::SYNCHRONIZE_CACHE_16, None, 0x06, GROUP),
    sixteen(op::WRITE_SAME_16, None, 0x09, GROUP),
    // Without boundaries.
    Supported::new(op::WRITE_ATOMIC_16, None, &[
        FLAGS, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 255, 255, GROUP,
    ]),
    sixteen(op::SERVICE_ACTION_IN_16, Some(op::READ_CAPACITY_16), 0x1f, 0x01),
    sixteen(op::SERVICE_ACTION_IN_16, Some(op::GET_LBA_STATUS), 0x1f, 0),
    Supported::new(op::REPORT_LUNS, None, &[0, 255, 0, 0, 0, 255, 255, 255, 255]),
    Supported::new(op::MAINTENANCE_IN, Some(op::REPORT_SUPPORTED_OPCODES), &[
        0x1f, 0x87, 255, 255, 255, 255, 255, 255, 255,
    ]),
    twelve(op::READ_12, FLAGS),
    twelve(op::WRITE_12, FLAGS),
    twelve(op::WRITE_AND_VERIFY_12, VERIFY),
    twelve(op::VERIFY_12, VERIFY),
    Supported::new(op::READ_DEFECT_DATA_12, None, &[0x1f, 255, 255, 255, 255, 255, 255, 255, 255]),
];

/// No entry of [`TABLE`].
const NONE: u8 = u8::MAX;

/// The first entry of [`TABLE`] for each operation code.
const FIRST: [u8; 256] = first();

const fn first() -> [u8; 256] {
    let mut first = [NONE; 256];
    let mut at = TABLE.len();
    while at > 0 {
        at -= 1;
        #[allow(clippy::cast_possible_truncation, reason = "the table is shorter than NONE")]
        {
            first[TABLE[at].opcode as usize] = at as u8;
        }
    }
    first
}
const _: () = assert!(TABLE.len() < NONE as usize);

/// Returns whether the command is about reservations. Where each host has contents of its own, there
/// are none.
pub(crate) fn is_reservation(opcode: u8) -> bool {
    matches!(
        opcode,
        op::RESERVE_6 | op::RELEASE_6 | op::PERSISTENT_RESERVE_IN | op::PERSISTENT_RESERVE_OUT
    )
}

/// Returns the supported commands with this operation code: one, or one for each service action.
pub(crate) fn with_opcode(opcode: u8) -> &'static [Supported] {
    let rest = TABLE.get(usize::from(FIRST[usize::from(opcode)])..).unwrap_or_default();
    let count = rest.iter().take_while(|entry| entry.opcode == opcode).count();
    &rest[..count]
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn table_is_ascending_and_every_command_is_found() {
        let order: Vec<_> = TABLE.iter().map(|entry| (entry.opcode, entry.action)).collect();
        assert!(order.is_sorted() && order.windows(2).all(|two| two[0] != two[1]));
        for entry in TABLE {
            assert!(with_opcode(entry.opcode).iter().any(|found| found.action == entry.action));
            assert!([6, 10, 12, 16].contains(&entry.usage().len()), "{:02x}", entry.opcode);
        }
        assert_eq!(with_opcode(0x7f).len(), 0);
        assert_eq!(with_opcode(op::SERVICE_ACTION_IN_16).len(), 2);
    }

    #[test]
    fn bits_that_are_not_evaluated_are_refused() {
        let entry = with_opcode(op::READ_10)[0];
        let cdb = |at: usize, byte: u8| {
            let mut cdb = [0; 16];
            (cdb[0], cdb[at]) = (op::READ_10, byte);
            cdb
        };
        // DPO, FUA, the block, the group number, the length, padding.
        for (at, byte) in [(1, 0x18), (2, 255), (5, 255), (6, 0x1f), (8, 255), (10, 255), (15, 1)] {
            assert_eq!(entry.wrong_byte(&cdb(at, byte)), None, "byte {at}");
        }
        // RDPROTECT, RARC, reserved, CONTROL with NACA.
        for (at, byte) in [(1, 0x20), (1, 0x80), (1, 0x04), (1, 0x01), (6, 0x20), (9, 0x04)] {
            let wrong = entry.wrong_byte(&cdb(at, byte)).map(usize::from);
            assert_eq!(wrong, Some(at), "byte {at}");
        }
    }
}
