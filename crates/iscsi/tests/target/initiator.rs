//! A scripted initiator: PDUs as bytes.

use iscsi::wire::bhs::{
    self, Bhs, DataOut, FINAL, LoginRequest, ScsiCommand, TextRequest, of_target,
};
use iscsi::wire::digest::crc32c;
use iscsi::wire::login::TRANSIT;
use iscsi::wire::opcode::{self, IMMEDIATE};
use iscsi::wire::{NO_TAG, padding, text};
use zerocopy::{FromBytes, IntoBytes};

use crate::iscsi_world::{Id, TARGET, World};

/// The name of the initiator.
pub(crate) const NAME: &str = "iqn.2026-01.org.example:host";

/// A PDU that was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pdu {
    pub(crate) header: Bhs,
    pub(crate) data: Vec<u8>,
}

impl Pdu {
    pub(crate) fn opcode(&self) -> u8 {
        self.header.opcode()
    }

    /// Returns the pairs of a text.
    pub(crate) fn pairs(&self) -> Vec<(&str, &str)> {
        text::parse(&self.data).unwrap()
    }

    pub(crate) fn value(&self, key: &str) -> Option<&str> {
        self.pairs().into_iter().find(|(other, _)| *other == key).map(|(_, value)| value)
    }

    /// Returns status class and detail of a login response.
    pub(crate) fn login_status(&self) -> u16 {
        assert_eq!(self.opcode(), opcode::LOGIN_RESPONSE);
        u16::from_be_bytes(bhs::LoginResponse::of(&self.header).status)
    }
}

/// The state of one session of the initiator.
#[derive(Debug, Clone)]
pub(crate) struct Initiator {
    pub(crate) id: Id,
    pub(crate) cmd_sn: u32,
    pub(crate) isid: [u8; 6],
    pub(crate) header_digest: bool,
    pub(crate) data_digest: bool,
    next_itt: u32,
}

/// The keys of a login that is as short as possible.
pub(crate) const SHORT: &[(&str, &str)] = &[
    ("InitiatorName", NAME),
    ("TargetName", TARGET),
    ("SessionType", "Normal"),
    ("InitialR2T", "No"),
    ("ImmediateData", "Yes"),
    ("MaxRecvDataSegmentLength", "262144"),
    ("FirstBurstLength", "262144"),
];

/// Returns a text.
pub(crate) fn text_of(pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    pairs.iter().for_each(|(key, value)| text::push(&mut bytes, key, value));
    bytes
}

impl Initiator {
    pub(crate) fn new(id: Id) -> Self {
        let isid = [0x80, 1, 2, 3, 0, 0];
        Self { id, cmd_sn: 1, isid, header_digest: false, data_digest: false, next_itt: 0x100 }
    }

    /// Opens a connection and logs in with [`SHORT`]. The first unit attention is consumed.
    pub(crate) fn attached(world: &mut World) -> Self {
        Self::attached_with(world, SHORT)
    }

    /// Opens a connection and logs in with those keys.
    pub(crate) fn attached_with(world: &mut World, keys: &[(&str, &str)]) -> Self {
        let id = world.open();
        let mut initiator = Self::new(id);
        let response = initiator.login(world, keys);
        assert_eq!(response.login_status(), 0, "{response:?}");
        initiator.ready(world);
        initiator
    }

    /// Consumes the unit attention of a new session.
    pub(crate) fn ready(&mut self, world: &mut World) {
        let pdus = self.command(world, [0; 16], 0, 0, &[]);
        assert_eq!(status(&pdus), 2);
    }

    /// Logs in with one request.
    pub(crate) fn login(&mut self, world: &mut World, keys: &[(&str, &str)]) -> Pdu {
        let bytes = self.login_bytes(TRANSIT | 1 << 2 | 3, &text_of(keys));
        world.send(self.id, &bytes);
        let pdus = self.received(world);
        if let Some(first) = pdus.first() {
            self.header_digest = first.value("HeaderDigest") == Some("CRC32C");
            self.data_digest = first.value("DataDigest") == Some("CRC32C");
        }
        pdus.into_iter().next().expect("a response")
    }

    /// Returns a login request with that text.
    pub(crate) fn login_bytes(&self, flags: u8, text: &[u8]) -> Vec<u8> {
        let mut login = LoginRequest::of(&of_target(opcode::LOGIN_REQUEST | IMMEDIATE));
        (login.flags, login.isid, login.itt) = (flags, self.isid, 1.into());
        login.cmd_sn = self.cmd_sn.into();
        pdu(&login, text, false, false)
    }

    /// Returns the bytes of a PDU with the digests of the session.
    pub(crate) fn pdu(&self, header: &impl HeaderBytes, data: &[u8]) -> Vec<u8> {
        pdu(header, data, self.header_digest, self.data_digest)
    }

    pub(crate) fn next_itt(&mut self) -> u32 {
        self.next_itt += 1;
        self.next_itt
    }

    /// Returns the header of the next command.
    pub(crate) fn scsi(&mut self, cdb: [u8; 16], flags: u8, expected: u32) -> ScsiCommand {
        let mut command = ScsiCommand::of(&of_target(opcode::SCSI_COMMAND));
        (command.flags, command.cdb, command.expected) = (flags, cdb, expected.into());
        (command.itt, command.cmd_sn) = (self.next_itt().into(), self.cmd_sn.into());
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        command
    }

    /// Sends a command with immediate data. Returns what is received.
    pub(crate) fn command(
        &mut self,
        world: &mut World,
        cdb: [u8; 16],
        flags: u8,
        expected: u32,
        data: &[u8],
    ) -> Vec<Pdu> {
        let command = self.scsi(cdb, FINAL | flags, expected);
        world.send(self.id, &self.pdu(&command, data));
        self.received(world)
    }

