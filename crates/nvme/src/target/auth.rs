//! In-band authentication of a queue (NVMe Base 2.0 §6.1, §6.2, §8.13): Authentication Send and
//! Receive, and the restrictions before the host is authenticated. `crate::auth` holds the
//! protocol.

use std::time::{Duration, Instant};

use export::{Body, Credential, Host, KeyId};

use super::HANDSHAKE_TIMEOUT;
use super::access::{InBandKey, refusal_text};
use super::capsule::{Capsule, LengthCheck};
use super::context::Context;
use super::controller::ControllerType;
use super::queue::Queue;
use super::work::Work;
use crate::auth::chap::{Key, Names};
use crate::auth::{Authentication, ControllerAuth, Keys, Progress, QueueContext, credential};
use crate::command::FabricsCommand;
use crate::status::Status;
use crate::wire::auth::{Explanation, SECP, SPSP};

/// Maximum message length in bytes. Linux uses the same; the largest DH group fits.
const MAX_MESSAGE: u32 = 4096;

/// Authentication state of a queue.
#[derive(Debug)]
pub(super) struct InBandAuth {
    transaction: ControllerAuth,
    /// Identifier of the host's keys at the time of Connect, or of those it has authenticated with.
    key: KeyId,
    /// Whether the host must still authenticate before it uses the queue.
    pending: bool,
    /// Deadline of the transaction in progress.
    deadline: Option<Instant>,
    /// Calculation time spent for the peer before it authenticated.
    spent: Duration,
}

/// What a message of the host leads to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Verdict {
    /// The host may use the queue from now on.
    pub(super) granted: bool,
    /// The connection must close.
    pub(super) close: bool,
}

impl InBandAuth {
    /// Returns the state of queue `qid`, which must authenticate in time if that is required.
    pub(super) fn new(cx: &Context, qid: u16, names: Names, keys: InBandKey) -> Self {
        let InBandKey { key, required } = keys;
        let secured = cx.peer().channel.is_some();
        let context = QueueContext { admin: qid == 0, secured };
        let transaction = ControllerAuth::new(names, cx.target().config().clone(), context);
        let deadline = required.then_some(cx.handshake_deadline());
        Self { transaction, key, pending: required, deadline, spent: Duration::ZERO }
    }

    /// Returns whether the host must still authenticate.
    pub(super) fn is_pending(&self) -> bool {
        self.pending
    }

    /// Returns the key that the host must still authenticate with.
    pub(super) fn pending_key(&self) -> Option<KeyId> {
        self.pending.then_some(self.key)
    }

    /// Returns whether the host must still authenticate, and no failure was reported yet.
    pub(super) fn is_unreported(&self) -> bool {
        self.pending && !self.transaction.has_failed()
    }

    /// Returns the deadline of the transaction in progress.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Handles Authentication Send and Authentication Receive. Returns whether the connection must
    /// close.
    pub(super) fn command(
        &mut self,
        queue: &mut Queue,
        capsule: Capsule<'_>,
        command: FabricsCommand,
    ) -> Result<bool, Status> {
        let tag = capsule.tag();
        match command {
            FabricsCommand::AuthSend { secp, spsp, tl } => {
                check(secp, spsp, tl)?;
                queue.set_work(tag, Work::AuthMessage);
                queue.receive_data(capsule, tl.into(), LengthCheck::Exact)?;
                Ok(false)
            }
            FabricsCommand::AuthReceive { secp, spsp, al } => {
                check(secp, spsp, al)?;
                capsule.check_to_host(al.into(), LengthCheck::AtLeast)?;
                self.receive(queue, tag, al as usize)
            }
            _ => Err(Status::AUTHENTICATION_REQUIRED.dnr()),
        }
    }

    /// Handles Authentication Receive: sends the pending message, padded with zeros to `room`
    /// bytes. Returns whether the connection must close.
    fn receive(&mut self, queue: &mut Queue, tag: u16, room: usize) -> Result<bool, Status> {
        let reply = self.transaction.receive(room);
        let is_closed = self.transaction.is_closed();
        let Ok(mut message) = reply else {
            return Err(Status::INVALID_FIELD.dnr());
        };
        message.resize(room, 0);
        queue.finish_with_data(tag, Body::Shared(message.into()), room);
        Ok(is_closed)
    }

