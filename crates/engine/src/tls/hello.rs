//! Parses a ClientHello for the first PSK identity (RFC 8446 §4.1.2, §4.2.11), which must be known
//! before the TLS library is set up. Everything else is left to the library.

/// Longest accepted ClientHello including record headers, in bytes.
pub(super) const MAX_HELLO: usize = 16 << 10;

/// Most records of one. No client needs more than two, and all are parsed again whenever more bytes
/// arrive.
const MAX_RECORDS: usize = 16;

const RECORD_HEADER: usize = 5;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const PRE_SHARED_KEY: u16 = 41;

/// Result of parsing the received records.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Hello {
    /// Incomplete: at least this many more bytes are needed.
    Incomplete(usize),
    /// Complete. The first identity; empty if there is none.
    Complete(Vec<u8>),
    /// Not a ClientHello, or too long.
    Invalid,
}

/// Parses the bytes from the start of the connection.
pub(crate) fn parse(bytes: &[u8]) -> Hello {
    let mut message = Vec::new();
    let mut rest = bytes;
    for _ in 0..MAX_RECORDS {
        let Some((header, behind)) = rest.split_first_chunk::<RECORD_HEADER>() else {
            return Hello::Incomplete(RECORD_HEADER - rest.len());
        };
        let [kind, major, _, high, low] = *header;
        let len = usize::from(u16::from_be_bytes([high, low]));
        if kind != HANDSHAKE
            || major != 3
            || len == 0
            || bytes.len() - behind.len() + len > MAX_HELLO
        {
            return Hello::Invalid;
        }
        let Some((fragment, behind)) = behind.split_at_checked(len) else {
            return Hello::Incomplete(len - behind.len());
        };
        message.extend_from_slice(fragment);
        if let Some(hello) = whole(&message) {
            return hello;
        }
        rest = behind;
    }
    Hello::Invalid
}

/// Returns the identity in the message, once the message is complete.
fn whole(message: &[u8]) -> Option<Hello> {
    let (&[kind, a, b, c], body) = message.split_first_chunk::<4>()?;
    let len = u32::from_be_bytes([0, a, b, c]) as usize;
    if kind != CLIENT_HELLO || len > MAX_HELLO {
        return Some(Hello::Invalid);
    }
    let body = body.get(..len)?;
    // A ClientHello without PSKs, or a malformed one, is left to the library.
    Some(Hello::Complete(first_identity(&mut Reader(body)).unwrap_or_default().to_vec()))
}

fn first_identity<'a>(hello: &mut Reader<'a>) -> Option<&'a [u8]> {
    hello.take(2 + 32)?;
    hello.opaque8()?;
    hello.opaque16()?;
    hello.opaque8()?;
    let mut extensions = Reader(hello.opaque16()?);
    loop {
        let kind = extensions.u16()?;
        let body = extensions.opaque16()?;
        if kind == PRE_SHARED_KEY {
            return Reader(Reader(body).opaque16()?).opaque16();
        }
    }
}

/// A parser of bytes from the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(front)
    }

    fn u16(&mut self) -> Option<u16> {
        let bytes = self.take(2)?;
        Some(u16::from_be_bytes(bytes.try_into().ok()?))
    }

    /// Reads bytes with a one-byte length prefix.
    fn opaque8(&mut self) -> Option<&'a [u8]> {
        let len = self.take(1)?.first().copied()?;
        self.take(len.into())
    }

    /// Reads bytes with a two-byte length prefix.
    fn opaque16(&mut self) -> Option<&'a [u8]> {
        let len = self.u16()?;
        self.take(len.into())
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn long(bytes: &[u8]) -> Vec<u8> {
        [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
    }

    fn message(names: &[&[u8]]) -> Vec<u8> {
        let list: Vec<u8> =
            names.iter().flat_map(|name| [&long(name)[..], &[0; 4]].concat()).collect();
        let keys = [&long(&list)[..], &long(&[32; 33])].concat();
        let extensions = [&[0, 43][..], &long(&[2, 3, 4]), &[0, 41], &long(&keys)].concat();
        let body =
            [&[3, 3][..], &[7; 32], &[0], &long(&[0x13, 1]), &[1, 0], &long(&extensions)].concat();
        let len = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&[1][..], &len[1..], &body].concat()
    }

    fn records(message: &[u8], each: usize) -> Vec<u8> {
        message.chunks(each).flat_map(|part| [&[22, 3, 1][..], &long(part)].concat()).collect()
    }

    #[test]
    fn first_identity_is_found_across_record_boundaries() {
        let message = message(&[b"one", b"two"]);
        let expected = Hello::Complete(b"one".to_vec());
        for each in [10, 17, 100, 10_000] {
            assert_eq!(parse(&records(&message, each)), expected);
        }
    }

    #[test]
    fn missing_length_never_exceeds_the_message() {
        let bytes = records(&message(&[b"one"]), 50);
        let mut have = 0;
        while let Hello::Incomplete(more) = parse(&bytes[..have]) {
            assert!(more > 0 && have + more <= bytes.len(), "{more} at {have}");
            have += 1;
        }
        assert_eq!(have, bytes.len());
    }

    #[test]
    fn malformed_hello_is_invalid_or_has_no_identity() {
        assert_eq!(parse(b"\x16\x03\x01\x00\x00"), Hello::Invalid);
        assert_eq!(parse(b"\x16\x03\x01\xff\xff"), Hello::Invalid);
        assert_eq!(parse(b"GET / HTTP/1.0"), Hello::Invalid);
        assert_eq!(parse(&records(&[2, 0, 0, 0], 9)), Hello::Invalid);
        assert_eq!(parse(&records(&[1, 0, 0, 0], 9)), Hello::Complete(Vec::new()));
        let whole = message(&[b"one"]);
        for cut in 0..whole.len() - 4 {
            let mut short = whole[..4 + cut].to_vec();
            short[3] = u8::try_from(cut).unwrap();
            assert!(matches!(parse(&records(&short, 999)), Hello::Complete(_)));
        }
    }

    #[test]
    fn hello_in_tiny_records_is_refused_early() {
        let crumbs = records(&[&[1, 0, 0x3f, 0xff][..], &[0; 2000]].concat(), 1);
        let mut have = 0;
        while let Hello::Incomplete(more) = parse(&crumbs[..have]) {
            have += more;
        }
        assert!(have < 6 * 20, "{have} bytes were looked at");
    }

    #[test]
    fn hello_in_endless_records_is_refused() {
        let endless = records(&[&[1, 0, 0x3f, 0xff][..], &[0; 20_000]].concat(), 100);
        assert_eq!(parse(&endless), Hello::Invalid);
    }
}
