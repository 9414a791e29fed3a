//! The host of an export that is for one host at a time.
//!
//! A host that has changed the disk, and is lost before it has said that it is done, may come back with a file system that
//! it has mounted: no other host may have changed it meanwhile. So the export is kept for it, and the next host gets it when
//! each association that has changed the disk has left.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::counters::Counters;
use crate::OverlayHost;

/// The connections of a host that begin and end together: those of an NVMe controller. In other protocols each connection is
/// an association of its own.
#[derive(Debug, Clone, Default)]
pub struct Association(Arc<()>);

impl PartialEq for Association {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// The host that an export is kept for, for a process that serves it next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keeper {
    /// The host.
    pub host: OverlayHost,
    /// How many of its associations must come back and leave.
    pub lost: usize,
}

/// The only host of an export.
#[derive(Debug)]
pub(super) struct OnlyHost {
    host: OverlayHost,
    uses: Vec<Use>,
    /// The associations that were lost after a change and have no successor: each by how many had been lost before.
    lost: Vec<u64>,
    /// How many associations have been lost after a change.
    losses: u64,
}

/// The use of the export by an association.
#[derive(Debug)]
struct Use {
    association: Association,
    connections: Vec<Arc<Counters>>,
    /// Whether a connection that has ended has changed the disk.
    has_changed: bool,
    /// It may succeed an association that was among so many losses: it had not changed the disk before. `None` once it has
    /// succeeded one.
    since: Option<u64>,
}

impl Use {
    fn has_changed(&self) -> bool {
        self.has_changed || self.connections.iter().any(|one| one.has_changed())
    }
}

impl OnlyHost {
    pub(super) fn new(host: &OverlayHost) -> Self {
        Self::restored(Keeper { host: host.clone(), lost: 0 })
    }

    pub(super) fn restored(keeper: Keeper) -> Self {
        // A number from another process: the memory for it is bounded.
        let lost = vec![0; keeper.lost.min(MAX_LOST)];
        Self { host: keeper.host, uses: Vec::new(), lost, losses: 0 }
    }

    /// Returns for whom the export must be kept if this process ends now.
    pub(super) fn keeper(&self) -> Keeper {
        let changed = self.uses.iter().filter(|one| one.has_changed()).count();
        // A host that is connected may have changed it by the time that this is known.
        let lost = (self.lost.len() + changed).clamp(1, MAX_LOST);
        Keeper { host: self.host.clone(), lost }
    }

    /// Returns whether it is this host.
    pub(super) fn is(&self, host: &OverlayHost) -> bool {
        self.host == *host
    }

    /// Adds a connection, which belongs to `association`.
    pub(super) fn begin(&mut self, counters: Arc<Counters>, association: Association) {
        match self.uses.iter_mut().find(|one| one.association == association) {
            Some(one) => one.connections.push(counters),
            None => self.uses.push(Use {
                association,
                connections: vec![counters],
                has_changed: false,
                since: Some(self.losses),
            }),
        }
    }

    /// Moves a connection to `association`.
    pub(super) fn associate(&mut self, counters: &Arc<Counters>, association: &Association) {
        if self.remove(counters) {
            self.begin(counters.clone(), association.clone());
        }
    }

    /// Records that the association of a connection is done: it has left for itself, and for one that was lost before, if it
    /// is the successor of one. Its connections have no writes in flight.
    pub(super) fn leave(&mut self, counters: &Arc<Counters>) {
        let Some(one) = self.uses.iter_mut().find(|one| has(one, counters)) else { return };
        one.has_changed = false;
        one.connections.iter().for_each(|connection| connection.clear_changed());
        if succeed(&mut self.lost, one.since) {
            one.since = None;
        }
    }

    /// Removes a connection that has ended. Returns whether the next host may have the export.
    pub(super) fn end(&mut self, counters: &Arc<Counters>) -> bool {
        self.remove(counters);
        self.uses.is_empty() && self.lost.is_empty()
    }

    /// Removes a connection. Returns whether there was one.
    fn remove(&mut self, counters: &Arc<Counters>) -> bool {
        let Some(at) = self.uses.iter().position(|one| has(one, counters)) else { return false };
        if let Some(one) = self.uses.get_mut(at) {
            one.has_changed |= counters.has_changed();
            one.connections.retain(|other| !Arc::ptr_eq(other, counters));
            if one.connections.is_empty() {
                let ended = self.uses.swap_remove(at);
                self.ended(&ended);
            }
        }
        true
    }

    /// Handles the end of an association. One that has changed the disk is lost, in the place of its predecessor.
    fn ended(&mut self, ended: &Use) {
        if !ended.has_changed {
            return;
        }
        succeed(&mut self.lost, ended.since);
        self.losses += 1;
        self.lost.push(self.losses);
        // The host may notice a loss sooner than this machine, and have connected again before.
        for one in self.uses.iter_mut().filter(|one| one.since.is_some() && !one.has_changed()) {
            one.since = Some(self.losses);
        }
    }
}

/// Most lost associations that are reported to another process.
const MAX_LOST: usize = 1024;

fn has(one: &Use, counters: &Arc<Counters>) -> bool {
    one.connections.iter().any(|other| Arc::ptr_eq(other, counters))
}

