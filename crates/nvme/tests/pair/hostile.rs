//! The host against a controller that violates the protocol: it discloses no memory, accepts no
//! excess data, reports the violation and closes.

use std::rc::Rc;

use export::{Account, Body, Buffer, Pool};
use nvme::host::{CloseReason, Completion, Options, Payload, Queue, Step};
use nvme::status::Status;
use nvme::tcp::{Framer, Violation, pdu};
use nvme::wire::completion::Cqe;
use nvme::wire::fabrics::ConnectResponse;
use zerocopy::IntoBytes;

use crate::client::{AttachParams, read, write};

/// A controller that sends what the test tells it.
struct Rogue {
    host: Queue,
    framer: Framer,
    account: Account,
    sent: Vec<u8>,
    done: Vec<Completion>,
    end: Option<CloseReason>,
}

impl Rogue {
    /// A host that has connected.
    fn new(options: Options) -> Self {
        let mut rogue = Self::before_ic_resp(options.clone());
        let digests = u8::from(options.header_digest) | u8::from(options.data_digest) << 1;
        rogue.send_bytes(pdu::IcResp::new(0, digests, 65_536).as_bytes());
        rogue.framer.set_layout(options.header_digest, options.data_digest, 0);
        let dw0 = ConnectResponse::new(7).emit();
        rogue.answer(Cqe::new(0, Status::SUCCESS).with_dw0(dw0).with_sqhd(1));
        assert_eq!(rogue.end, None);
        rogue
    }

    /// A host that has sent ICReq.
    fn before_ic_resp(options: Options) -> Self {
        let host = Queue::new(options, AttachParams::default().data(7));
        let (framer, account) = (Framer::default(), Pool::new(1 << 24).open());
        let mut rogue =
            Self { host, framer, account, sent: Vec::new(), done: Vec::new(), end: None };
        rogue.drain();
        rogue
    }

    fn plain() -> Self {
        Self::new(Options::io(1, 16, 16_384))
    }

    fn drain(&mut self) {
        while let Some(step) = self.host.poll() {
            match step {
                Step::Send(segment) => {
                    segment.parts().iter().for_each(|part| self.sent.extend_from_slice(part))
                }
                Step::Completed(done) => self.done.push(done),
                Step::Close(end) => assert_eq!(self.end.replace(end), None),
                Step::Connected(_) | Step::Refused(..) => {}
            }
        }
    }

    fn send_bytes(&mut self, bytes: &[u8]) {
        self.host.receive(bytes);
        self.drain();
    }

    fn answer(&mut self, cqe: Cqe) {
        let segment = self.framer.response(cqe);
        self.send_bytes(&segment.parts().concat());
    }

    fn send_r2t(&mut self, cid: u16, offset: u32, len: u32) {
        let segment = self.framer.r2t(cid, 0x55, offset, len);
        self.send_bytes(&segment.parts().concat());
    }

    fn data(&mut self, cid: u16, start: usize, len: usize, flags: u8) {
        let bytes = self.data_bytes(cid, start, len, flags);
        self.send_bytes(&bytes);
    }

    fn data_bytes(&mut self, cid: u16, start: usize, len: usize, flags: u8) -> Vec<u8> {
        let mut bytes = Vec::new();
        let body = Body::Shared(vec![0xdd; start + len].into());
        let mut send = |segment: export::Segment| bytes.extend(segment.parts().concat());
        self.framer.data(pdu::kind::C2H_DATA, flags, cid, 0, body, start, len, &mut send);
        bytes
    }

    fn read(&mut self, nlb: u32) -> u16 {
        let buffer = self.account.take(nlb as usize * 512).unwrap();
        self.submit(read(0, nlb), Payload::Receive(buffer))
    }

    fn write(&mut self, nlb: u32) -> u16 {
        let data = Rc::new(self.secret(nlb as usize * 512));
        self.submit(write(0, nlb), Payload::SendByR2t(data))
    }

    fn secret(&self, len: usize) -> Buffer {
        let mut buffer = self.account.take(len).unwrap();
        buffer.bytes_mut().fill(0x5e);
        buffer
    }

    fn submit(&mut self, sqe: nvme::wire::Sqe, payload: Payload) -> u16 {
        let cid = self.host.submit(sqe, payload, 1).unwrap();
        self.drain();
        self.sent.clear();
        cid
    }

