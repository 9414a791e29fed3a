//! Option negotiation, until the client chooses an export (NBD, Option types).

use std::sync::Arc;

use export::{Auth, ExportId, Grant, Head, Reason, Segment};
use zerocopy::{FromBytes, IntoBytes};

use super::reply::Mode;
use super::session::{Phase, Session};
use super::{MAX_OPTION_DATA, MAX_OPTIONS, Violation, offer};
use crate::wire::handshake::{ExportReply, IHAVEOPT, ZEROES};
use crate::wire::meta::{BASE, BASE_ALLOCATION, Context, MetaRequest};
use crate::wire::option::{self, InfoRequest, OptionHeader, ReplyHeader, info};
use crate::wire::text;

/// The metadata context id of `base:allocation`.
pub(super) const CONTEXT: u32 = 1;

/// Maximum number of refusals reported per connection.
pub(super) const MAX_REFUSALS: u8 = 4;

/// Maximum length of option data that is skipped instead of closing the connection, in bytes.
const MAX_SKIP: u32 = 1 << 20;

/// What has been negotiated so far.
#[derive(Debug, Default)]
pub(super) struct Negotiation {
    /// Omit the zeros after the reply to EXPORT_NAME.
    pub(super) no_zeroes: bool,
    pub(super) mode: Mode,
    /// NQN of the export for which `base:allocation` is selected.
    pub(super) context: Option<ExportId>,
    /// Generation of the catalogue when the export was chosen.
    pub(super) generation: u64,
    /// A choice that is delayed until the writes of closed connections to the export have
    /// completed.
    pub(super) pending_choice: Option<Choice>,
    pub(super) refusals: u8,
    secured: bool,
    options: u32,
    /// Bytes of option data still to be skipped.
    skip: u32,
}

/// An export chosen by the client.
#[derive(Debug)]
pub(super) struct Choice {
    /// EXPORT_NAME or GO.
    option: u32,
    name: String,
    /// The information to send, one bit per type.
    info_types: u8,
}

impl Choice {
    /// Returns the export name as sent by the client.
    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

/// Types of information, in the order in which they are sent.
const INFO_TYPES: [u16; 4] = [info::EXPORT, info::NAME, info::DESCRIPTION, info::BLOCK_SIZE];

/// Sent even if not requested: a client without the block sizes would send requests that fail.
const ALWAYS_SENT: u8 = 1 << info::EXPORT | 1 << info::BLOCK_SIZE;

type OptionResult = Result<(), Violation>;

impl Negotiation {
    pub(super) fn new(no_zeroes: bool, secured: bool) -> Self {
        Self { no_zeroes, secured, ..Self::default() }
    }
}

impl Session {
    /// Processes one option, or skips the data of one that is too long. Returns the number of bytes
    /// consumed; zero if the option is incomplete.
    pub(super) fn option(&mut self, left: &[u8]) -> Result<usize, Violation> {
        if self.negotiation.skip != 0 {
            let n = left.len().min(self.negotiation.skip as usize);
            self.negotiation.skip =
                self.negotiation.skip.saturating_sub(u32::try_from(n).unwrap_or(0));
            return Ok(n);
        }
        let Ok((header, rest)) = OptionHeader::read_from_prefix(left) else { return Ok(0) };
        let (option, len) = (header.option.get(), header.len.get());
        if header.magic.get() != IHAVEOPT {
            return Err(Violation::OptionMagicWrong);
        }
        if len > MAX_OPTION_DATA {
            self.too_big(option, len)?;
            return Ok(size_of::<OptionHeader>());
        }
        let Some(data) = rest.get(..len as usize) else { return Ok(0) };
        self.count_option()?;
        self.process_option(option, data)?;
        Ok(size_of::<OptionHeader>() + data.len())
    }

    fn count_option(&mut self) -> OptionResult {
        self.negotiation.options += 1;
        if self.negotiation.options > MAX_OPTIONS { Err(Violation::OptionsTooMany) } else { Ok(()) }
    }

    fn too_big(&mut self, option: u32, len: u32) -> OptionResult {
        self.count_option()?;
        if option == option::EXPORT_NAME {
            return Err(Violation::ExportNameMalformed);
        }
        if len > MAX_SKIP {
            return Err(Violation::OptionTooLong);
        }
        self.negotiation.skip = len;
        self.send_error(option, option::ERR_TOO_BIG, "the option is too long");
        Ok(())
    }

    fn process_option(&mut self, option: u32, data: &[u8]) -> OptionResult {
        let tls_missing = self.peer.auth == Auth::Required && self.peer.channel.is_none();
        match option {
            option::ABORT => {
                self.send_reply(option, option::ACK, &[]);
                self.close(Reason::Peer);
            }
            option::EXPORT_NAME if tls_missing => self.close(Reason::Refused),
            _ if tls_missing => self.send_error(option, option::ERR_TLS_REQD, "TLS is required"),
            option::EXPORT_NAME => return self.export_name(data),
            option::INFO | option::GO => self.info(option, data),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.contexts(option, data),
            option::LIST
            | option::STARTTLS
            | option::STRUCTURED_REPLY
            | option::EXTENDED_HEADERS
                if !data.is_empty() =>
            {
                self.send_invalid(option);
            }
            option::LIST => self.list(),
            option::STARTTLS => self.start_tls(),
            option::STRUCTURED_REPLY => self.set_mode(option, Mode::Structured),
            option::EXTENDED_HEADERS => self.set_mode(option, Mode::Extended),
            _ => self.send_error(option, option::ERR_UNSUP, "unknown option"),
        }
        Ok(())
    }

