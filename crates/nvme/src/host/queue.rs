//! The host side of one connection. PDUs of the controller are checked as strictly as the target
//! checks those of hosts.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use export::{Body, Buffer, DirectRecv, Segment};
use zerocopy::IntoBytes;

use super::auth::Proof;
use super::connect::Options;
use super::slots::{Command, Data, Incoming, Slots};
use super::{Done, End, NotNow, Payload, Step};
use crate::auth::Credentials;
use crate::status::Status;
use crate::tcp::{Deframer, Framer, Pdu, Piece, Side, Violation, pdu};
use crate::wire::fabrics::{ConnectData, ConnectResponse};
use crate::wire::{Cqe, Sgl, Sqe};

/// The host side of one connection.
#[derive(Debug)]
pub struct Queue {
    options: Options,
    pub(super) data: Box<ConnectData>,
    phase: Phase,
    deframer: Deframer,
    pub(super) framer: Framer,
    maxh2cdata: u32,
    pub(super) out: VecDeque<Step>,
    slots: Slots,
    ring: Ring,
    /// Command that receives the payload of the current PDU, and whether the PDU completes it.
    coming: Option<(u16, bool)>,
    /// Authentication state, if there are credentials.
    pub(super) proof: Option<Box<Proof>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Expects ICResp.
    Opening,
    /// Expects the response to Connect.
    Connecting,
    Live,
    Closed,
}

/// State of the submission queue.
#[derive(Debug)]
struct Ring {
    entries: u16,
    /// Entries after the last reported head.
    untaken: u16,
    /// The last reported head.
    head: u16,
    flow_control: bool,
    under_way: u16,
}

impl Ring {
    fn has_room(&self) -> bool {
        let full = self.entries.saturating_sub(1);
        self.under_way < full && (!self.flow_control || self.untaken < full)
    }

    fn advance(&mut self) {
        self.under_way = self.under_way.saturating_add(1);
        self.untaken = self.untaken.saturating_add(1);
    }

    /// Processes SQHD (NVMe Base 2.0 §3.3.3.2).
    fn taken(&mut self, head: u16) -> Result<(), Violation> {
        if !self.flow_control {
            return Ok(());
        }
        let forward = u32::from(head) + u32::from(self.entries) - u32::from(self.head);
        let taken = u16::try_from(forward % u32::from(self.entries)).unwrap_or(u16::MAX);
        if head >= self.entries || taken > self.untaken {
            return Err(Violation::HeadOutOfRange);
        }
        (self.head, self.untaken) = (head, self.untaken - taken);
        Ok(())
    }
}

/// Minimum rest of a payload in bytes to receive it directly into its buffer.
const LANDING: u32 = 8192;

/// Valid queue sizes.
const ENTRIES: std::ops::RangeInclusive<u16> = 2..=4096;

impl Queue {
    /// Creates the session of a new TCP connection. It initializes the connection and sends Connect,
    /// until [`Step::Connected`] or [`Step::Refused`].
    #[must_use]
    pub fn new(options: Options, data: ConnectData) -> Self {
        let entries = options.entries.clamp(*ENTRIES.start(), *ENTRIES.end());
        let options = Options { entries, ..options };
        let flow_control = options.flow_control;
        let mut queue = Self {
            phase: Phase::Opening,
            deframer: Deframer::new(Side::Host, 0),
            framer: Framer::default(),
            maxh2cdata: 0,
            out: VecDeque::new(),
            slots: Slots::new(entries),
            ring: Ring { entries, untaken: 0, head: 0, flow_control, under_way: 0 },
            coming: None,
            proof: None,
            data: Box::new(data),
            options,
        };
        queue.send(Framer::plain(queue.options.request().as_bytes()));
        queue
    }

    /// Like [`Queue::new`], with credentials for authentication. A queue without credentials is of no
    /// use if [`ConnectResponse::authentication_required`] is set.
    #[must_use]
    pub fn with_credentials(
        options: Options,
        data: ConnectData,
        credentials: Arc<Credentials>,
    ) -> Self {
        let proof = Some(Box::new(Proof::new(credentials)));
        Self { proof, ..Self::new(options, data) }
    }

    // ---- commands

    /// Submits a command. Sets its command identifier and data pointer; `tag` is returned in
    /// [`Completion`]. Returns the command identifier, for Abort.
    ///
    /// # Errors
    /// Returns the payload if the queue is full or not connected.
    pub fn submit(&mut self, sqe: Sqe, payload: Payload, tag: u32) -> Result<u16, NotNow> {
        if self.phase != Phase::Live {
            return Err(NotNow::NotConnected(payload));
        }
        if !self.ring.has_room() {
            return Err(NotNow::Full(payload));
        }
        Ok(self.send_command(sqe, payload, tag))
    }

