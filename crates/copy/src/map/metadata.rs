//! What storagetm writes into a map besides what ddrescue knows: who the disks are, and hashes of what was copied. It
//! knows no hash function.

use std::fmt::Write as _;

use crate::hash_tree::{HashValue, RangeHash};

/// What the comments of a map tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MapMetadata {
    /// The length of the source in bytes, if storagetm wrote the map.
    pub bytes: Option<u64>,
    /// Who the source is; empty if unknown.
    pub source: String,
    /// Who the destination is; empty if unknown.
    pub destination: String,
    /// Hashes of what was copied.
    pub hashes: Vec<RangeHash>,
    /// Whether the file was written to its end.
    pub complete: bool,
}

/// What begins a comment of ours.
const PREFIX: &str = "# storagetm ";

impl MapMetadata {
    /// As comments, without the line that ends the file.
    pub(crate) fn emit(&self, text: &mut String) {
        let Some(bytes) = self.bytes else { return };
        let _ = writeln!(text, "{PREFIX}bytes {bytes}");
        emit_name(text, "source", &self.source);
        emit_name(text, "destination", &self.destination);
        for mark in &self.hashes {
            let _ = write!(text, "{PREFIX}hash 0x{:X} 0x{:X} ", mark.offset, mark.len);
            let _ = match mark.value {
                HashValue::Zero => writeln!(text, "zero"),
                HashValue::Hash(sum) => {
                    writeln!(text, "{}", blake3::Hash::from_bytes(sum).to_hex())
                }
            };
        }
    }

    /// A name as it is written: one line, whatever the other end says that it is called.
    pub(crate) fn printable(name: &str) -> String {
        let plain: String = name.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        plain.trim().to_owned()
    }

    /// The line that ends the file.
    pub(crate) fn emit_end(text: &mut String) {
        let _ = writeln!(text, "{PREFIX}end");
    }

    /// Takes a comment; others than ours are passed over, and so is what a later version may write.
    pub(crate) fn parse(&mut self, line: &str) {
        let Some((word, rest)) =
            line.strip_prefix(PREFIX).map(|ours| ours.split_once(' ').unwrap_or((ours, "")))
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

fn emit_name(text: &mut String, word: &str, name: &str) {
    let plain = MapMetadata::printable(name);
    if !plain.is_empty() {
        let _ = writeln!(text, "{PREFIX}{word} {plain}");
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
