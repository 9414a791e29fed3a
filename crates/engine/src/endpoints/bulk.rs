//! The thread of the bulk endpoints, and the session.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use export::{DirectRecv, Finished, Notice, Peer, Pool, Segment, Session, Step};
use rustix::io::{Errno, IoSlice, read, write, writev};

use super::Cable;
use super::disks::Disks;
use crate::inbox::Message;
use crate::incoming::{Incoming, PACKET};
use crate::outgoing::Outgoing;
use crate::topic::Topic;
use crate::{MEMORY_RETRY, MakeSession, Shared};

/// Smallest packet of a bulk endpoint at any speed. Larger ones are multiples of it.
const SMALLEST_PACKET: usize = 64;

/// Largest transfer that is passed to the kernel at once, which allocates memory of that length.
const MAX_TRANSFER: usize = 1 << 20;

/// Largest transfer that the one behind it is sent with.
const MAX_JOINED: usize = 32 << 10;

/// Length of a command block wrapper (USB Mass Storage Class, Bulk-Only Transport 1.0, 5.1).
const WRAPPER: usize = 31;

/// Longest wait without a deadline.
const IDLE: Duration = Duration::from_secs(1);

/// Pause after an unexpected error.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves the host at the other end of a cable.
pub(super) struct Bulk<'a> {
    shared: &'a Shared,
    cable: &'a Cable,
    open: &'a MakeSession,
    disks: &'a mut Disks,
    pool: Pool,
    /// The session, and the number of resets when it began.
    session: Option<(Box<dyn Session>, u32)>,
    /// The number of resets when a violation has halted the pipes.
    halted: Option<u32>,
    /// Largest transfer that the kernel has memory for.
    max_transfer: usize,
    /// Whether the host is gone, as the endpoints have reported.
    is_lost: bool,
    /// A transfer that is sent with the next one: see [`Bulk::send`].
    joined: Option<Segment>,
    /// Memory for a transfer from the host, while none is received.
    incoming: Option<Box<Incoming>>,
    /// Whether that has received parts of one.
    is_partial: bool,
    /// Whether the thread is to end.
    is_quitting: bool,
}

impl<'a> Bulk<'a> {
    pub(super) fn new(
        shared: &'a Shared,
        cable: &'a Cable,
        memory: usize,
        open: &'a MakeSession,
        disks: &'a mut Disks,
    ) -> Self {
        // Of a session that has panicked.
        disks.abandon();
        Self {
            shared,
            cable,
            open,
            disks,
            pool: Pool::with_budget(memory, shared.budget.clone()),
            session: None,
            halted: None,
            max_transfer: MAX_TRANSFER,
            is_lost: false,
            joined: None,
            incoming: None,
            is_partial: false,
            is_quitting: false,
        }
    }

    /// Runs until the function is removed, or the thread is to end. Returns whether that is so.
    pub(super) fn run(&mut self) -> bool {
        loop {
            self.settle();
            if self.is_quitting {
                self.end_session();
                return true;
            }
            let received = match self.disks.take_received() {
                Some(received) => Some(received),
                None if self.disks.is_receiving() || !self.can_receive() => None,
                None => self.receive(),
            };
            let is_removed = match received {
                Some((incoming, result)) => self.received(incoming, result),
                None => {
                    self.wait();
                    false
                }
            };
            if is_removed {
                self.end_session();
                return false;
            }
        }
    }

    fn can_receive(&self) -> bool {
        self.is_partial || self.session.as_ref().is_none_or(|(session, _)| session.can_receive())
    }

    /// Halts both pipes. What the host sends before it resets the device halts them again.
    fn halt_until_reset(&mut self) {
        if let Some((_, begun)) = &self.session {
            self.halted = Some(*begun);
        }
        let _ = self.guarded(|bulk| bulk.halt());
    }

    fn halt(&self) -> Result<(), Errno> {
        self.cable.halt_all(self.disks.is_receiving())
    }

