//! The pairing server with several hosts: valid frames, modified frames, arbitrary bytes, time, and
//! verdicts. Checks that no host pairs without the code, attempts are counted, what is sent is
//! well-formed, and nothing follows the close.

use std::sync::Arc;
use std::time::{Duration, Instant};

use export::{Access, Auth, Channel, Event, Notice, Peer, Session, Step};
use pair::client::{self, ClientInfo};
use pair::{Client, Code, Disk, IDENTITY, Invite, PairingServer, PairingSession, Verdict};

use crate::input::Input;

/// Maximum number of connections.
const MAX_CONNECTIONS: usize = 3;

struct Harness<'a> {
    input: Input<'a>,
    now: Instant,
    server: Arc<PairingServer>,
    connections: Vec<Link>,
}

/// A connection between a host and the server.
struct Link {
    session: PairingSession,
    client: Client,
    /// Bytes in transit to the target and to the host.
    up: Vec<u8>,
    down: Vec<u8>,
    /// Whether the host has the code that was valid at its start.
    honest: bool,
    /// Whether a byte was modified, inserted or dropped.
    touched: bool,
    closed: bool,
    over: bool,
    request: Option<u64>,
    granted: bool,
}

/// Runs the target on `data`.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    parse(&mut input);
    let now = Instant::now();
    let mut seed = 0_u8;
    let draw = move |bytes: &mut [u8]| {
        for byte in bytes {
            seed = seed.wrapping_mul(77).wrapping_add(29);
            *byte = seed;
        }
    };
    let server = PairingServer::new("target", now, Box::new(draw));
    let mut harness = Harness { input, now, server, connections: Vec::new() };
    for _ in 0..60 {
        if harness.input.is_over() {
            break;
        }
        harness.step();
        harness.settle();
    }
}

/// Parses arbitrary codes and invitations.
fn parse(input: &mut Input<'_>) {
    let len = input.byte();
    let text = String::from_utf8_lossy(input.take(len.into())).into_owned();
    if let Ok(code) = Code::parse(&text) {
        assert_eq!(Code::parse(code.text()), Ok(code));
    }
    if let Ok(invite) = Invite::parse(&text) {
        assert_eq!(Invite::parse(&invite.to_string()), Ok(invite));
    }
}

