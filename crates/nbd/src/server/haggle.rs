//! Options: what the client wants to know and to have before it chooses an export (NBD, Option types). It knows no disk.

use std::sync::Arc;

use export::{Auth, Grant, Head, Reason, Segment};
use zerocopy::{FromBytes, IntoBytes};

use super::answer::Mode;
use super::session::{Phase, Session};
use super::{OPTION_DATA, OPTIONS, Violation, offer};
use crate::wire::handshake::{ExportReply, IHAVEOPT, ZEROES};
use crate::wire::meta::{BASE, BASE_ALLOCATION, Context, MetaRequest};
use crate::wire::option::{self, InfoRequest, OptionHeader, ReplyHeader, info};
use crate::wire::text;

/// The number of `base:allocation`.
pub(super) const CONTEXT: u32 = 1;

/// Refusals that are reported of one connection.
pub(super) const REFUSALS: u8 = 4;

/// Bytes of data of an option that are read and dropped.
const DRAIN: u32 = 1 << 20;

/// What the two ends have agreed on so far.
#[derive(Debug, Default)]
pub(super) struct Haggle {
    /// No zeros after the answer to EXPORT_NAME.
    pub(super) no_zeroes: bool,
    pub(super) mode: Mode,
    /// The NQN of the export for which `base:allocation` was chosen.
    pub(super) context: Option<String>,
    /// What the catalogue's number was when the export was chosen.
    pub(super) generation: u64,
    /// A choice that waits for the writes of ended connections to the export.
    pub(super) held: Option<Choice>,
    pub(super) refusals: u8,
    secured: bool,
    options: u32,
    /// Data of an option that is dropped.
    skip: u32,
}

/// An export that the client chooses.
#[derive(Debug)]
pub(super) struct Choice {
    /// EXPORT_NAME or GO.
    option: u32,
    name: String,
    /// What it asks about it, a bit each.
    wanted: u8,
}

impl Choice {
    /// What the client calls the export.
    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

/// What may be asked about an export, or is told unasked.
const KINDS: [u16; 4] = [info::EXPORT, info::NAME, info::DESCRIPTION, info::BLOCK_SIZE];

/// Told unasked: a client that does not know the block sizes sends requests that are refused.
const UNASKED: u8 = 1 << info::EXPORT | 1 << info::BLOCK_SIZE;

type Answered = Result<(), Violation>;

impl Haggle {
    pub(super) fn new(no_zeroes: bool, secured: bool) -> Self {
        Self { no_zeroes, secured, ..Self::default() }
    }
}

impl Session {
    /// An option is to come.
    pub(super) fn option(&mut self, left: &[u8]) -> Result<usize, Violation> {
        if self.haggle.skip != 0 {
            let n = left.len().min(self.haggle.skip as usize);
            self.haggle.skip = self.haggle.skip.saturating_sub(u32::try_from(n).unwrap_or(0));
            return Ok(n);
        }
        let Ok((header, rest)) = OptionHeader::read_from_prefix(left) else { return Ok(0) };
        let (option, len) = (header.option.get(), header.len.get());
        if header.magic.get() != IHAVEOPT {
            return Err(Violation::OptionMagicWrong);
        }
        if len > OPTION_DATA {
            self.too_big(option, len)?;
            return Ok(size_of::<OptionHeader>());
        }
        let Some(data) = rest.get(..len as usize) else { return Ok(0) };
        self.count_option()?;
        self.answer_option(option, data)?;
        Ok(size_of::<OptionHeader>() + data.len())
    }

    fn count_option(&mut self) -> Answered {
        self.haggle.options += 1;
        if self.haggle.options > OPTIONS { Err(Violation::OptionsTooMany) } else { Ok(()) }
    }

    fn too_big(&mut self, option: u32, len: u32) -> Answered {
        self.count_option()?;
        if option == option::EXPORT_NAME {
            return Err(Violation::ExportNameMalformed);
        }
        if len > DRAIN {
            return Err(Violation::OptionTooLong);
        }
        self.haggle.skip = len;
        self.say_error(option, option::ERR_TOO_BIG, "the option is too long");
        Ok(())
    }

    fn answer_option(&mut self, option: u32, data: &[u8]) -> Answered {
        let keyless = self.peer.auth == Auth::Required && self.peer.channel.is_none();
        match option {
            option::ABORT => {
                self.say_reply(option, option::ACK, &[]);
                self.close(Reason::Peer);
            }
            option::EXPORT_NAME if keyless => self.close(Reason::Refused),
            _ if keyless => self.say_error(option, option::ERR_TLS_REQD, "TLS is needed here"),
            option::EXPORT_NAME => return self.export_name(data),
            option::INFO | option::GO => self.info(option, data),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.contexts(option, data),
            option::LIST
            | option::STARTTLS
            | option::STRUCTURED_REPLY
            | option::EXTENDED_HEADERS
                if !data.is_empty() =>
            {
                self.say_invalid(option);
            }
            option::LIST => self.list(),
            option::STARTTLS => self.start_tls(),
            option::STRUCTURED_REPLY => self.raise(option, Mode::Structured),
            option::EXTENDED_HEADERS => self.raise(option, Mode::Extended),
            _ => self.say_error(option, option::ERR_UNSUP, "the option is not known"),
        }
        Ok(())
    }

