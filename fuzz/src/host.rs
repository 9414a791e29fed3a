//! The NVMe host with a hostile controller: valid and invalid responses, data, R2Ts, and arbitrary
//! bytes. Checks that every command completes at most once and returns its buffer, that what is
//! sent is well-formed, and that nothing follows the close.

use std::collections::BTreeSet;
use std::rc::Rc;

use export::{Buffer, Pool};
use nvme::command::IoCommand;
use nvme::host::{Options, Payload, Queue, Step};
use nvme::status::Status;
use nvme::tcp::pdu::{IcResp, kind};
use nvme::tcp::{Deframer, Pdu, Piece, Side};
use nvme::wire::Cqe;
use zerocopy::IntoBytes;

use crate::input::Input;
use crate::raw_host::{BOTH, Digests, PLAIN, connect_data, data_fields, frame};

struct Harness<'a> {
    input: Input<'a>,
    queue: Queue,
    pool: Pool,
    digests: Digests,
    pending: Vec<u8>,
    sent: Vec<u8>,
    reader: Deframer,
    closed: bool,
    /// Commands in flight: tag and buffer length.
    waiting: BTreeSet<(u32, usize)>,
    /// Command identifiers used by the host, newest last.
    cids: Vec<u16>,
    next: u32,
}

/// Runs the target on `data`.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let settings = input.byte();
    let digests = if settings & 1 == 0 { PLAIN } else { BOTH };
    let options = Options {
        header_digest: digests.header,
        data_digest: digests.data,
        flow_control: settings & 2 == 0,
        ..Options::io(1, u16::from(settings >> 4) + 2, 8192)
    };
    let mut harness = Harness {
        input,
        queue: Queue::new(options, connect_data(1)),
        pool: Pool::new(8 << 20),
        digests,
        pending: Vec::new(),
        sent: Vec::new(),
        reader: Deframer::new(Side::Target, 16384),
        closed: false,
        waiting: BTreeSet::new(),
        cids: Vec::new(),
        next: 0,
    };
    harness.prepare(settings & 4 == 0);
    for _ in 0..400 {
        if harness.input.is_over() || harness.closed {
            break;
        }
        harness.step();
    }
}

