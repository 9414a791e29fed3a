//! Page-aligned payload buffers from a bounded pool.
//!
//! Each thread has one [`Pool`], and each connection an [`Account`] with it, which limits what the
//! connection may hold. The pools of all threads draw on one [`Budget`], which limits each tenant
//! and the process. A [`Buffer`] returns to its pool when it is dropped.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use crate::budget::{Budget, Purpose, Share};
use crate::{Network, Tenant};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Alignment of every buffer, and the smallest allocation, in bytes.
pub const PAGE: usize = 4096;

/// The least that an account may hold, in bytes, however many accounts the pool has.
const MIN_SHARE: usize = 1 << 18;

/// How many bytes an account charges to its share in advance. It keeps at most twice as many that it
/// does not hold.
const AHEAD: usize = 1 << 16;

/// Size classes are `PAGE << 0` to `PAGE << (CLASSES - 1)`: 4 KiB to 1 MiB.
const CLASSES: usize = 9;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

/// What the driver keeps with the memory of a buffer.
pub type Kept = Option<Rc<dyn Any>>;

/// Memory of the pool.
#[derive(Default)]
struct Pages {
    pages: Box<[Page]>,
    /// What the driver keeps with it.
    kept: Kept,
}

/// A thread's payload memory: cached buffers by size, and the limit of its accounts together.
#[derive(Clone)]
pub struct Pool(Rc<Shared>);

struct Shared {
    /// Bytes that the accounts divide among themselves. Not a hard limit: see [`MIN_SHARE`].
    limit: usize,
    accounts: RefCell<Vec<Weak<AccountState>>>,
    cached: Cell<usize>,
    free: RefCell<[Vec<Pages>; CLASSES]>,
    budget: Arc<Budget>,
    /// Whether the budget or the system refused memory since [`Pool::was_short`] was called.
    is_short: Cell<bool>,
    /// Whether accounts may have charged what they do not hold.
    may_have_unused: Cell<bool>,
    /// [`Budget::refused`] when [`Pool::was_short`] was called.
    refused: Cell<usize>,
}

impl Pool {
    /// The largest buffer, in bytes.
    pub const MAX_BUFFER: usize = PAGE << (CLASSES - 1);

    /// Returns a pool whose accounts share `limit` bytes, with an unlimited budget of its own.
    pub fn new(limit: usize) -> Self {
        Self::with_budget(limit, Budget::new(usize::MAX))
    }

    /// Returns a pool whose accounts share `limit` bytes, within `budget`.
    pub fn with_budget(limit: usize, budget: Arc<Budget>) -> Self {
        let free = RefCell::new([const { Vec::new() }; CLASSES]);
        Self(Rc::new(Shared {
            limit,
            accounts: RefCell::default(),
            cached: Cell::default(),
            free,
            budget,
            is_short: Cell::default(),
            may_have_unused: Cell::default(),
            refused: Cell::default(),
        }))
    }

    /// Opens an account for one connection, charged to a tenant that stands for no host in
    /// particular. Within the budget, the account may hold an equal share of the pool, or one
    /// buffer of any size.
    pub fn open(&self) -> Account {
        self.open_for(Tenant::Network(Network::of((IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0).into())))
    }

    /// Opens an account for one connection, charged to `tenant`.
    pub fn open_for(&self, tenant: Tenant) -> Account {
        Account::open(&self.0, self.0.budget.share(tenant), Purpose::Transfer)
    }

    /// Returns whether an account was refused memory since the last call for want of budget or of
    /// system memory. No event of the connection itself announces that this memory is free, so the
    /// driver must [poll](crate::Session::poll) its sessions again after a while. To be called in each
    /// turn: memory that another thread was refused may be charged here in advance.
    pub fn was_short(&self) -> bool {
        let refused = self.0.budget.refused();
        if self.0.refused.replace(refused) != refused {
            self.0.give_back_unused();
        }
        self.0.is_short.take()
    }

    /// Frees the cached buffers, and gives back what is charged in advance. To be called when the
    /// thread becomes idle.
    pub fn trim(&self) {
        self.0.trim();
        self.0.give_back_unused();
    }

    /// Returns whether there may be something to [trim](Pool::trim).
    pub fn has_unused(&self) -> bool {
        self.cached() > 0 || self.0.may_have_unused.get()
    }

    /// Returns the number of bytes in cached buffers.
    pub fn cached(&self) -> usize {
        self.0.cached.get()
    }
}

