//! The driver of sessions whose transport is the endpoints of a USB function (`FunctionFS`): two
//! threads, one for endpoint 0, and one for the bulk endpoints and the session.
//!
//! The session exists from the first transfer of a host until the host disconnects, resets the
//! device, or breaks the protocol.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use export::{DirectRecv, Finished, Notice, Peer, Pool, Segment, Session, Step};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, read, write};

use crate::inbox::{Inbox, Message};
use crate::recv_buffer::window;
use crate::topic::Topic;
use crate::{MEMORY_RETRY, MakeSession, Shared};

/// Largest packet of a bulk endpoint. Transfers are cut at multiples of it: some controllers receive
/// whole packets only. The kernel aligns the last one, as it knows the packets of the speed.
const PACKET: usize = 1024;

/// Smallest packet of a bulk endpoint at any speed. Larger ones are multiples of it.
const SMALLEST_PACKET: usize = 64;

/// Largest transfer that is passed to the kernel at once, which allocates memory of that length.
const MAX_TRANSFER: usize = 1 << 20;

/// After this idle time cached buffers are freed.
const IDLE: Duration = Duration::from_secs(1);

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

/// Pause after an unexpected error.
const PAUSE: Duration = Duration::from_millis(100);

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

/// Starts the threads, with a pool of `memory` bytes.
///
/// # Errors
/// Fails if a thread or descriptor cannot be created.
pub(crate) fn adopt(
    shared: &Arc<Shared>,
    memory: usize,
    endpoints: Endpoints,
    open: MakeSession,
    answer: AnswerControl,
) -> io::Result<()> {
    let (resets, is_sending, inbox) = (AtomicU32::new(0), AtomicBool::new(false), Inbox::new()?);
    inbox.add_session();
    let cable = Arc::new(Cable { endpoints, resets, is_sending, inbox });
    let control = cable.clone();
    let thread = |name: &str| std::thread::Builder::new().name(name.to_owned()).stack_size(STACK);
    let shared = shared.clone();
    let bulk = move || {
        shared.inboxes.register(&cable.inbox);
        // A session that panics ends, and the next transfer begins another one.
        while catch_unwind(AssertUnwindSafe(|| Bulk::new(&shared, &cable, memory, &open).run()))
            .is_err()
        {
            let _ = cable.halt_all();
            // Others may wait for what it had.
            shared.inboxes.changed(&Topic::All, None);
        }
        shared.inboxes.unregister(&cable.inbox);
    };
    thread("usb bulk").spawn(bulk)?;
    thread("usb control").spawn(move || control.control(&answer)).map(drop)
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

/// The thread of the bulk endpoints.
struct Bulk<'a> {
    shared: &'a Shared,
    cable: &'a Cable,
    open: &'a MakeSession,
    pool: Pool,
    /// The session, and the number of resets when it began.
    session: Option<(Box<dyn Session>, u32)>,
    /// The number of resets when a violation has halted the pipes.
    halted: Option<u32>,
    /// Largest transfer that the kernel has memory for.
    max_transfer: usize,
    /// Whether the host is gone, as the endpoints have reported.
    is_lost: bool,
}

/// A transfer from the host.
enum Received {
    /// Into a window of the session, with this many bytes.
    Window(DirectRecv, usize),
    /// Of this many bytes, into the buffer for packets.
    Packet(usize),
}

impl<'a> Bulk<'a> {
    fn new(shared: &'a Shared, cable: &'a Cable, memory: usize, open: &'a MakeSession) -> Self {
        let pool = Pool::with_budget(memory, shared.budget.clone());
        let (session, halted, max_transfer, is_lost) = (None, None, MAX_TRANSFER, false);
        Self { shared, cable, open, pool, session, halted, max_transfer, is_lost }
    }

    /// Runs until the function is removed.
    fn run(&mut self) {
        loop {
            self.settle();
            if self.session.as_ref().is_some_and(|(session, _)| !session.can_receive()) {
                self.wait();
                continue;
            }
            let mut packet = [0; PACKET];
            let mut is_data = false;
            match self.receive(&mut packet, &mut is_data) {
                Ok(received) => self.deliver(received, &packet),
                Err(Errno::INTR | Errno::AGAIN) if !is_data => {}
                // The next call waits for a host.
                Err(Errno::SHUTDOWN | Errno::CONNRESET) => self.end_session(),
                Err(Errno::NODEV | Errno::BADFD) => return self.end_session(),
                Err(_) => {
                    self.halt_until_reset();
                    self.end_session();
                    std::thread::sleep(PAUSE);
                }
            }
        }
    }

