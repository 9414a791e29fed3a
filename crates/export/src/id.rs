//! Identifies an export.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Identifies an export in a catalogue. The protocols derive the name by which hosts address it,
/// such as an NQN.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ExportId {
    /// Derived from the identity of the disk.
    Uuid([u8; 16]),
    /// Chosen by the user, as a qualified name.
    Name(String),
}

impl fmt::Display for ExportId {
    /// Writes a UUID in hyphenated form (RFC 9562 §4), a name as it is.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let uuid = match self {
            Self::Uuid(uuid) => uuid,
            Self::Name(name) => return f.write_str(name),
        };
        for (at, byte) in uuid.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl From<[u8; 16]> for ExportId {
    fn from(uuid: [u8; 16]) -> Self {
        Self::Uuid(uuid)
    }
}

impl From<&String> for ExportId {
    fn from(name: &String) -> Self {
        Self::Name(name.clone())
    }
}

impl From<&str> for ExportId {
    fn from(name: &str) -> Self {
        Self::Name(name.to_owned())
    }
}
