//! The NVMe/TCP deframer on arbitrary bytes: the result must not depend on how they are split.

use nvme::tcp::{Deframer, Piece, Side};

use crate::input::Input;

/// An item found: the fields of a header, a payload byte, the end of a payload, or a violation.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    headers: Vec<String>,
    payload: Vec<u8>,
    ends: Vec<bool>,
    violation: Option<&'static str>,
    /// Number of bytes consumed.
    taken: usize,
}

/// Runs the target on `data`: a byte of settings, a byte for the pieces, then the stream.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (settings, step) = (input.byte(), usize::from(input.byte()));
    let stream = input.take(usize::MAX);
    let whole = read(settings, stream, |_| usize::MAX);
    let bytewise = read(settings, stream, |_| 1);
    let uneven = read(settings, stream, |turn| 1 + (turn * 7 + step) % (step + 1));
    assert_eq!(whole, bytewise);
    assert_eq!(whole, uneven);
}

fn reader(settings: u8) -> Deframer {
    let side = if settings & 1 == 0 { Side::Target } else { Side::Host };
    let mut reader = Deframer::new(side, u32::from(settings >> 4) << 10);
    reader.set_digests(settings & 2 != 0, settings & 4 != 0);
    reader
}

/// Deframes `stream` in pieces of `piece(turn)` bytes.
fn read(settings: u8, stream: &[u8], piece: impl Fn(usize) -> usize) -> Found {
    let mut reader = reader(settings);
    let mut found = Found::default();
    let (mut received, mut turn) = (0, 0);
    while received < stream.len() && found.violation.is_none() {
        received = received.saturating_add(piece(turn)).min(stream.len());
        turn += 1;
        while step(&mut reader, &stream[found.taken..received], &mut found) {}
    }
    found
}

/// Deframes one piece. Returns whether there may be another.
fn step(reader: &mut Deframer, bytes: &[u8], found: &mut Found) -> bool {
    if bytes.is_empty() && !reader.at_end() {
        return false;
    }
    let taken = match reader.next(bytes) {
        Ok(Piece::Incomplete) => return false,
        Ok(Piece::Header(n, pdu)) => {
            found.headers.push(format!("{pdu:?}"));
            n
        }
        Ok(Piece::Payload(data)) => {
            assert!(!data.is_empty());
            found.payload.extend_from_slice(data);
            data.len()
        }
        Ok(Piece::Padding(n)) => n,
        Ok(Piece::PayloadEnd(n, right)) => {
            assert_eq!(reader.payload_left(), 0);
            found.ends.push(right);
            n
        }
        Err(violation) => {
            found.violation = Some(violation.name());
            return false;
        }
    };
    assert!(taken <= bytes.len());
    found.taken += taken;
    true
}
