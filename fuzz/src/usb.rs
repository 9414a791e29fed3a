//! A USB device with two disks under arbitrary transfers: wrappers that are valid or not, CDBs and
//! lengths that do not match, data that is cut short or too long, resets and disconnections between
//! any two transfers, disk requests that are completed late, in any order, or fail, and disks that
//! are withdrawn. Checks that statuses are well-formed, that no more data is sent than was announced,
//! and that memory is freed.

use export::{Access, Fault, Notice, Session as _};
use zerocopy::{FromBytes, IntoBytes};

use crate::input::Input;
use crate::usb_world::{Sent, World, disk};
use usb::wire::Csw;

/// Supported operation codes, and some others.
const OPCODES: [u8; 32] = [
    0x00, 0x03, 0x12, 0x15, 0x1a, 0x1b, 0x1e, 0x23, 0x25, 0x28, 0x2a, 0x2e, 0x2f, 0x35, 0x41, 0x42,
    0x55, 0x5a, 0x5e, 0x5f, 0x88, 0x89, 0x8a, 0x8b, 0x8f, 0x93, 0x9e, 0xa0, 0xa3, 0xa8, 0xaa, 0xc1,
];

/// Maximum length of a piece of data in bytes.
const PIECE: usize = 1 << 20;

struct Harness<'a> {
    input: Input<'a>,
    world: World,
}

/// Runs the target on `data`.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let settings = input.byte();
    let mut world = World::new(&[disk("a", Access::Writable), disk("b", Access::ReadOnly)]);
    world.hold = settings & 1 != 0;
    let mut harness = Harness { input, world };
    for _ in 0..300 {
        if harness.input.is_over() {
            break;
        }
        harness.step();
    }
    // Checks that memory is freed.
    harness.world.reset();
}

impl Harness<'_> {
    fn step(&mut self) {
        match self.input.byte() % 12 {
            0 => {
                let len = self.input.byte() % 64;
                let bytes = self.input.take(len.into()).to_vec();
                self.transfer(&bytes);
            }
            1..=6 => self.command(),
            7 => self.complete(),
            8 => {
                self.world.fault =
                    Some([Fault::Io, Fault::NoSpace, Fault::Gone][self.input.below(3)])
            }
            9 => self.change(),
            10 => self.data(),
            _ => self.world.reset(),
        }
        if self.world.closed.is_some() {
            self.world.reset();
        }
        // Freed as if it had been received.
        self.world.sent.clear();
    }

    /// Begins a command, sends its data, and checks the answer.
    fn command(&mut self) {
        let cdb = self.cdb();
        let (to_host, lun) = (self.input.bit(), self.input.byte() % 3);
        let length = match self.input.byte() % 4 {
            0 => self.input.dword() >> 4,
            1 => self.input.word().into(),
            _ => u32::from(self.input.byte()) * 512,
        };
        let mut cbw = self.world.cbw(lun, &cdb, to_host, length);
        match self.input.byte() {
            1 => cbw.flags ^= self.input.byte(),
            2 => cbw.cdb_length = self.input.byte(),
            3 => cbw.lun = self.input.byte(),
            4 => cbw.signature = self.input.dword().into(),
            _ => {}
        }
        self.world.sent.clear();
        if self.world.offer(cbw.as_bytes()) == 0 {
            return;
        }
        let left = usize::try_from(length).unwrap();
        if !to_host && length > 0 && !self.input.byte().is_multiple_of(8) {
            let data = vec![self.input.byte(); left.min(PIECE)];
            self.transfer(&data);
        }
        self.check(cbw.tag.get(), length);
    }

    fn cdb(&mut self) -> Vec<u8> {
        let mut cdb = vec![0; 16];
        if self.input.bit() {
            let (lba, blocks) = (self.input.word() % 2100, u16::from(self.input.byte()) * 7);
            cdb[0] = if self.input.bit() { 0x28 } else { 0x2a };
            cdb[4..6].copy_from_slice(&lba.to_be_bytes());
            cdb[7..9].copy_from_slice(&blocks.to_be_bytes());
        } else {
            cdb[0] = OPCODES[self.input.below(OPCODES.len())];
            let len = 1 + self.input.below(15);
            for (place, byte) in cdb[1..].iter_mut().zip(self.input.take(len)) {
                *place = *byte;
            }
        }
        cdb
    }

    /// Checks what was sent for a command: data and a halt, then its status, or less if disk requests
    /// are held or data of the host is missing.
    fn check(&self, tag: u32, length: u32) {
        let sent = &self.world.sent;
        let of = |sent: &Sent| match sent {
            Sent::Data(data) => data.len(),
            Sent::Halt => 0,
        };
        let total: usize = sent.iter().map(of).sum();
        let last = sent.last().and_then(|sent| match sent {
            Sent::Data(data) => Csw::read_from_bytes(data).ok(),
            Sent::Halt => None,
        });
        let data = match last.filter(|csw| csw.signature == CSW) {
            // The wrapper was data of the command before.
            Some(csw) if csw.tag.get() != tag => return,
            Some(csw) => {
                assert!(csw.residue.get() <= length && csw.status <= 2);
                total - 13
            }
            None => total,
        };
        assert!(data <= usize::try_from(length).unwrap(), "{data} bytes of {length}");
    }

    /// Sends a transfer. What the device does not receive is dropped.
    fn transfer(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(64 << 10) {
            self.world.offer(piece);
        }
    }

    fn data(&mut self) {
        let data = vec![self.input.byte(); usize::from(self.input.word())];
        self.transfer(&data);
    }

    fn complete(&mut self) {
        let held = self.world.held.len();
        if held > 0 {
            let at = self.input.below(held);
            self.world.complete(at);
        }
    }

    /// Withdraws a disk, or brings it back.
    fn change(&mut self) {
        let name = if self.input.bit() { "a" } else { "b" };
        if self.world.catalogue.withdraw(&name.into()).is_none() {
            self.world.catalogue.publish(disk(name, Access::ReadOnly));
        }
        if self.input.bit() {
            self.world.session().notify(std::time::Instant::now(), &Notice::StateChanged);
            self.world.drain();
        }
    }
}

/// Signature of a status.
const CSW: zerocopy::byteorder::little_endian::U32 =
    zerocopy::byteorder::little_endian::U32::new(usb::wire::CSW_SIGNATURE);
