//! Proving who the host is, on one connection: the commands that carry DH-HMAC-CHAP (NVMe Base 2.0 §6.1, §6.2). What the
//! messages say is in `auth`.

use std::sync::Arc;

use export::{Body, Pool};

use super::queue::Queue;
use super::slots::{Data, Incoming};
use super::{Done, Step};
use crate::auth::chap::Names;
use crate::auth::psk::Psk;
use crate::auth::{Credentials, Host, Next};
use crate::command::FabricsCommand;
use crate::status::Status;
use crate::wire::Sgl;
use crate::wire::auth::{Explanation, SECP, SPSP};
use crate::wire::fabrics::ConnectResponse;

/// Bytes that there is room for in the controller's messages: as Linux has.
const ROOM: u32 = 4096;

/// What this host proves itself with.
#[derive(Debug)]
pub(super) struct Proof {
    credentials: Arc<Credentials>,
    conversation: Option<(Host, Then)>,
    /// How it ends once the last message was taken.
    verdict: Option<Result<(), Explanation>>,
    psks: Vec<Psk>,
    t_id: u16,
}

/// What a proof is needed for.
#[derive(Debug, Clone, Copy)]
enum Then {
    /// The queue is connected.
    Connect(ConnectResponse),
    /// Whoever asked for it is told, by this tag.
    Tell(u32),
}

impl Proof {
    pub(super) fn new(credentials: Arc<Credentials>) -> Self {
        Self { credentials, conversation: None, verdict: None, psks: Vec::new(), t_id: 0 }
    }
}

impl Queue {
    /// Proves once more who the host is, on a queue that is connected and was given credentials; [`Step::Done`] with `tag`
    /// tells whether it succeeded. Tells whether it has begun.
    pub fn prove(&mut self, tag: u32) -> bool {
        self.has_room() && self.begin_proof(Then::Tell(tag))
    }

    /// The keys for a secured channel that came out of the last proof, if the credentials ask for them.
    pub fn take_psks(&mut self) -> Vec<Psk> {
        self.proof.as_mut().map(|proof| std::mem::take(&mut proof.psks)).unwrap_or_default()
    }

    /// Whether the controller must prove itself, whatever it says of the host.
    pub(super) fn wants_proof(&self) -> bool {
        self.proof.as_ref().is_some_and(|proof| proof.credentials.controller.is_some())
    }

    /// The controller wants a proof before anything else. Tells whether there is one to give.
    pub(super) fn prove_to_connect(&mut self, response: ConnectResponse) -> bool {
        self.begin_proof(Then::Connect(response))
    }

    fn begin_proof(&mut self, then: Then) -> bool {
        let names = self.names();
        let Some(proof) = self.proof.as_mut().filter(|proof| proof.conversation.is_none()) else {
            return false;
        };
        proof.t_id = proof.t_id.wrapping_add(1);
        let (host, message) = Host::open(names, proof.credentials.clone(), proof.t_id);
        (proof.conversation, proof.verdict) = (Some((host, then)), None);
        self.send_message(&message);
        true
    }

    fn names(&self) -> Names {
        let name = |nqn: Result<&str, _>| nqn.map(str::to_owned).unwrap_or_default();
        Names { host: name(self.data.hostnqn()), subsystem: name(self.data.subnqn()) }
    }

    fn send_message(&mut self, message: &[u8]) {
        let tl = u32::try_from(message.len()).unwrap_or(u32::MAX);
        let sqe = FabricsCommand::AuthSend { secp: SECP, spsp: SPSP, tl }.emit();
        let cid = self.claim(Data::Proof, 0);
        let sqe = sqe.with_data(Sgl::in_capsule(0, tl)).with_cid(cid);
        let out = &mut self.out;
        let mut send = |segment| out.push_back(Step::Send(segment));
        self.framer.command_with(sqe, Body::Shared(Arc::from(message)), message.len(), &mut send);
    }

    fn fetch_message(&mut self) {
        let sqe = FabricsCommand::AuthReceive { secp: SECP, spsp: SPSP, al: ROOM }.emit();
        let buffer = Pool::new(ROOM as usize).open().take(ROOM as usize);
        let incoming = Incoming { buffer, proof: true, ..Incoming::of(ROOM) };
        self.enter(sqe.with_data(Sgl::transport(ROOM)), Data::Incoming(incoming), 0);
    }

    /// A message was taken.
    pub(super) fn message_sent(&mut self, status: Status) {
        let Some(proof) = &mut self.proof else { return };
        match proof.verdict.take() {
            _ if !status.is_success() => self.end_proof(status),
            Some(verdict) => self.end_proof(outcome(verdict)),
            None => self.fetch_message(),
        }
    }

    /// A message was fetched.
    pub(super) fn message_fetched(&mut self, status: Status, bytes: &[u8]) {
        if !status.is_success() {
            return self.end_proof(status);
        }
        let Some(proof) = &mut self.proof else { return };
        let Some((host, _)) = &mut proof.conversation else { return };
        let (message, verdict) = match host.receive(bytes) {
            Next::Ask(message) => (Some(message), None),
            Next::Done(message, psks) => {
                proof.psks = psks;
                (message, Some(Ok(())))
            }
            Next::Failed(message, why) => (message, Some(Err(why))),
        };
        match (message, verdict) {
            (Some(message), verdict) => {
                proof.verdict = verdict;
                self.send_message(&message);
            }
            (None, verdict) => self.end_proof(outcome(verdict.unwrap_or(Ok(())))),
        }
    }

    fn end_proof(&mut self, status: Status) {
        let conversation = self.proof.as_mut().and_then(|proof| proof.conversation.take());
        let Some((_, then)) = conversation else { return };
        let step = match then {
            Then::Connect(response) if status.is_success() => {
                self.go_live();
                Step::Connected(response)
            }
            Then::Connect(_) => Step::Refused(status, 0),
            Then::Tell(tag) => Step::Done(Done { tag, status, result: 0, buffer: None }),
        };
        self.out.push_back(step);
    }
}

fn outcome(verdict: Result<(), Explanation>) -> Status {
    verdict.map_or(Status::AUTHENTICATION_REQUIRED.dnr(), |()| Status::SUCCESS)
}