impl Harness<'_> {
    /// Accepts the connection and connects the queue, unless the input does that.
    fn prepare(&mut self, connect: bool) {
        self.drain();
        if connect {
            let digests = u8::from(self.digests.header) | u8::from(self.digests.data) << 1;
            self.come(IcResp::new(0, digests, 131_072).as_bytes());
            self.reader.set_digests(self.digests.header, self.digests.data);
            self.look();
            self.answer(Cqe::new(0, Status::SUCCESS).with_sqhd(1).with_dw0(1));
        }
    }

    fn step(&mut self) {
        match self.input.byte() % 8 {
            0 => {
                let len = self.input.byte();
                let bytes = self.input.take(len.into()).to_vec();
                self.come(&bytes);
            }
            1 | 2 => self.submit(),
            3 => self.complete(),
            4 | 5 => self.data(),
            6 => self.ask(),
            _ => self.land(),
        }
    }

    fn submit(&mut self) {
        let (lba, kind, blocks) =
            (self.input.byte(), self.input.byte(), self.input.byte() % 64 + 1);
        let len = usize::from(blocks) * 512;
        let command = |write| match write {
            true => IoCommand::Write {
                nsid: 1,
                slba: lba.into(),
                nlb: blocks.into(),
                fua: false,
                limited_retry: false,
            },
            false => IoCommand::Read {
                nsid: 1,
                slba: lba.into(),
                nlb: blocks.into(),
                fua: false,
                limited_retry: false,
            },
        };
        let Some(buffer) = self.pool.open().take(len) else { return };
        let (command, payload, held) = match kind % 4 {
            0 => (command(false), Payload::Receive(buffer), len),
            1 => (command(true), Payload::Send(Rc::new(buffer)), 0),
            2 => (command(true), Payload::SendByR2t(Rc::new(buffer)), 0),
            _ => (IoCommand::Flush { nsid: 1 }, Payload::None, 0),
        };
        if let Ok(cid) = self.queue.submit(command.emit(), payload, self.next) {
            self.waiting.insert((self.next, held));
            self.cids.push(cid);
            self.next += 1;
        }
        self.drain();
    }

    /// Chooses a command identifier, mostly one in use.
    fn cid(&mut self) -> u16 {
        match self.cids.len() {
            0 => self.input.word(),
            count => match self.input.byte() {
                0 => self.input.word(),
                other => self.cids[usize::from(other) % count],
            },
        }
    }

    fn complete(&mut self) {
        let status = if self.input.bit() { Status::SUCCESS } else { Status::INVALID_FIELD.dnr() };
        let cqe = Cqe::new(self.cid(), status).with_sqhd(u16::from(self.input.byte() % 20));
        self.answer(cqe);
    }

    fn answer(&mut self, cqe: Cqe) {
        let pdu = frame(self.digests, kind::CAPSULE_RESP, 0, cqe.as_bytes(), &[]);
        self.come(&pdu);
    }

    fn data(&mut self) {
        let (cid, flags) = (self.cid(), self.input.byte() & 0b1100);
        let offset = u32::from(self.input.byte() / 64) * 512;
        let len = u32::from(self.input.byte() % 65) * 512;
        let data = vec![1; len as usize];
        let mut pdu =
            frame(self.digests, kind::C2H_DATA, flags, &data_fields(cid, 0, offset, len), &data);
        if self.input.byte() == 1 {
            let place = self.input.below(pdu.len());
            pdu[place] ^= self.input.byte();
        }
        let cut = if self.input.bit() { self.input.below(pdu.len()) } else { pdu.len() };
        self.come(&pdu[..cut]);
        if self.pending.is_empty() && self.input.bit() {
            self.land();
        }
        self.come(&pdu[cut..]);
    }

    fn ask(&mut self) {
        let cid = self.cid();
        let (offset, len) = (u32::from(self.input.byte() / 64) * 512, u32::from(self.input.word()));
        let len = if self.input.bit() { len } else { len / 512 * 512 };
        let fields = data_fields(cid, self.input.word(), offset, len);
        let pdu = frame(self.digests, kind::R2T, 0, &fields, &[]);
        self.come(&pdu);
    }

    fn land(&mut self) {
        if !self.pending.is_empty() || self.closed {
            return;
        }
        let Some(landing) = self.queue.direct_recv() else { return };
        let got = self.input.below(landing.end - landing.start + 1);
        self.queue.direct_received(landing, got);
        self.drain();
    }

    fn come(&mut self, bytes: &[u8]) {
        if self.closed {
            return;
        }
        self.pending.extend_from_slice(bytes);
        let taken = self.queue.receive(&self.pending);
        assert!(taken <= self.pending.len());
        self.pending.drain(..taken);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(step) = self.queue.poll() {
            assert!(!self.closed, "step after the close");
            match step {
                Step::Send(segment) => {
                    segment.parts().iter().for_each(|part| self.sent.extend_from_slice(part));
                }
                Step::Completed(done) => {
                    let held = done.buffer.as_ref().map_or(0, Buffer::len);
                    let known = self.waiting.remove(&(done.tag, held));
                    assert!(known, "completed twice or with another buffer: {done:?}");
                }
                Step::Close(_) => self.closed = true,
                Step::Connected(_) | Step::Refused(..) => {}
            }
        }
        self.look();
    }

    /// Checks that everything sent is well-formed. Before digests are negotiated that is only the
    /// first PDU.
    fn look(&mut self) {
        let mut at = 0;
        while at < self.sent.len() || self.reader.at_end() {
            match self.reader.next(&self.sent[at..]).expect("the host sent a valid PDU") {
                Piece::Incomplete => break,
                Piece::Header(n, Pdu::IcReq(request)) => {
                    at += n;
                    assert_eq!(request.dgst & 1 != 0, self.digests.header);
                    self.reader.set_digests(self.digests.header, self.digests.data);
                }
                Piece::Header(n, _) | Piece::Padding(n) => at += n,
                Piece::Payload(data) => at += data.len(),
                Piece::PayloadEnd(n, right) => {
                    assert!(right);
                    at += n;
                }
            }
        }
        self.sent.drain(..at);
        assert!(self.sent.is_empty(), "incomplete PDU sent");
    }
}
