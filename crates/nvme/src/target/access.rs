//! Access checks against the policy, and reports of attached and detached exports.

use std::sync::Arc;

use export::{Auth, Caller, Event, Grant, Host, Reason, Refusal, Step};

use super::auth::{InBandAuth, transaction};
use super::controller::{ByteCounts, ControllerType};
use super::fabrics::ConnectRefusal;
use super::queue::Queue;
use super::{HANDSHAKE_TIMEOUT, Port};
use crate::auth::chap::Names;
use crate::auth::psk::Identity;
use crate::nqn;
use crate::status::Status;
use crate::wire::fabrics::{ConnectField, DISCOVERY_NQN};

/// Returns the reason of a refusal for the administrator.
fn refusal_text(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Unknown => "no such disk is exported here",
        Refusal::NotAllowed => "access denied to this host",
        Refusal::TlsRequired => "TLS is required for this host",
        Refusal::ChapRequired => "DH-HMAC-CHAP authentication was not completed",
    }
}

impl Queue {
    /// Returns the caller for the policy: peer, host NQN, authenticated key.
    pub(super) fn caller<'a>(&'a self, host: &'a str) -> Caller<'a> {
        Caller { peer: &self.peer, host, proven: self.authenticated_key() }
    }

    /// Returns the policy's entry of this queue's host, if keys are required and it has one.
    pub(super) fn policy_host(&self) -> Option<Arc<Host>> {
        let nqn = &self.binding.as_ref()?.controller.host.nqn;
        let host = self.target.catalogue.policy().host(nqn).cloned()?;
        (self.peer.auth == Auth::Required).then_some(host)
    }

    /// Checks whether the host may connect to that subsystem with the credentials shown so far.
    /// Returns the authentication state if the host has DH-HMAC-CHAP keys. With keys required, the
    /// host is checked before the subsystem, and all refusals look alike.
    pub(super) fn check_host(
        &self,
        host: &str,
        subsystem: &str,
        qid: u16,
    ) -> Result<Option<InBandAuth>, ConnectRefusal> {
        if self.peer.auth == Auth::None {
            // A PSK is optional here, but its identity must match.
            return self.check_identity(host, subsystem).map(|()| None);
        }
        let policy = self.target.catalogue.policy();
        let policy_entry = policy
            .host(host)
            .ok_or_else(|| ConnectRefusal::access_denied(refusal_text(Refusal::NotAllowed)))?;
        self.check_identity(host, subsystem)?;
        let required = match policy_entry.authenticate(&self.caller(host)) {
            Ok(()) => false,
            Err(Refusal::ChapRequired) => true,
            Err(refusal) => return Err(ConnectRefusal::access_denied(refusal_text(refusal))),
        };
        if policy_entry.chap.is_none() {
            return Ok(None);
        }
        let names = Names { host: host.to_owned(), subsystem: subsystem.to_owned() };
        let secured = self.peer.channel.is_some();
        let transaction = transaction(names, &self.target.config, qid, secured);
        Ok(Some(InBandAuth::new(
            transaction,
            policy_entry.key,
            required,
            self.opened_at + HANDSHAKE_TIMEOUT,
        )))
    }

    /// Checks that the PSK of the channel is for this host and subsystem (NVMe/TCP 1.0 §3.6.1.2).
    fn check_identity(&self, host: &str, subsystem: &str) -> Result<(), ConnectRefusal> {
        let Some(channel) = &self.peer.channel else { return Ok(()) };
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
    /// Returns the reason if the subsystem is unknown or access is denied.
    pub(super) fn find_subsystem(
        &self,
        nqn: &str,
        host: &str,
    ) -> Result<(ControllerType, Option<Grant>), &'static str> {
        if nqn == DISCOVERY_NQN {
            return Ok((ControllerType::Discovery, None));
        }
        if matches!(self.port, Port::Discovery { .. }) {
            return Err(refusal_text(Refusal::Unknown));
        }
        let grant = self.target.catalogue.grant(&self.caller(host), &nqn::export_id(nqn));
        grant.map(|grant| (ControllerType::Io, Some(grant))).map_err(refusal_text)
    }

