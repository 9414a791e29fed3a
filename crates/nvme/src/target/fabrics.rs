//! Fabrics commands: Connect, Property Get and Set, Disconnect (NVMe Base 2.0 §6).

use export::{Auth, Buffer, Event, Reason, Step};
use zerocopy::FromBytes;

use super::QUEUE_ENTRIES;
use super::admin::{Admin, PendingAdmin};
use super::auth::InBandAuth;
use super::binding::Binding;
use super::controller::{Controller, ControllerType, HostIdentity};
use super::io::{Work, check_no_data};
use super::queue::Queue;
use super::transfer::LengthCheck;
use crate::command::{FabricsCommand, PropertySize};
use crate::nqn;
use crate::status::Status;
use crate::wire::command::Sqe;
use crate::wire::fabrics::{
    CNTLID_DYNAMIC, ConnectData, ConnectField, ConnectResponse, DISCOVERY_NQN, cattr, property,
};
use crate::wire::text::NqnError;
use crate::wire::{fabrics, opcode};

/// Fields of a Connect whose data is pending.
#[derive(Debug, Clone, Copy)]
pub(super) struct Connect {
    pub(super) qid: u16,
    pub(super) entries: u16,
    pub(super) flow_control: bool,
    keep_alive: u32,
}

/// CNTLID for any controller in the static controller model (NVMe Base 2.0 §6.3).
const CNTLID_STATIC_ANY: u16 = 0xfffe;

/// Refusal of a Connect: status, dword 0 of the response, and the reason for the administrator.
/// No reason is reported if nothing can be done about it, such as an I/O queue of a controller that
/// ended with a restart.
#[derive(Debug)]
pub(super) struct ConnectRefusal {
    status: Status,
    dw0: u32,
    why: Option<&'static str>,
}

impl ConnectRefusal {
    pub(super) fn new(status: Status, dw0: u32, why: Option<&'static str>) -> Self {
        Self { status, dw0, why }
    }

    /// Denies access to the host, with Connect Invalid Host.
    pub(super) fn access_denied(why: &'static str) -> Self {
        let dw0 = ConnectField::Hostnqn.dw0();
        Self::new(Status::CONNECT_INVALID_HOST.dnr(), dw0, Some(why))
    }
}

impl From<Status> for ConnectRefusal {
    fn from(status: Status) -> Self {
        Self::new(status.dnr(), 0, None)
    }
}

impl From<ConnectField> for ConnectRefusal {
    fn from(field: ConnectField) -> Self {
        Self::new(Status::CONNECT_INVALID_PARAMETERS.dnr(), field.dw0(), None)
    }
}

