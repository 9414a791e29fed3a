//! Metadata contexts: how they are chosen, and what `base:allocation` says (NBD, Metadata querying).

use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{option, split_counted, split_u32, text};

/// The context that tells what is allocated.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// The namespace of the contexts that the protocol defines.
pub const BASE: &str = "base:";

/// `base:allocation`: nothing is stored there.
pub const STATE_HOLE: u32 = 1;
/// `base:allocation`: it reads as zeros.
pub const STATE_ZERO: u32 = 1 << 1;

/// The data of [`option::LIST_META_CONTEXT`] and [`option::SET_META_CONTEXT`].
#[derive(Clone, Copy, Debug)]
pub struct MetaRequest<'a> {
    /// The export.
    pub name: &'a str,
    queries: &'a [u8],
    count: u32,
}

impl<'a> MetaRequest<'a> {
    /// The export's name and the queries; nothing if the data is malformed.
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

    /// How many queries there are.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The queries.
    pub fn queries(&self) -> impl Iterator<Item = &'a str> + 'a {
        let mut left = self.queries;
        std::iter::from_fn(move || {
            let (query, rest) = split_counted(left)?;
            left = rest;
            text(query)
        })
    }

    /// The data for asking about contexts of `name`.
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
    /// Its number in replies to block status; nothing in a list.
    pub id: u32,
    /// Its name.
    pub name: &'a str,
}

impl<'a> Context<'a> {
    /// The context; nothing if the data is malformed.
    #[must_use]
    pub fn parse(data: &'a [u8]) -> Option<Self> {
        let (id, name) = split_u32(data)?;
        text(name).map(|name| Self { id, name })
    }

    /// Its bytes.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        [&self.id.to_be_bytes(), self.name.as_bytes()].concat()
    }
}

/// What a chunk of block status with 32-bit lengths says of an extent: 8 bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Descriptor {
    /// Bytes; not zero.
    pub len: U32,
    /// For `base:allocation`: [`STATE_HOLE`], [`STATE_ZERO`].
    pub flags: U32,
}
const _: () = assert!(size_of::<Descriptor>() == 8);

/// The same with 64-bit lengths: 16 bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct ExtendedDescriptor {
    /// Bytes; not zero.
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
    fn a_count_that_the_data_does_not_bear_out_is_malformed_at_once() {
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
