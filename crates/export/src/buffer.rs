//! Page-aligned memory for payloads, drawn from a bounded pool. It knows no disk and no socket.
//!
//! A thread has one [`Pool`]; each connection has an [`Account`] with it, which bounds what that connection may hold at
//! once. All threads' pools draw on one [`Budget`], which bounds what a host may hold, and all together. A [`Buffer`] goes
//! back to the pool when it is dropped.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::sync::Arc;

use crate::budget::{Budget, Purpose, Share};
use crate::{Network, Tenant};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// The alignment of every buffer, and the smallest one, in bytes.
pub const PAGE: usize = 4096;

/// What an account may hold however many there are, in bytes.
const LEAST: usize = 1 << 18;

/// Size classes are `PAGE << 0` to `PAGE << (CLASSES - 1)`: 4 KiB to 1 MiB.
const CLASSES: usize = 9;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

type Pages = Box<[Page]>;

/// A thread's memory for payloads: free buffers by size, and the bound on what its connections hold together.
#[derive(Clone)]
pub struct Pool(Rc<Shared>);

struct Shared {
    /// Bytes that all accounts together should stay below.
    limit: usize,
    accounts: Cell<usize>,
    cached: Cell<usize>,
    free: RefCell<[Vec<Pages>; CLASSES]>,
    budget: Arc<Budget>,
    /// Whether memory was refused lately that only other connections can give back.
    is_short: Cell<bool>,
}

impl Pool {
    /// The largest buffer that there is, in bytes.
    pub const MAX_BUFFER: usize = PAGE << (CLASSES - 1);

    /// A pool whose accounts share `limit` bytes, with a budget of its own.
    pub fn new(limit: usize) -> Self {
        Self::with_budget(limit, Budget::new(usize::MAX))
    }

    /// A pool whose accounts share `limit` bytes, as far as `budget` has them.
    pub fn with_budget(limit: usize, budget: Arc<Budget>) -> Self {
        let free = RefCell::new([const { Vec::new() }; CLASSES]);
        let (accounts, cached, is_short) = Default::default();
        Self(Rc::new(Shared { limit, accounts, cached, free, budget, is_short }))
    }

    /// Opens an account for one connection, of nobody in particular. It may hold an equal share of the pool, and one buffer
    /// of any size, as far as the budget has it.
    pub fn open(&self) -> Account {
        self.open_for(Tenant::Network(Network::of((IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0).into())))
    }

    /// The same, for a connection of that host.
    pub fn open_for(&self, tenant: Tenant) -> Account {
        Account::open(&self.0, self.0.budget.share(tenant), Purpose::Transfer)
    }

    /// Whether memory was refused, since this was asked last, that only connections elsewhere can give back: then sessions
    /// are to be [polled](crate::Session::poll) again after a while.
    pub fn was_short(&self) -> bool {
        self.0.is_short.take()
    }

    /// Gives the free buffers back to the system: for a thread that has gone idle.
    pub fn trim(&self) {
        self.0.trim();
    }

    /// Bytes in free buffers, kept for the next request.
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
            // The system has none left: what is kept may be of use.
            self.trim();
            fresh()
        })?;
        self.budget.allocate(PAGE << class);
        Some(pages)
    }

    fn trim(&self) {
        self.free.borrow_mut().iter_mut().for_each(|class| *class = Vec::new());
        self.budget.free(self.cached.take());
    }

    fn give_back(&self, pages: Pages) {
        let bytes = pages.len() * PAGE;
        if self.cached.get() + bytes <= self.limit && self.budget.is_roomy() {
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

/// The smallest class that holds `len` bytes; `len` is at most [`Pool::MAX_BUFFER`].
fn class_of(len: usize) -> usize {
    len.div_ceil(PAGE).next_power_of_two().trailing_zeros() as usize
}

/// One connection's account with its thread's [`Pool`].
#[derive(Clone)]
pub struct Account(Rc<Ledger>);

struct Ledger {
    pool: Rc<Shared>,
    host: Arc<Share>,
    purpose: Purpose,
    held: Cell<usize>,
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.pool.accounts.set(self.pool.accounts.get() - 1);
    }
}

impl Account {
    fn open(pool: &Rc<Shared>, host: Arc<Share>, purpose: Purpose) -> Self {
        pool.accounts.set(pool.accounts.get() + 1);
        Self(Rc::new(Ledger { pool: pool.clone(), host, purpose, held: Cell::new(0) }))
    }

    /// A buffer of `len` bytes, or nothing: when the account is at its bound (wait until one of its buffers comes back), its
    /// host or all hosts are at theirs, the system has no memory (wait, or ask again after a while), or `len` is above
    /// [`Pool::MAX_BUFFER`]. What the buffer holds is whatever was there before.
    pub fn take(&self, len: usize) -> Option<Buffer> {
        if len > Pool::MAX_BUFFER {
            return None;
        }
        let class = class_of(len);
        let held = self.0.held.get();
        if held != 0 && held + (PAGE << class) > self.share() {
            return None;
        }
        let Ledger { pool, host, purpose, .. } = &*self.0;
        if !host.take(*purpose, PAGE << class, held == 0) {
            pool.is_short.set(true);
            return None;
        }
        let Some(pages) = pool.pages(class) else {
            host.give_back(*purpose, PAGE << class);
            pool.is_short.set(true);
            return None;
        };
        self.0.held.set(held + (PAGE << class));
        Some(Buffer { pages, len, account: self.0.clone() })
    }

    /// Another account of the same host with the same pool, for another purpose.
    pub fn sibling(&self, purpose: Purpose) -> Self {
        Self::open(&self.0.pool, self.0.host.clone(), purpose)
    }

    /// Bytes that this account may hold: an equal part of the pool, but not less than [`LEAST`].
    pub fn share(&self) -> usize {
        (self.0.pool.limit / self.0.pool.accounts.get().max(1)).max(LEAST)
    }

    /// Bytes that this account's buffers hold now.
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
        write!(f, "Pool({} bytes, {} accounts)", self.0.limit, self.0.accounts.get())
    }
}

