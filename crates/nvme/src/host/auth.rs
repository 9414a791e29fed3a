//! In-band authentication of a queue: Authentication Send and Receive (NVMe Base 2.0 §6.1, §6.2).
//! `crate::auth` holds the protocol.

use std::sync::Arc;

use export::{Body, Pool};

use super::queue::Queue;
use super::slots::{Data, Receiving};
use super::{Completion, Step};
use crate::auth::chap::Names;
use crate::auth::psk::Psk;
use crate::auth::{Credentials, HostAction, HostAuth};
use crate::command::FabricsCommand;
use crate::status::Status;
use crate::wire::Sgl;
use crate::wire::auth::{Explanation, SECP, SPSP};
use crate::wire::fabrics::ConnectResponse;

/// Maximum message length of the controller in bytes, the same as in Linux.
const MAX_MESSAGE: u32 = 4096;

/// Authentication state of a queue.
#[derive(Debug)]
pub(super) struct InBandAuth {
    credentials: Arc<Credentials>,
    transaction: Option<(HostAuth, OnSuccess)>,
    /// Result of the exchange, while its last message is being sent.
    result: Option<Result<(), Explanation>>,
    psks: Vec<Psk>,
    t_id: u16,
}

/// Reason for an authentication.
#[derive(Debug, Clone, Copy)]
enum OnSuccess {
    /// Completes Connect.
    Connect(ConnectResponse),
    /// Requested by the user: completes with this tag.
    Report(u32),
}

impl InBandAuth {
    pub(super) fn new(credentials: Arc<Credentials>) -> Self {
        Self { credentials, transaction: None, result: None, psks: Vec::new(), t_id: 0 }
    }
}

impl Queue {
    /// Authenticates again on a connected queue with credentials. [`Step::Completed`] with `tag`
    /// has the result. Returns whether authentication was started.
    pub fn reauthenticate(&mut self, tag: u32) -> bool {
        self.can_submit() && self.start_auth(OnSuccess::Report(tag))
    }

    /// Returns the PSKs that the last authentication generated, if the credentials request them.
    pub fn take_psks(&mut self) -> Vec<Psk> {
        self.auth.as_mut().map(|auth| std::mem::take(&mut auth.psks)).unwrap_or_default()
    }

    /// Returns whether the controller must authenticate.
    pub(super) fn requires_controller_auth(&self) -> bool {
        self.auth.as_ref().is_some_and(|auth| auth.credentials.controller.is_some())
    }

    /// Starts the authentication that the controller requires after Connect. Returns `false`
    /// without credentials.
    pub(super) fn authenticate_for_connect(&mut self, response: ConnectResponse) -> bool {
        self.start_auth(OnSuccess::Connect(response))
    }

    fn start_auth(&mut self, on_success: OnSuccess) -> bool {
        let names = self.names();
        let Some(auth) = self.auth.as_mut().filter(|auth| auth.transaction.is_none()) else {
            return false;
        };
        auth.t_id = auth.t_id.wrapping_add(1);
        let (host, message) = HostAuth::open(names, auth.credentials.clone(), auth.t_id);
        (auth.transaction, auth.result) = (Some((host, on_success)), None);
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
        let cid = self.claim(Data::Auth, 0);
        let sqe = sqe.with_data(Sgl::in_capsule(0, tl)).with_cid(cid);
        let steps = &mut self.steps;
        let mut send = |segment| steps.push_back(Step::Send(segment));
        self.framer.command_with(sqe, Body::Shared(Arc::from(message)), message.len(), &mut send);
    }

    fn receive_message(&mut self) {
        let sqe = FabricsCommand::AuthReceive { secp: SECP, spsp: SPSP, al: MAX_MESSAGE }.emit();
        let buffer = Pool::new(MAX_MESSAGE as usize).open().take(MAX_MESSAGE as usize);
        let receiving = Receiving { buffer, auth: true, ..Receiving::new(MAX_MESSAGE) };
        self.send_capsule(
            sqe.with_data(Sgl::transport(MAX_MESSAGE)),
            Data::Receiving(receiving),
            0,
        );
    }

    /// Handles the completion of Authentication Send.
    pub(super) fn message_sent(&mut self, status: Status) {
        let Some(auth) = &mut self.auth else { return };
        match auth.result.take() {
            _ if !status.is_success() => self.finish_auth(status),
            Some(result) => self.finish_auth(status_of(result)),
            None => self.receive_message(),
        }
    }

    /// Handles the completion of Authentication Receive.
    pub(super) fn message_received(&mut self, status: Status, bytes: &[u8]) {
        if !status.is_success() {
            return self.finish_auth(status);
        }
        let Some(auth) = &mut self.auth else { return };
        let Some((host, _)) = &mut auth.transaction else { return };
        let (message, result) = match host.receive(bytes) {
            HostAction::Send(message) => (Some(message), None),
            HostAction::Done(message, psks) => {
                auth.psks = psks;
                (message, Some(Ok(())))
            }
            HostAction::Failed(message, why) => (message, Some(Err(why))),
        };
        match (message, result) {
            (Some(message), result) => {
                auth.result = result;
                self.send_message(&message);
            }
            (None, result) => self.finish_auth(status_of(result.unwrap_or(Ok(())))),
        }
    }

    fn finish_auth(&mut self, status: Status) {
        let transaction = self.auth.as_mut().and_then(|auth| auth.transaction.take());
        let Some((_, on_success)) = transaction else { return };
        let step = match on_success {
            OnSuccess::Connect(response) if status.is_success() => {
                self.go_live();
                Step::Connected(response)
            }
            OnSuccess::Connect(_) => Step::Refused(status, 0),
            OnSuccess::Report(tag) => {
                Step::Completed(Completion { tag, status, result: 0, buffer: None })
            }
        };
        self.steps.push_back(step);
    }
}

fn status_of(result: Result<(), Explanation>) -> Status {
    result.map_or(Status::AUTHENTICATION_REQUIRED.dnr(), |()| Status::SUCCESS)
}
