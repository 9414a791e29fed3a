//! The host side of one connection. PDUs of the controller are checked as strictly as the target
//! checks those of hosts.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use export::{Body, Buffer, DirectRecv, Pool, Segment};
use zerocopy::IntoBytes;

use super::auth::{self, AuthStep, InBandAuth, OnSuccess};
use super::connect::Options;
use super::slots::{Command, Data, Receiving, Slots, length};
use super::submission::SubmissionQueue;
use super::{CloseReason, Completion, Payload, Step, SubmitError};
use crate::auth::Credentials;
use crate::auth::chap::Names;
use crate::auth::psk::Psk;
use crate::status::Status;
use crate::tcp::{Deframer, Framer, Pdu, Piece, Side, Violation, pdu};
use crate::wire::fabrics::{ConnectData, ConnectResponse};
use crate::wire::{Cqe, Sgl, Sqe};

/// The host side of one connection.
#[derive(Debug)]
pub struct Queue {
    options: Options,
    data: Box<ConnectData>,
    state: ConnectionState,
    deframer: Deframer,
    framer: Framer,
    maxh2cdata: u32,
    steps: VecDeque<Step>,
    slots: Slots,
    sq: SubmissionQueue,
    /// Command that receives the payload of the current PDU, and whether the PDU completes it.
    receiving: Option<(u16, bool)>,
    /// Authentication state, if there are credentials.
    auth: Option<Box<InBandAuth>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ConnectionState {
    /// Expects ICResp.
    AwaitingIcResp,
    /// Expects the response to Connect.
    AwaitingConnect,
    Live,
    Closed,
}

/// Minimum rest of a payload in bytes to receive it directly into its buffer.
const MIN_DIRECT_RECV: u32 = 8192;

/// Valid queue sizes.
const VALID_ENTRIES: std::ops::RangeInclusive<u16> = 2..=4096;

impl Queue {
    /// Creates the session of a new TCP connection. It initializes the connection and sends
    /// Connect, until [`Step::Connected`] or [`Step::Refused`].
    #[must_use]
    pub fn new(options: Options, data: ConnectData) -> Self {
        let entries = options.entries.clamp(*VALID_ENTRIES.start(), *VALID_ENTRIES.end());
        let options = Options { entries, ..options };
        let flow_control = options.flow_control;
        let mut queue = Self {
            state: ConnectionState::AwaitingIcResp,
            deframer: Deframer::new(Side::Host, 0),
            framer: Framer::default(),
            maxh2cdata: 0,
            steps: VecDeque::new(),
            slots: Slots::new(entries),
            sq: SubmissionQueue::new(entries, flow_control),
            receiving: None,
            auth: None,
            data: Box::new(data),
            options,
        };
        queue.send(Framer::plain(queue.options.request().as_bytes()));
        queue
    }

    /// Like [`Queue::new`], with credentials for authentication. A queue without credentials is of
    /// no use if [`ConnectResponse::authentication_required`] is set.
    #[must_use]
    pub fn with_credentials(
        options: Options,
        data: ConnectData,
        credentials: Arc<Credentials>,
    ) -> Self {
        let auth = Some(Box::new(InBandAuth::new(credentials)));
        Self { auth, ..Self::new(options, data) }
    }

    // ---- commands

    /// Submits a command. Sets its command identifier and data pointer; `tag` is returned in
    /// [`Completion`]. Returns the command identifier, for Abort.
    ///
    /// # Errors
    /// Returns the payload if the queue is full or not connected.
    pub fn submit(&mut self, sqe: Sqe, payload: Payload, tag: u32) -> Result<u16, SubmitError> {
        if self.state != ConnectionState::Live {
            return Err(SubmitError::NotConnected(payload));
        }
        if !self.sq.can_submit() {
            return Err(SubmitError::Full(payload));
        }
        Ok(self.send_command(sqe, payload, tag))
    }

    /// Returns whether a command can be submitted now.
    #[must_use]
    pub fn can_submit(&self) -> bool {
        self.state == ConnectionState::Live && self.sq.can_submit()
    }

    /// Returns the number of commands in flight.
    #[must_use]
    pub fn in_flight(&self) -> u16 {
        self.sq.in_flight()
    }

    fn send_command(&mut self, sqe: Sqe, payload: Payload, tag: u32) -> u16 {
        match payload {
            Payload::None => self.send_capsule(sqe, Data::None, tag),
            Payload::Receive(buffer) => {
                let sqe = sqe.with_data(Sgl::transport(length(&buffer)));
                self.send_capsule(sqe, Data::Receiving(Receiving::new(buffer)), tag)
            }
            Payload::Send(buffer) if length(&buffer) <= self.options.capsule_data => {
                self.send_in_capsule(sqe, buffer, tag)
            }
            Payload::Send(buffer) | Payload::SendByR2t(buffer) => {
                let sqe = sqe.with_data(Sgl::transport(length(&buffer)));
                self.send_capsule(sqe, Data::AwaitingR2t { buffer, requested: 0 }, tag)
            }
        }
    }

