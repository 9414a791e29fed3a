//! Takes a secret line from the terminal without showing it. It knows not what it is.

use std::io::{self, Read};
use std::os::fd::AsFd;

use linux::tty::Raw;
use zeroize::Zeroizing;

/// Ctrl-D.
const END: u8 = 4;
/// Backspace, as either of the two keys sends it.
const BACK: [u8; 2] = [8, 127];

/// A line of at most so many bytes from `terminal`, which shows nothing of it meanwhile; the rest of a longer one is
/// dropped.
///
/// # Errors
/// The terminal cannot be read.
pub(crate) fn hidden_line(
    terminal: impl Read + AsFd,
    most: usize,
) -> io::Result<Zeroizing<Vec<u8>>> {
    let _raw = Raw::enter(&terminal);
    line(terminal, most)
}

fn line(mut from: impl Read, most: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut line = Zeroizing::new(Vec::with_capacity(most));
    let mut byte = Zeroizing::new([0; 1]);
    while from.read(&mut *byte)? == 1 {
        match byte[0] {
            b'\n' | b'\r' | END => break,
            back if BACK.contains(&back) => drop(line.pop()),
            other if line.len() < most => line.push(other),
            _ => {}
        }
    }
    Ok(line)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_line_ends_at_its_end_and_can_be_corrected() {
        let read = |typed: &[u8]| line(typed, 5).unwrap().to_vec();
        assert_eq!(read(b"abc\nx"), b"abc");
        assert_eq!(read(b"abd\x7fc\r"), b"abc");
        assert_eq!(read(b"\x08abc\x04x"), b"abc");
        assert_eq!(read(b"abcdefgh"), b"abcde");
        assert_eq!(read(b""), b"");
    }
}