    /// Processes the message of an Authentication Send. The command succeeds in any case; the
    /// result of the message is in the reply, which the host reads by Authentication Receive.
    pub(super) fn message(&mut self, cx: &mut Context, queue: &mut Queue, bytes: &[u8]) -> Verdict {
        let close = Verdict { close: true, ..Verdict::default() };
        if self.transaction.has_failed() {
            // The failure was reported. A host that sends more instead of reading it is
            // disconnected.
            return close;
        }
        let host = queue.controller().ok();
        let host = host.and_then(|controller| cx.policy_host(controller.host().nqn()));
        let keys = host.and_then(|host| keys(&host));
        let now = cx.now();
        self.deadline = self.deadline.or(Some(now + HANDSHAKE_TIMEOUT));
        let (network, cost) = (cx.peer().network(), self.transaction.cost(bytes));
        let may = cost.is_zero() || cx.target().rate_limiter().try_take(network, cost, now);
        let progress = if may {
            self.spent += cost;
            self.transaction.send(bytes, keys.as_ref())
        } else {
            self.transaction.refuse(Explanation::Failed)
        };
        match progress {
            Progress::Continue => Verdict::default(),
            Progress::Authenticated(authentication) => {
                self.authenticated(cx, queue, *authentication)
            }
            Progress::Failed(reason) => {
                self.fail(cx, queue, reason.description());
                Verdict::default()
            }
            Progress::AbortedByHost => {
                let reason = "it aborted DH-HMAC-CHAP authentication (check the controller key)";
                self.fail(cx, queue, reason);
                close
            }
        }
    }

    fn fail(&mut self, cx: &mut Context, queue: &mut Queue, reason: &'static str) {
        self.pending = true;
        cx.set_proven(None);
        queue.report_refused(cx.peer(), reason);
    }

    /// Grants access after authentication. The connection must close if access was denied after the
    /// last message of the transaction.
    fn authenticated(
        &mut self,
        cx: &mut Context,
        queue: &mut Queue,
        authentication: Authentication,
    ) -> Verdict {
        let spent = std::mem::take(&mut self.spent);
        cx.target().rate_limiter().refund(cx.peer().network(), spent, cx.now());
        cx.set_proven(Some(authentication.key));
        let first = std::mem::replace(&mut self.pending, false);
        (self.key, self.deadline) = (authentication.key, None);
        if first && let Err(reason) = authorize(cx, queue) {
            self.fail(cx, queue, reason);
            self.transaction.refuse(Explanation::Failed);
            self.deadline = Some(cx.now() + HANDSHAKE_TIMEOUT);
            return Verdict { granted: false, close: authentication.is_last };
        }
        if let Ok(controller) = queue.controller()
            && !authentication.psks.is_empty()
        {
            controller.set_concatenated();
            cx.target().store_generated(authentication.key, authentication.psks, cx.now());
        }
        Verdict { granted: first, close: false }
    }
}

/// Grants the host access to the subsystem and takes its queue identifier.
fn authorize(cx: &Context, queue: &mut Queue) -> Result<(), &'static str> {
    let Some(binding) = queue.binding_mut() else { return Err("the connection is closed") };
    let controller = binding.controller();
    let grant = match controller.kind() {
        ControllerType::Io if !binding.is_admin() => cx.current_grant(controller),
        _ => {
            let found = cx.find_subsystem(controller.subsystem(), controller.host().nqn());
            found.map_err(refusal_text)?.1
        }
    };
    binding.set_grant(grant);
    if !binding.is_admin() && !binding.take_qid() {
        return Err("the queue identifier is in use");
    }
    Ok(())
}

/// Returns the DH-HMAC-CHAP keys of `host`, or `None` if it has none.
fn keys(host: &Host) -> Option<Keys> {
    let parse = |credential: &Credential| Key::parse(credential.secret.bytes()).ok();
    let own = host.credential(credential::CHAP_HOST)?;
    let controller = host.credential(credential::CHAP_CONTROLLER).and_then(parse);
    let compat = credential::is_compat(own);
    Some(Keys { id: host.key, host: parse(own)?, controller, compat })
}

/// Checks the fields that both commands have (NVMe Base 2.0 §6.1, §6.2).
fn check(secp: u8, spsp: u16, len: u32) -> Result<(), Status> {
    let fits = secp == SECP && spsp == SPSP && (1..=MAX_MESSAGE).contains(&len);
    if fits { Ok(()) } else { Err(Status::INVALID_FIELD.dnr()) }
}
