//! The host of an export that is for one host at a time.

use crate::OverlayHost;

/// The only host of an export. One that has written, and whose connections end before it has said that it is done,
/// may come back with a file system that it has mounted: no other host may have changed it meanwhile.
#[derive(Debug)]
pub(super) struct OnlyHost {
    host: OverlayHost,
    /// Writes of its connections that have ended.
    writes: u64,
    /// Writes of all of its connections when it said that it was done.
    writes_at_leave: u64,
}

impl OnlyHost {
    pub(super) fn new(host: &OverlayHost) -> Self {
        Self { host: host.clone(), writes: 0, writes_at_leave: 0 }
    }

    /// Returns whether it is this host.
    pub(super) fn is(&self, host: &OverlayHost) -> bool {
        self.host == *host
    }

    /// Records that it is done, with that many writes by its present connections.
    pub(super) fn leave(&mut self, writes: u64) {
        self.writes_at_leave = self.writes.saturating_add(writes);
    }

    /// Counts the writes of a connection that has ended. Returns whether the next host may have the export, once no
    /// connection of this one is left: it has not written since it said that it was done.
    pub(super) fn ended(&mut self, writes: u64) -> bool {
        self.writes = self.writes.saturating_add(writes);
        self.writes == self.writes_at_leave
    }
}
