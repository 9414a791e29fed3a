//! The session of one connection: parses its PDUs, and keeps its state and timers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use export::{
    Account, DirectRecv, Event, Fence, Notice, Outcome, Peer, Reason, Session, Step, Ticket,
};
use zerocopy::IntoBytes;

use super::context::Context;
use super::fabrics::Fabrics;
use super::{MAX_CAPSULE_DATA, MAX_TRANSFER, Port, Target};
use crate::tcp::{Deframer, Framer, Pdu, Piece, Side, Violation, pdu};
use crate::wire::command::Sqe;

/// Session of one NVMe/TCP connection on the target side.
#[derive(Debug)]
pub struct Connection {
    state: ConnectionState,
    deframer: Deframer,
    /// A command with in-capsule data that waits for a buffer.
    stalled: Option<(Sqe, u32)>,
    fabrics: Fabrics,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ConnectionState {
    /// Expects ICReq.
    AwaitingIcReq,
    /// Expects commands.
    Open,
    /// The program stops, and the host is to learn that until then.
    Announcing { until: Instant },
    /// The program stops: requests in flight complete, nothing is received.
    Stopping,
}

/// How long a stop is announced at most.
const ANNOUNCE_TIME: Duration = Duration::from_millis(500);

/// Minimum rest of a payload in bytes to receive it directly into its buffer.
const MIN_DIRECT_RECV: u32 = 8192;

impl Connection {
    pub(super) fn new(
        target: Arc<Target>,
        peer: Peer,
        port: Port,
        account: Account,
        now: Instant,
    ) -> Self {
        Self {
            state: ConnectionState::AwaitingIcReq,
            deframer: Deframer::new(Side::Target, MAX_CAPSULE_DATA),
            stalled: None,
            fabrics: Fabrics::new(Context::new(target, peer, port, now), account),
        }
    }

    fn piece(&mut self, piece: Piece<'_>) -> Result<usize, Violation> {
        match piece {
            Piece::Incomplete => Ok(0),
            Piece::Header(n, pdu) => self.pdu(pdu).map(|()| n),
            Piece::Padding(n) => Ok(n),
            Piece::Payload(data) => {
                self.fabrics.transfers().payload(data);
                Ok(data.len())
            }
            Piece::PayloadEnd(n, digest_ok) => {
                self.fabrics.payload_end(digest_ok);
                Ok(n)
            }
        }
    }

    fn pdu(&mut self, pdu: Pdu) -> Result<(), Violation> {
        match (self.state, pdu) {
            (_, Pdu::Term { .. }) => {
                self.report_violation("H2CTermReq");
                self.fabrics.close(Reason::Peer);
                Ok(())
            }
            (ConnectionState::AwaitingIcReq, Pdu::IcReq(request)) => self.initialize(&request),
            (ConnectionState::AwaitingIcReq, _) => Err(Violation::IcReqMissing),
            (_, Pdu::IcReq(_)) => Err(Violation::IcReqRepeated),
            (_, Pdu::Command { sqe, data }) => self.capsule(sqe, data),
            (_, Pdu::Data { cccid, ttag, offset, len, last, .. }) => {
                self.fabrics.transfers().h2c_data(cccid, ttag, offset, len, last)
            }
            _ => Err(Violation::PduTypeWrongDirection),
        }
    }

    /// Handles ICReq (NVMe/TCP 1.0 §3.6.2.2).
    fn initialize(&mut self, request: &pdu::IcReq) -> Result<(), Violation> {
        if request.pfv.get() != 0 {
            return Err(Violation::PduFormatVersionUnknown);
        }
        if request.hpda > 31 {
            return Err(Violation::HpdaTooLarge);
        }
        let digests = request.dgst & 0b11;
        let (header, data) = (digests & 1 != 0, digests & 2 != 0);
        // CPDA 0: Linux hosts refuse other values.
        #[allow(clippy::cast_possible_truncation, reason = "1 MiB")]
        let response = pdu::IcResp::new(0, digests, MAX_TRANSFER as u32);
        let out = self.fabrics.out();
        out.send(Framer::plain(response.as_bytes()));
        out.set_layout(header, data, request.hpda);
        self.deframer.set_digests(header, data);
        self.state = ConnectionState::Open;
        Ok(())
    }

    /// Handles a command capsule whose header was received, with `data` bytes to follow.
    fn capsule(&mut self, sqe: Sqe, data: u32) -> Result<(), Violation> {
        let buffer = match data {
            0 => None,
            _ => match self.fabrics.transfers().capsule_buffer(data) {
                Some(buffer) => Some(buffer),
                None => {
                    self.stalled = Some((sqe, data));
                    return Ok(());
                }
            },
        };
        self.fabrics.command(&sqe, buffer)
    }

    /// Retries a command that waits for a buffer for its in-capsule data.
    fn resume_stalled(&mut self) {
        let Some((sqe, data)) = self.stalled.take() else { return };
        if self.fabrics.is_closed() {
            return;
        }
        if let Err(violation) = self.capsule(sqe, data) {
            let capsule =
                [&[pdu::kind::CAPSULE_CMD, 0, 72, 0, 0, 0, 0, 0], sqe.as_bytes()].concat();
            self.violated(violation, &capsule);
        }
    }

    fn violated(&mut self, violation: Violation, header: &[u8]) {
        let (fes, fei) = violation.fes_fei();
        let kind = header.first().copied().unwrap_or_default();
        // An invalid H2CTermReq is not answered with C2HTermReq.
        if kind != pdu::kind::H2C_TERM_REQ {
            let hlen = pdu::hlen_of(kind).unwrap_or(8).into();
            let header = header.get(..header.len().min(hlen)).unwrap_or_default();
            let term = Framer::terminate(pdu::kind::C2H_TERM_REQ, fes, fei, header);
            self.fabrics.out().send(term);
        }
        self.report_violation(violation.name());
        self.fabrics.close(Reason::Violation);
    }

