//! The driver of sessions whose transport is the endpoints of a USB function (`FunctionFS`): two
//! threads, one for endpoint 0, and one for the bulk endpoints and the session.
//!
//! The session exists from the first transfer of a host until the host disconnects, resets the
//! device, or breaks the protocol. Its disk requests are executed by a ring, so that a disk that does
//! not respond delays neither a reset nor the other units, or by system calls (the reference).

mod bulk;
mod disks;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};

use export::{Finished, Notice, Outcome, Ticket};
use rustix::io::{Errno, read, write};

use crate::inbox::{Inbox, Message};
use crate::topic::Topic;
use crate::{MakeSession, Shared};
use bulk::Bulk;
use disks::Disks;

/// Length of a setup packet, and of an event of endpoint 0, in bytes.
const SETUP: usize = 8;
const EVENT: usize = 12;

/// Types of events (`linux/usb/functionfs.h`).
const EVENT_UNBIND: u8 = 1;
const EVENT_ENABLE: u8 = 2;
const EVENT_DISABLE: u8 = 3;
const EVENT_SETUP: u8 = 4;

/// Bit of the request type in a setup packet: the data is sent to the host.
const TO_HOST: u8 = 0x80;

/// How long a halt is tried while the controller still sends, and the pause between two attempts.
const HALT_TIMEOUT: Duration = Duration::from_secs(1);
const HALT_RETRY: Duration = Duration::from_millis(5);

/// How often a thread that waits for requests of ended sessions checks whether its engine is gone.
const PLUGGED_CHECK: Duration = Duration::from_secs(1);

/// Stack size of both threads in bytes.
const STACK: usize = 256 << 10;

/// The open endpoints of a USB function.
#[derive(Debug)]
pub struct Endpoints {
    /// Endpoint 0: events, and the requests that are not for the kernel.
    pub control: OwnedFd,
    /// The bulk endpoint to the host.
    pub bulk_in: OwnedFd,
    /// The bulk endpoint from the host.
    pub bulk_out: OwnedFd,
}

/// The answer to a request on endpoint 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControlReply {
    /// This byte.
    Data(u8),
    /// Acknowledged: the session ends, and another one begins with the next transfer.
    Reset,
    /// Not supported.
    Stall,
}

/// Answers a request on endpoint 0: its setup packet. Called on a thread of its own.
pub type AnswerControl = Arc<dyn Fn([u8; SETUP]) -> ControlReply + Send + Sync>;

/// What the two threads share.
struct Cable {
    endpoints: Endpoints,
    /// Counts disconnections and resets.
    resets: AtomicU32,
    /// Whether a transfer to the host is in progress, which cannot be cancelled.
    is_sending: AtomicBool,
    inbox: Arc<Inbox>,
}

impl fmt::Debug for Cable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cable({:?})", self.endpoints)
    }
}

/// A cable, and what makes its sessions.
type Plugged = (Arc<Cable>, MakeSession);

/// The thread of the bulk endpoints. It is started before endpoints exist, because a process without
/// privileges can open a ring only at its start. Ends when the engine is dropped, or when this is, once it
/// serves no endpoints.
#[derive(Debug)]
pub(crate) struct EndpointThread {
    inbox: Arc<Inbox>,
    sender: Sender<Plugged>,
}

impl EndpointThread {
    /// Starts the thread, with a pool of `memory` bytes. Disk requests are executed by a ring if that
    /// is wanted and possible.
    ///
    /// # Errors
    /// Fails if the thread or a descriptor cannot be created.
    pub(crate) fn start(shared: &Arc<Shared>, memory: usize, with_ring: bool) -> io::Result<Self> {
        let inbox = Inbox::new()?;
        inbox.add_session();
        let (sender, plugged) = channel();
        let (report, reported) = channel();
        let (shared, own) = (shared.clone(), inbox.clone());
        let run = move || {
            let mut disks = Disks::open(&own, &shared, with_ring);
            // Cannot fail: the other side waits for this message.
            let _ = report.send(());
            serve(&shared, memory, &own, &mut disks, &plugged);
            disks.close();
        };
        thread("usb bulk").spawn(run)?;
        reported.recv().map_err(|_| io::Error::other("the thread ended before it began"))?;
        Ok(Self { inbox, sender })
    }

