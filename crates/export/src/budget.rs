//! Limits on payload memory: for the whole process, and for each tenant.
//!
//! Memory is accounted by [`Purpose`], that is by the event that frees it, so that no two waits can
//! form a cycle (docs/decisions/002). Within each part a tenant may hold as much as is still free:
//! one tenant alone gets a half, two get a third each, and a newcomer always finds some (dynamic
//! thresholds: Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998). An account
//! that holds nothing may take up to the whole free part, the others up to half of it, which
//! prevents starvation.
//!
//! An account charges its share for some memory in advance, so that the threads of a tenant do not
//! contend for the counters with each request. When a charge is refused, all threads give back what
//! is charged and not held: a busy one at the end of its turn, an idle one after a second.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::Tenant;

/// What payload memory is used for, by the event that frees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Transfers in order of arrival. Freed by the peer or by the disk. Waiting for this memory
    /// does not stop the receive stream.
    Transfer,
    /// Data that follows its command in the stream. Freed by the disk, after its own bytes have
    /// arrived. Waiting for this memory stops the receive stream.
    Stream,
    /// The second buffer of a command that already holds one. Freed by the disk, or by the peer
    /// when it reads.
    SecondPhase,
    /// Encrypted TLS records in the send queue. Freed by the peer when it reads.
    TlsRecords,
}

/// How a budget is divided, in eighths.
const EIGHTHS: [(Purpose, usize); 4] = [
    (Purpose::Transfer, 3),
    (Purpose::Stream, 2),
    (Purpose::SecondPhase, 1),
    (Purpose::TlsRecords, 2),
];

/// A tenant charges memory in advance only while it has at most this part of what is free.
const AHEAD_PART: usize = 8;

/// Limit on the payload memory of all threads together.
pub struct Budget {
    parts: [Part; 4],
    shares: Mutex<HashMap<Tenant, Weak<Share>>>,
    /// Bytes allocated, in use or cached.
    allocated: AtomicUsize,
    limit: usize,
    /// The number of charges that were refused.
    refused: AtomicUsize,
}

struct Part {
    limit: usize,
    used: Counter,
}

/// A counter on its own cache lines, against false sharing between purposes.
#[derive(Default)]
#[repr(align(128))]
struct Counter(AtomicUsize);

/// One tenant's use of a [`Budget`].
pub struct Share {
    budget: Arc<Budget>,
    used: [Counter; 4],
}

impl Budget {
    /// The smallest limit, in bytes: several buffers of the largest size for each purpose.
    pub const MIN: usize = 32 << 20;

    /// Returns a budget of `limit` bytes, at least [`Budget::MIN`].
    pub fn new(limit: usize) -> Arc<Self> {
        let limit = limit.max(Self::MIN);
        let part = |(_, eighths)| Part { limit: limit / 8 * eighths, used: Counter::default() };
        let (allocated, refused) = Default::default();
        let shares = Mutex::default();
        Arc::new(Self { parts: EIGHTHS.map(part), shares, allocated, limit, refused })
    }

    /// Returns the share of `tenant`, the same one for all its connections.
    pub fn share(self: &Arc<Self>, tenant: Tenant) -> Arc<Share> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = shares.get(&tenant).and_then(Weak::upgrade) {
            return share;
        }
        // Remove the entries of tenants without connections.
        shares.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Share { budget: self.clone(), used: Default::default() });
        shares.insert(tenant, Arc::downgrade(&share));
        share
    }

    /// Returns the number of bytes allocated now, in use or cached.
    pub fn allocated(&self) -> usize {
        self.allocated.load(Ordering::Relaxed)
    }

    /// Returns a number that changes when a charge is refused.
    pub(crate) fn refused(&self) -> usize {
        self.refused.load(Ordering::Relaxed)
    }

    pub(crate) fn allocate(&self, bytes: usize) {
        self.allocated.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn free(&self, bytes: usize) {
        self.allocated.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Returns whether a freed buffer may be cached: not while more than half of the limit is
    /// allocated.
    pub(crate) fn may_cache(&self) -> bool {
        self.allocated() <= self.limit / 2
    }
}

impl Share {
    /// Charges `bytes` to this tenant and returns true, if they are within its limit. `is_first`:
    /// the account holds nothing yet.
    pub(crate) fn take(&self, purpose: Purpose, bytes: usize, is_first: bool) -> bool {
        let fits = self.take_within(purpose, bytes, if is_first { 1 } else { 2 });
        if !fits {
            self.budget.refused.fetch_add(1, Ordering::Relaxed);
        }
        fits
    }

    /// Charges `bytes`, a part of them in advance, and returns true, if plenty is free.
    pub(crate) fn take_ahead(&self, purpose: Purpose, bytes: usize) -> bool {
        let (limit, used, _) = self.counters(purpose);
        used.load(Ordering::Relaxed) <= limit / 2 && self.take_within(purpose, bytes, AHEAD_PART)
    }

    /// Charges `bytes` if the tenant then has at most one `part`th of what is free.
    fn take_within(&self, purpose: Purpose, bytes: usize, part: usize) -> bool {
        let (limit, used, own) = self.counters(purpose);
        let free = limit.saturating_sub(used.load(Ordering::Relaxed));
        let held = own.load(Ordering::Relaxed).saturating_add(bytes);
        let fits = held <= free / part;
        // Charged after the check, so that a refused request does not reduce what others may take.
        // Threads that check at the same time may exceed the limit by one buffer each.
        if fits {
            used.fetch_add(bytes, Ordering::Relaxed);
            own.fetch_add(bytes, Ordering::Relaxed);
        }
        fits
    }

    pub(crate) fn give_back(&self, purpose: Purpose, bytes: usize) {
        let (_, used, own) = self.counters(purpose);
        used.fetch_sub(bytes, Ordering::Relaxed);
        own.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Returns the limit for `purpose`, the bytes used by all tenants and those used by this one.
    fn counters(&self, purpose: Purpose) -> (usize, &AtomicUsize, &AtomicUsize) {
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
    fn x61_tenant_that_frees_nothing_leaves_memory_for_others() {
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
    fn account_with_memory_leaves_some_for_one_without() {
        let budget = Budget::new(256 << 20);
        let share = budget.share(Tenant::Host(KeyId::new(1)));
        let held = fill(&share, Purpose::Stream, false);
        assert!(held <= (64 << 20) / 3 && share.take(Purpose::Stream, 1 << 20, true));
        share.give_back(Purpose::Stream, held + (1 << 20));
        assert_eq!(fill(&share, Purpose::Stream, true), 32 << 20);
    }

    #[test]
    fn refused_take_does_not_reduce_what_others_may_take() {
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
    fn connections_of_one_tenant_have_one_share() {
        let budget = Budget::new(0);
        let one = budget.share(Tenant::Host(KeyId::new(1)));
        assert!(Arc::ptr_eq(&one, &budget.share(Tenant::Host(KeyId::new(1)))));
        assert!(!Arc::ptr_eq(&one, &budget.share(Tenant::Host(KeyId::new(2)))));
        drop(one);
        budget.share(Tenant::Host(KeyId::new(3)));
        let shares = budget.shares.lock().unwrap();
        assert_eq!(shares.len(), 1, "shares of tenants without connections are removed");
    }
}
