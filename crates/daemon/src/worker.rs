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
//! | `messages` | the IPC messages |
//! | `main_loop`, `sessions`, `disks`, `reporter` | the worker itself, without privileges |
//!
//! The handle keeps all that the worker was sent, so that its replacement can be sent the same.

mod disks;
mod fence;
mod main_loop;
mod messages;
mod process;
mod reporter;
mod sessions;
mod supervisor;
mod usage;
mod validator;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use engine::{Driver, Running};
use export::{Access, Auth, Export, ExportId, Policy};
use pair::{FailedAttempts, Verdict};
use rustix::fs::{OFlags, SealFlags, fcntl_get_seals, fcntl_getfl};
use rustix::process::{Pid, Signal, kill_process};

use crate::certificates::Certificates;
use crate::inbox::WorkerEvent;
use crate::listen::ListenerRole;
use failure::{Failure, spawn_error};
use fence::Withheld;
use ipc::channel::Sender;
pub use main_loop::work;
use messages::{Counts, ExportWire, Request, Start, TriesWire};
use usage::usage_of;

/// Beyond the patience with the hosts, before a worker that is told to stop is ended.
const GRACE: Duration = Duration::from_secs(1);

/// Takes it. Called on the keeper's thread, so it should not wait for anything, and must not call the [`Worker`].
pub type Sink = Arc<dyn Fn(WorkerEvent) + Send + Sync>;

/// How it is to run.
#[derive(Debug, Clone)]
pub struct Config {
    /// Which driver.
    pub driver: Driver,
    /// Its threads.
    pub threads: usize,
    /// Bytes of payload buffers a thread.
    pub memory: usize,
    /// Bytes of payload buffers in all.
    pub budget: usize,
    /// Bytes of memory for connections, beside payloads.
    pub connections: usize,
    /// Whether DH-HMAC-CHAP without a Diffie-Hellman exchange will do.
    pub null_dh: bool,
    /// What this machine shows to NBD clients that speak TLS with certificates.
    pub certificates: Option<Certificates>,
    /// Where the numbers of NVMe controllers begin: elsewhere on every machine.
    pub first_controller: u16,
}

/// The process that serves. Dropping it ends it at once.
#[derive(Debug)]
pub struct Worker {
    shared: Arc<Shared>,
    supervisor: Option<JoinHandle<()>>,
}

/// What the handle and the keeper share.
struct Shared {
    sink: Sink,
    state: Mutex<State>,
    stopped: Condvar,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared")
    }
}

/// All that a worker is told, and how it stands with it.
struct State {
    start: Start,
    listeners: Vec<AssignedListener>,
    /// A connection that it was given.
    adopted: Option<OwnedFd>,
    lent: Vec<AssignedDisk>,
    /// The names of disks that no worker gets just now, once for each reason.
    withheld: Vec<ExportId>,
    last_disk: u64,
    policy: Policy,
    /// What this machine calls itself to who knows the code, if there is one.
    pairing: Option<String>,
    /// The count of wrong codes, as reported by workers.
    tries: FailedAttempts,
    /// To the worker; none while there is none.
    sender: Option<Sender>,
    process: Option<Pid>,
    running: Option<Running>,
    unconfined: Vec<String>,
    /// Whether it is meant to end.
    stopping: bool,
    /// Whether it said that it did, and whether in time.
    stopped: Option<bool>,
}

/// A listening socket, which stays open here.
struct AssignedListener {
    listener: OwnedFd,
    auth: Auth,
    serves: ListenerRole,
}

/// A disk that a worker has.
struct AssignedDisk {
    disk: u64,
    export: Arc<Export>,
    withdrawn: bool,
    /// What workers before this one did with it.
    before: Counts,
    being_written: bool,
}

