//! In-band authentication of a queue: Authentication Send and Receive (NVMe Base 2.0 §6.1, §6.2).
//! `crate::auth` holds the protocol.

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

/// Maximum message length of the controller in bytes, the same as in Linux.
const ROOM: u32 = 4096;

/// Authentication state of a queue.
#[derive(Debug)]
pub(super) struct Proof {
    credentials: Arc<Credentials>,
    conversation: Option<(Host, Then)>,
    /// Result of the exchange, while its last message is being sent.
    verdict: Option<Result<(), Explanation>>,
    psks: Vec<Psk>,
    t_id: u16,
}

/// Reason for an authentication.
#[derive(Debug, Clone, Copy)]
enum Then {
    /// Completes Connect.
    Connect(ConnectResponse),
    /// Requested by the user: completes with this tag.
    Tell(u32),
}

impl Proof {
    pub(super) fn new(credentials: Arc<Credentials>) -> Self {
        Self { credentials, conversation: None, verdict: None, psks: Vec::new(), t_id: 0 }
    }
}

impl Queue {
    /// Authenticates again on a connected queue with credentials. [`Step::Completed`] with `tag` has
    /// the result. Returns whether authentication was started.
    pub fn prove(&mut self, tag: u32) -> bool {
        self.has_room() && self.begin_proof(Then::Tell(tag))
    }

    /// Returns the PSKs that the last authentication generated, if the credentials request them.
    pub fn take_psks(&mut self) -> Vec<Psk> {
        self.proof.as_mut().map(|proof| std::mem::take(&mut proof.psks)).unwrap_or_default()
    }

    /// Returns whether the controller must authenticate.
    pub(super) fn wants_proof(&self) -> bool {
        self.proof.as_ref().is_some_and(|proof| proof.credentials.controller.is_some())
    }

    /// Starts the authentication that the controller requires after Connect. Returns `false` without
    /// credentials.
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

    /// Handles the completion of Authentication Send.
    pub(super) fn message_sent(&mut self, status: Status) {
        let Some(proof) = &mut self.proof else { return };
        match proof.verdict.take() {
            _ if !status.is_success() => self.end_proof(status),
            Some(verdict) => self.end_proof(outcome(verdict)),
            None => self.fetch_message(),
        }
    }

    /// Handles the completion of Authentication Receive.
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
