//! The relation of one initiator to the disk (an I_T_L nexus): decides what a command does.

mod attention;

use std::rc::Rc;
use std::sync::{Arc, Weak};

use export::{Export, Fault, Grant, Op, RemovalLock};
use zerocopy::IntoBytes;
use zerocopy::byteorder::big_endian::U32;

pub use attention::Attention;

use attention::Attentions;

use crate::capacity::{capacity_10, capacity_16, format_capacities};
use crate::cdb::{Cdb, StartStop};
use crate::job::Job;
use crate::port::Port;
use crate::range::Blocks;
use crate::response::{Response, Status};
use crate::settings::Settings;
use crate::supported::is_reservation;
use crate::wire::inquiry::{ABSENT, DISK, UNCONNECTED};
use crate::wire::opcode as op;
use crate::wire::report::LunsHeader;
use crate::wire::sense::Sense;
use crate::{copy, inquiry, mode, report, reservation};

/// A logical unit number as transports carry it (SAM-5 §4.7).
pub type Lun = [u8; 8];

/// A read or a write, which the transport executes in pieces of its own choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// The first block.
    pub lba: u64,
    /// The number of blocks. May be zero, which is not an error.
    pub blocks: u32,
    /// Whether a write must be on stable storage before it is completed (FUA).
    pub durable: bool,
}

/// What a command does.
#[derive(Debug)]
pub enum Command {
    /// It has ended already.
    Done(Response),
    /// Reads blocks and sends them to the initiator.
    Read(Transfer),
    /// Receives blocks from the initiator and writes them.
    Write(Transfer),
    /// Anything else.
    Job(Box<Job>),
}

impl Command {
    /// Returns how many bytes the CDB asks the initiator to send.
    #[must_use]
    pub fn data_out(&self, grant: &Grant) -> u64 {
        match self {
            Self::Done(_) | Self::Read(_) => 0,
            Self::Write(transfer) => transfer.bytes(grant),
            Self::Job(job) => job.data_out(),
        }
    }

    /// Returns how many bytes the CDB asks to be sent to the initiator, if that is known before the
    /// command has ended.
    #[must_use]
    pub fn data_in(&self, grant: &Grant) -> u64 {
        match self {
            Self::Done(response) => response.data.len() as u64,
            Self::Read(transfer) => transfer.bytes(grant),
            Self::Write(_) | Self::Job(_) => 0,
        }
    }
}

impl Transfer {
    /// Returns its length in bytes.
    #[must_use]
    pub fn bytes(&self, grant: &Grant) -> u64 {
        u64::from(self.blocks) << grant.export().geometry.shift()
    }
}

/// The state of a logical unit for one initiator and one target port.
#[derive(Debug)]
pub struct Nexus {
    port: Arc<Port>,
    attentions: Attentions,
    /// Sense data for REQUEST SENSE.
    sense: Option<Sense>,
    /// The disk that the initiator may know, and its capacity.
    export: Weak<Export>,
    blocks: u64,
    /// Prevents the removal of the medium, if the initiator has demanded that.
    removal_lock: Option<RemovalLock>,
    settings: Rc<Settings>,
}

impl Nexus {
    /// Creates the nexus of a new session, with the unit attention condition
    /// [`Attention::PowerOn`].
    /// It can reserve the disk if the grant has a
    /// [registrant](export::Grant::with_registrant).
    #[must_use]
    pub fn new(grant: &Grant, port: Arc<Port>) -> Self {
        let mut attentions = Attentions::default();
        attentions.push(Attention::PowerOn);
        // The grant keeps the notices that follow.
        let _ = grant.take_reservation_notice();
        let (export, blocks) = (Arc::downgrade(grant.export()), grant.export().blocks());
        let (sense, removal_lock, settings) = (None, None, Rc::default());
        Self { port, attentions, sense, export, blocks, removal_lock, settings }
    }

    /// Establishes a unit attention condition. A [`Attention::Reset`] also ends what the initiator
    /// has set: prevention and ejection of the medium, software write protection.
    pub fn attend(&mut self, attention: Attention) {
        if attention == Attention::Reset {
            (self.removal_lock, self.sense) = (None, None);
            self.settings.protected.set(false);
            self.settings.ejected.set(false);
        }
        self.attentions.push(attention);
    }

