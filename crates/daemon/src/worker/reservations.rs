//! Storing of reservations. The worker has no files: it reports the state of a disk, and a thread of
//! the opener writes it and sends the result back. So neither the data path nor the reports wait for
//! the storage of the state directory.

use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use export::{Export, ExportId, ReservationStore, SavedReservations};
use failure::Failure;
use keys::reservations::ReservationFiles;

use super::messages::{Report, Request};
use super::{AssignedDisk, Shared, State};
use crate::inbox::{Inbox, WorkerEvent};

/// Most states that wait to be written; further ones fail.
const MAX_WAITING: usize = 64;

/// How often a file that could not be read is read again.
const RELOAD_INTERVAL: Duration = Duration::from_secs(2);

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

/// In the opener: the reservations of a disk in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stored {
    /// The file is being replaced.
    Pending,
    /// It has these.
    Known(Option<SavedReservations>),
    /// It cannot be read. Without it, hosts that were shut out could write: no worker is sent the
    /// disk until it can be.
    Unreadable,
}

/// In the opener: the thread that writes the states.
#[derive(Debug)]
pub(super) struct ReservationWriter {
    files: ReservationFiles,
    queue: SyncSender<Save>,
}

impl ReservationWriter {
    /// Returns a writer, and the queue of its thread, which [`start`] begins.
    pub(super) fn new(files: ReservationFiles) -> (Self, Receiver<Save>) {
        let (queue, waiting) = mpsc::sync_channel(MAX_WAITING);
        (Self { files, queue }, waiting)
    }

    /// Queues a state. Returns whether there was room.
    pub(super) fn write(&self, save: Save) -> bool {
        self.queue.try_send(save).is_ok()
    }

    /// Returns the files. One that is being replaced has the state before or after that.
    pub(super) fn files(&self) -> &ReservationFiles {
        &self.files
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
    export.backing().overlay().is_none()
}

/// Starts the thread. It ends with the [`Shared`] state.
///
/// # Errors
/// Fails if no thread can be started.
pub(super) fn start(shared: &Arc<Shared>, waiting: Receiver<Save>) -> io::Result<()> {
    let shared = Arc::downgrade(shared);
    let write_all = move || write_all(&shared, &waiting);
    thread::Builder::new().name("reservations".to_owned()).spawn(write_all).map(drop)
}

/// Writes the states as they come, and reads the files again that could not be read.
fn write_all(shared: &Weak<Shared>, waiting: &Receiver<Save>) {
    let mut is_unreadable = false;
    loop {
        let save = match is_unreadable {
            true => waiting.recv_timeout(RELOAD_INTERVAL),
            false => waiting.recv().map_err(RecvTimeoutError::from),
        };
        match save {
            Ok(save) => write(shared, save),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        is_unreadable = reload(shared);
    }
}

/// Reads the files again that could not be read: there may have been too many open files. Returns
/// whether there still are such files.
fn reload(shared: &Weak<Shared>) -> bool {
    let Some(shared) = shared.upgrade() else { return false };
    let Some(writer) = &shared.reservations else { return false };
    let exports = shared.state().unreadable();
    let mut is_unreadable = false;
    for export in exports {
        match load(&writer.files, &export) {
            Ok(saved) => {
                shared.state().reloaded(&export.id, &saved);
                shared.emit(WorkerEvent::Note(format!(
                    "{}: registered hosts and reservations can be read again.",
                    export.name
                )));
            }
            Err(_) => is_unreadable = true,
        }
    }
    is_unreadable
}

fn write(shared: &Weak<Shared>, save: Save) {
    let writer = |shared: Arc<Shared>| Some(shared.reservations.as_ref()?.files.clone());
    let Some(files) = shared.upgrade().and_then(writer) else { return };
    if !shared.upgrade().is_some_and(|shared| shared.state().begin_to_store(&save)) {
        return;
    }
    let result = files.save(&save.id, save.state.clone());
    let Some(shared) = shared.upgrade() else { return };
    let is_stored = result.is_ok();
    let note = |what: &str, failure: &Failure| {
        shared.emit(WorkerEvent::Note(format!("{}: {what}: {failure}", save.name)));
    };
    let stored = result.map(|()| save.state.clone()).or_else(|failure| {
        note("registered hosts and reservations cannot be stored", &failure);
        // It may have been replaced all the same, if its directory could not be synced.
        files.load(&save.id)
    });
    let stored = stored.map_or_else(
        |failure| {
            let what = "registered hosts and reservations cannot be read, and until they can be, it is not lent again";
            note(what, &failure);
            Stored::Unreadable
        },
        Stored::Known,
    );
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
            self.replacing = Some(save.id.clone());
        } else if is_current {
            self.answer(save, false);
        }
        is_current && is_newest
    }