    /// Serves endpoints, once those before them are gone.
    ///
    /// # Errors
    /// Fails if the thread of endpoint 0 cannot be created, or the thread has ended.
    pub(crate) fn serve(
        &self,
        endpoints: Endpoints,
        open: MakeSession,
        answer: AnswerControl,
    ) -> io::Result<()> {
        let (resets, is_sending) = (AtomicU32::new(0), AtomicBool::new(false));
        let inbox = self.inbox.clone();
        let cable = Arc::new(Cable { endpoints, resets, is_sending, inbox });
        let control = cable.clone();
        let ended = |_| io::Error::other("the thread of the endpoints has ended");
        self.sender.send((cable, open)).map_err(ended)?;
        // It may wait for requests of the last cable's sessions.
        self.inbox.push(Message::Notice(Notice::StateChanged));
        thread("usb control").spawn(move || control.control(&answer)).map(drop)
    }
}

fn thread(name: &str) -> std::thread::Builder {
    std::thread::Builder::new().name(name.to_owned()).stack_size(STACK)
}

/// Serves cables, one after another, until the engine ends.
fn serve(
    shared: &Shared,
    memory: usize,
    inbox: &Inbox,
    disks: &mut Disks,
    plugged: &Receiver<Plugged>,
) {
    while let Some((cable, open)) = next_cable(shared, inbox, disks, plugged) {
        shared.inboxes.register(&cable.inbox);
        // A session that panics ends, and the next transfer begins another one.
        let is_quitting = loop {
            let mut run = || Bulk::new(shared, &cable, memory, &open, disks).run();
            if let Ok(is_quitting) = catch_unwind(AssertUnwindSafe(&mut run)) {
                break is_quitting;
            }
            cable.is_sending.store(false, Ordering::SeqCst);
            let _ = cable.halt_all(disks.is_receiving());
            // Others may wait for what it had.
            shared.inboxes.changed(&Topic::All, None);
        };
        shared.inboxes.unregister(&cable.inbox);
        if is_quitting {
            return;
        }
    }
}

/// Waits for the next cable. Until then completes the requests of ended sessions, for which others may
/// wait. Returns `None` if there will be none.
fn next_cable(
    shared: &Shared,
    inbox: &Inbox,
    disks: &mut Disks,
    plugged: &Receiver<Plugged>,
) -> Option<Plugged> {
    loop {
        match plugged.try_recv() {
            Ok(next) => return Some(next),
            Err(TryRecvError::Disconnected) => return None,
            Err(TryRecvError::Empty) => {}
        }
        disks.release();
        if !disks.has_requests() {
            return plugged.recv().ok();
        }
        if catch_unwind(AssertUnwindSafe(|| disks.wait(PLUGGED_CHECK))).is_err() {
            continue;
        }
        while let Some((_, finished)) = disks.next() {
            outcome(shared, finished);
        }
        for message in inbox.take() {
            if let Message::BlockingOpDone(number, answer) = message
                && let Some((_, finished)) = disks.answer(number, answer)
            {
                outcome(shared, finished);
            }
        }
    }
}

/// Notifies those that wait for a completed request. Returns its outcome.
fn outcome(shared: &Shared, finished: Finished) -> (Ticket, Outcome) {
    let Finished { ticket, outcome, contended } = finished;
    if let Some(export) = contended {
        shared.inboxes.changed(&Topic::of(&export), None);
    }
    (ticket, outcome)
}

