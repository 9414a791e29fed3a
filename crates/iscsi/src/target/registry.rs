//! The sessions of all connections: their handles, and reinstatement (RFC 7143 §6.3.5).

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use export::{Fence, Grant, KeyId};

/// What identifies a session of this target to its initiator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SessionId {
    /// The name of the initiator.
    pub(super) initiator: String,
    /// The keys by which it has proven that name.
    pub(super) proven: Option<KeyId>,
    pub(super) isid: [u8; 6],
    /// The name of the target.
    pub(super) target: String,
}

/// A session in full feature phase.
#[derive(Debug)]
pub(super) struct Registration {
    id: SessionId,
    tsih: u16,
    /// `None` for a discovery session.
    fence: Option<Arc<Fence>>,
    /// The state of an overlay that it uses. Sessions with another one use other data.
    state: Option<usize>,
    /// Whether another session has replaced it.
    replaced: AtomicBool,
    /// How far it has come with a reset of the logical unit by another session.
    reset: AtomicU8,
}

/// No reset.
const NO_RESET: u8 = 0;
/// A reset was requested.
const RESET_REQUESTED: u8 = 1;
/// Its tasks are being aborted.
const RESETTING: u8 = 2;

impl Registration {
    /// Returns the handle of the session; never zero.
    pub(super) fn tsih(&self) -> u16 {
        self.tsih
    }

    /// Returns whether another session has replaced this one.
    pub(super) fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::Acquire)
    }

    /// Returns whether another session has requested a reset since the last call. The tasks are then
    /// to be aborted.
    pub(super) fn begin_reset(&self) -> bool {
        let from = (RESET_REQUESTED, RESETTING);
        self.reset.compare_exchange(from.0, from.1, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Notes that the tasks of a reset are off the disk. The other sessions must be notified.
    pub(super) fn end_reset(&self) {
        let from = (RESETTING, NO_RESET);
        let _ = self.reset.compare_exchange(from.0, from.1, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Returns whether its tasks may be on the disk after a reset.
    pub(super) fn is_resetting(&self) -> bool {
        self.reset.load(Ordering::Acquire) != NO_RESET
    }
}

/// All sessions in full feature phase.
#[derive(Debug, Default)]
pub(super) struct Registry(Mutex<Sessions>);

#[derive(Debug, Default)]
struct Sessions {
    live: Vec<Weak<Registration>>,
    last_tsih: u16,
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, Sessions> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Revokes the right to write of every session with that identity, which must then end. Returns
    /// whether there were any that did not know; the other sessions must be notified.
    pub(super) fn replace(&self, id: &SessionId) -> bool {
        let mut sessions = self.lock();
        sessions.live.retain(|session| session.strong_count() != 0);
        let live: Vec<_> = sessions.live.iter().filter_map(Weak::upgrade).collect();
        drop(sessions);
        let same = live.iter().filter(|session| session.id == *id);
        same.fold(false, |found, session| {
            session.fence.iter().for_each(|fence| fence.close());
            !session.replaced.swap(true, Ordering::AcqRel) || found
        })
    }

    /// Registers a session with what it may access; `None` for a discovery session. Returns `None` if
    /// no handle is free.
    pub(super) fn register(
        &self,
        id: SessionId,
        grant: Option<&Grant>,
    ) -> Option<Arc<Registration>> {
        let mut sessions = self.lock();
        sessions.live.retain(|session| session.strong_count() != 0);
        let taken: Vec<u16> =
            sessions.live.iter().filter_map(|it| it.upgrade().map(|it| it.tsih)).collect();
        let last = sessions.last_tsih;
        let candidates = (1..=u16::MAX).map(|n| last.wrapping_add(n));
        let tsih = candidates.into_iter().find(|tsih| *tsih != 0 && !taken.contains(tsih))?;
        sessions.last_tsih = tsih;
        let session = Arc::new(Registration {
            id,
            tsih,
            fence: grant.map(|grant| grant.fence().clone()),
            state: grant.and_then(Grant::state),
            replaced: AtomicBool::new(false),
            reset: AtomicU8::new(NO_RESET),
        });
        sessions.live.push(Arc::downgrade(&session));
        Some(session)
    }

    /// Returns the other sessions of its logical unit: those of its target that use the same data.
    fn others(&self, own: &Registration) -> Vec<Arc<Registration>> {
        let live: Vec<_> = self.lock().live.iter().filter_map(Weak::upgrade).collect();
        let is_other = |it: &Arc<Registration>| {
            (&it.id.target, it.state) == (&own.id.target, own.state) && it.tsih != own.tsih
        };
        live.into_iter().filter(is_other).collect()
    }

    /// Returns whether its logical unit has other sessions.
    pub(super) fn has_others(&self, own: &Registration) -> bool {
        !self.others(own).is_empty()
    }

    /// Requests the reset from every other session of the logical unit. Returns them; they must be
    /// notified.
    pub(super) fn reset_others(&self, own: &Registration) -> Vec<Weak<Registration>> {
        let request = |other: &Arc<Registration>| {
            other.reset.store(RESET_REQUESTED, Ordering::Release);
            Arc::downgrade(other)
        };
        self.others(own).iter().map(request).collect()
    }

    /// Returns whether a session has that handle.
    pub(super) fn has(&self, tsih: u16) -> bool {
        self.lock().live.iter().filter_map(Weak::upgrade).any(|session| session.tsih == tsih)
    }
}