    /// Sends a command with in-capsule data.
    fn send_in_capsule(&mut self, sqe: Sqe, buffer: Rc<Buffer>, tag: u32) -> u16 {
        let (sqe, len) = (sqe.with_data(Sgl::in_capsule(0, length(&buffer))), buffer.len());
        let cid = self.claim(Data::None, tag);
        let steps = &mut self.steps;
        let mut send = |segment| steps.push_back(Step::Send(segment));
        self.framer.command_with(sqe.with_cid(cid), Body::Part(buffer), len, &mut send);
        cid
    }

    /// Sends a command without in-capsule data.
    fn send_capsule(&mut self, sqe: Sqe, data: Data, tag: u32) -> u16 {
        let cid = self.claim(data, tag);
        let steps = &mut self.steps;
        self.framer.command(sqe.with_cid(cid), &mut |segment| steps.push_back(Step::Send(segment)));
        cid
    }

    /// Allocates a slot. There are as many as entries, and [`SubmissionQueue`] keeps one free.
    fn claim(&mut self, data: Data, tag: u32) -> u16 {
        self.sq.advance();
        self.slots.claim(Command::new(tag, data)).unwrap_or_default()
    }

    // ---- what comes in

    /// Processes received bytes. Returns how many were consumed; the rest is an incomplete header,
    /// to be passed again together with further bytes.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let mut consumed = 0;
        while self.state != ConnectionState::Closed {
            let left = bytes.get(consumed..).unwrap_or_default();
            if left.is_empty() && !self.deframer.at_end() {
                break;
            }
            match self.deframer.next(left).and_then(|piece| self.piece(piece)) {
                Ok(Some(n)) => consumed += n,
                Ok(None) => break,
                Err(violation) => self.violated(violation, left),
            }
        }
        if self.state == ConnectionState::Closed { bytes.len() } else { consumed }
    }

    /// Returns the next output, or `None`.
    pub fn poll(&mut self) -> Option<Step> {
        self.steps.pop_front()
    }

    fn piece(&mut self, piece: Piece<'_>) -> Result<Option<usize>, Violation> {
        match piece {
            Piece::Incomplete => Ok(None),
            Piece::Header(n, pdu) => self.pdu(pdu).map(|()| Some(n)),
            Piece::Padding(n) => Ok(Some(n)),
            Piece::Payload(data) => {
                self.payload(data);
                Ok(Some(data.len()))
            }
            Piece::PayloadEnd(n, digest_ok) => self.payload_end(digest_ok).map(|()| Some(n)),
        }
    }

    fn pdu(&mut self, pdu: Pdu) -> Result<(), Violation> {
        match (self.state, pdu) {
            (_, Pdu::Term { fes, fei }) => {
                self.close(CloseReason::Terminated { fes, fei });
                Ok(())
            }
            (ConnectionState::AwaitingIcResp, Pdu::IcResp(response)) => self.initialized(&response),
            (ConnectionState::AwaitingIcResp, _) => Err(Violation::IcRespMissing),
            (_, Pdu::IcResp(_)) => Err(Violation::IcRespRepeated),
            (_, Pdu::Response(cqe)) => self.response(cqe),
            (_, Pdu::Data { cccid, offset, len, last, success, .. }) => {
                self.data(cccid, offset, len, last, success)
            }
            (_, Pdu::R2t { cccid, ttag, offset, len }) => self.r2t(cccid, ttag, offset, len),
            _ => Err(Violation::PduTypeWrongDirection),
        }
    }

    fn initialized(&mut self, response: &pdu::IcResp) -> Result<(), Violation> {
        self.options.check(response)?;
        let (header, data) = (self.options.header_digest, self.options.data_digest);
        self.framer.set_layout(header, data, response.cpda);
        self.deframer.set_digests(header, data);
        self.maxh2cdata = response.maxh2cdata.get();
        self.state = ConnectionState::AwaitingConnect;
        self.connect();
        Ok(())
    }

    fn connect(&mut self) {
        let cid = self.claim(Data::Connect, 0);
        let (sqe, data) = (self.options.connect().with_cid(cid), self.data.as_bytes());
        let steps = &mut self.steps;
        let mut send = |segment| steps.push_back(Step::Send(segment));
        self.framer.command_with(sqe, Body::Shared(Arc::from(data)), data.len(), &mut send);
    }

