//! What a connection is used for: nothing before Connect and authentication, then the Admin queue or
//! an I/O queue of a controller. Dispatches commands to that, and handles Fabrics commands (NVMe
//! Base 2.0 §6).

use std::sync::Arc;
use std::time::{Duration, Instant};

use export::{Account, Buffer, Event, Fence, Grant, Outcome, Reason};
use zerocopy::FromBytes;

use super::access::{ConnectRefusal, refusal_text};
use super::admin::AdminQueue;
use super::auth::{InBandAuth, Verdict};
use super::binding::{Binding, Connect};
use super::capsule::Capsule;
use super::context::Context;
use super::controller::ControllerType;
use super::io::{self, IoQueue};
use super::outbox::Outbox;
use super::queue::Queue;
use super::slots::{BufferWait, SlotState};
use super::transfers::{Received, Transfers};
use super::work::Work;
use super::{DISCOVERY_IDLE_TIMEOUT, KEEP_ALIVE_GRACE, connect};
use crate::command::FabricsCommand;
use crate::status::Status;
use crate::tcp::Violation;
use crate::wire::command::Sqe;
use crate::wire::completion::Cqe;
use crate::wire::fabrics::{ConnectData, ConnectResponse};
use crate::wire::opcode;
use crate::wire::text::NqnError;

/// A connection above its PDUs.
#[derive(Debug)]
pub(super) struct Fabrics {
    cx: Context,
    queue: Queue,
    role: Role,
    /// Authentication state, if the host has DH-HMAC-CHAP keys.
    auth: Option<Box<InBandAuth>>,
    /// Until when traffic need not restart the keep-alive timer.
    keep_alive_restarted: Option<Instant>,
}

/// How exactly traffic restarts the keep-alive timer: the controller, which other threads use as
/// well, is not accessed for each received piece.
const KEEP_ALIVE_RESOLUTION: Duration = Duration::from_millis(1);

/// What the connection is used for.
#[derive(Debug)]
enum Role {
    /// Not connected, or an Admin queue whose host must still authenticate.
    Undecided,
    Admin(Box<AdminQueue>),
    Io(IoQueue),
    Closed,
}

impl Fabrics {
    pub(super) fn new(cx: Context, account: Account) -> Self {
        let (auth, keep_alive_restarted) = (None, None);
        Self { cx, queue: Queue::new(account), role: Role::Undecided, auth, keep_alive_restarted }
    }

    pub(super) fn context(&self) -> &Context {
        &self.cx
    }

    pub(super) fn set_now(&mut self, now: Instant) {
        self.cx.set_now(now);
    }

    pub(super) fn out(&mut self) -> &mut Outbox {
        self.queue.out()
    }

    pub(super) fn transfers(&mut self) -> &mut Transfers {
        self.queue.transfers()
    }

    pub(super) fn is_full(&self) -> bool {
        self.queue.is_full()
    }

    /// Returns whether Connect has succeeded.
    pub(super) fn is_connected(&self) -> bool {
        self.queue.binding().is_some()
    }

    /// Returns whether the host must still authenticate.
    pub(super) fn is_unauthenticated(&self) -> bool {
        self.auth.as_ref().is_some_and(|auth| auth.is_pending())
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(self.role, Role::Closed)
    }

