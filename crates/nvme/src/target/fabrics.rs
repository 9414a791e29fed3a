//! Fabrics commands: Connect, which makes a connection a queue of a controller, the properties, and Disconnect
//! (NVMe Base 2.0 §6). It knows no PDU.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use export::{Buffer, Event, Grant, Reason, Step};
use zerocopy::FromBytes;

use super::admin::{Admin, Waiting};
use super::controller::{Controller, Host, Kind};
use super::io::{Work, no_data};
use super::queue::{Link, Queue};
use super::transfer::Size;
use super::{Port, QUEUE_ENTRIES};
use crate::command::{FabricsCommand, PropertySize};
use crate::status::Status;
use crate::wire::command::Sqe;
use crate::wire::fabrics::{
    CNTLID_DYNAMIC, ConnectData, ConnectField, ConnectResponse, DISCOVERY_NQN, cattr, property,
};
use crate::wire::text::NqnError;
use crate::wire::{fabrics, opcode};

/// A Connect, checked as far as its data is not needed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Connect {
    qid: u16,
    entries: u16,
    flow_control: bool,
    keep_alive: u32,
}

/// CNTLID that asks for any controller of the static model (NVMe Base 2.0 §6.3).
const CNTLID_STATIC_ANY: u16 = 0xfffe;

/// Why a Connect is refused: its status, and dword 0 of the answer.
pub(super) struct Refused(Status, u32);

impl From<Status> for Refused {
    fn from(status: Status) -> Self {
        Self(status.dnr(), 0)
    }
}

impl From<ConnectField> for Refused {
    fn from(field: ConnectField) -> Self {
        Self(Status::CONNECT_INVALID_PARAMETERS.dnr(), field.dw0())
    }
}

impl Queue {
    /// A command before the connection is a queue: it must be Connect.
    pub(super) fn connect_command(
        &mut self,
        at: u16,
        sqe: Sqe,
        capsule: Option<Buffer>,
    ) -> Result<(), Status> {
        if sqe.opcode != opcode::fabrics::OPCODE {
            return Err(Status::COMMAND_SEQUENCE_ERROR.dnr());
        }
        let FabricsCommand::Connect { recfmt, qid, sqsize, cattr, kato } =
            FabricsCommand::parse(&sqe)?
        else {
            return Err(Status::COMMAND_SEQUENCE_ERROR.dnr());
        };
        if recfmt != 0 {
            return Err(Status::CONNECT_INCOMPATIBLE_FORMAT.dnr());
        }
        let Some(entries) = entries(qid, sqsize) else {
            self.refuse(at, ConnectField::Sqsize.into());
            return Ok(());
        };
        let flow_control = cattr & cattr::DISABLE_SQ_FLOW_CONTROL == 0;
        let connect = Connect { qid, entries, flow_control, keep_alive: kato };
        self.set_work(at, Work::Admin(Box::new(Waiting::Connect(connect))));
        self.gather(at, &sqe, size_of::<ConnectData>() as u64, Size::Exact, capsule)
    }

    fn refuse(&mut self, at: u16, Refused(status, dw0): Refused) {
        self.answer_with(at, status, dw0.into());
    }

    /// The data of a Connect is there.
    pub(super) fn connect_loaded(&mut self, at: u16, connect: Connect, buffer: &Buffer) {
        let Ok(data) = ConnectData::read_from_bytes(buffer.bytes()) else {
            return self.answer(at, Status::DATA_SGL_LENGTH_INVALID.dnr());
        };
        self.connect(at, connect, Box::new(data));
    }

    fn connect(&mut self, at: u16, connect: Connect, data: Box<ConnectData>) {
        let connected = match connect.qid {
            0 => self.connect_admin(&connect, &data),
            _ => self.connect_io(&connect, &data).map(Some),
        };
        match connected {
            Ok(Some(link)) => self.connected(at, link),
            Ok(None) => {
                self.set_work(at, Work::Admin(Box::new(Waiting::Association(connect, data))))
            }
            Err(refused) => {
                self.report_refusal(&data, &refused);
                self.refuse(at, refused);
            }
        }
    }

    /// Something changed: perhaps a Connect that waits for an old association to end can go on.
    pub(super) fn retry_connect(&mut self) {
        let at = 0;
        let Some(slot) = self.slots.get(at) else { return };
        match std::mem::take(&mut slot.work) {
            Work::Admin(waiting) => match *waiting {
                Waiting::Association(connect, data) => self.connect(at, connect, data),
                other => slot.work = Work::Admin(Box::new(other)),
            },
            other => slot.work = other,
        }
    }

