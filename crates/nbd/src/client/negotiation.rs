//! Handshake and option negotiation until the export is open (NBD, Newstyle negotiation, Fixed
//! newstyle negotiation).

use std::sync::Arc;

use export::{Head, Segment};
use zerocopy::byteorder::big_endian::U64;
use zerocopy::{FromBytes, IntoBytes};

use super::info::{MAX_PAYLOAD, strip_and_truncate};
use super::{
    Client, End, Headers, ListEntry, Phase, Purpose, Reason, Refusal, Start, Step, Violation,
};
use crate::wire::description;
use crate::wire::handshake::{self, ClientFlags, ExportReply, Hello};
use crate::wire::meta::{BASE_ALLOCATION, Context, MetaRequest};
use crate::wire::option::{
    self, InfoBlockSize, InfoExport, InfoRequest, OptionHeader, ReplyHeader, ServerEntry, info,
};
use crate::wire::request::flags;
use crate::wire::text;

/// Maximum length of the data of an option reply, in bytes: twice what the longest name and
/// description need.
const MAX_REPLY_DATA: usize = 16 << 10;

/// Maximum length of an option reply in bytes.
pub(super) const MAX_UNCONSUMED: usize = MAX_REPLY_DATA + size_of::<ReplyHeader>();

/// Maximum number of replies to one option.
const MAX_REPLIES: u32 = 64;

/// Maximum number of exports in a list.
const MAX_LISTED: u32 = 1024;

/// State of the negotiation.
#[derive(Debug, Default)]
pub(super) struct Negotiation {
    /// The server omits the zeros after the reply to `NBD_OPT_EXPORT_NAME`.
    no_zeroes: bool,
    /// Number of replies to the current option.
    replies: u32,
    /// The server has sent size and flags of the export.
    has_info: bool,
    /// The id of the `base:allocation` context.
    pub(super) context: Option<u32>,
    listed: Vec<ListEntry>,
}

impl Client {
    pub(super) fn begin(&mut self) {
        if text(self.options.export.as_bytes()).is_none() {
            return self.refuse(Reason::Name, &[]);
        }
        if self.options.start == Start::InTls {
            self.negotiation.no_zeroes = true;
            self.start_options();
        }
    }

    /// Processes the server's hello.
    pub(super) fn hello(&mut self, bytes: &[u8]) -> Result<Option<usize>, Violation> {
        if U64::read_from_prefix(bytes).is_ok_and(|(magic, _)| magic != handshake::NBDMAGIC) {
            return Err(Violation::NotNbd);
        }
        let Ok((hello, _)) = Hello::read_from_prefix(bytes) else { return Ok(None) };
        match hello.style.get() {
            handshake::IHAVEOPT => {}
            handshake::OLDSTYLE => return Err(Violation::Oldstyle),
            _ => return Err(Violation::NotNbd),
        }
        self.send_client_flags(hello.flags.get())?;
        Ok(Some(size_of::<Hello>()))
    }

    fn send_client_flags(&mut self, offered: u16) -> Result<(), Violation> {
        if offered & handshake::FIXED_NEWSTYLE == 0 {
            return Err(Violation::NotFixedNewstyle);
        }
        self.negotiation.no_zeroes = offered & handshake::NO_ZEROES != 0;
        let mut flags = handshake::C_FIXED_NEWSTYLE;
        if self.negotiation.no_zeroes {
            flags |= handshake::C_NO_ZEROES;
        }
        self.send(Segment::head(Head::new(ClientFlags::new(flags).as_bytes())));
        match self.options.start {
            // The session inside TLS does not learn this flag, so it must be set.
            Start::StartTls if !self.negotiation.no_zeroes => {
                return Err(Violation::NoZeroesMissing);
            }
            Start::StartTls => self.send_option(option::STARTTLS, &[]),
            Start::Cleartext | Start::InTls => self.start_options(),
        }
        Ok(())
    }

    /// Continues the negotiation inside TLS. Nothing negotiated before holds except the client
    /// flags.
    pub fn tls_established(&mut self) {
        if self.phase == Phase::TlsHandshake {
            self.start_options();
        }
    }

    // ---- options sent

    fn start_options(&mut self) {
        match self.options.purpose {
            Purpose::List => self.send_option(option::LIST, &[]),
            _ if self.options.extended => self.send_option(option::EXTENDED_HEADERS, &[]),
            _ => self.request_structured(),
        }
    }

    fn request_structured(&mut self) {
        if self.options.structured {
            self.send_option(option::STRUCTURED_REPLY, &[]);
        } else {
            self.request_export();
        }
    }

