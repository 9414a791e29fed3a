//! The beginning of a connection: the server's hello, TLS, and option after option until the export is there (NBD, Newstyle
//! negotiation, Fixed newstyle negotiation). It knows no request.

use std::sync::Arc;

use export::{Head, Segment};
use zerocopy::byteorder::big_endian::U64;
use zerocopy::{FromBytes, IntoBytes};

use super::opened::{LARGEST, shown};
use super::{
    Client, End, Headers, Listing, Phase, Purpose, Reason, Refusal, Start, Step, Violation,
};
use crate::wire::description;
use crate::wire::handshake::{self, ClientFlags, ExportReply, Hello};
use crate::wire::meta::{BASE_ALLOCATION, Context, MetaRequest};
use crate::wire::option::{
    self, InfoBlockSize, InfoExport, InfoRequest, OptionHeader, ReplyHeader, ServerEntry, info,
};
use crate::wire::request::flags;
use crate::wire::text;

/// Bytes of data in a reply to an option, at most: a name, a description and what stands around them fit in half of it.
const REPLY: usize = 16 << 10;

/// Bytes of a reply, at most.
pub(super) const LONGEST: usize = REPLY + size_of::<ReplyHeader>();

/// Replies to one option, at most.
const REPLIES: u32 = 64;

/// Exports in a list, at most.
const LISTED: u32 = 1024;

/// What has been said so far.
#[derive(Debug, Default)]
pub(super) struct Haggle {
    /// Whether no zeros follow the answer to the option that has no error.
    no_zeroes: bool,
    /// Replies to the option that was asked last.
    replies: u32,
    /// Whether the export's size was told.
    described: bool,
    /// The number of the context that tells what is allocated.
    pub(super) context: Option<u32>,
    listed: Vec<Listing>,
}

impl Client {
    pub(super) fn begin(&mut self) {
        if text(self.options.export.as_bytes()).is_none() {
            return self.refuse(Reason::Name, &[]);
        }
        if self.options.start == Start::Secured {
            self.haggle.no_zeroes = true;
            self.first_option();
        }
    }