    /// Reads blocks of 512 bytes.
    pub(crate) fn read(&mut self, world: &mut World, lba: u32, blocks: u16) -> Vec<Pdu> {
        self.command(world, read_10(lba, blocks), bhs::READ, u32::from(blocks) * 512, &[])
    }

    /// Sends a Data-Out PDU.
    pub(crate) fn data_out(&self, itt: u32, ttt: u32, sn: u32, offset: u32, last: bool) -> DataOut {
        let mut pdu = DataOut::of(&of_target(opcode::DATA_OUT));
        pdu.flags = if last { FINAL } else { 0 };
        (pdu.itt, pdu.ttt, pdu.data_sn, pdu.offset) =
            (itt.into(), ttt.into(), sn.into(), offset.into());
        pdu
    }

    /// Sends a text request.
    pub(crate) fn text(&mut self, world: &mut World, flags: u8, ttt: u32, text: &[u8]) -> Vec<Pdu> {
        let mut request = TextRequest::of(&of_target(opcode::TEXT_REQUEST));
        (request.flags, request.itt, request.ttt) = (flags, 7.into(), ttt.into());
        request.cmd_sn = self.cmd_sn.into();
        self.cmd_sn += 1;
        world.send(self.id, &self.pdu(&request, text));
        self.received(world)
    }

    /// Returns the PDUs that were received since the last call.
    pub(crate) fn received(&self, world: &mut World) -> Vec<Pdu> {
        let bytes = world.received(self.id);
        parse(&bytes, self.header_digest, self.data_digest)
    }
}

/// READ (10).
pub(crate) fn read_10(lba: u32, blocks: u16) -> [u8; 16] {
    ten(0x28, lba, blocks)
}

/// WRITE (10).
pub(crate) fn write_10(lba: u32, blocks: u16) -> [u8; 16] {
    ten(0x2a, lba, blocks)
}

fn ten(code: u8, lba: u32, blocks: u16) -> [u8; 16] {
    let ([a, b, c, d], [e, f]) = (lba.to_be_bytes(), blocks.to_be_bytes());
    [code, 0, a, b, c, d, 0, e, f, 0, 0, 0, 0, 0, 0, 0]
}

/// Returns the status of the last PDU.
pub(crate) fn status(pdus: &[Pdu]) -> u8 {
    let last = pdus.last().expect("a response");
    match last.opcode() {
        opcode::DATA_IN => {
            assert!(last.header.flags & bhs::STATUS != 0, "{last:?}");
            bhs::DataIn::of(&last.header).status
        }
        opcode::SCSI_RESPONSE => bhs::ScsiResponse::of(&last.header).status,
        _ => panic!("no status: {last:?}"),
    }
}

/// Returns sense key and code of a response.
pub(crate) fn sense(pdus: &[Pdu]) -> (u8, u8, u8) {
    assert_eq!(status(pdus), 2);
    let data = &pdus.last().unwrap().data;
    (data[4] & 15, data[14], data[15])
}

/// Returns the data of Data-In PDUs, which must be in order.
pub(crate) fn data_of(pdus: &[Pdu]) -> Vec<u8> {
    let mut data = Vec::new();
    let data_in = pdus.iter().filter(|pdu| pdu.opcode() == opcode::DATA_IN);
    for (sn, pdu) in data_in.enumerate() {
        let header = bhs::DataIn::of(&pdu.header);
        assert_eq!((header.offset.get() as usize, header.data_sn.get() as usize), (data.len(), sn));
        data.extend(&pdu.data);
    }
    data
}

/// A header of 48 bytes.
pub(crate) trait HeaderBytes: IntoBytes + zerocopy::Immutable {}
impl<T: IntoBytes + zerocopy::Immutable> HeaderBytes for T {}

/// Returns the bytes of a PDU.
pub(crate) fn pdu(header: &impl HeaderBytes, data: &[u8], hd: bool, dd: bool) -> Vec<u8> {
    let mut header = Bhs::read_from_bytes(header.as_bytes()).unwrap();
    header.data_len = u32::try_from(data.len()).unwrap().into();
    let mut bytes = header.as_bytes().to_vec();
    if hd {
        bytes.extend(crc32c(&[header.as_bytes()]));
    }
    let padded = [data, &vec![0; padding(data.len())]].concat();
    bytes.extend(&padded);
    if dd && !data.is_empty() {
        bytes.extend(crc32c(&[&padded]));
    }
    bytes
}

/// Splits bytes into PDUs, and checks digests and padding.
pub(crate) fn parse(mut bytes: &[u8], hd: bool, dd: bool) -> Vec<Pdu> {
    let mut pdus = Vec::new();
    // The response that agrees on digests has none.
    let digests = |header: &Bhs| {
        if header.opcode() == opcode::LOGIN_RESPONSE { (false, false) } else { (hd, dd) }
    };
    while !bytes.is_empty() {
        let (header, rest) = Bhs::read_from_prefix(bytes).unwrap();
        let (hd, dd) = digests(&header);
        let (digest, rest) = rest.split_at(if hd { 4 } else { 0 });
        assert!(!hd || digest == crc32c(&[header.as_bytes()]));
        let len = header.data_len.get() as usize;
        let (padded, rest) = rest.split_at(len + padding(len));
        let (digest, rest) = rest.split_at(if dd && len != 0 { 4 } else { 0 });
        assert!(digest.is_empty() || digest == crc32c(&[padded]));
        pdus.push(Pdu { header, data: padded[..len].to_vec() });
        bytes = rest;
    }
    pdus
}

/// No tag.
pub(crate) const NONE: u32 = NO_TAG;
