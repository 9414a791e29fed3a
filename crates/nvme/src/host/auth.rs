//! In-band authentication of a queue: Authentication Send and Receive (NVMe Base 2.0 §6.1, §6.2).
//! `crate::auth` holds the protocol.

use std::sync::Arc;

use crate::auth::chap::Names;
use crate::auth::psk::Psk;
use crate::auth::{Credentials, HostAction, HostAuth};
use crate::command::FabricsCommand;
use crate::status::Status;
use crate::wire::Sqe;
use crate::wire::auth::{Explanation, SECP, SPSP};
use crate::wire::fabrics::ConnectResponse;

/// Maximum message length of the controller in bytes, the same as in Linux.
pub(super) const MAX_MESSAGE: u32 = 4096;

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
pub(super) enum OnSuccess {
    /// Completes Connect.
    Connect(ConnectResponse),
    /// Requested by the user: completes with this tag.
    Report(u32),
}

/// What the queue does next for its authentication.
#[derive(Debug)]
pub(super) enum AuthStep {
    /// Sends this message by Authentication Send.
    Send(Vec<u8>),
    /// Reads the reply by Authentication Receive.
    Receive,
    /// The authentication has ended with this status.
    Done(OnSuccess, Status),
    /// Nothing.
    None,
}

impl InBandAuth {
    pub(super) fn new(credentials: Arc<Credentials>) -> Self {
        Self { credentials, transaction: None, result: None, psks: Vec::new(), t_id: 0 }
    }

    /// Returns the PSKs that the last authentication generated.
    pub(super) fn take_psks(&mut self) -> Vec<Psk> {
        std::mem::take(&mut self.psks)
    }

    /// Returns whether the controller must authenticate.
    pub(super) fn requires_controller(&self) -> bool {
        self.credentials.controller.is_some()
    }

    /// Starts an authentication. Returns its first message, or `None` if one is in progress.
    pub(super) fn start(&mut self, names: Names, on_success: OnSuccess) -> Option<Vec<u8>> {
        if self.transaction.is_some() {
            return None;
        }
        self.t_id = self.t_id.wrapping_add(1);
        let (host, message) = HostAuth::open(names, self.credentials.clone(), self.t_id);
        (self.transaction, self.result) = (Some((host, on_success)), None);
        Some(message)
    }

    /// Handles the completion of Authentication Send.
    pub(super) fn message_sent(&mut self, status: Status) -> AuthStep {
        match self.result.take() {
            _ if !status.is_success() => self.finish(status),
            Some(result) => self.finish(status_of(result)),
            None => AuthStep::Receive,
        }
    }

    /// Handles the completion of Authentication Receive.
    pub(super) fn message_received(&mut self, status: Status, bytes: &[u8]) -> AuthStep {
        if !status.is_success() {
            return self.finish(status);
        }
        let Some((host, _)) = &mut self.transaction else { return AuthStep::None };
        let (message, result) = match host.receive(bytes) {
            HostAction::Send(message) => (Some(message), None),
            HostAction::Done(message, psks) => {
                self.psks = psks;
                (message, Some(Ok(())))
            }
            HostAction::Failed(message, reason) => (message, Some(Err(reason))),
        };
        match message {
            Some(message) => {
                self.result = result;
                AuthStep::Send(message)
            }
            None => self.finish(status_of(result.unwrap_or(Ok(())))),
        }
    }

    fn finish(&mut self, status: Status) -> AuthStep {
        match self.transaction.take() {
            Some((_, on_success)) => AuthStep::Done(on_success, status),
            None => AuthStep::None,
        }
    }
}

/// Returns Authentication Send of a message of `len` bytes.
pub(super) fn send_command(len: u32) -> Sqe {
    FabricsCommand::AuthSend { secp: SECP, spsp: SPSP, tl: len }.emit()
}

/// Returns Authentication Receive.
pub(super) fn receive_command() -> Sqe {
    FabricsCommand::AuthReceive { secp: SECP, spsp: SPSP, al: MAX_MESSAGE }.emit()
}

fn status_of(result: Result<(), Explanation>) -> Status {
    result.map_or(Status::AUTHENTICATION_REQUIRED.dnr(), |()| Status::SUCCESS)
}
