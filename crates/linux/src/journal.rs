//! Sends structured entries to the journal by its native protocol, where there is a journal.
//!
//! Does not know what is worth logging.

use crate::tree::Tree;
use std::io;
use std::os::unix::net::UnixDatagram;

const SOCKET: &str = "run/systemd/journal/socket";

/// How grave an entry is, by the numbers of syslog (RFC 5424 §6.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Priority {
    /// Something failed.
    Error = 3,
    /// Something may fail.
    Warning = 4,
    /// Normal and worth knowing.
    Notice = 5,
    /// Normal.
    Info = 6,
    /// For those who look for a fault.
    Debug = 7,
}

/// The way to the journal.
#[derive(Debug)]
pub struct Journal {
    socket: UnixDatagram,
    identifier: String,
}

impl Journal {
    /// `None` if this machine has no journal. Entries carry `identifier` as SYSLOG_IDENTIFIER.
    pub fn open(tree: &Tree, identifier: &str) -> Option<Self> {
        let socket = UnixDatagram::unbound().ok()?;
        socket.connect(tree.path(SOCKET)).ok()?;
        socket.set_nonblocking(true).ok()?;
        Some(Self { socket, identifier: identifier.to_owned() })
    }

    /// Sends one entry: the message, its priority, and further fields (names of A-Z, 0-9 and `_`; others are left out).
    ///
    /// Never waits. Errors: the journal is gone or behind, or the entry does not fit a datagram.
    pub fn send(
        &self,
        priority: Priority,
        message: &str,
        fields: &[(&str, &str)],
    ) -> io::Result<()> {
        let priority = (priority as u8).to_string();
        let mut entry = Vec::with_capacity(256);
        emit(&mut entry, "MESSAGE", message);
        emit(&mut entry, "PRIORITY", &priority);
        emit(&mut entry, "SYSLOG_IDENTIFIER", &self.identifier);
        for (name, value) in fields.iter().filter(|(name, _)| is_field_name(name)) {
            emit(&mut entry, name, value);
        }
        self.socket.send(&entry).map(drop)
    }
}

/// A value with a line break goes in the binary form: name, line break, 64-bit little-endian length, value.
fn emit(entry: &mut Vec<u8>, name: &str, value: &str) {
    entry.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value.as_bytes());
    entry.push(b'\n');
}

/// What the journal takes from a client: it starts with a letter, a leading `_` is the journal's own.
fn is_field_name(name: &str) -> bool {
    name.len() <= 64
        && name.starts_with(|c: char| c.is_ascii_uppercase())
        && name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::fake::Fake;

    #[test]
    fn an_entry_is_one_datagram_and_a_line_break_cannot_forge_a_field() {
        let fake = Fake::new();
        fake.file("run/systemd/journal/x", "");
        let daemon = UnixDatagram::bind(fake.root.join(SOCKET)).unwrap();
        let journal = Journal::open(&fake.tree(), "storagetm").unwrap();
        let fields = [("DISK", "a\nPRIORITY=0"), ("_PID", "1"), ("small", "x")];
        journal.send(Priority::Warning, "lent", &fields).unwrap();
        let mut bytes = [0; 500];
        let length = daemon.recv(&mut bytes).unwrap();
        let mut wanted = b"MESSAGE=lent\nPRIORITY=4\nSYSLOG_IDENTIFIER=storagetm\nDISK\n".to_vec();
        wanted.extend_from_slice(&[12, 0, 0, 0, 0, 0, 0, 0]);
        wanted.extend_from_slice(b"a\nPRIORITY=0\n");
        assert_eq!(&bytes[..length], wanted);
    }

    #[test]
    fn a_machine_without_a_journal_has_none() {
        assert!(Journal::open(&Fake::new().tree(), "storagetm").is_none());
    }
}
