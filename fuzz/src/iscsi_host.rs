//! The iSCSI initiator with a hostile target: valid and invalid PDUs of a login, of commands and of a
//! discovery, and arbitrary bytes. Checks that every command completes at most once, that reads
//! return their buffers, filled as far as is reported, that data is sent in order and within its
//! buffer, that no write counts further than its data was sent, that buffered input is bounded, and
//! that nothing follows the close.

use std::collections::BTreeMap;
use std::rc::Rc;

use export::{Account, Pool, Secret};
use iscsi::chap::Algorithm;
use iscsi::host::{Command, Credentials, Data, Done, Initiator, Offer, Options, Step, disk};
use iscsi::wire::bhs::{self, Bhs, DataOut, OVERFLOW, ScsiCommand, UNDERFLOW};
use iscsi::wire::login::CONTINUE;
use iscsi::wire::{opcode, padding};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::input::Input;
use crate::rogue::{Counter, keys, pdu};

/// Fills buffers before a read; never sent by the target.
const POISON: u8 = 0xee;

/// Keys of a target, valid and invalid.
const KEYS: [(&str, &str); 16] = [
    ("InitialR2T", "Yes"),
    ("InitialR2T", "No"),
    ("ImmediateData", "No"),
    ("ImmediateData", "Yes"),
    ("MaxRecvDataSegmentLength", "512"),
    ("MaxRecvDataSegmentLength", "16777215"),
    ("MaxRecvDataSegmentLength", "0"),
    ("FirstBurstLength", "512"),
    ("MaxBurstLength", "1024"),
    ("MaxBurstLength", "4294967296"),
    ("AuthMethod", "CHAP"),
    ("CHAP_A", "7"),
    ("CHAP_I", "200"),
    ("CHAP_C", "0x0102030405060708090a0b0c0d0e0f"),
    ("CHAP_R", "0x00"),
    ("ErrorRecoveryLevel", "Reject"),
];

/// A command in flight.
#[derive(Debug, Clone, Copy)]
struct Flight {
    itt: u32,
    /// Length of the buffer of a read, and of the data of a write.
    reads: usize,
    writes: usize,
    /// Data of a write that was sent.
    sent: usize,
}

struct Harness<'a> {
    input: Input<'a>,
    initiator: Initiator,
    target: Counter,
    memory: Account,
    pending: Vec<u8>,
    wire: Vec<u8>,
    closed: bool,
    logged_in: bool,
    /// Whether PDUs may have digests, so that what is sent is not looked at.
    digests: bool,
    /// By tag.
    flights: BTreeMap<u32, Flight>,
    next: u32,
}

/// Runs the target on `data`.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let settings = input.byte();
    let credentials = Credentials {
        name: "initiator".to_owned(),
        secret: Secret::new(b"secretsecret".to_vec()),
        target: (settings & 8 != 0).then(|| Secret::new(b"anothersecret".to_vec())),
        algorithms: vec![Algorithm::Sha256, Algorithm::Sha1],
    };
    let target = (settings & 1 == 0).then_some("iqn.2026-01.org.example:disk");
    let offer = Offer {
        initial_r2t: settings & 0x10 != 0,
        immediate_data: settings & 0x20 == 0,
        max_recv: if settings & 0x40 == 0 { 4096 } else { 512 },
        ..Offer::default()
    };
    let options = Options::new("iqn.2026-01.org.example:host", target, [0x80, 0, 0, 0, 0, 1]);
    let chap = (settings & 4 != 0).then_some(credentials);
    let options = Options {
        depth: u16::from(settings >> 7) * 7 + 1,
        credentials: chap,
        offer,
        random: |bytes| {
            bytes.fill(9);
            true
        },
        ..options
    };
    let mut harness = Harness {
        input,
        initiator: Initiator::new(options),
        target: Counter::default(),
        memory: Pool::new(8 << 20).open(),
        pending: Vec::new(),
        wire: Vec::new(),
        closed: false,
        logged_in: false,
        digests: false,
        flights: BTreeMap::new(),
        next: 0,
    };
    harness.drain();
    if settings & 6 == 0 {
        let login = harness.target.last_login();
        harness.send(&login, &[]);
    }
    for _ in 0..400 {
        if harness.input.is_over() || harness.closed {
            break;
        }
        harness.step();
    }
}

