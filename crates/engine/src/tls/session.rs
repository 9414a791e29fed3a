//! A session over TLS: wraps the protocol's session, decrypts its input and encrypts its output. To
//! a driver it is a session like any other.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use export::{
    Account, Body, DirectRecv, Event, Fence, Head, Notice, Outcome, Peer, Reason, Segment, Session,
    Step, Ticket,
};

use super::outbox::Outbox;
use super::record::{OPENED, Opener, RecordError};
use super::records::{Opened, Records, SMALL, sealed_len};
use crate::recv_buffer::{RecvBuffer, window};
use crate::{GRACE, MAX_UNSENT};

/// Size of the buffers for encrypted records, each of which is sent as one segment.
const CHUNK: usize = 256 << 10;

/// Amount of queued output that is encrypted at once, while it is still in the CPU cache.
const ENCRYPT_THRESHOLD: usize = 64 << 10;

/// Size of the buffer for decrypted bytes: an incomplete header and several records.
const PLAIN_BUFFER: usize = 4 * OPENED;

/// Records decrypted before their effects are processed.
const MAX_RECORDS: usize = 16;

/// State of the channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// The peer has closed its sending side, and has to close the connection by this time.
    Ended(Instant),
    /// The session has closed; its output is encrypted until this time.
    Closing(Reason, Instant),
    /// Nothing more is sent.
    Over,
}

/// A session over TLS.
pub(crate) struct TlsSession {
    session: Box<dyn Session>,
    records: Records,
    peer: Peer,
    /// Memory for encrypted records.
    account: Account,
    /// Decrypted bytes that the session has not consumed.
    plain: RecvBuffer,
    /// Output of the session, to be encrypted.
    outbox: Outbox,
    /// Steps for the driver.
    steps: VecDeque<Step>,
    phase: Phase,
    /// The time of the latest call.
    now: Instant,
}

impl TlsSession {
    /// Returns a buffer for decrypted bytes, or `None` if memory cannot be allocated.
    pub(crate) fn recv_buffer() -> Option<RecvBuffer> {
        RecvBuffer::new(PLAIN_BUFFER)
    }

    /// Wraps `session`. Encrypted records use memory of `account`, decrypted bytes use `plain`.
    pub(crate) fn new(
        records: Records,
        plain: RecvBuffer,
        session: Box<dyn Session>,
        account: Account,
        peer: Peer,
        now: Instant,
    ) -> Self {
        Self {
            session,
            records,
            peer,
            account,
            plain,
            outbox: Outbox::new(),
            steps: VecDeque::new(),
            phase: Phase::Open,
            now,
        }
    }

    /// Returns whether the session accepts more input, and its output queue permits it.
    fn accepts_input(&self) -> bool {
        self.phase == Phase::Open && self.outbox.len() <= MAX_UNSENT && self.session.can_receive()
    }

    /// Decrypts the first record in `bytes`. Returns its length, or `None` if it is incomplete.
    fn open(&mut self, bytes: &[u8]) -> Result<Option<usize>, RecordError> {
        let Some(body) = self.records.body(bytes)? else { return Ok(None) };
        let direct_recv = if self.plain.is_empty() { self.session.direct_recv() } else { None };
        let opened = match direct_recv {
            Some(direct_recv) => self.open_into(direct_recv, body),
            None => self.open_staged(body),
        };
        match opened? {
            Opened::CloseNotify => self.phase = Phase::Ended(self.now + GRACE),
            Opened::FatalAlert => self.abort(Reason::Peer),
            Opened::Data(_) | Opened::Control => {}
        }
        Ok(Some(Records::len(body)))
    }

    /// Decrypts a record into the buffer.
    fn open_staged(&mut self, body: &[u8]) -> Result<Opened, RecordError> {
        let opened = self.records.open(body, self.plain.spare());
        if let Ok(Opened::Data(len)) = opened {
            self.plain.fill(len);
        }
        opened
    }

    /// Decrypts a record into the memory lent by the session, if it fits.
    fn open_into(
        &mut self,
        mut direct_recv: DirectRecv,
        body: &[u8],
    ) -> Result<Opened, RecordError> {
        let into = window(&mut direct_recv);
        let (opened, got) = if into.len() >= Opener::room(body) {
            let opened = self.records.open(body, into);
            (opened, if let Ok(Opened::Data(len)) = opened { len } else { 0 })
        } else {
            let opened = self.open_staged(body);
            (opened, self.plain.read_into(into))
        };
        self.session.direct_received(self.now, direct_recv, got);
        opened
    }

