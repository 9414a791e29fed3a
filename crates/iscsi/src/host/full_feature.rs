//! The full feature phase: commands, data in both directions, pings and discovery.

use std::rc::Rc;

use export::{Body, Buffer, Head, Segment};
use zerocopy::{Immutable, IntoBytes};

use super::receiver::Sink;
use super::slots::{Data, Entry};
use super::status::{NOT_EXECUTED, Sense};
use super::{Command, DiscoveredTarget, Done, End, Initiator, Phase, Step, Violation};
use crate::wire::bhs::{
    self, AsyncMessage, Bhs, DataIn, DataOut, FINAL, LogoutRequest, NopIn, NopOut, Numbers, R2t,
    READ, Reject, ScsiCommand, ScsiResponse, TextRequest, TextResponse, WRITE, of_target,
};
use crate::wire::digest::{Crc32c, crc32c};
use crate::wire::login::CONTINUE;
use crate::wire::opcode::{self, IMMEDIATE};
use crate::wire::{NO_TAG, padding, text};

/// Task attribute of all commands: simple.
const SIMPLE: u8 = 1;

/// Pings and asynchronous messages while no command completes: bounds the memory for answers that a
/// target does not receive.
const MAX_PINGS: u32 = 1 << 17;

/// R2Ts of a command, beside one for each [`MIN_BURST`] bytes.
const SPARE_R2TS: usize = 16;

/// The shortest burst that can be negotiated, in bytes (RFC 7143 §13.13). Shorter ones would queue
/// more headers than data.
const MIN_BURST: usize = 512;

/// Maximum length of the answer to SendTargets in bytes.
const MAX_TARGETS: usize = 4 << 20;

/// The task tag of the only text request.
const TEXT_TAG: u32 = 0;

impl Initiator {
    /// Sends a command; `tag` is returned in [`Done`]. Waits for the target's command window if
    /// that is closed.
    ///
    /// # Errors
    /// Returns the command if there is no free slot, or the session is not in full feature phase.
    pub fn submit(&mut self, command: Command, tag: u32) -> Result<(), Command> {
        if self.free_slots() == 0 {
            return Err(command);
        }
        // A slot is free.
        let claimed = self.slots.claim(Entry { tag, command, done: 0, next_sn: None });
        self.waiting.extend(claimed);
        self.send_waiting();
        Ok(())
    }

    /// Returns how many more commands can be submitted now: none in a discovery session.
    #[must_use]
    pub fn free_slots(&self) -> usize {
        let accepts = self.phase == Phase::FullFeature && self.options.target.is_some();
        if accepts { self.slots.free_slots() } else { 0 }
    }