    /// Checks that the host reported this violation, sent H2CTermReq, and nothing else.
    fn assert_violated(&self, violation: Violation) {
        assert_eq!(self.end, Some(CloseReason::Violation(violation)));
        assert_eq!(self.sent[0], pdu::kind::H2C_TERM_REQ, "{violation:?}");
        let plen = u32::from_le_bytes(self.sent[4..8].try_into().unwrap());
        assert_eq!(self.sent.len(), plen as usize, "{violation:?}");
        assert_eq!(self.sent[8..10], violation.fes_fei().0.to_le_bytes());
    }
}

const LAST: u8 = pdu::flag::LAST_PDU;
const SUCCESS: u8 = pdu::flag::SUCCESS;

#[test]
fn invalid_ic_resp_is_refused() {
    let plain = Options::io(1, 16, 0);
    let digests = Options { header_digest: true, ..plain.clone() };
    let mut pfv = pdu::IcResp::new(0, 0, 65_536);
    pfv.pfv.set(1);
    for (options, response, violation) in [
        (&plain, pfv, Violation::PduFormatVersionUnknown),
        (&plain, pdu::IcResp::new(32, 0, 65_536), Violation::CpdaTooLarge),
        (&plain, pdu::IcResp::new(0, 1, 65_536), Violation::DigestsNotAsAsked),
        (&digests, pdu::IcResp::new(0, 0, 65_536), Violation::DigestsNotAsAsked),
        (&plain, pdu::IcResp::new(0, 0, 4092), Violation::MaxH2cDataWrong),
        (&plain, pdu::IcResp::new(0, 0, 65_537), Violation::MaxH2cDataWrong),
    ] {
        let mut rogue = Rogue::before_ic_resp(options.clone());
        rogue.sent.clear();
        rogue.send_bytes(response.as_bytes());
        rogue.assert_violated(violation);
    }
}

#[test]
fn ic_resp_must_be_first_and_only_once() {
    let mut rogue = Rogue::before_ic_resp(Options::admin());
    rogue.sent.clear();
    rogue.answer(Cqe::new(0, Status::SUCCESS));
    rogue.assert_violated(Violation::IcRespMissing);
    let mut rogue = Rogue::plain();
    rogue.sent.clear();
    rogue.send_bytes(pdu::IcResp::new(0, 0, 65_536).as_bytes());
    rogue.assert_violated(Violation::IcRespRepeated);
}

#[test]
fn unexpected_r2t_discloses_nothing() {
    let mut rogue = Rogue::plain();
    let cid = rogue.read(8);
    rogue.send_r2t(cid, 0, 4096);
    rogue.assert_violated(Violation::R2tUnexpected);

    // In-capsule data is not sent again.
    let mut rogue = Rogue::plain();
    let secret = Rc::new(rogue.secret(512));
    let cid = rogue.submit(write(0, 1), Payload::Send(secret));
    rogue.send_r2t(cid, 0, 512);
    rogue.assert_violated(Violation::R2tUnexpected);
}

#[test]
fn r2t_must_be_in_order_and_within_the_buffer() {
    for (offset, len, violation) in [
        (0, 0, Violation::R2tLengthZero),
        (4, 4, Violation::R2tOffsetNotExpected),
        (0, 4097, Violation::R2tBeyondTransfer),
        (0, u32::MAX, Violation::R2tBeyondTransfer),
        (u32::MAX, 2, Violation::R2tOffsetNotExpected),
    ] {
        let mut rogue = Rogue::plain();
        let cid = rogue.write(8);
        rogue.send_r2t(cid, offset, len);
        rogue.assert_violated(violation);
    }
    let mut rogue = Rogue::plain();
    let cid = rogue.write(8);
    rogue.send_r2t(cid, 0, 4096);
    rogue.sent.clear();
    rogue.send_r2t(cid, 0, 4096);
    rogue.assert_violated(Violation::R2tOffsetNotExpected);
}