/// Removes the first of the lost associations that one may succeed which knows of so many. Returns whether there was one.
fn succeed(lost: &mut Vec<u64>, since: Option<u64>) -> bool {
    let at = since.and_then(|since| lost.iter().position(|at| *at <= since));
    at.map(|at| lost.remove(at)).is_some()
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::{
        Access, Export, Fault, Geometry, Grant, Home, Identity, Op, Pool, Request, Ticket,
    };

    fn home() -> Arc<Export> {
        let disk = std::fs::File::open("/dev/null").unwrap().into();
        let geometry = Geometry::new(512, 512).unwrap();
        let mut export = Export::new("home", "nqn", Identity::default(), geometry, 4096, disk);
        (export.access, export.discard) = (Access::Writable, true);
        export.home = Some(Home { user: "alice".to_owned(), signing_key: None });
        Arc::new(export)
    }

    fn host(name: &str) -> OverlayHost {
        OverlayHost::Keyed(name.to_owned())
    }

    /// A connection of a host, which is an association of its own.
    fn connect(export: &Arc<Export>, name: &str) -> Option<Grant> {
        Grant::for_host(export.clone(), Access::Writable, &host(name))
    }

    fn laptop(export: &Arc<Export>) -> Grant {
        connect(export, "laptop").unwrap()
    }

    /// Executes an operation that changes the disk.
    fn change(grant: &Grant, op: Op, result: Result<(), Fault>) {
        let buffer = op.transfers().then(|| Pool::new(1 << 20).open().take(512).unwrap());
        let request = Request { op, lba: 0, blocks: 1, buffer, ticket: Ticket::new(1) };
        drop(grant.admit(request).unwrap().finish(result));
    }

    fn write(grant: &Grant) {
        change(grant, Op::Write { durable: false }, Ok(()));
    }

    fn is_free(export: &Arc<Export>) -> bool {
        connect(export, "desk").is_some()
    }

    #[test]
    fn leave_counts_for_its_own_association_only() {
        let export = home();
        let (mounted, tool) = (laptop(&export), laptop(&export));
        write(&mounted);
        tool.leave();
        drop((tool, mounted));
        assert!(!is_free(&export), "the mounted one is lost");
        let back = laptop(&export);
        back.leave();
        drop(back);
        assert!(is_free(&export));
    }

    #[test]
    fn two_lost_associations_must_both_come_back() {
        let export = home();
        let paths = [laptop(&export), laptop(&export)];
        paths.iter().for_each(write);
        drop(paths);
        let leave_once = || {
            let back = laptop(&export);
            write(&back);
            back.leave();
            back.leave();
            drop(back);
            is_free(&export)
        };
        assert!(!leave_once());
        assert!(leave_once());
    }

    #[test]
    fn path_that_stays_does_not_leave_for_a_lost_one() {
        let export = home();
        let (lost, other) = (laptop(&export), laptop(&export));
        [&lost, &other].into_iter().for_each(write);
        drop(lost);
        other.leave();
        drop(other);
        assert!(!is_free(&export));
    }

    #[test]
    fn lost_association_is_succeeded_by_the_next_one() {
        let export = home();
        let first = laptop(&export);
        write(&first);
        // The second one is there before the loss of the first is noticed, and is lost as well.
        let second = laptop(&export);
        drop(first);
        write(&second);
        drop(second);
        let third = laptop(&export);
        third.leave();
        drop(third);
        assert!(is_free(&export));
    }

    #[test]
    fn queues_of_a_controller_leave_together() {
        let export = home();
        let controller = Association::default();
        let [admin, io, other] = [(); 3].map(|()| laptop(&export).with_association(&controller));
        [&io, &other].into_iter().for_each(write);
        // The queues close before the controller is shut down, or after.
        drop(io);
        admin.leave();
        drop((admin, other));
        assert!(is_free(&export));
    }

    #[test]
    fn failed_writes_and_discards_keep_the_export() {
        for (op, result) in [(Op::Write { durable: false }, Err(Fault::Io)), (Op::Discard, Ok(()))]
        {
            let export = home();
            let grant = laptop(&export);
            change(&grant, op, result);
            drop(grant);
            assert!(!is_free(&export), "{op:?}");
        }
        let export = home();
        change(&laptop(&export), Op::Read, Ok(()));
        assert!(
            is_free(&export),
            "a host that has only read has nothing that could be out of date"
        );
    }

    #[test]
    fn another_process_keeps_the_export_for_the_host() {
        let before = home();
        assert_eq!(before.keeper(), None);
        let grant = laptop(&before);
        assert_eq!(before.keeper().unwrap().lost, 1, "it may have written meanwhile");
        write(&grant);
        let keeper = before.keeper();
        assert_eq!(keeper, Some(Keeper { host: host("laptop"), lost: 1 }));
        let export = home();
        export.set_keeper(keeper.clone());
        assert_eq!(export.keeper(), keeper);
        assert!(!is_free(&export));
        let back = laptop(&export);
        back.leave();
        drop(back);
        assert!(is_free(&export) && export.keeper().is_none());
    }
}
