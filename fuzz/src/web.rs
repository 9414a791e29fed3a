//! The HTTP server under arbitrary events: valid and invalid requests, late and failed completions,
//! added and removed disks, time, new and closed connections. Checks that every disk request completes
//! once, memory is bounded, and nothing leaks.

use std::time::Duration;

use export::{Access, Fault, Notice};

use crate::input::Input;
use crate::web_world::{DISK, Id, World, disk, get, secure};

/// Maximum number of connections.
const MAX_CONNECTIONS: usize = 5;

/// Size of the disk in bytes.
const SIZE: u64 = (1 << 20) + 1;

struct Harness<'a> {
    input: Input<'a>,
    world: World,
    connections: Vec<Id>,
}

/// Runs the target on `data`.
pub fn run(data: &[u8]) {
    let mut harness =
        Harness { input: Input::new(data), world: World::bare(), connections: Vec::new() };
    harness.world.catalogue.publish(disk(Access::ReadOnly, 512, SIZE));
    harness.open();
    for _ in 0..300 {
        if harness.input.is_over() {
            break;
        }
        harness.step();
    }
    harness.world.end_all();
}

impl Harness<'_> {
    fn step(&mut self) {
        let id = self.connections[self.input.below(self.connections.len())];
        match self.input.byte() % 10 {
            0 | 1 => {
                let len = self.input.byte();
                let bytes = self.input.take(len.into());
                self.world.send(id, bytes);
            }
            2..=4 => self.request(id),
            5 | 6 => self.finish(id),
            7 => self.event(id),
            8 => self.change_export(),
            _ => self.open(),
        }
        self.world.conn(id).wire.clear();
    }

    /// Sends a request, possibly with a corrupted byte.
    fn request(&mut self, id: Id) {
        let paths = [
            "/sda.raw",
            "/",
            "/disks.json",
            "/../x",
            "/%73da.raw",
            "/code",
            "/?code=0123456789AB",
            "/sda.raw.zst",
            "/sda/",
            "/sda/0/a/%ff?from=1",
        ];
        let path = paths[self.input.below(paths.len())];
        let (first, last) = (self.input.dword() % 1_100_000, self.input.dword() % 1_100_000);
        let fields = match self.input.byte() % 8 {
            0 => String::new(),
            1 => format!("Range: bytes={first}-{last}\r\n"),
            2 => format!("Range: bytes={first}-\r\nIf-Range: \"a\"\r\n"),
            3 => format!("Range: bytes=-{last}\r\nConnection: close\r\n"),
            4 => format!("If-None-Match: *\r\nRange: bytes={first}-{last},0-1\r\n"),
            5 => format!("Content-Length: {first}\r\n"),
            6 => format!("If-Match: \"{first}\"\r\n"),
            _ => format!("Range: bytes={first}-{}\r\n", first.saturating_add(last)),
        };
        let mut text = get(path, &fields);
        if self.input.bit() {
            text = text.replacen("GET", "POST", 1);
        }
        let mut bytes = text.into_bytes();
        if self.input.byte() == 1 {
            let (place, value) = (self.input.below(bytes.len()), self.input.byte());
            bytes[place] ^= value;
        }
        let count = usize::from(self.input.byte() % 3) + 1;
        self.world.send(id, &bytes.repeat(count));
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
            6 => self.world.conn(id).hold = !self.world.conn(id).hold,
            _ => self.world.notify(Notice::StateChanged),
        }
    }

    /// Publishes, withdraws or resizes the disk.
    fn change_export(&mut self) {
        match self.input.byte() % 6 {
            0 => drop(self.world.catalogue.withdraw(&DISK.into())),
            1 => self.world.catalogue.publish(disk(Access::ReadOnly, 4096, SIZE)),
            2 => self.world.catalogue.publish(disk(Access::Writable, 512, SIZE)),
            3 => self.world.catalogue.publish(disk(Access::ReadOnly, 512, SIZE)),
            _ => {
                let bytes = u64::from(self.input.byte()) * 4096 + u64::from(self.input.byte());
                if let Some(export) = self.world.catalogue.find(&DISK.into()) {
                    export.resize(bytes);
                }
            }
        }
        if self.input.bit() {
            self.world.notify(Notice::StateChanged);
        }
    }

    fn open(&mut self) {
        if self.connections.len() < MAX_CONNECTIONS {
            // The last one has to know the code.
            let is_last = self.connections.len() + 1 == MAX_CONNECTIONS;
            let id = match is_last {
                true => self.world.open_as(secure("10.0.0.2:1024")),
                false => self.world.open(),
            };
            self.world.conn(id).hold = self.input.bit();
            self.connections.push(id);
        }
    }
}