#[test]
fn h2c_data_is_split_at_maxh2cdata() {
    let mut rogue = Rogue::plain();
    let cid = rogue.write(512);
    rogue.send_r2t(cid, 0, 200_000);
    rogue.send_r2t(cid, 200_000, 62_144);
    let mut lengths = Vec::new();
    let mut rest = &rogue.sent[..];
    while !rest.is_empty() {
        let field = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
        lengths.push((field(12), field(16), rest[1] & LAST != 0));
        rest = &rest[field(4) as usize..];
    }
    let expected = [
        (0, 65_536, false),
        (65_536, 65_536, false),
        (131_072, 65_536, false),
        (196_608, 3392, true),
        (200_000, 62_144, true),
    ];
    assert_eq!(lengths, expected);
    rogue.answer(Cqe::new(cid, Status::SUCCESS).with_sqhd(2));
    assert_eq!(rogue.done.len(), 1);
}

#[test]
fn c2h_data_must_be_in_order_and_fit() {
    for (start, len, flags, violation) in [
        (512, 512, 0, Violation::DataOffsetNotExpected),
        (0, 4097, LAST, Violation::DataBeyondTransfer),
        (0, 1 << 20, LAST, Violation::DataBeyondTransfer),
        (0, 4096, SUCCESS, Violation::SuccessWithoutLast),
        (0, 4096, 0, Violation::LastFlagMissing),
        (0, 512, LAST | SUCCESS, Violation::DataMissing),
    ] {
        let mut rogue = Rogue::plain();
        let cid = rogue.read(8);
        rogue.data(cid, start, len, flags);
        rogue.assert_violated(violation);
    }
    let mut rogue = Rogue::plain();
    let cid = rogue.write(8);
    rogue.data(cid, 0, 4096, LAST);
    rogue.assert_violated(Violation::DataUnsolicited);
}

#[test]
fn data_after_the_last_is_unsolicited() {
    let mut rogue = Rogue::plain();
    let cid = rogue.read(8);
    rogue.data(cid, 0, 1024, LAST);
    rogue.data(cid, 1024, 1024, LAST);
    rogue.assert_violated(Violation::DataUnsolicited);
}

#[test]
fn success_with_missing_data_is_a_violation() {
    for len in [0, 512] {
        let mut rogue = Rogue::plain();
        let cid = rogue.read(8);
        if len != 0 {
            rogue.data(cid, 0, len, LAST);
        }
        rogue.answer(Cqe::new(cid, Status::SUCCESS).with_sqhd(2));
        rogue.assert_violated(Violation::DataMissing);
        assert!(rogue.done.is_empty());
    }
}

#[test]
fn failure_is_accepted_before_all_data() {
    let mut rogue = Rogue::plain();
    let cid = rogue.read(8);
    rogue.data(cid, 0, 512, 0);
    rogue.answer(Cqe::new(cid, Status::UNRECOVERED_READ_ERROR).with_sqhd(2));
    assert_eq!(rogue.end, None);
    assert_eq!(rogue.done[0].status, Status::UNRECOVERED_READ_ERROR);
}

#[test]
fn response_to_an_unknown_command_is_a_violation() {
    let mut rogue = Rogue::plain();
    let cid = rogue.read(1);
    rogue.answer(Cqe::new(cid ^ 1, Status::SUCCESS));
    rogue.assert_violated(Violation::CommandUnknown);

    let mut rogue = Rogue::plain();
    let cid = rogue.read(1);
    rogue.data(cid, 0, 512, LAST | SUCCESS);
    assert_eq!(rogue.done.len(), 1);
    rogue.answer(Cqe::new(cid, Status::SUCCESS));
    rogue.assert_violated(Violation::CommandUnknown);
    assert_eq!(rogue.done.len(), 1);

    let mut rogue = Rogue::plain();
    let cid = rogue.read(1);
    rogue.data(cid.wrapping_add(0x7000), 0, 512, LAST);
    rogue.assert_violated(Violation::CommandUnknown);
    let mut rogue = Rogue::plain();
    rogue.sent.clear();
    rogue.send_r2t(3, 0, 512);
    rogue.assert_violated(Violation::CommandUnknown);
}

#[test]
fn invalid_sqhd_is_a_violation() {
    for head in [0, 3, 16, u16::MAX] {
        let mut rogue = Rogue::plain();
        let cid = rogue.write(1);
        rogue.answer(Cqe::new(cid, Status::SUCCESS).with_sqhd(head));
        rogue.assert_violated(Violation::HeadOutOfRange);
    }
}

