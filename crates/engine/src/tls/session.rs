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
const SOON: usize = 64 << 10;

/// Size of the buffer for decrypted bytes: an incomplete header and several records.
const OPEN: usize = 4 * OPENED;

/// Records decrypted before their effects are processed.
const ROUND: usize = 16;

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
    /// Returns a buffer for decrypted bytes, or `None` if there is no memory.
    pub(crate) fn recv_buffer() -> Option<RecvBuffer> {
        RecvBuffer::new(OPEN)
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
    fn takes_more(&self) -> bool {
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
            Opened::FatalAlert => self.cut(Reason::Peer),
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
        if self.plain.is_empty() || !self.takes_more() {
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
                step => self.steps.push_back(step),
            }
            if self.outbox.len() >= SOON {
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
        self.cut(reason);
    }

    /// Sends nothing more.
    fn cut(&mut self, reason: Reason) {
        self.steps.push_back(Step::Close(reason));
        self.phase = Phase::Over;
        self.outbox.clear();
    }

    /// Reports a violation of TLS by the peer, or a modified record, and closes.
    fn give_up(&mut self, broken: RecordError) {
        let mut small = [0; SMALL];
        let len = self.records.alert_record(broken, &mut small);
        self.send_small(small.get(..len).unwrap_or_default());
        let rule = broken.name();
        self.steps.push_back(Step::Report(Event::Violation { peer: self.peer.clone(), rule }));
        self.cut(Reason::Violation);
    }
}

impl Session for TlsSession {
    fn receive(&mut self, now: Instant, bytes: &[u8]) -> usize {
        self.now = now;
        let mut taken = 0;
        for _ in 0..ROUND {
            while self.feed() {
                self.collect();
            }
            if !self.takes_more() || self.plain.spare().len() < OPENED {
                break;
            }
            match self.open(bytes.get(taken..).unwrap_or_default()) {
                Ok(Some(len)) => taken += len,
                Ok(None) => break,
                Err(broken) => self.give_up(broken),
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
        self.takes_more() || matches!(self.phase, Phase::Ended(_) | Phase::Over)
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
    struct Bench {
        wrapped: TlsSession,
        peer: Records,
        waiting: Vec<u8>,
        sent: Vec<Segment>,
        heard: Vec<u8>,
        closed: Option<Reason>,
        reports: usize,
        now: Instant,
    }

    impl Bench {
        fn new(memory: usize) -> Self {
            let nowhere = (Ipv4Addr::LOCALHOST, 0).into();
            let peer =
                Peer { remote: nowhere, local: nowhere, auth: Auth::Required, channel: None };
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
                heard: Vec::new(),
                closed: None,
                reports: 0,
                now,
            }
        }

        fn say(&mut self, kind: Kind, content: &[u8]) -> Vec<u8> {
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
        fn hear(&mut self) -> Result<bool, RecordError> {
            let bytes: Vec<u8> = self.sent.drain(..).flat_map(|s| s.parts().concat()).collect();
            let mut at = 0;
            let mut ended = false;
            while let Some(body) = self.peer.body(&bytes[at..])? {
                let mut out = vec![0; OPENED];
                match self.peer.open(body, &mut out)? {
                    Opened::Data(len) => self.heard.extend_from_slice(&out[..len]),
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
            let mut bench = Bench::new(1 << 20);
            let (mut bytes, mut expected) = (Vec::new(), Vec::new());
            for (round, len) in [1, 0, 16, 4096, CONTENT, 300, CONTENT].into_iter().enumerate() {
                let content = vec![b'a' + u8::try_from(round).unwrap(); len];
                bytes.extend(bench.say(Kind::Data, &content));
                expected.extend(content);
                let mut small = [0; SMALL];
                let len = bench.peer.sealer.update(round % 2 == 0, &mut small);
                bytes.extend_from_slice(&small[..len]);
            }
            for piece in bytes.chunks(cut) {
                bench.receive(piece);
                assert_eq!(bench.hear(), Ok(false));
                bench.drain();
            }
            assert!(bench.heard == expected, "cut {cut}");
            assert!(bench.peer.updates_seen() >= 1);
            assert_eq!((bench.closed, bench.reports), (None, 0));
        }
    }

    #[test]
    fn repeated_update_requests_are_answered_once() {
        let mut bench = Bench::new(1 << 20);
        for _ in 0..5000 {
            let mut small = [0; SMALL];
            let len = bench.peer.sealer.update(true, &mut small);
            bench.receive(&small[..len]);
        }
        assert!(bench.sent.is_empty(), "{} answers", bench.sent.len());
        let record = bench.say(Kind::Data, b"data");
        bench.receive(&record);
        assert_eq!((bench.hear(), &bench.heard[..]), (Ok(false), &b"data"[..]));
        assert_eq!(bench.peer.updates_seen(), 1);

        // Nor while output waits for memory.
        let mut deaf = Bench::new(0);
        for _ in 0..40 {
            let record = deaf.say(Kind::Data, &[1; CONTENT]);
            deaf.receive(&record);
        }
        let said = deaf.sent.len();
        for _ in 0..1000 {
            let mut small = [0; SMALL];
            let len = deaf.peer.sealer.update(true, &mut small);
            deaf.receive(&small[..len]);
        }
        assert_eq!((deaf.sent.len(), deaf.wrapped.records.updates_seen()), (said, 1000));
    }

    #[test]
    fn nothing_is_sent_after_a_fatal_alert() {
        let mut bench = Bench::new(0);
        for _ in 0..40 {
            let record = bench.say(Kind::Data, &[1; CONTENT]);
            bench.receive(&record);
        }
        assert_eq!(bench.hear(), Ok(false));
        let record = [bench.say(Kind::Alert, &[2, 20]), bench.say(Kind::Data, b"data")].concat();
        bench.receive(&record);
        bench.drain();
        assert_eq!((bench.closed, bench.sent.len(), bench.reports), (Some(Reason::Peer), 0, 0));
    }

    #[test]
    fn output_waits_for_memory_and_input_stops() {
        let mut bench = Bench::new(0);
        let mut expected = Vec::new();
        for round in 0..600u32 {
            let content = vec![u8::try_from(round % 200).unwrap() | 0x80; CONTENT];
            let record = bench.say(Kind::Data, &content);
            bench.receive(&record);
            expected.extend(content);
        }
        assert!(bench.wrapped.account.held() <= CHUNK);
        assert!(
            bench.wrapped.outbox.len() <= MAX_UNSENT + 17 * CONTENT,
            "{}",
            bench.wrapped.outbox.len()
        );
        assert!(!bench.wrapped.can_receive() && !bench.waiting.is_empty());
        while bench.heard.len() < expected.len() {
            assert!(!bench.sent.is_empty());
            assert_eq!(bench.hear(), Ok(false));
            bench.drain();
            bench.receive(&[]);
        }
        assert!(bench.heard == expected);
    }

    #[test]
    fn closing_session_flushes_or_times_out() {
        let mut bench = Bench::new(0);
        for _ in 0..40 {
            let record = bench.say(Kind::Data, &[1; CONTENT]);
            bench.receive(&record);
        }
        let record = bench.say(Kind::Data, b"!");
        bench.receive(&record);
        assert_eq!(bench.closed, None);
        while bench.closed.is_none() {
            assert_eq!(bench.hear(), Ok(false));
            bench.drain();
        }
        assert_eq!((bench.closed, bench.hear()), (Some(Reason::Ended), Ok(true)));
        assert_eq!(bench.heard.len(), 40 * CONTENT + 1);

        let mut deaf = Bench::new(0);
        for _ in 0..40 {
            let record = deaf.say(Kind::Data, &[1; CONTENT]);
            deaf.receive(&record);
        }
        let record = deaf.say(Kind::Data, b"!");
        deaf.receive(&record);
        let until = deaf.wrapped.deadline().unwrap();
        assert!(until <= deaf.now + GRACE);
        deaf.wrapped.tick(until);
        deaf.drain();
        assert_eq!(deaf.closed, Some(Reason::Ended));
    }

    #[test]
    fn peer_that_stays_after_close_notify_is_closed() {
        let mut bench = Bench::new(1 << 20);
        let record = [bench.say(Kind::Data, b"last"), bench.say(Kind::Alert, &[1, 0])].concat();
        bench.receive(&record);
        // What follows is discarded.
        bench.receive(&[0; 100]);
        assert!(bench.waiting.is_empty() && bench.closed.is_none());
        assert_eq!((bench.hear(), &bench.heard[..]), (Ok(false), &b"last"[..]));
        bench.wrapped.tick(bench.now + GRACE + Duration::from_millis(1));
        bench.drain();
        assert_eq!((bench.closed, bench.hear()), (Some(Reason::Peer), Ok(true)));
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
            let mut bench = Bench::new(1 << 20);
            let record = bench.say(kind, content);
            bench.receive(&record);
            assert_eq!((bench.closed, bench.reports), (Some(Reason::Violation), 1), "{content:?}");
            bench.receive(&[0; 10]);
            assert_eq!((bench.hear(), bench.reports), (Ok(true), 1));
        }
        // No record may come between the fragments of a message.
        let mut bench = Bench::new(1 << 20);
        let record =
            [bench.say(Kind::Handshake, &[24, 0]), bench.say(Kind::Data, b"data")].concat();
        bench.receive(&record);
        assert_eq!((bench.closed, bench.reports), (Some(Reason::Violation), 1));
    }
}