impl Cable {
    /// Handles the events of endpoint 0, until the function is removed.
    fn control(&self, answer: &AnswerControl) {
        let mut is_enabled = false;
        loop {
            let mut event = [0; EVENT];
            match read(&self.endpoints.control, &mut event) {
                Ok(EVENT) => {}
                // The host has replaced its request by another one.
                Ok(_) | Err(Errno::INTR | Errno::IDRM | Errno::AGAIN) => continue,
                Err(_) => return,
            }
            let [setup @ .., kind, _, _, _] = event;
            match kind {
                // The kernel drops the disconnection before it if that was not read in time.
                EVENT_ENABLE if is_enabled => self.reset(),
                EVENT_ENABLE => is_enabled = true,
                EVENT_DISABLE | EVENT_UNBIND => {
                    is_enabled = false;
                    self.reset();
                }
                EVENT_SETUP => self.request(setup, answer(setup)),
                _ => {}
            }
        }
    }

    fn reset(&self) {
        self.resets.fetch_add(1, Ordering::SeqCst);
        // Wakes the other thread if it waits for another request to end.
        self.inbox.push(Message::Notice(Notice::StateChanged));
    }

    /// Answers a request of the host. If the host has replaced it by another one, that fails.
    fn request(&self, setup: [u8; SETUP], reply: ControlReply) {
        let control = &self.endpoints.control;
        match reply {
            ControlReply::Data(byte) => {
                let _ = write(control, &[byte]);
            }
            ControlReply::Reset => {
                self.reset();
                // The data of the transfer would be taken for an answer: the host resets the port.
                if self.is_sending.load(Ordering::SeqCst) {
                    return self.stall(setup);
                }
                let _ = read(control, &mut [0; 0][..]);
            }
            ControlReply::Stall => self.stall(setup),
        }
    }

    /// A transfer in the wrong direction halts endpoint 0.
    fn stall(&self, setup: [u8; SETUP]) {
        let control = &self.endpoints.control;
        if setup[0] & TO_HOST == 0 {
            let _ = write(control, &[0]);
        } else {
            let _ = read(control, &mut [0; 1][..]);
        }
    }

    /// Halts the pipe to the host: by a transfer in the wrong direction.
    fn halt_in(&self) -> Result<(), Errno> {
        self.halt(|| read(&self.endpoints.bulk_in, &mut [0; 1][..]))
    }

    /// Halts both pipes; only that to the host if the other `is_receiving`: the kernel would wait for the
    /// end of the transfer.
    fn halt_all(&self, is_receiving: bool) -> Result<(), Errno> {
        let halted = self.halt_in();
        if is_receiving {
            return halted;
        }
        self.halt(|| write(&self.endpoints.bulk_out, &[0])).and(halted)
    }

    /// Repeats a halt until the controller has sent what it has, unless the device is reset.
    fn halt(&self, act: impl Fn() -> Result<usize, Errno>) -> Result<(), Errno> {
        let (until, resets) = (Instant::now() + HALT_TIMEOUT, self.resets.load(Ordering::SeqCst));
        while act() == Err(Errno::AGAIN) {
            if Instant::now() >= until || self.resets.load(Ordering::SeqCst) != resets {
                return Err(Errno::AGAIN);
            }
            std::thread::sleep(HALT_RETRY);
        }
        Ok(())
    }
}

#[cfg(test)]
mod test {
    use std::collections::VecDeque;

    use export::{
        Access, Account, Budget, DirectRecv, Event, Export, Geometry, Grant, Head, Identity, Op,
        Outcome, Peer, Pool, Reason, Request, Segment, Session, Step, Ticket,
    };
    use rustix::net::sockopt::{Timeout, set_socket_send_buffer_size, set_socket_timeout};
    use rustix::net::{
        AddressFamily, SendFlags, Shutdown, SocketFlags, SocketType, shutdown, socketpair,
    };

    use super::*;
    use crate::inbox::Inboxes;
    use crate::link::ConnectionTable;
    use crate::uring::DiskQueue;

    /// First bytes of wrappers that make a [`Toy`] read and write a block of its disk.
    const READ: u8 = 254;
    const WRITE: u8 = 255;