    fn export_name(&mut self, data: &[u8]) -> OptionResult {
        if self.negotiation.mode == Mode::Extended {
            return Err(Violation::ExportNameWithExtendedHeaders);
        }
        let name = text(data).ok_or(Violation::ExportNameMalformed)?.to_owned();
        self.choose(Choice { option: option::EXPORT_NAME, name, info_types: 0 });
        Ok(())
    }

    fn info(&mut self, option: u32, data: &[u8]) {
        let Some(request) = InfoRequest::parse(data) else { return self.send_invalid(option) };
        let bit = |kind: u16| if INFO_TYPES.contains(&kind) { 1_u8 << kind } else { 0 };
        let wanted = request.wanted().fold(ALWAYS_SENT, |bits, kind| bits | bit(kind));
        let name = request.name.to_owned();
        if option == option::GO {
            return self.choose(Choice { option, name, info_types: wanted });
        }
        match self.grant(&name) {
            Some(grant) => self.send_info(option, &grant, wanted),
            None => self.send_unknown(option),
        }
    }

    /// Starts transmission, if the client may access the export.
    pub(super) fn choose(&mut self, choice: Choice) {
        let generation = self.server.catalogue.generation();
        let by_name = choice.option == option::EXPORT_NAME;
        match self.grant(&choice.name) {
            None if by_name => self.close(Reason::Refused),
            None => self.send_unknown(choice.option),
            // A late write of a closed connection must not overwrite newer data.
            Some(grant) if grant.export().has_orphans() => {
                self.negotiation.pending_choice = Some(choice)
            }
            Some(grant) => {
                self.negotiation.generation = generation;
                if by_name {
                    self.send_export_reply(&grant);
                } else {
                    self.send_info(choice.option, &grant, choice.info_types);
                }
                let flags = offer::flags(&grant, self.negotiation.mode);
                self.attach(grant, flags);
            }
        }
    }

    fn send_export_reply(&mut self, grant: &Grant) {
        let flags = offer::flags(grant, self.negotiation.mode);
        let reply = ExportReply { size: grant.export().bytes().into(), flags: flags.into() };
        let head = Head::new(reply.as_bytes());
        let zeroes = if self.negotiation.no_zeroes { 0 } else { ZEROES };
        self.send(Segment::with_shared(head, Arc::from(vec![0; zeroes])));
    }

    fn send_info(&mut self, option: u32, grant: &Grant, info_types: u8) {
        for kind in INFO_TYPES.into_iter().filter(|kind| info_types >> kind & 1 != 0) {
            if let Some(data) = offer::information(grant, self.negotiation.mode, kind) {
                self.send_reply(option, option::REP_INFO, &data);
            }
        }
        self.send_reply(option, option::ACK, &[]);
    }

    fn list(&mut self) {
        for export in self.visible() {
            self.send_reply(option::LIST, option::SERVER, &offer::entry(&export));
        }
        self.send_reply(option::LIST, option::ACK, &[]);
    }

    fn start_tls(&mut self) {
        if self.negotiation.secured || self.peer.channel.is_some() {
            return self.send_invalid(option::STARTTLS);
        }
        self.send_error(option::STARTTLS, option::ERR_POLICY, "TLS is not available");
    }

    /// Enables structured replies or extended headers. Extended headers supersede structured
    /// replies.
    fn set_mode(&mut self, option: u32, mode: Mode) {
        match (self.negotiation.mode, mode) {
            (Mode::Extended, Mode::Structured) => self.send_error(
                option,
                option::ERR_EXT_HEADER_REQD,
                "extended headers are already negotiated",
            ),
            (now, then) if now == then => self.send_invalid(option),
            _ => {
                self.negotiation.mode = mode;
                self.send_reply(option, option::ACK, &[]);
            }
        }
    }

    fn contexts(&mut self, option: u32, data: &[u8]) {
        let set = option == option::SET_META_CONTEXT;
        if set {
            self.negotiation.context = None;
        }
        let request = MetaRequest::parse(data).filter(|_| self.negotiation.mode != Mode::Simple);
        let Some(request) = request else { return self.send_invalid(option) };
        let Some(grant) = self.grant(request.name) else { return self.send_unknown(option) };
        let wildcard =
            !set && (request.count() == 0 || request.queries().any(|query| query == BASE));
        if wildcard || request.queries().any(|query| query == BASE_ALLOCATION) {
            let id = if set { CONTEXT } else { 0 };
            let context = Context { id, name: BASE_ALLOCATION };
            self.send_reply(option, option::META_CONTEXT, &context.emit());
            if set {
                self.negotiation.context = Some(grant.export().id.clone());
            }
        }
        self.send_reply(option, option::ACK, &[]);
    }

    fn send_reply(&mut self, option: u32, kind: u32, data: &[u8]) {
        let len = u32::try_from(data.len()).unwrap_or(0);
        let head = Head::new(ReplyHeader::new(option, kind, len).as_bytes());
        if self.phase != Phase::Closed {
            self.send(Segment::with_shared(head, Arc::from(data)));
        }
    }

    fn send_error(&mut self, option: u32, kind: u32, message: &str) {
        self.send_reply(option, kind, message.as_bytes());
    }

    fn send_invalid(&mut self, option: u32) {
        self.send_error(option, option::ERR_INVALID, "invalid option data");
    }

    fn send_unknown(&mut self, option: u32) {
        self.send_error(option, option::ERR_UNKNOWN, "no such export for this client");
    }
}
