//! What the connections that use an export do: their writes in flight, and statistics.
//!
//! Each connection counts on cache lines of its own, so that requests on different threads do not
//! contend for them. What concerns all connections (whether writes are held back, and sums) goes
//! through a lock, which is taken when a connection begins or ends, and never for a request.

mod counters;
mod only_host;

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::overlay::Claim;
use crate::reservation::{Notices, is_write};
use crate::{
    Export, Fault, Op, OverlayHost, Registrant, ReservationCommand, ReservationError,
    ReservationNotice, ReservationStore, Reservations,
};
pub(crate) use counters::Counters;
pub use counters::Usage;
use counters::{CHANGED, CLOSED, COUNT, HELD, NO_READS, NO_WRITES};
use only_host::OnlyHost;
pub use only_host::{Association, Keeper};

/// The most notices that wait for a connection. Later ones are lost.
const MAX_NOTICES: usize = 64;

/// A connection that uses an export, as long as it has a grant or requests in flight.
#[derive(Debug)]
pub(crate) struct Activity {
    export: Arc<Export>,
    counters: Arc<Counters>,
    pub(crate) claim: Option<Claim>,
}

impl Activity {
    /// Returns the use of `export` by a connection of `host`, or `None` if the export is for one host at a
    /// time, and another one uses it.
    pub(crate) fn new(
        export: Arc<Export>,
        claim: Option<Claim>,
        host: &OverlayHost,
    ) -> Option<Rc<Self>> {
        let only = Some(host).filter(|_| export.is_for_one_host());
        let counters = export.connections().open(only)?;
        Some(Rc::new(Self { export, counters, claim }))
    }

    /// Returns the use of `export` by a host that is not known.
    pub(crate) fn unnamed(export: Arc<Export>, claim: Option<Claim>) -> Rc<Self> {
        let counters = export.connections().open_unnamed();
        Rc::new(Self { export, counters, claim })
    }

    pub(crate) fn export(&self) -> &Arc<Export> {
        &self.export
    }

    pub(crate) fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Returns whether a reservation of another host refuses `op`.
    pub(crate) fn is_refused(&self, op: Op) -> bool {
        let flag = if is_write(op) { NO_WRITES } else { NO_READS };
        self.counters.writes.load(Ordering::Acquire) & flag != 0
    }

    /// Counts a write as in flight. `exclusive`: it uses the [`Exclusive`](crate::Exclusive) right.
    /// A write that is refused is not counted even for a moment: waiters for the number to become zero
    /// could see it at that moment, and would not be notified again.
    ///
    /// # Errors
    /// Returns [`Fault::Gone`] if the fence is closed, [`Fault::Reserved`] if a reservation of
    /// another host refuses writes, and [`Fault::Busy`] if the export admits no write now.
    pub(crate) fn begin_write(self: &Rc<Self>, exclusive: bool) -> Result<WriteGuard, Fault> {
        let is_held = |writes: u32| !exclusive && writes & HELD != 0;
        let more = |writes: u32| {
            let is_free = writes & (CLOSED | NO_WRITES) == 0 && !is_held(writes);
            is_free.then_some((writes | CHANGED) + 1)
        };
        if !exclusive && !self.counters.is_closed() && self.export.waits_for_predecessors() {
            return Err(Fault::Busy);
        }
        match self.counters.writes.fetch_update(Ordering::AcqRel, Ordering::Acquire, more) {
            Ok(_) => Ok(WriteGuard(self.clone())),
            Err(writes) if writes & CLOSED != 0 => Err(Fault::Gone),
            Err(writes) if writes & NO_WRITES != 0 => Err(Fault::Reserved),
            Err(_) => Err(Fault::Busy),
        }
    }

    /// Counts a completed request.
    pub(crate) fn count(&self, op: Op, len: u64, is_ok: bool) {
        let counters = &*self.counters;
        let (number, bytes) = match op {
            _ if !is_ok => return counters.errors.add(1),
            Op::Read => (&counters.reads_done, &counters.bytes_read),
            Op::Discard => return,
            op if op.mutates() => (&counters.writes_done, &counters.bytes_written),
            _ => return,
        };
        number.add(1);
        bytes.add(len);
    }
}

impl Drop for Activity {
    fn drop(&mut self) {
        self.export.connections().end(&self.counters);
    }
}

/// A write in flight. Counts it as completed when dropped.
#[derive(Debug)]
pub(crate) struct WriteGuard(Rc<Activity>);

impl Drop for WriteGuard {
    fn drop(&mut self) {
        let Activity { export, counters, .. } = &*self.0;
        if counters.writes.fetch_sub(1, Ordering::AcqRel) & (CLOSED | COUNT) == CLOSED | 1 {
            export.connections().orphan_ended();
        }
    }
}

