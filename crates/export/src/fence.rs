//! The writes of one connection to one export, and what becomes of those that are in flight when the connection ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::Export;

/// Stands between the writes of one connection and those of all others.
///
/// Once the fence is closed no write of the connection begins, and those in flight are *orphaned*: their host, which does
/// not know what became of them, may send newer data over another connection. Until the last of them has ended,
/// [`Export::has_orphans`] is true, and no other write to the export begins.
///
/// Dropping the fence closes it, so a session that panics leaves no write unaccounted for. It is part of the
/// [`Grant`](crate::Grant)s of the connection.
#[derive(Debug)]
pub struct Fence(Arc<InFlight>);

/// The writes of one connection that are in flight.
#[derive(Debug)]
struct InFlight {
    export: Arc<Export>,
    /// How many, and [`CLOSED`].
    state: AtomicU32,
}

/// Set in `state` when the fence is closed.
const CLOSED: u32 = 1 << 31;

impl Fence {
    pub(crate) fn new(export: Arc<Export>) -> Arc<Self> {
        Arc::new(Self(Arc::new(InFlight { export, state: AtomicU32::new(0) })))
    }

    /// Ends the connection's right to write. May be called from any thread and more than once; whoever calls it first then
    /// has all sessions told that something changed.
    pub fn close(&self) {
        let InFlight { export, state } = &*self.0;
        // Again: nobody is told after that, so no orphan may be counted even for a moment.
        if self.is_closed()
            || state.compare_exchange(0, CLOSED, Ordering::AcqRel, Ordering::Acquire).is_ok()
        {
            return;
        }
        // Counted first: a write that ends meanwhile counts itself out.
        export.orphan();
        let before = state.fetch_or(CLOSED, Ordering::AcqRel);
        if before == 0 || before & CLOSED != 0 {
            export.orphan_ended();
        }
    }

    fn is_closed(&self) -> bool {
        self.0.state.load(Ordering::Acquire) & CLOSED != 0
    }

    /// Counts a write in. Returns nothing if the fence is closed, or if the export takes no write of it now. The export has
    /// counted a write for a moment if the fence is closed meanwhile: [`Export::was_released`] is true then.
    pub(crate) fn enter(&self, alone: bool) -> Option<Hold> {
        if self.is_closed() || !self.0.export.enter(alone) {
            return None;
        }
        let more = |state: u32| (state & CLOSED == 0).then_some(state + 1);
        let entered = self.0.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok();
        if !entered {
            self.0.export.leave_refused();
        }
        entered.then(|| Hold(self.0.clone()))
    }
}

impl Drop for Fence {
    fn drop(&mut self) {
        self.close();
    }
}

/// Counts a write out when it is dropped, however it ended.
#[derive(Debug)]
pub(crate) struct Hold(Arc<InFlight>);

impl Drop for Hold {
    fn drop(&mut self) {
        let InFlight { export, state } = &*self.0;
        export.leave();
        if state.fetch_sub(1, Ordering::AcqRel) == CLOSED | 1 {
            export.orphan_ended();
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::{Access, Admitted, Fault, Geometry, Grant, Identity, Op, Pool, Request, Ticket};

    fn export() -> Arc<Export> {
        let disk = std::fs::File::open("/dev/null").unwrap().into();
        let geometry = Geometry::new(512, 512).unwrap();
        let mut export = Export::new("disk", "nqn", Identity::default(), geometry, 4096, disk);
        export.access = Access::Writable;
        Arc::new(export)
    }

    fn write(grant: &Grant) -> Result<Admitted, Fault> {
        let buffer = Pool::new(1 << 20).open().take(512);
        let (op, ticket) = (Op::Write { durable: false }, Ticket::new(1));
        let request = Request { op, lba: 0, blocks: 1, buffer, ticket };
        grant.admit(request).map_err(|denied| denied.fault)
    }

    #[test]
    fn writes_behind_a_closed_fence_hold_up_all_others() {
        let export = export();
        let (one, other) = (Grant::new(export.clone()), Grant::new(export.clone()));
        let in_flight = [write(&one).unwrap(), write(&one).unwrap()];
        one.fence().close();
        one.fence().close();
        assert!(export.has_orphans());
        assert_eq!(write(&one).err(), Some(Fault::Busy));
        for admitted in in_flight {
            assert!(!export.is_contended());
            assert_eq!(write(&other).err(), Some(Fault::Busy));
            drop(admitted.finish(Ok(())));
        }
        assert!(export.is_contended(), "those that wait are to be told");
        assert!(!export.is_contended(), "once");
        assert!(!export.has_orphans() && write(&other).is_ok());
        assert_eq!(write(&one).err(), Some(Fault::Busy));
    }

    #[test]
    fn closing_a_closed_fence_releases_nobody() {
        let export = export();
        let grant = Grant::new(export.clone());
        grant.fence().close();
        grant.fence().close();
        assert!(!export.has_orphans() && !export.is_contended());
    }

    #[test]
    fn write_refused_by_a_closed_fence_is_never_counted() {
        let export = export();
        let grant = Grant::new(export.clone());
        grant.fence().close();
        std::thread::scope(|scope| {
            let refused = scope.spawn(|| (0..20_000).all(|_| write(&grant).is_err()));
            while !refused.is_finished() {
                assert!(!export.is_being_written());
            }
            assert!(refused.join().unwrap());
        });
        assert!(!export.was_released());
    }

    #[test]
    fn dropped_grants_close_their_fence_and_copies_share_it() {
        let export = export();
        let grant = Grant::new(export.clone());
        let in_flight = write(&grant).unwrap();
        let renewed = Grant::new(export.clone()).with_fence_of(&grant).read_only();
        drop(grant);
        assert!(!export.has_orphans(), "the connection has it still");
        drop(renewed);
        assert!(export.has_orphans());
        drop(in_flight);
        assert!(export.is_contended() && !export.has_orphans() && !export.is_being_written());
        drop(Grant::new(export.clone()));
        assert!(!export.has_orphans() && !export.is_contended());
    }

    #[test]
    fn fence_may_be_closed_while_writes_begin_and_end() {
        let export = export();
        for _ in 0..200 {
            let grant = Grant::new(export.clone());
            std::thread::scope(|scope| {
                let writer = grant.clone();
                scope.spawn(move || while write(&writer).is_ok() {});
                grant.fence().close();
            });
            assert!(!export.has_orphans() && !export.is_being_written());
        }
    }
}
