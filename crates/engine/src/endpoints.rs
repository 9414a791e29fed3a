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
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use export::Notice;
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
/// privileges can open a ring only at its start. Ends when dropped, once it serves no endpoints.
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
            serve(&shared, memory, &mut disks, &plugged);
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
        thread("usb control").spawn(move || control.control(&answer)).map(drop)
    }
}

fn thread(name: &str) -> std::thread::Builder {
    std::thread::Builder::new().name(name.to_owned()).stack_size(STACK)
}

/// Serves cables, one after another.
fn serve(shared: &Shared, memory: usize, disks: &mut Disks, plugged: &Receiver<Plugged>) {
    while let Ok((cable, open)) = plugged.recv() {
        shared.inboxes.register(&cable.inbox);
        // A session that panics ends, and the next transfer begins another one.
        let mut run = || Bulk::new(shared, &cable, memory, &open, disks).run();
        while catch_unwind(AssertUnwindSafe(&mut run)).is_err() {
            let _ = cable.halt_all();
            // Others may wait for what it had.
            shared.inboxes.changed(&Topic::All, None);
        }
        shared.inboxes.unregister(&cable.inbox);
    }
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

    fn halt_all(&self) -> Result<(), Errno> {
        let halted = self.halt_in();
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
        Outcome, Peer, Reason, Request, Segment, Session, Step, Ticket,
    };
    use rustix::net::{
        AddressFamily, SendFlags, Shutdown, SocketFlags, SocketType, shutdown, socketpair,
    };

    use super::*;
    use crate::inbox::Inboxes;
    use crate::link::ConnectionTable;

    /// Wrappers of one byte that make a [`Toy`] read and write a block of its disk.
    const READ: u8 = 254;
    const WRITE: u8 = 255;

    /// Receives as many kibibytes as a wrapper of one byte announces, and answers with how many
    /// sessions there have been and the last byte. Closes after a longer wrapper.
    struct Toy {
        account: Account,
        grant: Grant,
        number: u8,
        wanted: usize,
        is_busy: bool,
        steps: VecDeque<Step>,
    }

    impl Session for Toy {
        fn receive(&mut self, _: Instant, bytes: &[u8]) -> usize {
            match bytes {
                [wrapper @ (READ | WRITE)] => {
                    let write = Op::Write { durable: false };
                    let op = if *wrapper == READ { Op::Read } else { write };
                    let buffer = self.account.take(512);
                    let request = Request { op, lba: 0, blocks: 1, buffer, ticket: Ticket::new(0) };
                    let admitted = self.grant.admit(request).unwrap();
                    self.is_busy = true;
                    self.steps.push_back(Step::Submit(admitted));
                }
                [kibibytes] => self.wanted = usize::from(*kibibytes) << 10,
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
        fn notify(&mut self, _: Instant, _: &Notice) {}
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
    }

    impl Host {
        /// One for each way to execute disk requests.
        fn both() -> [Self; 2] {
            [false, true].map(Self::plug)
        }

        fn plug(with_ring: bool) -> Self {
            let pair = || {
                let flags = SocketFlags::CLOEXEC;
                socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
            };
            let [(control, other), (bulk_in, bulk_in_other), (bulk_out, bulk_out_other)] =
                [pair(), pair(), pair()];
            // A transfer in the wrong direction fails at once.
            shutdown(&bulk_in_other, Shutdown::Read).unwrap();
            let (sink, events) = channel();
            let shared = Arc::new(Shared {
                sink: Arc::new(move |event| drop(sink.send(event))),
                inboxes: Inboxes::default(),
                table: ConnectionTable::open().unwrap(),
                budget: Budget::new(1 << 24),
            });
            let (hung, disk) = hung_disk();
            let geometry = Geometry::new(512, 512).unwrap();
            let mut export =
                Export::new("disk", "nqn", Identity::default(), geometry, 512, hung.into());
            export.access = Access::Writable;
            let export = Arc::new(export);
            let sessions = AtomicU32::new(0);
            let own = export.clone();
            let open: MakeSession = Arc::new(move |_, account, _| {
                let number = u8::try_from(sessions.fetch_add(1, Ordering::SeqCst)).unwrap();
                let (grant, wanted, is_busy) = (Grant::new(own.clone()), 0, false);
                Box::new(Toy { account, grant, number, wanted, is_busy, steps: VecDeque::new() })
            });
            let answer: AnswerControl = Arc::new(|setup| match setup[1] {
                0xfe => ControlReply::Data(7),
                _ => ControlReply::Reset,
            });
            let endpoints =
                Endpoints { control: other, bulk_in: bulk_in_other, bulk_out: bulk_out_other };
            let thread = EndpointThread::start(&shared, 1 << 22, with_ring).unwrap();
            thread.serve(endpoints, open, answer).unwrap();
            Self { control, bulk_in, bulk_out, events, export, disk }
        }

        fn event(&self, kind: u8, setup: [u8; SETUP]) {
            let [a, b, c, d, e, f, g, h] = setup;
            write(&self.control, &[a, b, c, d, e, f, g, h, kind, 0, 0, 0]).unwrap();
        }

        fn send(&self, bytes: &[u8]) {
            assert_eq!(write(&self.bulk_out, bytes), Ok(bytes.len()));
        }

        /// Waits until the driver has read all events.
        fn control_read(&self) {
            self.event(EVENT_SETUP, [0xa1, 0xfe, 0, 0, 0, 0, 1, 0]);
            read(&self.control, &mut [0; 8]).unwrap();
        }

        fn receive(&self) -> Vec<u8> {
            let mut bytes = [0; 64];
            let len = read(&self.bulk_in, &mut bytes).unwrap();
            bytes[..len].to_vec()
        }
    }

    #[test]
    fn data_ends_at_its_length_or_by_a_short_packet() {
        for host in Host::both() {
            host.send(&[4]);
            host.send(&[&[1; 4095][..], &[9]].concat());
            assert_eq!(host.receive(), [0, 9]);
            host.send(&[4]);
            host.send(&[5; 100]);
            assert_eq!(host.receive(), [0, 5]);
        }
    }

    #[test]
    fn control_requests_are_answered_while_a_transfer_is_awaited() {
        for host in Host::both() {
            host.event(EVENT_SETUP, [0xa1, 0xfe, 0, 0, 0, 0, 1, 0]);
            let mut byte = [0; 8];
            assert_eq!(read(&host.control, &mut byte), Ok(1));
            assert_eq!(byte[0], 7);
        }
    }

    #[test]
    fn next_transfer_after_a_disconnection_begins_another_session() {
        for host in Host::both() {
            host.send(&[4]);
            std::thread::sleep(Duration::from_millis(50));
            host.event(EVENT_DISABLE, [0; SETUP]);
            host.event(EVENT_SETUP, [0xa1, 0xfe, 0, 0, 0, 0, 1, 0]);
            read(&host.control, &mut [0; 8]).unwrap();
            // The data of the old session's command is a wrapper for the next one.
            host.send(&[1]);
            host.send(&[3; 1024]);
            assert_eq!(host.receive(), [1, 3]);
        }
    }

    #[test]
    fn host_that_enables_the_device_again_has_reset_it() {
        for host in Host::both() {
            host.event(EVENT_ENABLE, [0; SETUP]);
            host.send(&[4]);
            std::thread::sleep(Duration::from_millis(50));
            host.event(EVENT_ENABLE, [0; SETUP]);
            host.event(EVENT_SETUP, [0xa1, 0xfe, 0, 0, 0, 0, 1, 0]);
            read(&host.control, &mut [0; 8]).unwrap();
            host.send(&[1]);
            host.send(&[3; 1024]);
            assert_eq!(host.receive(), [1, 3]);
        }
    }

    #[test]
    fn wrapper_after_a_reset_in_mid_data_is_no_violation() {
        for host in Host::both() {
            host.send(&[4]);
            std::thread::sleep(Duration::from_millis(50));
            host.event(EVENT_SETUP, [0x21, 0xff, 0, 0, 0, 0, 0, 0]);
            host.event(EVENT_SETUP, [0xa1, 0xfe, 0, 0, 0, 0, 1, 0]);
            read(&host.control, &mut [0; 8]).unwrap();
            // The transfer that was awaited had packets before the reset, and is ended by the wrapper.
            host.send(&[&[7; 2048][..], &[1]].concat());
            host.send(&[3; 1024]);
            assert_eq!(host.receive(), [1, 3]);
            // Nor is the last packet of data a wrapper.
            host.send(&[4]);
            std::thread::sleep(Duration::from_millis(50));
            host.event(EVENT_SETUP, [0x21, 0xff, 0, 0, 0, 0, 0, 0]);
            host.event(EVENT_SETUP, [0xa1, 0xfe, 0, 0, 0, 0, 1, 0]);
            read(&host.control, &mut [0; 8]).unwrap();
            host.send(&[7; 4096]);
            host.send(&[1]);
            host.send(&[5; 1024]);
            assert_eq!(host.receive(), [2, 5]);
            assert!(host.events.try_recv().is_err());
        }
    }

    #[test]
    fn violation_ends_the_session_and_is_reported() {
        for host in Host::both() {
            host.send(&[0; 31]);
            let event = host.events.recv_timeout(Duration::from_secs(10)).unwrap();
            assert!(matches!(event, Event::Violation { rule: "length", .. }));
            // Until a reset, nothing is processed.
            host.send(&[2]);
            std::thread::sleep(Duration::from_millis(50));
            host.event(EVENT_DISABLE, [0; SETUP]);
            host.event(EVENT_SETUP, [0xa1, 0xfe, 0, 0, 0, 0, 1, 0]);
            read(&host.control, &mut [0; 8]).unwrap();
            host.send(&[1]);
            host.send(&[3; 1024]);
            assert_eq!(host.receive(), [1, 3]);
        }
    }

    #[test]
    fn reset_does_not_wait_for_a_disk_that_hangs() {
        let host = Host::plug(true);
        host.send(&[WRITE]);
        std::thread::sleep(Duration::from_millis(50));
        host.event(EVENT_SETUP, [0x21, 0xff, 0, 0, 0, 0, 0, 0]);
        host.control_read();
        host.send(&[1]);
        host.send(&[3; 1024]);
        assert_eq!(host.receive(), [1, 3]);
        // And in mid-data, which is received beside the request.
        host.send(&[4]);
        std::thread::sleep(Duration::from_millis(50));
        host.event(EVENT_DISABLE, [0; SETUP]);
        host.control_read();
        host.send(&[1]);
        host.send(&[5; 1024]);
        assert_eq!(host.receive(), [2, 5]);
        assert!(host.export.has_orphans());
    }

    #[test]
    fn abandoned_write_completes_while_the_host_is_idle() {
        let host = Host::plug(true);
        host.send(&[WRITE]);
        std::thread::sleep(Duration::from_millis(50));
        host.event(EVENT_DISABLE, [0; SETUP]);
        let until = Instant::now() + Duration::from_secs(10);
        while !host.export.has_orphans() {
            assert!(Instant::now() < until, "the session has not ended");
            std::thread::sleep(Duration::from_millis(5));
        }
        read(&host.disk, &mut vec![0; 1 << 20]).unwrap();
        while host.export.has_orphans() {
            assert!(Instant::now() < until, "its completion was not processed");
            std::thread::sleep(Duration::from_millis(5));
        }
        // Its result is not sent to the next session's host.
        host.send(&[1]);
        host.send(&[3; 1024]);
        assert_eq!(host.receive(), [1, 3]);
    }

    #[test]
    fn disk_with_many_abandoned_requests_is_refused() {
        let host = Host::plug(true);
        for _ in 0..6 {
            host.send(&[READ]);
            std::thread::sleep(Duration::from_millis(20));
            host.event(EVENT_DISABLE, [0; SETUP]);
            host.control_read();
        }
        host.send(&[READ]);
        assert_eq!(host.receive(), [6, 0]);
    }
}