    /// Records what the file of the disk has now. The next worker is started with it; it does not get
    /// the disk until the file can be read.
    fn stored(&mut self, save: &Save, is_stored: bool, file: Stored) {
        self.replacing = None;
        if let Some(assigned) = self.disk_by_number(save.disk) {
            assigned.reservations = file.clone();
        }
        match self.storing.take() {
            Some(_) => self.answer(save, is_stored),
            None => self.release(&save.id),
        }
        // One that was lent anew meanwhile.
        let is_pending =
            |it: &&AssignedDisk| it.export.id == save.id && it.reservations == Stored::Pending;
        let pending = self.lent.iter().filter(is_pending).map(|assigned| assigned.disk);
        let pending: Vec<u64> = pending.collect();
        pending.into_iter().for_each(|disk| self.loaded(disk, file.clone()));
    }

    /// Returns a disk for each file that could not be read.
    fn unreadable(&self) -> Vec<Arc<Export>> {
        let is_unreadable = |it: &&AssignedDisk| it.reservations == Stored::Unreadable;
        let unreadable = self.lent.iter().filter(is_unreadable);
        let mut exports: Vec<Arc<Export>> = Vec::new();
        for export in unreadable.map(|assigned| &assigned.export) {
            if exports.iter().all(|other| other.id != export.id) {
                exports.push(export.clone());
            }
        }
        exports
    }

    /// Records that a file could be read, and sends the disk to the worker, if it has to wait for that.
    fn reloaded(&mut self, id: &ExportId, saved: &Option<SavedReservations>) {
        let mut unsent = Vec::new();
        for assigned in self.lent.iter_mut().filter(|assigned| assigned.export.id == *id) {
            if assigned.reservations == Stored::Unreadable {
                assigned.reservations = Stored::Known(saved.clone());
                unsent.extend((!assigned.is_sent).then_some(assigned.disk));
            }
        }
        unsent.into_iter().for_each(|disk| self.send_disk(disk));
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

    /// The reservations that the file of a disk has.
    fn known(state: &State, at: usize) -> Option<SavedReservations> {
        match &state.lent[at].reservations {
            Stored::Known(saved) => saved.clone(),
            _ => None,
        }
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
        let key = |state: &SavedReservations| Some(state.registrations[0].key);
        let begun = std::time::Instant::now();
        while known(&shared.state(), 0).and_then(|it| key(&it)) != Some(3) {
            assert!(begun.elapsed().as_secs() < 20);
            thread::sleep(Duration::from_millis(1));
        }
        let export = shared.state().lent[0].export.clone();
        let files = shared.reservations.as_ref().unwrap().files();
        assert_eq!(key(&load(files, &export).unwrap().unwrap()), Some(3));
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
            shared.state().lent[0].reservations = Stored::Known(Some(saved(1, "before")));
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
                thread::sleep(Duration::from_millis(1));
            }
        }

        fn record(&self) -> Option<SavedReservations> {
            known(&self.shared.state(), 0)
        }

        fn file(&self) -> Option<SavedReservations> {
            let export = self.shared.state().lent[0].export.clone();
            load(self.writer().files(), &export).unwrap()
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
        worker.lend(&export).unwrap();
        assert_eq!(world.shared.state().lent[1].reservations, Stored::Pending);
        // Another disk does not wait for that.
        let other = testkit::export("e", "other", Default::default(), (512, 512), 512);
        worker.lend(&Arc::new(other)).unwrap();
        assert_eq!(world.shared.state().lent[2].reservations, Stored::Known(None));
        drop(stalled);
        world.wait_until(|state| state.replacing.is_none());
        assert_eq!(known(&world.shared.state(), 1), Some(saved(1, "after")));
        // What is reported of the disk before is not stored any more.
        world.report(1, "late");
        world.report(2, "last");
        world.wait_until(|state| known(state, 1) == Some(saved(1, "last")));
        assert_eq!(
            (world.record(), world.file()),
            (Some(saved(1, "after")), Some(saved(1, "last")))
        );
        worker.withdraw(&export);
        assert_eq!(world.shared.state().lent.len(), 2, "no worker has it");
    }