    /// Ends the session if the device was reset; else passes messages and completed disk requests to it
    /// and executes its steps.
    fn settle(&mut self) {
        let resets = self.resets();
        if self.is_lost || self.session.as_ref().is_some_and(|(_, begun)| *begun != resets) {
            self.end_session();
        }
        self.take_events();
        self.drain();
        self.disks.release_withdrawn();
    }

    /// Passes completed disk requests and messages to the session.
    fn take_events(&mut self) {
        while let Some((is_current, finished)) = self.disks.next() {
            self.complete(is_current, finished);
        }
        if self.cable.inbox.has_messages() {
            for message in self.cable.inbox.take() {
                self.read_message(message);
            }
        }
    }

    fn resets(&self) -> u32 {
        self.cable.resets.load(Ordering::SeqCst)
    }

    fn read_message(&mut self, message: Message) {
        let notice = match message {
            Message::Notice(notice) => notice,
            Message::ExportChanged(_) => Notice::StateChanged,
            Message::BlockingOpDone(number, answer) => {
                if let Some((is_current, finished)) = self.disks.answer(number, answer) {
                    self.complete(is_current, finished);
                }
                return;
            }
            Message::Quit => return self.is_quitting = true,
            Message::Adopt(..) => return,
        };
        if let Some((session, _)) = &mut self.session {
            session.notify(Instant::now(), &notice);
        }
    }

    /// Passes a completed disk request to its session, unless that has ended.
    fn complete(&mut self, is_current: bool, finished: Finished) {
        let (ticket, outcome) = super::outcome(self.shared, finished);
        if let Some((session, _)) = self.session.as_mut().filter(|_| is_current) {
            session.complete(Instant::now(), ticket, outcome);
        }
    }

    /// Receives the next part of a transfer: by a system call, or by the ring if disk requests are in
    /// flight. Returns `None` if it is being received.
    fn receive(&mut self) -> Option<(Box<Incoming>, Result<usize, Errno>)> {
        let mut incoming = self.incoming.take().unwrap_or_else(Incoming::new);
        if !std::mem::take(&mut self.is_partial) {
            let lent = self.session.as_mut().and_then(|(session, _)| session.direct_recv());
            incoming.begin(lent);
        }
        incoming.limit(self.max_transfer);
        let source = self.cable.endpoints.bulk_out.as_fd();
        if self.disks.has_requests() {
            match self.disks.receive(source, incoming) {
                Ok(()) => return None,
                Err(refused) => incoming = refused,
            }
        }
        let result = read(source, incoming.place());
        Some((incoming, result))
    }

    /// Processes a part of a transfer. Returns whether the function was removed.
    fn received(&mut self, mut incoming: Box<Incoming>, result: Result<usize, Errno>) -> bool {
        let is_data = incoming.window.is_some();
        match result {
            Ok(len) if incoming.received(len) => self.deliver(&mut incoming),
            Ok(_) => self.is_partial = true,
            Err(Errno::NOMEM) if is_data && self.halve() => self.is_partial = true,
            Err(Errno::INTR | Errno::AGAIN) => self.is_partial = is_data,
            // The next call waits for a host.
            Err(Errno::SHUTDOWN | Errno::CONNRESET) => self.end_session(),
            Err(Errno::NODEV | Errno::BADFD) => return true,
            Err(_) => {
                self.halt_until_reset();
                self.end_session();
                std::thread::sleep(PAUSE);
            }
        }
        if !self.is_partial {
            incoming.window = None;
        }
        self.incoming = Some(incoming);
        false
    }

    /// Halves the length of transfers. Returns whether it was above one packet.
    fn halve(&mut self) -> bool {
        let is_long = self.max_transfer > PACKET;
        self.max_transfer = (self.max_transfer / 2).max(PACKET);
        is_long
    }

