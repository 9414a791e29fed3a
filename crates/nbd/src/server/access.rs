//! Access checks, when the client chooses an export and whenever policy or exports change, and the
//! events that report them.

use std::sync::Arc;

use export::{Access, Caller, Event, Export, Grant, Host, Reason, Refusal, Step};

use super::negotiation::MAX_REFUSALS;
use super::session::{Attachment, Phase, Session};

impl Session {
    /// Returns the host whose key or certificate authenticated the channel.
    fn host(&self) -> Option<Arc<Host>> {
        let channel = self.peer.channel.as_ref()?;
        self.server.catalogue.policy().host_of(channel).cloned()
    }

    /// Returns the name of the client for events: its host NQN, else its TLS identity, else an
    /// empty string.
    fn host_name(&self) -> String {
        let shown = || self.peer.channel.as_ref().map(|channel| channel.identity.clone());
        self.host().map(|host| host.nqn.clone()).or_else(shown).unwrap_or_default()
    }

    fn with_caller<T>(&self, question: impl FnOnce(&Caller<'_>) -> T) -> T {
        let host = self.host();
        let name = host.as_ref().map_or("", |host| &host.nqn);
        question(&Caller { peer: &self.peer, host: name, proven: None })
    }

    /// Returns the exports visible to the client.
    pub(super) fn visible(&self) -> Vec<Arc<Export>> {
        self.with_caller(|caller| self.server.catalogue.visible(caller))
    }

    /// Returns the access of the client to the export `name`. Reports a refusal.
    pub(super) fn grant(&mut self, name: &str) -> Option<Grant> {
        match self.with_caller(|caller| self.server.catalogue.grant_short(caller, name)) {
            Ok(grant) => Some(grant),
            Err(refusal) => {
                self.report_refused(name, why(refusal));
                None
            }
        }
    }

    /// Reports that the pending choice timed out while writes of closed connections were in flight.
    pub(super) fn report_choice_timeout(&mut self) {
        if let Some(held) = self.negotiation.pending_choice.take() {
            let why = "the disk has not ended writes of a connection that was lost";
            self.report_refused(held.name(), why);
        }
    }

    /// Reports a refusal, up to [`MAX_REFUSALS`] per connection.
    fn report_refused(&mut self, wanted: &str, why: &'static str) {
        if self.negotiation.refusals < MAX_REFUSALS {
            self.negotiation.refusals += 1;
            let (peer, host) = (self.peer.clone(), self.host_name());
            let wanted = wanted.to_owned();
            self.out.push_back(Step::Report(Event::Refused { peer, host, wanted, why }));
        }
    }

    /// Enters the transmission phase with the chosen export.
    pub(super) fn attach(&mut self, grant: Grant, flags: u16) {
        let export = grant.export().clone();
        let host = self.host_name();
        let status = self.negotiation.context.as_ref().is_some_and(|id| *id == export.id);
        self.attachment = Some(Attachment {
            grant,
            flags,
            mode: self.negotiation.mode,
            status,
            host: host.clone(),
            attached: true,
            generation: self.negotiation.generation,
            read: 0,
            written: 0,
        });
        self.phase = Phase::Transmission;
        let peer = self.peer.clone();
        self.out.push_back(Step::Report(Event::Attached { export, peer, host, proven: None }));
    }

    /// Reports that the client no longer uses the export.
    pub(super) fn detach(&mut self, reason: Reason) {
        let Some(attachment) = &mut self.attachment else { return };
        if !std::mem::replace(&mut attachment.attached, false) {
            return;
        }
        let (export, host) = (attachment.grant.export().clone(), attachment.host.clone());
        let (peer, read, written) = (self.peer.clone(), attachment.read, attachment.written);
        let detached = Event::Detached { export, peer, host, reason, read, written };
        self.out.push_back(Step::Report(detached));
    }

    /// Handles a change of shared state.
    pub(super) fn changed(&mut self) {
        if let Some(held) = self.negotiation.pending_choice.take() {
            return self.choose(held);
        }
        self.recheck_access();
        for _ in 0..self.blocked_writes.len() {
            if let Some(request) = self.blocked_writes.pop_front() {
                self.admit(request);
            }
        }
    }

    /// Repeats the access check if the catalogue has changed.
    fn recheck_access(&mut self) {
        let generation = self.server.catalogue.generation();
        let Some(attachment) =
            self.attachment.as_mut().filter(|attachment| attachment.generation != generation)
        else {
            return;
        };
        attachment.generation = generation;
        let export = attachment.grant.export().clone();
        match self.with_caller(|caller| self.server.catalogue.grant(caller, &export.id)) {
            Ok(grant) if Arc::ptr_eq(grant.export(), &export) => self.update_grant(grant),
            // Another disk, or the same with other parameters: the client has to reconnect.
            Ok(_) => self.close(Reason::Ended),
            // Requests fail with ESHUTDOWN from now on.
            Err(Refusal::Unknown) => self.detach(Reason::Ended),
            Err(refusal) => {
                self.report_refused(&export.short, why(refusal));
                self.close(Reason::Refused);
            }
        }
    }

    /// Applies changed access. Access is never raised above what was advertised: the client has to
    /// reconnect for that.
    fn update_grant(&mut self, grant: Grant) {
        let Some(attachment) = &mut self.attachment else { return };
        let before = attachment.grant.access();
        let grant = grant.with_fence_of(&attachment.grant);
        attachment.grant = if before == Access::ReadOnly { grant.read_only() } else { grant };
    }
}

fn why(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Unknown => "no disk of that name is exported to this host",
        Refusal::NotAllowed => "access denied to this host",
        Refusal::TlsRequired => "TLS with its key is required",
        Refusal::ChapRequired => "its key is for NVMe/TCP only",
    }
}