impl Harness<'_> {
    fn step(&mut self) {
        match self.input.byte() % 10 {
            0 | 1 => self.open(),
            2..=4 => self.carry(),
            5 => self.change(),
            6 => self.put_in(),
            7 => self.owner(),
            8 => self.now += Duration::from_millis(u64::from(self.input.word()) * 8),
            _ => self.end(),
        }
    }

    fn open(&mut self) {
        if self.connections.len() >= MAX_CONNECTIONS {
            self.connections.remove(0);
        }
        let (kind, channel) = (self.input.byte(), self.input.byte());
        let code = match (self.server.status(self.now).codes, kind % 4) {
            (Some(shown), 0 | 1) => Some(shown.digits),
            (Some(shown), 2) => Some(shown.long),
            _ => None,
        };
        let mut binding = [channel & 3; 32];
        let session = self.server.open_session(peer(binding), self.now);
        // Sometimes with a man in the middle.
        binding[0] ^= u8::from(channel >= 200);
        let honest = code.is_some() && channel < 200;
        let code = code.unwrap_or_else(|| Code::digits([kind; 8]));
        let info = ClientInfo { host: "nqn.fuzz", name: "fuzz", writable: kind & 8 != 0 };
        let random = [self.connections.len() as u8 ^ kind; 32].into();
        let client = Client::new(&code, &info, binding, random);
        let (up, down) = (Vec::new(), Vec::new());
        let (touched, closed, over, request, granted) = (false, false, false, None, false);
        self.connections.push(Link {
            session,
            client,
            up,
            down,
            honest,
            touched,
            closed,
            over,
            request,
            granted,
        });
    }

    fn link(&mut self) -> Option<&mut Link> {
        let count = self.connections.len();
        if count == 0 {
            return None;
        }
        let at = self.input.below(count);
        self.connections.get_mut(at)
    }

    /// Delivers some of the bytes in transit.
    fn carry(&mut self) {
        let (how, now) = (self.input.byte(), self.now);
        let Some(link) = self.link() else { return };
        let most = if how & 0x80 == 0 { usize::MAX } else { usize::from(how & 0x7f) };
        let up: Vec<u8> = link.up.drain(..link.up.len().min(most)).collect();
        let down: Vec<u8> = link.down.drain(..link.down.len().min(most)).collect();
        assert!(link.session.receive(now, &up) <= up.len());
        link.client.receive(&down);
    }

    /// Modifies a byte in transit.
    fn change(&mut self) {
        let (place, value, up) = (self.input.word(), self.input.byte(), self.input.bit());
        let Some(link) = self.link() else { return };
        let bytes = if up { &mut link.up } else { &mut link.down };
        if value != 0 && !bytes.is_empty() {
            let at = usize::from(place) % bytes.len();
            bytes[at] ^= value;
            link.touched = true;
        }
    }

    /// Injects arbitrary bytes or a frame of them.
    fn put_in(&mut self) {
        let (kind, len, up) = (self.input.byte(), self.input.byte(), self.input.bit());
        let body = self.input.take(len.into()).to_vec();
        let Some(link) = self.link() else { return };
        let bytes = if up { &mut link.up } else { &mut link.down };
        if kind < 16 {
            bytes.extend([1, kind, body.len() as u8, 0]);
        }
        bytes.extend(body);
        link.touched = true;
    }

    fn owner(&mut self) {
        let (what, count) = (self.input.byte(), self.input.byte());
        match what % 8 {
            0 => self.server.close(),
            1 | 2 => self.server.unlock(self.now),
            3 => {
                self.answer(Verdict::Denied, false);
            }
            _ => {
                let disk = Disk {
                    nqn: "nqn.disk".to_owned(),
                    name: "disk".to_owned(),
                    model: String::new(),
                    bytes: 1 << 30,
                    access: Access::ReadOnly,
                };
                let disks = vec![disk; usize::from(count % 4)];
                self.answer(Verdict::Granted { access: Access::ReadOnly, disks }, true);
            }
        }
    }

    fn answer(&mut self, verdict: Verdict, granted: bool) {
        let Some(link) = self.link() else { return };
        let Some(number) = link.request else { return };
        let told = self.server.answer(number, verdict);
        for link in self.connections.iter_mut().filter(|link| link.request == Some(number) && told)
        {
            link.granted = granted;
        }
        for link in &mut self.connections {
            link.session.notify(self.now, &Notice::StateChanged);
        }
    }

    fn end(&mut self) {
        let (what, now) = (self.input.byte(), self.now);
        let Some(link) = self.link() else { return };
        match what % 4 {
            0 => link.session.notify(now, &Notice::Disconnected),
            1 => link.session.notify(now, &Notice::Stopping),
            2 => link.client.disconnected(),
            _ => drop(self.connections.remove(0)),
        }
    }

    /// Executes steps and checks invariants.
    fn settle(&mut self) {
        let now = self.now;
        for link in &mut self.connections {
            if link.session.deadline().is_some_and(|at| at <= now) {
                link.session.tick(now);
            }
            link.target();
            link.host();
        }
        let view = self.server.status(now);
        assert!(view.failures <= 10 && view.locked == (view.failures == 10));
        assert!(!view.locked || view.codes.is_none(), "a locked server has no code");
        assert!(view.codes.is_none_or(|shown| shown.expires > now || self.is_tried()));
        assert!(view.waiting.len() <= 8);
    }

    /// Returns whether an attempt may be in progress.
    fn is_tried(&self) -> bool {
        self.connections.iter().any(|link| !link.closed)
    }
}

impl Link {
    fn target(&mut self) {
        while let Some(step) = self.session.poll() {
            match step {
                Step::Send(segment) => {
                    assert!(!self.closed, "sent after the close");
                    segment.parts().iter().for_each(|part| self.down.extend_from_slice(part));
                }
                Step::Report(event) => {
                    let Event::PairingRequested { request, .. } = *event else { continue };
                    assert!(self.honest, "request without the code");
                    assert_eq!((request.host.as_str(), self.request), ("nqn.fuzz", None));
                    self.request = Some(request.number);
                }
                Step::Close(_) => {
                    assert!(!self.closed, "closed once");
                    self.closed = true;
                }
                Step::Notify => {}
                Step::Submit(_) | Step::Halt => panic!("no disk or pipe is touched"),
            }
        }
        assert_eq!(self.session.can_receive(), self.session.deadline().is_some() && !self.closed);
    }

    fn host(&mut self) {
        while let Some(step) = self.client.poll() {
            assert!(!self.over, "step after the close");
            match step {
                client::Step::Send(bytes) => self.up.extend(bytes),
                client::Step::Authenticated { target } => {
                    assert!(self.request.is_some() && target == "target");
                }
                client::Step::Paired(paired) => {
                    self.over = true;
                    assert!(self.granted, "granted without a verdict");
                    assert_eq!(paired.access, Access::ReadOnly);
                }
                client::Step::Failed(failure) => {
                    self.over = true;
                    assert!(!failure.to_string().is_empty());
                    let by_rule = matches!(failure, client::Failure::Violation(_));
                    assert!(self.touched || !by_rule, "violation by the target");
                }
            }
        }
    }
}

fn peer(binding: [u8; 32]) -> Peer {
    let address = ([192, 0, 2, 1], 9).into();
    let (identity, cipher) = (IDENTITY.to_owned(), String::new());
    let channel =
        Some(Arc::new(Channel { key: None, certified: false, identity, cipher, binding }));
    Peer { channel, ..Peer::ip(address, address, Auth::Required) }
}