    /// Passes a transfer to its session, or to a new one if the device was reset meanwhile.
    fn deliver(&mut self, incoming: &mut Incoming) {
        let (resets, len) = (self.resets(), incoming.len());
        match (incoming.window.take(), &mut self.session) {
            (Some(window), Some((session, begun))) if *begun == resets => {
                session.direct_received(Instant::now(), window, len);
            }
            (Some(window), _) => self.deliver_late(resets, window, len),
            (None, _) => {
                // What has changed before the command arrived, it must see.
                self.settle();
                self.begin(resets, incoming.packet());
            }
        }
        self.drain();
    }

    /// Processes a transfer that was awaited before a reset. Whole packets are data of the command that
    /// the reset has ended. The short packet behind them is the next wrapper if it has the length of one,
    /// or else the end of that data.
    fn deliver_late(&mut self, resets: u32, mut window: DirectRecv, len: usize) {
        let end = window.start + len;
        let start = end - len % SMALLEST_PACKET;
        let wrapper = window.buffer.bytes_mut()[start..end].to_vec();
        drop(window);
        if wrapper.len() != WRAPPER {
            self.end_session();
        } else {
            self.begin(resets, &wrapper);
        }
    }

    /// Passes a wrapper to the session, which is a new one after a reset.
    fn begin(&mut self, resets: u32, bytes: &[u8]) {
        if self.session.as_ref().is_some_and(|(_, begun)| *begun != resets) {
            self.end_session();
        }
        if self.halted == Some(resets) {
            let _ = self.guarded(|bulk| bulk.halt());
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

    /// Executes the steps of the session.
    fn drain(&mut self) {
        loop {
            while let Some(step) = self.session.as_mut().and_then(|(session, _)| session.poll()) {
                self.carry_out(step);
            }
            if self.joined.is_none() {
                break;
            }
            // Sending frees memory which the session may be waiting for.
            self.flush();
        }
        if std::mem::take(&mut self.is_lost) {
            self.end_session();
        }
    }

    fn carry_out(&mut self, step: Step) {
        if !matches!(step, Step::Send(_)) {
            self.flush();
        }
        match step {
            Step::Report(event) => (self.shared.sink)(*event),
            Step::Notify => self.shared.inboxes.changed(&Topic::All, None),
            Step::Submit(admitted) => {
                if let Some(finished) = self.disks.submit(admitted) {
                    self.complete(true, finished);
                }
            }
            Step::Send(_) | Step::Halt | Step::Close(_) if self.is_lost => {}
            Step::Send(segment) => self.send(segment),
            Step::Halt => self.is_lost = self.guarded(|bulk| bulk.cable.halt_in()).is_err(),
            Step::Close(_) => {
                self.halt_until_reset();
                self.is_lost = true;
            }
        }
    }

    /// Uses the pipes for the session. Fails if the host is gone or has reset the device.
    fn guarded(&mut self, act: impl FnOnce(&mut Self) -> Result<(), Errno>) -> Result<(), Errno> {
        self.cable.is_sending.store(true, Ordering::SeqCst);
        let begun = self.session.as_ref().map(|(_, begun)| *begun).or(self.halted);
        let is_current = begun == Some(self.resets());
        let result = if is_current { act(self) } else { Err(Errno::SHUTDOWN) };
        self.cable.is_sending.store(false, Ordering::SeqCst);
        result
    }

    /// Sends one message. A short one that ends with a whole packet is sent with the next one, as the
    /// status behind data: on the wire that is the same, and this thread is woken once.
    fn send(&mut self, segment: Segment) {
        let is_short = segment.len() <= MAX_JOINED.min(self.max_transfer / 2);
        let is_whole = !segment.is_empty() && segment.len().is_multiple_of(PACKET);
        match self.joined.take() {
            None if is_short && is_whole => self.joined = Some(segment),
            None => self.transmit(segment),
            Some(first) if is_short && !self.disks.has_abandoned() => {
                self.deliver_to_host(|bulk| bulk.write_joined(first, segment));
            }
            Some(first) => {
                self.transmit(first);
                self.transmit(segment);
            }
        }
    }

    /// Sends a message that waits for the next one.
    fn flush(&mut self) {
        if let Some(segment) = self.joined.take() {
            self.transmit(segment);
        }
    }

    /// Sends a message, unless the host is gone.
    fn transmit(&mut self, segment: Segment) {
        self.deliver_to_host(|bulk| bulk.write(segment));
    }

    fn deliver_to_host(&mut self, act: impl FnOnce(&mut Self) -> Result<(), Errno>) {
        if self.is_lost {
            return;
        }
        // The disk works while this thread waits for the host.
        self.disks.submit_started();
        let sent = self.guarded(act);
        self.is_lost |= sent.is_err();
    }

    fn write(&mut self, segment: Segment) -> Result<(), Errno> {
        let mut outgoing = Outgoing::new(segment);
        loop {
            outgoing.limit(self.max_transfer);
            if outgoing.place().is_empty() {
                return Ok(());
            }
            let (returned, result) = self.write_part(outgoing);
            outgoing = returned;
            match result {
                Ok(len) => outgoing.sent(len),
                Err(Errno::NOMEM) if self.halve() => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Sends a part of a message: by a system call, or by the ring if requests of ended sessions are in
    /// flight, as the host may never take it and others may wait for them.
    fn write_part(&mut self, mut outgoing: Box<Outgoing>) -> (Box<Outgoing>, Result<usize, Errno>) {
        let target = self.cable.endpoints.bulk_in.as_fd();
        if self.disks.has_abandoned() {
            match self.disks.send(target, outgoing) {
                Ok(()) => return self.wait_for_sent(),
                Err(refused) => outgoing = refused,
            }
        }
        let result = write(target, outgoing.place());
        (outgoing, result)
    }

    fn wait_for_sent(&mut self) -> (Box<Outgoing>, Result<usize, Errno>) {
        loop {
            self.disks.wait(IDLE);
            self.take_events();
            if let Some(sent) = self.disks.take_sent() {
                return sent;
            }
        }
    }

    /// Sends two messages as one transfer.
    fn write_joined(&mut self, first: Segment, second: Segment) -> Result<(), Errno> {
        let [a, b, c] = first.parts();
        let [d, e, f] = second.parts();
        let parts = [a, b, c, d, e, f].map(IoSlice::new);
        match writev(&self.cable.endpoints.bulk_in, &parts) {
            Ok(len) if len == first.len() + second.len() => Ok(()),
            Ok(_) => Err(Errno::IO),
            Err(Errno::NOMEM) if self.halve() => {
                self.write(first)?;
                self.write(second)
            }
            Err(errno) => Err(errno),
        }
    }

    /// Waits until a disk request, another request, other memory or a deadline lets the session
    /// continue, or a transfer has arrived.
    fn wait(&mut self) {
        let retry = self.pool.was_short().then(|| Instant::now() + MEMORY_RETRY);
        let deadline = self.session.as_ref().and_then(|(session, _)| session.deadline());
        let until = [retry, deadline].into_iter().flatten().min();
        let timeout = until.map_or(IDLE, |at| at.saturating_duration_since(Instant::now()));
        self.disks.wait(timeout);
        let now = Instant::now();
        if let Some((session, _)) = &mut self.session
            && session.deadline().is_some_and(|deadline| deadline <= now)
        {
            session.tick(now);
        }
    }

    /// Ends the session: its host is gone, or has reset the device. Disk requests in flight complete
    /// without it: its fences are closed.
    fn end_session(&mut self) {
        (self.is_lost, self.joined) = (false, None);
        let Some((mut session, _)) = self.session.take() else { return };
        session.notify(Instant::now(), &Notice::Disconnected);
        while let Some(step) = session.poll() {
            if let Step::Report(event) = step {
                (self.shared.sink)(*event);
            }
        }
        drop(session);
        self.disks.abandon();
        self.pool.trim();
        self.shared.inboxes.changed(&Topic::All, Some(&self.cable.inbox));
    }
}
