//! Fabrics commands: Connect, which makes a connection a queue of a controller, the properties, and Disconnect
//! (NVMe Base 2.0 §6). It knows no PDU.

use export::{Auth, Buffer, Event, Reason, Step};
use zerocopy::FromBytes;

use super::QUEUE_ENTRIES;
use super::admin::{Admin, Waiting};
use super::auth::InBandAuth;
use super::controller::{Controller, Host, Kind};
use super::io::{Work, no_data};
use super::link::Link;
use super::queue::Queue;
use super::transfer::Size;
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
    pub(super) qid: u16,
    pub(super) entries: u16,
    pub(super) flow_control: bool,
    keep_alive: u32,
}

/// CNTLID that asks for any controller of the static model (NVMe Base 2.0 §6.3).
const CNTLID_STATIC_ANY: u16 = 0xfffe;

/// Why a Connect is refused: its status, and dword 0 of the answer. And what the machine's owner is told, if he can do
/// anything about it: not if it was a queue of a controller that is gone, as after a restart.
#[derive(Debug)]
pub(super) struct Refused {
    status: Status,
    dw0: u32,
    why: Option<&'static str>,
}

impl Refused {
    pub(super) fn new(status: Status, dw0: u32, why: Option<&'static str>) -> Self {
        Self { status, dw0, why }
    }

    /// The host may not have what it asks for, whatever that is.
    pub(super) fn host(why: &'static str) -> Self {
        let dw0 = ConnectField::Hostnqn.dw0();
        Self::new(Status::CONNECT_INVALID_HOST.dnr(), dw0, Some(why))
    }
}

impl From<Status> for Refused {
    fn from(status: Status) -> Self {
        Self::new(status.dnr(), 0, None)
    }
}

impl From<ConnectField> for Refused {
    fn from(field: ConnectField) -> Self {
        Self::new(Status::CONNECT_INVALID_PARAMETERS.dnr(), field.dw0(), None)
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

    fn refuse(&mut self, at: u16, refused: Refused) {
        self.answer_with(at, refused.status, refused.dw0.into());
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
            _ => self.connect_io(&connect, &data),
        };
        match connected {
            Ok(Some((link, auth))) => self.connected(at, link, auth),
            Ok(None) => self.set_work(at, Work::Admin(Box::new(Waiting::Orphans(connect, data)))),
            Err(refused) => {
                self.report_refusal(&data, &refused);
                self.refuse(at, refused);
                // One question a connection: else names could be tried, and the journal filled, as fast as the wire is.
                if self.peer.auth == Auth::Required {
                    self.close(Reason::Refused);
                }
            }
        }
    }

    /// Something changed: perhaps a Connect that waits for the writes of ended connections can go on.
    pub(super) fn retry_connect(&mut self) {
        let at = 0;
        let Some(slot) = self.slots.get(at) else { return };
        match std::mem::take(&mut slot.work) {
            Work::Admin(waiting) => match *waiting {
                Waiting::Orphans(connect, data) => self.connect(at, connect, data),
                other => slot.work = Work::Admin(Box::new(other)),
            },
            other => slot.work = other,
        }
    }

    /// Reports a Connect that has waited for such writes in vain.
    pub(super) fn report_waiting(&mut self) {
        let Some(Work::Admin(waiting)) =
            self.slots.get(0).map(|slot| std::mem::take(&mut slot.work))
        else {
            return;
        };
        if let Waiting::Orphans(_, data) = *waiting {
            let why = "the disk has not ended writes of a connection that was lost";
            let busy = Status::CONNECT_CONTROLLER_BUSY;
            self.report_refusal(&data, &Refused::new(busy, 0, Some(why)));
        }
    }

    fn connected(&mut self, at: u16, link: Link, auth: Option<InBandAuth>) {
        let (flow, qid) = (link.head.is_some(), link.qid);
        let response = ConnectResponse::new(link.controller.id);
        self.auth = auth.map(Box::new);
        let authentication_required = self.is_unproven();
        let dw0 = ConnectResponse { authentication_required, ..response }.emit();
        if let Some(channel) = &self.peer.channel {
            self.target.generated().used(&channel.identity, self.now);
        }
        // The answer to Connect counts as the first entry of the queue that it makes.
        let cid = self.slots.get(at).map_or(0, |slot| slot.cid);
        self.go_live(link);
        self.heard();
        if qid == 0 {
            self.begin_admin();
        }
        self.respond_connect(cid, dw0, flow);
    }

    /// The Admin queue has what it may have, or nothing as long as its host has still to prove itself.
    pub(super) fn begin_admin(&mut self) {
        let grant = self.link.as_ref().and_then(|link| link.grant.as_ref());
        let attached = grant.map(|grant| grant.export().clone());
        let generation = self.target.catalogue.generation();
        self.admin = Some(Box::new(Admin::new(generation, grant)));
        self.report_attached(attached, Reason::Ended);
    }

