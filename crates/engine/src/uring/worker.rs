//! A worker thread with a ring. Each turn of its event loop submits all queued operations in one
//! system call, reaps completions and passes them to the sessions, and then settles each session
//! that has changed.

use std::io;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use export::{Notice, Pool};

use super::blocking_pool::BlockingPool;
use super::connection::Connection;
use super::ring::{Done, Ring};
use super::slots::{Key, Slots};
use super::spin::Spin;
use super::turn::Turn;
use crate::disk::{Answer, Mappings};
use crate::inbox::{Inbox, Message};
use crate::link::Link;
use crate::recv_buffer::RecvBuffer;
use crate::topic::{Changes, Topic};
use crate::{Config, MEMORY_RETRY, MakeSession, Shared};

/// After this idle time cached buffers are freed.
const IDLE: Duration = Duration::from_secs(1);

/// Longest sleep. Every event ends it.
const SLEEP: Duration = Duration::from_secs(3600);

/// Shortest interval between two ticks of a session, whatever its deadline.
const TICK: Duration = Duration::from_millis(1);

/// A thread that wakes up this much late was stopped or starved.
const STALL: Duration = Duration::from_millis(100);

/// After a stall: time for processing what peers have sent meanwhile, before deadlines are
/// enforced.
const CATCH_UP: Duration = Duration::from_millis(10);

/// The worker threads.
#[derive(Debug)]
pub(crate) struct Workers(Vec<WorkerHandle>);

#[derive(Debug)]
struct WorkerHandle {
    inbox: Arc<Inbox>,
    /// Number of its connections.
    load: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

/// Starts the threads.
///
/// # Errors
/// Fails if a thread or its ring cannot be created; those already started are stopped.
pub(crate) fn spawn(config: &Config, shared: &Arc<Shared>) -> io::Result<Workers> {
    let mut workers = Workers(Vec::new());
    for _ in 0..config.threads.max(1) {
        match spawn_one(config, shared) {
            Ok(worker) => workers.0.push(worker),
            Err(error) => {
                workers.0.iter().for_each(|worker| worker.inbox.push(Message::Quit));
                workers.join();
                return Err(error);
            }
        }
    }
    Ok(workers)
}

fn spawn_one(config: &Config, shared: &Arc<Shared>) -> io::Result<WorkerHandle> {
    let inbox = Inbox::new()?;
    let load = Arc::new(AtomicUsize::new(0));
    let (report, reported) = mpsc::channel();
    let state = (config.clone(), shared.clone(), inbox.clone(), load.clone());
    let work = move || {
        let (config, shared, inbox, load) = state;
        let ring = Ring::open(inbox.clone());
        let opened = ring.as_ref().map(drop).map_err(clone);
        // Cannot fail: the other side waits for this message.
        let _ = report.send(opened);
        if let Ok(ring) = ring {
            let _notify = NotifyOnExit(shared.clone());
            Worker::new(ring, &config, shared, inbox, load).run();
        }
    };
    let thread = std::thread::Builder::new().name("ring".to_owned()).spawn(work)?;
    reported.recv().map_err(|_| io::Error::other("the ring's thread ended before it began"))??;
    Ok(WorkerHandle { inbox, load, thread })
}

fn clone(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}

impl Workers {
    /// Assigns a connection to the thread with the fewest. Threads that have panicked are skipped;
    /// if all have, the connection is closed.
    pub(crate) fn adopt(&self, link: Arc<Link>, open: MakeSession) {
        let load = |worker: &&WorkerHandle| worker.load.load(Ordering::Relaxed);
        let works = |worker: &&WorkerHandle| !worker.thread.is_finished();
        if let Some(worker) = self.0.iter().filter(works).min_by_key(load) {
            worker.load.fetch_add(1, Ordering::Relaxed);
            worker.inbox.push(Message::Adopt(link, open));
        }
    }