    /// Handles a response capsule.
    fn response(&mut self, cqe: Cqe) -> Result<(), Violation> {
        let cid = cqe.cid.get();
        let status = cqe.outcome();
        let command = self.slots.find(cid)?;
        // After success the data must be complete.
        if let Data::Receiving(receiving) = command.data()
            && status.is_success()
            && !receiving.is_complete()
        {
            return Err(Violation::DataMissing);
        }
        self.sq.update_head(cqe.sqhd.get())?;
        self.finish(cid, status, cqe.result())
    }

    fn finish(&mut self, cid: u16, status: Status, result: u64) -> Result<(), Violation> {
        let (tag, data) = self.slots.release(cid)?.into_parts();
        self.sq.complete();
        let (status, buffer) = match data {
            Data::Connect => {
                self.connected(status, result);
                return Ok(());
            }
            Data::Auth => {
                self.continue_auth(|auth| auth.message_sent(status));
                return Ok(());
            }
            Data::Receiving(receiving) if receiving.is_auth() => {
                let (buffer, status) = receiving.finish(status);
                let bytes = buffer.as_ref().map_or(&[][..], Buffer::bytes);
                self.continue_auth(|auth| auth.message_received(status, bytes));
                return Ok(());
            }
            Data::Receiving(receiving) => {
                let (buffer, status) = receiving.finish(status);
                (status, buffer)
            }
            Data::None | Data::AwaitingR2t { .. } => (status, None),
        };
        self.steps.push_back(Step::Completed(Completion { tag, status, result, buffer }));
        Ok(())
    }

    /// Handles the response to Connect. Starts authentication if it is required.
    fn connected(&mut self, status: Status, result: u64) {
        #[allow(clippy::cast_possible_truncation, reason = "dword 0 of two")]
        let dw0 = result as u32;
        if !status.is_success() {
            return self.steps.push_back(Step::Refused(status, dw0));
        }
        let response = ConnectResponse::parse(dw0);
        let requires_controller = self.auth.as_ref().is_some_and(|auth| auth.requires_controller());
        let requested = response.authentication_required || requires_controller;
        if !requested || !self.start_auth(OnSuccess::Connect(response)) {
            self.go_live(response);
        }
    }

    fn go_live(&mut self, response: ConnectResponse) {
        self.state = ConnectionState::Live;
        self.steps.push_back(Step::Connected(response));
    }

    // ---- authentication

    /// Authenticates again on a connected queue with credentials. [`Step::Completed`] with `tag`
    /// has the result. Returns whether authentication was started.
    pub fn reauthenticate(&mut self, tag: u32) -> bool {
        self.can_submit() && self.start_auth(OnSuccess::Report(tag))
    }

    /// Returns the PSKs that the last authentication generated, if the credentials request them.
    pub fn take_psks(&mut self) -> Vec<Psk> {
        self.auth.as_mut().map(|auth| auth.take_psks()).unwrap_or_default()
    }

    /// Starts an authentication. Returns `false` without credentials.
    fn start_auth(&mut self, on_success: OnSuccess) -> bool {
        let name = |nqn: Result<&str, _>| nqn.map(str::to_owned).unwrap_or_default();
        let names = Names { host: name(self.data.hostnqn()), subsystem: name(self.data.subnqn()) };
        let message = self.auth.as_mut().and_then(|auth| auth.start(names, on_success));
        let Some(message) = message else { return false };
        self.send_message(&message);
        true
    }

    fn continue_auth(&mut self, next: impl FnOnce(&mut InBandAuth) -> AuthStep) {
        let Some(auth) = &mut self.auth else { return };
        match next(auth) {
            AuthStep::Send(message) => self.send_message(&message),
            AuthStep::Receive => self.receive_message(),
            AuthStep::Done(OnSuccess::Connect(response), status) if status.is_success() => {
                self.go_live(response);
            }
            AuthStep::Done(OnSuccess::Connect(_), status) => {
                self.steps.push_back(Step::Refused(status, 0));
            }
            AuthStep::Done(OnSuccess::Report(tag), status) => {
                let completion = Completion { tag, status, result: 0, buffer: None };
                self.steps.push_back(Step::Completed(completion));
            }
            AuthStep::None => {}
        }
    }

    fn send_message(&mut self, message: &[u8]) {
        let tl = u32::try_from(message.len()).unwrap_or(u32::MAX);
        let cid = self.claim(Data::Auth, 0);
        let sqe = auth::send_command(tl).with_data(Sgl::in_capsule(0, tl)).with_cid(cid);
        let steps = &mut self.steps;
        let mut send = |segment| steps.push_back(Step::Send(segment));
        self.framer.command_with(sqe, Body::Shared(Arc::from(message)), message.len(), &mut send);
    }

    fn receive_message(&mut self) {
        let buffer = Pool::new(auth::MAX_MESSAGE as usize).open().take(auth::MAX_MESSAGE as usize);
        let receiving = Receiving::auth(buffer, auth::MAX_MESSAGE);
        let sqe = auth::receive_command().with_data(Sgl::transport(auth::MAX_MESSAGE));
        self.send_capsule(sqe, Data::Receiving(receiving), 0);
    }