    /// Checks whether the disk was replaced, and whether its capacity or its reservations have
    /// changed. To be called after
    /// [`Notice::StateChanged`](export::Notice::StateChanged).
    pub fn changed(&mut self, grant: &Grant) {
        let (export, blocks) = (Arc::downgrade(grant.export()), grant.export().blocks());
        let is_same = self.export.ptr_eq(&export);
        if !is_same {
            self.removal_lock = None;
            self.settings.ejected.set(false);
            // It has lost its reservations, too.
            self.attentions.push(Attention::PowerOn);
        }
        if blocks != self.blocks {
            self.attentions.push(Attention::CapacityChanged);
        }
        (self.export, self.blocks) = (export, blocks);
        self.take_notices(grant);
    }

    /// Takes what reservation commands of others mean for this initiator.
    fn take_notices(&mut self, grant: &Grant) {
        while let Some(notice) = grant.take_reservation_notice() {
            self.attentions.push(notice.into());
        }
    }

    /// Keeps the sense data of a command for REQUEST SENSE, until the next command has ended. For a
    /// transport that does not send it with the status.
    pub fn keep_sense(&mut self, sense: Option<Sense>) {
        self.sense = sense;
    }

    /// Returns whether the initiator has ejected the medium, which has been flushed.
    #[must_use]
    pub fn is_ejected(&self) -> bool {
        self.settings.ejected.get()
    }

    /// Decides what a command does. A CDB of fewer than 16 bytes is padded.
    pub fn command(&mut self, grant: &Grant, lun: Lun, cdb: &[u8; 16]) -> Command {
        let result = if is_zero(lun) {
            self.dispatch(grant, cdb)
        } else {
            self.absent(grant, cdb).map(Command::Done)
        };
        result.unwrap_or_else(Command::Done)
    }

    fn dispatch(&mut self, grant: &Grant, cdb: &[u8; 16]) -> Result<Command, Response> {
        if !is_transfer(cdb[0]) {
            self.take_notices(grant);
        }
        let exempt = matches!(cdb[0], op::INQUIRY | op::REPORT_LUNS | op::REQUEST_SENSE);
        if !exempt && let Some(attention) = self.attentions.pop() {
            return Err(attention.sense().into());
        }
        if is_reservation(cdb[0]) && !grant.export().supports_reservations() {
            return Err(Sense::INVALID_OPCODE.into());
        }
        let cdb = Cdb::parse(cdb)?;
        if is_reserved(grant, cdb) {
            return Err(Response::status(Status::ReservationConflict));
        }
        if needs_medium(cdb) && (self.settings.ejected.get() || grant.export().is_gone()) {
            return Err(Sense::MEDIUM_NOT_PRESENT.into());
        }
        if self.settings.protected.get() && cdb.writes() {
            return Err(Sense::SOFTWARE_WRITE_PROTECTED.into());
        }
        match cdb {
            Cdb::Read(range) => read(grant, range).map(Command::Read),
            Cdb::Write { range, durable } => write(grant, range, durable).map(Command::Write),
            Cdb::StartStop(command) => self.start_stop(grant, command),
            Cdb::Inquiry { .. }
            | Cdb::RequestSense { .. }
            | Cdb::ReportLuns { .. }
            | Cdb::ModeSense(_)
            | Cdb::CopyStatus { .. }
            | Cdb::PreventAllow { .. } => self.answer(grant, cdb).map(Command::Done),
            _ => match inform(grant, cdb)? {
                Some(response) => Ok(Command::Done(response)),
                None => Job::new(grant, cdb, &self.settings).map(|job| Command::Job(Box::new(job))),
            },
        }
    }

