//! Storing of reservations. The worker has no files: it reports the state of a disk, and a thread of
//! the opener writes it and sends the result back. So neither the data path nor the reports wait for
//! the storage of the state directory.

use std::io;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;

use export::{Backing, Export, ExportId, ReservationStore, SavedReservations};
use failure::Failure;
use keys::reservations::ReservationFiles;

use super::messages::{Report, Request};
use super::{Shared, State};
use crate::inbox::{Inbox, WorkerEvent};

/// Most states that wait to be written; further ones fail.
const MAX_WAITING: usize = 64;

/// In the worker: the newest state of a disk that was not reported yet.
#[derive(Debug)]
pub(super) struct UnreportedReservations {
    newest: Mutex<Option<(u64, Option<SavedReservations>)>>,
    inbox: Inbox,
}

impl UnreportedReservations {
    /// `inbox` is that of the reporter.
    pub(super) fn new(inbox: Inbox) -> Self {
        Self { newest: Mutex::default(), inbox }
    }

    /// Takes the report of a state, if there is one.
    pub(super) fn take(&self, disk: u64) -> Option<Report> {
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner).take();
        newest.map(|(sequence, state)| Report::Reservations { disk, sequence, state })
    }
}

impl ReservationStore for UnreportedReservations {
    fn save(&self, sequence: u64, state: Option<SavedReservations>) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        *newest = Some((sequence, state));
        self.inbox.wake();
    }
}

/// In the opener: a state to be written.
#[derive(Debug)]
pub(super) struct Save {
    /// Which worker reported it.
    pub(super) worker: u64,
    pub(super) disk: u64,
    pub(super) id: ExportId,
    /// Name of the disk, for messages.
    pub(super) name: String,
    pub(super) sequence: u64,
    pub(super) state: Option<SavedReservations>,
}

/// In the opener: the thread that writes the states.
#[derive(Debug)]
pub(super) struct ReservationWriter {
    /// Locked while a file is read or replaced, until the record of its disk is the same.
    files: Arc<Mutex<ReservationFiles>>,
    queue: SyncSender<Save>,
}

impl ReservationWriter {
    /// Returns a writer, and the queue of its thread, which [`start`] begins.
    pub(super) fn new(files: ReservationFiles) -> (Self, Receiver<Save>) {
        let (queue, waiting) = mpsc::sync_channel(MAX_WAITING);
        (Self { files: Arc::new(Mutex::new(files)), queue }, waiting)
    }

    /// Queues a state. Returns whether there was room.
    pub(super) fn write(&self, save: Save) -> bool {
        self.queue.try_send(save).is_ok()
    }

    /// Returns the files, once none is being replaced.
    pub(super) fn files(&self) -> MutexGuard<'_, ReservationFiles> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the reservations of a disk.
///
/// # Errors
/// Fails with a message for the user if they cannot be read.
pub(super) fn load(
    files: &ReservationFiles,
    export: &Export,
) -> Result<Option<SavedReservations>, Failure> {
    if !may_persist(export) {
        return Ok(None);
    }
    let Export { id, name, .. } = export;
    let what = "registered hosts and reservations cannot be restored, so it is not lent";
    files.load(id).map_err(|failure| Failure::new(format!("{name}: {what}: {failure}")))
}

/// Returns whether reservations of a disk can be stored. An overlay is gone when the program ends.
pub(super) fn may_persist(export: &Export) -> bool {
    matches!(export.backing(), Backing::Raw(_))
}

/// Starts the thread. It ends with the [`Shared`] state.
///
/// # Errors
/// Fails if no thread can be started.
pub(super) fn start(shared: &Arc<Shared>, waiting: Receiver<Save>) -> io::Result<()> {
    let shared = Arc::downgrade(shared);
    let write_all = move || waiting.iter().for_each(|save| write(&shared, save));
    thread::Builder::new().name("reservations".to_owned()).spawn(write_all).map(drop)
}

fn write(shared: &Weak<Shared>, save: Save) {
    let writer = |shared: Arc<Shared>| Some(shared.reservations.as_ref()?.files.clone());
    let Some(files) = shared.upgrade().and_then(writer) else { return };
    let files = files.lock().unwrap_or_else(PoisonError::into_inner);
    if !shared.upgrade().is_some_and(|shared| shared.state().begin_to_store(&save)) {
        return;
    }
    let result = files.save(&save.id, save.state.clone());
    let Some(shared) = shared.upgrade() else { return };
    let is_stored = result.is_ok();
    let stored = match result {
        Ok(()) => Some(save.state.clone()),
        Err(failure) => {
            let what = "registered hosts and reservations cannot be stored";
            shared.emit(WorkerEvent::Note(format!("{}: {what}: {failure}", save.name)));
            // It may have been replaced all the same, if its directory could not be synced.
            files.load(&save.id).ok()
        }
    };
    shared.state().stored(&save, is_stored, stored);
}

impl State {
    /// Returns whether a reported state is to be stored. It is not if the worker is gone, or the
    /// disk was lent anew: then the command was not answered.
    fn begin_to_store(&mut self, save: &Save) -> bool {
        let newest = self.lent.iter().rfind(|assigned| assigned.export.id == save.id);
        let is_newest = newest.is_some_and(|assigned| assigned.disk == save.disk);
        let is_current = self.worker == save.worker;
        if is_current && is_newest {
            self.storing = Some(save.id.clone());
        } else if is_current {
            self.answer(save, false);
        }
        is_current && is_newest
    }

