//! The negotiation: client flags and options, until the client chooses an export (NBD, Client flags,
//! Option types).

use std::sync::Arc;

use export::{Auth, ExportId, Grant, Head, Reason, Refusal, Segment};
use zerocopy::{FromBytes, IntoBytes};

use super::attachment::Attachment;
use super::authorizer::Authorizer;
use super::greeter::check_flags;
use super::outbox::Outbox;
use super::reply::Mode;
use super::status::CONTEXT;
use super::{MAX_OPTION_DATA, MAX_OPTIONS, Start, Violation, offer};
use crate::wire::handshake::{C_NO_ZEROES, ClientFlags, ExportReply, IHAVEOPT, ZEROES};
use crate::wire::meta::{BASE, BASE_ALLOCATION, Context, MetaRequest};
use crate::wire::option::{self, InfoRequest, OptionHeader, ReplyHeader, info};
use crate::wire::text;

/// Maximum length of option data that is skipped instead of closing the connection, in bytes.
const MAX_SKIP: u32 = 1 << 20;

/// What has been negotiated so far.
#[derive(Debug)]
pub(super) struct Negotiation {
    /// The client flags have been received.
    has_flags: bool,
    /// Omit the zeros after the reply to EXPORT_NAME.
    no_zeroes: bool,
    secured: bool,
    mode: Mode,
    /// The export for which `base:allocation` is selected.
    context: Option<ExportId>,
    /// A choice that is delayed until the writes of closed connections to the export have
    /// completed.
    pending_choice: Option<Choice>,
    /// Number of options received.
    options: u32,
    /// Bytes of option data still to be skipped.
    skip: u32,
}

/// What follows a message of the client.
#[derive(Debug)]
pub(super) enum Next {
    /// More of the negotiation.
    Negotiate,
    /// The transmission phase.
    Transmit(Attachment),
    /// The end of the connection.
    Close(Reason),
}

/// An export chosen by the client.
#[derive(Debug)]
struct Choice {
    /// EXPORT_NAME or GO.
    option: u32,
    name: String,
    /// The information to send, one bit per type.
    info_types: u8,
}

/// Types of information, in the order in which they are sent.
const INFO_TYPES: [u16; 4] = [info::EXPORT, info::NAME, info::DESCRIPTION, info::BLOCK_SIZE];

/// Sent even if not requested: a client without the block sizes would send requests that fail.
const ALWAYS_SENT: u8 = 1 << info::EXPORT | 1 << info::BLOCK_SIZE;

impl Negotiation {
    pub(super) fn new(start: Start) -> Self {
        let secured = matches!(start, Start::InTls { .. });
        Self {
            has_flags: secured,
            no_zeroes: matches!(start, Start::InTls { no_zeroes: true }),
            secured,
            mode: Mode::Simple,
            context: None,
            pending_choice: None,
            options: 0,
            skip: 0,
        }
    }

    pub(super) fn can_receive(&self) -> bool {
        self.pending_choice.is_none()
    }

    /// Processes one message from the start of `left`. Returns the number of bytes consumed, zero
    /// if it is incomplete, and what follows.
    pub(super) fn receive(
        &mut self,
        left: &[u8],
        authorizer: &mut Authorizer,
        out: &mut Outbox,
    ) -> Result<(usize, Next), Violation> {
        if !self.has_flags {
            return Ok((self.client_flags(left)?, Next::Negotiate));
        }
        if self.skip != 0 {
            let n = left.len().min(self.skip as usize);
            self.skip = self.skip.saturating_sub(u32::try_from(n).unwrap_or(0));
            return Ok((n, Next::Negotiate));
        }
        let incomplete = Ok((0, Next::Negotiate));
        let Ok((header, rest)) = OptionHeader::read_from_prefix(left) else { return incomplete };
        let (option, len) = (header.option.get(), header.len.get());
        if header.magic.get() != IHAVEOPT {
            return Err(Violation::OptionMagicWrong);
        }
        if len > MAX_OPTION_DATA {
            self.too_big(option, len, out)?;
            return Ok((size_of::<OptionHeader>(), Next::Negotiate));
        }
        let Some(data) = rest.get(..len as usize) else { return incomplete };
        self.count_option()?;
        let next = self.process_option(option, data, authorizer, out)?;
        Ok((size_of::<OptionHeader>() + data.len(), next))
    }

    /// Processes the client flags. Returns the number of bytes consumed.
    fn client_flags(&mut self, left: &[u8]) -> Result<usize, Violation> {
        let Ok((flags, _)) = ClientFlags::read_from_prefix(left) else { return Ok(0) };
        check_flags(flags.get(), false)?;
        (self.has_flags, self.no_zeroes) = (true, flags.get() & C_NO_ZEROES != 0);
        Ok(size_of::<ClientFlags>())
    }

