//! The worker process: it receives listening sockets and open disks, talks to hosts, and can do
//! nothing else. The opener, which started it, passes it exports and access rules as requests and
//! receives reports.
//!
//! | module | is |
//! |---|---|
//! | `worker` | the opener's handle |
//! | `supervisor` | the opener's thread that receives reports and restarts a worker that died |
//! | `validator` | validation of reports: the worker is untrusted |
//! | `usage` | I/O counters of a disk, summed over restarts |
//! | `fence` | disks withheld while writes of a previous worker may be in flight |
//! | `process` | spawning the worker |
//! | `codes` | pairing, and the code for reading |
//! | `reservations` | storing of reservations |
//! | `messages` | the IPC messages |
//! | `main_loop`, `sessions`, `disks`, `reporter` | the worker itself, without privileges |
//!
//! The handle keeps all that the worker was sent, so that its replacement can be sent the same.

mod codes;
mod disks;
mod fence;
mod main_loop;
mod messages;
mod process;
mod reporter;
mod reservations;
mod sessions;
mod supervisor;
mod usage;
mod validator;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use export::{Auth, Export, ExportId, Policy, Usage};
use keys::reservations::ReservationFiles;
use linux::gadget::Endpoints;
use pair::FailedAttempts;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::certificates::Certificates;
use crate::inbox::{Inbox, WorkerEvent};
use crate::listen::Service;
use disks::check_locked;
use failure::{Failure, spawn_error};
use ipc::channel::Sender;
pub use main_loop::work;
use messages::{ExportWire, Request, ReservationsWire};
use reservations::{ReservationWriter, Stored, may_persist};
pub use usage::WriteTracker;

/// Added to the hosts' timeout before a stopping worker is killed.
const GRACE: Duration = Duration::from_secs(1);

/// Longest wait for the worker to publish an export.
const PUBLISHED_WAIT: Duration = Duration::from_secs(1);

/// Most pairing requests that wait for an answer: those of a pairing server, and those that clients
/// have abandoned since its last status.
const MAX_UNANSWERED: usize = 2 * pair::MAX_WAITING;

/// Configuration of the worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Config {
    /// Driver, threads and memory.
    pub engine: engine::Config,
    /// Whether DH-HMAC-CHAP is accepted without a Diffie-Hellman exchange.
    pub null_dh: bool,
    /// Server certificates for NBD clients.
    pub certificates: Option<Certificates>,
    /// The certificate for HTTPS.
    pub web_certificate: Option<Certificates>,
    /// First NVMe controller ID; differs per machine.
    pub first_controller: u16,
}

/// Handle of the worker process. Kills it when dropped.
#[derive(Debug)]
pub struct Worker {
    shared: Arc<Shared>,
    supervisor: Option<JoinHandle<()>>,
    /// Receives the outcome of the start, once.
    started: mpsc::Receiver<Result<(), Failure>>,
}

/// State shared by the handle and the supervisor thread.
struct Shared {
    inbox: Inbox,
    state: Mutex<State>,
    /// Notified when a disk is published, and when the worker stops or is lost.
    changed: Condvar,
    /// `None` if reservations are not stored.
    reservations: Option<ReservationWriter>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared")
    }
}

/// What the worker was sent, and its current state.
struct State {
    config: Config,
    listeners: Vec<AssignedListener>,
    /// A connection passed by [`Worker::adopt`].
    adopted: Option<OwnedFd>,
    lent: Vec<AssignedDisk>,
    stores_reservations: bool,
    /// IDs of exports that are withheld, one entry per reason.
    withheld: Vec<ExportId>,
    /// The disk whose reservations are being stored, if the current worker reported them.
    storing: Option<ExportId>,
    /// The disk whose file is being replaced.
    replacing: Option<ExportId>,
    last_disk: u64,
    policy: Policy,
    /// Name of this machine shown when pairing, if pairing is enabled.
    pairing: Option<String>,
    /// The code for reading by HTTPS.
    reading_code: Option<web::Code>,
    /// Failed pairing attempts, as reported by workers.
    tries: FailedAttempts,
    /// Numbers of the pairing requests that the worker reported and that wait for an answer.
    unanswered: Vec<u64>,
    /// Number of the worker: how many were lost.
    worker: u64,
    /// Channel to the worker; `None` while there is none.
    sender: Option<Sender>,
    process: Option<Pid>,
    /// Messages about what this system does not support.
    restrictions: Vec<String>,
    /// Whether the worker is to stop.
    stopping: bool,
    /// Set when the worker reported that it stopped: whether all hosts disconnected in time.
    stopped: Option<bool>,
}