    /// Halts both pipes. What the host sends before it resets the device halts them again.
    fn halt_until_reset(&mut self) {
        if let Some((_, begun)) = &self.session {
            self.halted = Some(*begun);
        }
        let _ = self.guarded(|bulk| bulk.cable.halt_all());
    }

    /// Ends the session if the device was reset; else passes messages to it and executes its steps.
    fn settle(&mut self) {
        let resets = self.cable.resets.load(Ordering::SeqCst);
        if self.is_lost || self.session.as_ref().is_some_and(|(_, begun)| *begun != resets) {
            self.end_session();
        }
        if self.cable.inbox.has_messages() {
            self.cable.inbox.clear_wake();
            for message in self.cable.inbox.take() {
                let notice = match message {
                    Message::Notice(notice) => notice,
                    Message::ExportChanged(_) => Notice::StateChanged,
                    _ => continue,
                };
                if let Some((session, _)) = &mut self.session {
                    session.notify(Instant::now(), &notice);
                }
            }
        }
        self.drain();
    }

    /// Waits for a transfer of the host. Sets `is_data` if it is for a window of the session.
    fn receive(
        &mut self,
        packet: &mut [u8; PACKET],
        is_data: &mut bool,
    ) -> Result<Received, Errno> {
        let lent = self.session.as_mut().and_then(|(session, _)| session.direct_recv());
        let Some(mut direct_recv) = lent else {
            return read(&self.cable.endpoints.bulk_out, packet).map(Received::Packet);
        };
        *is_data = true;
        let filled = self.fill(window(&mut direct_recv));
        filled.map(|len| Received::Window(direct_recv, len))
    }

