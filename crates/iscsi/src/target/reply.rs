//! The answers to SCSI commands: status, residual and data (RFC 7143 §11.4).

use export::Buffer;
use scsi::Response;
use zerocopy::IntoBytes;

use super::link::{Data, End, Link, Source, padded};
use super::outbox::Outbox;
use super::slots::{Slot, Work};
use crate::wire::bhs::{OVERFLOW, STATUS, ScsiResponse, UNDERFLOW, of_target};
use crate::wire::opcode;

/// Returns the flag and the residual of a command that transfers `asked` bytes where `expected` were
/// expected.
fn residual(asked: u64, expected: u32) -> (u8, u32) {
    let cut = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
    match u64::from(expected) {
        expected if asked > expected => (OVERFLOW, cut(asked - expected)),
        expected if asked < expected => (UNDERFLOW, cut(expected - asked)),
        _ => (0, 0),
    }
}

/// Sends the last `len` bytes of a read, with its status.
pub(super) fn last_data(
    slot: &Slot,
    buffer: Buffer,
    len: usize,
    link: &mut Link,
    out: &mut Outbox,
) {
    let (flag, residual) = residual(slot.asked, slot.expected_in());
    let end = End { flags: STATUS | flag, status: 0, residual };
    link.send_data(&mut slot.data_in.clone(), Source::Whole(Some(buffer)), len, Some(end), out);
}

/// Answers a command that has ended.
pub(super) fn end(slot: Slot, link: &mut Link, out: &mut Outbox) {
    let Work::Ended(Response { status, sense, mut data }) = slot.work else { return };
    let is_good = status == scsi::Status::Good;
    let expected = if slot.reads || slot.writes { slot.expected } else { 0 };
    let asked = match slot.reads {
        _ if !data.is_empty() => data.len() as u64,
        _ if is_good => slot.asked,
        true => slot.data_in.offset.into(),
        false => slot.data_out.offset().into(),
    };
    let (flag, residual) = residual(asked, expected);
    let room = if slot.reads { expected } else { 0 };
    data.truncate(usize::try_from(room).unwrap_or(usize::MAX));
    let mut data_in = slot.data_in;
    if is_good && !data.is_empty() {
        let (end, len) = (End { flags: STATUS | flag, status: 0, residual }, data.len());
        return link.send_data(&mut data_in, Source::Bytes(padded(data)), len, Some(end), out);
    }
    let mut response = ScsiResponse::of(&of_target(opcode::SCSI_RESPONSE));
    response.flags |= flag;
    response.status = status as u8;
    (response.itt, response.residual) = (data_in.itt.into(), residual.into());
    (response.exp_data_sn, response.numbers) = (data_in.data_sn.into(), link.next_numbers());
    let sense = sense.map(|sense| {
        let bytes = sense.as_bytes();
        let len = u16::try_from(bytes.len()).unwrap_or(0);
        Data::of([&len.to_be_bytes()[..], bytes].concat())
    });
    link.send(&response, sense.unwrap_or(Data::NONE), out);
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn residual_is_the_difference_of_both_lengths() {
        assert_eq!(residual(512, 512), (0, 0));
        assert_eq!(residual(512, 200), (OVERFLOW, 312));
        assert_eq!(residual(512, 10000), (UNDERFLOW, 9488));
        assert_eq!(residual(1 << 40, 0), (OVERFLOW, u32::MAX));
    }
}
