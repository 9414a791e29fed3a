//! Whether a descriptor is a terminal, and how large its window is.
//!
//! Does not know what is drawn there.

use std::io::IsTerminal;
use std::os::fd::AsFd;

/// Whether the descriptor leads to a terminal.
pub fn is_terminal(descriptor: &impl IsTerminal) -> bool {
    descriptor.is_terminal()
}

/// Columns and rows of the terminal's window; `None` if it is no terminal or does not know (a serial line says 0).
pub fn window(descriptor: impl AsFd) -> Option<(u16, u16)> {
    let size = rustix::termios::tcgetwinsize(descriptor).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_no_terminal() {
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(!is_terminal(&null));
        assert_eq!(window(&null), None);
    }
}