impl Shared {
    fn pages(&self, class: usize) -> Option<Pages> {
        if let Some(pages) = self.free.borrow_mut()[class].pop() {
            self.cached.set(self.cached.get() - (PAGE << class));
            return Some(pages);
        }
        let fresh = || <[Page]>::new_box_zeroed_with_elems(1 << class).ok();
        let pages = fresh().or_else(|| {
            // Out of memory: free the cache and try once more.
            self.trim();
            fresh()
        })?;
        self.budget.allocate(PAGE << class);
        Some(Pages { pages, kept: None })
    }

    /// Gives back what accounts have charged and do not hold.
    fn give_back_unused(&self) {
        if self.may_have_unused.take() {
            // A list of its own: the last reference to an account may be dropped here.
            let all: Vec<_> = self.accounts.borrow().iter().filter_map(Weak::upgrade).collect();
            all.iter().for_each(|account| account.give_back(account.unused()));
        }
    }

    fn trim(&self) {
        self.free.borrow_mut().iter_mut().for_each(|class| *class = Vec::new());
        self.budget.free(self.cached.take());
    }

    fn give_back(&self, pages: Pages) {
        let bytes = pages.pages.len() * PAGE;
        if self.cached.get() + bytes <= self.limit && self.budget.may_cache() {
            self.cached.set(self.cached.get() + bytes);
            self.free.borrow_mut()[class_of(bytes)].push(pages);
        } else {
            self.budget.free(bytes);
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.trim();
    }
}

/// Returns the smallest size class for `len` bytes; `len` is at most [`Pool::MAX_BUFFER`].
fn class_of(len: usize) -> usize {
    len.div_ceil(PAGE).next_power_of_two().trailing_zeros() as usize
}

/// What one connection holds of its thread's [`Pool`], for one [`Purpose`]. Clones are the same
/// account.
#[derive(Clone)]
pub struct Account(Rc<AccountState>);

struct AccountState {
    pool: Rc<Shared>,
    share: Arc<Share>,
    purpose: Purpose,
    held: Cell<usize>,
    /// Bytes that are charged to the share: those that are held, and some in advance.
    charged: Cell<usize>,
}

impl AccountState {
    fn unused(&self) -> usize {
        self.charged.get() - self.held.get()
    }

    /// Charges as much as is needed to hold `bytes` more. Returns false if the share refuses it.
    fn charge(&self, bytes: usize) -> bool {
        let Self { share, purpose, .. } = self;
        let need = bytes.saturating_sub(self.unused());
        if need == 0 {
            return true;
        }
        let ahead = need + AHEAD;
        let charged = if share.take_ahead(*purpose, ahead) {
            ahead
        } else if share.take(*purpose, need, self.held.get() == 0) {
            need
        } else {
            return false;
        };
        self.charged.set(self.charged.get() + charged);
        self.pool.may_have_unused.set(true);
        true
    }

    fn give_back(&self, bytes: usize) {
        if bytes > 0 {
            self.charged.set(self.charged.get() - bytes);
            self.share.give_back(self.purpose, bytes);
        }
    }
}

impl Drop for AccountState {
    fn drop(&mut self) {
        self.give_back(self.unused());
        // This one is among those without references.
        self.pool.accounts.borrow_mut().retain(|account| account.strong_count() > 0);
    }
}

impl Account {
    fn open(pool: &Rc<Shared>, share: Arc<Share>, purpose: Purpose) -> Self {
        let (held, charged) = Default::default();
        let state = Rc::new(AccountState { pool: pool.clone(), share, purpose, held, charged });
        pool.accounts.borrow_mut().push(Rc::downgrade(&state));
        Self(state)
    }

    /// Returns a buffer of `len` bytes with unspecified contents.
    ///
    /// Returns `None` if
    /// - the account is at its limit: retry when one of its buffers has been dropped;
    /// - the tenant or the process is at its limit, or the system is out of memory: retry after a
    ///   while (see [`Pool::was_short`]);
    /// - `len` is above [`Pool::MAX_BUFFER`].
    pub fn take(&self, len: usize) -> Option<Buffer> {
        if len > Pool::MAX_BUFFER {
            return None;
        }
        let class = class_of(len);
        let held = self.0.held.get();
        if held != 0 && held + (PAGE << class) > self.share() {
            return None;
        }
        let pool = &self.0.pool;
        let pages = if self.0.charge(PAGE << class) { pool.pages(class) } else { None };
        let Some(pages) = pages else {
            self.0.give_back(self.0.unused());
            pool.is_short.set(true);
            return None;
        };
        self.0.held.set(held + (PAGE << class));
        Some(Buffer { memory: Memory::Pages(pages), len, account: self.0.clone() })
    }

