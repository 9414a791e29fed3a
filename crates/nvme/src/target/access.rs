//! Access checks against the policy.

use std::sync::Arc;

use export::{Grant, Host, KeyId, Refusal};

use super::Port;
use super::context::Context;
use super::controller::{Controller, ControllerType};
use crate::auth::credential;
use crate::auth::psk::Identity;
use crate::nqn;
use crate::status::Status;
use crate::wire::fabrics::{ConnectField, DISCOVERY_NQN};

/// Refusal of a Connect: status, dword 0 of the response, and the reason for the administrator.
/// No reason is reported if nothing can be done about it, such as an I/O queue of a controller that
/// ended with a restart.
#[derive(Debug)]
pub(super) struct ConnectRefusal {
    status: Status,
    dw0: u32,
    reason: Option<&'static str>,
}

impl ConnectRefusal {
    pub(super) fn new(status: Status, dw0: u32, reason: Option<&'static str>) -> Self {
        Self { status, dw0, reason }
    }

    /// Denies access to the host, with Connect Invalid Host.
    pub(super) fn access_denied(reason: &'static str) -> Self {
        let dw0 = ConnectField::Hostnqn.dw0();
        Self::new(Status::CONNECT_INVALID_HOST.dnr(), dw0, Some(reason))
    }

    /// Returns status and dword 0 of the response.
    pub(super) fn response(&self) -> (Status, u32) {
        (self.status, self.dw0)
    }

    /// Returns the reason for the administrator.
    pub(super) fn reason(&self) -> Option<&'static str> {
        self.reason
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

/// The in-band authentication of a host that has DH-HMAC-CHAP keys.
#[derive(Debug, Clone, Copy)]
pub(super) struct InBandKey {
    /// Identifier of its keys.
    pub(super) key: KeyId,
    /// Whether the host must authenticate before it uses the queue.
    pub(super) required: bool,
}

/// Returns the reason of a refusal for the administrator.
pub(super) fn refusal_text(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Unknown => "no such disk is exported here",
        Refusal::NotAllowed => "access denied to this host",
        Refusal::TlsRequired => "TLS is required for this host",
        Refusal::InBandRequired => "DH-HMAC-CHAP authentication was not completed",
        Refusal::OtherHost => {
            "another host uses this home directory, or was lost without having detached it"
        }
    }
}

/// Returns whether the host has a DH-HMAC-CHAP secret.
fn has_chap(host: &Host) -> bool {
    host.credential(credential::CHAP_HOST).is_some()
}

impl Context {
    /// Returns the policy's entry of a host, if keys are required and it has one.
    pub(super) fn policy_host(&self, nqn: &str) -> Option<Arc<Host>> {
        let host = self.target().catalogue().policy().host(nqn).cloned()?;
        self.requires_keys().then_some(host)
    }

    /// Checks whether the host may connect to that subsystem with the credentials shown so far.
    /// Returns its keys if it has DH-HMAC-CHAP keys. With keys required, the host is checked before
    /// the subsystem, and all refusals look alike.
    pub(super) fn check_host(
        &self,
        host: &str,
        subsystem: &str,
    ) -> Result<Option<InBandKey>, ConnectRefusal> {
        if !self.requires_keys() {
            // A PSK is optional here, but its identity must match.
            return self.check_identity(host, subsystem).map(|()| None);
        }
        let policy_entry = self
            .policy_host(host)
            .ok_or_else(|| ConnectRefusal::access_denied(refusal_text(Refusal::NotAllowed)))?;
        self.check_identity(host, subsystem)?;
        let has_chap = has_chap(&policy_entry);
        let required = match policy_entry.authenticate(&self.caller(host)) {
            Ok(()) => false,
            Err(Refusal::InBandRequired) if has_chap => true,
            Err(refusal) => return Err(ConnectRefusal::access_denied(refusal_text(refusal))),
        };
        Ok(has_chap.then_some(InBandKey { key: policy_entry.key, required }))
    }

    /// Checks that the PSK of the channel is for this host and subsystem (NVMe/TCP 1.0 §3.6.1.2).
    fn check_identity(&self, host: &str, subsystem: &str) -> Result<(), ConnectRefusal> {
        let Some(channel) = &self.peer().channel else { return Ok(()) };
        let identity = Identity::parse(&channel.identity);
        if identity.is_some_and(|identity| identity.is_for(host, subsystem)) {
            Ok(())
        } else {
            Err(ConnectRefusal::access_denied("its TLS key is for another host or disk"))
        }
    }

    /// Returns type and grant of a subsystem for this port and host.
    ///
    /// # Errors
    /// Fails if the subsystem is unknown, access is denied, or another host uses it.
    pub(super) fn find_subsystem(
        &self,
        nqn: &str,
        host: &str,
    ) -> Result<(ControllerType, Option<Grant>), Refusal> {
        if nqn == DISCOVERY_NQN {
            return Ok((ControllerType::Discovery, None));
        }
        if matches!(self.port(), Port::Discovery { .. }) {
            return Err(Refusal::Unknown);
        }
        Ok((ControllerType::Io, Some(self.grant(nqn, host)?)))
    }

    fn grant(&self, nqn: &str, host: &str) -> Result<Grant, Refusal> {
        self.target().catalogue().grant(&self.caller(host), &nqn::export_id(nqn))
    }

    /// Returns the current grant of the host of a controller, or `None` if the disk is gone or
    /// access is denied.
    pub(super) fn current_grant(&self, controller: &Controller) -> Option<Grant> {
        self.grant(controller.subsystem(), controller.host().nqn()).ok()
    }

    /// Returns the refusal of a subsystem: controller busy while another host uses it; else Subnqn invalid
    /// without keys, host denied with keys.
    pub(super) fn subsystem_refusal(&self, refusal: Refusal) -> ConnectRefusal {
        let reason = refusal_text(refusal);
        if refusal == Refusal::OtherHost {
            return ConnectRefusal::new(Status::CONNECT_CONTROLLER_BUSY, 0, Some(reason));
        }
        if self.requires_keys() {
            return ConnectRefusal::access_denied(reason);
        }
        let status = Status::CONNECT_INVALID_PARAMETERS.dnr();
        ConnectRefusal::new(status, ConnectField::Subnqn.dw0(), Some(reason))
    }

    /// Checks the host of a controller against the current policy. `pending` is the key that the
    /// host must still authenticate with.
    pub(super) fn check_still_allowed(
        &self,
        controller: &Controller,
        pending: Option<KeyId>,
    ) -> Result<(), Refusal> {
        if !self.requires_keys() {
            return Ok(());
        }
        let nqn = controller.host().nqn();
        let host = self.policy_host(nqn).ok_or(Refusal::NotAllowed)?;
        // Before authentication, the host must still have the keys of its Connect.
        if let Some(key) = pending {
            let same = host.key == key && has_chap(&host);
            return if same { Ok(()) } else { Err(Refusal::NotAllowed) };
        }
        host.authenticate(&self.caller(nqn))?;
        match (controller.kind(), self.grant(controller.subsystem(), nqn)) {
            // A disk that is gone may come back.
            (ControllerType::Discovery, _) | (_, Ok(_) | Err(Refusal::Unknown)) => Ok(()),
            (_, Err(refusal)) => Err(refusal),
        }
    }

    /// Returns whether orphaned writes to the disk are in flight. Checked for unauthenticated hosts
    /// as well, because access is not checked again after authentication.
    pub(super) fn has_orphaned_writes(&self, subsystem: &str) -> bool {
        let export = self.target().catalogue().find(&nqn::export_id(subsystem));
        export.is_some_and(|export| export.has_orphans())
    }
}