/// The connections that use an export.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    state: Mutex<State>,
    /// Whether a connection has the [`Exclusive`](crate::Exclusive) right. Written under the lock.
    exclusive: AtomicBool,
    /// How many wait for writes to end: the exclusive right, and reservation commands.
    watchers: AtomicU32,
    /// Set when the last orphaned write has ended.
    released: AtomicBool,
    store: OnceLock<Arc<dyn ReservationStore>>,
}

#[derive(Debug, Default)]
struct State {
    current: Vec<Connection>,
    /// Statistics of the connections that have ended.
    ended: Usage,
    reservations: Reservations,
    /// The host that uses an export for one host at a time, or that was lost while it did.
    only_host: Option<OnlyHost>,
    /// How often the reservations were passed to the store.
    sequence: u64,
    /// The last of them that was stored, and the last that was not.
    stored: [u64; 2],
}

/// A connection that uses the export.
#[derive(Debug, Default)]
struct Connection {
    counters: Arc<Counters>,
    /// `None` for a host that cannot register.
    registrant: Option<Registrant>,
    /// Notices for the registrant; `None` for a connection that takes none.
    notices: Option<VecDeque<ReservationNotice>>,
}

impl State {
    fn has_orphans(&self) -> bool {
        self.current.iter().any(|one| one.counters.has_orphans())
    }

    fn is_being_written(&self) -> bool {
        self.current.iter().any(|one| one.counters.in_flight() != 0)
    }

    fn find(&mut self, counters: &Arc<Counters>) -> Option<&mut Connection> {
        self.current.iter_mut().find(|one| Arc::ptr_eq(&one.counters, counters))
    }

    /// Sets what the reservations permit to each connection.
    fn update_permissions(&self) {
        for one in &self.current {
            one.counters.set_permission(self.reservations.permission(one.registrant.as_ref()));
        }
    }

    fn send(&mut self, notices: &Notices) {
        for (registrant, notice) in notices {
            let to =
                self.current.iter_mut().filter(|it| it.registrant.as_ref() == Some(registrant));
            for queue in to.filter_map(|one| one.notices.as_mut()) {
                if queue.len() < MAX_NOTICES {
                    queue.push_back(*notice);
                }
            }
        }
    }
}

impl Connections {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a connection. `only` is its host, if that must be the only one; returns `None` if it is not.
    fn open(&self, only: Option<&OverlayHost>) -> Option<Arc<Counters>> {
        let mut state = self.lock();
        let Some(host) = only else { return Some(self.add(&mut state)) };
        if state.only_host.as_ref().is_some_and(|known| !known.is(host)) {
            return None;
        }
        let counters = self.add(&mut state);
        let known = state.only_host.get_or_insert_with(|| OnlyHost::new(host));
        known.begin(counters.clone(), Association::default());
        Some(counters)
    }

    /// Makes a connection part of an association.
    pub(crate) fn associate(&self, counters: &Arc<Counters>, association: &Association) {
        if let Some(only) = &mut self.lock().only_host {
            only.associate(counters, association);
        }
    }

    /// Records that the association of a connection is done with the export.
    pub(crate) fn leave(&self, counters: &Arc<Counters>) {
        if let Some(only) = &mut self.lock().only_host {
            only.leave(counters);
        }
    }

    /// Returns for whom the export must be kept if this process ends now.
    pub(crate) fn keeper(&self) -> Option<Keeper> {
        self.lock().only_host.as_ref().map(OnlyHost::keeper)
    }

    /// Keeps the export for a host that another process has reported.
    pub(crate) fn set_keeper(&self, keeper: Option<Keeper>) {
        self.lock().only_host = keeper.map(OnlyHost::restored);
    }

    /// Adds a connection of a host that is not known.
    fn open_unnamed(&self) -> Arc<Counters> {
        let mut state = self.lock();
        self.add(&mut state)
    }

    fn add(&self, state: &mut State) -> Arc<Counters> {
        let counters = Arc::<Counters>::default();
        counters.set_held(self.is_exclusive() || state.has_orphans());
        counters.set_permission(state.reservations.permission(None));
        state.current.push(Connection { counters: counters.clone(), ..Connection::default() });
        counters
    }

