//! What the policy says of the client, when it chooses an export and whenever something changes, and what the owner is told.

use std::sync::Arc;

use export::{Access, Caller, Event, Export, Grant, Host, Reason, Refusal, Step};

use super::haggle::REFUSALS;
use super::session::{Link, Phase, Session};

impl Session {
    /// The host whose key or certificate secures the channel.
    fn host(&self) -> Option<Arc<Host>> {
        let channel = self.peer.channel.as_ref()?;
        self.server.catalogue.policy().host_of(channel).cloned()
    }

    /// What the client is called: by its key, by what it showed, or not at all.
    fn host_name(&self) -> String {
        let shown = || self.peer.channel.as_ref().map(|channel| channel.identity.clone());
        self.host().map(|host| host.nqn.clone()).or_else(shown).unwrap_or_default()
    }

    fn ask<T>(&self, question: impl FnOnce(&Caller<'_>) -> T) -> T {
        let host = self.host();
        let name = host.as_ref().map_or("", |host| &host.nqn);
        question(&Caller { peer: &self.peer, host: name, proven: None })
    }

    /// What it may see.
    pub(super) fn visible(&self) -> Vec<Arc<Export>> {
        self.ask(|caller| self.server.catalogue.visible(caller))
    }

    /// What it may have of the export of that name. A refusal is reported.
    pub(super) fn grant(&mut self, name: &str) -> Option<Grant> {
        match self.ask(|caller| self.server.catalogue.grant_short(caller, name)) {
            Ok(grant) => Some(grant),
            Err(refusal) => {
                self.report_refused(name, why(refusal));
                None
            }
        }
    }

    /// Reports that the client has chosen an export and waited for the writes of ended connections in vain.
    pub(super) fn report_waiting(&mut self) {
        if let Some(held) = self.haggle.held.take() {
            let why = "the disk has not ended writes of a connection that was lost";
            self.report_refused(held.name(), why);
        }
    }

    /// The first few of a connection are told.
    fn report_refused(&mut self, wanted: &str, why: &'static str) {
        if self.haggle.refusals < REFUSALS {
            self.haggle.refusals += 1;
            let (peer, host) = (self.peer.clone(), self.host_name());
            let wanted = wanted.to_owned();
            self.out.push_back(Step::Report(Event::Refused { peer, host, wanted, why }));
        }
    }

    /// The client has chosen: requests are to come.
    pub(super) fn attach(&mut self, grant: Grant, flags: u16) {
        let export = grant.export().clone();
        let host = self.host_name();
        let status = self.haggle.context.as_ref().is_some_and(|nqn| *nqn == export.nqn);
        self.link = Some(Link {
            grant,
            flags,
            mode: self.haggle.mode,
            status,
            host: host.clone(),
            attached: true,
            generation: self.haggle.generation,
            read: 0,
            written: 0,
        });
        self.phase = Phase::Live;
        let peer = self.peer.clone();
        self.out.push_back(Step::Report(Event::Attached { export, peer, host, proven: None }));
    }

    /// The client has the export no longer.
    pub(super) fn detach(&mut self, reason: Reason) {
        let Some(link) = &mut self.link else { return };
        if !std::mem::replace(&mut link.attached, false) {
            return;
        }
        let (export, host) = (link.grant.export().clone(), link.host.clone());
        let (peer, read, written) = (self.peer.clone(), link.read, link.written);
        let detached = Event::Detached { export, peer, host, reason, read, written };
        self.out.push_back(Step::Report(detached));
    }

    /// Something outside has changed.
    pub(super) fn changed(&mut self) {
        if let Some(held) = self.haggle.held.take() {
            return self.choose(held);
        }
        self.ask_again();
        for _ in 0..self.contending.len() {
            if let Some(request) = self.contending.pop_front() {
                self.admit(request);
            }
        }
    }

    /// Whether the client may still have what it has.
    fn ask_again(&mut self) {
        let generation = self.server.catalogue.generation();
        let Some(link) = self.link.as_mut().filter(|link| link.generation != generation) else {
            return;
        };
        link.generation = generation;
        let export = link.grant.export().clone();
        match self.ask(|caller| self.server.catalogue.grant(caller, &export.nqn)) {
            Ok(grant) if Arc::ptr_eq(grant.export(), &export) => self.renew(grant),
            // Another disk, or the same one lent in another way: the client must look at it anew.
            Ok(_) => self.close(Reason::Ended),
            // Its requests are answered with ESHUTDOWN.
            Err(Refusal::Unknown) => self.detach(Reason::Ended),
            Err(refusal) => {
                self.report_refused(&export.short, why(refusal));
                self.close(Reason::Refused);
            }
        }
    }

    /// What may be done with the export may have changed. More than was said at first is not: the client must ask anew.
    fn renew(&mut self, grant: Grant) {
        let Some(link) = &mut self.link else { return };
        let before = link.grant.access();
        let grant = grant.with_fence_of(&link.grant);
        link.grant = if before == Access::ReadOnly { grant.read_only() } else { grant };
    }
}

/// For the owner.
fn why(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Unknown => "no disk of that name is lent to this host",
        Refusal::NotAllowed => "access denied to this host",
        Refusal::TlsRequired => "it must come over TLS with its key",
        Refusal::ChapRequired => "its key is for NVMe/TCP only",
    }
}