    /// Returns whether a command can be submitted now.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.phase == Phase::Live && self.ring.has_room()
    }

    /// Returns the number of commands in flight.
    #[must_use]
    pub fn under_way(&self) -> u16 {
        self.ring.under_way
    }

    fn send_command(&mut self, sqe: Sqe, payload: Payload, tag: u32) -> u16 {
        match payload {
            Payload::None => self.enter(sqe, Data::None, tag),
            Payload::Receive(buffer) => {
                let want = length(&buffer);
                let incoming = Incoming { buffer: Some(buffer), ..Incoming::of(want) };
                self.enter(sqe.with_data(Sgl::transport(want)), Data::Incoming(incoming), tag)
            }
            Payload::Send(buffer) if length(&buffer) <= self.options.capsule_data => {
                self.send_whole(sqe, buffer, tag)
            }
            Payload::Send(buffer) | Payload::Offer(buffer) => {
                let sqe = sqe.with_data(Sgl::transport(length(&buffer)));
                self.enter(sqe, Data::Offered { buffer, asked: 0 }, tag)
            }
        }
    }

    /// Sends a command with in-capsule data.
    fn send_whole(&mut self, sqe: Sqe, buffer: Rc<Buffer>, tag: u32) -> u16 {
        let (sqe, len) = (sqe.with_data(Sgl::in_capsule(0, length(&buffer))), buffer.len());
        let cid = self.claim(Data::None, tag);
        let out = &mut self.out;
        let mut send = |segment| out.push_back(Step::Send(segment));
        self.framer.command_with(sqe.with_cid(cid), Body::Part(buffer), len, &mut send);
        cid
    }

    /// Sends a command without in-capsule data.
    pub(super) fn enter(&mut self, sqe: Sqe, data: Data, tag: u32) -> u16 {
        let cid = self.claim(data, tag);
        let out = &mut self.out;
        self.framer.command(sqe.with_cid(cid), &mut |segment| out.push_back(Step::Send(segment)));
        cid
    }

    /// Allocates a slot. There are as many as entries, and [`SubmissionQueue`] keeps one free.
    pub(super) fn claim(&mut self, data: Data, tag: u32) -> u16 {
        self.ring.advance();
        self.slots.claim(Command { tag, data }).unwrap_or_default()
    }

    // ---- what comes in

    /// Processes received bytes. Returns how many were consumed; the rest is an incomplete header, to
    /// be passed again together with further bytes.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        while self.phase != Phase::Closed {
            let left = bytes.get(taken..).unwrap_or_default();
            if left.is_empty() && !self.deframer.at_end() {
                break;
            }
            match self.deframer.next(left).and_then(|piece| self.piece(piece)) {
                Ok(Some(n)) => taken += n,
                Ok(None) => break,
                Err(violation) => self.violated(violation, left),
            }
        }
        if self.phase == Phase::Closed { bytes.len() } else { taken }
    }

    /// Returns the next output, or `None`.
    pub fn poll(&mut self) -> Option<Step> {
        self.out.pop_front()
    }

    fn piece(&mut self, piece: Piece<'_>) -> Result<Option<usize>, Violation> {
        match piece {
            Piece::Short => Ok(None),
            Piece::Header(n, pdu) => self.pdu(pdu).map(|()| Some(n)),
            Piece::Padding(n) => Ok(Some(n)),
            Piece::Payload(data) => {
                self.payload(data);
                Ok(Some(data.len()))
            }
            Piece::End(n, undamaged) => self.payload_ended(undamaged).map(|()| Some(n)),
        }
    }

    fn pdu(&mut self, pdu: Pdu) -> Result<(), Violation> {
        match (self.phase, pdu) {
            (_, Pdu::Term { fes, fei }) => {
                self.close(End::Terminated { fes, fei });
                Ok(())
            }
            (Phase::Opening, Pdu::IcResp(response)) => self.opened(&response),
            (Phase::Opening, _) => Err(Violation::IcRespMissing),
            (_, Pdu::IcResp(_)) => Err(Violation::IcRespRepeated),
            (_, Pdu::Response(cqe)) => self.response(cqe),
            (_, Pdu::Data { cccid, offset, len, last, success, .. }) => {
                self.data(cccid, offset, len, last, success)
            }
            (_, Pdu::R2t { cccid, ttag, offset, len }) => self.ready(cccid, ttag, offset, len),
            _ => Err(Violation::PduTypeWrongDirection),
        }
    }

    fn opened(&mut self, response: &pdu::IcResp) -> Result<(), Violation> {
        self.options.check(response)?;
        let (header, data) = (self.options.header_digest, self.options.data_digest);
        self.framer.set(header, data, response.cpda);
        self.deframer.set_digests(header, data);
        self.maxh2cdata = response.maxh2cdata.get();
        self.phase = Phase::Connecting;
        self.connect();
        Ok(())
    }

    fn connect(&mut self) {
        let cid = self.claim(Data::Connect, 0);
        let (sqe, data) = (self.options.connect().with_cid(cid), self.data.as_bytes());
        let out = &mut self.out;
        let mut send = |segment| out.push_back(Step::Send(segment));
        self.framer.command_with(sqe, Body::Shared(Arc::from(data)), data.len(), &mut send);
    }

    /// Handles a response capsule.
    fn response(&mut self, cqe: Cqe) -> Result<(), Violation> {
        let cid = cqe.cid.get();
        let status = cqe.outcome();
        let command = self.slots.find(cid)?;
        match &command.data {
            // After success the data must be complete.
            Data::Incoming(incoming) if status.is_success() && incoming.got != incoming.want => {
                return Err(Violation::DataMissing);
            }
            _ => {}
        }
        self.ring.taken(cqe.sqhd.get())?;
        self.end(cid, status, cqe.result())
    }

    fn end(&mut self, cid: u16, status: Status, result: u64) -> Result<(), Violation> {
        let Command { tag, data } = self.slots.release(cid)?;
        self.ring.under_way = self.ring.under_way.saturating_sub(1);
        let step = match data {
            Data::Connect => match self.connected(status, result) {
                Some(step) => step,
                None => return Ok(()),
            },
            Data::Proof => {
                self.message_sent(status);
                return Ok(());
            }
            Data::Incoming(Incoming { buffer, damaged, proof: true, .. }) => {
                let status = if damaged { Status::TRANSIENT_TRANSPORT_ERROR } else { status };
                self.message_fetched(status, buffer.as_ref().map_or(&[], Buffer::bytes));
                return Ok(());
            }
            Data::Incoming(Incoming { buffer, damaged, .. }) => {
                // The command fails, the connection continues (NVMe/TCP 1.0 §3.3.1.1).
                let status = if damaged { Status::TRANSIENT_TRANSPORT_ERROR } else { status };
                Step::Done(Done { tag, status, result, buffer })
            }
            Data::None | Data::Offered { .. } => {
                Step::Done(Done { tag, status, result, buffer: None })
            }
        };
        self.out.push_back(step);
        Ok(())
    }

    /// Handles the response to Connect. Returns `None` if authentication was started.
    fn connected(&mut self, status: Status, result: u64) -> Option<Step> {
        #[allow(clippy::cast_possible_truncation, reason = "dword 0 of two")]
        let dw0 = result as u32;
        if !status.is_success() {
            return Some(Step::Refused(status, dw0));
        }
        let response = ConnectResponse::parse(dw0);
        let asked = response.authentication_required || self.wants_proof();
        if asked && self.prove_to_connect(response) {
            return None;
        }
        self.go_live();
        Some(Step::Connected(response))
    }

    pub(super) fn go_live(&mut self) {
        self.phase = Phase::Live;
    }

    /// Handles the header of a C2HData PDU (NVMe/TCP 1.0 §3.6.2.9): in order, within the buffer.
    fn data(
        &mut self,
        cid: u16,
        offset: u32,
        len: u32,
        last: bool,
        success: bool,
    ) -> Result<(), Violation> {
        let Data::Incoming(incoming) = &mut self.slots.find(cid)?.data else {
            return Err(Violation::DataUnsolicited);
        };
        let left = incoming.want.saturating_sub(incoming.got);
        if incoming.ended {
            return Err(Violation::DataUnsolicited);
        }
        if offset != incoming.got {
            return Err(Violation::DataOffsetNotExpected);
        }
        if len > left {
            return Err(Violation::DataBeyondTransfer);
        }
        if success && !last {
            return Err(Violation::SuccessWithoutLast);
        }
        if len == left && !last {
            return Err(Violation::LastFlagMissing);
        }
        if success && len != left {
            return Err(Violation::DataMissing);
        }
        incoming.ended = last;
        self.coming = Some((cid, success));
        Ok(())
    }

    fn incoming(&mut self) -> Option<&mut Incoming> {
        let (cid, _) = self.coming?;
        match &mut self.slots.find(cid).ok()?.data {
            Data::Incoming(incoming) => Some(incoming),
            _ => None,
        }
    }

    fn payload(&mut self, data: &[u8]) {
        let Some(Incoming { buffer: Some(buffer), got, .. }) = self.incoming() else { return };
        let start = *got as usize;
        if let Some(place) = buffer.bytes_mut().get_mut(start..start + data.len()) {
            place.copy_from_slice(data);
        }
        #[allow(clippy::cast_possible_truncation, reason = "a piece of a transfer")]
        {
            *got += data.len() as u32;
        }
    }

    fn payload_ended(&mut self, undamaged: bool) -> Result<(), Violation> {
        if let Some(incoming) = self.incoming() {
            incoming.damaged |= !undamaged;
        }
        match self.coming.take() {
            Some((cid, true)) => self.end(cid, Status::SUCCESS, 0),
            _ => Ok(()),
        }
    }

    /// Handles R2T (NVMe/TCP 1.0 §3.6.2.10): in order, within the buffer. Any other request would make
    /// the host disclose its memory.
    fn ready(&mut self, cid: u16, ttag: u16, offset: u32, len: u32) -> Result<(), Violation> {
        let Data::Offered { buffer, asked } = &mut self.slots.find(cid)?.data else {
            return Err(Violation::R2tUnexpected);
        };
        if len == 0 {
            return Err(Violation::R2tLengthZero);
        }
        if offset != *asked {
            return Err(Violation::R2tOffsetNotExpected);
        }
        if len > length(buffer).saturating_sub(offset) {
            return Err(Violation::R2tBeyondTransfer);
        }
        *asked += len;
        let buffer = buffer.clone();
        self.transfer(cid, ttag, &buffer, offset, len);
        Ok(())
    }

    /// Sends the requested data, in PDUs of at most MAXH2CDATA.
    fn transfer(&mut self, cid: u16, ttag: u16, buffer: &Rc<Buffer>, offset: u32, len: u32) {
        let (mut start, mut left) = (offset, len);
        while left != 0 {
            let piece = left.min(self.maxh2cdata.max(1));
            left -= piece;
            let flags = if left == 0 { pdu::flag::LAST_PDU } else { 0 };
            let (kind, body) = (pdu::kind::H2C_DATA, Body::Part(buffer.clone()));
            let out = &mut self.out;
            let mut send = |segment| out.push_back(Step::Send(segment));
            let (from, len) = (start as usize, piece as usize);
            self.framer.data(kind, flags, cid, ttag, body, from, len, &mut send);
            start += piece;
        }
    }

    // ---- payload that is received in place

    /// Returns a buffer for the next bytes of the connection, if they are payload. The driver receives
    /// into it, and returns it by [`Queue::direct_received`] before it calls [`Queue::receive`] again.
    pub fn direct_recv(&mut self) -> Option<DirectRecv> {
        let left = self.deframer.payload_left();
        if left < LANDING || !self.deframer.at_payload() || self.phase == Phase::Closed {
            return None;
        }
        let incoming = self.incoming()?;
        let start = incoming.got as usize;
        let buffer = incoming.buffer.take()?;
        Some(DirectRecv { buffer, start, end: start + left as usize, token: 0 })
    }

    /// Takes the buffer back, with `got` bytes received.
    pub fn direct_received(&mut self, landing: DirectRecv, got: usize) {
        let DirectRecv { buffer, start, end, .. } = landing;
        let got = got.min(end - start);
        self.deframer.skip_payload(buffer.bytes().get(start..start + got).unwrap_or_default());
        if let Some(incoming) = self.incoming() {
            #[allow(clippy::cast_possible_truncation, reason = "a piece of a transfer")]
            {
                incoming.got += got as u32;
            }
            incoming.buffer = Some(buffer);
        }
        let _ = self.receive(&[]);
    }

    // ---- what goes out

    fn send(&mut self, segment: Segment) {
        self.out.push_back(Step::Send(segment));
    }

    fn violated(&mut self, violation: Violation, header: &[u8]) {
        let (fes, fei) = violation.fes_fei();
        let header = header.get(..header.len().min(24)).unwrap_or_default();
        self.send(Framer::terminate(pdu::kind::H2C_TERM_REQ, fes, fei, header));
        self.close(End::Violation(violation));
    }

    fn close(&mut self, end: End) {
        self.phase = Phase::Closed;
        self.out.push_back(Step::Close(end));
    }
}

/// Returns the length of a buffer, which is far below 4 GiB.
fn length(buffer: &Buffer) -> u32 {
    u32::try_from(buffer.len()).unwrap_or(u32::MAX)
}
