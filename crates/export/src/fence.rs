//! I/O fencing: orders the writes of a connection that has ended before those of all others.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::{Export, ExportId, Fault};

/// The writes of one connection to one export.
///
/// Once the fence is closed, no write of the connection begins, and those in flight are *orphaned*:
/// the host may not learn their result and may send newer data over another connection. Until the
/// last of them has completed, [`Export::has_orphans`] returns true and no other write to the
/// export begins. A connection that lives on, because the peer has closed only its sending side,
/// still answers them.
///
/// Dropping the fence closes it, so that a session that panics leaves no write uncounted. The
/// [`Grant`](crate::Grant)s of the connection hold the fence.
#[derive(Debug)]
pub struct Fence(Arc<InFlight>);

/// The writes of one connection that are in flight.
#[derive(Debug)]
struct InFlight {
    export: Arc<Export>,
    /// Their number, and the flag [`CLOSED`].
    state: AtomicU32,
}

/// Flag in `state`, set when the fence is closed.
const CLOSED: u32 = 1 << 31;

impl Fence {
    pub(crate) fn new(export: Arc<Export>) -> Arc<Self> {
        Arc::new(Self(Arc::new(InFlight { export, state: AtomicU32::new(0) })))
    }

    /// Revokes the connection's right to write. May be called from any thread, and more than once.
    /// The first caller must then notify the other sessions ([`Step::Notify`](crate::Step::Notify)).
    pub fn close(&self) {
        let InFlight { export, state } = &*self.0;
        // When already closed, no notification follows, so no orphan may be counted even briefly.
        if self.is_closed()
            || state.compare_exchange(0, CLOSED, Ordering::AcqRel, Ordering::Acquire).is_ok()
        {
            return;
        }
        // Counted before the flag is set: the last write may complete right after that.
        export.orphan();
        let before = state.fetch_or(CLOSED, Ordering::AcqRel);
        if before == 0 || before & CLOSED != 0 {
            export.orphan_ended();
        }
    }

    /// Returns the id of the export.
    pub fn export_id(&self) -> &ExportId {
        &self.0.export.id
    }

    fn is_closed(&self) -> bool {
        self.0.state.load(Ordering::Acquire) & CLOSED != 0
    }

    /// Counts a write as in flight.
    ///
    /// # Errors
    /// Returns [`Fault::Gone`] if the fence is closed, and [`Fault::Busy`] if the export admits no
    /// write now. Also `Busy` if the fence is closed during the call: the export has then counted
    /// the write briefly, and [`Export::was_released`] returns true.
    pub(crate) fn begin_write(&self, exclusive: bool) -> Result<WriteGuard, Fault> {
        if self.is_closed() {
            return Err(Fault::Gone);
        }
        if !self.0.export.begin_write(exclusive) {
            return Err(Fault::Busy);
        }
        let more = |state: u32| (state & CLOSED == 0).then_some(state + 1);
        match self.0.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, more) {
            Ok(_) => Ok(WriteGuard(self.0.clone())),
            Err(_) => {
                self.0.export.cancel_write();
                Err(Fault::Busy)
            }
        }
    }
}

impl Drop for Fence {
    fn drop(&mut self) {
        self.close();
    }
}

/// A write in flight. Counts it as completed when dropped.
#[derive(Debug)]
pub(crate) struct WriteGuard(Arc<InFlight>);

impl Drop for WriteGuard {
    fn drop(&mut self) {
        let InFlight { export, state } = &*self.0;
        export.end_write();
        if state.fetch_sub(1, Ordering::AcqRel) == CLOSED | 1 {
            export.orphan_ended();
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::{Access, Admitted, Geometry, Grant, Identity, Op, Pool, Request, Ticket};

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
    fn orphaned_writes_block_all_others() {
        let export = export();
        let (one, other) = (Grant::new(export.clone()), Grant::new(export.clone()));
        let in_flight = [write(&one).unwrap(), write(&one).unwrap()];
        one.fence().close();
        one.fence().close();
        assert!(export.has_orphans());
        assert_eq!(write(&one).err(), Some(Fault::Gone));
        for admitted in in_flight {
            assert!(!export.is_contended());
            assert_eq!(write(&other).err(), Some(Fault::Busy));
            drop(admitted.finish(Ok(())));
        }
        assert!(export.is_contended(), "waiting sessions must be notified");
        assert!(!export.is_contended(), "once");
        assert!(!export.has_orphans() && write(&other).is_ok());
        assert_eq!(write(&one).err(), Some(Fault::Gone));
    }

    #[test]
    fn closing_a_closed_fence_has_no_effect() {
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
    fn fence_is_closed_when_the_last_grant_is_dropped() {
        let export = export();
        let grant = Grant::new(export.clone());
        let in_flight = write(&grant).unwrap();
        let renewed = Grant::new(export.clone()).with_fence_of(&grant).read_only();
        drop(grant);
        assert!(!export.has_orphans(), "the renewed grant still holds the fence");
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
