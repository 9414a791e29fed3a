//! Authentication on a queue: the two commands that carry it, and what a host may do before it has proven who it is
//! (NVMe Base 2.0 §6.1, §6.2, §8.13). What the messages say is in `auth`; it knows no key but those of the policy.

use std::time::{Duration, Instant};

use export::{Body, Buffer, Event, Host, KeyId, Reason, Step};

use super::HANDSHAKE;
use super::admin::Waiting;
use super::controller::Kind;
use super::io::Work;
use super::link::Link;
use super::queue::Queue;
use super::transfer::Size;
use crate::auth::chap::{Key, Names};
use crate::auth::{Controller, Keys, Progress, Rules, Setting, Shown};
use crate::command::FabricsCommand;
use crate::status::Status;
use crate::wire::auth::{Explanation, SECP, SPSP};
use crate::wire::command::Sqe;
use crate::wire::opcode;

/// Bytes of the longest message: enough for the largest group, and what Linux has room for.
const MESSAGE: u32 = 4096;

/// How far a queue is with authentication.
#[derive(Debug)]
pub(super) struct InBandAuth {
    conversation: Controller,
    /// The host's keys when it connected.
    pub(super) key: KeyId,
    /// Whether the host must prove that it knows its key before anything else.
    required: bool,
    /// The key that it has proven to know.
    pub(super) proven: Option<KeyId>,
    /// Until then a conversation that has begun must have ended.
    until: Option<Instant>,
    /// The calculation that the peer has had of us without a proof.
    spent: Duration,
}

impl InBandAuth {
    /// A queue of that host, which `required` says must prove itself until that time.
    pub(super) fn new(
        conversation: Controller,
        key: KeyId,
        required: bool,
        until: Instant,
    ) -> Self {
        let until = required.then_some(until);
        Self { conversation, key, required, proven: None, until, spent: Duration::ZERO }
    }

    /// Whether the host has still to prove itself.
    pub(super) fn is_due(&self) -> bool {
        self.required && self.proven.is_none()
    }
}

/// The controller's end of a conversation on queue `qid`.
pub(super) fn conversation(names: Names, rules: &Rules, qid: u16, secured: bool) -> Controller {
    Controller::new(names, rules.clone(), Setting { admin: qid == 0, secured })
}

/// The keys of `host` for DH-HMAC-CHAP, if it has such.
fn keys(host: &Host) -> Option<Keys> {
    let key = Key::parse(host.chap.as_ref()?.bytes()).ok()?;
    let controller = host.chap_controller.as_ref().and_then(|text| Key::parse(text.bytes()).ok());
    Some(Keys { id: host.key, host: key, controller, compat: host.tls_compat })
}

impl Queue {
    /// The key that the host has proven to know on this queue.
    pub(super) fn proven(&self) -> Option<KeyId> {
        self.auth.as_ref().and_then(|auth| auth.proven)
    }

    /// Whether the host has still to prove itself before it may do anything else.
    pub(super) fn is_unproven(&self) -> bool {
        self.auth.as_ref().is_some_and(|auth| auth.is_due())
    }

    /// The host said something. Who has proven nothing yet keeps nobody's controller alive.
    pub(super) fn heard(&self) {
        let own = |link: &&Link| link.qid == 0 || !self.is_unproven();
        if let Some(link) = self.link.as_ref().filter(own) {
            link.controller.heard(self.now);
        }
    }

    /// A connection ends on which a host has not proven what it said it is, and which it was not refused for.
    pub(super) fn left_unproven(&mut self) {
        let quiet = |auth: &InBandAuth| auth.is_due() && !auth.conversation.has_failed();
        if self.auth.as_deref().is_some_and(quiet) {
            self.report_refused("it has not proven its key (DH-HMAC-CHAP)");
        }
    }

    /// Until when a conversation that has begun must have ended.
    pub(super) fn proof_due(&self) -> Option<Instant> {
        self.auth.as_ref().and_then(|auth| auth.until)
    }

    /// A command of a host that has still to prove itself.
    pub(super) fn unproven_command(
        &mut self,
        at: u16,
        sqe: &Sqe,
        capsule: Option<Buffer>,
    ) -> Result<(), Status> {
        if sqe.opcode != opcode::fabrics::OPCODE {
            return Err(Status::AUTHENTICATION_REQUIRED.dnr());
        }
        let command = FabricsCommand::parse(sqe)?;
        self.auth_command(at, sqe, command, capsule)
    }