    /// Records what the file of the disk has now; `None` if it cannot be read. If the worker was
    /// lost meanwhile, the next one is started with it.
    fn stored(&mut self, save: &Save, is_stored: bool, file: Option<Option<SavedReservations>>) {
        if let (Some(assigned), Some(file)) = (self.disk_by_number(save.disk), file) {
            assigned.reservations = file;
        }
        match self.storing.take() {
            Some(_) => self.answer(save, is_stored),
            None => self.release(&save.id),
        }
    }

    fn answer(&self, save: &Save, is_stored: bool) {
        let Save { disk, sequence, .. } = *save;
        self.send(&Request::ReservationsSaved { disk, sequence, is_stored });
    }
}

#[cfg(test)]
mod test {
    use super::super::messages::MAX_REPORT;
    use super::super::validator::test::shared;
    use super::*;
    use export::{MAX_REGISTRANTS, Registrant, Registration};
    use testkit::Scratch;

    fn saved(registrants: usize, host: &str) -> SavedReservations {
        let one = |number: usize| {
            let port = u16::try_from(number).unwrap();
            let registrant =
                Registrant { host: host.to_owned(), id: vec![255; 16], port, proven: false };
            Registration { registrant, key: u64::MAX, writable: true }
        };
        let registrations = (0..registrants).map(one).collect();
        SavedReservations { registrations, reservation: None }
    }

    #[test]
    fn only_the_newest_state_is_reported() {
        let unreported = UnreportedReservations::new(Inbox::open().unwrap());
        assert!(unreported.take(7).is_none());
        unreported.save(1, Some(saved(1, "h")));
        unreported.save(2, None);
        let report = unreported.take(7);
        let Some(Report::Reservations { disk: 7, sequence: 2, state: None }) = report else {
            panic!("{report:?}")
        };
        assert!(unreported.take(7).is_none());
    }

    #[test]
    fn largest_state_fits_into_a_report() {
        let state = Some(saved(MAX_REGISTRANTS, &"\u{1}".repeat(223)));
        let report = Report::Reservations { disk: u64::MAX, sequence: u64::MAX, state };
        assert!(serde_json::to_vec(&report).unwrap().len() < MAX_REPORT);
    }

    #[test]
    fn only_states_of_the_current_worker_are_written() {
        let folder = Scratch::new();
        let (writer, waiting) = ReservationWriter::new(ReservationFiles::new(&folder.0));
        let mut shared = shared();
        shared.reservations = Some(writer);
        let shared = Arc::new(shared);
        start(&shared, waiting).unwrap();
        let save = |worker, key| {
            let mut state = saved(1, "h");
            state.registrations[0].key = key;
            let (id, name, state) = ("n".into(), "d".to_owned(), Some(state));
            shared.reservations.as_ref().unwrap().write(Save {
                worker,
                disk: 1,
                id,
                name,
                sequence: 1,
                state,
            })
        };
        let worker = shared.state().worker;
        assert!(save(worker, 1) && save(worker + 1, 2) && save(worker, 3));
        let key =
            |state: &Option<SavedReservations>| state.as_ref().map(|it| it.registrations[0].key);
        let begun = std::time::Instant::now();
        while key(&shared.state().lent[0].reservations) != Some(3) {
            assert!(begun.elapsed().as_secs() < 20);
            thread::sleep(std::time::Duration::from_millis(1));
        }
        let export = shared.state().lent[0].export.clone();
        let files = shared.reservations.as_ref().unwrap().files();
        assert_eq!(key(&load(&files, &export).unwrap()), Some(3));
    }

    /// The writer of a worker with disk 1, whose saves wait while [`Stalled::stall`] is held.
    struct Stalled {
        folder: Scratch,
        shared: Arc<Shared>,
    }

    impl Stalled {
        fn new() -> Self {
            let folder = Scratch::new();
            let files = ReservationFiles::new(&folder.0);
            files.save(&"n".into(), Some(saved(1, "before"))).unwrap();
            let (writer, waiting) = ReservationWriter::new(files);
            let mut shared = shared();
            shared.reservations = Some(writer);
            let shared = Arc::new(shared);
            start(&shared, waiting).unwrap();
            shared.state().lent[0].reservations = Some(saved(1, "before"));
            Self { folder, shared }
        }

        fn writer(&self) -> &ReservationWriter {
            self.shared.reservations.as_ref().unwrap()
        }

        /// Reports a state that names `host`.
        fn report(&self, disk: u64, host: &str) {
            let worker = self.shared.state().worker;
            let (id, name, state) = ("n".into(), "d".to_owned(), Some(saved(1, host)));
            assert!(self.writer().write(Save { worker, disk, id, name, sequence: 1, state }));
        }

