//! The NBD server under arbitrary events: valid and invalid bytes, options and requests, partial
//! payloads, late and failed completions, added and removed disks, time, new and closed
//! connections. Checks that every disk request completes once, memory is bounded, and nothing
//! leaks.

use std::time::Duration;

use export::{Access, Auth, Fault, Notice};
use nbd::server::{Next, Start, greet};
use nbd::wire::meta::MetaRequest;
use nbd::wire::option::{self, InfoRequest};
use nbd::wire::request;

use crate::input::Input;
use crate::nbd_messages::{MODES, Mode, RequestHeader, attach, flags, option as encode_option};
use crate::nbd_world::{DISK, Id, World, disk, peer};

/// Maximum number of connections.
const MAX_CONNECTIONS: usize = 5;

/// Size of the disk in bytes.
const SIZE: usize = 1 << 20;

struct Harness<'a> {
    input: Input<'a>,
    world: World,
    connections: Vec<(Id, Mode)>,
}

/// Runs the target on `data`.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let settings = input.byte();
    if settings & 0x80 != 0 {
        return run_greeter(&mut input, settings);
    }
    let block = if settings & 8 == 0 { 512 } else { 4096 };
    let mut harness = Harness { input, world: World::small(SIZE, block), connections: Vec::new() };
    for mode in MODES {
        let id = attach(&mut harness.world, mode);
        harness.world.conn(id).hold = settings & 4 == 0;
        harness.connections.push((id, mode));
    }
    for _ in 0..300 {
        if harness.input.is_over() {
            break;
        }
        harness.step();
    }
    harness.world.end_all();
}

fn run_greeter(input: &mut Input<'_>, settings: u8) {
    let mut greeter = greet(settings & 1 == 0, settings & 2 == 0);
    let (mut received, mut first) = (Vec::new(), true);
    for _ in 0..100 {
        let reaction = greeter.receive(&received);
        assert!(reaction.consumed <= received.len());
        assert_eq!(reaction.reply.starts_with(b"NBDMAGIC"), std::mem::replace(&mut first, false));
        received.drain(..reaction.consumed);
        if reaction.next != Next::Wait || input.is_over() {
            return;
        }
        let more = match input.byte() % 4 {
            0 => flags().to_vec(),
            1 => encode_option(u32::from(input.byte() % 14), &[]),
            2 => encode_option(u32::from(input.byte() % 14), b"data"),
            _ => {
                let len = input.byte();
                input.take(len.into()).to_vec()
            }
        };
        received.extend(more);
    }
}