    /// Passes decrypted bytes to the session. Returns whether it has consumed any.
    fn feed(&mut self) -> bool {
        if self.plain.is_empty() || !self.accepts_input() {
            return false;
        }
        let taken = self.session.receive(self.now, self.plain.unread());
        self.plain.consume(taken);
        taken > 0
    }

    /// Collects the steps of the session.
    fn collect(&mut self) {
        while let Some(step) = self.session.poll() {
            match step {
                Step::Send(segment) => self.outbox.push(segment),
                Step::Close(_) if self.phase == Phase::Over => {}
                Step::Close(reason) => {
                    self.phase = Phase::Closing(reason, self.now + GRACE);
                    break;
                }
                // Data is encrypted from the buffer.
                Step::Submit(admitted) => {
                    self.steps.push_back(Step::Submit(admitted.allow_in_place(false)));
                }
                step => self.steps.push_back(step),
            }
            if self.outbox.len() >= ENCRYPT_THRESHOLD {
                self.seal();
            }
        }
    }

    /// Encrypts queued output, as far as there is memory.
    fn seal(&mut self) {
        if self.phase == Phase::Over {
            return self.outbox.clear();
        }
        while self.outbox.len() > 0 {
            let len = sealed_len(self.outbox.len(), 2 * self.outbox.segments()).min(CHUNK);
            let Some(mut buffer) = self.account.take(len) else { return };
            let mut small = [0; SMALL];
            let due = self.records.pending_update(&mut small);
            self.send_small(small.get(..due).unwrap_or_default());
            let filled = self.outbox.seal(&mut self.records.sealer, buffer.bytes_mut());
            let segment = Segment::with_body(Head::new(&[]), Body::Whole(buffer), 0, filled);
            self.steps.push_back(Step::Send(segment));
        }
    }

    fn send_small(&mut self, record: &[u8]) {
        if !record.is_empty() {
            self.steps.push_back(Step::Send(Segment::head(Head::new(record))));
        }
    }

    /// Closes the channel when the session has closed and its output is encrypted, or on timeout.
    fn finish(&mut self) {
        match self.phase {
            Phase::Closing(reason, until) if self.outbox.len() == 0 || until <= self.now => {
                self.close(reason);
            }
            Phase::Ended(until) if until <= self.now => self.close(Reason::Peer),
            _ => {}
        }
    }

    fn close(&mut self, reason: Reason) {
        // No close_notify if output is missing: the peer must see the truncation.
        if self.outbox.len() == 0 {
            let mut small = [0; SMALL];
            let len = self.records.close(&mut small);
            self.send_small(small.get(..len).unwrap_or_default());
        }
        self.abort(reason);
    }

    /// Sends nothing more.
    fn abort(&mut self, reason: Reason) {
        self.steps.push_back(Step::Close(reason));
        self.phase = Phase::Over;
        self.outbox.clear();
    }

    /// Reports a violation of TLS by the peer, or a modified record, and closes.
    fn fail(&mut self, broken: RecordError) {
        let mut small = [0; SMALL];
        let len = self.records.alert_record(broken, &mut small);
        self.send_small(small.get(..len).unwrap_or_default());
        let rule = broken.name();
        let event = Event::Violation { peer: self.peer.clone(), rule };
        self.steps.push_back(Step::Report(Box::new(event)));
        self.abort(Reason::Violation);
    }
}

impl Session for TlsSession {
    fn receive(&mut self, now: Instant, bytes: &[u8]) -> usize {
        self.now = now;
        let mut taken = 0;
        for _ in 0..MAX_RECORDS {
            while self.feed() {
                self.collect();
            }
            if !self.accepts_input() || self.plain.spare().len() < OPENED {
                break;
            }
            match self.open(bytes.get(taken..).unwrap_or_default()) {
                Ok(Some(len)) => taken += len,
                Ok(None) => break,
                Err(broken) => self.fail(broken),
            }
            self.collect();
        }
        // Bytes after the end are discarded.
        if matches!(self.phase, Phase::Ended(_) | Phase::Over) { bytes.len() } else { taken }
    }