        fn stall(&self) -> std::fs::File {
            let lock = std::fs::File::open(self.folder.0.join("reservations/lock")).unwrap();
            lock.lock().unwrap();
            lock
        }

        fn wait_until(&self, is_so: impl Fn(&State) -> bool) {
            let begun = std::time::Instant::now();
            while !is_so(&self.shared.state()) {
                assert!(begun.elapsed().as_secs() < 20);
                thread::sleep(std::time::Duration::from_millis(1));
            }
        }

        fn record(&self) -> Option<SavedReservations> {
            self.shared.state().lent[0].reservations.clone()
        }

        fn file(&self) -> Option<SavedReservations> {
            let export = self.shared.state().lent[0].export.clone();
            load(&self.writer().files(), &export).unwrap()
        }
    }

    #[test]
    fn next_worker_is_started_with_what_the_file_has() {
        let world = Stalled::new();
        let stalled = world.stall();
        world.report(1, "after");
        world.wait_until(|state| state.storing.is_some());
        let withheld = world.shared.state().worker_lost();
        let released = withheld.iter().map(|withheld| withheld.export.id.clone());
        released.for_each(|id| world.shared.state().release(&id));
        let is_withheld = world.shared.state().withheld.contains(&"n".into());
        assert!(is_withheld, "the next worker must not be started with the state before");
        // It may be lost as well.
        let withheld = world.shared.state().worker_lost();
        let released = withheld.iter().map(|withheld| withheld.export.id.clone());
        released.for_each(|id| world.shared.state().release(&id));
        drop(stalled);
        world.wait_until(|state| state.withheld.is_empty());
        assert_eq!((world.record(), world.file()), (Some(saved(1, "after")), world.record()));
    }

    #[test]
    fn state_that_could_not_be_stored_is_not_that_of_the_next() {
        let world = Stalled::new();
        std::fs::create_dir(world.folder.0.join("reservations/.n.json.new")).unwrap();
        world.report(1, "after");
        world.wait_until(|_| world.shared.inbox.receive().notes.len() == 1);
        assert_eq!((world.record(), world.file()), (Some(saved(1, "before")), world.record()));
    }

    #[test]
    fn disk_that_is_lent_anew_waits_for_its_reservations() {
        let world = Stalled::new();
        let stalled = world.stall();
        world.report(1, "after");
        world.wait_until(|state| state.storing.is_some());
        world.shared.state().last_disk = 1;
        let export = world.shared.state().lent[0].export.clone();
        let (shared, started) = (world.shared.clone(), mpsc::channel().1);
        let worker = super::super::Worker { shared, supervisor: None, started };
        thread::scope(|scope| {
            let lending = scope.spawn(move || worker.lend(&export).unwrap());
            drop(stalled);
            lending.join().unwrap();
        });
        assert_eq!(world.shared.state().lent[1].reservations, Some(saved(1, "after")));
        // What is reported of the disk before is not stored any more.
        world.report(1, "late");
        world.report(2, "last");
        world.wait_until(|state| state.lent[1].reservations == Some(saved(1, "last")));
        assert_eq!(
            (world.record(), world.file()),
            (Some(saved(1, "after")), Some(saved(1, "last")))
        );
    }

    #[test]
    fn overlay_does_not_have_the_reservations_that_are_stored() {
        let folder = Scratch::new();
        let files = ReservationFiles::new(&folder.0);
        files.save(&"n".into(), Some(saved(1, "h"))).unwrap();
        let mut shared = shared();
        shared.reservations = Some(ReservationWriter::new(files).0);
        shared.state().lent.clear();
        let backing = crate::overlay::test::backing(4096);
        let geometry = export::Geometry::new(512, 512).unwrap();
        let mut export =
            Export::new("d", "n", export::Identity::default(), geometry, 4096, backing);
        export.access = export::Access::Writable;
        let (shared, started) = (Arc::new(shared), mpsc::channel().1);
        let worker = super::super::Worker { shared, supervisor: None, started };
        worker.lend(&Arc::new(export)).unwrap();
        assert!(worker.shared.state().lent.remove(0).reservations.is_none());
    }

    #[test]
    fn disk_whose_reservations_cannot_be_read_is_not_lent() {
        let folder = Scratch::new();
        let files = ReservationFiles::new(&folder.0);
        files.save(&"n".into(), Some(saved(1, "h"))).unwrap();
        let mut shared = shared();
        shared.reservations = Some(ReservationWriter::new(files).0);
        let export = shared.state().lent.remove(0).export;
        let (shared, started) = (Arc::new(shared), mpsc::channel().1);
        let worker = super::super::Worker { shared, supervisor: None, started };
        worker.lend(&export).unwrap();
        assert!(worker.shared.state().lent.remove(0).reservations.is_some());
        std::fs::write(folder.0.join("reservations/n.json"), "no").unwrap();
        let failure = worker.lend(&export).unwrap_err().to_string();
        assert!(failure.contains("not lent") && failure.contains("n.json"), "{failure}");
        assert!(worker.shared.state().lent.is_empty());
    }
}