    /// The Connect of an Admin queue makes a controller. Nothing while writes of ended connections are in flight: a late
    /// write must not land on newer data, whoever sends that.
    fn connect_admin(
        &mut self,
        connect: &Connect,
        data: &ConnectData,
    ) -> Result<Option<(Link, Option<InBandAuth>)>, Refused> {
        let subsystem = data.subnqn().map_err(|_| ConnectField::Subnqn)?;
        let nqn = host_nqn(data)?.to_owned();
        let host = Host { nqn, id: data.hostid };
        if !matches!(data.cntlid.get(), CNTLID_DYNAMIC | CNTLID_STATIC_ANY) {
            return Err(ConnectField::Cntlid.into());
        }
        let auth = self.admit(&host.nqn, subsystem, 0)?;
        let (kind, grant) = match &auth {
            Some(auth) if auth.is_due() => (kind_of(subsystem), None),
            _ => self
                .find_subsystem(subsystem, &host.nqn)
                .map_err(|why| self.refused_subsystem(why))?,
        };
        if self.is_held_up(subsystem) {
            return Ok(None);
        }
        let (peer, alive, now) = (&self.peer, connect.keep_alive, self.now);
        let make = |id| Controller::new(id, kind, subsystem, host.clone(), peer, alive, now);
        // There may be room later.
        let busy =
            || Refused::new(Status::CONNECT_CONTROLLER_BUSY, 0, Some("too many controllers"));
        let controller = self.target.enter(kind, peer.tenant(), make).ok_or_else(busy)?;
        Ok(Some((Link::new(connect, controller, grant), auth)))
    }

    /// The Connect of an I/O queue joins the controller that the Admin queue made. Nothing while writes of ended connections
    /// are in flight, as those of the queue that had the same identifier before.
    fn connect_io(
        &mut self,
        connect: &Connect,
        data: &ConnectData,
    ) -> Result<Option<(Link, Option<InBandAuth>)>, Refused> {
        let subsystem = data.subnqn().map_err(|_| ConnectField::Subnqn)?;
        let host = host_nqn(data)?;
        let auth = self.admit(host, subsystem, connect.qid)?;
        let controller = self.target.find(data.cntlid.get()).ok_or(ConnectField::Cntlid)?;
        let owner = &controller.host;
        let other = [
            (controller.subsystem != subsystem, ConnectField::Subnqn),
            (owner.nqn != host, ConnectField::Hostnqn),
            (owner.id != data.hostid, ConnectField::Hostid),
        ];
        if let Some((_, field)) = other.into_iter().find(|(differs, _)| *differs) {
            // Where keys are needed, nobody learns which controllers others have.
            let keyed = self.peer.auth == Auth::Required;
            return Err(if keyed { ConnectField::Cntlid } else { field }.into());
        }
        if controller.kind == Kind::Discovery {
            return Err(ConnectField::Qid.into());
        }
        if !controller.is_ready() {
            return Err(Status::COMMAND_SEQUENCE_ERROR.into());
        }
        if !controller.is_joined_by(self.channel()) {
            return Err(Refused::host("has one connection in a secured channel, and another not"));
        }
        let due = auth.as_ref().is_some_and(InBandAuth::is_due);
        let grant = if due { None } else { self.lent(subsystem, host) };
        if connect.qid > controller.shared().granted {
            return Err(ConnectField::Qid.into());
        }
        if self.is_held_up(subsystem) {
            return Ok(None);
        }
        let mut link = Link::new(connect, controller, grant);
        // Who has proven nothing yet keeps no identifier from the host whose it is.
        if !due && !link.join() {
            return Err(Status::COMMAND_SEQUENCE_ERROR.into());
        }
        Ok(Some((link, auth)))
    }

    /// Whether writes of ended connections to that disk are in flight. Asked also for a host that has still to prove itself,
    /// as it is not asked again after the proof.
    fn is_held_up(&self, subsystem: &str) -> bool {
        self.target.catalogue.find(subsystem).is_some_and(|export| export.has_orphans())
    }

    /// Says that a host was refused.
    fn report_refusal(&mut self, data: &ConnectData, refused: &Refused) {
        let Some(why) = refused.why else { return };
        let name = |nqn: Result<&str, NqnError>| nqn.unwrap_or_default().to_owned();
        let (host, wanted) = (name(data.hostnqn()), name(data.subnqn()));
        self.out.push_back(Step::Report(Event::Refused {
            peer: self.peer.clone(),
            host,
            wanted,
            why,
        }));
    }

    /// Fabrics commands of a connected Admin queue.
    pub(super) fn fabrics_command(
        &mut self,
        at: u16,
        sqe: &Sqe,
        capsule: Option<Buffer>,
    ) -> Result<(), Status> {
        no_data_but_some(sqe, capsule.as_ref())?;
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
            auth @ (FabricsCommand::AuthSend { .. } | FabricsCommand::AuthReceive { .. }) => {
                return self.auth_command(at, sqe, auth, capsule);
            }
        }
        Ok(())
    }

    /// Of the Fabrics commands an I/O queue has only Disconnect, and authentication.
    pub(super) fn fabrics_on_io_queue(
        &mut self,
        at: u16,
        sqe: &Sqe,
        capsule: Option<Buffer>,
    ) -> Result<(), Status> {
        match FabricsCommand::parse(sqe)? {
            auth @ (FabricsCommand::AuthSend { .. } | FabricsCommand::AuthReceive { .. })
                if self.auth.is_some() =>
            {
                self.auth_command(at, sqe, auth, capsule)
            }
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

fn kind_of(subsystem: &str) -> Kind {
    if subsystem == DISCOVERY_NQN { Kind::Discovery } else { Kind::Io }
}

/// The host's name. It may be empty: SPDK's perf gives none unless it is told to.
fn host_nqn(data: &ConnectData) -> Result<&str, ConnectField> {
    match data.hostnqn() {
        Err(NqnError::Empty) => Ok(""),
        other => other.map_err(|_| ConnectField::Hostnqn),
    }
}

/// Of the Fabrics commands, Connect and Authentication Send have data in their capsules.
fn no_data_but_some(sqe: &Sqe, capsule: Option<&Buffer>) -> Result<(), Status> {
    match sqe.fctype() {
        opcode::fabrics::CONNECT | opcode::fabrics::AUTHENTICATION_SEND => Ok(()),
        _ => no_data(capsule),
    }
}