    /// Opens another account of the same tenant with the same pool, for `purpose`.
    pub fn sibling(&self, purpose: Purpose) -> Self {
        Self::open(&self.0.pool, self.0.share.clone(), purpose)
    }

    /// Returns how many bytes this account may hold: an equal part of the pool, at least 256 KiB.
    pub fn share(&self) -> usize {
        (self.0.pool.limit / self.0.pool.accounts.borrow().len().max(1)).max(MIN_SHARE)
    }

    /// Returns how many bytes this account's buffers occupy now.
    pub fn held(&self) -> usize {
        self.0.held.get()
    }
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Account({} of {} bytes)", self.held(), self.share())
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({} bytes, {} accounts)", self.0.limit, self.0.accounts.borrow().len())
    }
}

/// A page-aligned buffer for one payload. Returns to its pool on drop.
pub struct Buffer {
    memory: Memory,
    len: usize,
    account: Rc<AccountState>,
}

/// Where the payload of a [`Buffer`] is.
enum Memory {
    Pages(Pages),
    /// And how many bytes the account is charged for it.
    InPlace(InPlace, usize),
}

impl Memory {
    fn charged(&self) -> usize {
        match self {
            Self::Pages(pages) => pages.pages.len() * PAGE,
            Self::InPlace(_, bytes) => *bytes,
        }
    }
}

/// Where the payload of a [`Buffer`] is, if it was not copied into the buffer: in memory of the
/// driver, which is the only one to use it. Other processes may change that memory at any time.
#[derive(Debug, Clone)]
pub struct InPlace {
    /// The driver's memory.
    pub memory: Rc<dyn Any>,
    /// Index of the first byte in it.
    pub start: usize,
}

impl Buffer {
    /// Returns the payload; empty if it is [in place](Buffer::in_place).
    pub fn bytes(&self) -> &[u8] {
        match &self.memory {
            Memory::Pages(pages) => pages.pages.as_bytes().get(..self.len).unwrap_or_default(),
            Memory::InPlace(..) => &[],
        }
    }

