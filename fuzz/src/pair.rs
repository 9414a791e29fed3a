//! A desk for pairing, hosts at it, and whatever may come over the wire: right frames, frames with a byte changed,
//! bytes of all sorts, time, and the owner. Nobody gets in who has not the code, tries are counted, what is sent is
//! well formed, and nothing comes after the end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use export::{Access, Auth, Channel, Event, Notice, Peer, Session, Step};
use pair::client::{self, ClientInfo};
use pair::{Client, Code, Disk, IDENTITY, Invite, PairingServer, PairingSession, Verdict};

use crate::input::Input;

/// Connections at most.
const MOST: usize = 3;

struct Play<'a> {
    input: Input<'a>,
    now: Instant,
    desk: Arc<PairingServer>,
    links: Vec<Link>,
}

/// A connection with a host at its other end.
struct Link {
    visit: PairingSession,
    client: Client,
    /// On their way to the target, and to the host.
    up: Vec<u8>,
    down: Vec<u8>,
    /// Whether the host has the code that was shown when it began.
    honest: bool,
    /// Whether a byte was changed, put in or left out.
    touched: bool,
    closed: bool,
    over: bool,
    knock: Option<u64>,
    granted: bool,
}

/// Plays `data`.
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
    let desk = PairingServer::new("target", now, Box::new(draw));
    let mut play = Play { input, now, desk, links: Vec::new() };
    for _ in 0..60 {
        if play.input.is_over() {
            break;
        }
        play.act();
        play.settle();
    }
}

/// What a person may type or scan.
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

impl Play<'_> {
    fn act(&mut self) {
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
        if self.links.len() >= MOST {
            self.links.remove(0);
        }
        let (kind, channel) = (self.input.byte(), self.input.byte());
        let code = match (self.desk.status(self.now).codes, kind % 4) {
            (Some(shown), 0 | 1) => Some(shown.digits),
            (Some(shown), 2) => Some(shown.long),
            _ => None,
        };
        let mut binding = [channel & 3; 32];
        let visit = self.desk.open_session(peer(binding), self.now);
        // Now and then somebody is in between.
        binding[0] ^= u8::from(channel >= 200);
        let honest = code.is_some() && channel < 200;
        let code = code.unwrap_or_else(|| Code::digits([kind; 8]));
        let info = ClientInfo { host: "nqn.fuzz", name: "fuzz", writable: kind & 8 != 0 };
        let random = [self.links.len() as u8 ^ kind; 32].into();
        let client = Client::new(&code, &info, binding, random);
        let (up, down) = (Vec::new(), Vec::new());
        let (touched, closed, over, knock, granted) = (false, false, false, None, false);
        self.links.push(Link {
            visit,
            client,
            up,
            down,
            honest,
            touched,
            closed,
            over,
            knock,
            granted,
        });
    }

    fn link(&mut self) -> Option<&mut Link> {
        let count = self.links.len();
        if count == 0 {
            return None;
        }
        let at = self.input.below(count);
        self.links.get_mut(at)
    }

    /// Some of what is on its way arrives.
    fn carry(&mut self) {
        let (how, now) = (self.input.byte(), self.now);
        let Some(link) = self.link() else { return };
        let most = if how & 0x80 == 0 { usize::MAX } else { usize::from(how & 0x7f) };
        let up: Vec<u8> = link.up.drain(..link.up.len().min(most)).collect();
        let down: Vec<u8> = link.down.drain(..link.down.len().min(most)).collect();
        assert!(link.visit.receive(now, &up) <= up.len());
        link.client.receive(&down);
    }

    /// A byte on its way becomes another.
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

    /// Bytes of all sorts, or a frame of them.
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
            0 => self.desk.close(),
            1 | 2 => self.desk.unlock(self.now),
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
        let Some(number) = link.knock else { return };
        let told = self.desk.answer(number, verdict);
        for link in self.links.iter_mut().filter(|link| link.knock == Some(number) && told) {
            link.granted = granted;
        }
        for link in &mut self.links {
            link.visit.notify(self.now, &Notice::StateChanged);
        }
    }

    fn end(&mut self) {
        let (what, now) = (self.input.byte(), self.now);
        let Some(link) = self.link() else { return };
        match what % 4 {
            0 => link.visit.notify(now, &Notice::Disconnected),
            1 => link.visit.notify(now, &Notice::Stopping),
            2 => link.client.disconnected(),
            _ => drop(self.links.remove(0)),
        }
    }

    /// Does what is to be done, and looks whether it may be.
    fn settle(&mut self) {
        let now = self.now;
        for link in &mut self.links {
            if link.visit.deadline().is_some_and(|at| at <= now) {
                link.visit.tick(now);
            }
            link.target();
            link.host();
        }
        let view = self.desk.status(now);
        assert!(view.failures <= 10 && view.locked == (view.failures == 10));
        assert!(!view.locked || view.codes.is_none(), "a desk that stopped shows no code");
        assert!(view.codes.is_none_or(|shown| shown.expires > now || self.is_tried()));
        assert!(view.waiting.len() <= 8);
    }

    /// Whether somebody may be trying the code just now.
    fn is_tried(&self) -> bool {
        self.links.iter().any(|link| !link.closed)
    }
}

impl Link {
    fn target(&mut self) {
        while let Some(step) = self.visit.poll() {
            match step {
                Step::Send(segment) => {
                    assert!(!self.closed, "nothing is sent after the end");
                    segment.parts().iter().for_each(|part| self.down.extend_from_slice(part));
                }
                Step::Report(Event::PairingRequested { request: knock, .. }) => {
                    assert!(self.honest, "only who has the code is heard");
                    assert_eq!((knock.host.as_str(), self.knock), ("nqn.fuzz", None));
                    self.knock = Some(knock.number);
                }
                Step::Close(_) => {
                    assert!(!self.closed, "closed once");
                    self.closed = true;
                }
                Step::Report(_) | Step::Notify => {}
                Step::Submit(_) => panic!("no disk is touched"),
            }
        }
        assert_eq!(self.visit.can_receive(), self.visit.deadline().is_some() && !self.closed);
    }

    fn host(&mut self) {
        while let Some(step) = self.client.poll() {
            assert!(!self.over, "nothing comes after the end");
            match step {
                client::Step::Send(bytes) => self.up.extend(bytes),
                client::Step::Authenticated { target } => {
                    assert!(self.knock.is_some() && target == "target");
                }
                client::Step::Paired(paired) => {
                    self.over = true;
                    assert!(self.granted, "only the owner grants");
                    assert_eq!(paired.access, Access::ReadOnly);
                }
                client::Step::Failed(failure) => {
                    self.over = true;
                    assert!(!failure.to_string().is_empty());
                    let by_rule = matches!(failure, client::Failure::Violation(_));
                    assert!(self.touched || !by_rule, "the target keeps the rules");
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
    Peer { remote: address, local: address, auth: Auth::Required, channel }
}
