//! The access of the initiator of one connection, and the reports of what it is refused.

use std::sync::Arc;

use export::{
    Auth, Caller, Catalogue, Event, Export, ExportId, Grant, Host, KeyId, MAX_TEXT, Peer, Refusal,
};

use super::outbox::Outbox;
use crate::credential::allows_md5;
use crate::iqn;
use crate::wire::login::Status;

/// Maximum number of characters of a name that are reported.
const MAX_NAME: usize = MAX_TEXT / char::MAX_LEN_UTF8;

/// Why a login is refused: the status for the initiator, and the reason for the administrator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LoginRefusal {
    pub(super) status: Status,
    pub(super) reason: &'static str,
}

impl From<Refusal> for LoginRefusal {
    fn from(refusal: Refusal) -> Self {
        let (status, reason) = match refusal {
            Refusal::Unknown => (Status::NOT_FOUND, "no such disk is exported to this host"),
            Refusal::NotAllowed => (Status::FORBIDDEN, "access denied to this host"),
            Refusal::TlsRequired => (Status::AUTHENTICATION_FAILURE, "its key is not for CHAP"),
            Refusal::InBandRequired => {
                (Status::AUTHENTICATION_FAILURE, "CHAP authentication was not completed")
            }
            Refusal::OtherHost => (
                Status::UNAVAILABLE,
                "another host uses this home directory, or was lost without having detached it",
            ),
        };
        Self { status, reason }
    }
}

/// Checks the access of one initiator.
#[derive(Debug)]
pub(super) struct Authorizer {
    catalogue: Arc<Catalogue>,
    peer: Peer,
    /// The name of the initiator, in lower case; empty before it is known.
    pub(super) initiator: String,
    /// The secrets that it has proven by CHAP.
    pub(super) proven: Option<KeyId>,
}

impl Authorizer {
    pub(super) fn new(catalogue: Arc<Catalogue>, peer: Peer) -> Self {
        Self { catalogue, peer, initiator: String::new(), proven: None }
    }

    pub(super) fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Returns the generation of the catalogue. An access check is to be repeated when it changes.
    pub(super) fn generation(&self) -> u64 {
        self.catalogue.generation()
    }

    /// Returns the entry of the initiator in the policy.
    pub(super) fn host(&self) -> Option<Arc<Host>> {
        self.catalogue.policy().host(&self.initiator).cloned()
    }

    /// Returns whether any host may use MD5. Then all are challenged with it, known or not: otherwise
    /// the choice of the algorithm would show which names the policy has.
    pub(super) fn offers_md5(&self) -> bool {
        self.catalogue.policy().hosts.iter().any(|host| allows_md5(host))
    }

    fn caller(&self) -> Caller<'_> {
        Caller { peer: &self.peer, host: &self.initiator, proven: self.proven }
    }

    /// Returns whether the initiator must still authenticate.
    pub(super) fn must_authenticate(&self) -> bool {
        self.peer.auth == Auth::Required && self.catalogue.authenticate(&self.caller()).is_err()
    }

    /// Checks that the initiator has authenticated as far as it must.
    pub(super) fn authenticate(&self) -> Result<(), LoginRefusal> {
        let found = self.catalogue.authenticate(&self.caller());
        found.map(drop).map_err(LoginRefusal::from)
    }

    /// Returns the exports visible to the initiator.
    pub(super) fn visible(&self) -> Vec<Arc<Export>> {
        self.catalogue.visible(&self.caller())
    }

    /// Returns the access of the initiator to the target of that name.
    pub(super) fn grant(&self, target: &str) -> Result<Grant, LoginRefusal> {
        self.authenticate()?;
        // A target that the initiator may not see is reported as unknown.
        let visible = self.visible();
        let export = visible.iter().find(|export| iqn::of(&export.id) == target);
        let id = export.map(|export| &export.id).ok_or(Refusal::Unknown)?;
        Ok(self.catalogue.grant(&self.caller(), id)?)
    }

    /// Repeats the access check of an export.
    pub(super) fn grant_again(&self, id: &ExportId) -> Result<Grant, Refusal> {
        self.catalogue.grant(&self.caller(), id)
    }

    /// Reports that access to `wanted` was refused.
    pub(super) fn report_refused(&self, wanted: &str, reason: &'static str, out: &mut Outbox) {
        let cut = |name: &str| name.chars().take(MAX_NAME).collect();
        let (peer, host, wanted) = (self.peer.clone(), cut(&self.initiator), cut(wanted));
        out.report(Event::Refused { peer, host, wanted, reason });
    }
}