/// A listening socket, kept open here for the next worker.
struct AssignedListener {
    listener: OwnedFd,
    auth: Auth,
    serves: Service,
}

/// A disk that was sent to the worker.
struct AssignedDisk {
    disk: u64,
    export: Arc<Export>,
    /// Whether the current worker has been sent it.
    is_sent: bool,
    /// Whether the current worker has reported that hosts find it.
    is_published: bool,
    withdrawn: bool,
    /// Counters of previous workers.
    before: Usage,
    being_written: bool,
    reservations: Stored,
}

impl Worker {
    /// Starts the process without disks and sockets, and does not wait for it: it is sent what it
    /// is assigned meanwhile once it runs, which is reported by [`WorkerEvent::Running`]. If it
    /// cannot run, [`WorkerEvent::Lost`] is reported. Its events go to `inbox`; while that is full,
    /// the worker waits.
    ///
    /// Reservations are stored in `files`, if hosts demand that they persist.
    ///
    /// # Errors
    /// Fails with a message if no thread can be started.
    pub fn start(
        config: Config,
        files: Option<ReservationFiles>,
        inbox: Inbox,
    ) -> Result<Self, Failure> {
        let stores_reservations = files.is_some();
        let (reservations, waiting) = files.map(ReservationWriter::new).unzip();
        let shared = Arc::new(Shared {
            inbox,
            state: Mutex::new(State { stores_reservations, ..State::new(config) }),
            changed: Condvar::new(),
            reservations,
        });
        let writer = waiting.map_or(Ok(()), |waiting| reservations::start(&shared, waiting));
        writer.map_err(|error| cannot(&spawn_error(&error)))?;
        let (started_tx, started_rx) = mpsc::channel();
        let supervisor = supervisor::start(shared.clone(), started_tx);
        let supervisor = supervisor.map_err(|error| cannot(&spawn_error(&error)))?;
        Ok(Self { shared, supervisor: Some(supervisor), started: started_rx })
    }

    /// Waits until the process runs. Call it once at most.
    ///
    /// # Errors
    /// Fails with a message if the process cannot be started or cannot run with its configuration.
    pub fn wait_until_running(&self) -> Result<(), Failure> {
        self.started.recv().unwrap_or_else(|_| Err(cannot(&"its thread ended")))
    }