    // ---- data transfers

    /// Handles the header of a C2HData PDU (NVMe/TCP 1.0 §3.6.2.9): in order, within the buffer.
    fn data(
        &mut self,
        cid: u16,
        offset: u32,
        len: u32,
        last: bool,
        success: bool,
    ) -> Result<(), Violation> {
        let Data::Receiving(receiving) = self.slots.find(cid)?.data() else {
            return Err(Violation::DataUnsolicited);
        };
        receiving.begin(offset, len, last, success)?;
        self.receiving = Some((cid, success));
        Ok(())
    }

    fn receiving(&mut self) -> Option<&mut Receiving> {
        let (cid, _) = self.receiving?;
        match self.slots.find(cid).ok()?.data() {
            Data::Receiving(receiving) => Some(receiving),
            _ => None,
        }
    }

    fn payload(&mut self, data: &[u8]) {
        if let Some(receiving) = self.receiving() {
            receiving.append(data);
        }
    }

    fn payload_end(&mut self, digest_ok: bool) -> Result<(), Violation> {
        if let Some(receiving) = self.receiving() {
            receiving.end(digest_ok);
        }
        match self.receiving.take() {
            Some((cid, true)) => self.finish(cid, Status::SUCCESS, 0),
            _ => Ok(()),
        }
    }

    /// Handles R2T (NVMe/TCP 1.0 §3.6.2.10): in order, within the buffer. Any other request would
    /// make the host disclose its memory.
    fn r2t(&mut self, cid: u16, ttag: u16, offset: u32, len: u32) -> Result<(), Violation> {
        let Data::AwaitingR2t { buffer, requested } = self.slots.find(cid)?.data() else {
            return Err(Violation::R2tUnexpected);
        };
        if len == 0 {
            return Err(Violation::R2tLengthZero);
        }
        if offset != *requested {
            return Err(Violation::R2tOffsetNotExpected);
        }
        if len > length(buffer).saturating_sub(offset) {
            return Err(Violation::R2tBeyondTransfer);
        }
        *requested += len;
        let buffer = buffer.clone();
        self.send_data(cid, ttag, &buffer, offset, len);
        Ok(())
    }

    /// Sends the requested data, in PDUs of at most MAXH2CDATA.
    fn send_data(&mut self, cid: u16, ttag: u16, buffer: &Rc<Buffer>, offset: u32, len: u32) {
        let (mut start, mut left) = (offset, len);
        while left != 0 {
            let piece = left.min(self.maxh2cdata.max(1));
            left -= piece;
            let flags = if left == 0 { pdu::flag::LAST_PDU } else { 0 };
            let (kind, body) = (pdu::kind::H2C_DATA, Body::Part(buffer.clone()));
            let steps = &mut self.steps;
            let mut send = |segment| steps.push_back(Step::Send(segment));
            let (from, len) = (start as usize, piece as usize);
            self.framer.data(kind, flags, cid, ttag, body, from, len, &mut send);
            start += piece;
        }
    }

    // ---- payload that is received in place

    /// Returns a buffer for the next bytes of the connection, if they are payload. The driver
    /// receives into it, and returns it by [`Queue::direct_received`] before it calls
    /// [`Queue::receive`] again.
    pub fn direct_recv(&mut self) -> Option<DirectRecv> {
        let left = self.deframer.payload_left();
        if left < MIN_DIRECT_RECV
            || !self.deframer.at_payload()
            || self.state == ConnectionState::Closed
        {
            return None;
        }
        let (buffer, start) = self.receiving()?.lend()?;
        Some(DirectRecv { buffer, start, end: start + left as usize, token: 0 })
    }

    /// Takes the buffer back, with `got` bytes received.
    pub fn direct_received(&mut self, recv: DirectRecv, got: usize) {
        let DirectRecv { buffer, start, end, .. } = recv;
        let got = got.min(end - start);
        self.deframer.skip_payload(buffer.bytes().get(start..start + got).unwrap_or_default());
        if let Some(receiving) = self.receiving() {
            receiving.take_back(buffer, got);
        }
        let _ = self.receive(&[]);
    }

    // ---- what goes out

    fn send(&mut self, segment: Segment) {
        self.steps.push_back(Step::Send(segment));
    }

    fn violated(&mut self, violation: Violation, header: &[u8]) {
        let (fes, fei) = violation.fes_fei();
        let header = header.get(..header.len().min(24)).unwrap_or_default();
        self.send(Framer::terminate(pdu::kind::H2C_TERM_REQ, fes, fei, header));
        self.close(CloseReason::Violation(violation));
    }

    fn close(&mut self, end: CloseReason) {
        self.state = ConnectionState::Closed;
        self.steps.push_back(Step::Close(end));
    }
}