    fn report_violation(&mut self, rule: &'static str) {
        let peer = self.fabrics.context().peer().clone();
        self.fabrics.out().report(Event::Violation { peer, rule });
    }

    fn stop(&mut self, now: Instant) {
        let is_announced = self.state == ConnectionState::Open && self.fabrics.announce_stop();
        self.state = match is_announced {
            true => ConnectionState::Announcing { until: now + ANNOUNCE_TIME },
            false => ConnectionState::Stopping,
        };
    }

    fn stop_when_known(&mut self) {
        if matches!(self.state, ConnectionState::Announcing { .. }) && self.fabrics.is_stop_known()
        {
            self.state = ConnectionState::Stopping;
        }
    }

    fn stop_when_idle(&mut self) {
        let is_stopping = self.state == ConnectionState::Stopping;
        if is_stopping && self.fabrics.is_idle() && !self.fabrics.awaits_admin_queue() {
            self.fabrics.close(Reason::Stopping);
        }
    }

    fn state_changed(&mut self) {
        match self.state {
            // When the program stops, requests in flight are still completed.
            ConnectionState::Stopping if self.fabrics.has_ended() => self.stop_when_idle(),
            _ if self.fabrics.has_ended() => self.fabrics.close(Reason::Ended),
            _ => self.fabrics.changed(),
        }
    }
}

impl Session for Connection {
    fn receive(&mut self, now: Instant, bytes: &[u8]) -> usize {
        self.fabrics.set_now(now);
        self.fabrics.restart_keep_alive();
        let mut consumed = 0;
        while self.can_receive() {
            let Some(left) =
                bytes.get(consumed..).filter(|left| !left.is_empty() || self.deframer.at_end())
            else {
                break;
            };
            match self.deframer.next(left).and_then(|piece| match piece {
                Piece::Incomplete => Ok(None),
                piece => self.piece(piece).map(Some),
            }) {
                Ok(Some(n)) => consumed += n,
                Ok(None) => break,
                Err(violation) => {
                    self.violated(violation, left);
                    return bytes.len();
                }
            }
        }
        if self.fabrics.is_closed() { bytes.len() } else { consumed }
    }

    fn complete(&mut self, now: Instant, ticket: Ticket, outcome: Outcome) {
        self.fabrics.set_now(now);
        #[allow(clippy::cast_possible_truncation, reason = "tickets are made of slots")]
        let tag = ticket.number() as u16;
        self.fabrics.completed(tag, outcome);
    }

    fn notify(&mut self, now: Instant, notice: &Notice) {
        self.fabrics.set_now(now);
        match notice {
            _ if self.fabrics.is_closed() => {}
            Notice::Disconnected => self.fabrics.leave(Reason::Peer),
            Notice::Stopping => self.stop(now),
            Notice::StateChanged => self.state_changed(),
        }
    }

    fn tick(&mut self, now: Instant) {
        self.fabrics.set_now(now);
        if matches!(self.state, ConnectionState::Announcing { until } if until <= now) {
            self.state = ConnectionState::Stopping;
        } else if self.deadline().is_some_and(|deadline| deadline <= now) {
            if self.fabrics.is_connected() {
                self.fabrics.close(Reason::Timeout);
            } else {
                self.fabrics.connect_timed_out();
            }
        }
    }

    fn poll(&mut self) -> Option<Step> {
        if self.fabrics.out().is_empty() {
            self.fabrics.retry_allocations();
            self.resume_stalled();
            self.stop_when_known();
            self.stop_when_idle();
        }
        self.fabrics.out().next()
    }

    fn deadline(&self) -> Option<Instant> {
        if self.state == ConnectionState::Stopping || self.fabrics.is_closed() {
            None
        } else if let ConnectionState::Announcing { until } = self.state {
            Some(self.fabrics.deadline().map_or(until, |deadline| deadline.min(until)))
        } else if self.fabrics.is_connected() {
            self.fabrics.deadline()
        } else {
            Some(self.fabrics.context().handshake_deadline())
        }
    }

    fn can_receive(&self) -> bool {
        let open = self.state != ConnectionState::Stopping && !self.fabrics.is_closed();
        open && self.stalled.is_none() && !self.fabrics.is_full()
    }

    fn is_established(&self) -> bool {
        self.fabrics.is_connected() && !self.fabrics.is_unauthenticated()
    }

    fn fence(&self) -> Option<&Arc<Fence>> {
        self.fabrics.fence()
    }

    fn direct_recv(&mut self) -> Option<DirectRecv> {
        let left = self.deframer.payload_left();
        if left < MIN_DIRECT_RECV || !self.deframer.at_payload() || !self.can_receive() {
            return None;
        }
        self.fabrics.transfers().lend(left)
    }

    fn direct_received(&mut self, now: Instant, recv: DirectRecv, got: usize) {
        self.fabrics.set_now(now);
        let DirectRecv { buffer, start, end, .. } = recv;
        let got = got.min(end - start);
        self.deframer.skip_payload(buffer.bytes().get(start..start + got).unwrap_or_default());
        self.fabrics.transfers().take_back(buffer, got);
        self.fabrics.restart_keep_alive();
        // Regardless of back-pressure: no further bytes may arrive that would trigger the end of
        // this payload.
        if self.deframer.at_end()
            && let Ok(Piece::PayloadEnd(_, digest_ok)) = self.deframer.next(&[])
        {
            self.fabrics.payload_end(digest_ok);
        }
    }
}