    /// Executes a command on the state of the nexus.
    fn answer(&mut self, grant: &Grant, cdb: Cdb) -> Result<Response, Response> {
        match cdb {
            Cdb::Inquiry { page: None, allocation } => {
                Ok(Response::data(inquiry::of_disk(grant.export(), &self.port), allocation))
            }
            Cdb::Inquiry { page: Some(page), allocation } => {
                let page = inquiry::vital(grant, &self.port, page);
                let page = page.ok_or(Sense::INVALID_FIELD_IN_CDB)?;
                Ok(Response::data(page, allocation))
            }
            Cdb::RequestSense { allocation } => {
                let attention = || self.attentions.pop().map(Attention::sense);
                let sense = self.sense.take().or_else(attention).unwrap_or(Sense::NONE);
                Ok(Response::data(sense.as_bytes().to_vec(), allocation))
            }
            Cdb::ReportLuns { select, allocation } => {
                self.attentions.clear(Attention::LunsChanged);
                luns(select, allocation)
            }
            Cdb::PreventAllow { prevent } => {
                self.removal_lock = prevent.then(|| RemovalLock::new(grant.export()));
                Ok(Response::good())
            }
            Cdb::CopyStatus { list_id, allocation } => {
                let data = copy::status(self.settings.last_copy.get(), list_id)?;
                Ok(Response::data(data, allocation))
            }
            Cdb::ModeSense(command) => {
                let data = mode::sense(grant, command, self.settings.protected.get())?;
                Ok(Response::data(data, command.allocation))
            }
            _ => Err(Sense::INVALID_OPCODE.into()),
        }
    }

    /// Executes START STOP UNIT: flushes the disk when it is stopped or ejected (SBC-3 §5.25). An
    /// ejection always flushes: the disk may be unplugged after it. The medium can be loaded while its
    /// removal is prevented: Linux prevents it when it opens the disk, and then loads.
    fn start_stop(&mut self, grant: &Grant, command: StartStop) -> Result<Command, Response> {
        let StartStop { power_condition, no_flush, load_or_eject, start } = command;
        let good = Ok(Command::Done(Response::good()));
        if power_condition != 0 {
            return good;
        }
        if load_or_eject && !start && grant.export().is_removal_prevented() {
            return Err(Sense::REMOVAL_PREVENTED.into());
        }
        match (start, load_or_eject) {
            (true, true) => self.settings.ejected.set(false),
            (false, true) => return Ok(Command::Job(Box::new(Job::eject(&self.settings)))),
            (false, false) if !no_flush => return Ok(Command::Job(Box::new(Job::flush()))),
            _ => {}
        }
        good
    }

    /// Executes a command of a LUN that has no disk (SPC-4 §6.6.2, SAM-5 §4.7.4). Linux scans for
    /// such LUNs by INQUIRY.
    fn absent(&mut self, grant: &Grant, cdb: &[u8; 16]) -> Result<Response, Response> {
        match (cdb[0], Cdb::parse(cdb)) {
            (op::INQUIRY, Ok(Cdb::Inquiry { page: None, allocation })) => Ok(Response::data(
                inquiry::standard(&grant.export().identity, &self.port, ABSENT),
                allocation,
            )),
            (op::REPORT_LUNS, Ok(cdb)) => self.answer(grant, cdb),
            (op::REQUEST_SENSE, Ok(Cdb::RequestSense { allocation })) => {
                Ok(Response::data(Sense::NO_SUCH_UNIT.as_bytes().to_vec(), allocation))
            }
            (op::INQUIRY | op::REPORT_LUNS | op::REQUEST_SENSE, Err(sense)) => Err(sense.into()),
            _ => Err(Sense::NO_SUCH_UNIT.into()),
        }
    }
}

/// Returns the response to a command of a unit that has no disk now: one was removed, or none has
/// been connected.
#[must_use]
pub fn without_disk(port: &Port, was_removed: bool, cdb: &[u8; 16]) -> Response {
    let peripheral = if was_removed { DISK } else { UNCONNECTED };
    let result = match Cdb::parse(cdb) {
        Ok(Cdb::Inquiry { page: None, allocation }) => {
            let identity = export::Identity::default();
            Ok(Response::data(inquiry::standard(&identity, port, peripheral), allocation))
        }
        Ok(Cdb::Inquiry { .. }) => Err(Sense::INVALID_FIELD_IN_CDB.into()),
        Ok(Cdb::RequestSense { allocation }) => {
            Ok(Response::data(Sense::MEDIUM_NOT_PRESENT.as_bytes().to_vec(), allocation))
        }
        Ok(Cdb::ReportLuns { select, allocation }) => luns(select, allocation),
        Ok(_) => Err(Sense::MEDIUM_NOT_PRESENT.into()),
        Err(sense) => Err(sense.into()),
    };
    result.unwrap_or_else(|refused| refused)
}