    fn connected(&mut self, at: u16, link: Link) {
        let flow = link.head.is_some();
        let dw0 = ConnectResponse::new(link.controller.id).emit();
        link.controller.heard(self.now);
        // The answer to Connect counts as the first entry of the queue that it makes.
        let cid = self.slots.get(at).map_or(0, |slot| slot.cid);
        if link.qid == 0 {
            self.admin =
                Some(Box::new(Admin::new(self.target.catalogue.generation(), link.grant.as_ref())));
        }
        let attached =
            link.grant.as_ref().filter(|_| link.qid == 0).map(|grant| grant.export().clone());
        self.go_live(link);
        self.report_attached(attached, Reason::Ended);
        self.respond_connect(cid, dw0, flow);
    }

    /// The Connect of an Admin queue makes a controller. Nothing while an ended association of the same host still has
    /// requests on the disk: a late write must not land on newer data.
    fn connect_admin(
        &mut self,
        connect: &Connect,
        data: &ConnectData,
    ) -> Result<Option<Link>, Refused> {
        let subsystem = data.subnqn().map_err(|_| ConnectField::Subnqn)?;
        let nqn = host_nqn(data)?.to_owned();
        let host = Host { nqn, id: data.hostid };
        if !matches!(data.cntlid.get(), CNTLID_DYNAMIC | CNTLID_STATIC_ANY) {
            return Err(ConnectField::Cntlid.into());
        }
        let (kind, grant) = self.find_subsystem(subsystem)?;
        let same = |other: &Controller| other.subsystem == subsystem && other.host == host;
        if kind == Kind::Io && self.target.is_draining(same) {
            return Ok(None);
        }
        let make =
            |id| Controller::new(id, kind, subsystem, host.clone(), connect.keep_alive, self.now);
        let controller = self.target.enter(make).ok_or(Status::CONNECT_CONTROLLER_BUSY)?;
        Ok(Some(link(connect, controller, grant)))
    }

    fn find_subsystem(&self, nqn: &str) -> Result<(Kind, Option<Grant>), Refused> {
        if nqn == DISCOVERY_NQN {
            return Ok((Kind::Discovery, None));
        }
        if matches!(self.port, Port::Discovery { .. }) {
            return Err(ConnectField::Subnqn.into());
        }
        let grant =
            self.target.catalogue.grant(&self.peer, nqn).map_err(|_| ConnectField::Subnqn)?;
        Ok((Kind::Io, Some(grant)))
    }

    /// The Connect of an I/O queue joins the controller that the Admin queue made.
    fn connect_io(&mut self, connect: &Connect, data: &ConnectData) -> Result<Link, Refused> {
        let subsystem = data.subnqn().map_err(|_| ConnectField::Subnqn)?;
        let host = host_nqn(data)?;
        let controller = self.target.find(data.cntlid.get()).ok_or(ConnectField::Cntlid)?;
        if controller.subsystem != subsystem {
            return Err(ConnectField::Subnqn.into());
        }
        if controller.host.nqn != host {
            return Err(ConnectField::Hostnqn.into());
        }
        if controller.host.id != data.hostid {
            return Err(ConnectField::Hostid.into());
        }
        if controller.kind == Kind::Discovery {
            return Err(ConnectField::Qid.into());
        }
        if !controller.is_ready() {
            return Err(Status::COMMAND_SEQUENCE_ERROR.into());
        }
        let grant = self.target.catalogue.grant(&self.peer, subsystem).ok();
        let mut shared = controller.shared();
        if connect.qid > shared.granted {
            return Err(ConnectField::Qid.into());
        }
        if !shared.open.insert(connect.qid) {
            return Err(Status::COMMAND_SEQUENCE_ERROR.into());
        }
        // A reset, which deletes the queues that are open, comes either before or after.
        let link = link(connect, controller.clone(), grant);
        drop(shared);
        Ok(link)
    }

    /// Says that a host was refused, if the machine's owner can do anything about it: not if it was a queue of a
    /// controller that is gone, as after a restart.
    fn report_refusal(&mut self, data: &ConnectData, refused: &Refused) {
        let why = if refused.0.code() == Status::CONNECT_CONTROLLER_BUSY {
            "too many hosts"
        } else if refused.1 == ConnectField::Subnqn.dw0() {
            "not lent here"
        } else {
            return;
        };
        let name = |nqn: Result<&str, NqnError>| nqn.unwrap_or_default().to_owned();
        let (host, wanted) = (name(data.hostnqn()), name(data.subnqn()));
        self.out.push_back(Step::Report(Event::Refused { peer: self.peer, host, wanted, why }));
    }