    /// As long as the state in memory of the worker is the only one, no other gets the disk.
    #[test]
    fn next_worker_does_not_get_a_disk_without_its_file() {
        let world = Stalled::new();
        std::fs::create_dir(world.folder.0.join("reservations/.n.json.new")).unwrap();
        std::fs::write(world.folder.0.join("reservations/n.json"), "no").unwrap();
        world.report(1, "after");
        world.wait_until(|state| state.lent[0].reservations == Stored::Unreadable);
        let notes = world.shared.inbox.receive().notes;
        assert!(notes.iter().any(|note| note.contains("it is not lent again")), "{notes:?}");
        world.shared.state().worker_lost();
        let (own, other) = std::os::unix::net::UnixStream::pair().unwrap();
        let (sender, _) = ipc::channel::split(own, MAX_REPORT).unwrap();
        let (_, mut receiver) = ipc::channel::split(other, MAX_REPORT).unwrap();
        let mut state = world.shared.state();
        (state.sender, state.withheld) = (Some(sender), Vec::new());
        state.send_all();
        assert!(!state.lent[0].is_sent);
        state.send(&Request::Unlock);
        drop(state);
        let mut received = Vec::new();
        while !matches!(received.last(), Some(Request::Unlock)) {
            received.push(receiver.receive().unwrap().unwrap().0);
        }
        let lends = received.iter().any(|request| matches!(request, Request::Lend(_)));
        assert!(!lends, "{received:?}");
    }

    /// The file may not have been readable for want of descriptors.
    #[test]
    fn disk_is_sent_when_its_file_can_be_read_again() {
        let world = Stalled::new();
        let path = world.folder.0.join("reservations/n.json");
        let before = std::fs::read(&path).unwrap();
        std::fs::create_dir(world.folder.0.join("reservations/.n.json.new")).unwrap();
        let (own, other) = std::os::unix::net::UnixStream::pair().unwrap();
        let (sender, _) = ipc::channel::split(own, MAX_REPORT).unwrap();
        let stalled = world.stall();
        world.report(1, "after");
        world.wait_until(|state| state.storing.is_some());
        let export = world.shared.state().lent[0].export.clone();
        {
            let mut state = world.shared.state();
            (state.last_disk, state.sender, state.lent[0].is_sent) = (1, Some(sender), true);
        }
        let (shared, started) = (world.shared.clone(), mpsc::channel().1);
        let worker = super::super::Worker { shared, supervisor: None, started };
        // It is told that the disk is lent.
        worker.lend(&export).unwrap();
        std::fs::write(&path, "no").unwrap();
        drop(stalled);
        world.wait_until(|state| state.lent[1].reservations == Stored::Unreadable);
        assert!(!world.shared.state().lent[1].is_sent);
        std::fs::write(&path, before).unwrap();
        world.wait_until(|state| state.lent[1].is_sent);
        assert_eq!(known(&world.shared.state(), 1), Some(saved(1, "before")));
        let notes = world.shared.inbox.receive().notes;
        assert!(notes.iter().any(|note| note.contains("can be read again")), "{notes:?}");
        let (_, mut receiver) = ipc::channel::split(other, MAX_REPORT).unwrap();
        let mut lent = 0;
        worker.unlock();
        loop {
            match receiver.receive().unwrap().unwrap().0 {
                Request::Lend(_) => lent += 1,
                Request::Unlock => break,
                _ => {}
            }
        }
        assert_eq!(lent, 1, "the one that the worker has is not sent again");
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
        assert_eq!(worker.shared.state().lent.remove(0).reservations, Stored::Known(None));
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
        assert!(known(&worker.shared.state(), 0).is_some());
        worker.shared.state().lent.clear();
        std::fs::write(folder.0.join("reservations/n.json"), "no").unwrap();
        let failure = worker.lend(&export).unwrap_err().to_string();
        assert!(failure.contains("not lent") && failure.contains("n.json"), "{failure}");
        assert!(worker.shared.state().lent.is_empty());
    }
}
