//! How much payload memory there is in all, and how much of it one host may hold.
//!
//! Memory that waits for different things is counted apart, so that none waits for another in a circle
//! (docs/decisions/002). Of each part a host may hold as much as is left free: one host alone gets a half, two get a third
//! each, and whoever comes next finds some (dynamic thresholds: Choudhury and Hahne, IEEE/ACM ToN 6(2), 1998). An account
//! that holds nothing yet may have all of that, the others half, so that each gets its turn.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::Tenant;

/// What payload memory is for, by what it waits for before it comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Transfers in order of arrival: waits for the peer, or the disk. Whoever waits for it does not stop the stream.
    Transfer,
    /// Data that comes with its command: waits for its own bytes in the stream, and for the disk. Whoever waits for it
    /// stops the stream.
    Stream,
    /// What a command needs that holds memory already: waits for the disk, or for the peer to read.
    SecondPhase,
    /// Sealed records: waits for the peer to read.
    TlsRecords,
}

/// The parts of a budget, in eighths.
const EIGHTHS: [(Purpose, usize); 4] = [
    (Purpose::Transfer, 3),
    (Purpose::Stream, 2),
    (Purpose::SecondPhase, 1),
    (Purpose::TlsRecords, 2),
];

/// The memory for payloads that all threads have together.
pub struct Budget {
    parts: [Part; 4],
    shares: Mutex<HashMap<Tenant, Weak<Share>>>,
    /// Bytes that are allocated, in use or kept for the next request.
    allocated: AtomicUsize,
    limit: usize,
}

struct Part {
    limit: usize,
    used: Counter,
}

/// A counter in cache lines of its own: threads that count for different purposes do not slow each other down.
#[derive(Default)]
#[repr(align(128))]
struct Counter(AtomicUsize);

/// What one host holds of a [`Budget`].
pub struct Share {
    budget: Arc<Budget>,
    used: [Counter; 4],
}

impl Budget {
    /// The least that a budget has, in bytes: several buffers of the largest size for each purpose.
    pub const MIN: usize = 32 << 20;

    /// A budget of `limit` bytes, but not less than [`Budget::MIN`].
    pub fn new(limit: usize) -> Arc<Self> {
        let limit = limit.max(Self::MIN);
        let part = |(_, eighths)| Part { limit: limit / 8 * eighths, used: Counter::default() };
        let allocated = AtomicUsize::new(0);
        Arc::new(Self { parts: EIGHTHS.map(part), shares: Mutex::default(), allocated, limit })
    }

