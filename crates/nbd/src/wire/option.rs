//! Options and option replies of the negotiation phase (NBD, Option types, Option reply types).

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::handshake::IHAVEOPT;
use super::{split_counted, text};

/// Chooses an export and starts transmission. Has no error reply: the server disconnects instead.
pub const EXPORT_NAME: u32 = 1;
/// Ends the connection.
pub const ABORT: u32 = 2;
/// Lists the exports.
pub const LIST: u32 = 3;
/// Withdrawn from the protocol. (`NBD_OPT_PEEK_EXPORT`)
pub const PEEK_EXPORT: u32 = 4;
/// Starts TLS.
pub const STARTTLS: u32 = 5;
/// Queries an export.
pub const INFO: u32 = 6;
/// Queries an export and starts transmission.
pub const GO: u32 = 7;
/// Enables structured replies.
pub const STRUCTURED_REPLY: u32 = 8;
/// Lists the metadata contexts.
pub const LIST_META_CONTEXT: u32 = 9;
/// Selects metadata contexts.
pub const SET_META_CONTEXT: u32 = 10;
/// Enables extended headers: requests and replies with 64-bit lengths.
pub const EXTENDED_HEADERS: u32 = 11;

/// Magic of a reply to an option.
pub const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// Reply: success, end of the replies.
pub const ACK: u32 = 1;
/// Reply: an export ([`ServerEntry`]).
pub const SERVER: u32 = 2;
/// Reply: information about an export; begins with one of [`info`].
pub const REP_INFO: u32 = 3;
/// Reply: a metadata context ([`super::meta::Context`]).
pub const META_CONTEXT: u32 = 4;
/// Bit set in reply types that are errors; the data is a message for people.
pub const ERROR: u32 = 1 << 31;
/// Error: unknown option.
pub const ERR_UNSUP: u32 = ERROR + 1;
/// Error: forbidden by the server's policy.
pub const ERR_POLICY: u32 = ERROR + 2;
/// Error: invalid option or option data.
pub const ERR_INVALID: u32 = ERROR + 3;
/// Error: not supported on this platform.
pub const ERR_PLATFORM: u32 = ERROR + 4;
/// Error: TLS is required.
pub const ERR_TLS_REQD: u32 = ERROR + 5;
/// Error: no such export.
pub const ERR_UNKNOWN: u32 = ERROR + 6;
/// Error: the server is shutting down.
pub const ERR_SHUTDOWN: u32 = ERROR + 7;
/// Error: the client must ask for the block sizes.
pub const ERR_BLOCK_SIZE_REQD: u32 = ERROR + 8;
/// Error: the option's data is too long.
pub const ERR_TOO_BIG: u32 = ERROR + 9;
/// Error: extended headers are required.
pub const ERR_EXT_HEADER_REQD: u32 = ERROR + 10;

/// Types of information in [`REP_INFO`], which a client may request with [`INFO`] and [`GO`].
pub mod info {
    /// Size and transmission flags ([`super::InfoExport`]).
    pub const EXPORT: u16 = 0;
    /// The canonical name; a string follows.
    pub const NAME: u16 = 1;
    /// A description for people; a string follows.
    pub const DESCRIPTION: u16 = 2;
    /// Block sizes ([`super::InfoBlockSize`]).
    pub const BLOCK_SIZE: u16 = 3;
}

/// Returns the name of an option without its `NBD_OPT_` prefix.
#[must_use]
pub fn name(option: u32) -> &'static str {
    match option {
        EXPORT_NAME => "EXPORT_NAME",
        ABORT => "ABORT",
        LIST => "LIST",
        PEEK_EXPORT => "PEEK_EXPORT",
        STARTTLS => "STARTTLS",
        INFO => "INFO",
        GO => "GO",
        STRUCTURED_REPLY => "STRUCTURED_REPLY",
        LIST_META_CONTEXT => "LIST_META_CONTEXT",
        SET_META_CONTEXT => "SET_META_CONTEXT",
        EXTENDED_HEADERS => "EXTENDED_HEADERS",
        _ => "unknown",
    }
}

