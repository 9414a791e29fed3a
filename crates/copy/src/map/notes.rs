//! What storagetm writes into a map besides what ddrescue knows: who the disks are, and hashes of what was copied. It
//! knows no hash function.

use std::fmt::Write as _;

use crate::forest::{Mark, Value};

/// What the comments of a map tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notes {
    /// The length of the source in bytes, if storagetm wrote the map.
    pub bytes: Option<u64>,
    /// Who the source is; empty if unknown.
    pub source: String,
    /// Who the destination is; empty if unknown.
    pub destination: String,
    /// Hashes of what was copied.
    pub marks: Vec<Mark>,
    /// Whether the file was written to its end.
    pub whole: bool,
}

/// What begins a comment of ours.
const OURS: &str = "# storagetm ";

impl Notes {
    /// As comments, without the line that ends the file.
    pub(crate) fn emit(&self, text: &mut String) {
        let Some(bytes) = self.bytes else { return };
        let _ = writeln!(text, "{OURS}bytes {bytes}");
        emit_name(text, "source", &self.source);
        emit_name(text, "destination", &self.destination);
        for mark in &self.marks {
            let _ = write!(text, "{OURS}hash 0x{:X} 0x{:X} ", mark.offset, mark.len);
            let _ = match mark.value {
                Value::Zero => writeln!(text, "zero"),
                Value::Sum(sum) => writeln!(text, "{}", blake3::Hash::from_bytes(sum).to_hex()),
            };
        }
    }

    /// A name as it is written: one line, whatever the other end says that it is called.
    pub(crate) fn plain(name: &str) -> String {
        let plain: String = name.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        plain.trim().to_owned()
    }

    /// The line that ends the file.
    pub(crate) fn emit_end(text: &mut String) {
        let _ = writeln!(text, "{OURS}end");
    }

    /// Takes a comment; others than ours are passed over, and so is what a later version may write.
    pub(crate) fn parse(&mut self, line: &str) {
        let Some((word, rest)) =
            line.strip_prefix(OURS).map(|ours| ours.split_once(' ').unwrap_or((ours, "")))
        else {
            return;
        };
        match word {
            "bytes" => self.bytes = rest.parse().ok(),
            "source" => self.source = rest.to_owned(),
            "destination" => self.destination = rest.to_owned(),
            "hash" => self.marks.extend(parse_mark(rest)),
            "end" => self.whole = true,
            _ => {}
        }
    }
}

fn emit_name(text: &mut String, word: &str, name: &str) {
    let plain = Notes::plain(name);
    if !plain.is_empty() {
        let _ = writeln!(text, "{OURS}{word} {plain}");
    }
}

fn parse_mark(text: &str) -> Option<Mark> {
    let mut words = text.split_ascii_whitespace();
    let offset = super::text::number(words.next()?)?;
    let len = super::text::number(words.next()?)?;
    let value = match words.next()? {
        "zero" => Value::Zero,
        hex => Value::Sum(*blake3::Hash::from_hex(hex).ok()?.as_bytes()),
    };
    offset.checked_add(len).map(|_| Mark { offset, len, value })
}