    /// Limits what a test waits for.
    const PATIENCE: Duration = Duration::from_secs(10);

    fn wrapper(code: u8) -> [u8; 31] {
        std::array::from_fn(|at| if at == 0 { code } else { 0 })
    }

    /// Receives as many kibibytes as the first byte of a wrapper announces, and answers with how many
    /// sessions there have been and the last byte. Closes after a wrapper of another length.
    struct Toy {
        account: Account,
        grant: Option<Grant>,
        number: u8,
        wanted: usize,
        is_busy: bool,
        steps: VecDeque<Step>,
        received: Arc<AtomicU32>,
    }

    impl Session for Toy {
        fn receive(&mut self, _: Instant, bytes: &[u8]) -> usize {
            self.received.fetch_add(1, Ordering::SeqCst);
            match bytes {
                [wrapper @ (READ | WRITE), ..] if bytes.len() == 31 => {
                    let write = Op::Write { durable: false };
                    let op = if *wrapper == READ { Op::Read } else { write };
                    let buffer = self.account.take(512);
                    let request = Request { op, lba: 0, blocks: 1, buffer, ticket: Ticket::new(0) };
                    let admitted = self.grant.as_ref().unwrap().admit(request).unwrap();
                    self.is_busy = true;
                    self.steps.push_back(Step::Submit(admitted));
                }
                [kibibytes, ..] if bytes.len() == 31 => self.wanted = usize::from(*kibibytes) << 10,
                _ => {
                    let event = Event::Violation { peer: Peer::usb(), rule: "length" };
                    self.steps.push_back(Step::Close(Reason::Violation));
                    self.steps.push_back(Step::Report(Box::new(event)));
                }
            }
            bytes.len()
        }
        fn complete(&mut self, _: Instant, _: Ticket, outcome: Outcome) {
            self.is_busy = false;
            let head = Head::new(&[self.number, outcome.result.is_ok().into()]);
            self.steps.push_back(Step::Send(Segment::head(head)));
        }
        fn notify(&mut self, _: Instant, notice: &Notice) {
            if *notice == Notice::StateChanged {
                self.grant.take_if(|grant| grant.export().is_gone());
            }
        }
        fn tick(&mut self, _: Instant) {}
        fn poll(&mut self) -> Option<Step> {
            self.steps.pop_front()
        }
        fn deadline(&self) -> Option<Instant> {
            None
        }
        fn can_receive(&self) -> bool {
            !self.is_busy
        }
        fn is_established(&self) -> bool {
            true
        }
        fn direct_recv(&mut self) -> Option<DirectRecv> {
            let len = Some(self.wanted).filter(|&len| len > 0)?;
            Some(DirectRecv { buffer: self.account.take(len)?, start: 0, end: len, token: 0 })
        }
        fn direct_received(&mut self, _: Instant, mut window: DirectRecv, len: usize) {
            self.wanted = 0;
            let last = window.buffer.bytes_mut()[len - 1];
            let head = Head::new(&[self.number, last]);
            self.steps.push_back(Step::Send(Segment::head(head)));
        }
    }

