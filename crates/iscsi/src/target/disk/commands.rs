//! The beginning of commands, and their data from the initiator.

use std::cmp::Ordering;

use export::Buffer;
use scsi::wire::sense::key;
use scsi::{Command, Response, Sense, Status};

use super::{Cx, Disk};
use crate::target::Violation;
use crate::target::data_out::DataOut;
use crate::target::link::DataInProgress;
use crate::target::negotiation::Parameters;
use crate::target::reading::Reading;
use crate::target::receiver::{Sink, TaskData};
use crate::target::slots::{Request, Slot, Work};
use crate::target::writing::Writing;
use crate::wire::bhs::{self, Bhs, ScsiCommand};
use crate::wire::opcode;

impl Disk {
    /// Begins a command, and expects its immediate data.
    pub(in crate::target) fn command(
        &mut self,
        header: &Bhs,
        cx: &mut Cx<'_>,
    ) -> Result<(), Violation> {
        let command = ScsiCommand::of(header);
        let mut slot = new_slot(&command, cx.parameters)?;
        let refusal = match slot.immediate && !self.slots.takes_immediate() {
            true => Some(opcode::reject::TOO_MANY_IMMEDIATE),
            false => self.slots.find(slot.itt).map(|_| opcode::reject::TASK_IN_PROGRESS),
        };
        if let Some(reason) = refusal {
            cx.link.reject(header, reason, cx.out);
            cx.receiver.skip(header);
            return Ok(());
        }
        let grant = &self.attachment.grant;
        let decided = match command.ahs_len {
            0 => self.nexus.command(grant, command.lun.to_bytes(), &command.cdb),
            _ => Command::Done(Sense::INVALID_FIELD_IN_CDB.into()),
        };
        slot.asked = decided.data_out(grant).max(decided.data_in(grant));
        let shift = grant.export().geometry.shift();
        let decided = match shortened(&command.cdb, slot.expected_out() >> shift) {
            Some(short) if slot.asked > slot.expected_out().into() => {
                self.nexus.command(grant, command.lun.to_bytes(), &short)
            }
            _ => decided,
        };
        let may_be_long = shortened(&command.cdb, 0).is_some();
        slot.work = self.work(decided, &slot, may_be_long);
        let immediate = header.data_len.get() != 0;
        let follows = immediate || slot.data_out.expects();
        let Some(at) = self.slots.claim(slot) else { return Err(Violation::CmdSnSkipped) };
        self.poll_job(at, cx);
        self.next_piece(at);
        if follows {
            self.take_for_stream(at);
        }
        if immediate && let Some(slot) = self.slots.get(at) {
            slot.receiving = true;
            let sink = slot.data_out.immediate(at);
            cx.receiver.expect(*header, Sink::Task(sink));
        }
        self.advance(at, cx);
        Ok(())
    }

    /// Returns the work of a command. A job does not take data of another length than its CDB says,
    /// unless it `may_be_long`.
    fn work(&self, decided: Command, slot: &Slot, may_be_long: bool) -> Work {
        let geometry = self.attachment.grant.export().geometry;
        let asked = u32::try_from(slot.asked).unwrap_or(u32::MAX);
        match decided {
            Command::Done(response) => Work::Ended(response),
            Command::Read(transfer) => {
                Work::Read(Reading::new(transfer, geometry, asked.min(slot.expected_in())))
            }
            Command::Write(transfer) => {
                let len = asked.min(slot.expected_out()) & !(geometry.block() - 1);
                Work::Write(Writing::new(transfer, geometry.shift(), len))
            }
            Command::Job(job) => match job.data_out().cmp(&slot.expected_out().into()) {
                Ordering::Less if may_be_long => Work::Job(job, Request::NONE),
                Ordering::Equal => Work::Job(job, Request::NONE),
                _ => Work::Ended(Sense::INVALID_FIELD_IN_CDB.into()),
            },
        }
    }

    /// Allocates memory for data that follows its command. Without memory reception stops, unless
    /// data of an earlier command is to follow: that could wait for this one for ever.
    fn take_for_stream(&mut self, at: u8) {
        let Some(slot) = self.slots.get(at) else { return };
        let Some(len) = slot.data_out.needs_memory() else { return };
        if let Some(buffer) = self.memory.take_for_stream(len) {
            return slot.data_out.provide(buffer);
        }
        let others = self.slots.busy().any(|(other, slot)| {
            other != at && slot.data_out.holds_stream() && !matches!(slot.work, Work::Ended(_))
        });
        match self.slots.get(at) {
            Some(slot) if others => {
                slot.data_out.drop_piece();
                slot.work = Work::Ended(Response::status(Status::Busy));
            }
            _ => self.stalled = Some(at),
        }
    }

