//! Who may have what: the one place where the target asks the policy, and says who has attached what. It knows no command.

use std::sync::Arc;

use export::{Auth, Caller, Event, Grant, Host, Reason, Refusal, Step};

use super::auth::{InBandAuth, conversation};
use super::controller::{Kind, Moved};
use super::fabrics::Refused;
use super::queue::Queue;
use super::{HANDSHAKE, Port};
use crate::auth::chap::Names;
use crate::auth::psk::Identity;
use crate::status::Status;
use crate::wire::fabrics::{ConnectField, DISCOVERY_NQN};

/// The sentence for the machine's owner.
fn why(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Unknown => "no such disk is lent here",
        Refusal::NotAllowed => "access denied to this host",
        Refusal::TlsRequired => "it came without TLS, which its key is for",
        Refusal::ChapRequired => "it has not proven its key (DH-HMAC-CHAP)",
    }
}

impl Queue {
    /// Who asks, with what was shown on this connection.
    pub(super) fn caller<'a>(&'a self, host: &'a str) -> Caller<'a> {
        Caller { peer: &self.peer, host, proven: self.proven() }
    }

    /// The host that this queue is of, if the owner knows it just now and keys are needed.
    pub(super) fn known_host(&self) -> Option<Arc<Host>> {
        let nqn = &self.link.as_ref()?.controller.host.nqn;
        let host = self.target.catalogue.policy().host(nqn).cloned()?;
        (self.peer.auth == Auth::Required).then_some(host)
    }

    /// Whether the host may connect to that subsystem by what it has shown so far. Where keys are needed, what there is
    /// comes after who asks, and every refusal looks alike.
    pub(super) fn admit(
        &self,
        host: &str,
        subsystem: &str,
        qid: u16,
    ) -> Result<Option<InBandAuth>, Refused> {
        if self.peer.auth == Auth::None {
            // Nothing need be shown, but what is shown must be true.
            return self.check_identity(host, subsystem).map(|()| None);
        }
        let policy = self.target.catalogue.policy();
        let known = policy.host(host).ok_or_else(|| Refused::host(why(Refusal::NotAllowed)))?;
        self.check_identity(host, subsystem)?;
        let required = match known.accepts(&self.caller(host)) {
            Ok(()) => false,
            Err(Refusal::ChapRequired) => true,
            Err(refusal) => return Err(Refused::host(why(refusal))),
        };
        if known.chap.is_none() {
            return Ok(None);
        }
        let names = Names { host: host.to_owned(), subsystem: subsystem.to_owned() };
        let secured = self.peer.channel.is_some();
        let conversation = conversation(names, &self.target.rules, qid, secured);
        Ok(Some(InBandAuth::new(conversation, known.key, required, self.opened + HANDSHAKE)))
    }

    /// A key was made for one host and one subsystem, and is of use for nothing else (NVMe/TCP 1.0 §3.6.1.2).
    fn check_identity(&self, host: &str, subsystem: &str) -> Result<(), Refused> {
        let Some(channel) = &self.peer.channel else { return Ok(()) };
        let identity = Identity::parse(&channel.identity);
        if identity.is_some_and(|identity| identity.is_of(host, subsystem)) {
            Ok(())
        } else {
            Err(Refused::host("came with a key that was made for another host or disk"))
        }
    }