/// Memory for one payload, page-aligned. Goes back to its pool on drop.
pub struct Buffer {
    pages: Pages,
    len: usize,
    account: Rc<Ledger>,
}

impl Buffer {
    /// The payload.
    pub fn bytes(&self) -> &[u8] {
        self.pages.as_bytes().get(..self.len).unwrap_or_default()
    }

    /// The payload, to be filled.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.pages.as_mut_bytes().get_mut(..self.len).unwrap_or_default()
    }

    /// Bytes of the payload.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the payload is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let pages = std::mem::take(&mut self.pages);
        let bytes = pages.len() * PAGE;
        self.account.held.set(self.account.held.get() - bytes);
        self.account.host.give_back(self.account.purpose, bytes);
        self.account.pool.give_back(pages);
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
    fn buffers_are_page_aligned_and_of_the_length_asked_for() {
        let account = Pool::new(1 << 20).open();
        for len in [1, 512, 4096, 4097, 131_072] {
            let buffer = account.take(len).unwrap();
            assert_eq!(buffer.bytes().as_ptr().addr() % PAGE, 0);
            assert_eq!(buffer.bytes().len(), len);
        }
    }

    #[test]
    fn an_account_is_bounded_and_recovers_when_a_buffer_comes_back() {
        let account = Pool::new(1 << 20).open();
        let held: Vec<_> = (0..16).map(|_| account.take(16 * PAGE).unwrap()).collect();
        assert!(account.take(PAGE).is_none());
        drop(held);
        assert_eq!(account.held(), 0);
        assert!(account.take(PAGE).is_some());
    }

    #[test]
    fn an_account_that_holds_nothing_gets_one_buffer_of_any_size() {
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
        let _crowd: Vec<_> = (0..1000).map(|_| pool.open()).collect();
        assert_eq!(first.share(), LEAST);
    }

    #[test]
    fn what_the_budget_does_not_have_is_refused_and_that_is_known() {
        let budget = Budget::new(0);
        let pools = [
            Pool::with_budget(64 << 20, budget.clone()),
            Pool::with_budget(64 << 20, budget.clone()),
        ];
        let accounts = pools.each_ref().map(Pool::open);
        let mut held = Vec::new();
        held.extend(std::iter::from_fn(|| accounts[0].take(Pool::MAX_BUFFER)));
        assert!(!held.is_empty() && held.len() < 12 && pools[0].was_short());
        // Another purpose has memory of its own, and the first buffer of another account has some, too.
        assert!(accounts[0].sibling(Purpose::SecondPhase).take(Pool::MAX_BUFFER).is_some());
        assert!(accounts[1].take(Pool::MAX_BUFFER).is_some());
        assert!(!pools[0].was_short() && !pools[1].was_short());
        drop(held);
        drop((accounts, pools));
        assert_eq!(budget.allocated(), 0);
    }

    #[test]
    fn free_buffers_are_used_again_and_trimmed() {
        let pool = Pool::new(1 << 20);
        let account = pool.open();
        let address = account.take(PAGE).unwrap().bytes().as_ptr().addr();
        assert_eq!(pool.cached(), PAGE);
        assert_eq!(account.take(PAGE).unwrap().bytes().as_ptr().addr(), address);
        pool.trim();
        assert_eq!(pool.cached(), 0);
    }
}