/// The header of an option: 16 bytes, followed by its data.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct OptionHeader {
    /// [`IHAVEOPT`].
    pub magic: U64,
    /// The option type.
    pub option: U32,
    /// Length of the data in bytes.
    pub len: U32,
}
const _: () = assert!(size_of::<OptionHeader>() == 16);

impl OptionHeader {
    /// Creates the header of `option` with `len` bytes of data.
    #[must_use]
    pub fn new(option: u32, len: u32) -> Self {
        Self { magic: IHAVEOPT.into(), option: option.into(), len: len.into() }
    }
}

/// The header of an option reply: 20 bytes, followed by its data.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct ReplyHeader {
    /// [`REPLY_MAGIC`].
    pub magic: U64,
    /// The option type being answered.
    pub option: U32,
    /// The reply type: [`ACK`] and so on.
    pub kind: U32,
    /// Length of the data in bytes.
    pub len: U32,
}
const _: () = assert!(size_of::<ReplyHeader>() == 20);

impl ReplyHeader {
    /// Creates the header of a reply of type `kind` to `option` with `len` bytes of data.
    #[must_use]
    pub fn new(option: u32, kind: u32, len: u32) -> Self {
        Self {
            magic: REPLY_MAGIC.into(),
            option: option.into(),
            kind: kind.into(),
            len: len.into(),
        }
    }
}

/// [`info::EXPORT`]: 12 bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct InfoExport {
    /// [`info::EXPORT`].
    pub kind: U16,
    /// Size of the export in bytes.
    pub size: U64,
    /// Transmission flags: [`super::request::flags`].
    pub flags: U16,
}
const _: () = assert!(size_of::<InfoExport>() == 12);

impl InfoExport {
    /// Creates the information of an export of `size` bytes.
    #[must_use]
    pub fn new(size: u64, flags: u16) -> Self {
        Self { kind: info::EXPORT.into(), size: size.into(), flags: flags.into() }
    }
}

/// [`info::BLOCK_SIZE`]: 14 bytes (NBD, Block size constraints).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct InfoBlockSize {
    /// [`info::BLOCK_SIZE`].
    pub kind: U16,
    /// Minimum block size: offsets and lengths are multiples of it.
    pub minimum: U32,
    /// Preferred block size: aligned requests are efficient.
    pub preferred: U32,
    /// Maximum payload of a request or a reply.
    pub maximum: U32,
}
const _: () = assert!(size_of::<InfoBlockSize>() == 14);

impl InfoBlockSize {
    /// Creates the information from sizes in bytes.
    #[must_use]
    pub fn new(minimum: u32, preferred: u32, maximum: u32) -> Self {
        Self {
            kind: info::BLOCK_SIZE.into(),
            minimum: minimum.into(),
            preferred: preferred.into(),
            maximum: maximum.into(),
        }
    }
}

/// The data of [`INFO`] and [`GO`].
#[derive(Clone, Copy, Debug)]
pub struct InfoRequest<'a> {
    /// The export name; empty for the default export.
    pub name: &'a str,
    wanted: &'a [U16],
}

impl<'a> InfoRequest<'a> {
    /// Parses export name and requested types. Returns `None` if the data is malformed.
    #[must_use]
    pub fn parse(data: &'a [u8]) -> Option<Self> {
        let (name, rest) = split_counted(data)?;
        let (count, rest) = U16::read_from_prefix(rest).ok()?;
        let wanted = <[U16]>::ref_from_bytes(rest).ok()?;
        let whole = wanted.len() == usize::from(count.get());
        text(name).filter(|_| whole).map(|name| Self { name, wanted })
    }

