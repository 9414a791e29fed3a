//! Metadata contexts: selection, and the `base:allocation` context (NBD, Metadata querying).

use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{option, split_counted, split_u32, text};

/// The context that describes allocation.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// The namespace of contexts defined by the protocol.
pub const BASE: &str = "base:";

/// `base:allocation`: the range is a hole.
pub const STATE_HOLE: u32 = 1;
/// `base:allocation`: the range reads as zeros.
pub const STATE_ZERO: u32 = 1 << 1;

/// The data of [`option::LIST_META_CONTEXT`] and [`option::SET_META_CONTEXT`].
#[derive(Clone, Copy, Debug)]
pub struct MetaRequest<'a> {
    /// The export name.
    pub name: &'a str,
    queries: &'a [u8],
    count: u32,
}

impl<'a> MetaRequest<'a> {
    /// Parses export name and queries. Returns `None` if the data is malformed.
    #[must_use]
    pub fn parse(data: &'a [u8]) -> Option<Self> {
        let (name, rest) = split_counted(data)?;
        let (count, queries) = split_u32(rest)?;
        let request = Self { name: text(name)?, queries, count };
        let mut left = queries;
        for _ in 0..count {
            let (query, rest) = split_counted(left)?;
            text(query)?;
            left = rest;
        }
        left.is_empty().then_some(request)
    }

    /// Returns the number of queries.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Iterates over the queries.
    pub fn queries(&self) -> impl Iterator<Item = &'a str> + 'a {
        let mut left = self.queries;
        std::iter::from_fn(move || {
            let (query, rest) = split_counted(left)?;
            left = rest;
            text(query)
        })
    }

    /// Encodes the option data for `queries` about the export `name`.
    #[must_use]
    pub fn emit(name: &str, queries: &[&str]) -> Vec<u8> {
        let mut data = option::counted(name);
        let count = u32::try_from(queries.len()).unwrap_or(u32::MAX);
        data.extend_from_slice(&count.to_be_bytes());
        queries.iter().for_each(|query| data.extend_from_slice(&option::counted(query)));
        data
    }
}

/// The data of an [`option::META_CONTEXT`] reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context<'a> {
    /// The context id used in block status replies; zero in a list.
    pub id: u32,
    /// The context name.
    pub name: &'a str,
}

impl<'a> Context<'a> {
    /// Parses a context. Returns `None` if the data is malformed.
    #[must_use]
    pub fn parse(data: &'a [u8]) -> Option<Self> {
        let (id, name) = split_u32(data)?;
        text(name).map(|name| Self { id, name })
    }

    /// Encodes the context.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        [&self.id.to_be_bytes(), self.name.as_bytes()].concat()
    }
}

/// One extent in a block status chunk with 32-bit lengths: 8 bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Descriptor {
    /// Length in bytes; not zero.
    pub len: U32,
    /// For `base:allocation`: [`STATE_HOLE`], [`STATE_ZERO`].
    pub flags: U32,
}
const _: () = assert!(size_of::<Descriptor>() == 8);

/// One extent in a block status chunk with 64-bit lengths: 16 bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct ExtendedDescriptor {
    /// Length in bytes; not zero.
    pub len: U64,
    /// For `base:allocation`: [`STATE_HOLE`], [`STATE_ZERO`].
    pub flags: U64,
}
const _: () = assert!(size_of::<ExtendedDescriptor>() == 16);

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn golden_meta_request() {
        #[rustfmt::skip]
        let bytes = [
            &[0, 0, 0, 3][..], b"sda",
            &[0, 0, 0, 2], // queries
            &[0, 0, 0, 5], b"base:",
            &[0, 0, 0, 0],
        ]
        .concat();
        assert_eq!(MetaRequest::emit("sda", &["base:", ""]), bytes);
        let request = MetaRequest::parse(&bytes).unwrap();
        assert_eq!((request.name, request.count()), ("sda", 2));
        assert_eq!(request.queries().collect::<Vec<_>>(), ["base:", ""]);
        for short in 0..bytes.len() {
            assert!(MetaRequest::parse(&bytes[..short]).is_none(), "{short}");
        }
        assert!(MetaRequest::parse(&[&bytes[..], &[0]].concat()).is_none());
    }

    #[test]
    fn count_beyond_the_data_is_malformed() {
        assert!(MetaRequest::parse(&[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]).is_none());
    }

    #[test]
    fn golden_context_and_descriptors() {
        let context = Context { id: 1, name: BASE_ALLOCATION };
        assert_eq!(context.emit(), b"\0\0\0\x01base:allocation");
        assert_eq!(Context::parse(&context.emit()), Some(context));
        let one = Descriptor { len: 4096.into(), flags: (STATE_HOLE | STATE_ZERO).into() };
        assert_eq!(one.as_bytes(), [0, 0, 0x10, 0, 0, 0, 0, 3]);
        let long = ExtendedDescriptor { len: (1 << 40).into(), flags: 2.into() };
        assert_eq!(long.as_bytes(), [0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    }
}
