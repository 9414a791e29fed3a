//! Raw PDUs of a host, valid or invalid, and common sequences.

use nvme::command::{AdminCommand, FabricsCommand, IoCommand, PropertySize};
use nvme::status::Status;
use nvme::tcp::{crc32c, pdu::kind};
use nvme::wire::completion::Cqe;
use nvme::wire::fabrics::{CNTLID_DYNAMIC, ConnectData, property};
use nvme::wire::feature::fid;
use nvme::wire::{Sgl, Sqe};
use zerocopy::IntoBytes;

use crate::world::{DISK, Id, Reply, World};

/// Digests of a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Digests {
    pub(crate) header: bool,
    pub(crate) data: bool,
}

/// No digests.
pub(crate) const PLAIN: Digests = Digests { header: false, data: false };

/// Both digests.
pub(crate) const BOTH: Digests = Digests { header: true, data: true };

/// CC as Linux sets it to enable a controller.
pub(crate) const ENABLE: u32 = 0x0046_0001;

/// NQN of the default host.
pub(crate) const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:host";

/// Returns a PDU with `fields` after the common header.
pub(crate) fn frame(
    digests: Digests,
    pdu_type: u8,
    flags: u8,
    fields: &[u8],
    data: &[u8],
) -> Vec<u8> {
    let hlen = 8 + fields.len();
    let before = hlen + if digests.header { 4 } else { 0 };
    let with_digest = digests.data && !data.is_empty();
    let plen = before + data.len() + if with_digest { 4 } else { 0 };
    let pdo = if data.is_empty() { 0 } else { u8::try_from(before).unwrap() };
    let flags = flags | u8::from(digests.header) | u8::from(with_digest) << 1;
    let mut bytes = vec![pdu_type, flags, u8::try_from(hlen).unwrap(), pdo];
    bytes.extend(u32::try_from(plen).unwrap().to_le_bytes());
    bytes.extend(fields);
    if digests.header {
        bytes.extend(crc32c(&bytes).to_le_bytes());
    }
    bytes.extend(data);
    if with_digest {
        bytes.extend(crc32c(data).to_le_bytes());
    }
    bytes
}

/// Returns an ICReq with these digest bits.
pub(crate) fn ic_req(digests: Digests) -> Vec<u8> {
    let mut fields = [0; 120];
    fields[3] = u8::from(digests.header) | u8::from(digests.data) << 1;
    frame(PLAIN, kind::IC_REQ, 0, &fields, &[])
}

/// Returns a command capsule.
pub(crate) fn capsule(digests: Digests, sqe: &Sqe, data: &[u8]) -> Vec<u8> {
    frame(digests, kind::CAPSULE_CMD, 0, sqe.as_bytes(), data)
}

/// Returns the fields of an H2CData PDU after the common header.
pub(crate) fn data_fields(cid: u16, ttag: u16, offset: u32, len: u32) -> Vec<u8> {
    let mut fields = [cid.to_le_bytes(), ttag.to_le_bytes()].concat();
    fields.extend(offset.to_le_bytes());
    fields.extend(len.to_le_bytes());
    fields.extend([0; 4]);
    fields
}

/// Returns an H2CData PDU.
pub(crate) fn h2c(
    digests: Digests,
    cid: u16,
    ttag: u16,
    offset: u32,
    data: &[u8],
    last: bool,
) -> Vec<u8> {
    let fields = data_fields(cid, ttag, offset, u32::try_from(data.len()).unwrap());
    frame(digests, kind::H2C_DATA, u8::from(last) << 2, &fields, data)
}

/// Returns Connect of queue `qid` with `entries`, SQ flow control enabled.
pub(crate) fn connect_sqe(qid: u16, entries: u32) -> Sqe {
    let kato = 0;
    FabricsCommand::Connect { recfmt: 0, qid, sqsize: entries, cattr: 0, kato }.emit()
}

/// Returns the data of a Connect by [`HOST`].
pub(crate) fn connect_data(cntlid: u16) -> ConnectData {
    ConnectData::emit([9; 16], cntlid, DISK, HOST).unwrap()
}

/// Returns a Write with in-capsule data.
pub(crate) fn write_in_capsule(slba: u64, blocks: u32) -> Sqe {
    write(slba, blocks).with_data(Sgl::in_capsule(0, blocks * 512))
}

/// Returns a Write with data by R2T.
pub(crate) fn write(slba: u64, blocks: u32) -> Sqe {
    let command = IoCommand::Write { nsid: 1, slba, nlb: blocks, fua: false, limited_retry: false };
    command.emit().with_data(Sgl::transport(blocks * 512))
}

/// Returns a Read.
pub(crate) fn read(slba: u64, blocks: u32) -> Sqe {
    let command = IoCommand::Read { nsid: 1, slba, nlb: blocks, fua: false, limited_retry: false };
    command.emit().with_data(Sgl::transport(blocks.wrapping_mul(512)))
}

/// Returns Property Get of 4 bytes.
pub(crate) fn property_get(offset: u32) -> Sqe {
    FabricsCommand::PropertyGet { attrib: PropertySize::Four, offset }.emit()
}

/// Property Set of CC.
pub(crate) fn configure(cc: u32) -> Sqe {
    let (attrib, offset) = (PropertySize::Four, property::CC);
    FabricsCommand::PropertySet { attrib, offset, value: cc.into() }.emit()
}

impl World {
    /// Opens a connection, and initializes it with `digests`.
    pub(crate) fn initialized(&mut self, digests: Digests) -> Id {
        let id = self.open();
        self.send(id, &ic_req(digests));
        assert!(matches!(self.replies(id)[..], [Reply::Accepted(_)]));
        id
    }

