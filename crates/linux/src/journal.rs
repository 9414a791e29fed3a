//! Sends structured entries to the systemd journal by its native protocol.

use crate::tree::Tree;
use std::io;
use std::os::unix::net::UnixDatagram;

const SOCKET: &str = "run/systemd/journal/socket";

/// The severity of an entry (RFC 5424 §6.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Priority {
    /// An error.
    Error = 3,
    /// A warning.
    Warning = 4,
    /// A normal but significant condition.
    Notice = 5,
    /// Informational.
    Info = 6,
    /// For debugging.
    Debug = 7,
}

/// A connection to the journal.
#[derive(Debug)]
pub struct Journal {
    socket: UnixDatagram,
    identifier: String,
}

impl Journal {
    /// Connects. Returns `None` if this machine has no journal. Entries carry `identifier` as
    /// SYSLOG_IDENTIFIER.
    pub fn open(tree: &Tree, identifier: &str) -> Option<Self> {
        let socket = UnixDatagram::unbound().ok()?;
        socket.connect(tree.path(SOCKET)).ok()?;
        socket.set_nonblocking(true).ok()?;
        Some(Self { socket, identifier: identifier.to_owned() })
    }

    /// Sends an entry: the message, its priority, and further fields (names of A-Z, 0-9 and `_`;
    /// others are left out). Does not block.
    ///
    /// # Errors
    /// Fails if the journal is not running or does not keep up, or if the entry does not fit into a
    /// datagram.
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

/// A value with a line break has the binary form: name, line break, 64-bit little-endian length,
/// value.
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

/// Valid names from clients start with a letter; those with a leading `_` are reserved for the
/// journal.
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
    fn line_break_in_a_value_cannot_forge_a_field() {
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
