//! A server, virtual time, and connections to the server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use export::{Access, Auth, Channel, Event, Notice, PairingRequest, Peer, Reason, Session, Step};
use pair::client::{self, ClientInfo};
use pair::{Client, Code, Disk, IDENTITY, PairingServer, PairingSession, Random, Verdict};

pub(crate) const HOST: &str =
    "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555";
pub(crate) const BINDING: [u8; 32] = [5; 32];

/// Creates a deterministic generator of pseudo-random bytes.
pub(crate) fn random(seed: u64) -> Random {
    let mut state = seed;
    Box::new(move |bytes| {
        for byte in bytes {
            // SplitMix64.
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            *byte = (z >> 56) as u8;
        }
    })
}

pub(crate) fn peer(identity: &str, binding: [u8; 32]) -> Peer {
    let address: SocketAddr = "192.0.2.7:1000".parse().unwrap();
    let (identity, cipher) = (identity.to_owned(), "TLS_AES_128_GCM_SHA256".to_owned());
    let channel =
        Some(Arc::new(Channel { key: None, certified: false, identity, cipher, binding }));
    Peer { channel, ..Peer::ip(address, address, Auth::Required) }
}

pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) server: Arc<PairingServer>,
    seed: u64,
    random_bytes: Random,
}

/// One connection, as seen by the driver.
pub(crate) struct Conn {
    pub(crate) session: PairingSession,
    /// Bytes sent by the target and not delivered yet.
    pub(crate) sent: Vec<u8>,
    pub(crate) events: Vec<Event>,
    pub(crate) closed: Option<Reason>,
}

impl Conn {
    /// Executes the steps of the session.
    pub(crate) fn drain(&mut self) {
        while let Some(step) = self.session.poll() {
            match step {
                Step::Send(segment) => {
                    assert!(self.closed.is_none(), "sent after the close");
                    segment.parts().iter().for_each(|part| self.sent.extend_from_slice(part));
                }
                Step::Report(event) => self.events.push(*event),
                Step::Close(reason) => {
                    assert!(self.closed.is_none(), "closed once");
                    self.closed = Some(reason);
                }
                Step::Notify => {}
                Step::Submit(_) | Step::Halt => panic!("disk request or halt"),
            }
        }
    }

    pub(crate) fn receive(&mut self, now: Instant, bytes: &[u8]) {
        let taken = self.session.receive(now, bytes);
        assert_eq!(taken, bytes.len());
        self.drain();
    }

    pub(crate) fn request(&self) -> Option<Arc<PairingRequest>> {
        self.events.iter().find_map(|event| match event {
            Event::PairingRequested { request, .. } => Some(request.clone()),
            _ => None,
        })
    }

    pub(crate) fn reasons(&self) -> Vec<&'static str> {
        let reasons = self.events.iter().filter_map(|event| match event {
            Event::Refused { reason, .. } => Some(*reason),
            Event::Violation { rule, .. } => Some(*rule),
            _ => None,
        });
        reasons.collect()
    }
}

impl World {
    pub(crate) fn new() -> Self {
        Self::seeded(1)
    }

    pub(crate) fn seeded(seed: u64) -> Self {
        let now = Instant::now();
        let server = PairingServer::new("laptop", now, random(seed));
        Self { now, server, seed, random_bytes: random(seed + 1000) }
    }

    /// Replaces the server, as after a crash.
    pub(crate) fn replace_server(&mut self, attempts: pair::FailedAttempts) {
        self.server = PairingServer::resume("laptop", self.now, random(self.seed + 1), attempts);
        self.seed += 1;
    }

    pub(crate) fn digits(&self) -> Code {
        self.server.status(self.now).codes.unwrap().digits
    }

    pub(crate) fn long(&self) -> Code {
        self.server.status(self.now).codes.unwrap().long
    }

    /// Returns a wrong code of eight digits.
    pub(crate) fn wrong_code(&self) -> Code {
        let right =
            self.server.status(self.now).codes.map_or(0, |it| it.digits.text().parse().unwrap());
        Code::parse(&format!("{:08}", (right + 1) % 100_000_000)).unwrap()
    }

    pub(crate) fn advance(&mut self, time: Duration) {
        self.now += time;
    }

    /// Advances the time until an attempt is allowed.
    pub(crate) fn wait_for_retry(&mut self) {
        if let Some(until) = self.server.status(self.now).wait_until {
            self.now = until;
        }
    }

    pub(crate) fn open(&self) -> Conn {
        self.open_from(peer(IDENTITY, BINDING))
    }

    pub(crate) fn open_from(&self, peer: Peer) -> Conn {
        let session = self.server.open_session(peer, self.now);
        let mut conn = Conn { session, sent: Vec::new(), events: Vec::new(), closed: None };
        conn.drain();
        conn
    }

    pub(crate) fn client(&mut self, code: &Code) -> Client {
        self.client_with(code, BINDING, false)
    }

    pub(crate) fn client_with(&mut self, code: &Code, binding: [u8; 32], writable: bool) -> Client {
        let mut bytes = zeroize::Zeroizing::new([0; 32]);
        (self.random_bytes)(&mut *bytes);
        let info = ClientInfo { host: HOST, name: "server in the hall", writable };
        Client::new(code, &info, binding, bytes)
    }

    /// Exchanges messages in pieces of `step` bytes until both sides are idle. Returns the client's
    /// other steps.
    pub(crate) fn run(
        &self,
        conn: &mut Conn,
        client: &mut Client,
        step: usize,
    ) -> Vec<client::Step> {
        let mut found = Vec::new();
        loop {
            let before = conn.sent.len();
            let mut progress = false;
            while let Some(step_) = client.poll() {
                match step_ {
                    client::Step::Send(bytes) => {
                        progress = true;
                        bytes.chunks(step).for_each(|piece| conn.receive(self.now, piece));
                    }
                    other => found.push(other),
                }
            }
            let sent = std::mem::take(&mut conn.sent);
            sent.chunks(step).for_each(|piece| client.receive(piece));
            if !progress && sent.is_empty() && before == 0 {
                return found;
            }
        }
    }

    /// Makes an attempt with `code`, up to the pairing request on success.
    pub(crate) fn attempt(&mut self, code: &Code) -> (Conn, Client, Vec<client::Step>) {
        let (mut conn, mut client) = (self.open(), self.client(code));
        let found = self.run(&mut conn, &mut client, usize::MAX);
        (conn, client, found)
    }

    pub(crate) fn answer(&self, conn: &mut Conn, verdict: Verdict) -> bool {
        let waits = self.server.answer(conn.request().unwrap().number, verdict);
        conn.session.notify(self.now, &Notice::StateChanged);
        conn.drain();
        waits
    }
}

pub(crate) fn disk(n: usize, access: Access) -> Disk {
    Disk {
        nqn: format!("nqn.2014-08.org.nvmexpress:uuid:{n}"),
        name: format!("/dev/sd{n}"),
        model: "Example 500".to_owned(),
        bytes: 500_107_862_016,
        access,
    }
}
