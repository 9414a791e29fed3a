//! Reads a secret line from the terminal without echo.

use std::io::{self, Read};
use std::os::fd::AsFd;

use linux::tty::Raw;
use zeroize::Zeroizing;

const CTRL_D: u8 = 4;
/// Backspace and Delete.
const BACKSPACE: [u8; 2] = [8, 127];

/// Reads a line of at most `max` bytes without echo; discards the rest.
///
/// # Errors
/// Fails if the terminal cannot be read.
pub(crate) fn hidden_line(
    terminal: impl Read + AsFd,
    max: usize,
) -> io::Result<Zeroizing<Vec<u8>>> {
    let _raw = Raw::enter(&terminal);
    line(terminal, max)
}

fn line(mut from: impl Read, max: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut line = Zeroizing::new(Vec::with_capacity(max));
    let mut byte = Zeroizing::new([0; 1]);
    while from.read(&mut *byte)? == 1 {
        match byte[0] {
            b'\n' | b'\r' | CTRL_D => break,
            back if BACKSPACE.contains(&back) => drop(line.pop()),
            other if line.len() < max => line.push(other),
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
