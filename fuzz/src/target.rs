//! The NVMe target under arbitrary events: valid and invalid bytes, commands and data, late and
//! failed completions, added and removed disks, time, new and closed connections. Checks that every
//! disk request completes once, that what is sent is well-formed, that memory is bounded, and that
//! nothing leaks.

use std::time::Duration;

use export::{Access, Fault, Notice};
use nvme::command::{AdminCommand, FabricsCommand, IoCommand};
use nvme::tcp::pdu::kind;
use nvme::wire::fabrics::{ConnectData, DISCOVERY_NQN, property};
use nvme::wire::feature::fid;
use nvme::wire::{Fuse, Sgl, Sqe};
use zerocopy::{FromBytes, IntoBytes};

use crate::input::Input;
use crate::raw_host::{
    BOTH, Digests, ENABLE, PLAIN, capsule, configure, connect_data, connect_sqe, data_fields,
    frame, h2c, ic_req, property_get, read, write, write_in_capsule,
};
use crate::world::{DISK, Id, Reply, World, disk};

/// Maximum number of connections.
const MAX_CONNECTIONS: usize = 6;

struct Harness<'a> {
    input: Input<'a>,
    world: World,
    connections: Vec<Link>,
}

/// Host-side state of a connection.
struct Link {
    id: Id,
    digests: Digests,
    /// Open R2Ts: command, tag, offset and length.
    asked: Vec<(u16, u16, u32, u32)>,
}

/// Runs the target on `data`.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let settings = input.byte();
    let world = World::small(if settings & 1 == 0 { 16 << 20 } else { 1 << 18 });
    let mut harness = Harness { input, world, connections: Vec::new() };
    harness.prepare(settings);
    for _ in 0..400 {
        if harness.input.is_over() {
            break;
        }
        harness.step();
        harness.look();
    }
    harness.world.end_all();
}