/// Returns whether a LUN is 0, by peripheral device addressing or flat space addressing
/// (SAM-5 §4.7.7).
fn is_zero(lun: Lun) -> bool {
    let [method, rest @ ..] = lun;
    matches!(method, 0x00 | 0x40) && rest == [0; 7]
}

/// Returns whether this is a read or a write. They learn of the reservations of others by
/// [`Nexus::changed`] only: a lock is too much for them.
fn is_transfer(opcode: u8) -> bool {
    matches!(
        opcode,
        op::READ_10 | op::WRITE_10 | op::READ_16 | op::WRITE_16 | op::READ_12 | op::WRITE_12
    )
}

/// Returns whether a reservation of another initiator refuses a command that is none on blocks
/// (SPC-4, SBC-3). Those on blocks are refused by the gate.
fn is_reserved(grant: &Grant, cdb: Cdb) -> bool {
    let refuses = |op| grant.permits(op, 0, 0) == Err(Fault::Reserved);
    match cdb {
        Cdb::ModeSense(_) | Cdb::ReadDefectData { .. } => refuses(Op::Read),
        Cdb::ModeSelect { .. }
        | Cdb::PreventAllow { prevent: true }
        | Cdb::StartStop(StartStop { start: false, .. }) => refuses(Op::Flush),
        // Only by RESERVE (6).
        Cdb::TestUnitReady => {
            refuses(Op::Read) && grant.export().reservations().unit_holder().is_some()
        }
        _ => false,
    }
}

/// Returns whether a command fails without a medium.
fn needs_medium(cdb: Cdb) -> bool {
    !matches!(
        cdb,
        Cdb::Inquiry { .. }
            | Cdb::RequestSense { .. }
            | Cdb::ReportLuns { .. }
            | Cdb::ReportOpcodes(_)
            | Cdb::ModeSense(_)
            | Cdb::StartStop(_)
            | Cdb::PreventAllow { .. }
            | Cdb::PersistentIn { .. }
    )
}

/// Returns the list of LUNs: only LUN 0, and no well known ones (SPC-4 §6.33).
fn luns(select: u8, allocation: u32) -> Result<Response, Response> {
    let entries: &[u8] = match select {
        0 | 2 => &[0; 8],
        1 => &[],
        _ => return Err(Sense::INVALID_FIELD_IN_CDB.into()),
    };
    let length = U32::new(u32::try_from(entries.len()).unwrap_or(0));
    let header = LunsHeader { length, reserved: [0; 4] };
    Ok(Response::data([header.as_bytes(), entries].concat(), allocation))
}

/// Executes a command that only returns information. Returns `None` for others.
fn inform(grant: &Grant, cdb: Cdb) -> Result<Option<Response>, Response> {
    let export = &**grant.export();
    let capacity = |data: fn(&Export) -> Vec<u8>, allocation| match export.blocks() {
        0 => Err(Response::from(Sense::MEDIUM_NOT_PRESENT)),
        _ => Ok(Response::data(data(export), allocation)),
    };
    Ok(Some(match cdb {
        Cdb::TestUnitReady => Response::good(),
        Cdb::ReadCapacity10 => capacity(capacity_10, u32::MAX)?,
        Cdb::ReadCapacity16 { allocation } => capacity(capacity_16, allocation)?,
        Cdb::ReadFormatCapacities { allocation } => capacity(format_capacities, allocation)?,
        Cdb::ReadDefectData { twelve, lists, allocation } => {
            Response::data(report::defects(twelve, lists), allocation)
        }
        Cdb::ReportOpcodes(command) => {
            Response::data(report::opcodes(export, command)?, command.allocation)
        }
        Cdb::CopyParameters { allocation } => {
            Response::data(copy::operating_parameters(export), allocation)
        }
        Cdb::PersistentIn { action, allocation } => {
            Response::data(reservation::report(export, action)?, allocation)
        }
        _ => return Ok(None),
    }))
}

fn read(grant: &Grant, range: Blocks) -> Result<Transfer, Response> {
    range.check(grant, Op::Read)?;
    Ok(Transfer { lba: range.lba, blocks: range.blocks, durable: false })
}

fn write(grant: &Grant, range: Blocks, durable: bool) -> Result<Transfer, Response> {
    range.check(grant, Op::Write { durable })?;
    Ok(Transfer { lba: range.lba, blocks: range.blocks, durable })
}