impl Worker {
    /// Starts the process, without any disk or socket. What happens goes to `sink`.
    ///
    /// # Errors
    /// It cannot be started, or cannot run as `config` says: one sentence.
    pub fn start(config: &Config, sink: Sink) -> Result<Self, Failure> {
        let shared = Arc::new(Shared {
            sink,
            state: Mutex::new(State::new(config)),
            stopped: Condvar::new(),
        });
        let (started_tx, started_rx) = mpsc::channel();
        let supervisor = supervisor::start(shared.clone(), started_tx);
        let supervisor = supervisor.map_err(|error| cannot(&spawn_error(&error)))?;
        let worker = Self { shared, supervisor: Some(supervisor) };
        started_rx.recv().unwrap_or_else(|_| Err(cannot(&"its thread ended")))?;
        Ok(worker)
    }

    /// The driver that runs there, and why.
    pub fn driver(&self) -> Running {
        let unknown = || Running { driver: Driver::Auto, why: "nothing runs".to_owned() };
        self.shared.state().running.clone().unwrap_or_else(unknown)
    }

    /// In what it is less confined than it should be, for people.
    pub fn note(&self) -> Option<String> {
        let parts = self.shared.state().unconfined.clone();
        (!parts.is_empty()).then(|| {
            let parts = parts.join("; ");
            format!("The process that talks to hosts is less confined than it could be: {parts}.")
        })
    }

    /// Has the worker accept connections at a socket that listens.
    pub fn accept(&self, listener: OwnedFd, auth: Auth, serves: ListenerRole) {
        let mut state = self.shared.state();
        let listeners = AssignedListener { listener, auth, serves };
        state.send_listener(&listeners);
        state.listeners.push(listeners);
    }

    /// Has the worker serve a connection that is there already. A worker that dies takes it along.
    pub fn adopt(&self, connection: OwnedFd, auth: Auth, serves: ListenerRole) {
        let mut state = self.shared.state();
        let request = Request::Adopt { keyed: auth == Auth::Required, serves };
        state.pass(&request, Some(connection.as_fd()));
        state.adopted = Some(connection);
    }

    /// Lends a disk, in place of one of the same name if there is one.
    ///
    /// # Errors
    /// The disk is to be read-only, and its descriptor is not.
    pub fn lend(&self, export: &Arc<Export>) -> Result<(), Failure> {
        check_locked(export).map_err(Failure::new)?;
        let mut state = self.shared.state();
        state.last_disk += 1;
        let assigned = AssignedDisk {
            disk: state.last_disk,
            export: export.clone(),
            withdrawn: false,
            before: Counts::default(),
            being_written: false,
        };
        state.send_disk(&assigned);
        state.lent.push(assigned);
        Ok(())
    }

    /// Lends a disk no longer, and has requests for it fail.
    pub fn withdraw(&self, export: &Arc<Export>) {
        export.withdraw();
        let mut state = self.shared.state();
        let is_withheld = state.withheld.contains(&export.id);
        let Some(assigned) = state.assigned(export) else { return };
        assigned.withdrawn = true;
        let disk = assigned.disk;
        if is_withheld {
            // No worker has it, and none will report that it is released.
            state.lent.retain(|assigned| assigned.disk != disk);
        } else {
            state.send(&Request::Withdraw { disk });
        }
    }

    /// Has hosts see the size that the disk has now: that of `export`.
    pub fn resize(&self, export: &Arc<Export>) {
        let mut state = self.shared.state();
        let Some(disk) = state.assigned(export).map(|assigned| assigned.disk) else { return };
        state.send(&Request::Resize { disk, bytes: export.bytes() });
    }

    /// Lets in whom `policy` names from now on, and nobody else where keys are needed.
    pub fn set_policy(&self, policy: Policy) {
        let mut state = self.shared.state();
        state.send(&Request::SetPolicy { hosts: messages::hosts(&policy) });
        state.policy = policy;
    }

    /// Has it let in who knows a code, which it says by [`WorkerEvent::Pairing`]. This machine calls itself `name` then.
    pub fn enable_pairing(&self, name: &str) {
        let mut state = self.shared.state();
        state.pairing = Some(name.to_owned());
        state.send_pairing();
    }