impl Harness<'_> {
    fn step(&mut self) {
        let at = self.input.below(self.connections.len());
        let (id, mode) = self.connections[at];
        match self.input.byte() % 12 {
            0 => {
                let len = self.input.byte();
                let bytes = self.input.take(len.into());
                self.world.send(id, bytes);
            }
            1..=4 => self.request(id, mode),
            5 => self.option(id),
            6 | 7 => self.finish(id),
            8 => self.event(id),
            9 => self.change_export(),
            10 => self.receive_payload(id),
            _ => self.open(),
        }
        self.world.conn(id).wire.clear();
    }

    /// Sends a request, possibly with a corrupted byte, and perhaps its payload.
    fn request(&mut self, id: Id, mode: Mode) {
        let command = u16::from(self.input.byte() % 10);
        let flags = match self.input.byte() {
            0 => self.input.word(),
            byte if byte & 0x40 != 0 => u16::from(byte & 0x1f),
            _ if command == request::WRITE && mode == Mode::Extended => request::PAYLOAD_LEN,
            _ => 0,
        };
        let unit = if self.input.bit() { 512 } else { 1 };
        let offset = u64::from(self.input.word()) * unit;
        let len = match self.input.byte() {
            0 => u64::from(self.input.dword()),
            byte => u64::from(byte) * 64 * unit,
        };
        let mut bytes = RequestHeader { command, flags, cookie: len, offset, len }.bytes(mode);
        if self.input.byte() == 1 {
            let (place, value) = (self.input.below(bytes.len()), self.input.byte());
            bytes[place] ^= value;
        }
        let payload = usize::try_from(len).unwrap_or(0).min(1 << 20);
        if command == request::WRITE && self.input.bit() {
            bytes.extend(vec![7; payload]);
        }
        self.world.send(id, &bytes);
    }

    fn option(&mut self, id: Id) {
        let name = ["sda", "", "sdb", "../x"][self.input.below(4)];
        let which = u32::from(self.input.byte() % 13);
        let data = match which {
            option::EXPORT_NAME => name.as_bytes().to_vec(),
            option::INFO | option::GO => InfoRequest::emit(name, &[1, 2, self.input.word()]),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                let queries = [&["base:allocation"][..], &["base:"], &[], &["x:y", ""]];
                MetaRequest::emit(name, queries[self.input.below(4)])
            }
            _ => Vec::new(),
        };
        let mut bytes = encode_option(which, &data);
        if self.input.byte() == 1 {
            let (place, value) = (self.input.below(bytes.len()), self.input.byte());
            bytes[place] ^= value;
        }
        self.world.send(id, &bytes);
    }

    /// Completes any held disk request.
    fn finish(&mut self, id: Id) {
        let held = self.world.jobs(id).len();
        if held == 0 {
            return;
        }
        let which = self.input.below(held);
        let fault = Fault::ALL.get(usize::from(self.input.byte())).copied();
        self.world.finish(id, which, fault.map_or(Ok(()), Err));
    }

    fn event(&mut self, id: Id) {
        match self.input.byte() % 10 {
            0 => self.world.disconnect(id),
            1 if self.input.byte() == 7 => self.world.notify(Notice::Stopping),
            2 => self.world.conn(id).not_receiving = true,
            3 | 4 => self.world.receive_all(id),
            5 => self.world.advance(Duration::from_millis(u64::from(self.input.word()))),
            6 => self.world.conn(id).hold = false,
            _ => self.world.notify(Notice::StateChanged),
        }
    }

    /// Publishes, withdraws or resizes the disk.
    fn change_export(&mut self) {
        let size = SIZE as u64;
        match self.input.byte() % 6 {
            0 => drop(self.world.catalogue.withdraw(&DISK.into())),
            1 => self.world.catalogue.publish(disk(Access::ReadOnly, 512, size)),
            2 => self.world.catalogue.publish(disk(Access::Writable, 4096, size)),
            3 => self.world.catalogue.publish(disk(Access::Writable, 512, size)),
            _ => {
                let bytes = u64::from(self.input.byte()) * 4096;
                if let Some(export) = self.world.catalogue.find(&DISK.into()) {
                    export.resize(bytes);
                }
            }
        }
        if self.input.bit() {
            self.world.notify(Notice::StateChanged);
        }
    }

    /// Delivers payload, directly or not.
    fn receive_payload(&mut self, id: Id) {
        let len = usize::from(self.input.word()) * 8;
        if self.input.bit() {
            self.world.receive_directly(id, 7, len);
        } else {
            self.world.send(id, &vec![7; len]);
        }
    }

    fn open(&mut self) {
        if self.connections.len() >= MAX_CONNECTIONS {
            return;
        }
        let (start, auth) = match self.input.byte() % 4 {
            0 => (Start::InTls { no_zeroes: self.input.bit() }, Auth::Required),
            1 => (Start::HelloSent, Auth::None),
            _ => (Start::Hello, Auth::None),
        };
        let key = (auth == Auth::Required).then_some(7);
        let id = self.world.open_as(peer(auth, key), start);
        self.world.conn(id).hold = self.input.bit();
        if start != (Start::InTls { no_zeroes: true }) && self.input.bit() {
            self.world.send(id, &flags());
        }
        self.connections.push((id, MODES[self.input.below(3)]));
    }
}
