//! State that the connections of a worker thread share during a turn of its event loop.

use std::sync::Arc;
use std::time::Instant;

use super::blocking_pool::BlockingPool;
use super::ring::Ring;
use crate::Sink;
use crate::disk::Mappings;
use crate::inbox::Inbox;
use crate::topic::Changes;

/// The shared state.
pub(crate) struct Turn {
    pub(crate) ring: Ring,
    /// The inbox of this thread.
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) blocking_pool: BlockingPool,
    pub(crate) mappings: Mappings,
    /// The time at which the turn began.
    pub(crate) now: Instant,
    /// Changes of shared state to notify sessions of.
    pub(crate) changes: Changes,
    pub(crate) sink: Sink,
}