    /// Returns the payload for writing; empty if it is [in place](Buffer::in_place).
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Pages(pages) => {
                pages.pages.as_mut_bytes().get_mut(..self.len).unwrap_or_default()
            }
            Memory::InPlace(..) => &mut [],
        }
    }

    /// Makes the memory of the driver at `in_place` the payload. The buffer's own memory returns to
    /// its pool at once, but stays charged to the account until the buffer is dropped: that is what
    /// limits replies that wait to be sent. Only for a read that
    /// [allows](crate::Admitted::allow_in_place) it.
    pub fn set_in_place(&mut self, in_place: InPlace) {
        let in_place = Memory::InPlace(in_place, self.memory.charged());
        if let Memory::Pages(pages) = std::mem::replace(&mut self.memory, in_place) {
            self.account.pool.give_back(pages);
        }
    }

    /// Returns where the payload is, if not in the buffer's own bytes.
    pub fn in_place(&self) -> Option<&InPlace> {
        match &self.memory {
            Memory::Pages(_) => None,
            Memory::InPlace(in_place, _) => Some(in_place),
        }
    }

    /// Returns all of its memory, which may be longer than the payload, and what the driver keeps with
    /// that memory; `None` if the payload is [in place](Buffer::in_place). What is kept is dropped when
    /// the memory is freed, which may be long after the buffer.
    pub fn memory_mut(&mut self) -> Option<(&mut [u8], &mut Kept)> {
        match &mut self.memory {
            Memory::Pages(Pages { pages, kept }) => Some((pages.as_mut_bytes(), kept)),
            Memory::InPlace(..) => None,
        }
    }

    /// Returns the length of the payload in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether the payload is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl AccountState {
    fn take_back(&self, memory: Memory) {
        self.held.set(self.held.get() - memory.charged());
        let unused = self.unused();
        if unused > 2 * AHEAD {
            self.give_back(unused - AHEAD);
        }
        self.pool.may_have_unused.set(true);
        if let Memory::Pages(pages) = memory {
            self.pool.give_back(pages);
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let memory = std::mem::replace(&mut self.memory, Memory::Pages(Pages::default()));
        self.account.take_back(memory);
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.len)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn buffers_are_page_aligned_and_of_the_requested_length() {
        let account = Pool::new(1 << 20).open();
        for len in [1, 512, 4096, 4097, 131_072] {
            let buffer = account.take(len).unwrap();
            assert_eq!(buffer.bytes().as_ptr().addr() % PAGE, 0);
            assert_eq!(buffer.bytes().len(), len);
        }
    }

    #[test]
    fn account_at_its_limit_recovers_when_a_buffer_is_dropped() {
        let account = Pool::new(1 << 20).open();
        let held: Vec<_> = (0..16).map(|_| account.take(16 * PAGE).unwrap()).collect();
        assert!(account.take(PAGE).is_none());
        drop(held);
        assert_eq!(account.held(), 0);
        assert!(account.take(PAGE).is_some());
    }

    #[test]
    fn empty_account_gets_one_buffer_of_any_size() {
        let account = Pool::new(PAGE).open();
        assert!(account.take(Pool::MAX_BUFFER).is_some());
        assert!(account.take(Pool::MAX_BUFFER + 1).is_none());
    }

    #[test]
    fn accounts_share_the_pool_equally() {
        let pool = Pool::new(8 << 20);
        let first = pool.open();
        assert_eq!(first.share(), 8 << 20);
        let second = first.sibling(Purpose::SecondPhase);
        assert_eq!(first.share(), 4 << 20);
        drop(second);
        assert_eq!(first.share(), 8 << 20);
        let _others: Vec<_> = (0..1000).map(|_| pool.open()).collect();
        assert_eq!(first.share(), MIN_SHARE);
    }

    #[test]
    fn exhausted_budget_is_reported_as_shortage() {
        let budget = Budget::new(0);
        let pools = [
            Pool::with_budget(64 << 20, budget.clone()),
            Pool::with_budget(64 << 20, budget.clone()),
        ];
        let accounts = pools.each_ref().map(Pool::open);
        let mut held = Vec::new();
        held.extend(std::iter::from_fn(|| accounts[0].take(Pool::MAX_BUFFER)));
        assert!(!held.is_empty() && held.len() < 12 && pools[0].was_short());
        // Another purpose has its own memory, and so has the first buffer of another account.
        assert!(accounts[0].sibling(Purpose::SecondPhase).take(Pool::MAX_BUFFER).is_some());
        assert!(accounts[1].take(Pool::MAX_BUFFER).is_some());
        assert!(!pools[0].was_short() && !pools[1].was_short());
        drop(held);
        drop((accounts, pools));
        assert_eq!(budget.allocated(), 0);
    }

    #[test]
    fn advance_charges_return_when_another_is_refused() {
        let budget = Budget::new(0);
        let pools = [(); 2].map(|()| Pool::with_budget(64 << 20, budget.clone()));
        let many: Vec<_> = (0..64).map(|_| pools[0].open()).collect();
        let share = || format!("{:?}", many[0].0.share);
        many.iter().for_each(|account| drop(account.take(PAGE)));
        assert!(pools[0].has_unused() && share() != "Share(0 bytes)");
        let other = pools[1].open_for(Tenant::Host(crate::KeyId::new(1)));
        let held: Vec<_> = std::iter::from_fn(|| other.take(Pool::MAX_BUFFER)).collect();
        assert!(pools[1].was_short() && !pools[0].was_short());
        assert_eq!(share(), "Share(0 bytes)");
        drop((held, other));
        // An idle thread returns it by itself.
        drop(many[0].take(PAGE));
        assert!(pools[0].has_unused() && share() != "Share(0 bytes)");
        pools[0].trim();
        assert!(!pools[0].has_unused() && share() == "Share(0 bytes)");
    }

    #[test]
    fn payload_in_place_is_charged_until_it_is_dropped() {
        let pool = Pool::new(1 << 20);
        let account = pool.open();
        let mut buffer = account.take(2 * PAGE).unwrap();
        buffer.set_in_place(InPlace { memory: Rc::new(()), start: 0 });
        assert_eq!((account.held(), pool.cached()), (2 * PAGE, 2 * PAGE));
        drop(buffer);
        assert_eq!((account.held(), pool.cached()), (0, 2 * PAGE));
    }

    #[test]
    fn freed_buffers_are_cached_until_trimmed() {
        let pool = Pool::new(1 << 20);
        let account = pool.open();
        let address = account.take(PAGE).unwrap().bytes().as_ptr().addr();
        assert_eq!(pool.cached(), PAGE);
        assert_eq!(account.take(PAGE).unwrap().bytes().as_ptr().addr(), address);
        pool.trim();
        assert_eq!(pool.cached(), 0);
    }
}