#[test]
fn sqhd_is_ignored_without_flow_control() {
    let mut rogue = Rogue::new(Options { flow_control: false, ..Options::io(1, 16, 16_384) });
    let cid = rogue.write(1);
    rogue.answer(Cqe::new(cid, Status::SUCCESS).with_sqhd(u16::MAX));
    assert_eq!((rogue.end, rogue.done.len()), (None, 1));
}

#[test]
fn digest_errors_end_the_connection_or_the_command() {
    let digests = Options { header_digest: true, data_digest: true, ..Options::io(1, 16, 0) };
    let mut rogue = Rogue::new(digests.clone());
    let cid = rogue.read(8);
    let mut bytes = rogue.data_bytes(cid, 0, 4096, LAST | SUCCESS);
    bytes[100] ^= 1;
    rogue.send_bytes(&bytes);
    assert_eq!(rogue.done.remove(0).status, Status::TRANSIENT_TRANSPORT_ERROR);
    assert_eq!(rogue.end, None);
    let cid = rogue.read(8);
    let mut bytes = rogue.data_bytes(cid, 0, 4096, LAST);
    bytes[10] ^= 1;
    rogue.send_bytes(&bytes);
    rogue.assert_violated(Violation::HeaderDigestWrong);
}

#[test]
fn c2h_term_req_closes_the_connection() {
    let mut rogue = Rogue::plain();
    rogue.sent.clear();
    let term = Framer::terminate(pdu::kind::C2H_TERM_REQ, 1, 4, &[0; 24]);
    rogue.send_bytes(&term.parts().concat());
    assert_eq!(rogue.end, Some(CloseReason::Terminated { fes: 1, fei: 4 }));
    assert!(rogue.sent.is_empty());
    // Nothing further is received.
    rogue.answer(Cqe::new(0, Status::SUCCESS));
    assert!(rogue.sent.is_empty() && rogue.done.is_empty());
}

#[test]
fn host_pdus_from_a_controller_are_violations() {
    for kind in
        [pdu::kind::IC_REQ, pdu::kind::CAPSULE_CMD, pdu::kind::H2C_DATA, pdu::kind::H2C_TERM_REQ]
    {
        let mut rogue = Rogue::plain();
        rogue.sent.clear();
        let mut bytes = [0; 128];
        (bytes[0], bytes[2], bytes[4]) = (kind, 24, 24);
        rogue.send_bytes(&bytes);
        rogue.assert_violated(Violation::PduTypeWrongDirection);
    }
}

#[test]
fn refused_connect_is_reported() {
    let mut rogue = Rogue::before_ic_resp(Options::admin());
    rogue.send_bytes(pdu::IcResp::new(0, 0, 65_536).as_bytes());
    let refusal =
        rogue.framer.response(Cqe::new(0, Status::CONNECT_INVALID_HOST).with_dw0(9).with_sqhd(1));
    rogue.host.receive(&refusal.parts().concat());
    let refused = std::iter::from_fn(|| rogue.host.poll())
        .any(|step| matches!(step, Step::Refused(Status::CONNECT_INVALID_HOST, 9)));
    assert!(refused);
    assert!(rogue.host.submit(read(0, 1), Payload::None, 0).is_err());
}

#[test]
fn random_bytes_never_panic() {
    let mut seed = 1_u32;
    for round in 0..3000 {
        let mut rogue = Rogue::plain();
        let cids = [rogue.read(8), rogue.write(8), rogue.read(64)];
        let cid = cids[round % 3];
        let mut bytes = match round % 4 {
            0 => rogue.data_bytes(cid, 0, 4096, LAST),
            1 => rogue.framer.r2t(cid, 1, 0, 4096).parts().concat(),
            2 => {
                rogue.framer.response(Cqe::new(cid, Status::SUCCESS).with_sqhd(3)).parts().concat()
            }
            _ => pdu::IcResp::new(0, 0, 65_536).as_bytes().to_vec(),
        };
        for _ in 0..=round % 3 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let at = (seed >> 16) as usize % bytes.len().min(128);
            bytes[at] = (seed >> 8) as u8;
        }
        let mut kept = Vec::new();
        for piece in bytes.chunks(1 + round % 50) {
            kept.extend_from_slice(piece);
            let taken = rogue.host.receive(&kept);
            kept.drain(..taken);
            rogue.drain();
        }
    }
}