    /// Fills `place`, unless a short packet ends the data before. Returns the number of bytes.
    fn fill(&mut self, place: &mut [u8]) -> Result<usize, Errno> {
        let mut filled = 0;
        while filled < place.len() {
            let wanted = (place.len() - filled).min(self.max_transfer);
            match read(&self.cable.endpoints.bulk_out, &mut place[filled..filled + wanted]) {
                Ok(len) => {
                    filled += len;
                    if len < wanted {
                        break;
                    }
                }
                Err(Errno::NOMEM) if self.halve() => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(filled)
    }

    /// Halves the length of transfers. Returns whether it was above one packet.
    fn halve(&mut self) -> bool {
        let is_long = self.max_transfer > PACKET;
        self.max_transfer = (self.max_transfer / 2).max(PACKET);
        is_long
    }

    /// Passes a transfer to its session, or to a new one if the device was reset meanwhile.
    fn deliver(&mut self, received: Received, packet: &[u8; PACKET]) {
        let resets = self.cable.resets.load(Ordering::SeqCst);
        let is_current = self.session.as_ref().is_some_and(|(_, begun)| *begun == resets);
        match received {
            Received::Window(window, len) if is_current => {
                if let Some((session, _)) = &mut self.session {
                    session.direct_received(Instant::now(), window, len);
                }
            }
            // The transfer was awaited before the reset. Whole packets are data of the command that
            // the reset has ended; the short packet behind them is the next wrapper.
            Received::Window(mut window, len) => {
                let end = window.start + len;
                let start = end - len % SMALLEST_PACKET;
                let wrapper = window.buffer.bytes_mut()[start..end].to_vec();
                drop(window);
                if wrapper.is_empty() {
                    self.end_session();
                } else {
                    self.begin(resets, &wrapper);
                }
            }
            Received::Packet(len) => {
                // What has changed before the command arrived, it must see.
                self.settle();
                self.begin(resets, &packet[..len]);
            }
        }
        self.drain();
    }

    /// Passes a wrapper to the session, which is a new one after a reset.
    fn begin(&mut self, resets: u32, bytes: &[u8]) {
        if self.session.as_ref().is_some_and(|(_, begun)| *begun != resets) {
            self.end_session();
        }
        if self.halted == Some(resets) {
            let _ = self.guarded(|bulk| bulk.cable.halt_all());
            return;
        }
        let now = Instant::now();
        let (session, _) = self.session.get_or_insert_with(|| {
            let peer = Peer::usb();
            let account = self.pool.open_for(peer.tenant());
            ((self.open)(peer, account, now), resets)
        });
        session.receive(now, bytes);
    }

    fn drain(&mut self) {
        while let Some(step) = self.session.as_mut().and_then(|(session, _)| session.poll()) {
            match step {
                Step::Report(event) => (self.shared.sink)(*event),
                Step::Notify => self.shared.inboxes.changed(&Topic::All, None),
                Step::Submit(admitted) => {
                    let Finished { ticket, outcome, contended } = crate::disk::carry_out(admitted);
                    if let Some(export) = contended {
                        self.shared.inboxes.changed(&Topic::of(&export), None);
                    }
                    if let Some((session, _)) = &mut self.session {
                        session.complete(Instant::now(), ticket, outcome);
                    }
                }
                Step::Send(_) | Step::Halt | Step::Close(_) if self.is_lost => {}
                Step::Send(segment) => {
                    self.is_lost = self.guarded(|bulk| bulk.send(&segment)).is_err();
                }
                Step::Halt => self.is_lost = self.guarded(|bulk| bulk.cable.halt_in()).is_err(),
                Step::Close(_) => {
                    self.halt_until_reset();
                    self.is_lost = true;
                }
            }
        }
        if std::mem::take(&mut self.is_lost) {
            self.end_session();
        }
    }

    /// Uses the pipes for the session. Fails if the host is gone or has reset the device.
    fn guarded(&mut self, act: impl FnOnce(&mut Self) -> Result<(), Errno>) -> Result<(), Errno> {
        self.cable.is_sending.store(true, Ordering::SeqCst);
        let resets = self.cable.resets.load(Ordering::SeqCst);
        let begun = self.session.as_ref().map(|(_, begun)| *begun).or(self.halted);
        let is_current = begun == Some(resets);
        let result = if is_current { act(self) } else { Err(Errno::SHUTDOWN) };
        self.cable.is_sending.store(false, Ordering::SeqCst);
        result
    }

    /// Sends one message.
    fn send(&mut self, segment: &Segment) -> Result<(), Errno> {
        for part in segment.parts() {
            let mut sent = 0;
            while sent < part.len() {
                let len = (part.len() - sent).min(self.max_transfer);
                match write(&self.cable.endpoints.bulk_in, &part[sent..sent + len]) {
                    Ok(len) => sent += len,
                    Err(Errno::NOMEM) if self.halve() => {}
                    Err(errno) => return Err(errno),
                }
            }
        }
        Ok(())
    }

    /// Waits until another request, other memory or a deadline lets the session continue.
    fn wait(&mut self) {
        let retry = self.pool.was_short().then(|| Instant::now() + MEMORY_RETRY);
        let deadline = self.session.as_ref().and_then(|(session, _)| session.deadline());
        let until = [retry, deadline].into_iter().flatten().min();
        let timeout = until.map_or(IDLE, |at| at.saturating_duration_since(Instant::now()));
        let timeout = Timespec::try_from(timeout).ok();
        let inbox = self.cable.inbox.as_fd();
        let _ = poll(&mut [PollFd::from_borrowed_fd(inbox, PollFlags::IN)], timeout.as_ref());
        let now = Instant::now();
        if let Some((session, _)) = &mut self.session
            && session.deadline().is_some_and(|deadline| deadline <= now)
        {
            session.tick(now);
        }
    }

    /// Ends the session: its host is gone, or has reset the device. Its disk requests have ended.
    fn end_session(&mut self) {
        self.is_lost = false;
        let Some((mut session, _)) = self.session.take() else { return };
        session.notify(Instant::now(), &Notice::Disconnected);
        while let Some(step) = session.poll() {
            if let Step::Report(event) = step {
                (self.shared.sink)(*event);
            }
        }
        drop(session);
        self.pool.trim();
        self.shared.inboxes.changed(&Topic::All, Some(&self.cable.inbox));
    }
}

#[cfg(test)]
mod test {
    use std::collections::VecDeque;
    use std::sync::mpsc::{Receiver, channel};

    use export::{Account, Budget, Event, Head, Outcome, Reason, Ticket};
    use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, shutdown, socketpair};

    use super::*;
    use crate::inbox::Inboxes;
    use crate::link::ConnectionTable;

    /// Receives as many kibibytes as a wrapper of one byte announces, and answers with how many
    /// sessions there have been and the last byte. Closes after a longer wrapper.
    struct Toy {
        account: Account,
        number: u8,
        wanted: usize,
        steps: VecDeque<Step>,
    }

    impl Session for Toy {
        fn receive(&mut self, _: Instant, bytes: &[u8]) -> usize {
            match bytes {
                [kibibytes] => self.wanted = usize::from(*kibibytes) << 10,
                _ => {
                    let event = Event::Violation { peer: Peer::usb(), rule: "length" };
                    self.steps.push_back(Step::Close(Reason::Violation));
                    self.steps.push_back(Step::Report(Box::new(event)));
                }
            }
            bytes.len()
        }
        fn complete(&mut self, _: Instant, _: Ticket, _: Outcome) {}
        fn notify(&mut self, _: Instant, _: &Notice) {}
        fn tick(&mut self, _: Instant) {}
        fn poll(&mut self) -> Option<Step> {
            self.steps.pop_front()
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

    /// The host's ends of the endpoints: sockets that keep the boundaries of transfers.
    struct Host {
        control: OwnedFd,
        bulk_in: OwnedFd,
        bulk_out: OwnedFd,
        events: Receiver<Event>,
    }

    impl Host {
        fn plug() -> Self {
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
            let sessions = AtomicU32::new(0);
            let open: MakeSession = Arc::new(move |_, account, _| {
                let number = u8::try_from(sessions.fetch_add(1, Ordering::SeqCst)).unwrap();
                Box::new(Toy { account, number, wanted: 0, steps: VecDeque::new() })
            });
            let answer: AnswerControl = Arc::new(|setup| match setup[1] {
                0xfe => ControlReply::Data(7),
                _ => ControlReply::Reset,
            });
            let endpoints =
                Endpoints { control: other, bulk_in: bulk_in_other, bulk_out: bulk_out_other };
            adopt(&shared, 1 << 22, endpoints, open, answer).unwrap();
            Self { control, bulk_in, bulk_out, events }
        }

        fn event(&self, kind: u8, setup: [u8; SETUP]) {
            let [a, b, c, d, e, f, g, h] = setup;
            write(&self.control, &[a, b, c, d, e, f, g, h, kind, 0, 0, 0]).unwrap();
        }

        fn send(&self, bytes: &[u8]) {
            assert_eq!(write(&self.bulk_out, bytes), Ok(bytes.len()));
        }

        fn receive(&self) -> Vec<u8> {
            let mut bytes = [0; 64];
            let len = read(&self.bulk_in, &mut bytes).unwrap();
            bytes[..len].to_vec()
        }
    }

    #[test]
    fn data_ends_at_its_length_or_by_a_short_packet() {
        let host = Host::plug();
        host.send(&[4]);
        host.send(&[&[1; 4095][..], &[9]].concat());
        assert_eq!(host.receive(), [0, 9]);
        host.send(&[4]);
        host.send(&[5; 100]);
        assert_eq!(host.receive(), [0, 5]);
    }

    #[test]
    fn control_requests_are_answered_while_a_transfer_is_awaited() {
        let host = Host::plug();
        host.event(EVENT_SETUP, [0xa1, 0xfe, 0, 0, 0, 0, 1, 0]);
        let mut byte = [0; 8];
        assert_eq!(read(&host.control, &mut byte), Ok(1));
        assert_eq!(byte[0], 7);
    }

    #[test]
    fn next_transfer_after_a_disconnection_begins_another_session() {
        let host = Host::plug();
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

    #[test]
    fn host_that_enables_the_device_again_has_reset_it() {
        let host = Host::plug();
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

    #[test]
    fn wrapper_after_a_reset_in_mid_data_is_no_violation() {
        let host = Host::plug();
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

    #[test]
    fn violation_ends_the_session_and_is_reported() {
        let host = Host::plug();
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