impl Queue {
    /// Handles a command on a connection that is not a queue yet. Only Connect is valid.
    pub(super) fn connect_command(
        &mut self,
        tag: u16,
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
            self.refuse(tag, ConnectField::Sqsize.into());
            return Ok(());
        };
        let flow_control = cattr & cattr::DISABLE_SQ_FLOW_CONTROL == 0;
        let connect = Connect { qid, entries, flow_control, keep_alive: kato };
        self.set_work(tag, Work::Admin(Box::new(PendingAdmin::Connect(connect))));
        self.receive_data(tag, &sqe, size_of::<ConnectData>() as u64, LengthCheck::Exact, capsule)
    }

    fn refuse(&mut self, tag: u16, refused: ConnectRefusal) {
        self.finish_with(tag, refused.status, refused.dw0.into());
    }

    /// Continues a Connect whose data was received.
    pub(super) fn connect_data_received(&mut self, tag: u16, connect: Connect, buffer: &Buffer) {
        let Ok(data) = ConnectData::read_from_bytes(buffer.bytes()) else {
            return self.finish(tag, Status::DATA_SGL_LENGTH_INVALID.dnr());
        };
        self.connect(tag, connect, Box::new(data));
    }

    fn connect(&mut self, tag: u16, connect: Connect, data: Box<ConnectData>) {
        let connected = match connect.qid {
            0 => self.connect_admin(&connect, &data),
            _ => self.connect_io(&connect, &data),
        };
        match connected {
            Ok(Some((binding, auth))) => self.connected(tag, binding, auth),
            Ok(None) => self
                .set_work(tag, Work::Admin(Box::new(PendingAdmin::BlockedConnect(connect, data)))),
            Err(refused) => {
                self.report_refusal(&data, &refused);
                self.refuse(tag, refused);
                // One attempt per connection. Otherwise a peer could try names, and fill the
                // journal, at line rate.
                if self.peer.auth == Auth::Required {
                    self.close(Reason::Refused);
                }
            }
        }
    }

    /// Retries a Connect that waits for orphaned writes.
    pub(super) fn retry_connect(&mut self) {
        let tag = 0;
        let Some(slot) = self.slots.get(tag) else { return };
        match std::mem::take(&mut slot.work) {
            Work::Admin(waiting) => match *waiting {
                PendingAdmin::BlockedConnect(connect, data) => self.connect(tag, connect, data),
                mismatches => slot.work = Work::Admin(Box::new(mismatches)),
            },
            mismatches => slot.work = mismatches,
        }
    }

    /// Reports a Connect that timed out while waiting for orphaned writes.
    pub(super) fn report_blocked_connect(&mut self) {
        let Some(Work::Admin(waiting)) =
            self.slots.get(0).map(|slot| std::mem::take(&mut slot.work))
        else {
            return;
        };
        if let PendingAdmin::BlockedConnect(_, data) = *waiting {
            let why = "writes of a lost connection are still in flight on the disk";
            let busy = Status::CONNECT_CONTROLLER_BUSY;
            self.report_refusal(&data, &ConnectRefusal::new(busy, 0, Some(why)));
        }
    }

    fn connected(&mut self, tag: u16, binding: Binding, auth: Option<InBandAuth>) {
        let (flow, qid) = (binding.head.is_some(), binding.qid);
        let response = ConnectResponse::new(binding.controller.id);
        self.auth = auth.map(Box::new);
        let authentication_required = self.is_unauthenticated();
        let dw0 = ConnectResponse { authentication_required, ..response }.emit();
        if let Some(channel) = &self.peer.channel {
            self.target.generated().renew(&channel.identity, self.now);
        }
        // The response to Connect counts as the first entry of the new queue.
        let cid = self.slots.get(tag).map_or(0, |slot| slot.cid);
        self.go_live(binding);
        self.restart_keep_alive();
        if qid == 0 {
            self.begin_admin();
        }
        self.respond_connect(cid, dw0, flow);
    }

    /// Creates the state of the Admin queue, and reports the attached export. An unauthenticated
    /// host has none.
    pub(super) fn begin_admin(&mut self) {
        let grant = self.binding.as_ref().and_then(|binding| binding.grant.as_ref());
        let attached = grant.map(|grant| grant.export().clone());
        let generation = self.target.catalogue.generation();
        self.admin = Some(Box::new(Admin::new(generation, grant)));
        self.report_attached(attached, Reason::Ended);
    }

    /// Handles the Connect of an Admin queue: creates a controller. Returns `None` while orphaned
    /// writes to the disk are in flight: a late write must not overwrite newer data of any host.
    fn connect_admin(
        &mut self,
        connect: &Connect,
        data: &ConnectData,
    ) -> Result<Option<(Binding, Option<InBandAuth>)>, ConnectRefusal> {
        let subsystem = data.subnqn().map_err(|_| ConnectField::Subnqn)?;
        let nqn = host_nqn(data)?.to_owned();
        let host = HostIdentity { nqn, id: data.hostid };
        if !matches!(data.cntlid.get(), CNTLID_DYNAMIC | CNTLID_STATIC_ANY) {
            return Err(ConnectField::Cntlid.into());
        }
        let auth = self.check_host(&host.nqn, subsystem, 0)?;
        let (kind, grant) = match &auth {
            Some(auth) if auth.is_pending() => (kind_of(subsystem), None),
            _ => self
                .find_subsystem(subsystem, &host.nqn)
                .map_err(|why| self.subsystem_refusal(why))?,
        };
        if self.has_orphaned_writes(subsystem) {
            return Ok(None);
        }
        let (peer, alive, now) = (&self.peer, connect.keep_alive, self.now);
        let new_controller =
            |id| Controller::new(id, kind, subsystem, host.clone(), peer, alive, now);
        // Retryable: another controller may end.
        let busy = || {
            ConnectRefusal::new(
                Status::CONNECT_CONTROLLER_BUSY,
                0,
                Some("too many controllers for this host"),
            )
        };
        let controller =
            self.target.register(kind, peer.tenant(), new_controller).ok_or_else(busy)?;
        Ok(Some((Binding::new(connect, controller, grant), auth)))
    }

    /// Handles the Connect of an I/O queue. Returns `None` while orphaned writes to the disk are in
    /// flight, such as those of an earlier queue with the same identifier.
    fn connect_io(
        &mut self,
        connect: &Connect,
        data: &ConnectData,
    ) -> Result<Option<(Binding, Option<InBandAuth>)>, ConnectRefusal> {
        let subsystem = data.subnqn().map_err(|_| ConnectField::Subnqn)?;
        let host = host_nqn(data)?;
        let auth = self.check_host(host, subsystem, connect.qid)?;
        let controller = self.target.find(data.cntlid.get()).ok_or(ConnectField::Cntlid)?;
        let expected = &controller.host;
        let mismatches = [
            (controller.subsystem != subsystem, ConnectField::Subnqn),
            (expected.nqn != host, ConnectField::Hostnqn),
            (expected.id != data.hostid, ConnectField::Hostid),
        ];
        if let Some((_, field)) = mismatches.into_iter().find(|(differs, _)| *differs) {
            // With keys required, the status must not disclose controllers of other hosts.
            let keys_required = self.peer.auth == Auth::Required;
            return Err(if keys_required { ConnectField::Cntlid } else { field }.into());
        }
        if controller.kind == ControllerType::Discovery {
            return Err(ConnectField::Qid.into());
        }
        if !controller.is_ready() {
            return Err(Status::COMMAND_SEQUENCE_ERROR.into());
        }
        if !controller.accepts_channel(self.channel()) {
            return Err(ConnectRefusal::access_denied(
                "all its connections must use TLS with the same key, or none",
            ));
        }
        let due = auth.as_ref().is_some_and(InBandAuth::is_pending);
        let grant = if due { None } else { self.current_grant(subsystem, host) };
        if connect.qid > controller.shared().granted {
            return Err(ConnectField::Qid.into());
        }
        if self.has_orphaned_writes(subsystem) {
            return Ok(None);
        }
        let mut binding = Binding::new(connect, controller, grant);
        // An unauthenticated host must not occupy the queue identifier.
        if !due && !binding.take_qid() {
            return Err(Status::COMMAND_SEQUENCE_ERROR.into());
        }
        Ok(Some((binding, auth)))
    }

    /// Returns whether orphaned writes to the disk are in flight. Checked for unauthenticated hosts
    /// as well, because there is no second check after authentication.
    fn has_orphaned_writes(&self, subsystem: &str) -> bool {
        self.target
            .catalogue
            .find(&nqn::export_id(subsystem))
            .is_some_and(|export| export.has_orphans())
    }

    /// Reports a refused host.
    fn report_refusal(&mut self, data: &ConnectData, refused: &ConnectRefusal) {
        let Some(why) = refused.why else { return };
        let name = |nqn: Result<&str, NqnError>| nqn.unwrap_or_default().to_owned();
        let (host, wanted) = (name(data.hostnqn()), name(data.subnqn()));
        self.steps.push_back(Step::Report(Event::Refused {
            peer: self.peer.clone(),
            host,
            wanted,
            why,
        }));
    }

    /// Handles Fabrics commands of a connected Admin queue.
    pub(super) fn fabrics_command(
        &mut self,
        tag: u16,
        sqe: &Sqe,
        capsule: Option<Buffer>,
    ) -> Result<(), Status> {
        check_capsule_data(sqe, capsule.as_ref())?;
        match FabricsCommand::parse(sqe)? {
            FabricsCommand::PropertyGet { attrib, offset } => {
                let value = self.property(attrib, offset)?;
                self.finish_with(tag, Status::SUCCESS, value);
            }
            FabricsCommand::PropertySet { attrib, offset, value } => {
                self.set_property(tag, attrib, offset, value)?;
            }
            FabricsCommand::Connect { .. } => return Err(Status::COMMAND_SEQUENCE_ERROR.dnr()),
            // Disconnect is not valid on the Admin queue (NVMe Base 2.0 §6.4).
            FabricsCommand::Disconnect { .. } => return Err(Status::INVALID_QUEUE_TYPE.dnr()),
            auth @ (FabricsCommand::AuthSend { .. } | FabricsCommand::AuthReceive { .. }) => {
                return self.auth_command(tag, sqe, auth, capsule);
            }
        }
        Ok(())
    }

    /// Handles Fabrics commands of an I/O queue: Disconnect and authentication.
    pub(super) fn fabrics_on_io_queue(
        &mut self,
        tag: u16,
        sqe: &Sqe,
        capsule: Option<Buffer>,
    ) -> Result<(), Status> {
        match FabricsCommand::parse(sqe)? {
            auth @ (FabricsCommand::AuthSend { .. } | FabricsCommand::AuthReceive { .. })
                if self.auth.is_some() =>
            {
                self.auth_command(tag, sqe, auth, capsule)
            }
            FabricsCommand::Disconnect { recfmt: 0 } => {
                self.finish(tag, Status::SUCCESS);
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
        tag: u16,
        size: PropertySize,
        offset: u32,
        value: u64,
    ) -> Result<(), Status> {
        match (offset, size, u32::try_from(value)) {
            (property::CC, PropertySize::Four, Ok(value)) => {
                self.configure(tag, fabrics::Cc(value))
            }
            _ => Err(Status::INVALID_FIELD.dnr()),
        }
    }
}

/// VS: NVMe 2.0.
pub(super) const VERSION: u32 = 0x0002_0000;

/// Returns CAP: queues of [`QUEUE_ENTRIES`], NVM command set, ready within 7.5 s.
pub(super) fn capabilities() -> fabrics::Cap {
    let cap = fabrics::Cap::default().with_mqes(u64::from(QUEUE_ENTRIES - 1)).with_cqr(1);
    cap.with_to(15).with_css(fabrics::Cap::CSS_NVM)
}

/// Returns the queue size for SQSIZE, or `None` if it is invalid. MQES limits I/O queues only.
fn entries(qid: u16, sqsize: u32) -> Option<u16> {
    let largest = if qid == 0 { u32::from(u16::MAX) } else { QUEUE_ENTRIES.into() };
    let entries = Some(sqsize).filter(|sqsize| (2..=largest).contains(sqsize))?;
    // A larger Admin queue is accepted; no more entries than this are used at once.
    u16::try_from(entries.min(QUEUE_ENTRIES.into())).ok()
}

fn kind_of(subsystem: &str) -> ControllerType {
    if subsystem == DISCOVERY_NQN { ControllerType::Discovery } else { ControllerType::Io }
}

/// Returns the host NQN. It may be empty: SPDK's perf sends none by default.
fn host_nqn(data: &ConnectData) -> Result<&str, ConnectField> {
    match data.hostnqn() {
        Err(NqnError::Empty) => Ok(""),
        mismatches => mismatches.map_err(|_| ConnectField::Hostnqn),
    }
}

/// Refuses in-capsule data, except for Connect and Authentication Send.
fn check_capsule_data(sqe: &Sqe, capsule: Option<&Buffer>) -> Result<(), Status> {
    match sqe.fctype() {
        opcode::fabrics::CONNECT | opcode::fabrics::AUTHENTICATION_SEND => Ok(()),
        _ => check_no_data(capsule),
    }
}
