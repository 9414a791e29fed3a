//! In-band authentication of a queue (NVMe Base 2.0 §6.1, §6.2, §8.13): Authentication Send and
//! Receive, and the restrictions before the host is authenticated. `crate::auth` holds the
//! protocol.

use std::time::{Duration, Instant};

use export::{Body, Buffer, Event, Host, KeyId, Reason, Step};

use super::HANDSHAKE_TIMEOUT;
use super::admin::PendingAdmin;
use super::binding::Binding;
use super::controller::ControllerType;
use super::io::Work;
use super::queue::Queue;
use super::transfer::LengthCheck;
use crate::auth::chap::{Key, Names};
use crate::auth::{AuthConfig, Authentication, ControllerAuth, Keys, Progress, QueueContext};
use crate::command::FabricsCommand;
use crate::status::Status;
use crate::wire::auth::{Explanation, SECP, SPSP};
use crate::wire::command::Sqe;
use crate::wire::opcode;

/// Maximum message length in bytes. Linux uses the same; the largest DH group fits.
const MAX_MESSAGE: u32 = 4096;

/// Authentication state of a queue.
#[derive(Debug)]
pub(super) struct InBandAuth {
    transaction: ControllerAuth,
    /// Identifier of the host's keys at the time of Connect.
    pub(super) key: KeyId,
    /// Whether the host must authenticate before it uses the queue.
    required: bool,
    /// The key that the host has authenticated with.
    pub(super) authenticated: Option<KeyId>,
    /// Deadline of the transaction in progress.
    deadline: Option<Instant>,
    /// Calculation time spent for the peer before it authenticated.
    spent: Duration,
}

impl InBandAuth {
    /// State of a queue that must authenticate before `until` if `required` is set.
    pub(super) fn new(
        transaction: ControllerAuth,
        key: KeyId,
        required: bool,
        deadline: Instant,
    ) -> Self {
        let deadline = required.then_some(deadline);
        Self { transaction, key, required, authenticated: None, deadline, spent: Duration::ZERO }
    }

    /// Returns whether the host must still authenticate.
    pub(super) fn is_pending(&self) -> bool {
        self.required && self.authenticated.is_none()
    }
}

/// Returns the controller side of an authentication transaction on queue `qid`.
pub(super) fn transaction(
    names: Names,
    config: &AuthConfig,
    qid: u16,
    secured: bool,
) -> ControllerAuth {
    ControllerAuth::new(names, config.clone(), QueueContext { admin: qid == 0, secured })
}

/// Returns the DH-HMAC-CHAP keys of `host`, or `None` if it has none.
fn keys(host: &Host) -> Option<Keys> {
    let key = Key::parse(host.chap.as_ref()?.bytes()).ok()?;
    let controller = host.chap_controller.as_ref().and_then(|text| Key::parse(text.bytes()).ok());
    Some(Keys { id: host.key, host: key, controller, compat: host.tls_compat })
}

impl Queue {
    /// Returns the key that the host has authenticated with on this queue.
    pub(super) fn authenticated_key(&self) -> Option<KeyId> {
        self.auth.as_ref().and_then(|auth| auth.authenticated)
    }

    /// Returns whether the host must still authenticate.
    pub(super) fn is_unauthenticated(&self) -> bool {
        self.auth.as_ref().is_some_and(|auth| auth.is_pending())
    }

    /// Restarts the keep-alive timer of the controller. An unauthenticated I/O queue must not keep
    /// the controller of another host alive.
    pub(super) fn restart_keep_alive(&self) {
        let own = |binding: &&Binding| binding.qid == 0 || !self.is_unauthenticated();
        if let Some(binding) = self.binding.as_ref().filter(own) {
            binding.controller.restart_keep_alive(self.now);
        }
    }

    /// Reports a connection that closes before authentication completes, unless a failure was
    /// reported already.
    pub(super) fn report_unauthenticated(&mut self) {
        let quiet = |auth: &InBandAuth| auth.is_pending() && !auth.transaction.has_failed();
        if self.auth.as_deref().is_some_and(quiet) {
            self.report_refused("DH-HMAC-CHAP authentication was not completed");
        }
    }

    /// Returns the deadline of the transaction in progress.
    pub(super) fn auth_deadline(&self) -> Option<Instant> {
        self.auth.as_ref().and_then(|auth| auth.deadline)
    }

    /// Handles a command of a host that has not authenticated.
    pub(super) fn unauthenticated_command(
        &mut self,
        tag: u16,
        sqe: &Sqe,
        capsule: Option<Buffer>,
    ) -> Result<(), Status> {
        if sqe.opcode != opcode::fabrics::OPCODE {
            return Err(Status::AUTHENTICATION_REQUIRED.dnr());
        }
        let command = FabricsCommand::parse(sqe)?;
        self.auth_command(tag, sqe, command, capsule)
    }

    /// Handles Authentication Send and Authentication Receive.
    pub(super) fn auth_command(
        &mut self,
        tag: u16,
        sqe: &Sqe,
        command: FabricsCommand,
        capsule: Option<Buffer>,
    ) -> Result<(), Status> {
        if self.auth.is_none() {
            return Err(Status::INVALID_OPCODE.dnr());
        }
        match command {
            FabricsCommand::AuthSend { secp, spsp, tl } => {
                check(secp, spsp, tl)?;
                self.set_work(tag, Work::Admin(Box::new(PendingAdmin::AuthMessage)));
                self.receive_data(tag, sqe, tl.into(), LengthCheck::Exact, capsule)
            }
            FabricsCommand::AuthReceive { secp, spsp, al } => {
                check(secp, spsp, al)?;
                Self::check_to_host(sqe, al.into(), LengthCheck::AtLeast, capsule.as_ref())?;
                self.auth_receive(tag, al as usize)
            }
            _ => Err(Status::AUTHENTICATION_REQUIRED.dnr()),
        }
    }

