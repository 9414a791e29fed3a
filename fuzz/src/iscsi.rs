//! The iSCSI target under arbitrary events: valid and invalid PDUs, partial data, task management,
//! late and failed completions, added and removed disks, time, new and closed connections. Checks
//! that every disk request completes once, memory is bounded, and nothing leaks.

use std::time::Duration;

use export::{Access, Auth, Fault, Notice};
use iscsi::wire::bhs::{
    self, Bhs, FINAL, LogoutRequest, NopOut, ScsiCommand, TaskRequest, TextRequest, of_target,
};
use iscsi::wire::login::TRANSIT;
use iscsi::wire::opcode::{self, IMMEDIATE};
use zerocopy::{FromBytes, IntoBytes};

use crate::input::Input;
use crate::iscsi_initiator::{Initiator, NONE, SHORT, pdu, read_10, text_of, write_10};
use crate::iscsi_world::{DISK, World, disk, peer};

/// Maximum number of connections.
const MAX_CONNECTIONS: usize = 5;

/// Size of the disk in bytes.
const SIZE: usize = 1 << 20;

struct Harness<'a> {
    input: Input<'a>,
    world: World,
    initiators: Vec<Initiator>,
}

/// Runs the target on `data`.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let settings = input.byte();
    let block = if settings & 8 == 0 { 512 } else { 4096 };
    let world = World::small(SIZE, block);
    let mut harness = Harness { input, world, initiators: Vec::new() };
    for digest in ["None", "CRC32C"] {
        let mut keys = SHORT.to_vec();
        keys.extend([("HeaderDigest", digest), ("DataDigest", digest)]);
        let initiator = Initiator::attached_with(&mut harness.world, &keys);
        harness.world.conn(initiator.id).hold = settings & 4 == 0;
        harness.initiators.push(initiator);
        if settings & 16 == 0 {
            // Another session, not one that replaces the first.
            harness.initiators[0].isid[0] ^= 1;
        }
    }
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
        let at = self.input.below(self.initiators.len());
        let id = self.initiators[at].id;
        match self.input.byte() % 14 {
            0 => {
                let len = self.input.byte();
                let bytes = self.input.take(len.into());
                self.world.send(id, bytes);
            }
            1..=4 => self.command(at),
            5 => self.data_out(at),
            6 => self.other(at),
            7 => self.manage(at),
            8 | 9 => self.finish(at),
            10 => self.event(at),
            11 => self.change_export(),
            12 => self.receive_data(at),
            _ => self.open(),
        }
        self.world.conn(id).wire.clear();
    }

    /// Sends a PDU, possibly with a corrupted byte or without its end.
    fn send(&mut self, at: usize, header: Bhs, data: &[u8]) {
        let initiator = &self.initiators[at];
        let mut bytes = initiator.pdu(&header, data);
        if self.input.byte() == 1 {
            let (place, value) = (self.input.below(bytes.len()), self.input.byte());
            bytes[place] ^= value;
        }
        if self.input.byte() == 1 {
            bytes.truncate(self.input.below(bytes.len()));
        }
        let id = initiator.id;
        self.world.send(id, &bytes);
    }

    fn command(&mut self, at: usize) {
        let blocks = u16::from(self.input.byte()) * if self.input.bit() { 8 } else { 1 };
        let lba = u32::from(self.input.word() % 2100);
        let cdb = match self.input.byte() % 8 {
            0 | 1 => read_10(lba, blocks),
            2..=5 => write_10(lba, blocks),
            6 => {
                let codes =
                    [0x00, 0x12, 0x1a, 0x25, 0x2e, 0x2f, 0x35, 0x41, 0x42, 0x89, 0xa0, 0x5e, 0x5f];
                let mut cdb = write_10(lba, blocks);
                cdb[0] = codes[self.input.below(codes.len())];
                cdb[13] = self.input.byte();
                cdb
            }
            _ => {
                let bytes = self.input.take(16);
                std::array::from_fn(|at| bytes.get(at).copied().unwrap_or(0))
            }
        };
        let expected = match self.input.byte() {
            0 => self.input.dword() >> 8,
            1 => self.input.word().into(),
            _ => u32::from(blocks) * 512,
        };
        let write = !matches!(cdb[0], 0x28 | 0x12 | 0x1a | 0x25 | 0xa0 | 0x5e);
        let flags = match self.input.byte() % 16 {
            0 => self.input.byte(),
            byte => {
                let last = if byte & 1 == 0 && write { 0 } else { FINAL };
                last | if write { bhs::WRITE } else { bhs::READ }
            }
        };
        let most = (expected as usize).min(256 << 10);
        let immediate = match self.input.byte() % 4 {
            0 if write => most,
            1 if write => self.input.below(most + 1),
            _ => 0,
        };
        let mut command = self.initiators[at].scsi(cdb, flags, expected);
        match self.input.byte() {
            0 => command.opcode |= IMMEDIATE,
            1 => command.cmd_sn = self.input.dword().into(),
            2 => command.lun = u64::from(self.input.dword()).into(),
            3 => command.ahs_len = self.input.byte() % 3,
            _ => {}
        }
        self.send(at, Bhs::read_from_bytes(command.as_bytes()).unwrap(), &vec![7; immediate]);
    }

    /// Sends data for a recent command.
    fn data_out(&mut self, at: usize) {
        let recent = u32::from(self.input.byte() % 8);
        let initiator = &mut self.initiators[at];
        let itt = initiator.next_itt().wrapping_sub(1 + recent);
        let ttt = if self.input.bit() { NONE } else { self.input.byte().into() };
        let unit = if self.input.bit() { 512 } else { 8192 };
        let offset = u32::from(self.input.byte()) * unit;
        let len = usize::from(self.input.byte()) * unit as usize / 4;
        let (sn, last) = (u32::from(self.input.byte() / 128), self.input.bit());
        let header = self.initiators[at].data_out(itt, ttt, sn, offset, last);
        self.send(
            at,
            Bhs::read_from_bytes(header.as_bytes()).unwrap(),
            &vec![7; len.min(256 << 10)],
        );
    }

    /// Sends a ping, a text request or a logout.
    fn other(&mut self, at: usize) {
        let cmd_sn = self.initiators[at].cmd_sn.into();
        let (header, data) = match self.input.byte() % 6 {
            0 | 1 => {
                let mut nop = NopOut::of(&of_target(opcode::NOP_OUT | IMMEDIATE));
                (nop.itt, nop.cmd_sn) = (self.input.dword().into(), cmd_sn);
                (nop.as_bytes().to_vec(), vec![1; self.input.below(9000)])
            }
            5 if self.input.byte() < 32 => {
                let mut logout = LogoutRequest::of(&of_target(opcode::LOGOUT_REQUEST | IMMEDIATE));
                logout.flags = FINAL | (self.input.byte() % 4);
                (logout.itt, logout.cmd_sn) = (5.into(), cmd_sn);
                (logout.as_bytes().to_vec(), Vec::new())
            }
            _ => {
                let mut text = TextRequest::of(&of_target(opcode::TEXT_REQUEST | IMMEDIATE));
                text.flags = [FINAL, 0, 0x40, FINAL][self.input.below(4)];
                text.ttt = if self.input.bit() { NONE } else { 1 }.into();
                (text.itt, text.cmd_sn) = (6.into(), cmd_sn);
                let value = ["All", "", "x", "8192"][self.input.below(4)];
                let key = ["SendTargets", "MaxRecvDataSegmentLength"][self.input.below(2)];
                (text.as_bytes().to_vec(), text_of(&[(key, value)]))
            }
        };
        self.send(at, Bhs::read_from_bytes(&header).unwrap(), &data);
    }

    fn manage(&mut self, at: usize) {
        let recent = u32::from(self.input.byte() % 8);
        let initiator = &mut self.initiators[at];
        let mut request = TaskRequest::of(&of_target(opcode::TASK_REQUEST | IMMEDIATE));
        request.flags = FINAL | (self.input.byte() % 9);
        let itt = initiator.next_itt();
        (request.itt, request.ref_tag) = (itt.into(), itt.wrapping_sub(1 + recent).into());
        request.cmd_sn = initiator.cmd_sn.into();
        self.send(at, Bhs::read_from_bytes(request.as_bytes()).unwrap(), &[]);
    }

    /// Completes any held disk request.
    fn finish(&mut self, at: usize) {
        let id = self.initiators[at].id;
        let held = self.world.jobs(id).len();
        if held == 0 {
            return;
        }
        let which = self.input.below(held);
        let fault = Fault::ALL.get(usize::from(self.input.byte())).copied();
        // The gate returns these, no driver does.
        let fault = fault.filter(|fault| !matches!(fault, Fault::Busy | Fault::Reserved));
        self.world.finish(id, which, fault.map_or(Ok(()), Err));
    }

    fn event(&mut self, at: usize) {
        let id = self.initiators[at].id;
        match self.input.byte() % 10 {
            0 => self.world.disconnect(id),
            1 if self.input.byte() == 7 => self.world.notify(Notice::Stopping),
            2 => self.world.conn(id).not_receiving = true,
            3 | 4 => self.world.receive_all(id),
            5 => self.world.advance(Duration::from_millis(self.input.word().into())),
            6 => self.world.conn(id).hold = false,
            _ => self.world.notify(Notice::StateChanged),
        }
    }

    /// Publishes, withdraws or resizes the disk.
    fn change_export(&mut self) {
        let size = SIZE as u64;
        match self.input.byte() % 6 {
            0 => drop(self.world.catalogue.withdraw(&DISK.into())),
            1 => self.world.catalogue.publish(disk(DISK, Access::ReadOnly, 512, size)),
            2 => self.world.catalogue.publish(disk(DISK, Access::Writable, 4096, size)),
            3 => self.world.catalogue.publish(disk(DISK, Access::Writable, 512, size)),
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

    /// Delivers data, directly or not.
    fn receive_data(&mut self, at: usize) {
        let (id, len) = (self.initiators[at].id, usize::from(self.input.word()) * 8);
        if self.input.bit() {
            self.world.receive_directly(id, 7, len);
        } else {
            self.world.send(id, &vec![7; len]);
        }
    }

    /// Opens a connection, and perhaps logs in: as a new session, or to replace another one.
    fn open(&mut self) {
        if self.initiators.len() >= MAX_CONNECTIONS {
            return;
        }
        let auth = if self.input.byte().is_multiple_of(4) { Auth::Required } else { Auth::None };
        let id = self.world.open_as(peer(auth));
        self.world.conn(id).hold = self.input.bit();
        let mut initiator = Initiator::new(id);
        initiator.isid[5] = self.input.byte() % 2;
        let session = ["Normal", "Discovery"][self.input.below(2)];
        let method = ["None", "CHAP", "CHAP,None"][self.input.below(3)];
        let mut keys = SHORT.to_vec();
        keys[2].1 = session;
        let flags = match self.input.byte() % 4 {
            0 => self.input.byte(),
            1 => {
                keys.push(("AuthMethod", method));
                TRANSIT | 1
            }
            _ => TRANSIT | 1 << 2 | 3,
        };
        self.world.send(id, &initiator.login_bytes(flags, &text_of(&keys)));
        if self.input.bit() {
            let bytes = pdu(&ScsiCommand::of(&of_target(opcode::SCSI_COMMAND)), &[], false, false);
            self.world.send(id, &bytes);
        }
        self.initiators.push(initiator);
    }
}