    /// Has it show another code, and take tries anew: somebody is at this machine.
    pub fn unlock(&self) {
        let mut state = self.shared.state();
        state.tries = FailedAttempts::default();
        state.send(&Request::Unlock);
    }

    /// Answers [`export::Event::PairingRequested`]: the knock of that number.
    pub fn answer(&self, number: u64, verdict: Verdict) {
        let verdict = verdict.into();
        self.shared.state().send(&Request::Answer { number, verdict });
    }

    /// Asks whether hosts' writes to a disk are still on their way. What the last of them did may be known a moment later.
    pub fn writes(&self, export: &Arc<Export>) -> WriteTracker {
        WriteTracker { shared: self.shared.clone(), export: export.clone() }
    }

    /// Stops: accepts nothing any more, has hosts let go, and ends. Those that have not let go after `patience` are cut
    /// off. Tells whether there were none. All that happened has been said when this returns.
    pub fn stop(mut self, patience: Duration) -> bool {
        let milliseconds = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        let mut state = self.shared.state();
        state.stopping = true;
        state.send(&Request::Stop { milliseconds });
        let waits = |state: &mut State| state.stopped.is_none() && state.is_alive();
        let waited = self.shared.stopped.wait_timeout_while(state, patience + GRACE, waits);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let in_time = state.stopped.unwrap_or(false);
        drop(state);
        self.end();
        in_time
    }

    fn end(&mut self) {
        self.shared.state().end();
        if let Some(supervisor) = self.supervisor.take() {
            // One that panicked has said so.
            drop(supervisor.join());
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.end();
    }
}

/// Whether hosts' writes to a disk are still on their way; may be asked on any thread.
#[derive(Debug)]
pub struct WriteTracker {
    shared: Arc<Shared>,
    export: Arc<Export>,
}

impl WriteTracker {
    /// Whether there are some.
    pub fn in_flight(&self) -> bool {
        let mut state = self.shared.state();
        // Of a disk that is withheld nobody knows yet.
        state.withheld.contains(&self.export.id)
            || state.assigned(&self.export).is_some_and(|assigned| assigned.being_written)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn emit(&self, event: WorkerEvent) {
        (self.sink)(event);
    }
}

impl State {
    fn new(config: &Config) -> Self {
        Self {
            start: Start {
                driver: config.driver.into(),
                threads: config.threads,
                memory: config.memory,
                budget: config.budget,
                connections: config.connections,
                null_dh: config.null_dh,
                certificates: config.certificates.as_ref().map(Into::into),
                first_controller: config.first_controller,
            },
            listeners: Vec::new(),
            adopted: None,
            lent: Vec::new(),
            withheld: Vec::new(),
            last_disk: 0,
            policy: Policy::default(),
            pairing: None,
            tries: FailedAttempts::default(),
            sender: None,
            process: None,
            running: None,
            unconfined: Vec::new(),
            stopping: false,
            stopped: None,
        }
    }

    fn is_alive(&self) -> bool {
        self.sender.is_some()
    }

    /// Says it, if there is somebody. Who dies just now is noticed by the keeper, and the next one is told all.
    fn send(&self, request: &Request) {
        self.pass(request, None);
    }

    /// An order that was not taken whole makes no sense of the next: such a worker is replaced.
    fn pass(&self, request: &Request, descriptor: Option<BorrowedFd<'_>>) {
        let Some(sender) = &self.sender else { return };
        if sender.send(request, descriptor).is_err() {
            sender.close();
        }
    }

    fn send_listener(&self, listeners: &AssignedListener) {
        let keyed = listeners.auth == Auth::Required;
        let request = Request::Accept { keyed, serves: listeners.serves };
        self.pass(&request, Some(listeners.listener.as_fd()));
    }

    fn send_pairing(&self) {
        let Some(name) = self.pairing.clone() else { return };
        let tries = TriesWire::new(&self.tries, Instant::now());
        self.send(&Request::EnablePairing { name, tries });
    }