    /// Returns the number of commands in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.slots.in_flight()
    }

    /// Sends the commands for which the window has room.
    fn send_waiting(&mut self) {
        while self.phase == Phase::FullFeature && serial_le(self.cmd_sn, self.max_cmd_sn) {
            let Some(itt) = self.waiting.pop_front() else { return };
            self.send_command(itt);
        }
    }

    fn send_command(&mut self, itt: u32) {
        let parameters = self.parameters;
        let Ok(entry) = self.slots.find(itt) else { return };
        entry.next_sn = Some(0);
        let expected = entry.command.data.expected();
        let (flag, out) = match &entry.command.data {
            Data::None => (0, None),
            Data::In(_) => (READ, None),
            Data::Out { buffer, start, len } => (WRITE, Some((buffer.clone(), *start, *len))),
        };
        let mut header = ScsiCommand::of(&of_target(opcode::SCSI_COMMAND));
        (header.lun, header.cdb) = (entry.command.lun.into(), entry.command.cdb);
        (header.itt, header.expected) =
            (itt.into(), u32::try_from(expected).unwrap_or(u32::MAX).into());
        (header.cmd_sn, header.exp_stat_sn) = (self.cmd_sn.into(), self.exp_stat_sn.into());
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        let Some((buffer, start, len)) = out else {
            header.flags = FINAL | SIMPLE | flag;
            return self.send_pdu(&header, None);
        };
        let first = len.min(parameters.first_burst.min(parameters.max_burst) as usize);
        let immediate = match parameters.immediate_data {
            true => first.min(parameters.max_send as usize),
            false => 0,
        };
        let unsolicited = if parameters.initial_r2t { immediate } else { first };
        entry.done = unsolicited;
        header.flags = SIMPLE | flag | if unsolicited == immediate { FINAL } else { 0 };
        self.send_pdu(&header, Some((&buffer, start, immediate)));
        if unsolicited > immediate {
            self.send_data(itt, NO_TAG, (&buffer, start), immediate, unsolicited);
        }
    }

    /// Sends the bytes from `from` up to `to` of the data of a write.
    fn send_data(
        &mut self,
        itt: u32,
        ttt: u32,
        (buffer, start): (&Rc<Buffer>, usize),
        from: usize,
        to: usize,
    ) {
        // All but the last PDU are whole words.
        let max = (self.parameters.max_send & !3) as usize;
        let (mut at, mut sn) = (from, 0_u32);
        while at < to {
            let len = (to - at).min(max);
            let mut header = DataOut::of(&of_target(opcode::DATA_OUT));
            header.flags = if at + len == to { FINAL } else { 0 };
            (header.itt, header.ttt) = (itt.into(), ttt.into());
            header.exp_stat_sn = self.exp_stat_sn.into();
            (header.data_sn, header.offset) =
                (sn.into(), u32::try_from(at).unwrap_or(u32::MAX).into());
            self.send_pdu(&header, Some((buffer, start + at, len)));
            (at, sn) = (at + len, sn.wrapping_add(1));
        }
    }

    /// Sends a PDU with a part of a buffer as its data.
    fn send_pdu<H: IntoBytes + Immutable>(
        &mut self,
        header: &H,
        part: Option<(&Rc<Buffer>, usize, usize)>,
    ) {
        let len = part.map_or(0, |(_, _, len)| len);
        self.send_header(header, len);
        let Some((buffer, start, len)) = part.filter(|(_, _, len)| *len != 0) else { return };
        let body = Body::Part(buffer.clone());
        let data = Segment::with_body(Head::new(&[]), body, start, len);
        let mut tail = vec![0; padding(len)];
        if self.parameters.data_digest {
            let mut crc = Crc32c::default();
            crc.update(data.body());
            crc.update(&tail);
            tail.extend(crc.finish());
        }
        self.out.push_back(Step::Send(data));
        if !tail.is_empty() {
            self.out.push_back(Step::Send(Segment::head(Head::new(&tail))));
        }
    }

    fn send_header<H: IntoBytes + Immutable>(&mut self, header: &H, len: usize) {
        let mut head = [0; bhs::LEN];
        head.copy_from_slice(header.as_bytes().get(..bhs::LEN).unwrap_or(&[0; bhs::LEN]));
        let [_, a, b, c] = u32::try_from(len).unwrap_or(0).to_be_bytes();
        (head[5], head[6], head[7]) = (a, b, c);
        let segment = Segment::head(Head::new(&head));
        // A login request has no digest.
        let digest = self.phase == Phase::FullFeature && self.parameters.header_digest;
        let segment = if digest { segment.with_tail(crc32c(&[&head])) } else { segment };
        self.out.push_back(Step::Send(segment));
    }

    /// Sends a PDU with a text.
    pub(super) fn send_bytes<H: IntoBytes + Immutable>(&mut self, header: &H, text: &[u8]) {
        self.send_header(header, text.len());
        if text.is_empty() {
            return;
        }
        let padded = [text, &[0; 3][..padding(text.len())]].concat();
        let digest = self.phase == Phase::FullFeature && self.parameters.data_digest;
        let crc = crc32c(&[&padded]);
        let segment = Segment::with_shared(Head::new(&[]), padded.into());
        let segment = if digest { segment.with_tail(crc) } else { segment };
        self.out.push_back(Step::Send(segment));
    }

    /// Takes over the target's command window (RFC 7143 §4.2.2.1).
    pub(super) fn update_window(&mut self, numbers: &Numbers) {
        let (expected, max) = (numbers.exp_cmd_sn.get(), numbers.max_cmd_sn.get());
        // A window that is smaller than closed is invalid, and is ignored.
        if serial_le(expected.wrapping_sub(1), max)
            && (self.phase != Phase::FullFeature || serial_le(self.max_cmd_sn, max))
        {
            self.max_cmd_sn = max;
        }
    }

    // ---- PDUs of the target

    /// Returns where the data of a PDU goes.
    pub(super) fn sink(&mut self, header: &Bhs) -> Result<Sink, Violation> {
        if self.phase != Phase::FullFeature || header.opcode() != opcode::DATA_IN {
            return Ok(Sink::Bytes(Vec::new()));
        }
        let data = DataIn::of(header);
        let (offset, len) = (data.offset.get() as usize, data.data_len.get() as usize);
        let entry = self.slots.sent(data.itt.get())?;
        let is_next = len == 0 || entry.counts(data.data_sn.get());
        let Data::In(buffer) = &mut entry.command.data else {
            return Err(Violation::DataNotExpected);
        };
        if len == 0 && data.flags & bhs::STATUS == 0 {
            return Err(Violation::DataEmpty);
        }
        if len != 0 && offset != entry.done {
            return Err(Violation::DataOffsetWrong);
        }
        if !is_next {
            return Err(Violation::DataSnWrong);
        }
        if entry.done + len > buffer.as_ref().map_or(0, Buffer::len) {
            return Err(Violation::DataTooLong);
        }
        Ok(Sink::Buffer(buffer.take(), entry.done))
    }

    /// Processes a complete PDU.
    pub(super) fn pdu(&mut self, header: &Bhs, sink: Sink) -> Result<(), Violation> {
        let data = match sink {
            Sink::Buffer(buffer, _) => return self.data_in(header, buffer),
            Sink::Bytes(data) => data,
        };
        if self.phase == Phase::Login {
            return self.login_response(header, &data);
        }
        self.update_window(&NopIn::of(header).numbers);
        match header.opcode() {
            opcode::SCSI_RESPONSE => self.response(&ScsiResponse::of(header), &data)?,
            opcode::R2T => self.r2t(&R2t::of(header))?,
            opcode::NOP_IN => self.ping(&NopIn::of(header))?,
            opcode::TEXT_RESPONSE => self.targets(&TextResponse::of(header), &data)?,
            opcode::ASYNC_MESSAGE => {
                let message = AsyncMessage::of(header);
                self.count_status(&message.numbers)?;
                self.count_ping()?;
                // Sense data, and what is up to the vendor, ends nothing.
                if !matches!(message.event, 0 | 255) {
                    self.close(End::Dropped);
                }
            }
            opcode::REJECT => self.close(End::Rejected(Reject::of(header).reason)),
            opcode::LOGOUT_RESPONSE => self.close(End::Finished),
            _ => return Err(Violation::OpcodeUnexpected),
        }
        self.send_waiting();
        Ok(())
    }

    /// Checks the number of a status (RFC 7143 §4.2.2.2): without error recovery, one that is
    /// missing ends the session.
    pub(super) fn count_status(&mut self, numbers: &Numbers) -> Result<(), Violation> {
        if numbers.stat_sn.get() != self.exp_stat_sn {
            return Err(Violation::StatSnWrong);
        }
        self.exp_stat_sn = self.exp_stat_sn.wrapping_add(1);
        Ok(())
    }

    fn data_in(&mut self, header: &Bhs, buffer: Option<Buffer>) -> Result<(), Violation> {
        let data = DataIn::of(header);
        self.update_window(&data.numbers);
        let itt = data.itt.get();
        let entry = self.slots.sent(itt)?;
        entry.done += data.data_len.get() as usize;
        entry.command.data = Data::In(buffer);
        if data.flags & bhs::STATUS != 0 {
            self.count_status(&data.numbers)?;
            let (status, flags, residual) = (data.status, data.flags, data.residual.get());
            self.complete(itt, &Outcome { status, flags, residual, sense: &[] })?;
        }
        self.send_waiting();
        Ok(())
    }

    fn response(&mut self, response: &ScsiResponse, data: &[u8]) -> Result<(), Violation> {
        self.count_status(&response.numbers)?;
        // The command was not executed to its end: a failure of the target.
        let status = if response.response == 0 { response.status } else { NOT_EXECUTED };
        // Sense data follows its length (RFC 7143 §11.4.7.2).
        let sense = match data {
            [] => &[][..],
            [a, b, rest @ ..] => {
                let len = usize::from(u16::from_be_bytes([*a, *b]));
                rest.get(..len).ok_or(Violation::SenseInvalid)?
            }
            _ => return Err(Violation::SenseInvalid),
        };
        let (flags, residual) = (response.flags, response.residual.get());
        self.complete(response.itt.get(), &Outcome { status, flags, residual, sense })
    }

    fn complete(&mut self, itt: u32, outcome: &Outcome<'_>) -> Result<(), Violation> {
        let Entry { tag, command, done, .. } = self.slots.release(itt)?;
        self.pings = 0;
        let missing = match outcome.flags & bhs::UNDERFLOW {
            0 => 0,
            _ => outcome.residual as usize,
        };
        // Not more than what was transferred, whatever the target reports.
        let len = done.min(command.data.expected().saturating_sub(missing));
        // A command that has more data than it was to transfer is another one for the target.
        let is_longer = outcome.flags & bhs::OVERFLOW != 0 && outcome.status == 0;
        let status = if is_longer { NOT_EXECUTED } else { outcome.status };
        let buffer = if let Data::In(buffer) = command.data { buffer } else { None };
        let sense = Sense::parse(outcome.sense);
        self.out.push_back(Step::Done(Done { tag, status, sense, len, buffer }));
        Ok(())
    }

    fn r2t(&mut self, r2t: &R2t) -> Result<(), Violation> {
        let (itt, ttt) = (r2t.itt.get(), r2t.ttt.get());
        let (offset, len) = (r2t.offset.get() as usize, r2t.len.get() as usize);
        let entry = self.slots.sent(itt)?;
        let Data::Out { buffer, start, len: expected } = &entry.command.data else {
            return Err(Violation::R2tInvalid);
        };
        let end = offset.checked_add(len).filter(|end| *end <= *expected);
        let end = end.filter(|_| len != 0 && offset == entry.done && ttt != NO_TAG);
        let (end, buffer, start) = (end.ok_or(Violation::R2tInvalid)?, buffer.clone(), *start);
        let most = *expected / MIN_BURST + SPARE_R2TS;
        if !entry.counts(r2t.r2t_sn.get()) {
            return Err(Violation::R2tSnWrong);
        }
        if r2t.r2t_sn.get() as usize >= most {
            return Err(Violation::R2tsTooMany);
        }
        entry.done = end;
        self.send_data(itt, ttt, (&buffer, start), offset, end);
        Ok(())
    }

    fn ping(&mut self, ping: &NopIn) -> Result<(), Violation> {
        if ping.itt.get() != NO_TAG {
            return Err(Violation::TagUnknown);
        }
        self.count_ping()?;
        if ping.ttt.get() == NO_TAG {
            return Ok(());
        }
        let mut answer = NopOut::of(&of_target(opcode::NOP_OUT | IMMEDIATE));
        (answer.lun, answer.ttt) = (ping.lun, ping.ttt);
        (answer.cmd_sn, answer.exp_stat_sn) = (self.cmd_sn.into(), self.exp_stat_sn.into());
        self.send_bytes(&answer, &[]);
        Ok(())
    }

    fn count_ping(&mut self) -> Result<(), Violation> {
        self.pings += 1;
        if self.pings > MAX_PINGS { Err(Violation::PingsTooMany) } else { Ok(()) }
    }

    /// Sends Logout, which closes the session.
    pub(super) fn send_logout(&mut self) {
        let mut logout = LogoutRequest::of(&of_target(opcode::LOGOUT_REQUEST | IMMEDIATE));
        logout.flags = FINAL | opcode::logout::CLOSE_SESSION;
        logout.itt = (NO_TAG - 1).into();
        (logout.cmd_sn, logout.exp_stat_sn) = (self.cmd_sn.into(), self.exp_stat_sn.into());
        self.send_bytes(&logout, &[]);
    }

    // ---- discovery

    pub(super) fn send_targets(&mut self) {
        let mut text = Vec::new();
        text::push(&mut text, "SendTargets", "All");
        self.send_text(NO_TAG, &text);
    }

    fn send_text(&mut self, ttt: u32, text: &[u8]) {
        let mut request = TextRequest::of(&of_target(opcode::TEXT_REQUEST));
        (request.itt, request.ttt) = (TEXT_TAG.into(), ttt.into());
        (request.cmd_sn, request.exp_stat_sn) = (self.cmd_sn.into(), self.exp_stat_sn.into());
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        self.send_bytes(&request, text);
    }

    fn targets(&mut self, response: &TextResponse, data: &[u8]) -> Result<(), Violation> {
        if self.options.target.is_some() || response.itt.get() != TEXT_TAG {
            return Err(Violation::TagUnknown);
        }
        self.count_status(&response.numbers)?;
        self.text.extend_from_slice(data);
        self.texts += 1;
        if self.text.len() > MAX_TARGETS || self.texts > MAX_TARGETS / 512 {
            return Err(Violation::TextTooLong);
        }
        if response.flags & CONTINUE != 0 || response.flags & FINAL == 0 {
            self.send_text(response.ttt.get(), &[]);
            return Ok(());
        }
        let text = std::mem::take(&mut self.text);
        let pairs = text::parse(&text).map_err(|_| Violation::TextMalformed)?;
        let mut targets: Vec<DiscoveredTarget> = Vec::new();
        for (key, value) in pairs {
            match (key, targets.last_mut()) {
                ("TargetName", _) => {
                    targets
                        .push(DiscoveredTarget { name: value.to_owned(), addresses: Vec::new() });
                }
                ("TargetAddress", Some(last)) => last.addresses.push(value.to_owned()),
                _ => {}
            }
        }
        self.out.push_back(Step::Targets(targets));
        Ok(())
    }
}

/// The end of a command as the target reports it.
struct Outcome<'a> {
    status: u8,
    flags: u8,
    residual: u32,
    sense: &'a [u8],
}

/// Returns whether `a` is not after `b` (RFC 1982).
fn serial_le(a: u32, b: u32) -> bool {
    b.wrapping_sub(a) < 1 << 31
}
