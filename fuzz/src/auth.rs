//! A host that authenticates to a target, while messages are modified, lost, duplicated or
//! truncated, the policy changes, and time passes. Checks that no disk is accessible without the
//! key, every connection closes cleanly, and memory is bounded.

use std::sync::Arc;
use std::time::Duration;

use export::{Access, Event, Host, KeyId, Policy, Rule, Secret};
use nvme::auth::chap::Key;
use nvme::auth::credential::{chap_controller, chap_host};
use nvme::auth::{AuthConfig, Credentials, Group, Hash};
use nvme::command::FabricsCommand;
use nvme::host::{Options, Queue, Step};
use nvme::wire::auth::{Explanation, FromHost, Negotiate, Reply, SECP, SPSP};

use crate::input::Input;
use crate::raw_host::{HOST, PLAIN, capsule, connect_data};
use crate::world::{Id, World};

struct Harness<'a> {
    input: Input<'a>,
    world: World,
    id: Id,
    host: Queue,
    /// Whether the host has the key.
    honest: bool,
}

/// Runs the target on `data`.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let settings = input.byte();
    let honest = settings & 1 == 0;
    let (rules, credentials) = (rules(settings), credentials(settings, honest));
    let mut world = World::with_keys(owned(1), rules);
    let id = world.open();
    let host = Queue::with_credentials(Options::admin(), connect_data(0xffff), credentials);
    let mut harness = Harness { input, world, id, host, honest };
    for _ in 0..200 {
        harness.step();
        if harness.input.is_over() {
            break;
        }
    }
    harness.end();
}

/// Deterministic numbers, so that a finding can be reproduced.
fn counted(bytes: &mut [u8]) -> bool {
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::try_from(at * 7 % 251).unwrap_or(0) + 3;
    }
    true
}

/// The real groups are slow and are rarely used.
fn group(settings: u8) -> Group {
    if settings & 0xf0 == 0xf0 { Group::Ffdhe2048 } else { Group::Null }
}

fn rules(settings: u8) -> AuthConfig {
    AuthConfig { groups: vec![group(settings)], random: counted, ..AuthConfig::default() }
}

fn key(byte: u8) -> Key {
    Key { hash: Some(Hash::Sha256), key: Secret::new(vec![byte; 32]) }
}

fn credentials(settings: u8, honest: bool) -> Arc<Credentials> {
    let random = |bytes: &mut [u8]| {
        bytes.fill(0x77);
        true
    };
    let own = Credentials::new(key(if honest { 1 } else { 9 }));
    let controller = (settings & 2 != 0).then(|| key(2));
    let concatenate = settings & 4 != 0;
    Arc::new(Credentials { controller, concatenate, groups: vec![group(settings)], random, ..own })
}

fn owned(number: u64) -> Host {
    Host {
        id: HOST.to_owned(),
        name: "laptop".to_owned(),
        key: KeyId::new(number),
        credentials: vec![chap_host(key(1).emit(), false), chap_controller(key(2).emit())],
        rules: vec![Rule { disk: None, access: Access::Writable }],
    }
}

impl Harness<'_> {
    fn step(&mut self) {
        match self.input.byte() % 16 {
            0..=8 => self.deliver(),
            9 => self.inject(),
            10 => self.say(),
            11 => self.world.advance(Duration::from_millis(u64::from(self.input.byte()) * 40)),
            12 => self.decide(),
            13 => drop(self.host.reauthenticate(1)),
            14 => self.fetch(),
            _ => self.world.notify(export::Notice::StateChanged),
        }
        self.hear();
        self.check();
    }

    /// Delivers bytes of the host to the target, possibly modified.
    fn deliver(&mut self) {
        let mut bytes = Vec::new();
        while let Some(step) = self.host.poll() {
            if let Step::Send(segment) = step {
                segment.parts().iter().for_each(|part| bytes.extend_from_slice(part));
            }
        }
        match self.input.byte() {
            1 if !bytes.is_empty() => {
                let at = self.input.below(bytes.len());
                bytes[at] ^= self.input.byte();
            }
            2 => bytes.truncate(self.input.below(bytes.len() + 1)),
            3 => bytes.extend_from_within(..),
            4 => bytes.clear(),
            _ => {}
        }
        self.world.send(self.id, &bytes);
    }

    /// Delivers bytes of the target to the host.
    fn hear(&mut self) {
        let bytes = self.world.received(self.id);
        self.host.receive(&bytes);
    }

    /// Creates an arbitrary message.
    fn inject(&mut self) {
        let len = self.input.byte();
        let message = self.input.take(len.into()).to_vec();
        self.command(&message);
    }

    /// Creates a well-formed message, possibly with a corrupted byte.
    fn say(&mut self) {
        let rest = self.input.take(96);
        let (first, second) = rest.split_at(rest.len() / 2);
        let message = match self.input.byte() % 4 {
            0 => {
                let (hashes, groups, sc_c) = (first, second, self.input.byte() % 5);
                FromHost::Negotiate(Negotiate { sc_c, hashes, groups })
            }
            1 => {
                let (sequence, challenge) = (self.input.dword(), self.input.bit().then_some(first));
                FromHost::Reply(Reply { sequence, response: first, challenge, public: second })
            }
            2 => FromHost::Success2,
            _ => FromHost::Failure2(Explanation::Failed),
        };
        let mut message = message.emit(self.input.byte().into());
        if self.input.bit() {
            let at = self.input.below(message.len());
            message[at] ^= self.input.byte();
        }
        self.command(&message);
    }

    fn command(&mut self, message: &[u8]) {
        let tl = u32::try_from(message.len()).unwrap_or(0);
        let sqe = FabricsCommand::AuthSend { secp: SECP, spsp: SPSP, tl }.emit();
        self.world.send(self.id, &capsule(PLAIN, &sqe.with_cid(0x7777), message));
    }

    fn fetch(&mut self) {
        let al = u32::from(self.input.word() % 5000);
        let sqe = FabricsCommand::AuthReceive { secp: SECP, spsp: SPSP, al }.emit();
        self.world.send(self.id, &capsule(PLAIN, &sqe.with_cid(0x7778), &[]));
    }

    /// Changes the policy.
    fn decide(&mut self) {
        let hosts = match self.input.byte() % 4 {
            0 => Vec::new(),
            number => vec![Arc::new(owned(number.into()))],
        };
        self.world.catalogue.set_policy(Policy { hosts });
        if self.input.bit() {
            self.world.notify(export::Notice::StateChanged);
        }
    }

    fn check(&mut self) {
        let events = &self.world.conn(self.id).events;
        let attached = events.iter().any(|event| matches!(event, Event::Attached { .. }));
        assert!(self.honest || !attached, "access without the key");
    }

    fn end(mut self) {
        self.check();
        self.world.end_all();
    }
}
