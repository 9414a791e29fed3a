//! I/O fencing: orders the writes of a connection that has ended before those of all others.

use std::sync::Arc;

use crate::connections::{Activity, Counters};
use crate::{Export, ExportId};

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
pub struct Fence {
    export: Arc<Export>,
    counters: Arc<Counters>,
}

impl Fence {
    pub(crate) fn new(activity: &Activity) -> Arc<Self> {
        let (export, counters) = (activity.export().clone(), activity.counters().clone());
        Arc::new(Self { export, counters })
    }

    /// Revokes the connection's right to write. May be called from any thread, and more than once.
    /// The first caller must then notify the other sessions ([`Step::Notify`](crate::Step::Notify)).
    pub fn close(&self) {
        self.export.connections().close(&self.counters);
    }

    /// Returns the id of the export.
    pub fn export_id(&self) -> &ExportId {
        &self.export.id
    }
}

impl Drop for Fence {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
pub(crate) mod test {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::{Access, Admitted, Fault, Geometry, Grant, Identity, Op, Pool, Request, Ticket};

    pub(crate) fn export() -> Arc<Export> {
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
        let ended = in_flight.map(|admitted| {
            assert!(!export.is_contended());
            assert_eq!(write(&other).err(), Some(Fault::Busy));
            admitted.finish(Ok(())).contended.is_some()
        });
        assert_eq!(ended, [false, true], "waiting sessions must be notified, once");
        assert!(!export.is_contended());
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
        std::thread::scope(|scope| {
            let refused = scope.spawn(|| {
                let grant = Grant::new(export.clone());
                grant.fence().close();
                (0..20_000).all(|_| write(&grant).err() == Some(Fault::Gone))
            });
            while !refused.is_finished() {
                assert!(!export.is_being_written());
            }
            assert!(refused.join().unwrap());
        });
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
        for _ in 0..50 {
            let grant = Grant::new(export.clone());
            let fence = grant.fence().clone();
            std::thread::scope(|scope| {
                scope.spawn(move || fence.close());
                while write(&grant).is_ok() {}
            });
            assert!(!export.has_orphans() && !export.is_being_written());
        }
    }

    #[test]
    fn no_write_begins_while_a_closed_fence_has_orphans() {
        let (export, stop) = (export(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let grant = Grant::new(export.clone());
                    while !stop.load(Ordering::Relaxed) {
                        drop(write(&grant));
                    }
                });
            }
            for _ in 0..300 {
                let grant = Grant::new(export.clone());
                // Refused while the writes of the last round end.
                let Ok(in_flight) = write(&grant) else { continue };
                grant.fence().close();
                // Those that began before end soon, and none begins after.
                while export.connections().in_flight() > 1 {}
                assert!((0..100).all(|_| export.connections().in_flight() == 1));
                assert!(in_flight.finish(Ok(())).contended.is_some() || !export.has_orphans());
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(!export.has_orphans() && !export.is_being_written());
    }
}