    fn headers_negotiated(&mut self, headers: Headers) {
        self.info.headers = headers;
        if self.options.extents {
            let data = MetaRequest::emit(&self.options.export, &[BASE_ALLOCATION]);
            self.send_option(option::SET_META_CONTEXT, &data);
        } else {
            self.request_export();
        }
    }

    fn request_export(&mut self) {
        let wanted = [info::BLOCK_SIZE, info::NAME, info::DESCRIPTION];
        let data = InfoRequest::emit(&self.options.export, &wanted);
        let look = self.options.purpose == Purpose::Info;
        self.send_option(if look { option::INFO } else { option::GO }, &data);
    }

    /// Falls back to `NBD_OPT_EXPORT_NAME`, because the server supports no newer option.
    fn send_export_name(&mut self) {
        let name = self.options.export.clone();
        self.send_option(option::EXPORT_NAME, name.as_bytes());
        self.phase = Phase::AwaitExport;
    }

    fn send_option(&mut self, option: u32, data: &[u8]) {
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let head = Head::new(OptionHeader::new(option, len).as_bytes());
        self.send(Segment::with_shared(head, Arc::from(data)));
        self.negotiation.replies = 0;
        self.phase = Phase::AwaitReply(option);
    }

    pub(super) fn send_abort(&mut self) {
        self.send_option(option::ABORT, &[]);
    }

    fn finish(&mut self) {
        self.send_abort();
        self.close(End::Finished);
    }

    fn refuse(&mut self, reason: Reason, message: &[u8]) {
        self.out.push_back(Step::Refused(Refusal { reason, message: strip_and_truncate(message) }));
        match self.phase {
            Phase::AwaitReply(_) => self.finish(),
            _ => self.close(End::Finished),
        }
    }

    // ---- option replies

    /// Processes one reply to the option `option`.
    pub(super) fn reply(&mut self, option: u32, bytes: &[u8]) -> Result<Option<usize>, Violation> {
        let Ok((header, rest)) = ReplyHeader::read_from_prefix(bytes) else { return Ok(None) };
        if header.magic != option::REPLY_MAGIC {
            return Err(Violation::ReplyMagicWrong);
        }
        if header.option != option {
            return Err(Violation::ReplyToOtherOption);
        }
        let len = usize::try_from(header.len.get()).unwrap_or(usize::MAX);
        if len > MAX_REPLY_DATA {
            return Err(Violation::ReplyTooLong);
        }
        let Some(data) = rest.get(..len) else { return Ok(None) };
        self.count(option)?;
        self.replied(option, header.kind.get(), data)?;
        Ok(Some(size_of::<ReplyHeader>() + len))
    }

    fn count(&mut self, option: u32) -> Result<(), Violation> {
        self.negotiation.replies += 1;
        let max = if option == option::LIST { MAX_LISTED } else { MAX_REPLIES };
        // One more for the final reply.
        if self.negotiation.replies > max + 1 { Err(Violation::TooManyReplies) } else { Ok(()) }
    }

    fn replied(&mut self, option: u32, kind: u32, data: &[u8]) -> Result<(), Violation> {
        match (option, kind) {
            (_, option::ACK) if !data.is_empty() => Err(Violation::ReplyLengthWrong),
            (_, option::ACK) => self.acknowledged(option),
            (_, error) if error & option::ERROR != 0 => {
                self.failed(option, error, data);
                Ok(())
            }
            (option::LIST, option::SERVER) => self.list(data),
            (option::SET_META_CONTEXT, option::META_CONTEXT) => self.set_context(data),
            (option::INFO | option::GO, option::REP_INFO) => self.process_info(data),
            _ => Err(Violation::ReplyUnexpected),
        }
    }

    fn acknowledged(&mut self, option: u32) -> Result<(), Violation> {
        match option {
            option::STARTTLS => {
                self.phase = Phase::TlsHandshake;
                self.out.push_back(Step::StartTls);
            }
            option::EXTENDED_HEADERS => self.headers_negotiated(Headers::Extended),
            option::STRUCTURED_REPLY => self.headers_negotiated(Headers::Structured),
            option::SET_META_CONTEXT => self.request_export(),
            option::LIST => {
                let listed = std::mem::take(&mut self.negotiation.listed);
                self.out.push_back(Step::Listed(listed));
                self.finish();
            }
            _ if !self.negotiation.has_info => return Err(Violation::ExportInfoMissing),
            option::INFO => {
                self.push_opened();
                self.finish();
            }
            _ => self.start_transmission(),
        }
        Ok(())
    }

