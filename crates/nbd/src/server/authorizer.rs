//! The access of the client of one connection, and the reports of what it is refused.

use std::sync::Arc;

use export::{Caller, Catalogue, Event, Export, ExportId, Grant, Host, MAX_TEXT, Peer, Refusal};

use super::outbox::Outbox;

/// Maximum number of refusals reported per connection.
const MAX_REFUSALS: u8 = 4;

/// Maximum number of characters of a name that are reported.
const MAX_NAME: usize = MAX_TEXT / char::MAX_LEN_UTF8;

/// Checks the access of one client.
#[derive(Debug)]
pub(super) struct Authorizer {
    catalogue: Arc<Catalogue>,
    peer: Peer,
    /// Number of refusals reported.
    refusals: u8,
}

impl Authorizer {
    pub(super) fn new(catalogue: Arc<Catalogue>, peer: Peer) -> Self {
        Self { catalogue, peer, refusals: 0 }
    }

    pub(super) fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Returns the generation of the catalogue. An access check is to be repeated when it changes.
    pub(super) fn generation(&self) -> u64 {
        self.catalogue.generation()
    }

    /// Returns the host whose key or certificate authenticated the channel.
    fn host(&self) -> Option<Arc<Host>> {
        let channel = self.peer.channel.as_ref()?;
        self.catalogue.policy().host_of(channel).cloned()
    }

    /// Returns the name of the client for events: its identifier in the policy, else its TLS identity, else an
    /// empty string.
    pub(super) fn host_name(&self) -> String {
        let shown = || self.peer.channel.as_ref().map(|channel| channel.identity.clone());
        self.host().map(|host| host.id.clone()).or_else(shown).unwrap_or_default()
    }

    fn with_caller<T>(&self, question: impl FnOnce(&Caller<'_>) -> T) -> T {
        let host = self.host();
        let name = host.as_ref().map_or("", |host| &host.id);
        question(&Caller { peer: &self.peer, host: name, proven: None })
    }

    /// Returns the exports visible to the client.
    pub(super) fn visible(&self) -> Vec<Arc<Export>> {
        self.with_caller(|caller| self.catalogue.visible(caller))
    }

    /// Returns the access of the client to the export `name`. Reports a refusal.
    ///
    /// # Errors
    /// Fails if there is no such export for the client, or if another host uses it.
    pub(super) fn grant(&mut self, name: &str, out: &mut Outbox) -> Result<Grant, Refusal> {
        let grant = self.with_caller(|caller| self.catalogue.grant_short(caller, name));
        grant.inspect_err(|refusal| self.report_refused(name, reason(*refusal), out))
    }

    /// Repeats the access check of an export.
    pub(super) fn grant_again(&self, id: &ExportId) -> Result<Grant, Refusal> {
        self.with_caller(|caller| self.catalogue.grant(caller, id))
    }

    /// Reports that access to the export `name` was withdrawn.
    pub(super) fn report_withdrawn(&mut self, name: &str, refusal: Refusal, out: &mut Outbox) {
        self.report_refused(name, reason(refusal), out);
    }

    /// Reports that the export `name` was chosen, but writes of closed connections to it did not
    /// complete in time.
    pub(super) fn report_choice_timeout(&mut self, name: &str, out: &mut Outbox) {
        let reason = "the disk has not ended writes of a connection that was lost";
        self.report_refused(name, reason, out);
    }

    /// Reports a refusal, up to [`MAX_REFUSALS`] per connection.
    fn report_refused(&mut self, wanted: &str, reason: &'static str, out: &mut Outbox) {
        if self.refusals < MAX_REFUSALS {
            self.refusals += 1;
            let (peer, host) = (self.peer.clone(), self.host_name());
            let wanted = wanted.chars().take(MAX_NAME).collect();
            out.report(Event::Refused { peer, host, wanted, reason });
        }
    }
}

fn reason(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Unknown => "no disk of that name is exported to this host",
        Refusal::NotAllowed => "access denied to this host",
        Refusal::TlsRequired => "TLS with its key is required",
        Refusal::InBandRequired => "its key is for NVMe/TCP only",
        Refusal::OtherHost => {
            "another host uses this home directory, or was lost without having detached it"
        }
    }
}
