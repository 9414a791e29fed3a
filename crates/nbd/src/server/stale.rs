//! Writes that the disk still has though their connections are gone: whoever chooses the same export next must not write
//! anything newer before they have landed. It knows no session.

use std::sync::{Arc, Mutex, MutexGuard};

use export::Export;

/// The exports with such writes, and how many connections left them behind.
#[derive(Debug, Default)]
pub(super) struct Stale(Mutex<Vec<(Arc<Export>, u32)>>);

impl Stale {
    fn all(&self) -> MutexGuard<'_, Vec<(Arc<Export>, u32)>> {
        self.0.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Whether there are such writes to `export`.
    pub(super) fn has(&self, export: &Arc<Export>) -> bool {
        self.all().iter().any(|(other, _)| Arc::ptr_eq(other, export))
    }

    /// A connection leaves some behind.
    pub(super) fn enter(&self, export: &Arc<Export>) {
        let mut all = self.all();
        match all.iter_mut().find(|(other, _)| Arc::ptr_eq(other, export)) {
            Some((_, count)) => *count = count.saturating_add(1),
            None => all.push((export.clone(), 1)),
        }
    }

    /// All that a connection left behind have landed.
    pub(super) fn leave(&self, export: &Arc<Export>) {
        let mut all = self.all();
        if let Some((_, count)) = all.iter_mut().find(|(other, _)| Arc::ptr_eq(other, export)) {
            *count = count.saturating_sub(1);
        }
        all.retain(|(_, count)| *count != 0);
    }
}