    /// Sends a command with in-capsule data. Returns all replies.
    pub(crate) fn command(&mut self, id: Id, sqe: &Sqe, data: &[u8]) -> Vec<Reply> {
        self.send(id, &capsule(PLAIN, sqe, data));
        self.replies(id)
    }

    /// Sends a command. Returns its completion, which must be the only reply.
    pub(crate) fn ask(&mut self, id: Id, sqe: &Sqe, data: &[u8]) -> Cqe {
        match self.command(id, sqe, data)[..] {
            [Reply::Done(cqe)] if cqe.cid == sqe.cid => cqe,
            ref other => panic!("one answer to {sqe:02x?}: {other:02x?}"),
        }
    }

    /// Sends a command without data. Returns its status.
    pub(crate) fn status(&mut self, id: Id, sqe: &Sqe) -> Status {
        self.ask(id, sqe, &[]).outcome()
    }

    /// Sends a command, which must succeed. Returns its data.
    pub(crate) fn fetch(&mut self, id: Id, sqe: &Sqe) -> Vec<u8> {
        let replies = self.command(id, sqe, &[]);
        data_of(&replies, sqe.cid.get())
    }

    /// Returns the Admin queue of a ready controller with eight I/O queues granted, and its CNTLID.
    pub(crate) fn admin(&mut self) -> (Id, u16) {
        self.admin_of(&connect_data(CNTLID_DYNAMIC), PLAIN)
    }

    /// Like the function before, for another Connect or with digests.
    pub(crate) fn admin_of(&mut self, data: &ConnectData, digests: Digests) -> (Id, u16) {
        let id = self.initialized(digests);
        let steps = [
            (connect_sqe(0, 32), data.as_bytes()),
            (configure(ENABLE).with_cid(1), &[]),
            (
                AdminCommand::set_features(fid::NUMBER_OF_QUEUES, 0x0007_0007).emit().with_cid(2),
                &[],
            ),
        ];
        let mut cntlid = 0;
        for (sqe, data) in steps {
            self.send(id, &capsule(digests, &sqe, data));
            match self.replies(id)[..] {
                [Reply::Done(cqe)] if cqe.outcome().is_success() => {
                    if sqe.cid.get() == 0 {
                        cntlid = u16::try_from(cqe.dw0.get() & 0xffff).unwrap();
                    }
                }
                ref other => panic!("{other:02x?}"),
            }
        }
        (id, cntlid)
    }

    /// Connects I/O queue `qid` of a controller.
    pub(crate) fn io(&mut self, cntlid: u16, qid: u16) -> Id {
        self.io_of(&connect_data(cntlid), qid, PLAIN)
    }

    /// Like the function before, for another Connect or with digests.
    pub(crate) fn io_of(&mut self, data: &ConnectData, qid: u16, digests: Digests) -> Id {
        let id = self.initialized(digests);
        self.send(id, &capsule(digests, &connect_sqe(qid, 128), data.as_bytes()));
        match self.replies(id)[..] {
            [Reply::Done(cqe)] if cqe.outcome().is_success() => id,
            ref other => panic!("{other:02x?}"),
        }
    }

    /// Returns an Admin queue and an I/O queue.
    pub(crate) fn attached(&mut self) -> (Id, Id) {
        let (admin, cntlid) = self.admin();
        (admin, self.io(cntlid, 1))
    }

    /// Attaches another host, which must not be affected.
    pub(crate) fn other_host(&mut self) -> (Id, Id) {
        let data = |cntlid| ConnectData::emit([3; 16], cntlid, DISK, "nqn.bystander").unwrap();
        let (admin, cntlid) = self.admin_of(&data(CNTLID_DYNAMIC), PLAIN);
        (admin, self.io_of(&data(cntlid), 1, PLAIN))
    }

    /// Checks that the other host is still served.
    pub(crate) fn assert_still_served(&mut self, other_host: (Id, Id)) {
        let (admin, io) = other_host;
        assert_eq!(self.fetch(io, &read(100, 2).with_cid(7)), self.disk[100 * 512..102 * 512]);
        let alive = AdminCommand::KeepAlive.emit().with_data(Sgl::transport(0));
        assert_eq!(self.status(admin, &alive), Status::SUCCESS);
    }

    /// Checks that the target closed the connection with C2HTermReq as its last PDU.
    pub(crate) fn terminated(&mut self, id: Id, fes: u16, fei: u32) {
        let replies = self.replies(id);
        match replies.last() {
            Some(Reply::Terminated { fes: got, fei: at, .. }) => {
                assert_eq!((*got, *at), (fes, fei), "FES and FEI")
            }
            other => panic!("C2HTermReq {fes} {fei} was due: {other:02x?}"),
        }
        assert_eq!(self.conn(id).closed, Some(export::Reason::Violation));
    }
}

/// Returns the data of a successful command.
pub(crate) fn data_of(replies: &[Reply], wanted: u16) -> Vec<u8> {
    let mut data = Vec::new();
    let mut done = false;
    for reply in replies {
        match reply {
            Reply::Data { cid, offset, bytes, success, .. } if *cid == wanted => {
                assert_eq!(*offset as usize, data.len(), "data comes in order");
                data.extend(bytes);
                done |= success;
            }
            Reply::Done(cqe) if cqe.cid.get() == wanted => {
                assert_eq!(cqe.outcome(), Status::SUCCESS);
                done = true;
            }
            _ => {}
        }
    }
    assert!(done, "command {wanted} was answered: {replies:02x?}");
    data
}