impl Harness<'_> {
    /// Creates a controller with two I/O queues whose disk requests are held.
    fn prepare(&mut self, settings: u8) {
        let digests = if settings & 2 == 0 { PLAIN } else { BOTH };
        let (admin, cntlid) = self.world.admin_of(&connect_data(0xffff), digests);
        self.connections.push(Link { id: admin, digests, asked: Vec::new() });
        for qid in 1..=2 {
            let id = self.world.io_of(&connect_data(cntlid), qid, digests);
            self.world.conn(id).hold = settings & 4 == 0;
            self.connections.push(Link { id, digests, asked: Vec::new() });
        }
    }

    fn step(&mut self) {
        let at = self.input.below(self.connections.len());
        match self.input.byte() % 12 {
            0 => self.bytes(at),
            1..=3 => self.command(at),
            4 | 5 => self.data(at),
            6 | 7 => self.finish(at),
            8 => self.event(at),
            9 => self.advance(),
            10 => self.change_export(),
            _ => self.receive_direct(at),
        }
    }

    /// Parses what the target sent, and checks that it is well-formed.
    fn look(&mut self) {
        for link in &mut self.connections {
            for reply in self.world.replies(link.id) {
                match reply {
                    Reply::R2t { cid, ttag, offset, len } => {
                        link.asked.push((cid, ttag, offset, len))
                    }
                    Reply::Accepted(response) => {
                        let (header, data) = (response.dgst & 1 != 0, response.dgst & 2 != 0);
                        link.digests = Digests { header, data };
                    }
                    _ => {}
                }
            }
        }
    }

    fn bytes(&mut self, at: usize) {
        let len = self.input.byte();
        let bytes = self.input.take(len.into());
        self.world.send(self.connections[at].id, bytes);
    }

    /// Sends a command capsule, possibly with corrupted bytes.
    fn command(&mut self, at: usize) {
        let mut sqe = self.template();
        sqe.cid = u16::from(self.input.byte() % 32).into();
        let len = self.data_len(&sqe);
        for _ in 0..self.input.byte() % 4 {
            let (place, value) = (self.input.below(64), self.input.byte());
            let mut bytes = <[u8; 64]>::try_from(sqe.as_bytes()).unwrap();
            bytes[place] = value;
            sqe = Sqe::read_from_bytes(&bytes).unwrap();
        }
        let data = self.payload(&sqe, len);
        let pdu = capsule(self.connections[at].digests, &sqe, &data);
        self.send_broken(at, pdu);
    }

    fn data_len(&mut self, sqe: &Sqe) -> usize {
        let right = if sqe.sgl1.id == Sgl::OFFSET { sqe.sgl1.length.get().min(8192) } else { 0 };
        match self.input.byte() {
            0 => usize::from(self.input.word() % 8192),
            _ => right as usize,
        }
    }

    fn payload(&mut self, sqe: &Sqe, len: usize) -> Vec<u8> {
        if sqe.opcode == 0x7f {
            let subsystem = if self.input.bit() { DISK } else { DISCOVERY_NQN };
            let cntlid = if self.input.bit() { 0xffff } else { u16::from(self.input.byte()) };
            let data =
                ConnectData::emit([9; 16], cntlid, subsystem, crate::raw_host::HOST).unwrap();
            return data.as_bytes().iter().copied().cycle().take(len).collect();
        }
        let front = self.input.take(len.min(32)).to_vec();
        front.into_iter().chain(std::iter::repeat(0)).take(len).collect()
    }

    /// Sends a PDU, possibly with a corrupted byte, or in two pieces with another event in between.
    fn send_broken(&mut self, at: usize, mut pdu: Vec<u8>) {
        let id = self.connections[at].id;
        match self.input.byte() {
            1 => {
                let (place, value) = (self.input.below(pdu.len()), self.input.byte());
                pdu[place] ^= value;
            }
            2 => {
                let cut = self.input.below(pdu.len());
                self.world.send(id, &pdu[..cut]);
                let other = self.input.below(self.connections.len());
                self.finish(other);
                pdu.drain(..cut);
            }
            3 => {
                let cut = self.input.below(pdu.len());
                self.world.send(id, &pdu[..cut]);
                self.receive_direct(at);
                return;
            }
            _ => {}
        }
        self.world.send(id, &pdu);
    }

    fn template(&mut self) -> Sqe {
        let (lba, blocks) = (u64::from(self.input.byte()), u32::from(self.input.byte() % 64) + 1);
        let compare = IoCommand::Compare {
            nsid: 1,
            slba: lba,
            nlb: blocks,
            fua: false,
            limited_retry: false,
        };
        let compare = compare.emit().with_data(Sgl::in_capsule(0, blocks * 512));
        let dsm = IoCommand::DatasetManagement { nsid: 1, ranges: 2, deallocate: true }.emit();
        let copy = IoCommand::Copy { nsid: 1, sdlba: lba, ranges: 1, format: 0, fua: false }.emit();
        let admin = |command: AdminCommand| command.emit();
        match self.input.byte() % 30 {
            0 => read(lba, blocks),
            1 => write(lba, blocks),
            2 => write_in_capsule(lba, blocks % 16 + 1),
            3 => compare,
            4 => compare.with_fuse(Fuse::First),
            5 => compare.with_fuse(Fuse::First).with_data(Sgl::transport(blocks * 512)),
            6 => write(lba, blocks).with_fuse(Fuse::Second),
            7 => write_in_capsule(lba, blocks).with_fuse(Fuse::Second),
            8 => dsm.with_data(Sgl::in_capsule(0, 32)),
            9 => copy.with_data(Sgl::in_capsule(0, 32)),
            10 => IoCommand::Flush { nsid: 1 }.emit(),
            11 => {
                IoCommand::Verify { nsid: 1, slba: 0, nlb: 256, fua: false, limited_retry: false }
                    .emit()
            }
            12 => IoCommand::WriteZeroes {
                nsid: 1,
                slba: lba,
                nlb: blocks,
                fua: true,
                deallocate: true,
            }
            .emit(),
            13 => FabricsCommand::Disconnect { recfmt: 0 }.emit(),
            14 => connect_sqe(0, 32),
            15 => connect_sqe(u16::from(self.input.byte() % 4), 32).with_data(Sgl::transport(1024)),
            16 => configure(ENABLE),
            17 => configure(ENABLE & !1),
            18 => configure(ENABLE | 1 << 14),
            19 => property_get(property::CSTS),
            20 => admin(AdminCommand::identify(self.input.byte(), 1)),
            21 => admin(AdminCommand::log_page(self.input.byte() % 0x80, 0, 4096)),
            22 => admin(AdminCommand::get_features(self.input.byte())),
            23 => admin(AdminCommand::set_features(self.input.byte(), self.input.dword())),
            24 => admin(AdminCommand::set_features(fid::NUMBER_OF_QUEUES, 0x0003_0003)),
            25 => admin(AdminCommand::set_features(fid::ASYNC_EVENT_CONFIGURATION, u32::MAX)),
            26 => admin(AdminCommand::AsyncEventRequest),
            27 => admin(AdminCommand::KeepAlive),
            28 => self.abort(),
            _ => compare.with_data(Sgl::transport(blocks * 512)),
        }
    }

    fn abort(&mut self) -> Sqe {
        let (sqid, cid) = (u16::from(self.input.byte() % 4), u16::from(self.input.byte() % 32));
        AdminCommand::Abort { sqid, cid }.emit()
    }

    /// Sends requested data, completely, partly or incorrectly.
    fn data(&mut self, at: usize) {
        if self.connections[at].asked.is_empty() {
            return;
        }
        let which = self.input.below(self.connections[at].asked.len());
        let link = &mut self.connections[at];
        let (cid, ttag, offset, len) = link.asked.remove(which);
        let how = self.input.byte();
        let part = if how & 1 == 0 { len } else { (len / 2).max(1) };
        let last = part == len;
        if !last {
            link.asked.push((cid, ttag, offset + part, len - part));
        }
        let digests = link.digests;
        let pdu = match how >> 1 {
            1 => h2c(
                digests,
                cid,
                ttag,
                offset.wrapping_add(self.input.dword()),
                &vec![1; part as usize],
                last,
            ),
            2 => frame(
                digests,
                kind::H2C_DATA,
                4,
                &data_fields(cid, ttag, offset, self.input.dword()),
                &[1; 64],
            ),
            3 => h2c(digests, self.input.word(), ttag, offset, &vec![1; part as usize], last),
            4 => h2c(digests, cid, self.input.word(), offset, &vec![1; part as usize], last),
            _ => h2c(digests, cid, ttag, offset, &vec![1; part as usize], last),
        };
        self.send_broken(at, pdu);
    }

    /// Completes any held disk request.
    fn finish(&mut self, at: usize) {
        let id = self.connections[at].id;
        let held = self.world.jobs(id).len();
        if held == 0 {
            return;
        }
        let which = self.input.below(held);
        let fault = self.input.byte();
        let result = match Fault::ALL.get(usize::from(fault)) {
            Some(&fault) => Err(fault),
            None => Ok(()),
        };
        self.world.finish(id, which, result);
    }

    fn event(&mut self, at: usize) {
        let id = self.connections[at].id;
        match self.input.byte() % 8 {
            0 => self.world.disconnect(id),
            1 if self.input.byte() == 7 => self.world.notify(Notice::Stopping),
            2..=4 => self.open(),
            _ => self.world.notify(Notice::StateChanged),
        }
    }

    fn open(&mut self) {
        if self.connections.len() >= MAX_CONNECTIONS {
            return;
        }
        let id = self.world.open();
        self.world.conn(id).hold = self.input.bit();
        let digests = Digests { header: self.input.bit(), data: self.input.bit() };
        self.connections.push(Link { id, digests: PLAIN, asked: Vec::new() });
        if self.input.bit() {
            let mut request = ic_req(digests);
            request[10] = self.input.byte() % 34;
            self.world.send(id, &request);
        }
    }

    fn advance(&mut self) {
        let time = Duration::from_millis(u64::from(self.input.word()) * 4);
        self.world.advance(time);
    }

    /// Publishes, withdraws or resizes the disk.
    fn change_export(&mut self) {
        match self.input.byte() % 5 {
            0 => drop(self.world.catalogue.withdraw(&DISK.into())),
            1 => self.world.publish_small(disk(Access::ReadOnly, 512)),
            2 => self.world.publish_small(disk(Access::Writable, 4096)),
            3 => self.world.publish_small(disk(Access::Writable, 512)),
            _ => {
                let bytes = u64::from(self.input.byte()) * 512;
                if let Some(export) = self.world.catalogue.find(&DISK.into()) {
                    export.resize(bytes);
                }
            }
        }
        if self.input.bit() {
            self.world.notify(Notice::StateChanged);
        }
    }

    /// Receives payload directly, possibly with an event in between.
    fn receive_direct(&mut self, at: usize) {
        let id = self.connections[at].id;
        let conn = self.world.conn(id);
        if !conn.is_open() || !conn.incoming.is_empty() {
            return;
        }
        let now = self.world.now;
        let Some(landing) = self.world.session(id).direct_recv() else { return };
        if self.input.byte() == 1 {
            self.world.session(id).notify(now, &Notice::StateChanged);
        }
        let got = self.input.below(landing.end - landing.start + 1);
        self.world.session(id).direct_received(now, landing, got);
        self.world.run();
    }
}
