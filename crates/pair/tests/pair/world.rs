//! A server, a clock, and connections to the server. It knows no rule.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use export::{Access, Auth, Channel, Event, Notice, PairingRequest, Peer, Reason, Session, Step};
use pair::client::{self, Asking};
use pair::{Client, Code, Disk, IDENTITY, PairingServer, PairingSession, Random, Verdict};

pub(crate) const HOST: &str =
    "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555";
pub(crate) const BINDING: [u8; 32] = [5; 32];

/// Bytes that are never the same twice, and the same in each run of the tests.
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
    Peer { remote: address, local: address, auth: Auth::Required, channel }
}

pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) server: Arc<PairingServer>,
    seed: u64,
    draw: Random,
}

/// A connection as its driver sees it.
pub(crate) struct Conn {
    pub(crate) session: PairingSession,
    /// What the target has sent and nobody has taken yet.
    pub(crate) sent: Vec<u8>,
    pub(crate) events: Vec<Event>,
    pub(crate) closed: Option<Reason>,
}

impl Conn {
    /// Does what the session wants done.
    pub(crate) fn drain(&mut self) {
        while let Some(step) = self.session.poll() {
            match step {
                Step::Send(segment) => {
                    assert!(self.closed.is_none(), "nothing is sent after the end");
                    segment.parts().iter().for_each(|part| self.sent.extend_from_slice(part));
                }
                Step::Report(event) => self.events.push(event),
                Step::Close(reason) => {
                    assert!(self.closed.is_none(), "closed once");
                    self.closed = Some(reason);
                }
                Step::Notify => {}
                Step::Submit(_) => panic!("no disk is touched"),
            }
        }
    }

    pub(crate) fn receive(&mut self, now: Instant, bytes: &[u8]) {
        let taken = self.session.receive(now, bytes);
        assert_eq!(taken, bytes.len());
        self.drain();
    }

    pub(crate) fn knock(&self) -> Option<Arc<PairingRequest>> {
        self.events.iter().find_map(|event| match event {
            Event::PairingRequested { request: knock, .. } => Some(knock.clone()),
            _ => None,
        })
    }

    pub(crate) fn whys(&self) -> Vec<&'static str> {
        let whys = self.events.iter().filter_map(|event| match event {
            Event::Refused { why, .. } => Some(*why),
            Event::Violation { rule, .. } => Some(*rule),
            _ => None,
        });
        whys.collect()
    }
}

impl World {
    pub(crate) fn new() -> Self {
        Self::seeded(1)
    }

    pub(crate) fn seeded(seed: u64) -> Self {
        let now = Instant::now();
        let server = PairingServer::new("laptop", now, random(seed));
        Self { now, server, seed, draw: random(seed + 1000) }
    }

    /// Another process goes on.
    pub(crate) fn replace_desk(&mut self, tries: pair::Tries) {
        self.server = PairingServer::resume("laptop", self.now, random(self.seed + 1), tries);
        self.seed += 1;
    }

    pub(crate) fn digits(&self) -> Code {
        self.server.view(self.now).shown.unwrap().digits
    }

    pub(crate) fn long(&self) -> Code {
        self.server.view(self.now).shown.unwrap().long
    }

    /// A code of the same form that is not the one shown.
    pub(crate) fn wrong(&self) -> Code {
        let right =
            self.server.view(self.now).shown.map_or(0, |it| it.digits.text().parse().unwrap());
        Code::parse(&format!("{:08}", (right + 1) % 100_000_000)).unwrap()
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    /// Waits until a try may be made again.
    pub(crate) fn wait(&mut self) {
        if let Some(until) = self.server.view(self.now).wait_until {
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
        (self.draw)(&mut *bytes);
        let asking = Asking { host: HOST, name: "server in the hall", writable };
        Client::new(code, &asking, binding, bytes)
    }

    /// Has both talk until neither has anything to say; gives what the client came to, in pieces of `step` bytes.
    pub(crate) fn talk(
        &self,
        conn: &mut Conn,
        client: &mut Client,
        step: usize,
    ) -> Vec<client::Step> {
        let mut found = Vec::new();
        loop {
            let before = conn.sent.len();
            let mut said = false;
            while let Some(step_) = client.poll() {
                match step_ {
                    client::Step::Send(bytes) => {
                        said = true;
                        bytes.chunks(step).for_each(|piece| conn.receive(self.now, piece));
                    }
                    other => found.push(other),
                }
            }
            let sent = std::mem::take(&mut conn.sent);
            sent.chunks(step).for_each(|piece| client.receive(piece));
            if !said && sent.is_empty() && before == 0 {
                return found;
            }
        }
    }

    /// A try with `code` from beginning to end, or to the owner's question.
    pub(crate) fn attempt(&mut self, code: &Code) -> (Conn, Client, Vec<client::Step>) {
        let (mut conn, mut client) = (self.open(), self.client(code));
        let found = self.talk(&mut conn, &mut client, usize::MAX);
        (conn, client, found)
    }

    pub(crate) fn answer(&self, conn: &mut Conn, verdict: Verdict) -> bool {
        let waits = self.server.answer(conn.knock().unwrap().number, verdict);
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