    /// Waits for the threads to end.
    pub(crate) fn join(self) {
        // The panic of a thread has already been printed.
        self.0.into_iter().for_each(|worker| drop(worker.thread.join()));
    }
}

struct Worker {
    turn: Turn,
    connections: Slots<Connection>,
    /// Connections to be settled this turn.
    dirty: Vec<Key>,
    pool: Pool,
    shared: Arc<Shared>,
    load: Arc<AtomicUsize>,
    spin: Spin,
    /// The earliest deadline of a session.
    next_tick: Option<Instant>,
    /// The earliest timeout of a coalescing wait.
    next_flush: Option<Instant>,
    /// Whether deadlines were already postponed because of a stall.
    catching_up: bool,
    /// Changes that the sessions of this thread are notified of in the next turn.
    changes: Changes,
    stopping: bool,
    quitting: bool,
}

impl Worker {
    fn new(
        ring: Ring,
        config: &Config,
        shared: Arc<Shared>,
        inbox: Arc<Inbox>,
        load: Arc<AtomicUsize>,
    ) -> Self {
        shared.inboxes.register(&inbox);
        let blocking_pool = BlockingPool::new(inbox.clone());
        let (now, sink) = (Instant::now(), shared.sink.clone());
        let (mappings, changes) =
            (Mappings::new(config.budget / config.threads.max(1)), Changes::default());
        let turn = Turn { ring, inbox, blocking_pool, mappings, now, changes, sink };
        Self {
            turn,
            connections: Slots::default(),
            dirty: Vec::new(),
            pool: Pool::with_budget(config.memory, shared.budget.clone()),
            shared,
            load,
            spin: Spin::new(config.spin),
            next_tick: None,
            next_flush: None,
            catching_up: false,
            changes: Changes::default(),
            stopping: false,
            quitting: false,
        }
    }

    fn run(mut self) {
        self.turn.ring.arm_wake();
        while !(self.quitting && self.connections.is_empty()) {
            if let Err(error) = self.wait() {
                // The ring is unusable: nothing can be received, sent or read. Unwinding cuts the
                // connections.
                panic!("io_uring_enter failed: {error}");
            }
            self.turn.now = Instant::now();
            self.reap();
            self.read_inbox();
            self.tick();
            self.flush_coalesced();
            self.settle();
            self.broadcast();
        }
        self.end_wake_wait();
    }

    /// Ends the wait for the eventfd, so that nothing is in flight in the ring.
    fn end_wake_wait(&mut self) {
        self.turn.inbox.push(Message::Quit);
        while !matches!(self.turn.ring.reap(), Some(Done::Wake)) {
            if self.turn.ring.enter(Some(IDLE)).is_err() {
                return;
            }
        }
    }

    /// Submits, and waits until there is something to do: polls first if an event is likely soon,
    /// then sleeps.
    fn wait(&mut self) -> io::Result<()> {
        let stays = self.has_work() || self.budget().is_some();
        // When about to sleep, submits and waits in one `io_uring_enter`.
        if stays && (self.turn.ring.has_unsubmitted() || self.turn.ring.has_task_work()) {
            self.turn.ring.enter(None)?;
        }
        if self.has_work() {
            return Ok(());
        }
        let began = Instant::now();
        if !self.poll(began)? {
            let timeout = self.timeout(began);
            self.turn.ring.enter(Some(timeout))?;
        }
        let wait = began.elapsed();
        if self.next_flush.is_none() {
            self.spin.waited(wait);
        }
        if wait >= IDLE {
            self.pool.trim();
        }
        Ok(())
    }

    fn has_work(&mut self) -> bool {
        let waiting = !self.changes.is_empty() || !self.dirty.is_empty();
        waiting || self.turn.ring.is_ready() || self.turn.inbox.has_messages()
    }

    /// Returns how long to poll now. Does not poll during a coalescing wait, which the first
    /// request does not end.
    fn budget(&self) -> Option<Duration> {
        let is_idle = self.connections.is_empty() || self.next_flush.is_some();
        self.spin.budget().filter(|_| !is_idle)
    }

    /// Polls memory for something to do. Returns whether there is.
    fn poll(&mut self, began: Instant) -> io::Result<bool> {
        let Some(budget) = self.budget() else { return Ok(false) };
        while began.elapsed() < budget {
            for _ in 0..16 {
                if self.turn.ring.has_task_work() {
                    self.turn.ring.enter(None)?;
                }
                if self.has_work() {
                    self.spin.polled(true);
                    return Ok(true);
                }
                std::hint::spin_loop();
            }
        }
        self.spin.polled(false);
        Ok(false)
    }