    fn end(&self, counters: &Arc<Counters>) {
        let mut state = self.lock();
        state.ended = state.ended.plus(counters.usage());
        let ended = state.current.iter().position(|it| Arc::ptr_eq(&it.counters, counters));
        let ended = ended.map(|at| state.current.remove(at));
        state.only_host.take_if(|host| host.end(counters));
        let Some(ended) = ended.and_then(|one| one.registrant) else { return };
        // A reservation by RESERVE(6) ends with the last connection of its holder.
        let is_last = state.current.iter().all(|one| one.registrant.as_ref() != Some(&ended));
        if is_last && state.reservations.end_unit(&ended) {
            state.update_permissions();
        }
    }

    /// Holds back the writes of all connections, or no longer does.
    fn update(&self, state: &State) {
        let held = self.is_exclusive() || state.has_orphans();
        state.current.iter().for_each(|one| one.counters.set_held(held));
    }

    /// Closes the fence of a connection. Its writes in flight become orphans.
    pub(crate) fn close(&self, counters: &Counters) {
        let state = self.lock();
        let before = counters.writes.fetch_or(CLOSED, Ordering::AcqRel);
        if before & CLOSED == 0 && before & COUNT != 0 {
            self.update(&state);
        }
    }

    pub(crate) fn set_registrant(&self, counters: &Arc<Counters>, registrant: Registrant) {
        let mut state = self.lock();
        counters.set_permission(state.reservations.permission(Some(&registrant)));
        if let Some(one) = state.find(counters) {
            one.registrant = Some(registrant);
        }
    }

    /// Takes the oldest notice for the registrant. The connection keeps them from the first call on.
    pub(crate) fn take_notice(&self, counters: &Arc<Counters>) -> Option<ReservationNotice> {
        self.lock().find(counters)?.notices.get_or_insert_default().pop_front()
    }

    /// Returns the registrant of a connection.
    pub(crate) fn registrant(&self, counters: &Arc<Counters>) -> Option<Registrant> {
        self.lock().find(counters)?.registrant.clone()
    }

    pub(crate) fn reservations(&self) -> Reservations {
        self.lock().reservations.clone()
    }

    /// Executes a reservation command of a connection, with or without write access; for `persist` see
    /// [`Grant::reserve`](crate::Grant::reserve). Returns the connections with writes in flight
    /// that the reservation now refuses, and the number by which the state is being stored, if it
    /// is.
    pub(crate) fn execute(
        &self,
        counters: &Arc<Counters>,
        writable: bool,
        command: ReservationCommand,
        persist: Option<bool>,
    ) -> Result<(Vec<Arc<Counters>>, Option<u64>), ReservationError> {
        let mut state = self.lock();
        let registrant = state.find(counters).and_then(|one| one.registrant.clone());
        let registrant = registrant.ok_or(ReservationError::Conflict)?;
        let (before, mut notices) = (state.reservations.saved(), Notices::new());
        state.reservations.execute(&registrant, writable, command, &mut notices)?;
        if let Some(persist) = persist {
            state.reservations.set_persistent(persist);
        }
        state.update_permissions();
        state.send(&notices);
        let refused = state.current.iter().map(|one| &one.counters);
        let refused = refused.filter(|it| it.has_refused_writes()).cloned().collect();
        let after = state.reservations.saved();
        // Again, if the last state is not known to be stored.
        let is_new = before != after || state.stored[0] != state.sequence;
        let store = self.store.get().filter(|_| is_new);
        let sequence = store.map(|store| {
            state.sequence += 1;
            // Under the lock, so that the states arrive in order.
            store.save(state.sequence, after);
            state.sequence
        });
        Ok((refused, sequence))
    }

    /// Sets the reservations after a restart, and where they are stored.
    pub(crate) fn set_store(&self, store: Arc<dyn ReservationStore>, restored: Reservations) {
        let mut state = self.lock();
        let _ = self.store.set(store);
        state.reservations = restored;
        state.update_permissions();
    }

    pub(crate) fn has_store(&self) -> bool {
        self.store.get().is_some()
    }

    pub(crate) fn set_stored(&self, sequence: u64, is_stored: bool) {
        let mut state = self.lock();
        let last = &mut state.stored[usize::from(!is_stored)];
        *last = sequence.max(*last);
    }

    /// Returns whether a state was stored, itself or by a later one; `None` if that is not known
    /// yet.
    pub(crate) fn is_stored(&self, sequence: u64) -> Option<bool> {
        let [stored, failed] = self.lock().stored;
        if stored >= sequence { Some(true) } else { (failed >= sequence).then_some(false) }
    }