    /// Returns the current grant of the host, or `None` if the disk is gone or access is denied.
    pub(super) fn current_grant(&self, nqn: &str, host: &str) -> Option<Grant> {
        self.target.catalogue.grant(&self.caller(host), &nqn::export_id(nqn)).ok()
    }

    /// Returns the refusal of a subsystem: Subnqn invalid without keys, host denied with keys.
    pub(super) fn subsystem_refusal(&self, why: &'static str) -> ConnectRefusal {
        match self.peer.auth {
            Auth::None => {
                let status = Status::CONNECT_INVALID_PARAMETERS.dnr();
                ConnectRefusal::new(status, ConnectField::Subnqn.dw0(), Some(why))
            }
            Auth::Required => ConnectRefusal::access_denied(why),
        }
    }

    /// Closes the connection if the access of its host was revoked. Returns whether it was.
    pub(super) fn close_if_revoked(&mut self) -> bool {
        let Err(refusal) = self.check_still_allowed() else { return false };
        if self.admin.is_some() {
            self.report_refused(refusal_text(refusal));
        }
        self.close(Reason::Refused);
        true
    }

    /// Checks the host of this queue against the current policy.
    fn check_still_allowed(&self) -> Result<(), Refusal> {
        let Some(binding) = self.binding.as_ref().filter(|_| self.peer.auth == Auth::Required)
        else {
            return Ok(());
        };
        let controller = &binding.controller;
        let host = self.policy_host().ok_or(Refusal::NotAllowed)?;
        // Before authentication, the host must still have the keys of its Connect.
        if let Some(auth) = self.auth.as_ref().filter(|auth| auth.is_pending()) {
            let same = host.key == auth.key && host.chap.is_some();
            return if same { Ok(()) } else { Err(Refusal::NotAllowed) };
        }
        host.authenticate(&self.caller(&controller.host.nqn))?;
        let grant = self
            .target
            .catalogue
            .grant(&self.caller(&controller.host.nqn), &nqn::export_id(&controller.subsystem));
        match (controller.kind, grant) {
            // A disk that is gone may come back.
            (ControllerType::Discovery, _) | (_, Ok(_) | Err(Refusal::Unknown)) => Ok(()),
            (_, Err(refusal)) => Err(refusal),
        }
    }

    /// Updates the grant after the disk was removed, replaced or came back.
    pub(super) fn refresh_grant(&mut self) {
        let controller = self.binding.as_ref().map(|binding| binding.controller.clone());
        let controller =
            controller.filter(|one| one.kind == ControllerType::Io && !self.is_unauthenticated());
        let Some(controller) = controller else { return };
        let grant = self.current_grant(&controller.subsystem, &controller.host.nqn);
        let Some(binding) = &mut self.binding else { return };
        binding.set_grant(grant);
        let now = binding.grant.as_ref().filter(|_| binding.qid == 0).map(Grant::export);
        let same = match (&binding.attached, now) {
            (Some(before), Some(now)) => Arc::ptr_eq(before, now),
            (before, now) => before.is_none() && now.is_none(),
        };
        if !same {
            let now = now.cloned();
            self.report_attached(now, Reason::Ended);
        }
    }

    /// Reports the export that the host has attached from now on, and the detach of the one before.
    pub(super) fn report_attached(&mut self, now: Option<Arc<export::Export>>, reason: Reason) {
        let proven = self.authenticated_key();
        let Some(binding) = &mut self.binding else { return };
        if binding.attached.is_none() && now.is_none() {
            return;
        }
        let (peer, host) = (self.peer.clone(), binding.controller.host.nqn.clone());
        let byte_counts = binding.controller.byte_counts();
        let before = std::mem::replace(&mut binding.before, byte_counts);
        if let Some(export) = std::mem::replace(&mut binding.attached, now.clone()) {
            let ByteCounts { read, written } = byte_counts.since(before);
            self.steps.push_back(Step::Report(Event::Detached {
                export,
                peer: peer.clone(),
                host: host.clone(),
                reason,
                read,
                written,
            }));
        }
        if let Some(export) = now {
            self.steps.push_back(Step::Report(Event::Attached { export, peer, host, proven }));
        }
    }
}