    /// The subsystem of that name, as far as this port and the policy have it for the host.
    ///
    /// # Errors
    /// Why it gets nothing.
    pub(super) fn find_subsystem(
        &self,
        nqn: &str,
        host: &str,
    ) -> Result<(Kind, Option<Grant>), &'static str> {
        if nqn == DISCOVERY_NQN {
            return Ok((Kind::Discovery, None));
        }
        if matches!(self.port, Port::Discovery { .. }) {
            return Err(why(Refusal::Unknown));
        }
        let grant = self.target.catalogue.grant(&self.caller(host), nqn);
        grant.map(|grant| (Kind::Io, Some(grant))).map_err(why)
    }

    /// What the host may do with the disk of that name just now; nothing if it is gone.
    pub(super) fn lent(&self, nqn: &str, host: &str) -> Option<Grant> {
        self.target.catalogue.grant(&self.caller(host), nqn).ok()
    }

    /// A refusal of a subsystem: as if it were not there at an open auth, as if the host were not known elsewhere.
    pub(super) fn refused_subsystem(&self, why: &'static str) -> Refused {
        match self.peer.auth {
            Auth::None => {
                let status = Status::CONNECT_INVALID_PARAMETERS.dnr();
                Refused::new(status, ConnectField::Subnqn.dw0(), Some(why))
            }
            Auth::Required => Refused::host(why),
        }
    }

    /// The policy may have changed: closes the connection of a host that is no longer let in. Tells whether it did.
    pub(super) fn is_turned_out(&mut self) -> bool {
        let Err(refusal) = self.stands() else { return false };
        if self.admin.is_some() {
            self.report_refused(why(refusal));
        }
        self.close(Reason::Refused);
        true
    }

    /// Whether the host of this queue may go on.
    fn stands(&self) -> Result<(), Refusal> {
        let Some(link) = self.link.as_ref().filter(|_| self.peer.auth == Auth::Required) else {
            return Ok(());
        };
        let controller = &link.controller;
        let host = self.known_host().ok_or(Refusal::NotAllowed)?;
        // Until it has proven something, its keys must be those with which it began.
        if let Some(auth) = self.auth.as_ref().filter(|auth| auth.is_due()) {
            let same = host.key == auth.key && host.chap.is_some();
            return if same { Ok(()) } else { Err(Refusal::NotAllowed) };
        }
        host.accepts(&self.caller(&controller.host.nqn))?;
        let grant =
            self.target.catalogue.grant(&self.caller(&controller.host.nqn), &controller.subsystem);
        match (controller.kind, grant) {
            // A disk that is gone may come back.
            (Kind::Discovery, _) | (_, Ok(_) | Err(Refusal::Unknown)) => Ok(()),
            (_, Err(refusal)) => Err(refusal),
        }
    }

    /// The disk of this queue may have gone, come back or been replaced.
    pub(super) fn refresh(&mut self) {
        let controller = self.link.as_ref().map(|link| link.controller.clone());
        let controller = controller.filter(|one| one.kind == Kind::Io && !self.is_unproven());
        let Some(controller) = controller else { return };
        let grant = self.lent(&controller.subsystem, &controller.host.nqn);
        let Some(link) = &mut self.link else { return };
        link.set_grant(grant);
        let now = link.grant.as_ref().filter(|_| link.qid == 0).map(Grant::export);
        let same = match (&link.attached, now) {
            (Some(before), Some(now)) => Arc::ptr_eq(before, now),
            (before, now) => before.is_none() && now.is_none(),
        };
        if !same {
            let now = now.cloned();
            self.report_attached(now, Reason::Ended);
        }
    }

    /// Says which disk the host has attached from now on, if any, and no longer holds on to the one before.
    pub(super) fn report_attached(&mut self, now: Option<Arc<export::Export>>, reason: Reason) {
        let proven = self.proven();
        let Some(link) = &mut self.link else { return };
        if link.attached.is_none() && now.is_none() {
            return;
        }
        let (peer, host) = (self.peer.clone(), link.controller.host.nqn.clone());
        let moved = link.controller.moved();
        let before = std::mem::replace(&mut link.before, moved);
        if let Some(export) = std::mem::replace(&mut link.attached, now.clone()) {
            let Moved { read, written } = moved.since(before);
            self.out.push_back(Step::Report(Event::Detached {
                export,
                peer: peer.clone(),
                host: host.clone(),
                reason,
                read,
                written,
            }));
        }
        if let Some(export) = now {
            self.out.push_back(Step::Report(Event::Attached { export, peer, host, proven }));
        }
    }
}