    /// Counts a waiter for the end of writes, until [`Connections::unwatch`]: see
    /// [`Connections::is_watched`].
    pub(crate) fn watch(&self) {
        self.watchers.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn unwatch(&self) {
        self.watchers.fetch_sub(1, Ordering::AcqRel);
    }

    /// Returns whether there are waiters for the end of writes.
    pub(crate) fn is_watched(&self) -> bool {
        self.watchers.load(Ordering::Acquire) != 0
    }

    // ---- the order of writes

    fn orphan_ended(&self) {
        let state = self.lock();
        if !state.has_orphans() {
            self.update(&state);
            self.released.store(true, Ordering::Release);
        }
    }

    /// Takes the exclusive right. Returns whether it was free.
    pub(crate) fn claim(&self) -> bool {
        let state = self.lock();
        // Set before the counters are looked at: a write that ends later finds it set.
        let is_free = !self.exclusive.swap(true, Ordering::AcqRel);
        if is_free {
            self.watch();
            self.update(&state);
        }
        is_free
    }

    /// Gives the exclusive right back.
    pub(crate) fn unclaim(&self) {
        let state = self.lock();
        self.exclusive.store(false, Ordering::Release);
        self.unwatch();
        self.update(&state);
    }

    /// Returns whether a connection has the exclusive right.
    pub(crate) fn is_exclusive(&self) -> bool {
        self.exclusive.load(Ordering::Acquire)
    }

    /// Returns true once after the last orphaned write has ended.
    pub(crate) fn was_released(&self) -> bool {
        self.released.load(Ordering::Acquire) && self.released.swap(false, Ordering::AcqRel)
    }

    /// Returns whether orphaned writes are in flight.
    pub(crate) fn has_orphans(&self) -> bool {
        self.lock().has_orphans()
    }

    /// Returns whether writes of any connection are in flight.
    pub(crate) fn is_being_written(&self) -> bool {
        self.lock().is_being_written()
    }

    /// Returns the number of writes in flight.
    #[cfg(test)]
    pub(crate) fn in_flight(&self) -> u32 {
        self.lock().current.iter().map(|one| one.counters.in_flight()).sum()
    }

    /// Returns the statistics of all connections.
    pub(crate) fn usage(&self) -> Usage {
        let state = self.lock();
        state.current.iter().fold(state.ended, |sum, one| sum.plus(one.counters.usage()))
    }

    /// Replaces the statistics of the connections that have ended.
    pub(crate) fn set_ended_usage(&self, usage: Usage) {
        self.lock().ended = usage;
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::fence::test::export;
    use crate::{Grant, Pool, Request, Ticket};

    /// Executes `requests` requests of each kind over a connection of its own.
    fn load(export: &Arc<Export>, requests: u64) {
        let (grant, account) = (Grant::new(export.clone()), Pool::new(1 << 20).open());
        for _ in 0..requests {
            for op in [Op::Read, Op::Write { durable: false }, Op::Discard] {
                let buffer = if op == Op::Discard { None } else { account.take(1024) };
                let request = Request { op, lba: 1, blocks: 2, buffer, ticket: Ticket::new(1) };
                let result = if op == Op::Discard { Err(Fault::Io) } else { Ok(()) };
                drop(grant.admit(request).unwrap().finish(result));
            }
        }
    }

    #[test]
    fn statistics_of_many_threads_are_exact() {
        let (export, threads, requests) = (export(), 4, 5000);
        std::thread::scope(|scope| {
            let all: Vec<_> =
                (0..threads).map(|_| scope.spawn(|| load(&export, requests))).collect();
            let mut before = Usage::default();
            while all.iter().any(|thread| !thread.is_finished()) {
                let now = export.usage();
                assert!(now.reads >= before.reads && now.bytes_written >= before.bytes_written);
                before = now;
            }
        });
        let n = threads * requests;
        let exact =
            Usage { reads: n, bytes_read: n * 1024, writes: n, bytes_written: n * 1024, errors: n };
        assert_eq!(export.usage(), exact);
        assert!(!export.is_being_written() && export.connections().lock().current.is_empty());
    }

    #[test]
    fn request_in_flight_counts_after_its_grant_is_dropped() {
        let export = export();
        let grant = Grant::new(export.clone());
        let buffer = Pool::new(1 << 20).open().take(512);
        let request = Request { op: Op::Read, lba: 0, blocks: 1, buffer, ticket: Ticket::new(1) };
        let admitted = grant.admit(request).unwrap();
        drop(grant);
        drop(admitted.finish(Ok(())));
        assert_eq!(export.usage().reads, 1);
    }

    #[test]
    fn counters_of_two_connections_share_no_cache_line() {
        let activities = [(); 2].map(|()| Activity::unnamed(export(), None));
        let [one, other] = activities.each_ref().map(|it| Arc::as_ptr(&it.counters).addr());
        assert!(one.abs_diff(other) >= 128 && size_of::<Counters>() == 128);
    }
}