    fn timeout(&self, now: Instant) -> Duration {
        let longest = if self.pool.has_unused() { IDLE } else { SLEEP };
        let next = earlier(self.next_tick, self.next_flush);
        next.map_or(longest, |at| at.saturating_duration_since(now).min(longest))
    }

    fn reap(&mut self) {
        while let Some(done) = self.turn.ring.reap() {
            match done {
                Done::Disk(key, job) => {
                    self.with(key, |connection, turn| connection.completed(turn, job));
                }
                Done::Received(receiving, result) => {
                    let key = receiving.owner;
                    self.with(key, |connection, turn| connection.received(turn, receiving, result));
                }
                Done::Sent(sending, result) => {
                    let key = sending.owner;
                    self.with(key, |connection, turn| connection.sent(turn, sending, result));
                }
                // Endpoints have a thread of their own.
                Done::Incoming(..) | Done::Outgoing(..) => {}
                Done::Wake => self.turn.ring.arm_wake(),
            }
        }
    }

    /// Calls `act` with a connection, and marks it to be settled.
    fn with(&mut self, key: Key, act: impl FnOnce(&mut Connection, &mut Turn)) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        attempt(connection, &mut self.turn, act);
        if !std::mem::replace(&mut connection.is_dirty, true) {
            self.dirty.push(key);
        }
    }

    /// Does the same with all connections.
    fn with_all(&mut self, act: impl Fn(&mut Connection, &mut Turn)) {
        self.with_those(|_| true, act);
    }

    /// Does the same with all connections that are `wanted`.
    fn with_those(
        &mut self,
        wanted: impl Fn(&Connection) -> bool,
        act: impl Fn(&mut Connection, &mut Turn),
    ) {
        for (key, connection) in self.connections.iter_mut() {
            if !wanted(connection) {
                continue;
            }
            attempt(connection, &mut self.turn, &act);
            if !std::mem::replace(&mut connection.is_dirty, true) {
                self.dirty.push(key);
            }
        }
    }

    fn read_inbox(&mut self) {
        if !self.changes.is_empty() {
            let changes = std::mem::take(&mut self.changes);
            self.notify_concerned(&changes);
        }
        if !self.turn.inbox.has_messages() {
            return;
        }
        let mut changes = Changes::default();
        for message in self.turn.inbox.take() {
            match message {
                Message::Adopt(link, open) => self.adopt(link, &open),
                Message::Notice(notice) => {
                    self.stopping |= notice == Notice::Stopping;
                    self.with_all(|connection, turn| connection.notify(turn, notice));
                }
                Message::ExportChanged(id) => changes.add(Topic::Export(id)),
                Message::BlockingOpDone(number, answer) => self.take_back(number, answer),
                Message::Quit => {
                    self.quitting = true;
                    self.with_all(Connection::disconnect);
                }
            }
        }
        if !changes.is_empty() {
            self.notify_concerned(&changes);
        }
    }

    /// Notifies the sessions that one of `changes` concerns.
    fn notify_concerned(&mut self, changes: &Changes) {
        self.with_those(
            |connection| changes.concern(connection.link().export()),
            |connection, turn| connection.notify(turn, Notice::StateChanged),
        );
    }

    /// Completes a request of the thread pool.
    fn take_back(&mut self, number: u64, answer: Answer) {
        if let Some((key, mut job)) = self.turn.blocking_pool.take_back(number) {
            job.answer(answer);
            self.with(key, |connection, turn| connection.completed(turn, job));
        }
    }

    fn adopt(&mut self, link: Arc<Link>, open: &MakeSession) {
        if self.quitting {
            return;
        }
        let Ok(file) = self.turn.ring.put(link.as_fd()) else {
            // The file table is full; the peer may retry.
            self.load.fetch_sub(1, Ordering::Relaxed);
            return;
        };
        let Some(recv_buffer) = RecvBuffer::with_bytes(&link.take_early_data()) else {
            // Out of memory; the peer may retry.
            self.load.fetch_sub(1, Ordering::Relaxed);
            return;
        };
        let now = self.turn.now;
        let account = self.pool.open_for(link.peer().tenant());
        self.turn.inbox.add_session();
        let session = open(link.peer(), account, now);
        let connect = |key| Connection::open(key, link, file, recv_buffer, session, now);
        let key = self.connections.insert_with(connect);
        let stopping = self.stopping;
        self.with(key, |connection, turn| {
            if stopping {
                connection.notify(turn, Notice::Stopping);
            }
        });
    }