    fn send_disk(&self, assigned: &AssignedDisk) {
        if self.withheld.contains(&assigned.export.id) {
            return;
        }
        let request = Request::Lend(Box::new(ExportWire::new(assigned.disk, &assigned.export)));
        self.pass(&request, Some(assigned.export.as_fd()));
    }

    /// Tells a new worker all that the last one knew. Before disks and sockets it learns whom to let in.
    fn send_all(&self) {
        self.send(&Request::SetPolicy { hosts: messages::hosts(&self.policy) });
        self.send_pairing();
        self.lent.iter().for_each(|assigned| self.send_disk(assigned));
        self.listeners.iter().for_each(|listeners| self.send_listener(listeners));
    }

    fn assigned(&mut self, export: &Arc<Export>) -> Option<&mut AssignedDisk> {
        self.lent.iter_mut().rev().find(|assigned| Arc::ptr_eq(&assigned.export, export))
    }

    fn disk_by_number(&mut self, disk: u64) -> Option<&mut AssignedDisk> {
        self.lent.iter_mut().find(|assigned| assigned.disk == disk)
    }

    /// The worker is gone, or cannot be ended. What it had begun to write may still be written, so its writable disks are
    /// withheld until each is released as often as it was.
    fn worker_lost(&mut self) -> Vec<Withheld> {
        (self.sender, self.process) = (None, None);
        // It may have died of a wrong code that it could not report any more.
        if self.pairing.is_some() {
            self.tries.fail(Instant::now());
        }
        // Nobody else can go on with what was said there.
        if let Some(connection) = self.adopted.take() {
            let _ = rustix::net::shutdown(connection, rustix::net::Shutdown::Both);
        }
        self.lent.retain(|assigned| !assigned.withdrawn);
        for assigned in &mut self.lent {
            assigned.before = usage_of(&assigned.export);
        }
        let lent = self.lent.iter();
        let writable = lent.filter(|assigned| assigned.export.access == Access::Writable);
        let withheld: Vec<Withheld> = writable
            .map(|assigned| Withheld {
                export: assigned.export.clone(),
                was_written: assigned.being_written,
            })
            .collect();
        // After the last worker nobody releases them.
        if !self.stopping {
            self.withheld.extend(withheld.iter().map(|withheld| withheld.export.id.clone()));
        }
        withheld
    }

    /// Nothing that an old worker has begun will be written to the disk of that name any more.
    fn release(&mut self, id: &ExportId) {
        if let Some(at) = self.withheld.iter().position(|withheld| withheld == id) {
            self.withheld.swap_remove(at);
        }
        if self.withheld.iter().any(|withheld| withheld == id) {
            return;
        }
        for assigned in self.lent.iter_mut().filter(|assigned| assigned.export.id == *id) {
            assigned.being_written = false;
        }
        let lent =
            self.lent.iter().filter(|assigned| assigned.export.id == *id && !assigned.withdrawn);
        lent.for_each(|assigned| self.send_disk(assigned));
    }

    /// Ends it at once.
    fn end(&mut self) {
        self.stopping = true;
        self.sender.iter().for_each(Sender::close);
        if let Some(process) = self.process {
            let _ = kill_process(process, Signal::KILL);
        }
    }
}

/// Refuses a read-only disk whose descriptor could write: both processes look, and neither trusts the other.
///
/// # Errors
/// A sentence.
fn check_locked(export: &Export) -> Result<(), String> {
    if export.access == Access::Writable || is_locked(export) {
        return Ok(());
    }
    let name = &export.name;
    Err(format!("{name} is to be lent read-only, but is open for writing; it is not lent"))
}

/// Whether nothing can be written through it: it was opened for reading only, or its memory is sealed.
fn is_locked(descriptor: impl AsFd) -> bool {
    let mode = fcntl_getfl(&descriptor).map(|flags| flags & OFlags::ACCMODE);
    let seals = fcntl_get_seals(&descriptor);
    mode == Ok(OFlags::RDONLY) || seals.is_ok_and(|seals| seals.contains(SealFlags::WRITE))
}

fn cannot(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(format!("cannot start to serve: {error}"))
}