    /// Iterates over the requested types, including ones not in [`info`].
    pub fn wanted(&self) -> impl Iterator<Item = u16> + 'a {
        self.wanted.iter().map(|kind| kind.get())
    }

    /// Encodes a request about the export `name`. Types beyond the 65535th are omitted.
    #[must_use]
    pub fn emit(name: &str, wanted: &[u16]) -> Vec<u8> {
        let mut data = counted(name);
        let count = u16::try_from(wanted.len()).unwrap_or(u16::MAX);
        data.extend_from_slice(&count.to_be_bytes());
        let wanted = wanted.iter().take(usize::from(count));
        wanted.for_each(|kind| data.extend_from_slice(&kind.to_be_bytes()));
        data
    }
}

/// The data of a [`SERVER`] reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerEntry<'a> {
    /// The export name.
    pub name: &'a str,
    /// Description for people; may be empty.
    pub details: &'a str,
}

impl<'a> ServerEntry<'a> {
    /// Parses an entry. Returns `None` if the data is malformed.
    #[must_use]
    pub fn parse(data: &'a [u8]) -> Option<Self> {
        let (name, details) = split_counted(data)?;
        Some(Self { name: text(name)?, details: text(details)? })
    }

    /// Encodes the entry.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let mut data = counted(self.name);
        data.extend_from_slice(self.details.as_bytes());
        data
    }
}

/// Encodes a string after its length, truncated to [`super::STRING`] bytes.
pub(super) fn counted(string: &str) -> Vec<u8> {
    let string = super::cut(string);
    let len = u32::try_from(string.len()).unwrap_or(0);
    [&len.to_be_bytes(), string.as_bytes()].concat()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn golden_option() {
        #[rustfmt::skip]
        let bytes: [u8; 16] = [
            b'I', b'H', b'A', b'V', b'E', b'O', b'P', b'T',
            0, 0, 0, 7, // GO
            0, 0, 0, 9, // bytes of data
        ];
        assert_eq!(OptionHeader::new(GO, 9).as_bytes(), bytes);
        let read = OptionHeader::read_from_bytes(&bytes).unwrap();
        assert_eq!((read.option.get(), read.len.get()), (GO, 9));
    }

    #[test]
    fn golden_reply() {
        #[rustfmt::skip]
        let bytes: [u8; 20] = [
            0x00, 0x03, 0xe8, 0x89, 0x04, 0x55, 0x65, 0xa9,
            0, 0, 0, 3,       // LIST
            0x80, 0, 0, 5,    // TLS_REQD
            0, 0, 0, 0,
        ];
        assert_eq!(ReplyHeader::new(LIST, ERR_TLS_REQD, 0).as_bytes(), bytes);
        assert_eq!(ReplyHeader::read_from_bytes(&bytes).unwrap().kind.get(), ERR_TLS_REQD);
    }

    #[test]
    fn golden_infos() {
        assert_eq!(
            InfoExport::new(0x1_0000, 0x0103).as_bytes(),
            [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 3]
        );
        assert_eq!(
            InfoBlockSize::new(512, 4096, 32 << 20).as_bytes(),
            [0, 3, 0, 0, 2, 0, 0, 0, 0x10, 0, 2, 0, 0, 0]
        );
    }

    #[test]
    fn golden_info_request() {
        #[rustfmt::skip]
        let bytes = [
            0, 0, 0, 3, b's', b'd', b'a',
            0, 2, 0, 3, 0, 1, // two: block size, name
        ];
        assert_eq!(InfoRequest::emit("sda", &[3, 1]), bytes);
        let request = InfoRequest::parse(&bytes).unwrap();
        assert_eq!(request.name, "sda");
        assert_eq!(request.wanted().collect::<Vec<_>>(), [3, 1]);
        for short in 0..bytes.len() {
            assert!(InfoRequest::parse(&bytes[..short]).is_none(), "{short}");
        }
        assert!(InfoRequest::parse(&[&bytes[..], &[0]].concat()).is_none());
    }

    #[test]
    fn list_entry_round_trips() {
        let entry = ServerEntry { name: "sda", details: "/dev/sda" };
        assert_eq!(entry.emit(), b"\0\0\0\x03sda/dev/sda");
        assert_eq!(ServerEntry::parse(&entry.emit()), Some(entry));
        assert_eq!(ServerEntry::parse(b"\0\0\0\x04sda"), None);
    }
}