    /// Receives the data of a Data-Out PDU.
    pub(in crate::target) fn data_out(
        &mut self,
        header: &Bhs,
        cx: &mut Cx<'_>,
    ) -> Result<(), Violation> {
        let itt = header.itt.get();
        let Some(at) = self.slots.find(itt) else {
            if !self.aborted_tags.contains(&itt) {
                return Err(Violation::DataNotExpected);
            }
            cx.receiver.skip(header);
            return Ok(());
        };
        let Some(slot) = self.slots.get(at) else { return Ok(()) };
        let (sink, is_in_order) = slot.data_out.accept(at, header)?;
        if !is_in_order {
            self.data_lost(at);
        }
        let Some(slot) = self.slots.get(at) else { return Ok(()) };
        if header.data_len.get() == 0 {
            self.data_received(sink, cx);
            return Ok(());
        }
        slot.receiving = true;
        cx.receiver.expect(*header, Sink::Task(sink));
        Ok(())
    }

    /// Fails a command of whose data a PDU is missing: the rest is skipped (RFC 7143 §7.9).
    fn data_lost(&mut self, at: u8) {
        let Some(slot) = self.slots.get(at) else { return };
        slot.data_out.drop_piece();
        let lost = Response::from(Sense::new(key::ABORTED_COMMAND, 0x47, 0x05));
        match &mut slot.work {
            Work::Write(writing) => {
                writing.failed.get_or_insert(lost);
            }
            Work::Job(..) => slot.work = Work::Ended(lost),
            Work::Free | Work::Read(_) | Work::Ended(_) => {}
        }
    }

    /// Takes the data of a PDU that has been received.
    pub(in crate::target) fn data_received(&mut self, data: TaskData, cx: &mut Cx<'_>) {
        let Some(slot) = self.slots.get(data.slot) else { return };
        slot.receiving = false;
        if let Some(buffer) = data.buffer {
            slot.data_out.provide(buffer);
        }
        self.advance(data.slot, cx);
    }

    /// Gives memory to the data that is next in the stream.
    pub(super) fn provide_stream(&mut self, at: u8, buffer: Buffer, cx: &mut Cx<'_>) {
        let Some(slot) = self.slots.get(at) else { return };
        match slot.receiving {
            true => cx.receiver.provide(at, buffer),
            false => slot.data_out.provide(buffer),
        }
    }
}

/// Creates the slot of a command, which is to be decided.
fn new_slot(command: &ScsiCommand, parameters: &Parameters) -> Result<Slot, Violation> {
    let has = |flag: u8| command.flags & flag != 0;
    let (immediate, expected) = (command.data_len.get(), command.expected.get());
    let first_burst = if has(bhs::WRITE) { expected.min(parameters.first_burst) } else { 0 };
    if immediate > first_burst {
        return Err(Violation::DataTooLong);
    }
    let unsolicited = !has(bhs::FINAL);
    if immediate != 0 && !parameters.immediate_data || unsolicited && parameters.initial_r2t {
        return Err(Violation::DataNotExpected);
    }
    let unsolicited_end = (unsolicited && immediate < first_burst).then_some(first_burst);
    let itt = command.itt.get();
    Ok(Slot {
        itt,
        expected,
        reads: has(bhs::READ),
        writes: has(bhs::WRITE),
        immediate: command.opcode & opcode::IMMEDIATE != 0,
        data_out: DataOut::new(immediate, unsolicited_end),
        data_in: DataInProgress { itt, ..DataInProgress::default() },
        ..Slot::default()
    })
}

/// Returns the CDB with another number of blocks, if it is a WRITE AND VERIFY: of a transfer that is
/// shorter than its CDB says, that many blocks are written, as of a WRITE.
fn shortened(cdb: &[u8; 16], blocks: u32) -> Option<[u8; 16]> {
    let mut short = *cdb;
    let [a, b, c, d] = blocks.to_be_bytes();
    match cdb[0] {
        0x2e => short[7..9].copy_from_slice(&[c, d]),
        0xae => short[6..10].copy_from_slice(&[a, b, c, d]),
        0x8e => short[10..14].copy_from_slice(&[a, b, c, d]),
        _ => return None,
    }
    Some(short)
}