    /// Returns whether no disk request is in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.queue.slots().none_submitted()
    }

    /// Returns the fence of the writes of the connection.
    pub(super) fn fence(&self) -> Option<&Arc<Fence>> {
        self.queue.grant().map(Grant::fence)
    }

    // ---- commands

    /// Handles a command. `buffer` is for the in-capsule data that follows.
    pub(super) fn command(&mut self, sqe: &Sqe, buffer: Option<Buffer>) -> Result<(), Violation> {
        let cid = sqe.cid.get();
        if let Some(binding) = self.queue.binding_mut() {
            binding.advance_head();
        }
        if self.queue.slots().is_outstanding(cid) && !self.drop_event_request(cid) {
            self.queue.respond(Cqe::new(cid, Status::COMMAND_ID_CONFLICT.dnr()));
            return Ok(());
        }
        let tag = self.queue.slots_mut().claim(cid).ok_or(Violation::QueueOverrun)?;
        if let Err(status) = self.dispatch(Capsule::new(tag, sqe, buffer)) {
            self.fail(tag, status);
        }
        Ok(())
    }

    fn drop_event_request(&mut self, cid: u16) -> bool {
        match &mut self.role {
            Role::Admin(admin) => admin.drop_event_request(&mut self.queue, cid),
            _ => false,
        }
    }

    fn dispatch(&mut self, capsule: Capsule<'_>) -> Result<(), Status> {
        if !self.is_connected() {
            return connect::command(&mut self.queue, capsule);
        }
        if capsule.sqe().opcode == opcode::fabrics::OPCODE {
            return self.fabrics_command(capsule);
        }
        if self.is_unauthenticated() {
            return Err(Status::AUTHENTICATION_REQUIRED.dnr());
        }
        match &mut self.role {
            Role::Admin(admin) => admin.command(&self.cx, &mut self.queue, capsule),
            Role::Io(io) => io.command(&mut self.queue, capsule),
            Role::Undecided | Role::Closed => Err(Status::COMMAND_SEQUENCE_ERROR.dnr()),
        }
    }

    /// Completes a command that failed before submission.
    fn fail(&mut self, tag: u16, status: Status) {
        match &mut self.role {
            Role::Io(io) => io.fail(&mut self.queue, tag, status),
            _ => self.queue.finish(tag, status),
        }
    }

    /// Handles the end of a payload.
    pub(super) fn payload_end(&mut self, digest_ok: bool) {
        match self.queue.transfers().payload_end(digest_ok) {
            Some(Received { tag, data: Some(data) }) => self.data_received(tag, data),
            Some(Received { tag, data: None }) => self.fail(tag, Status::TRANSIENT_TRANSPORT_ERROR),
            None => {}
        }
    }

    /// Continues a command whose data was received.
    fn data_received(&mut self, tag: u16, buffer: Buffer) {
        let Self { cx, queue, role, .. } = self;
        match (queue.take_work(tag), role) {
            (Work::Connect(connect), _) => self.connect_data_received(tag, connect, &buffer),
            (Work::AuthMessage, _) => self.auth_message(tag, &buffer),
            (work, Role::Io(_)) => io::data_received(queue, tag, work, buffer),
            (work, Role::Admin(admin)) => admin.data_received(cx, queue, tag, work, &buffer),
            (_, Role::Undecided | Role::Closed) => queue.finish(tag, Status::INTERNAL_ERROR),
        }
    }

    /// Continues a command after its disk request.
    pub(super) fn completed(&mut self, tag: u16, outcome: Outcome) {
        if !self.is_closed() {
            self.queue.slots_mut().set_state(tag, SlotState::Pending);
        }
        match &mut self.role {
            Role::Io(_) => io::drive(&mut self.queue, tag, Some(outcome)),
            Role::Admin(admin) => admin.completed(&mut self.queue, tag, &outcome),
            Role::Undecided => {}
            Role::Closed => self.queue.completed_after_leave(tag),
        }
    }

    /// Retries the allocations that slots wait for.
    pub(super) fn retry_allocations(&mut self) {
        let queue = &mut self.queue;
        for _ in 0..queue.transfers().awaiting_second_phase() {
            if let Some(tag) = queue.transfers().next_awaiting_second_phase() {
                io::drive(queue, tag, None);
            }
        }
        let mut last = None;
        while let Some((tag, wait)) =
            queue.transfers().first_waiting().filter(|&(tag, _)| last != Some(tag))
        {
            match wait {
                BufferWait::R2t(want) => queue.send_r2t(tag, want),
                BufferWait::Read => io::drive(queue, tag, None),
            }
            last = Some(tag);
        }
    }

    // ---- Fabrics commands

    /// Handles a Fabrics command of a queue.
    fn fabrics_command(&mut self, capsule: Capsule<'_>) -> Result<(), Status> {
        if self.is_unauthenticated() {
            let command = FabricsCommand::parse(capsule.sqe())?;
            return self.auth_command(capsule, command);
        }
        if let Role::Admin(_) = self.role {
            capsule.check_fabrics_data()?;
        }
        let command = FabricsCommand::parse(capsule.sqe())?;
        match (command, &mut self.role) {
            (FabricsCommand::AuthSend { .. } | FabricsCommand::AuthReceive { .. }, role)
                if self.auth.is_some() || matches!(role, Role::Admin(_)) =>
            {
                self.auth_command(capsule, command)
            }
            (command, Role::Admin(admin)) => {
                admin.fabrics_command(&mut self.queue, capsule.tag(), command)
            }
            (FabricsCommand::Disconnect { recfmt: 0 }, Role::Io(_)) => {
                self.queue.finish(capsule.tag(), Status::SUCCESS);
                self.close(Reason::Peer);
                Ok(())
            }
            (FabricsCommand::Disconnect { .. }, Role::Io(_)) => {
                Err(Status::CONNECT_INCOMPATIBLE_FORMAT.dnr())
            }
            _ => Err(Status::COMMAND_SEQUENCE_ERROR.dnr()),
        }
    }

    fn auth_command(
        &mut self,
        capsule: Capsule<'_>,
        command: FabricsCommand,
    ) -> Result<(), Status> {
        let auth = self.auth.as_mut().ok_or(Status::INVALID_OPCODE.dnr())?;
        if auth.command(&mut self.queue, capsule, command)? {
            self.close(Reason::Refused);
        }
        Ok(())
    }

    fn auth_message(&mut self, tag: u16, message: &Buffer) {
        let Some(auth) = &mut self.auth else { return };
        let Verdict { granted, close } =
            auth.message(&mut self.cx, &mut self.queue, message.bytes());
        if granted && self.queue.binding().is_some_and(Binding::is_admin) {
            self.begin_admin();
        }
        self.queue.finish(tag, Status::SUCCESS);
        if close {
            self.close(Reason::Refused);
        }
    }

    // ---- Connect

    fn connect_data_received(&mut self, tag: u16, connect: Box<Connect>, buffer: &Buffer) {
        match ConnectData::read_from_bytes(buffer.bytes()) {
            Ok(data) => self.connect(tag, connect, Box::new(data)),
            Err(_) => self.queue.finish(tag, Status::DATA_SGL_LENGTH_INVALID.dnr()),
        }
    }

    fn connect(&mut self, tag: u16, connect: Box<Connect>, data: Box<ConnectData>) {
        match connect::establish(&self.cx, &connect, &data) {
            Ok(Some((binding, auth))) => self.connected(tag, binding, auth),
            Ok(None) => self.queue.set_work(tag, Work::BlockedConnect(connect, data)),
            Err(refusal) => {
                self.report_refusal(&data, &refusal);
                let (status, dw0) = refusal.response();
                self.queue.finish_with(tag, status, dw0.into());
                // One attempt per connection. Otherwise a peer could try names, and fill the
                // journal, at line rate.
                if self.cx.requires_keys() {
                    self.close(Reason::Refused);
                }
            }
        }
    }

    /// Retries a Connect that waits for orphaned writes.
    fn retry_connect(&mut self) {
        let tag = 0;
        match self.queue.take_work(tag) {
            Work::BlockedConnect(connect, data) => self.connect(tag, connect, data),
            other => self.queue.set_work(tag, other),
        }
    }

    /// Ends a connection whose Connect did not succeed in time. Reports a Connect that waited for
    /// orphaned writes.
    pub(super) fn connect_timed_out(&mut self) {
        if let Work::BlockedConnect(_, data) = self.queue.take_work(0) {
            let reason = "writes of a lost connection are still in flight on the disk";
            let busy = Status::CONNECT_CONTROLLER_BUSY;
            self.report_refusal(&data, &ConnectRefusal::new(busy, 0, Some(reason)));
        }
        self.close(Reason::Timeout);
    }

    fn connected(&mut self, tag: u16, binding: Binding, auth: Option<Box<InBandAuth>>) {
        let (is_admin, response) =
            (binding.is_admin(), ConnectResponse::new(binding.controller().id()));
        self.auth = auth;
        let authentication_required = self.is_unauthenticated();
        let dw0 = ConnectResponse { authentication_required, ..response }.emit();
        if let Some(channel) = &self.cx.peer().channel {
            self.cx.target().renew_generated(&channel.identity, self.cx.now());
        }
        // The response to Connect counts as the first entry of the new queue.
        let cid = self.queue.slots().cid(tag).unwrap_or(0);
        self.queue.bind(binding);
        self.restart_keep_alive();
        match is_admin {
            false => self.role = Role::Io(IoQueue::default()),
            true if authentication_required => {}
            true => self.begin_admin(),
        }
        self.queue.respond_connect(cid, dw0);
    }

    /// Creates the state of the Admin queue, and reports the attached export. An unauthenticated
    /// host has none.
    fn begin_admin(&mut self) {
        let grant = self.queue.grant();
        let attached = grant.map(|grant| grant.export().clone());
        self.role = Role::Admin(Box::new(AdminQueue::new(&self.cx, grant)));
        let (peer, proven) = (self.cx.peer(), self.cx.proven());
        self.queue.report_attached(peer, proven, attached, Reason::Ended);
    }

    /// Reports a refused host.
    fn report_refusal(&mut self, data: &ConnectData, refusal: &ConnectRefusal) {
        let Some(reason) = refusal.reason() else { return };
        let name = |nqn: Result<&str, NqnError>| nqn.unwrap_or_default().to_owned();
        let (host, wanted) = (name(data.hostnqn()), name(data.subnqn()));
        let peer = self.cx.peer().clone();
        self.queue.out().report(Event::Refused { peer, host, wanted, reason });
    }

    // ---- changes from outside

    /// Returns whether the controller has ended, or a reset has deleted the queue.
    pub(super) fn has_ended(&self) -> bool {
        self.queue
            .binding()
            .is_some_and(|binding| binding.controller().has_ended() || binding.is_stale())
    }

    /// Handles a change of state that the connection shares with others.
    pub(super) fn changed(&mut self) {
        if !self.is_connected() {
            return self.retry_connect();
        }
        if self.close_if_revoked() {
            return;
        }
        self.refresh_grant();
        match &mut self.role {
            Role::Admin(admin) => admin.changed(&self.cx, &mut self.queue),
            _ => io::process_aborts(&mut self.queue),
        }
        for _ in 0..self.queue.awaiting_exclusive() {
            if let Some(tag) = self.queue.next_awaiting_exclusive() {
                io::retry(&mut self.queue, tag);
            }
        }
    }

    /// Closes the connection if the access of its host was revoked. Returns whether it was.
    fn close_if_revoked(&mut self) -> bool {
        let Ok(controller) = self.queue.controller() else { return false };
        let pending = self.auth.as_ref().and_then(|auth| auth.pending_key());
        let Err(refusal) = self.cx.check_still_allowed(controller, pending) else { return false };
        if matches!(self.role, Role::Admin(_)) {
            self.queue.report_refused(self.cx.peer(), refusal_text(refusal));
        }
        self.close(Reason::Refused);
        true
    }

    /// Updates the grant after the disk was removed, replaced or came back.
    fn refresh_grant(&mut self) {
        let is_unauthenticated = self.is_unauthenticated();
        let Some(binding) = self.queue.binding_mut() else { return };
        if binding.controller().kind() != ControllerType::Io || is_unauthenticated {
            return;
        }
        binding.set_grant(self.cx.current_grant(binding.controller()));
        let now = binding.grant().filter(|_| binding.is_admin()).map(Grant::export);
        let same = match (binding.attached(), now) {
            (Some(before), Some(now)) => Arc::ptr_eq(before, now),
            (before, now) => before.is_none() && now.is_none(),
        };
        if !same {
            let now = now.cloned();
            let (peer, proven) = (self.cx.peer(), self.cx.proven());
            self.queue.report_attached(peer, proven, now, Reason::Ended);
        }
    }

    // ---- the stop of the target

    /// Announces the stop of the target to the host, if this is an Admin queue whose host wants
    /// that. Returns whether it was announced.
    pub(super) fn announce_stop(&mut self) -> bool {
        match &mut self.role {
            Role::Admin(admin) => admin.announce_stop(&mut self.queue),
            _ => false,
        }
    }

    /// Returns whether the host knows of the stop that was announced.
    pub(super) fn is_stop_known(&self) -> bool {
        match &self.role {
            Role::Admin(admin) => admin.is_stop_known(),
            _ => true,
        }
    }

    /// Returns whether this is an I/O queue that stays connected until the host knows of the stop,
    /// and the Admin queue closes. If it closed before, the host would reset the controller.
    pub(super) fn awaits_admin_queue(&self) -> bool {
        let is_io = matches!(self.role, Role::Io(_));
        let controller = self.queue.controller().ok().filter(|_| is_io);
        controller.is_some_and(|it| it.announces_stop() && !it.has_ended())
    }

    // ---- timers

    /// Restarts the keep-alive timer of the controller. An unauthenticated I/O queue must not keep
    /// the controller of another host alive.
    pub(super) fn restart_keep_alive(&mut self) {
        let now = self.cx.now();
        if self.keep_alive_restarted.is_some_and(|until| now < until) {
            return;
        }
        let own = |binding: &&Binding| binding.is_admin() || !self.is_unauthenticated();
        if let Some(binding) = self.queue.binding().filter(own) {
            binding.controller().restart_keep_alive(now);
            self.keep_alive_restarted = Some(now + KEEP_ALIVE_RESOLUTION);
        }
    }

    /// Returns when keep-alive expires, or the transaction in progress.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let auth = self.auth.as_ref().and_then(|auth| auth.deadline());
        self.keep_alive_deadline().into_iter().chain(auth).min()
    }

    fn keep_alive_deadline(&self) -> Option<Instant> {
        let binding = self.queue.binding().filter(|binding| binding.is_admin())?;
        let idle = (binding.controller().kind() == ControllerType::Discovery)
            .then_some(DISCOVERY_IDLE_TIMEOUT);
        binding.controller().keep_alive_deadline(KEEP_ALIVE_GRACE, idle)
    }

    // ---- the end

    /// Closes the connection, unless it is closed.
    pub(super) fn close(&mut self, reason: Reason) {
        if !self.is_closed() {
            self.leave(reason);
            self.queue.out().close(reason);
        }
    }

    /// Ends the use of the connection: leaves the controller, or ends it if this is the Admin queue.
    pub(super) fn leave(&mut self, reason: Reason) {
        // A failure was reported already.
        let unreported = self.auth.as_ref().is_some_and(|auth| auth.is_unreported());
        if unreported && matches!(reason, Reason::Peer | Reason::Timeout) {
            let reason = "DH-HMAC-CHAP authentication was not completed";
            self.queue.report_refused(self.cx.peer(), reason);
        }
        self.role = Role::Closed;
        self.queue.leave(self.cx.peer(), reason);
    }
}