    /// Authentication Send and Receive.
    pub(super) fn auth_command(
        &mut self,
        at: u16,
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
                self.set_work(at, Work::Admin(Box::new(Waiting::Message)));
                self.gather(at, sqe, tl.into(), Size::Exact, capsule)
            }
            FabricsCommand::AuthReceive { secp, spsp, al } => {
                check(secp, spsp, al)?;
                Self::check_to_host(sqe, al.into(), Size::AtLeast, capsule.as_ref())?;
                self.fetch(at, al as usize)
            }
            _ => Err(Status::AUTHENTICATION_REQUIRED.dnr()),
        }
    }

    /// A message of the host is there. It is taken in any case: what became of it is fetched.
    pub(super) fn message(&mut self, at: u16, bytes: &[u8]) {
        let keys = self.known_host().and_then(|host| keys(&host));
        let Some(auth) = &mut self.auth else { return };
        if auth.conversation.has_failed() {
            // Said once, in the journal and to the host: who does not fetch it has nothing more to say.
            self.answer(at, Status::SUCCESS);
            return self.close(Reason::Refused);
        }
        auth.until = auth.until.or(Some(self.now + HANDSHAKE));
        let (address, cost) = (self.peer.remote.ip(), auth.conversation.cost(bytes));
        let may = cost.is_zero() || self.target.ration().take(address, cost, self.now);
        let progress = if may {
            auth.spent += cost;
            auth.conversation.send(bytes, keys.as_ref())
        } else {
            auth.conversation.refuse(Explanation::Failed)
        };
        let over = self.progress(progress);
        self.answer(at, Status::SUCCESS);
        if over {
            self.close(Reason::Refused);
        }
    }

    /// Tells whether nothing more is to be said.
    fn progress(&mut self, progress: Progress) -> bool {
        match progress {
            Progress::Going => false,
            Progress::Proven(shown) => self.proven_now(*shown),
            Progress::Failed(why) => {
                self.failed_proof(why.why());
                false
            }
            Progress::GivenUp => {
                self.failed_proof("gave up proving its key, or does not believe ours");
                true
            }
        }
    }

    fn failed_proof(&mut self, why: &'static str) {
        if let Some(auth) = &mut self.auth {
            (auth.required, auth.proven) = (true, None);
        }
        self.report_refused(why);
    }

    /// The host has proven that it knows its key: it gets what it may have. Tells whether that is nothing, and there is
    /// nothing left that would tell it.
    fn proven_now(&mut self, shown: Shown) -> bool {
        let Some(auth) = &mut self.auth else { return true };
        let spent = std::mem::take(&mut auth.spent);
        self.target.ration().give_back(self.peer.remote.ip(), spent, self.now);
        let first = auth.proven.replace(shown.key).is_none() && auth.required;
        (auth.key, auth.until) = (shown.key, None);
        if first && let Err(why) = self.let_in() {
            self.failed_proof(why);
            let Some(auth) = &mut self.auth else { return true };
            auth.conversation.refuse(Explanation::Failed);
            auth.until = Some(self.now + HANDSHAKE);
            return shown.settled;
        }
        if let Some(link) = self.link.as_ref().filter(|_| !shown.psks.is_empty()) {
            link.controller.set_concatenated();
            self.target.keep(shown.key, shown.psks, self.now);
        }
        false
    }

    /// What the host may have becomes its own.
    fn let_in(&mut self) -> Result<(), &'static str> {
        let Some(link) = &self.link else { return Err("is gone") };
        let (qid, controller) = (link.qid, link.controller.clone());
        let (_, grant) = match controller.kind {
            Kind::Io if qid != 0 => {
                (Kind::Io, self.lent(&controller.subsystem, &controller.host.nqn))
            }
            _ => self.find_subsystem(&controller.subsystem, &controller.host.nqn)?,
        };
        if let Some(link) = &mut self.link {
            link.set_grant(grant);
            if qid != 0 && !link.join() {
                return Err("has that queue already");
            }
        }
        if qid == 0 {
            self.begin_admin();
        }
        Ok(())
    }

    /// Authentication Receive: the message that waits for the host, and zeros up to the length that it asks for.
    fn fetch(&mut self, at: u16, room: usize) -> Result<(), Status> {
        let Some(auth) = &mut self.auth else { return Err(Status::INVALID_OPCODE.dnr()) };
        let fetched = auth.conversation.receive(room);
        let over = auth.conversation.is_over();
        let Ok(mut message) = fetched else {
            return Err(Status::INVALID_FIELD.dnr());
        };
        message.resize(room, 0);
        self.answer_data(at, Body::Shared(message.into()), room);
        if over {
            self.close(Reason::Refused);
        }
        Ok(())
    }

    /// Says that the host of this queue was refused what it connected for.
    pub(super) fn report_refused(&mut self, why: &'static str) {
        let Some(link) = &self.link else { return };
        let (host, wanted) = (link.controller.host.nqn.clone(), link.controller.subsystem.clone());
        let peer = self.peer.clone();
        self.out.push_back(Step::Report(Event::Refused { peer, host, wanted, why }));
    }
}

/// The fields of both commands (NVMe Base 2.0 §6.1, §6.2).
fn check(secp: u8, spsp: u16, len: u32) -> Result<(), Status> {
    let fits = secp == SECP && spsp == SPSP && (1..=MESSAGE).contains(&len);
    if fits { Ok(()) } else { Err(Status::INVALID_FIELD.dnr()) }
}