    /// Fabrics commands of a connected Admin queue.
    pub(super) fn fabrics_command(
        &mut self,
        at: u16,
        sqe: &Sqe,
        capsule: Option<&Buffer>,
    ) -> Result<(), Status> {
        no_data_but_connect(sqe, capsule)?;
        match FabricsCommand::parse(sqe)? {
            FabricsCommand::PropertyGet { attrib, offset } => {
                let value = self.property(attrib, offset)?;
                self.answer_with(at, Status::SUCCESS, value);
            }
            FabricsCommand::PropertySet { attrib, offset, value } => {
                self.set_property(at, attrib, offset, value)?;
            }
            FabricsCommand::Connect { .. } => return Err(Status::COMMAND_SEQUENCE_ERROR.dnr()),
            // An Admin queue is not disconnected by itself (NVMe Base 2.0 §6.4).
            FabricsCommand::Disconnect { .. } => return Err(Status::INVALID_QUEUE_TYPE.dnr()),
            FabricsCommand::AuthSend { .. } | FabricsCommand::AuthReceive { .. } => {
                return Err(Status::INVALID_OPCODE.dnr());
            }
        }
        Ok(())
    }

    /// Of the Fabrics commands an I/O queue has only Disconnect.
    pub(super) fn fabrics_on_io_queue(&mut self, at: u16, sqe: &Sqe) -> Result<(), Status> {
        match FabricsCommand::parse(sqe)? {
            FabricsCommand::Disconnect { recfmt: 0 } => {
                self.answer(at, Status::SUCCESS);
                self.close(Reason::Peer);
                Ok(())
            }
            FabricsCommand::Disconnect { .. } => Err(Status::CONNECT_INCOMPATIBLE_FORMAT.dnr()),
            _ => Err(Status::COMMAND_SEQUENCE_ERROR.dnr()),
        }
    }

    fn property(&self, size: PropertySize, offset: u32) -> Result<u64, Status> {
        let admin = self.admin.as_ref().ok_or(Status::COMMAND_SEQUENCE_ERROR.dnr())?;
        let value = match (offset, size) {
            (property::CAP, PropertySize::Eight) => capabilities().0,
            (property::VS, PropertySize::Four) => VERSION.into(),
            (property::CC, PropertySize::Four) => admin.cc.0.into(),
            (property::CSTS, PropertySize::Four) => admin.csts.0.into(),
            _ => return Err(Status::INVALID_FIELD.dnr()),
        };
        Ok(value)
    }

    fn set_property(
        &mut self,
        at: u16,
        size: PropertySize,
        offset: u32,
        value: u64,
    ) -> Result<(), Status> {
        match (offset, size, u32::try_from(value)) {
            (property::CC, PropertySize::Four, Ok(value)) => self.configure(at, fabrics::Cc(value)),
            _ => Err(Status::INVALID_FIELD.dnr()),
        }
    }
}

/// The version that the controller follows: 2.0.
pub(super) const VERSION: u32 = 0x0002_0000;

/// CAP: queues of [`QUEUE_ENTRIES`], the NVM command set, ready within 7.5 s.
pub(super) fn capabilities() -> fabrics::Cap {
    let cap = fabrics::Cap::default().with_mqes(u64::from(QUEUE_ENTRIES - 1)).with_cqr(1);
    cap.with_to(15).with_css(fabrics::Cap::CSS_NVM)
}

/// Entries of the queue that a Connect asks for, from its SQSIZE as a count; MQES bounds I/O queues only.
fn entries(qid: u16, sqsize: u32) -> Option<u16> {
    let largest = if qid == 0 { u32::from(u16::MAX) } else { QUEUE_ENTRIES.into() };
    let entries = Some(sqsize).filter(|sqsize| (2..=largest).contains(sqsize))?;
    // An Admin queue needs no more than this many at once, whatever its host asks for.
    u16::try_from(entries.min(QUEUE_ENTRIES.into())).ok()
}

fn link(connect: &Connect, controller: Arc<Controller>, grant: Option<Grant>) -> Link {
    let head = connect.flow_control.then_some(1 % connect.entries);
    let resets = controller.resets.load(Ordering::Acquire);
    let Connect { qid, entries, .. } = *connect;
    Link { controller, qid, resets, entries, head, grant, attached: None }
}

/// The host's name. It may be empty: SPDK's perf gives none unless it is told to.
fn host_nqn(data: &ConnectData) -> Result<&str, ConnectField> {
    match data.hostnqn() {
        Err(NqnError::Empty) => Ok(""),
        other => other.map_err(|_| ConnectField::Hostnqn),
    }
}

fn no_data_but_connect(sqe: &Sqe, capsule: Option<&Buffer>) -> Result<(), Status> {
    if sqe.fctype() == opcode::fabrics::CONNECT { Ok(()) } else { no_data(capsule) }
}