    /// The server's hello.
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
        self.greet(hello.flags.get())?;
        Ok(Some(size_of::<Hello>()))
    }

    fn greet(&mut self, offered: u16) -> Result<(), Violation> {
        if offered & handshake::FIXED_NEWSTYLE == 0 {
            return Err(Violation::NotFixed);
        }
        self.haggle.no_zeroes = offered & handshake::NO_ZEROES != 0;
        let mut mine = handshake::C_FIXED_NEWSTYLE;
        if self.haggle.no_zeroes {
            mine |= handshake::C_NO_ZEROES;
        }
        self.send(Segment::head(Head::new(ClientFlags::new(mine).as_bytes())));
        match self.options.start {
            // Whoever goes on behind the TLS handshake shall not have to know.
            Start::Secure if !self.haggle.no_zeroes => return Err(Violation::NoZeroesMissing),
            Start::Secure => self.ask(option::STARTTLS, &[]),
            Start::Clear | Start::Secured => self.first_option(),
        }
        Ok(())
    }

    /// TLS is there: nothing that was said before holds any more, but the client's flags.
    pub fn secured(&mut self) {
        if self.phase == Phase::Securing {
            self.first_option();
        }
    }

    // ---- what is asked

    fn first_option(&mut self) {
        match self.options.purpose {
            Purpose::List => self.ask(option::LIST, &[]),
            _ if self.options.extended => self.ask(option::EXTENDED_HEADERS, &[]),
            _ => self.ask_for_structure(),
        }
    }

    fn ask_for_structure(&mut self) {
        if self.options.structured {
            self.ask(option::STRUCTURED_REPLY, &[]);
        } else {
            self.ask_for_export();
        }
    }

    fn agreed(&mut self, headers: Headers) {
        self.opened.headers = headers;
        if self.options.extents {
            let data = MetaRequest::emit(&self.options.export, &[BASE_ALLOCATION]);
            self.ask(option::SET_META_CONTEXT, &data);
        } else {
            self.ask_for_export();
        }
    }

    fn ask_for_export(&mut self) {
        let wanted = [info::BLOCK_SIZE, info::NAME, info::DESCRIPTION];
        let data = InfoRequest::emit(&self.options.export, &wanted);
        let look = self.options.purpose == Purpose::Look;
        self.ask(if look { option::INFO } else { option::GO }, &data);
    }

    /// The server knows no option but the oldest.
    fn choose(&mut self) {
        let name = self.options.export.clone();
        self.ask(option::EXPORT_NAME, name.as_bytes());
        self.phase = Phase::Chosen;
    }

    fn ask(&mut self, asked: u32, data: &[u8]) {
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let head = Head::new(OptionHeader::new(asked, len).as_bytes());
        self.send(Segment::with_shared(head, Arc::from(data)));
        self.haggle.replies = 0;
        self.phase = Phase::Asked(asked);
    }

    pub(super) fn send_abort(&mut self) {
        self.ask(option::ABORT, &[]);
    }

    fn finish(&mut self) {
        self.send_abort();
        self.close(End::Finished);
    }

    fn refuse(&mut self, reason: Reason, message: &[u8]) {
        self.out.push_back(Step::Refused(Refusal { reason, message: shown(message) }));
        match self.phase {
            Phase::Asked(_) => self.finish(),
            _ => self.close(End::Finished),
        }
    }

    // ---- what is answered

    /// A reply to `asked`.
    pub(super) fn reply(&mut self, asked: u32, bytes: &[u8]) -> Result<Option<usize>, Violation> {
        let Ok((header, rest)) = ReplyHeader::read_from_prefix(bytes) else { return Ok(None) };
        if header.magic != option::REPLY_MAGIC {
            return Err(Violation::ReplyMagicWrong);
        }
        if header.option != asked {
            return Err(Violation::ReplyToOtherOption);
        }
        let len = usize::try_from(header.len.get()).unwrap_or(usize::MAX);
        if len > REPLY {
            return Err(Violation::ReplyTooLong);
        }
        let Some(data) = rest.get(..len) else { return Ok(None) };
        self.count(asked)?;
        self.replied(asked, header.kind.get(), data)?;
        Ok(Some(size_of::<ReplyHeader>() + len))
    }

    fn count(&mut self, asked: u32) -> Result<(), Violation> {
        self.haggle.replies += 1;
        let most = if asked == option::LIST { LISTED } else { REPLIES };
        // The last one says that it is the last.
        if self.haggle.replies > most + 1 { Err(Violation::RepliesEndless) } else { Ok(()) }
    }

    fn replied(&mut self, asked: u32, kind: u32, data: &[u8]) -> Result<(), Violation> {
        match (asked, kind) {
            (_, option::ACK) if !data.is_empty() => Err(Violation::ReplyLengthWrong),
            (_, option::ACK) => self.acknowledged(asked),
            (_, error) if error & option::ERROR != 0 => {
                self.failed(asked, error, data);
                Ok(())
            }
            (option::LIST, option::SERVER) => self.list(data),
            (option::SET_META_CONTEXT, option::META_CONTEXT) => self.learn_context(data),
            (option::INFO | option::GO, option::REP_INFO) => self.learn(data),
            _ => Err(Violation::ReplyUnexpected),
        }
    }

    fn acknowledged(&mut self, asked: u32) -> Result<(), Violation> {
        match asked {
            option::STARTTLS => {
                self.phase = Phase::Securing;
                self.out.push_back(Step::Secure);
            }
            option::EXTENDED_HEADERS => self.agreed(Headers::Extended),
            option::STRUCTURED_REPLY => self.agreed(Headers::Structured),
            option::SET_META_CONTEXT => self.ask_for_export(),
            option::LIST => {
                let listed = std::mem::take(&mut self.haggle.listed);
                self.out.push_back(Step::Listed(listed));
                self.finish();
            }
            _ if !self.haggle.described => return Err(Violation::ExportInfoMissing),
            option::INFO => {
                self.tell_opened();
                self.finish();
            }
            _ => self.go_live(),
        }
        Ok(())
    }

    /// An error: what can be done without is done without.
    fn failed(&mut self, asked: u32, error: u32, message: &[u8]) {
        let reason = Reason::of(asked, error);
        let final_word = matches!(reason, Reason::Shutdown | Reason::TlsRequired);
        match asked {
            option::EXTENDED_HEADERS if !final_word => self.ask_for_structure(),
            option::STRUCTURED_REPLY if !final_word => self.ask_for_export(),
            option::SET_META_CONTEXT if !final_word => {
                // Contexts that came before the error do not hold.
                self.haggle.context = None;
                self.ask_for_export();
            }
            option::GO if self.may_choose(reason) => self.choose(),
            _ => self.refuse(reason, message),
        }
    }

    fn may_choose(&self, reason: Reason) -> bool {
        reason == Reason::Unsupported && self.opened.headers != Headers::Extended
    }

    fn list(&mut self, data: &[u8]) -> Result<(), Violation> {
        let entry = ServerEntry::parse(data).ok_or(Violation::TextWrong)?;
        let (name, description) = (entry.name.to_owned(), shown(entry.details.as_bytes()));
        self.haggle.listed.push(Listing { name, description });
        Ok(())
    }

    fn learn_context(&mut self, data: &[u8]) -> Result<(), Violation> {
        let context = Context::parse(data).ok_or(Violation::TextWrong)?;
        if context.name != BASE_ALLOCATION {
            return Err(Violation::ContextUnknown);
        }
        match self.haggle.context.replace(context.id) {
            Some(_) => Err(Violation::ContextRepeated),
            None => Ok(()),
        }
    }

    /// Something about the export; what is unknown does not matter.
    fn learn(&mut self, data: &[u8]) -> Result<(), Violation> {
        let (kind, rest) = data.split_first_chunk().ok_or(Violation::ReplyLengthWrong)?;
        match u16::from_be_bytes(*kind) {
            info::EXPORT => {
                let info = InfoExport::read_from_bytes(data);
                let info = info.map_err(|_| Violation::ReplyLengthWrong)?;
                self.learn_export(info.size.get(), info.flags.get())
            }
            info::BLOCK_SIZE => {
                let info = InfoBlockSize::read_from_bytes(data);
                self.learn_blocks(&info.map_err(|_| Violation::ReplyLengthWrong)?)
            }
            info::NAME => {
                self.opened.name = text(rest).ok_or(Violation::TextWrong)?.to_owned();
                Ok(())
            }
            info::DESCRIPTION => {
                self.opened.description = shown(rest);
                self.opened.uuid = description::parse(rest);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn learn_export(&mut self, bytes: u64, flags: u16) -> Result<(), Violation> {
        if i64::try_from(bytes).is_err() {
            return Err(Violation::SizeImpossible);
        }
        if flags & flags::HAS_FLAGS == 0 {
            return Err(Violation::FlagsMissing);
        }
        (self.opened.bytes, self.opened.flags) = (bytes, flags);
        self.haggle.described = true;
        Ok(())
    }

    /// What the sizes must be to each other (NBD, Size constraints).
    fn learn_blocks(&mut self, info: &InfoBlockSize) -> Result<(), Violation> {
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
        (self.opened.minimum, self.opened.preferred) = (minimum, preferred);
        self.opened.largest = maximum.min(LARGEST) & !(minimum - 1);
        Ok(())
    }

    /// The answer to the option that has no error: a server that does not want to closes.
    pub(super) fn chosen(&mut self, bytes: &[u8]) -> Result<Option<usize>, Violation> {
        let zeros = if self.haggle.no_zeroes { 0 } else { handshake::ZEROES };
        let len = size_of::<ExportReply>() + zeros;
        let whole = bytes.get(..len).and_then(|bytes| ExportReply::read_from_prefix(bytes).ok());
        let Some((reply, _)) = whole else { return Ok(None) };
        self.learn_export(reply.size.get(), reply.flags.get())?;
        self.go_live();
        Ok(Some(len))
    }

    fn go_live(&mut self) {
        self.phase = Phase::Live;
        self.tell_opened();
    }

    fn tell_opened(&mut self) {
        self.opened.extents = self.haggle.context.is_some();
        self.out.push_back(Step::Opened(self.opened.clone()));
    }
}