impl Harness<'_> {
    fn step(&mut self) {
        match self.input.byte() % 12 {
            0 => {
                let len = self.input.byte();
                let bytes = self.input.take(len.into()).to_vec();
                self.come(&bytes);
            }
            1 | 2 => self.submit(),
            3 | 4 => self.data_in(),
            5 | 6 => self.r2t(),
            7 => self.respond(),
            8 => self.login(),
            9 => self.receive_directly(),
            10 => self.text(),
            _ => self.message(),
        }
    }

    fn login(&mut self) {
        let flags = match self.input.byte() % 6 {
            0 => 0x87,
            1 => 0x04,
            2 => 0x00,
            3 => 0x81,
            4 => CONTINUE | 0x04,
            _ => self.input.byte(),
        };
        let pairs: Vec<(&str, &str)> =
            (0..self.input.byte() % 6).map(|_| KEYS[self.input.below(KEYS.len())]).collect();
        let mut header = self.target.login(flags);
        if self.input.byte() == 1 {
            header.status = [self.input.byte() % 4, self.input.byte()];
        }
        self.send(&header, &keys(&pairs));
    }

    fn text(&mut self) {
        let header = self.target.targets(self.input.bit());
        let pairs = [("TargetName", "iqn.a:b"), ("TargetAddress", "192.0.2.1:3260,1")];
        let text = keys(&pairs[..self.input.below(3)]);
        self.send(&header, &text);
    }

    fn message(&mut self) {
        match self.input.byte() % 4 {
            0 => {
                let header = self.target.message(self.input.byte() % 5);
                self.send(&header, &[]);
            }
            _ => {
                let header = self.target.ping(self.input.bit());
                self.send(&header, &[]);
            }
        }
    }

    fn submit(&mut self) {
        let (kind, blocks) = (self.input.byte(), usize::from(self.input.byte() % 64));
        let len = blocks * 512;
        let Some(mut buffer) = self.memory.take(len.max(1)) else { return };
        buffer.bytes_mut().fill(POISON);
        let (data, reads, writes) = match kind % 4 {
            0 => (Data::None, 0, 0),
            1 => (Data::In(Some(buffer)), len.max(1), 0),
            _ => (Data::Out { buffer: Rc::new(buffer), start: 0, len }, 0, len),
        };
        let command = Command { cdb: disk::flush(), lun: 0, data };
        if self.initiator.submit(command, self.next).is_ok() {
            assert!(self.logged_in, "command before the login");
            let flight = Flight { itt: u32::MAX, reads, writes, sent: 0 };
            self.flights.insert(self.next, flight);
            self.next += 1;
            self.drain();
        }
    }

    /// Chooses a command, mostly one that was sent.
    fn some(&mut self) -> Flight {
        let choice = self.input.byte();
        let other = Flight { itt: choice.into(), reads: 512, writes: 512, sent: 0 };
        match self.flights.len() {
            count if count != 0 && choice != 255 => {
                *self.flights.values().nth(usize::from(choice) % count).unwrap_or(&other)
            }
            _ => other,
        }
    }

    fn data_in(&mut self) {
        let flight = self.some();
        let (number, quarter) = (self.input.byte() % 8, self.input.byte() as usize % 6);
        let offset = flight.reads * usize::from(number) / 4;
        let len = flight.reads * quarter / 4;
        let offset = u32::try_from(offset).unwrap();
        let mut header = match self.input.bit() {
            false => self.target.data(flight.itt, number.into(), offset),
            true => self.target.last_data(flight.itt, number.into(), offset),
        };
        header.flags |= self.input.byte() & (OVERFLOW | UNDERFLOW);
        header.residual.set(u32::from(self.input.byte()) * 64);
        self.send(&header, &vec![1; len]);
    }

    fn r2t(&mut self) {
        let flight = self.some();
        let (number, offset) = (self.input.byte() % 4, self.input.byte());
        let offset = match offset {
            0..=127 => flight.sent,
            _ => usize::from(offset) * 64,
        };
        let len = flight.writes * usize::from(self.input.byte() % 6) / 4;
        let [offset, len] = [offset, len].map(|it| u32::try_from(it).unwrap());
        let header = self.target.r2t(flight.itt, number.into(), offset, len);
        self.send(&header, &[]);
    }

    fn respond(&mut self) {
        let flight = self.some();
        let mut header = self.target.response(flight.itt);
        header.flags |= self.input.byte() & (OVERFLOW | UNDERFLOW);
        header.residual.set(u32::from(self.input.byte()) * 64);
        (header.response, header.status) = (self.input.byte() % 2, self.input.byte() % 4);
        let len = self.input.byte() % 32;
        let sense = self.input.take(len.into()).to_vec();
        self.send(&header, &sense);
    }

    fn receive_directly(&mut self) {
        if !self.pending.is_empty() || self.closed {
            return;
        }
        let Some(mut window) = self.initiator.direct_recv() else { return };
        assert!(window.start < window.end && window.end <= window.buffer.len());
        let got = self.input.below(window.end - window.start + 1);
        window.buffer.bytes_mut()[window.start..window.start + got].fill(1);
        self.initiator.direct_received(window, got);
        self.drain();
    }

    /// Sends a PDU, possibly with a corrupted byte, or in parts.
    fn send<H: IntoBytes + Immutable>(&mut self, header: &H, data: &[u8]) {
        let mut bytes = pdu(header, data);
        if self.input.byte() == 1 {
            let (place, value) = (self.input.below(bytes.len()), self.input.byte());
            bytes[place] ^= value;
        }
        let cut = if self.input.bit() { self.input.below(bytes.len()) } else { bytes.len() };
        self.come(&bytes[..cut]);
        self.come(&bytes[cut..]);
    }

    fn come(&mut self, bytes: &[u8]) {
        if self.closed {
            return;
        }
        self.digests |= bytes.windows(6).any(|part| part == b"CRC32C");
        let harmless = bytes.iter().map(|&byte| if byte == POISON { POISON + 1 } else { byte });
        self.pending.extend(harmless);
        let taken = self.initiator.receive(&self.pending);
        assert!(taken <= self.pending.len());
        self.pending.drain(..taken);
        assert!(self.pending.len() < bhs::LEN + 4, "too much input unconsumed");
        self.drain();
    }

    fn drain(&mut self) {
        let mut ended = Vec::new();
        while let Some(step) = self.initiator.poll() {
            assert!(!self.closed, "step after the close");
            match step {
                Step::Send(segment) => self.wire.extend(segment.parts().concat()),
                Step::LoggedIn => {
                    assert!(!std::mem::replace(&mut self.logged_in, true), "logged in once");
                }
                Step::Done(done) => ended.push(done),
                Step::Close(_) => self.closed = true,
                Step::Targets(_) | Step::Refused(_) | Step::Redirected(_) => {}
            }
        }
        self.note();
        ended.iter().for_each(|done| self.done(done));
    }

    /// Records what the initiator has sent, and checks it.
    fn note(&mut self) {
        let wire = std::mem::take(&mut self.wire);
        let mut rest = &wire[..];
        while !self.digests && !rest.is_empty() {
            let (header, after) = Bhs::read_from_prefix(rest).expect("whole PDUs");
            let len = header.data_len.get() as usize;
            rest = &after[len + padding(len)..];
            match header.opcode() {
                opcode::SCSI_COMMAND => self.command(&ScsiCommand::of(&header), len),
                opcode::DATA_OUT => self.data_out(&DataOut::of(&header), len),
                _ => {}
            }
        }
    }

    fn command(&mut self, command: &ScsiCommand, len: usize) {
        let mut unsent = self.flights.values_mut().filter(|it| it.itt == u32::MAX);
        let flight = unsent.next().expect("commands are sent in order");
        assert!(command.expected.get() as usize == flight.reads + flight.writes);
        assert!(len <= flight.writes);
        (flight.itt, flight.sent) = (command.itt.get(), len);
    }

    fn data_out(&mut self, data: &DataOut, len: usize) {
        let itt = data.itt.get();
        let flight = self.flights.values_mut().find(|it| it.itt == itt).expect("its command");
        assert_eq!(data.offset.get() as usize, flight.sent, "in order");
        flight.sent += len;
        assert!(flight.sent <= flight.writes, "data beyond the buffer");
    }

    fn done(&mut self, done: &Done) {
        let flight = self.flights.remove(&done.tag).expect("command in flight");
        let buffer = done.buffer.as_ref();
        assert_eq!(buffer.map_or(0, |buffer| buffer.len()), flight.reads, "its own buffer");
        let bytes = buffer.map_or(&[][..], |buffer| buffer.bytes());
        match flight.reads {
            0 => assert!(self.digests || done.len <= flight.sent, "counts what was not sent"),
            _ => assert!(!bytes[..done.len].contains(&POISON), "counts what did not arrive"),
        }
    }
}