    /// Returns a disk that does not respond: a socket with nothing to read, and no room. And its other
    /// end.
    fn hung_disk() -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::CLOEXEC;
        let (disk, other) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        let send = |len| rustix::net::send(&disk, &vec![0; len], SendFlags::DONTWAIT);
        while send(1 << 16).is_ok() || send(1).is_ok() {}
        (disk, other)
    }

    /// The host's ends of the endpoints: sockets that keep the boundaries of transfers.
    struct Host {
        control: OwnedFd,
        bulk_in: OwnedFd,
        bulk_out: OwnedFd,
        events: Receiver<Event>,
        /// The disk, and its other end: see [`hung_disk`].
        export: Arc<Export>,
        disk: OwnedFd,
        /// The number of transfers that sessions have received.
        received: Arc<AtomicU32>,
        shared: Arc<Shared>,
        _thread: EndpointThread,
    }

    /// Returns whether there is io_uring. If not, says so: tests are skipped.
    fn has_ring() -> bool {
        let opened = DiskQueue::open(Inbox::new().unwrap(), Arc::new(drop));
        if let Err(error) = &opened {
            eprintln!("skipped: io_uring is not available: {error}");
        }
        opened.is_ok()
    }

    /// Reads. A signal ends a system call with a timeout, and those of other tests arrive here too.
    fn read_retrying(source: &OwnedFd, bytes: &mut [u8]) -> Result<usize, Errno> {
        rustix::io::retry_on_intr(|| read(source, &mut *bytes))
    }

    /// Waits until `condition` holds.
    fn wait_until(what: &str, condition: impl Fn() -> bool) {
        let until = Instant::now() + PATIENCE;
        while !condition() {
            assert!(Instant::now() < until, "{what}: not within {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn shared() -> (Arc<Shared>, Receiver<Event>) {
        let (sink, events) = channel();
        let shared = Arc::new(Shared {
            sink: Arc::new(move |event| drop(sink.send(event))),
            inboxes: Inboxes::default(),
            table: ConnectionTable::open().unwrap(),
            budget: Budget::new(1 << 24),
        });
        (shared, events)
    }

    /// Returns an export of a [`hung_disk`], and the disk's other end.
    fn hung_export() -> (Arc<Export>, OwnedFd) {
        let (hung, disk) = hung_disk();
        let geometry = Geometry::new(512, 512).unwrap();
        let mut export =
            Export::new("disk", "nqn", Identity::default(), geometry, 512, hung.into());
        export.access = Access::Writable;
        (Arc::new(export), disk)
    }

    impl Host {
        /// One for each way to execute disk requests.
        fn both() -> Vec<Self> {
            let mut hosts = vec![Self::plug(false)];
            hosts.extend(Self::with_ring());
            hosts
        }

        fn with_ring() -> Option<Self> {
            has_ring().then(|| Self::plug(true))
        }

        fn plug(with_ring: bool) -> Self {
            Self::plug_to(|shared| EndpointThread::start(shared, 1 << 22, with_ring).unwrap())
        }

        fn plug_to(start: impl FnOnce(&Arc<Shared>) -> EndpointThread) -> Self {
            let pair = || {
                let flags = SocketFlags::CLOEXEC;
                let (ours, other) =
                    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
                for timeout in [Timeout::Recv, Timeout::Send] {
                    set_socket_timeout(&ours, timeout, Some(PATIENCE)).unwrap();
                }
                (ours, other)
            };
            let [(control, other), (bulk_in, bulk_in_other), (bulk_out, bulk_out_other)] =
                [pair(), pair(), pair()];
            // A transfer in the wrong direction fails at once.
            shutdown(&bulk_in_other, Shutdown::Read).unwrap();
            // A few messages fill it.
            set_socket_send_buffer_size(&bulk_in_other, 0).unwrap();
            let ((shared, events), (export, disk)) = (shared(), hung_export());
            let sessions = AtomicU32::new(0);
            let own = Arc::downgrade(&export);
            let received = Arc::<AtomicU32>::default();
            let counted = received.clone();
            let open: MakeSession = Arc::new(move |_, account, _| {
                let received = counted.clone();
                let number = u8::try_from(sessions.fetch_add(1, Ordering::SeqCst)).unwrap();
                let (grant, wanted, is_busy) = (own.upgrade().map(Grant::new), 0, false);
                let steps = VecDeque::new();
                Box::new(Toy { account, grant, number, wanted, is_busy, steps, received })
            });
            let answer: AnswerControl = Arc::new(|setup| match setup[1] {
                0xfe => ControlReply::Data(7),
                _ => ControlReply::Reset,
            });
            let endpoints =
                Endpoints { control: other, bulk_in: bulk_in_other, bulk_out: bulk_out_other };
            let thread = start(&shared);
            thread.serve(endpoints, open, answer).unwrap();
            let _thread = thread;
            Self { control, bulk_in, bulk_out, events, export, disk, received, shared, _thread }
        }

        fn event(&self, kind: u8, setup: [u8; SETUP]) {
            let [a, b, c, d, e, f, g, h] = setup;
            write(&self.control, &[a, b, c, d, e, f, g, h, kind, 0, 0, 0]).unwrap();
        }

        fn send(&self, bytes: &[u8]) {
            assert_eq!(write(&self.bulk_out, bytes), Ok(bytes.len()));
        }

        fn command(&self, code: u8) {
            self.send(&wrapper(code));
        }

        /// Sends a wrapper, and waits until the session has it.
        fn command_received(&self, code: u8) {
            let before = self.received.load(Ordering::SeqCst);
            self.command(code);
            wait_until("the command", || self.received.load(Ordering::SeqCst) > before);
        }

        /// Waits until the driver has read all events.
        fn control_read(&self) {
            self.event(EVENT_SETUP, [0xa1, 0xfe, 0, 0, 0, 0, 1, 0]);
            read_retrying(&self.control, &mut [0; 8]).unwrap();
        }

        fn receive(&self) -> Vec<u8> {
            let mut bytes = [0; 64];
            let len = read_retrying(&self.bulk_in, &mut bytes).unwrap();
            bytes[..len].to_vec()
        }
    }

    #[test]
    fn data_ends_at_its_length_or_by_a_short_packet() {
        for host in Host::both() {
            host.command(4);
            host.send(&[&[1; 4095][..], &[9]].concat());
            assert_eq!(host.receive(), [0, 9]);
            host.command(4);
            host.send(&[5; 100]);
            assert_eq!(host.receive(), [0, 5]);
        }
    }

    #[test]
    fn control_requests_are_answered_while_a_transfer_is_awaited() {
        for host in Host::both() {
            host.event(EVENT_SETUP, [0xa1, 0xfe, 0, 0, 0, 0, 1, 0]);
            let mut byte = [0; 8];
            assert_eq!(read_retrying(&host.control, &mut byte), Ok(1));
            assert_eq!(byte[0], 7);
        }
    }

    #[test]
    fn next_transfer_after_a_disconnection_begins_another_session() {
        for host in Host::both() {
            host.command_received(4);
            host.event(EVENT_DISABLE, [0; SETUP]);
            host.event(EVENT_SETUP, [0xa1, 0xfe, 0, 0, 0, 0, 1, 0]);
            read_retrying(&host.control, &mut [0; 8]).unwrap();
            // The data of the old session's command is a wrapper for the next one.
            host.command(1);
            host.send(&[3; 1024]);
            assert_eq!(host.receive(), [1, 3]);
        }
    }

    #[test]
    fn host_that_enables_the_device_again_has_reset_it() {
        for host in Host::both() {
            host.event(EVENT_ENABLE, [0; SETUP]);
            host.command_received(4);
            host.event(EVENT_ENABLE, [0; SETUP]);
            host.event(EVENT_SETUP, [0xa1, 0xfe, 0, 0, 0, 0, 1, 0]);
            read_retrying(&host.control, &mut [0; 8]).unwrap();
            host.command(1);
            host.send(&[3; 1024]);
            assert_eq!(host.receive(), [1, 3]);
        }
    }

    #[test]
    fn wrapper_after_a_reset_in_mid_data_is_no_violation() {
        for host in Host::both() {
            host.command_received(4);
            host.event(EVENT_SETUP, [0x21, 0xff, 0, 0, 0, 0, 0, 0]);
            host.event(EVENT_SETUP, [0xa1, 0xfe, 0, 0, 0, 0, 1, 0]);
            read_retrying(&host.control, &mut [0; 8]).unwrap();
            // The transfer that was awaited had packets before the reset, and is ended by the wrapper.
            host.send(&[&[7; 2048][..], &wrapper(1)].concat());
            host.send(&[3; 1024]);
            assert_eq!(host.receive(), [1, 3]);
            // Nor is the last packet of data a wrapper.
            host.command_received(4);
            host.event(EVENT_SETUP, [0x21, 0xff, 0, 0, 0, 0, 0, 0]);
            host.event(EVENT_SETUP, [0xa1, 0xfe, 0, 0, 0, 0, 1, 0]);
            read_retrying(&host.control, &mut [0; 8]).unwrap();
            host.send(&[7; 4096]);
            host.command(1);
            host.send(&[5; 1024]);
            assert_eq!(host.receive(), [2, 5]);
            assert!(host.events.try_recv().is_err());
        }
    }

    #[test]
    fn violation_ends_the_session_and_is_reported() {
        for host in Host::both() {
            host.send(&[0; 30]);
            let event = host.events.recv_timeout(Duration::from_secs(10)).unwrap();
            assert!(matches!(event, Event::Violation { rule: "length", .. }));
            // Until a reset, nothing is processed.
            host.command(2);
            std::thread::sleep(Duration::from_millis(50));
            host.event(EVENT_DISABLE, [0; SETUP]);
            host.event(EVENT_SETUP, [0xa1, 0xfe, 0, 0, 0, 0, 1, 0]);
            read_retrying(&host.control, &mut [0; 8]).unwrap();
            host.command(1);
            host.send(&[3; 1024]);
            assert_eq!(host.receive(), [1, 3]);
        }
    }

    #[test]
    fn reset_does_not_wait_for_a_disk_that_hangs() {
        let Some(host) = Host::with_ring() else { return };
        host.command_received(WRITE);
        host.event(EVENT_SETUP, [0x21, 0xff, 0, 0, 0, 0, 0, 0]);
        host.control_read();
        host.command(1);
        host.send(&[3; 1024]);
        assert_eq!(host.receive(), [1, 3]);
        // And in mid-data, which is received beside the request.
        host.command_received(4);
        host.event(EVENT_DISABLE, [0; SETUP]);
        host.control_read();
        host.command(1);
        host.send(&[5; 1024]);
        assert_eq!(host.receive(), [2, 5]);
        assert!(host.export.has_orphans());
    }

    #[test]
    fn abandoned_write_completes_while_the_host_is_idle() {
        let Some(host) = Host::with_ring() else { return };
        host.command_received(WRITE);
        host.event(EVENT_DISABLE, [0; SETUP]);
        wait_until("end of the session", || host.export.has_orphans());
        read(&host.disk, &mut vec![0; 1 << 20]).unwrap();
        wait_until("completion", || !host.export.has_orphans());
        // Its result is not sent to the next session's host.
        host.command(1);
        host.send(&[3; 1024]);
        assert_eq!(host.receive(), [1, 3]);
    }

    #[test]
    fn disk_with_many_abandoned_requests_is_refused() {
        let Some(host) = Host::with_ring() else { return };
        for _ in 0..6 {
            host.command_received(READ);
            host.event(EVENT_DISABLE, [0; SETUP]);
            host.control_read();
        }
        host.command(READ);
        assert_eq!(host.receive(), [6, 0]);
    }

    #[test]
    fn abandoned_write_completes_while_the_host_takes_no_data() {
        let Some(host) = Host::with_ring() else { return };
        host.command_received(WRITE);
        host.event(EVENT_DISABLE, [0; SETUP]);
        wait_until("end of the session", || host.export.has_orphans());
        for _ in 0..32 {
            host.command(1);
            host.send(&[3; 1024]);
        }
        std::thread::sleep(Duration::from_millis(50));
        read(&host.disk, &mut vec![0; 1 << 20]).unwrap();
        wait_until("completion", || !host.export.has_orphans());
        for _ in 0..32 {
            assert_eq!(host.receive(), [1, 3]);
        }
    }

    #[test]
    fn withdrawn_disk_is_closed_with_the_next_command() {
        let Some(host) = Host::with_ring() else { return };
        host.command(READ);
        write(&host.disk, &[0; 512]).unwrap();
        host.receive();
        host.export.withdraw();
        host.shared.inboxes.notify(Notice::StateChanged, None);
        host.command(1);
        wait_until("release of the export", || Arc::strong_count(&host.export) == 1);
        host.send(&[3; 1024]);
        host.receive();
        let Host { export, disk, bulk_out: _bulk_out, .. } = host;
        drop(export);
        // Nor has the ring the file of the disk.
        set_socket_timeout(&disk, Timeout::Recv, Some(PATIENCE)).unwrap();
        while read(&disk, &mut [0; 4096]).unwrap() > 0 {}
    }

    #[test]
    fn abandoned_write_completes_between_two_cables() {
        if !has_ring() {
            return;
        }
        let ((shared, _events), (export, disk)) = (shared(), hung_export());
        let (sender, plugged) = channel();
        let own = export.clone();
        let thread = std::thread::spawn(move || {
            let (inbox, grant) = (Inbox::new().unwrap(), Grant::new(own));
            let mut disks = Disks::open(&inbox, &shared, true);
            let buffer = Pool::new(1 << 20).open().take(512);
            let op = Op::Write { durable: false };
            let request = Request { op, lba: 0, blocks: 1, buffer, ticket: Ticket::new(0) };
            assert!(disks.submit(grant.admit(request).unwrap()).is_none());
            grant.fence().close();
            drop(grant);
            disks.abandon();
            next_cable(&shared, &inbox, &mut disks, &plugged).is_none()
        });
        wait_until("end of the session", || export.has_orphans());
        std::thread::sleep(Duration::from_millis(50));
        read(&disk, &mut vec![0; 1 << 20]).unwrap();
        wait_until("completion", || !export.has_orphans());
        drop(sender);
        assert!(thread.join().unwrap());
    }

    #[test]
    fn broken_ring_is_replaced_by_system_calls() {
        if !has_ring() {
            return;
        }
        let (report, breaker) = channel();
        let host = Host::plug_to(|shared| {
            let (inbox, shared) = (Inbox::new().unwrap(), shared.clone());
            let (own, (sender, plugged)) = (inbox.clone(), channel());
            std::thread::spawn(move || {
                let mut disks = Disks::open(&own, &shared, true);
                let Disks::Ring(queue) = &disks else { panic!("no ring") };
                report.send(queue.breaker()).unwrap();
                serve(&shared, 1 << 22, &own, &mut disks, &plugged);
            });
            EndpointThread { inbox, sender }
        });
        host.command_received(READ);
        host.event(EVENT_DISABLE, [0; SETUP]);
        host.control_read();
        std::thread::sleep(Duration::from_millis(50));
        breaker.recv().unwrap()();
        // Wakes the thread, whose next wait fails.
        host.event(EVENT_DISABLE, [0; SETUP]);
        host.control_read();
        std::thread::sleep(Duration::from_millis(200));
        host.command(1);
        host.send(&[3; 1024]);
        assert_eq!(host.receive(), [1, 3]);
    }

    #[test]
    fn data_that_ends_short_after_a_reset_is_no_wrapper() {
        for host in Host::both() {
            host.command_received(4);
            host.event(EVENT_SETUP, [0x21, 0xff, 0, 0, 0, 0, 0, 0]);
            host.control_read();
            host.send(&[7; 100]);
            host.command(1);
            host.send(&[3; 1024]);
            assert_eq!(host.receive(), [1, 3]);
            assert!(host.events.try_recv().is_err());
        }
    }

    #[test]
    fn thread_ends_with_its_engine() {
        for host in Host::both() {
            host.command(1);
            host.send(&[3; 1024]);
            host.receive();
            host.shared.inboxes.quit();
            // By system calls, with the next transfer.
            host.command(1);
            let weak = Arc::downgrade(&host.export);
            wait_until("end", || weak.strong_count() == 1);
        }
    }
}