    fn tick(&mut self) {
        let now = self.turn.now;
        let Some(at) = self.next_tick.filter(|&at| at <= now) else { return };
        let stalled = now.duration_since(at) >= STALL;
        if stalled && !std::mem::replace(&mut self.catching_up, true) {
            self.next_tick = Some(now + CATCH_UP);
            return;
        }
        self.catching_up = false;
        self.next_tick = None;
        self.with_all(|connection, turn| connection.tick(turn));
    }

    /// Continues connections whose coalescing wait has timed out.
    fn flush_coalesced(&mut self) {
        let now = self.turn.now;
        if self.next_flush.take_if(|at| *at <= now).is_some() {
            for (_, connection) in self.connections.iter_mut() {
                connection.flush_coalesced(now);
                self.next_flush = earlier(self.next_flush, connection.coalescing_until);
            }
        }
    }

    fn settle(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        let mut unfinished = Vec::new();
        if dirty.len() == self.connections.len() {
            self.next_flush = None;
        }
        for key in dirty.drain(..) {
            let Some(connection) = self.connections.get_mut(key) else { continue };
            let over = attempt(connection, &mut self.turn, Connection::settle);
            if connection.is_unfinished {
                connection.is_dirty = true;
                unfinished.push(key);
            } else if over.unwrap_or_else(|| connection.is_over()) {
                // An association may have ended with the connection.
                self.turn.changes.add(connection.link().topic());
                self.turn.inbox.remove_session(connection.link().export());
                self.connections.remove(key);
                self.load.fetch_sub(1, Ordering::Relaxed);
            } else {
                let tick = connection.deadline().map(|at| at.max(self.turn.now + TICK));
                self.next_tick = earlier(self.next_tick, tick);
                self.next_flush = earlier(self.next_flush, connection.coalescing_until);
            }
        }
        dirty.append(&mut unfinished);
        self.dirty = dirty;
        if self.pool.was_short() {
            self.next_tick = earlier(self.next_tick, Some(self.turn.now + MEMORY_RETRY));
        }
    }

    /// Notifies all other threads, and this one in its next turn, of the changes of shared state. At
    /// most once per turn.
    fn broadcast(&mut self) {
        if self.turn.changes.is_empty() {
            return;
        }
        for topic in std::mem::take(&mut self.turn.changes) {
            self.shared.inboxes.changed(&topic, Some(&self.turn.inbox));
            self.changes.add(topic);
        }
    }
}

impl Drop for Worker {
    /// Runs even if the thread panics. Operations in a broken ring keep the sockets open, so they
    /// are shut down here.
    fn drop(&mut self) {
        self.shared.inboxes.unregister(&self.turn.inbox);
        self.connections.iter_mut().for_each(|(_, connection)| connection.shut());
    }
}

/// Dropped after the sessions of a thread, even if it panics: associations may have ended with
/// them, so the other sessions are notified.
struct NotifyOnExit(Arc<Shared>);

impl Drop for NotifyOnExit {
    fn drop(&mut self) {
        self.0.inboxes.notify(Notice::StateChanged, None);
    }
}

fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    one.into_iter().chain(other).min()
}

/// Calls `act` with a connection. If its session panics, the connection is closed.
fn attempt<T>(
    connection: &mut Connection,
    turn: &mut Turn,
    act: impl FnOnce(&mut Connection, &mut Turn) -> T,
) -> Option<T> {
    // Only the session can be left in an inconsistent state, and it is dropped.
    let result = catch_unwind(AssertUnwindSafe(|| act(connection, turn)));
    if result.is_err() {
        connection.fail(turn);
    }
    result.ok()
}

#[cfg(test)]
mod test {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use export::{Auth, Budget, Head, Outcome, Peer, Segment, Session, Step, Ticket};

    use super::*;
    use crate::inbox::Inboxes;
    use crate::link::{Bounds, ConnectionTable};

    /// Records whether another thread has been notified when it is dropped.
    struct Watcher(Arc<Inbox>, mpsc::Sender<bool>);