    /// Processes an error reply: falls back if the option is not essential.
    fn failed(&mut self, option: u32, error: u32, message: &[u8]) {
        let reason = Reason::of(option, error);
        let fatal = matches!(reason, Reason::Shutdown | Reason::TlsRequired);
        match option {
            option::EXTENDED_HEADERS if !fatal => self.request_structured(),
            option::STRUCTURED_REPLY if !fatal => self.request_export(),
            option::SET_META_CONTEXT if !fatal => {
                // Contexts sent before the error are not selected.
                self.negotiation.context = None;
                self.request_export();
            }
            option::GO if self.can_fall_back(reason) => self.send_export_name(),
            _ => self.refuse(reason, message),
        }
    }

    fn can_fall_back(&self, reason: Reason) -> bool {
        reason == Reason::Unsupported && self.info.headers != Headers::Extended
    }

    fn list(&mut self, data: &[u8]) -> Result<(), Violation> {
        let entry = ServerEntry::parse(data).ok_or(Violation::TextWrong)?;
        let (name, description) =
            (entry.name.to_owned(), strip_and_truncate(entry.details.as_bytes()));
        self.negotiation.listed.push(ListEntry { name, description });
        Ok(())
    }

    fn set_context(&mut self, data: &[u8]) -> Result<(), Violation> {
        let context = Context::parse(data).ok_or(Violation::TextWrong)?;
        if context.name != BASE_ALLOCATION {
            return Err(Violation::ContextUnknown);
        }
        match self.negotiation.context.replace(context.id) {
            Some(_) => Err(Violation::ContextRepeated),
            None => Ok(()),
        }
    }

    /// Processes one `NBD_REP_INFO`; unknown types are ignored.
    fn process_info(&mut self, data: &[u8]) -> Result<(), Violation> {
        let (kind, rest) = data.split_first_chunk().ok_or(Violation::ReplyLengthWrong)?;
        match u16::from_be_bytes(*kind) {
            info::EXPORT => {
                let info = InfoExport::read_from_bytes(data);
                let info = info.map_err(|_| Violation::ReplyLengthWrong)?;
                self.set_export(info.size.get(), info.flags.get())
            }
            info::BLOCK_SIZE => {
                let info = InfoBlockSize::read_from_bytes(data);
                self.set_block_sizes(&info.map_err(|_| Violation::ReplyLengthWrong)?)
            }
            info::NAME => {
                self.info.name = text(rest).ok_or(Violation::TextWrong)?.to_owned();
                Ok(())
            }
            info::DESCRIPTION => {
                self.info.description = strip_and_truncate(rest);
                self.info.uuid = description::parse(rest);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn set_export(&mut self, bytes: u64, flags: u16) -> Result<(), Violation> {
        if i64::try_from(bytes).is_err() {
            return Err(Violation::SizeImpossible);
        }
        if flags & flags::HAS_FLAGS == 0 {
            return Err(Violation::FlagsMissing);
        }
        (self.info.bytes, self.info.flags) = (bytes, flags);
        self.negotiation.has_info = true;
        Ok(())
    }

    /// Checks the block sizes (NBD, Size constraints).
    fn set_block_sizes(&mut self, info: &InfoBlockSize) -> Result<(), Violation> {
        let [minimum, preferred, maximum] =
            [info.minimum.get(), info.preferred.get(), info.maximum.get()];
        let right = minimum.is_power_of_two()
            && minimum <= 1 << 16
            && preferred.is_power_of_two()
            && preferred >= minimum.max(512)
            && maximum >= preferred;
        if !right {
            return Err(Violation::BlockSizesImpossible);
        }
        (self.info.minimum, self.info.preferred) = (minimum, preferred);
        self.info.maximum = maximum.min(MAX_PAYLOAD) & !(minimum - 1);
        Ok(())
    }

    /// Processes the reply to `NBD_OPT_EXPORT_NAME`. A server that refuses disconnects instead.
    pub(super) fn export_name_reply(&mut self, bytes: &[u8]) -> Result<Option<usize>, Violation> {
        let zeros = if self.negotiation.no_zeroes { 0 } else { handshake::ZEROES };
        let len = size_of::<ExportReply>() + zeros;
        let whole = bytes.get(..len).and_then(|bytes| ExportReply::read_from_prefix(bytes).ok());
        let Some((reply, _)) = whole else { return Ok(None) };
        self.set_export(reply.size.get(), reply.flags.get())?;
        self.start_transmission();
        Ok(Some(len))
    }

    fn start_transmission(&mut self) {
        self.phase = Phase::Transmission;
        self.push_opened();
    }

    fn push_opened(&mut self) {
        self.info.extents = self.negotiation.context.is_some();
        self.out.push_back(Step::Opened(self.info.clone()));
    }
}