    fn count_option(&mut self) -> Result<(), Violation> {
        self.options += 1;
        if self.options > MAX_OPTIONS { Err(Violation::OptionsTooMany) } else { Ok(()) }
    }

    fn too_big(&mut self, option: u32, len: u32, out: &mut Outbox) -> Result<(), Violation> {
        self.count_option()?;
        if option == option::EXPORT_NAME {
            return Err(Violation::ExportNameMalformed);
        }
        if len > MAX_SKIP {
            return Err(Violation::OptionTooLong);
        }
        self.skip = len;
        send_error(out, option, option::ERR_TOO_BIG, "the option is too long");
        Ok(())
    }

    fn process_option(
        &mut self,
        option: u32,
        data: &[u8],
        authorizer: &mut Authorizer,
        out: &mut Outbox,
    ) -> Result<Next, Violation> {
        let peer = authorizer.peer();
        let tls_missing = peer.auth == Auth::Required && peer.channel.is_none();
        match option {
            option::ABORT => {
                send_reply(out, option, option::ACK, &[]);
                return Ok(Next::Close(Reason::Peer));
            }
            option::EXPORT_NAME if tls_missing => return Ok(Next::Close(Reason::Refused)),
            _ if tls_missing => send_error(out, option, option::ERR_TLS_REQD, "TLS is required"),
            option::EXPORT_NAME => return self.export_name(data, authorizer, out),
            option::INFO | option::GO => return Ok(self.info(option, data, authorizer, out)),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.contexts(option, data, authorizer, out);
            }
            option::LIST
            | option::STARTTLS
            | option::STRUCTURED_REPLY
            | option::EXTENDED_HEADERS
                if !data.is_empty() =>
            {
                send_invalid(out, option);
            }
            option::LIST => list(authorizer, out),
            option::STARTTLS if self.secured || peer.channel.is_some() => send_invalid(out, option),
            option::STARTTLS => {
                send_error(out, option, option::ERR_POLICY, "TLS is not available");
            }
            option::STRUCTURED_REPLY => self.set_mode(option, Mode::Structured, out),
            option::EXTENDED_HEADERS => self.set_mode(option, Mode::Extended, out),
            _ => send_error(out, option, option::ERR_UNSUP, "unknown option"),
        }
        Ok(Next::Negotiate)
    }

    fn export_name(
        &mut self,
        data: &[u8],
        authorizer: &mut Authorizer,
        out: &mut Outbox,
    ) -> Result<Next, Violation> {
        if self.mode == Mode::Extended {
            return Err(Violation::ExportNameWithExtendedHeaders);
        }
        let name = text(data).ok_or(Violation::ExportNameMalformed)?.to_owned();
        let choice = Choice { option: option::EXPORT_NAME, name, info_types: 0 };
        Ok(self.choose(choice, authorizer, out))
    }

    fn info(
        &mut self,
        option: u32,
        data: &[u8],
        authorizer: &mut Authorizer,
        out: &mut Outbox,
    ) -> Next {
        let Some(request) = InfoRequest::parse(data) else {
            send_invalid(out, option);
            return Next::Negotiate;
        };
        let bit = |kind: u16| if INFO_TYPES.contains(&kind) { 1_u8 << kind } else { 0 };
        let wanted = request.wanted().fold(ALWAYS_SENT, |bits, kind| bits | bit(kind));
        if option == option::GO {
            let choice = Choice { option, name: request.name.to_owned(), info_types: wanted };
            return self.choose(choice, authorizer, out);
        }
        match authorizer.grant(request.name, out) {
            Ok(grant) => send_info(out, option, &grant, self.mode, wanted),
            Err(refusal) => send_refused(out, option, refusal),
        }
        Next::Negotiate
    }

    /// Starts transmission, if the client may access the export.
    fn choose(&mut self, choice: Choice, authorizer: &mut Authorizer, out: &mut Outbox) -> Next {
        let generation = authorizer.generation();
        let by_name = choice.option == option::EXPORT_NAME;
        match authorizer.grant(&choice.name, out) {
            Err(_) if by_name => Next::Close(Reason::Refused),
            Err(refusal) => {
                send_refused(out, choice.option, refusal);
                Next::Negotiate
            }
            // A late write of a closed connection must not overwrite newer data.
            Ok(grant) if grant.export().has_orphans() => {
                self.pending_choice = Some(choice);
                Next::Negotiate
            }
            Ok(grant) => {
                if by_name {
                    self.send_export_reply(&grant, out);
                } else {
                    send_info(out, choice.option, &grant, self.mode, choice.info_types);
                }
                let status = self.context.as_ref().is_some_and(|id| *id == grant.export().id);
                let host = authorizer.host_name();
                Next::Transmit(Attachment::new(grant, self.mode, status, host, generation))
            }
        }
    }

    /// Repeats a delayed choice.
    pub(super) fn changed(&mut self, authorizer: &mut Authorizer, out: &mut Outbox) -> Next {
        match self.pending_choice.take() {
            Some(choice) => self.choose(choice, authorizer, out),
            None => Next::Negotiate,
        }
    }

    /// Reports the delayed choice, if there is one, when the time for the negotiation is over.
    pub(super) fn timed_out(&mut self, authorizer: &mut Authorizer, out: &mut Outbox) {
        if let Some(choice) = self.pending_choice.take() {
            authorizer.report_choice_timeout(&choice.name, out);
        }
    }

    fn send_export_reply(&self, grant: &Grant, out: &mut Outbox) {
        let flags = offer::flags(grant, self.mode);
        let reply = ExportReply { size: grant.export().bytes().into(), flags: flags.into() };
        let head = Head::new(reply.as_bytes());
        let zeroes = if self.no_zeroes { 0 } else { ZEROES };
        out.send(Segment::with_shared(head, Arc::from(vec![0; zeroes])));
    }

    /// Enables structured replies or extended headers. Extended headers supersede structured
    /// replies.
    fn set_mode(&mut self, option: u32, mode: Mode, out: &mut Outbox) {
        match (self.mode, mode) {
            (Mode::Extended, Mode::Structured) => {
                let kind = option::ERR_EXT_HEADER_REQD;
                send_error(out, option, kind, "extended headers are already negotiated");
            }
            (now, then) if now == then => send_invalid(out, option),
            _ => {
                self.mode = mode;
                send_reply(out, option, option::ACK, &[]);
            }
        }
    }

    fn contexts(
        &mut self,
        option: u32,
        data: &[u8],
        authorizer: &mut Authorizer,
        out: &mut Outbox,
    ) {
        let set = option == option::SET_META_CONTEXT;
        if set {
            self.context = None;
        }
        let request = MetaRequest::parse(data).filter(|_| self.mode != Mode::Simple);
        let Some(request) = request else { return send_invalid(out, option) };
        let grant = match authorizer.grant(request.name, out) {
            Ok(grant) => grant,
            Err(refusal) => return send_refused(out, option, refusal),
        };
        let wildcard =
            !set && (request.count() == 0 || request.queries().any(|query| query == BASE));
        if wildcard || request.queries().any(|query| query == BASE_ALLOCATION) {
            let id = if set { CONTEXT } else { 0 };
            let context = Context { id, name: BASE_ALLOCATION };
            send_reply(out, option, option::META_CONTEXT, &context.emit());
            if set {
                self.context = Some(grant.export().id.clone());
            }
        }
        send_reply(out, option, option::ACK, &[]);
    }
}

