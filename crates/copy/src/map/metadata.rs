//! Metadata in the comments of a ddrescue map file: identities of the disks, and hashes of the copied
//! ranges.

use std::fmt::Write as _;

use crate::hash_tree::{HashValue, RangeHash};

/// Metadata in the comments of a map file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MapMetadata {
    /// Length of the source in bytes, if storagetm wrote the map.
    pub bytes: Option<u64>,
    /// Identity of the source; empty if unknown.
    pub source: String,
    /// Identity of the destination; empty if unknown.
    pub destination: String,
    /// Hashes of the copied ranges.
    pub hashes: Vec<RangeHash>,
    /// Whether the file is complete: its last line was read.
    pub complete: bool,
}

/// Prefix of these comments.
const PREFIX: &str = "# storagetm ";

impl MapMetadata {
    /// Appends the comments, without the last line of the file.
    pub(crate) fn emit(&self, text: &mut String) {
        let Some(bytes) = self.bytes else { return };
        let _ = writeln!(text, "{PREFIX}bytes {bytes}");
        emit_identity(text, "source", &self.source);
        emit_identity(text, "destination", &self.destination);
        for range in &self.hashes {
            let _ = write!(text, "{PREFIX}hash 0x{:X} 0x{:X} ", range.offset, range.len);
            let _ = match range.value {
                HashValue::Zero => writeln!(text, "zero"),
                HashValue::Hash(hash) => {
                    writeln!(text, "{}", blake3::Hash::from_bytes(hash).to_hex())
                }
            };
        }
    }

    /// Returns an identity as it is saved in the map: without control characters.
    pub(crate) fn saved_identity(identity: &str) -> String {
        let plain: String =
            identity.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        plain.trim().to_owned()
    }

    /// Appends the last line of the file.
    pub(crate) fn emit_end(text: &mut String) {
        let _ = writeln!(text, "{PREFIX}end");
    }

    /// Parses a comment. Ignores other comments, and those of later versions.
    pub(crate) fn parse(&mut self, line: &str) {
        let Some((word, rest)) = line
            .strip_prefix(PREFIX)
            .map(|comment| comment.split_once(' ').unwrap_or((comment, "")))
        else {
            return;
        };
        match word {
            "bytes" => self.bytes = rest.parse().ok(),
            "source" => self.source = rest.to_owned(),
            "destination" => self.destination = rest.to_owned(),
            "hash" => self.hashes.extend(parse_hash(rest)),
            "end" => self.complete = true,
            _ => {}
        }
    }
}

fn emit_identity(text: &mut String, key: &str, identity: &str) {
    let plain = MapMetadata::saved_identity(identity);
    if !plain.is_empty() {
        let _ = writeln!(text, "{PREFIX}{key} {plain}");
    }
}

fn parse_hash(text: &str) -> Option<RangeHash> {
    let mut words = text.split_ascii_whitespace();
    let offset = super::text::number(words.next()?)?;
    let len = super::text::number(words.next()?)?;
    let value = match words.next()? {
        "zero" => HashValue::Zero,
        hex => HashValue::Hash(*blake3::Hash::from_hex(hex).ok()?.as_bytes()),
    };
    offset.checked_add(len).map(|_| RangeHash { offset, len, value })
}
