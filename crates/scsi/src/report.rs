//! REPORT SUPPORTED OPERATION CODES (SPC-4 §6.35) and READ DEFECT DATA (SBC-3).

use export::Export;
use zerocopy::IntoBytes;
use zerocopy::byteorder::big_endian::{U16, U32};

use crate::cdb::ReportOpcodes;
use crate::limits;
use crate::supported::{Supported, TABLE, is_reservation, with_opcode};
use crate::wire::opcode as op;
use crate::wire::report::{
    CTDP, CommandDescriptor, NOT_SUPPORTED, ONE_CTDP, OneCommand, SERVACTV, SUPPORTED, Timeouts,
};
use crate::wire::sense::Sense;

/// Reporting options: all commands.
const ALL: u8 = 0;
/// Reporting options: one operation code that has no service actions.
const ONE_OPCODE: u8 = 1;
/// Reporting options: one service action.
const ONE_ACTION: u8 = 2;
/// Reporting options: an operation code, and a service action if it has them.
const ONE_COMMAND: u8 = 3;

/// Returns whether the disk supports a command of the table.
fn is_offered(export: &Export, opcode: u8) -> bool {
    match opcode {
        op::UNMAP => export.discard,
        op::WRITE_ATOMIC_16 => limits::atomic_writes(export.geometry).is_some(),
        opcode => !is_reservation(opcode) || export.supports_reservations(),
    }
}

fn timeouts() -> Timeouts {
    let (zero, length) = (U32::new(0), U16::new(10));
    Timeouts { length, reserved: 0, specific: 0, nominal: zero, recommended: zero }
}

fn length(len: usize) -> U16 {
    U16::new(u16::try_from(len).unwrap_or(u16::MAX))
}

/// Returns the data of REPORT SUPPORTED OPERATION CODES.
pub(crate) fn opcodes(export: &Export, command: ReportOpcodes) -> Result<Vec<u8>, Sense> {
    if command.options == ALL {
        return Ok(all(export, command.timeouts));
    }
    let entries = with_opcode(command.opcode);
    let has_actions = entries.iter().any(|entry| entry.action.is_some());
    let with_action = match command.options {
        ONE_OPCODE if !has_actions => false,
        ONE_ACTION if has_actions || entries.is_empty() => true,
        ONE_COMMAND => has_actions,
        _ => return Err(Sense::INVALID_FIELD_IN_CDB.with_field(2)),
    };
    let is_it = |entry: &&Supported| {
        let same = !with_action || entry.action.map(u16::from) == Some(command.action);
        same && is_offered(export, entry.opcode)
    };
    Ok(one(entries.iter().find(is_it), command.timeouts))
}

fn all(export: &Export, with_timeouts: bool) -> Vec<u8> {
    let mut list = Vec::new();
    for entry in TABLE.iter().filter(|entry| is_offered(export, entry.opcode)) {
        let flags = if with_timeouts { CTDP } else { 0 };
        let descriptor = CommandDescriptor {
            opcode: entry.opcode,
            reserved: 0,
            action: U16::new(entry.action.unwrap_or(0).into()),
            reserved_2: 0,
            flags: flags | if entry.action.is_some() { SERVACTV } else { 0 },
            length: length(entry.usage().len()),
        };
        list.extend_from_slice(descriptor.as_bytes());
        if with_timeouts {
            list.extend_from_slice(timeouts().as_bytes());
        }
    }
    let header = U32::new(u32::try_from(list.len()).unwrap_or(0));
    [header.as_bytes(), &list].concat()
}

fn one(entry: Option<&Supported>, with_timeouts: bool) -> Vec<u8> {
    let Some(entry) = entry else {
        let header = OneCommand { reserved: 0, support: NOT_SUPPORTED, length: U16::new(0) };
        return header.as_bytes().to_vec();
    };
    let mut usage = entry.usage().to_vec();
    if let (Some(action), Some(byte)) = (entry.action, usage.get_mut(1)) {
        *byte = action;
    }
    let support = SUPPORTED | if with_timeouts { ONE_CTDP } else { 0 };
    let header = OneCommand { reserved: 0, support, length: length(usage.len()) };
    let mut data = [header.as_bytes(), &usage].concat();
    if with_timeouts {
        data.extend_from_slice(timeouts().as_bytes());
    }
    data
}

/// Returns the data of READ DEFECT DATA: empty lists, as those of every disk that replaces defective
/// blocks itself. `lists` selects the lists and their format.
pub(crate) fn defects(twelve: bool, lists: u8) -> Vec<u8> {
    let mut data = vec![0, lists];
    data.resize(if twelve { 8 } else { 4 }, 0);
    data
}