    impl Drop for Watcher {
        fn drop(&mut self) {
            let _ = self.1.send(self.0.has_messages());
        }
    }

    impl Session for Watcher {
        fn receive(&mut self, _: Instant, bytes: &[u8]) -> usize {
            bytes.len()
        }

        fn complete(&mut self, _: Instant, _: Ticket, _: Outcome) {}

        fn notify(&mut self, _: Instant, _: &Notice) {}

        fn tick(&mut self, _: Instant) {}

        fn poll(&mut self) -> Option<Step> {
            None
        }

        fn deadline(&self) -> Option<Instant> {
            None
        }

        fn can_receive(&self) -> bool {
            true
        }

        fn is_established(&self) -> bool {
            true
        }
    }

    #[test]
    fn thread_that_panics_notifies_after_dropping_its_sessions() {
        let table = ConnectionTable::new(Bounds { total: 8, unestablished: 8 });
        let (sink, inboxes) = (Arc::new(|_| {}), Inboxes::default());
        let budget = Budget::new(1 << 20);
        let shared = Arc::new(Shared { sink, inboxes, table: table.clone(), budget });
        let Ok(workers) = spawn(&Config::default(), &shared) else { return };
        let other = Inbox::new().unwrap();
        shared.inboxes.register(&other);
        let (watched, (report, dropped)) = (other.clone(), mpsc::channel());
        let watch: MakeSession = Arc::new(move |_, _, _| {
            Box::new(Watcher(watched.clone(), report.clone())) as Box<dyn Session>
        });
        let panics: MakeSession = Arc::new(|_, _, _| panic!("as the test wants it"));
        let peers = [watch, panics].map(|open| {
            let (socket, peer) = UnixStream::pair().unwrap();
            let link = table.insert(socket.into(), Peer::unix(Auth::None)).unwrap();
            workers.adopt(link, open);
            peer
        });
        workers.join();
        drop(peers);
        assert_eq!(dropped.iter().collect::<Vec<_>>(), [false], "no session was notified before");
        assert!(other.has_messages(), "and then it was");
    }

    /// Answers each [`PAYLOAD`] bytes, and reports how many are received at once. Lends no memory.
    struct Counter(usize, mpsc::Sender<usize>);

    const PAYLOAD: usize = 128 << 10;

    impl Session for Counter {
        fn receive(&mut self, _: Instant, bytes: &[u8]) -> usize {
            self.0 += bytes.len();
            let _ = self.1.send(bytes.len());
            bytes.len()
        }

        fn complete(&mut self, _: Instant, _: Ticket, _: Outcome) {}

        fn notify(&mut self, _: Instant, _: &Notice) {}

        fn tick(&mut self, _: Instant) {}

        fn poll(&mut self) -> Option<Step> {
            self.0 = self.0.checked_sub(PAYLOAD)?;
            Some(Step::Send(Segment::head(Head::new(&[0; 16]))))
        }

        fn deadline(&self) -> Option<Instant> {
            None
        }

        fn can_receive(&self) -> bool {
            true
        }

        fn is_established(&self) -> bool {
            true
        }
    }

    #[test]
    fn large_requests_without_direct_receive_come_in_large_pieces() {
        let table = ConnectionTable::new(Bounds { total: 8, unestablished: 8 });
        let (sink, inboxes) = (Arc::new(|_| {}), Inboxes::default());
        let shared = Arc::new(Shared { sink, inboxes, table, budget: Budget::new(1 << 20) });
        let Ok(workers) = spawn(&Config::default(), &shared) else { return };
        let (report, received) = mpsc::channel();
        let count: MakeSession = Arc::new(move |_, _, _| Box::new(Counter(0, report.clone())));
        let (socket, mut peer) = UnixStream::pair().unwrap();
        let link = shared.table.insert(socket.into(), Peer::unix(Auth::None)).unwrap();
        workers.adopt(link, count.clone());
        for _ in 0..64 {
            peer.write_all(&[0; PAYLOAD]).unwrap();
            peer.read_exact(&mut [0; 16]).unwrap();
        }
        drop((peer, count));
        workers.0.iter().for_each(|worker| worker.inbox.push(Message::Quit));
        workers.join();
        let pieces = received.iter().count();
        assert!(pieces < 64 * 16, "{pieces} pieces");
    }
}