    /// Returns messages about what this system does not support, once the process runs; each once.
    pub fn take_restrictions(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.state().restrictions)
    }

    /// Has the worker accept connections on a listening socket.
    pub fn accept(&self, listener: OwnedFd, auth: Auth, serves: Service) {
        let mut state = self.shared.state();
        let listeners = AssignedListener { listener, auth, serves };
        state.send_listener(&listeners);
        state.listeners.push(listeners);
    }

    /// Has the worker, which must be running, serve an existing connection. The connection is lost
    /// if the worker dies.
    pub fn adopt(&self, connection: OwnedFd, auth: Auth, serves: Service) {
        let mut state = self.shared.state();
        let request = Request::Adopt { auth, serves };
        state.pass(&request, &[connection.as_fd()]);
        state.adopted = Some(connection);
    }

    /// Has the worker serve a USB cable until it dies: see [`WorkerEvent::Replaced`].
    pub fn plug(&self, at: Endpoints) {
        let files = [&at.control, &at.bulk_in, &at.bulk_out].map(AsFd::as_fd);
        self.shared.state().pass(&Request::Plug, &files);
    }

    /// Exports a disk; replaces the export of the same ID.
    ///
    /// # Errors
    /// Fails if a descriptor that is only read is writable, or if reservations cannot be read.
    pub fn lend(&self, export: &Arc<Export>) -> Result<(), Failure> {
        check_locked(export).map_err(Failure::new)?;
        let disk = {
            let mut state = self.shared.state();
            state.last_disk += 1;
            let disk = state.last_disk;
            // From here on, what is reported of the export that this one replaces is not stored.
            state.lent.push(AssignedDisk {
                disk,
                export: export.clone(),
                is_sent: false,
                is_published: false,
                withdrawn: false,
                before: Usage::default(),
                being_written: false,
                reservations: Stored::Pending,
            });
            if state.replacing.as_ref() == Some(&export.id) {
                // It is sent when the file has been replaced: this thread does not wait for that.
                return Ok(());
            }
            disk
        };
        let files = self.shared.reservations.as_ref().map(ReservationWriter::files);
        let loaded = files.map(|files| reservations::load(files, export)).transpose();
        let mut state = self.shared.state();
        match loaded {
            Ok(loaded) => {
                state.loaded(disk, Stored::Known(loaded.flatten()));
                Ok(())
            }
            Err(failure) => {
                state.lent.retain(|assigned| assigned.disk != disk);
                Err(failure)
            }
        }
    }

    /// Waits until hosts find an export, for [`PUBLISHED_WAIT`] at most, and not at all if it is not
    /// sent yet. The worker takes long only if it reads the tables of an image from a disk that does not
    /// respond.
    pub fn wait_until_published(&self, export: &Arc<Export>) {
        let state = self.shared.state();
        let waits = |state: &mut State| {
            let is_pending = |disk: &mut AssignedDisk| disk.is_sent && !disk.is_published;
            state.is_alive() && state.assigned(export).is_some_and(is_pending)
        };
        drop(self.shared.changed.wait_timeout_while(state, PUBLISHED_WAIT, waits));
    }

    /// Withdraws an export; requests in flight fail.
    pub fn withdraw(&self, export: &Arc<Export>) {
        export.withdraw();
        let mut state = self.shared.state();
        let Some(assigned) = state.assigned(export) else { return };
        assigned.withdrawn = true;
        let (disk, is_sent) = (assigned.disk, assigned.is_sent);
        if !is_sent {
            // No worker has it, so none will report its release.
            state.lent.retain(|assigned| assigned.disk != disk);
        } else {
            state.send(&Request::Withdraw { disk });
        }
    }

    /// Announces the current size of `export` to hosts.
    pub fn resize(&self, export: &Arc<Export>) {
        let mut state = self.shared.state();
        let Some(disk) = state.assigned(export).map(|assigned| assigned.disk) else { return };
        state.send(&Request::Resize { disk, bytes: export.bytes() });
    }

    /// Replaces the access policy; revokes access of hosts that it does not contain.
    pub fn set_policy(&self, policy: Policy) {
        let mut state = self.shared.state();
        state.send(&Request::SetPolicy { policy: policy.clone() });
        state.policy = policy;
    }

    /// Returns a handle that reports whether writes of hosts to a disk are in flight. Counters of the
    /// last write may arrive a moment later.
    pub fn writes(&self, export: &Arc<Export>) -> WriteTracker {
        WriteTracker { shared: self.shared.clone(), export: export.clone() }
    }

    /// Stops the worker: stops listening, asks hosts to disconnect, and closes the remaining
    /// connections after `patience`. Returns whether all disconnected in time. All events have been
    /// delivered when this returns.
    pub fn stop(mut self, patience: Duration) -> bool {
        let milliseconds = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        let mut state = self.shared.state();
        state.stopping = true;
        // Without a worker there are no hosts.
        let was_alive = state.is_alive();
        state.send(&Request::Stop { milliseconds });
        let waits = |state: &mut State| state.stopped.is_none() && state.is_alive();
        let waited = self.shared.changed.wait_timeout_while(state, patience + GRACE, waits);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let in_time = state.stopped.unwrap_or(!was_alive);
        drop(state);
        self.end();
        in_time
    }

    fn end(&mut self) {
        self.shared.state().end();
        if let Some(supervisor) = self.supervisor.take() {
            // A panic was already reported.
            drop(supervisor.join());
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn emit(&self, event: WorkerEvent) {
        self.inbox.deliver(event);
    }
}

impl State {
    fn new(config: Config) -> Self {
        Self {
            config,
            listeners: Vec::new(),
            adopted: None,
            lent: Vec::new(),
            stores_reservations: false,
            withheld: Vec::new(),
            storing: None,
            replacing: None,
            last_disk: 0,
            policy: Policy::default(),
            pairing: None,
            reading_code: None,
            tries: FailedAttempts::default(),
            unanswered: Vec::new(),
            worker: 0,
            sender: None,
            process: None,
            restrictions: Vec::new(),
            stopping: false,
            stopped: None,
        }
    }

    fn is_alive(&self) -> bool {
        self.sender.is_some()
    }

    /// Sends a request if there is a worker. If it is dying, the supervisor notices, and its
    /// replacement is sent everything.
    fn send(&self, request: &Request) {
        self.pass(request, &[]);
    }

    /// Sends a request with a descriptor. Closes the channel on failure: after a partial frame the
    /// worker cannot continue and is replaced.
    fn pass(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) {
        let Some(sender) = &self.sender else { return };
        if sender.send(request, descriptors).is_err() {
            sender.close();
        }
    }

    fn send_listener(&self, listeners: &AssignedListener) {
        let request = Request::Accept { auth: listeners.auth, serves: listeners.serves };
        self.pass(&request, &[listeners.listener.as_fd()]);
    }

    /// Records what the file of a disk has, and sends the disk to the worker.
    fn loaded(&mut self, disk: u64, reservations: Stored) {
        if let Some(assigned) = self.disk_by_number(disk) {
            assigned.reservations = reservations;
        }
        self.send_disk(disk);
    }

    /// Sends a disk to the worker, if there is one, unless it is withheld or its reservations are not
    /// known.
    fn send_disk(&mut self, disk: u64) {
        let Some(assigned) = self.lent.iter().find(|assigned| assigned.disk == disk) else {
            return;
        };
        let Stored::Known(saved) = &assigned.reservations else { return };
        if !self.is_alive() || self.withheld.contains(&assigned.export.id) {
            return;
        }
        let mut export = Box::new(ExportWire::new(disk, &assigned.export));
        let stores = self.stores_reservations && may_persist(&assigned.export);
        export.reservations = stores.then(|| ReservationsWire { saved: saved.clone() });
        let request = Request::Lend(export);
        let files = assigned.export.backing().descriptors();
        self.pass(&request, &files.map(AsFd::as_fd).collect::<Vec<_>>());
        if let Some(assigned) = self.disk_by_number(disk) {
            assigned.is_sent = true;
        }
    }

    /// Sends everything to a new worker: first the access policy, then disks and sockets.
    fn send_all(&mut self) {
        self.send(&Request::SetPolicy { policy: self.policy.clone() });
        self.send_pairing();
        self.send_reading_code();
        let disks: Vec<u64> = self.lent.iter().map(|assigned| assigned.disk).collect();
        disks.into_iter().for_each(|disk| self.send_disk(disk));
        self.listeners.iter().for_each(|listeners| self.send_listener(listeners));
    }

    /// Records a reported pairing request.
    ///
    /// # Errors
    /// Fails if the pairing server of an uncompromised worker would not make it: if pairing is
    /// disabled, or if too many requests wait for an answer.
    fn pairing_requested(&mut self, number: u64) -> Result<(), ()> {
        let is_known = self.unanswered.contains(&number);
        if self.pairing.is_none() || is_known || self.unanswered.len() >= MAX_UNANSWERED {
            return Err(());
        }
        self.unanswered.push(number);
        Ok(())
    }

    fn assigned(&mut self, export: &Arc<Export>) -> Option<&mut AssignedDisk> {
        self.lent.iter_mut().rev().find(|assigned| Arc::ptr_eq(&assigned.export, export))
    }

    fn disk_by_number(&mut self, disk: u64) -> Option<&mut AssignedDisk> {
        self.lent.iter_mut().find(|assigned| assigned.disk == disk)
    }

    /// Kills the process.
    fn end(&mut self) {
        self.stopping = true;
        self.sender.iter().for_each(Sender::close);
        if let Some(process) = self.process {
            let _ = kill_process(process, Signal::KILL);
        }
    }
}

fn cannot(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(format!("cannot start to serve: {error}"))
}