    fn export_name(&mut self, data: &[u8]) -> Answered {
        if self.haggle.mode == Mode::Extended {
            return Err(Violation::ExportNameWithExtendedHeaders);
        }
        let name = text(data).ok_or(Violation::ExportNameMalformed)?.to_owned();
        self.choose(Choice { option: option::EXPORT_NAME, name, wanted: 0 });
        Ok(())
    }

    fn info(&mut self, option: u32, data: &[u8]) {
        let Some(request) = InfoRequest::parse(data) else { return self.say_invalid(option) };
        let bit = |kind: u16| if KINDS.contains(&kind) { 1_u8 << kind } else { 0 };
        let wanted = request.wanted().fold(UNASKED, |bits, kind| bits | bit(kind));
        let name = request.name.to_owned();
        if option == option::GO {
            return self.choose(Choice { option, name, wanted });
        }
        match self.grant(&name) {
            Some(grant) => self.inform(option, &grant, wanted),
            None => self.say_unknown(option),
        }
    }

    /// The client goes on to transmission, if it may have the export.
    pub(super) fn choose(&mut self, choice: Choice) {
        let generation = self.server.catalogue.generation();
        let named = choice.option == option::EXPORT_NAME;
        match self.grant(&choice.name) {
            None if named => self.close(Reason::Refused),
            None => self.say_unknown(choice.option),
            // What a connection that is gone has written last must not land on what this one writes.
            Some(grant) if grant.export().has_orphans() => self.haggle.held = Some(choice),
            Some(grant) => {
                self.haggle.generation = generation;
                if named {
                    self.say_export(&grant);
                } else {
                    self.inform(choice.option, &grant, choice.wanted);
                }
                let flags = offer::flags(&grant, self.haggle.mode);
                self.attach(grant, flags);
            }
        }
    }

    fn say_export(&mut self, grant: &Grant) {
        let flags = offer::flags(grant, self.haggle.mode);
        let reply = ExportReply { size: grant.export().bytes().into(), flags: flags.into() };
        let head = Head::new(reply.as_bytes());
        let zeroes = if self.haggle.no_zeroes { 0 } else { ZEROES };
        self.say(Segment::with_shared(head, Arc::from(vec![0; zeroes])));
    }

    fn inform(&mut self, option: u32, grant: &Grant, wanted: u8) {
        for kind in KINDS.into_iter().filter(|kind| wanted >> kind & 1 != 0) {
            if let Some(data) = offer::information(grant, self.haggle.mode, kind) {
                self.say_reply(option, option::REP_INFO, &data);
            }
        }
        self.say_reply(option, option::ACK, &[]);
    }

    fn list(&mut self) {
        for export in self.visible() {
            self.say_reply(option::LIST, option::SERVER, &offer::entry(&export));
        }
        self.say_reply(option::LIST, option::ACK, &[]);
    }

    fn start_tls(&mut self) {
        if self.haggle.secured || self.peer.channel.is_some() {
            return self.say_invalid(option::STARTTLS);
        }
        self.say_error(option::STARTTLS, option::ERR_POLICY, "TLS is not to be had here");
    }

    /// Structured replies, or extended headers, which take their place.
    fn raise(&mut self, option: u32, mode: Mode) {
        match (self.haggle.mode, mode) {
            (Mode::Extended, Mode::Structured) => self.say_error(
                option,
                option::ERR_EXT_HEADER_REQD,
                "extended headers were agreed on",
            ),
            (now, then) if now == then => self.say_invalid(option),
            _ => {
                self.haggle.mode = mode;
                self.say_reply(option, option::ACK, &[]);
            }
        }
    }

    fn contexts(&mut self, option: u32, data: &[u8]) {
        let set = option == option::SET_META_CONTEXT;
        if set {
            self.haggle.context = None;
        }
        let request = MetaRequest::parse(data).filter(|_| self.haggle.mode != Mode::Simple);
        let Some(request) = request else { return self.say_invalid(option) };
        let Some(grant) = self.grant(request.name) else { return self.say_unknown(option) };
        let wild = !set && (request.count() == 0 || request.queries().any(|query| query == BASE));
        if wild || request.queries().any(|query| query == BASE_ALLOCATION) {
            let id = if set { CONTEXT } else { 0 };
            let context = Context { id, name: BASE_ALLOCATION };
            self.say_reply(option, option::META_CONTEXT, &context.emit());
            if set {
                self.haggle.context = Some(grant.export().nqn.clone());
            }
        }
        self.say_reply(option, option::ACK, &[]);
    }

    fn say_reply(&mut self, option: u32, kind: u32, data: &[u8]) {
        let len = u32::try_from(data.len()).unwrap_or(0);
        let head = Head::new(ReplyHeader::new(option, kind, len).as_bytes());
        if self.phase != Phase::Closed {
            self.say(Segment::with_shared(head, Arc::from(data)));
        }
    }

    fn say_error(&mut self, option: u32, kind: u32, message: &str) {
        self.say_reply(option, kind, message.as_bytes());
    }

    fn say_invalid(&mut self, option: u32) {
        self.say_error(option, option::ERR_INVALID, "the option breaks a rule");
    }

    fn say_unknown(&mut self, option: u32) {
        self.say_error(option, option::ERR_UNKNOWN, "nothing of that name is lent to you");
    }
}