    /// Processes the message of an Authentication Send. The command succeeds in any case; the
    /// result of the message is in the reply, which the host reads by Authentication Receive.
    pub(super) fn auth_message(&mut self, tag: u16, bytes: &[u8]) {
        let keys = self.policy_host().and_then(|host| keys(&host));
        let Some(auth) = &mut self.auth else { return };
        if auth.transaction.has_failed() {
            // The failure was reported. A host that sends more instead of reading it is
            // disconnected.
            self.finish(tag, Status::SUCCESS);
            return self.close(Reason::Refused);
        }
        auth.deadline = auth.deadline.or(Some(self.now + HANDSHAKE_TIMEOUT));
        let (network, cost) = (self.peer.network(), auth.transaction.cost(bytes));
        let may = cost.is_zero() || self.target.rate_limiter().try_take(network, cost, self.now);
        let progress = if may {
            auth.spent += cost;
            auth.transaction.send(bytes, keys.as_ref())
        } else {
            auth.transaction.refuse(Explanation::Failed)
        };
        let is_closed = self.progress(progress);
        self.finish(tag, Status::SUCCESS);
        if is_closed {
            self.close(Reason::Refused);
        }
    }

    /// Applies the result of a message. Returns whether the connection must close.
    fn progress(&mut self, progress: Progress) -> bool {
        match progress {
            Progress::Continue => false,
            Progress::Authenticated(authentication) => self.on_authenticated(*authentication),
            Progress::Failed(why) => {
                self.authentication_failed(why.description());
                false
            }
            Progress::AbortedByHost => {
                self.authentication_failed(
                    "it aborted DH-HMAC-CHAP authentication (check the controller key)",
                );
                true
            }
        }
    }

    fn authentication_failed(&mut self, why: &'static str) {
        if let Some(auth) = &mut self.auth {
            (auth.required, auth.authenticated) = (true, None);
        }
        self.report_refused(why);
    }

    /// Grants access after authentication. Returns whether the connection must close because access
    /// was denied after the last message of the transaction.
    fn on_authenticated(&mut self, authentication: Authentication) -> bool {
        let Some(auth) = &mut self.auth else { return true };
        let spent = std::mem::take(&mut auth.spent);
        self.target.rate_limiter().refund(self.peer.network(), spent, self.now);
        let first = auth.authenticated.replace(authentication.key).is_none() && auth.required;
        (auth.key, auth.deadline) = (authentication.key, None);
        if first && let Err(why) = self.authorize() {
            self.authentication_failed(why);
            let Some(auth) = &mut self.auth else { return true };
            auth.transaction.refuse(Explanation::Failed);
            auth.deadline = Some(self.now + HANDSHAKE_TIMEOUT);
            return authentication.is_last;
        }
        if let Some(binding) = self.binding.as_ref().filter(|_| !authentication.psks.is_empty()) {
            binding.controller.set_concatenated();
            self.target.store_generated(authentication.key, authentication.psks, self.now);
        }
        false
    }

    /// Grants the host access to the subsystem and takes its queue identifier.
    fn authorize(&mut self) -> Result<(), &'static str> {
        let Some(binding) = &self.binding else { return Err("the connection is closed") };
        let (qid, controller) = (binding.qid, binding.controller.clone());
        let (_, grant) = match controller.kind {
            ControllerType::Io if qid != 0 => (
                ControllerType::Io,
                self.current_grant(&controller.subsystem, &controller.host.nqn),
            ),
            _ => self.find_subsystem(&controller.subsystem, &controller.host.nqn)?,
        };
        if let Some(binding) = &mut self.binding {
            binding.set_grant(grant);
            if qid != 0 && !binding.take_qid() {
                return Err("the queue identifier is in use");
            }
        }
        if qid == 0 {
            self.begin_admin();
        }
        Ok(())
    }

    /// Handles Authentication Receive: sends the pending message, padded with zeros to `room`
    /// bytes.
    fn auth_receive(&mut self, tag: u16, room: usize) -> Result<(), Status> {
        let Some(auth) = &mut self.auth else { return Err(Status::INVALID_OPCODE.dnr()) };
        let reply = auth.transaction.receive(room);
        let is_closed = auth.transaction.is_closed();
        let Ok(mut message) = reply else {
            return Err(Status::INVALID_FIELD.dnr());
        };
        message.resize(room, 0);
        self.finish_with_data(tag, Body::Shared(message.into()), room);
        if is_closed {
            self.close(Reason::Refused);
        }
        Ok(())
    }

    /// Reports that the host of this queue was denied access.
    pub(super) fn report_refused(&mut self, why: &'static str) {
        let Some(binding) = &self.binding else { return };
        let (host, wanted) =
            (binding.controller.host.nqn.clone(), binding.controller.subsystem.clone());
        let peer = self.peer.clone();
        self.steps.push_back(Step::Report(Event::Refused { peer, host, wanted, why }));
    }
}

/// Checks the fields that both commands have (NVMe Base 2.0 §6.1, §6.2).
fn check(secp: u8, spsp: u16, len: u32) -> Result<(), Status> {
    let fits = secp == SECP && spsp == SPSP && (1..=MAX_MESSAGE).contains(&len);
    if fits { Ok(()) } else { Err(Status::INVALID_FIELD.dnr()) }
}