    fn complete(&mut self, now: Instant, ticket: Ticket, outcome: Outcome) {
        self.now = now;
        self.session.complete(now, ticket, outcome);
    }

    fn notify(&mut self, now: Instant, notice: &Notice) {
        self.now = now;
        self.session.notify(now, notice);
        if *notice == Notice::Disconnected {
            self.phase = Phase::Over;
        }
    }

    fn tick(&mut self, now: Instant) {
        self.now = now;
        if self.session.deadline().is_some_and(|deadline| deadline <= now) {
            self.session.tick(now);
        }
        self.collect();
        self.seal();
        self.finish();
    }

    fn poll(&mut self) -> Option<Step> {
        loop {
            if let Some(step) = self.steps.pop_front() {
                return Some(step);
            }
            self.collect();
            if !self.steps.is_empty() {
                continue;
            }
            self.seal();
            self.finish();
            if self.steps.is_empty() && !self.feed() {
                return None;
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let until = match self.phase {
            Phase::Ended(until) | Phase::Closing(_, until) => Some(until),
            Phase::Open | Phase::Over => None,
        };
        self.session.deadline().into_iter().chain(until).min()
    }

    fn can_receive(&self) -> bool {
        // After the end, bytes are accepted and discarded, so that the end of the stream is seen.
        self.accepts_input() || matches!(self.phase, Phase::Ended(_) | Phase::Over)
    }

    fn is_established(&self) -> bool {
        self.session.is_established()
    }

    fn fence(&self) -> Option<&Arc<Fence>> {
        self.session.fence()
    }
}

#[cfg(test)]
mod test {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use export::{Auth, Channel, Pool};
    use zeroize::Zeroizing;

    use super::super::record::{CONTENT, Kind, Sealer};
    use super::super::s2n::Established;
    use super::super::suite::Suite;
    use super::*;

    /// Echoes its input in segments of its own; `!` closes it.
    #[derive(Default)]
    struct Echo {
        steps: VecDeque<Step>,
        deaf: bool,
    }

    impl Session for Echo {
        fn receive(&mut self, _: Instant, bytes: &[u8]) -> usize {
            let some = &bytes[..bytes.len().min(5000)];
            self.steps.push_back(Step::Send(Segment::with_shared(Head::new(b""), some.into())));
            if some.contains(&b'!') {
                self.steps.push_back(Step::Close(Reason::Ended));
                self.deaf = true;
            }
            some.len()
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
            !self.deaf
        }
        fn is_established(&self) -> bool {
            true
        }
    }

    fn secret(byte: u8) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(vec![byte; 32])
    }

    fn established(ours: u8, theirs: u8) -> Established {
        let (identity, cipher) = (String::new(), String::new());
        Established {
            channel: Channel { key: None, certified: false, identity, cipher, binding: [0; 32] },
            is_client: false,
            sealer: Sealer::new(Suite::Aes128, secret(ours)).unwrap(),
            opener: Opener::new(Suite::Aes128, secret(theirs)).unwrap(),
        }
    }

    /// A wrapped echo session and its peer, with a minimal driver between them.
    struct Pair {
        wrapped: TlsSession,
        peer: Records,
        waiting: Vec<u8>,
        sent: Vec<Segment>,
        received: Vec<u8>,
        closed: Option<Reason>,
        reports: usize,
        now: Instant,
    }

    impl Pair {
        fn new(memory: usize) -> Self {
            let nowhere = (Ipv4Addr::LOCALHOST, 0).into();
            let peer = Peer::ip(nowhere, nowhere, Auth::Required);
            let (account, now) = (Pool::new(memory).open(), Instant::now());
            let (records, recv_buffer) =
                (Records::new(established(1, 2)), TlsSession::recv_buffer().unwrap());
            Self {
                wrapped: TlsSession::new(
                    records,
                    recv_buffer,
                    Box::new(Echo::default()),
                    account,
                    peer,
                    now,
                ),
                peer: Records::new(established(2, 1)),
                waiting: Vec::new(),
                sent: Vec::new(),
                received: Vec::new(),
                closed: None,
                reports: 0,
                now,
            }
        }

        fn record(&mut self, kind: Kind, content: &[u8]) -> Vec<u8> {
            let mut out = vec![0; CONTENT + 22];
            let len = self.peer.sealer.seal(kind, content, &mut out);
            out.truncate(len);
            out
        }

        fn receive(&mut self, bytes: &[u8]) {
            self.waiting.extend_from_slice(bytes);
            while self.wrapped.can_receive() && !self.waiting.is_empty() {
                let taken = self.wrapped.receive(self.now, &self.waiting);
                self.waiting.drain(..taken);
                self.drain();
                if taken == 0 {
                    break;
                }
            }
        }

        fn drain(&mut self) {
            while let Some(step) = self.wrapped.poll() {
                match step {
                    Step::Send(segment) => self.sent.push(segment),
                    Step::Close(reason) => self.closed = Some(reason),
                    Step::Report(_) => self.reports += 1,
                    _ => {}
                }
            }
        }

        /// The peer decrypts what was sent, which frees its memory.
        fn peer_receive(&mut self) -> Result<bool, RecordError> {
            let bytes: Vec<u8> = self.sent.drain(..).flat_map(|s| s.parts().concat()).collect();
            let mut at = 0;
            let mut ended = false;
            while let Some(body) = self.peer.body(&bytes[at..])? {
                let mut out = vec![0; OPENED];
                match self.peer.open(body, &mut out)? {
                    Opened::Data(len) => self.received.extend_from_slice(&out[..len]),
                    Opened::Control => {}
                    Opened::CloseNotify | Opened::FatalAlert => ended = true,
                }
                at += Records::len(body);
            }
            assert_eq!(at, bytes.len());
            Ok(ended)
        }
    }

    #[test]
    fn data_round_trips_at_any_cut_and_across_key_updates() {
        for cut in [1, 7, 1000, 20_000, 100_000] {
            let mut pair = Pair::new(1 << 20);
            let (mut bytes, mut expected) = (Vec::new(), Vec::new());
            for (round, len) in [1, 0, 16, 4096, CONTENT, 300, CONTENT].into_iter().enumerate() {
                let content = vec![b'a' + u8::try_from(round).unwrap(); len];
                bytes.extend(pair.record(Kind::Data, &content));
                expected.extend(content);
                let mut small = [0; SMALL];
                let len = pair.peer.sealer.update(round % 2 == 0, &mut small);
                bytes.extend_from_slice(&small[..len]);
            }
            for piece in bytes.chunks(cut) {
                pair.receive(piece);
                assert_eq!(pair.peer_receive(), Ok(false));
                pair.drain();
            }
            assert!(pair.received == expected, "cut {cut}");
            assert!(pair.peer.updates_seen() >= 1);
            assert_eq!((pair.closed, pair.reports), (None, 0));
        }
    }

    #[test]
    fn repeated_update_requests_are_answered_once() {
        let mut pair = Pair::new(1 << 20);
        for _ in 0..5000 {
            let mut small = [0; SMALL];
            let len = pair.peer.sealer.update(true, &mut small);
            pair.receive(&small[..len]);
        }
        assert!(pair.sent.is_empty(), "{} answers", pair.sent.len());
        let record = pair.record(Kind::Data, b"data");
        pair.receive(&record);
        assert_eq!((pair.peer_receive(), &pair.received[..]), (Ok(false), &b"data"[..]));
        assert_eq!(pair.peer.updates_seen(), 1);

        // Nor while output waits for memory.
        let mut stalled = Pair::new(0);
        for _ in 0..40 {
            let record = stalled.record(Kind::Data, &[1; CONTENT]);
            stalled.receive(&record);
        }
        let sent = stalled.sent.len();
        for _ in 0..1000 {
            let mut small = [0; SMALL];
            let len = stalled.peer.sealer.update(true, &mut small);
            stalled.receive(&small[..len]);
        }
        assert_eq!((stalled.sent.len(), stalled.wrapped.records.updates_seen()), (sent, 1000));
    }

    #[test]
    fn nothing_is_sent_after_a_fatal_alert() {
        let mut pair = Pair::new(0);
        for _ in 0..40 {
            let record = pair.record(Kind::Data, &[1; CONTENT]);
            pair.receive(&record);
        }
        assert_eq!(pair.peer_receive(), Ok(false));
        let record =
            [pair.record(Kind::Alert, &[2, 20]), pair.record(Kind::Data, b"data")].concat();
        pair.receive(&record);
        pair.drain();
        assert_eq!((pair.closed, pair.sent.len(), pair.reports), (Some(Reason::Peer), 0, 0));
    }

    #[test]
    fn output_waits_for_memory_and_input_stops() {
        let mut pair = Pair::new(0);
        let mut expected = Vec::new();
        for round in 0..600u32 {
            let content = vec![u8::try_from(round % 200).unwrap() | 0x80; CONTENT];
            let record = pair.record(Kind::Data, &content);
            pair.receive(&record);
            expected.extend(content);
        }
        assert!(pair.wrapped.account.held() <= CHUNK);
        assert!(
            pair.wrapped.outbox.len() <= MAX_UNSENT + 17 * CONTENT,
            "{}",
            pair.wrapped.outbox.len()
        );
        assert!(!pair.wrapped.can_receive() && !pair.waiting.is_empty());
        while pair.received.len() < expected.len() {
            assert!(!pair.sent.is_empty());
            assert_eq!(pair.peer_receive(), Ok(false));
            pair.drain();
            pair.receive(&[]);
        }
        assert!(pair.received == expected);
    }

    #[test]
    fn closing_session_flushes_or_times_out() {
        let mut pair = Pair::new(0);
        for _ in 0..40 {
            let record = pair.record(Kind::Data, &[1; CONTENT]);
            pair.receive(&record);
        }
        let record = pair.record(Kind::Data, b"!");
        pair.receive(&record);
        assert_eq!(pair.closed, None);
        while pair.closed.is_none() {
            assert_eq!(pair.peer_receive(), Ok(false));
            pair.drain();
        }
        assert_eq!((pair.closed, pair.peer_receive()), (Some(Reason::Ended), Ok(true)));
        assert_eq!(pair.received.len(), 40 * CONTENT + 1);

        let mut stalled = Pair::new(0);
        for _ in 0..40 {
            let record = stalled.record(Kind::Data, &[1; CONTENT]);
            stalled.receive(&record);
        }
        let record = stalled.record(Kind::Data, b"!");
        stalled.receive(&record);
        let until = stalled.wrapped.deadline().unwrap();
        assert!(until <= stalled.now + GRACE);
        stalled.wrapped.tick(until);
        stalled.drain();
        assert_eq!(stalled.closed, Some(Reason::Ended));
    }

    #[test]
    fn peer_that_stays_after_close_notify_is_closed() {
        let mut pair = Pair::new(1 << 20);
        let record = [pair.record(Kind::Data, b"last"), pair.record(Kind::Alert, &[1, 0])].concat();
        pair.receive(&record);
        // What follows is discarded.
        pair.receive(&[0; 100]);
        assert!(pair.waiting.is_empty() && pair.closed.is_none());
        assert_eq!((pair.peer_receive(), &pair.received[..]), (Ok(false), &b"last"[..]));
        pair.wrapped.tick(pair.now + GRACE + Duration::from_millis(1));
        pair.drain();
        assert_eq!((pair.closed, pair.peer_receive()), (Some(Reason::Peer), Ok(true)));
    }

    #[test]
    fn violations_are_reported_once_and_close() {
        let cases: [(Kind, &[u8]); 8] = [
            (Kind::Handshake, &[24, 0, 0, 1, 2]),
            (Kind::Handshake, &[24, 0, 0, 2, 0, 0]),
            // A ticket, which only a server may send.
            (Kind::Handshake, &[4, 0, 0, 0]),
            (Kind::Handshake, &[24, 0, 0, 1, 0, 4, 0, 0, 0]),
            (Kind::Handshake, &[1, 0, 0, 0]),
            (Kind::Handshake, &[]),
            (Kind::Alert, &[1]),
            (Kind::Handshake, &[4; CONTENT]),
        ];
        for (kind, content) in cases {
            let mut pair = Pair::new(1 << 20);
            let record = pair.record(kind, content);
            pair.receive(&record);
            assert_eq!((pair.closed, pair.reports), (Some(Reason::Violation), 1), "{content:?}");
            pair.receive(&[0; 10]);
            assert_eq!((pair.peer_receive(), pair.reports), (Ok(true), 1));
        }
        // No record may come between the fragments of a message.
        let mut pair = Pair::new(1 << 20);
        let record =
            [pair.record(Kind::Handshake, &[24, 0]), pair.record(Kind::Data, b"data")].concat();
        pair.receive(&record);
        assert_eq!((pair.closed, pair.reports), (Some(Reason::Violation), 1));
    }
}
