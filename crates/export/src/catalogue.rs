//! The exports that are lent just now, and what a peer may see and have of them. It knows no protocol.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use crate::{Export, Grant, Peer};

/// Why a peer does not get an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Nothing of that name is lent.
    Unknown,
}

/// The exports that are lent just now. Shared by all sessions.
#[derive(Debug, Default)]
pub struct Catalogue {
    lent: RwLock<Vec<Arc<Export>>>,
    generation: AtomicU64,
}

impl Catalogue {
    /// Lends `export` from now on, in place of one of the same name if there is one.
    pub fn lend(&self, export: Arc<Export>) {
        let mut lent = self.lent.write().unwrap_or_else(|poison| poison.into_inner());
        lent.retain(|other| other.nqn != export.nqn);
        lent.push(export);
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Lends the export of that name no longer, and has its requests fail. Tells whether there was one.
    pub fn withdraw(&self, nqn: &str) -> Option<Arc<Export>> {
        let mut lent = self.lent.write().unwrap_or_else(|poison| poison.into_inner());
        let export = lent.iter().position(|export| export.nqn == nqn).map(|at| lent.remove(at))?;
        export.withdraw();
        self.generation.fetch_add(1, Ordering::Release);
        Some(export)
    }

    /// A number that grows with each change of what is lent.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The export of that name, whoever asks.
    pub fn find(&self, nqn: &str) -> Option<Arc<Export>> {
        let lent = self.lent.read().unwrap_or_else(|poison| poison.into_inner());
        lent.iter().find(|export| export.nqn == nqn).cloned()
    }

    /// Policy, first question: what may this peer see? In the order in which they were lent.
    pub fn visible(&self, _peer: &Peer) -> Vec<Arc<Export>> {
        self.lent.read().unwrap_or_else(|poison| poison.into_inner()).clone()
    }

    /// Policy, second question: what may this peer have of the export of that name?
    ///
    /// # Errors
    /// The reason why it gets nothing.
    pub fn grant(&self, _peer: &Peer, nqn: &str) -> Result<Grant, Refusal> {
        let export = self.find(nqn).ok_or(Refusal::Unknown)?;
        Ok(Grant::new(export))
    }
}