    /// The share of a host.
    pub fn share(self: &Arc<Self>, tenant: Tenant) -> Arc<Share> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = shares.get(&tenant).and_then(Weak::upgrade) {
            return share;
        }
        // Of hosts that are gone.
        shares.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Share { budget: self.clone(), used: Default::default() });
        shares.insert(tenant, Arc::downgrade(&share));
        share
    }

    /// Bytes that are allocated now.
    pub fn allocated(&self) -> usize {
        self.allocated.load(Ordering::Relaxed)
    }

    pub(crate) fn allocate(&self, bytes: usize) {
        self.allocated.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn free(&self, bytes: usize) {
        self.allocated.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Whether memory that is given back may be kept for the next request: not while much of it is allocated already.
    pub(crate) fn is_roomy(&self) -> bool {
        self.allocated() <= self.limit / 2
    }
}

impl Share {
    /// Counts `bytes` for that purpose, if this host may have them. `is_first`: for an account that holds nothing.
    pub(crate) fn take(&self, purpose: Purpose, bytes: usize, is_first: bool) -> bool {
        let (limit, used, own) = self.of(purpose);
        let free = limit.saturating_sub(used.load(Ordering::Relaxed));
        let held = own.load(Ordering::Relaxed).saturating_add(bytes);
        let fits = held <= if is_first { free } else { free / 2 };
        // Counted after the check, so that what is refused keeps nobody else from memory. Threads that check at once may
        // exceed the limit by one buffer each.
        if fits {
            used.fetch_add(bytes, Ordering::Relaxed);
            own.fetch_add(bytes, Ordering::Relaxed);
        }
        fits
    }

    pub(crate) fn give_back(&self, purpose: Purpose, bytes: usize) {
        let (_, used, own) = self.of(purpose);
        used.fetch_sub(bytes, Ordering::Relaxed);
        own.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// The limit of that purpose, what all have of it, and what this host has.
    fn of(&self, purpose: Purpose) -> (usize, &AtomicUsize, &AtomicUsize) {
        let at = purpose as usize;
        let part = &self.budget.parts[at];
        (part.limit, &part.used.0, &self.used[at].0)
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Budget({} bytes, {} allocated)", self.limit, self.allocated())
    }
}

impl fmt::Debug for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let used: usize = self.used.iter().map(|used| used.0.load(Ordering::Relaxed)).sum();
        write!(f, "Share({used} bytes)")
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::KeyId;

    fn fill(share: &Share, purpose: Purpose, is_first: bool) -> usize {
        let mut held = 0;
        while share.take(purpose, 1 << 20, is_first) {
            held += 1 << 20;
        }
        held
    }

    #[test]
    fn x61_a_host_that_gives_nothing_back_leaves_room_for_others() {
        let budget = Budget::new(256 << 20);
        let greedy = budget.share(Tenant::Host(KeyId::new(1)));
        let part = 96 << 20;
        assert_eq!(fill(&greedy, Purpose::Transfer, true), part / 2);
        let mut left = part / 2;
        for host in 2..6 {
            let other = budget.share(Tenant::Host(KeyId::new(host)));
            let held = fill(&other, Purpose::Transfer, true);
            assert!(held >= left / 2 - (1 << 20), "{host}: {held}");
            left -= held;
        }
        // Memory held for one purpose does not reduce that for another.
        assert_eq!(fill(&greedy, Purpose::SecondPhase, true), 16 << 20);
    }

    #[test]
    fn accounts_with_memory_leave_room_for_those_without() {
        let budget = Budget::new(256 << 20);
        let share = budget.share(Tenant::Host(KeyId::new(1)));
        let held = fill(&share, Purpose::Stream, false);
        assert!(held <= (64 << 20) / 3 && share.take(Purpose::Stream, 1 << 20, true));
        share.give_back(Purpose::Stream, held + (1 << 20));
        assert_eq!(fill(&share, Purpose::Stream, true), 32 << 20);
    }

    #[test]
    fn refused_take_keeps_nobody_from_memory() {
        let budget = Budget::new(0);
        let greedy = budget.share(Tenant::Host(KeyId::new(1)));
        let modest = budget.share(Tenant::Host(KeyId::new(2)));
        std::thread::scope(|scope| {
            let refused = || (0..100_000).all(|_| !greedy.take(Purpose::Stream, 1 << 30, true));
            let refused = scope.spawn(refused);
            while !refused.is_finished() {
                assert!(modest.take(Purpose::Stream, 4096, true));
                modest.give_back(Purpose::Stream, 4096);
            }
            assert!(refused.join().unwrap());
        });
    }

    #[test]
    fn a_share_is_one_for_all_connections_of_a_host() {
        let budget = Budget::new(0);
        let one = budget.share(Tenant::Host(KeyId::new(1)));
        assert!(Arc::ptr_eq(&one, &budget.share(Tenant::Host(KeyId::new(1)))));
        assert!(!Arc::ptr_eq(&one, &budget.share(Tenant::Host(KeyId::new(2)))));
        drop(one);
        budget.share(Tenant::Host(KeyId::new(3)));
        let shares = budget.shares.lock().unwrap();
        assert_eq!(shares.len(), 1, "those of hosts that are gone are forgotten");
    }
}