fn list(authorizer: &Authorizer, out: &mut Outbox) {
    for export in authorizer.visible() {
        send_reply(out, option::LIST, option::SERVER, &offer::entry(&export));
    }
    send_reply(out, option::LIST, option::ACK, &[]);
}

fn send_info(out: &mut Outbox, option: u32, grant: &Grant, mode: Mode, info_types: u8) {
    for kind in INFO_TYPES.into_iter().filter(|kind| info_types >> kind & 1 != 0) {
        if let Some(data) = offer::information(grant, mode, kind) {
            send_reply(out, option, option::REP_INFO, &data);
        }
    }
    send_reply(out, option, option::ACK, &[]);
}

fn send_reply(out: &mut Outbox, option: u32, kind: u32, data: &[u8]) {
    let len = u32::try_from(data.len()).unwrap_or(0);
    let head = Head::new(ReplyHeader::new(option, kind, len).as_bytes());
    out.send(Segment::with_shared(head, Arc::from(data)));
}

fn send_error(out: &mut Outbox, option: u32, kind: u32, message: &str) {
    send_reply(out, option, kind, message.as_bytes());
}

fn send_invalid(out: &mut Outbox, option: u32) {
    send_error(out, option, option::ERR_INVALID, "invalid option data");
}

/// Refuses an export. All reasons why the client may not use it look alike.
fn send_refused(out: &mut Outbox, option: u32, refusal: Refusal) {
    match refusal {
        Refusal::OtherHost => {
            send_error(out, option, option::ERR_POLICY, "another host uses this home directory");
        }
        _ => send_error(out, option, option::ERR_UNKNOWN, "no such export for this client"),
    }
}
