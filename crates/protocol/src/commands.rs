//! What to type on another machine: the command lines and URIs that the function of a row returns.

use export::ExportId;

use crate::endpoint::Endpoint;

/// The names of an export, from which a protocol makes its own.
#[derive(Debug, Clone, Copy)]
pub struct ExportNames<'a> {
    /// Its identifier.
    pub id: &'a ExportId,
    /// Its short name.
    pub short: &'a str,
}

/// What to type on another machine to use an endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Instructions {
    /// The command that pairs the other machine by the code, if a key is required and the protocol
    /// has pairing.
    pub pair: Option<String>,
    /// The commands.
    pub commands: Vec<Command>,
    /// What a host with a key needs, and the URI to use, if a key is required.
    pub key_help: Option<(&'static str, Option<String>)>,
    /// What the event of an export lists, the most important first.
    pub listed: Vec<String>,
}

/// A command, and its purpose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The purpose.
    pub purpose: &'static str,
    /// The command line.
    pub text: String,
    /// What it does.
    pub effect: Effect,
}

/// What a command does, in the order in which the commands of an address are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// Attaches a disk.
    Attach,
    /// Attaches all disks.
    AttachAll,
    /// Copies a disk by a client of the protocol.
    CopyByClient,
    /// Copies a disk by this program.
    Copy,
    /// Less common.
    Other,
    /// Boots a system from the disk, which writes to it.
    Boot,
}

impl Endpoint {
    /// Returns what to type on another machine, for an export or for all; with `digests`, commands
    /// enable header and data digests.
    pub fn instructions(&self, export: Option<ExportNames<'_>>, digests: bool) -> Instructions {
        (self.protocol.row().instructions)(self, export, digests)
    }
}

impl Command {
    pub(crate) fn new(effect: Effect, purpose: &'static str, text: String) -> Self {
        Self { purpose, text, effect }
    }
}

/// Returns the file to copy a disk to, in the working directory. Not `NAME.img`: on this machine,
/// that may be the served image itself, which nbdcopy would overwrite.
pub(crate) fn file_name(name: &str, ending: &str) -> String {
    let name = name.replace('/', "_");
    quoted(&format!("{}-copy.{ending}", name.trim_start_matches('-')))
}

/// Quotes a word for a shell, if necessary.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._:/@%+=,-".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn words_are_quoted_only_if_needed() {
        assert_eq!(quoted("nqn.2024-01.com.example:disk.sda"), "nqn.2024-01.com.example:disk.sda");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's $HOME"), r"'it'\''s $HOME'");
        assert_eq!(quoted(""), "''");
    }
}
