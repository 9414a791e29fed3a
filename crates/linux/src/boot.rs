//! What this machine was booted with: the kernel command line, credentials, and the firmware's strings.
//!
//! Does not know what any of the words means.

use std::path::PathBuf;

use crate::tree::Tree;

/// The prefix of the firmware's strings that are credentials (systemd.system-credentials(7)).
const CREDENTIAL: &str = "io.systemd.credential:";

/// Folders of credentials beside the service's own: those of the whole system, and those that an initrd got.
const SYSTEM: [&str; 2] = ["run/credentials/@system", "run/credentials/@initrd"];

/// A setting: `storagetm.disk=/dev/sda` has a value, `storagetm.open` has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// What stands before the equals sign; `-` and `_` are the same to the kernel, and both are given as `_`.
    pub name: String,
    /// What stands behind it, without quotes.
    pub value: Option<String>,
}

impl Parameter {
    fn new(name: &str, value: Option<&str>) -> Self {
        Self { name: name.replace('-', "_"), value: value.map(str::to_owned) }
    }
}

/// All words of the kernel command line, in order. What stands behind `--` is for another init, and is left out.
pub fn command_line(tree: &Tree) -> Vec<Parameter> {
    parse_command_line(&tree.text("proc/cmdline").unwrap_or_default())
}

/// A command line's words as the kernel tells them apart (`next_arg` of its `lib/cmdline.c`): by blanks that are not
/// between double quotes; quotes around a word or a value are taken off.
pub fn parse_command_line(line: &str) -> Vec<Parameter> {
    let mut quoted = false;
    let apart = |c: char| {
        quoted ^= c == '"';
        !quoted && c.is_ascii_whitespace()
    };
    let words = line.split(apart).filter(|word| !word.is_empty());
    words.take_while(|word| *word != "--").map(word).collect()
}

fn word(text: &str) -> Parameter {
    let text = text.strip_prefix('"').map_or(text, |text| text.strip_suffix('"').unwrap_or(text));
    match text.split_once('=') {
        None => Parameter::new(text, None),
        Some((name, value)) => {
            let bare =
                value.strip_prefix('"').map(|value| value.strip_suffix('"').unwrap_or(value));
            Parameter::new(name, Some(bare.unwrap_or(value)))
        }
    }
}

/// Credentials whose names begin with `prefix`: those of the service in `own`, if it has a folder of them, the system's,
/// and those in the firmware's strings. A credential's lines are a word each.
pub fn credentials(tree: &Tree, own: Option<PathBuf>, prefix: &str) -> Vec<Parameter> {
    let folders = own.into_iter().chain(SYSTEM.map(PathBuf::from));
    let mut found: Vec<Parameter> =
        folders.flat_map(|folder| in_folder(tree, &folder, prefix)).collect();
    let strings = firmware_strings(tree);
    let strings = strings.iter().filter_map(|text| text.strip_prefix(CREDENTIAL)?.split_once('='));
    let strings = strings.filter(|(name, _)| name.starts_with(prefix));
    found.extend(strings.flat_map(|(name, text)| lines(name, text)));
    found
}

fn in_folder(tree: &Tree, folder: &std::path::Path, prefix: &str) -> Vec<Parameter> {
    let folder = folder.strip_prefix("/").unwrap_or(folder);
    let names = tree.names(folder).into_iter().filter(|name| name.starts_with(prefix));
    let words = |name: String| Some(lines(&name, &tree.text(folder.join(&name)).ok()?));
    names.filter_map(words).flatten().collect()
}

fn lines(name: &str, text: &str) -> Vec<Parameter> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let words: Vec<Parameter> = lines.map(|line| Parameter::new(name, Some(line))).collect();
    if words.is_empty() { vec![Parameter::new(name, None)] } else { words }
}

/// The firmware's free strings: those of all SMBIOS structures of type 11 (SMBIOS 3.6 §7.12).
pub fn firmware_strings(tree: &Tree) -> Vec<String> {
    let table = tree.bytes("sys/firmware/dmi/tables/DMI").unwrap_or_default();
    let mut rest = table.as_slice();
    let mut found = Vec::new();
    while let Some((structure, next)) = Structure::parse(rest) {
        if structure.kind == OEM_STRINGS {
            let strings = structure.strings;
            found
                .extend(strings.into_iter().map(|text| String::from_utf8_lossy(text).into_owned()));
        }
        rest = next;
    }
    found
}

const OEM_STRINGS: u8 = 11;

/// What the firmware says of one thing.
struct Structure<'a> {
    kind: u8,
    strings: Vec<&'a [u8]>,
}

impl<'a> Structure<'a> {
    /// Takes one off the front of the table; what follows comes back, too. A structure is a formatted area of the length
    /// in its second byte, strings that each end with a zero byte, and one more zero byte; without strings, two zero
    /// bytes (SMBIOS 3.6 §6.1.3).
    fn parse(table: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let [kind, length, ..] = *table else { return None };
        let mut rest = table.get(usize::from(length).max(4)..)?;
        let mut strings = Vec::new();
        loop {
            let end = rest.iter().position(|byte| *byte == 0)?;
            let (text, after) = (&rest[..end], &rest[end + 1..]);
            if !text.is_empty() {
                strings.push(text);
                rest = after;
                continue;
            }
            let next = if strings.is_empty() { after.get(1..).unwrap_or_default() } else { after };
            return Some((Self { kind, strings }, next));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::fake::Fake;

    fn pairs(words: &[Parameter]) -> Vec<(&str, Option<&str>)> {
        words.iter().map(|word| (word.name.as_str(), word.value.as_deref())).collect()
    }

    #[test]
    fn words_are_told_apart_as_the_kernel_does() {
        let line =
            "quiet storagetm.open a.b-c=1 x=\"two words\" \"y=three more words\" e= -- ip=dhcp\n";
        let wanted = [
            ("quiet", None),
            ("storagetm.open", None),
            ("a.b_c", Some("1")),
            ("x", Some("two words")),
            ("y", Some("three more words")),
            ("e", Some("")),
        ];
        assert_eq!(pairs(&parse_command_line(line)), wanted);
        assert_eq!(
            pairs(&parse_command_line("a=\"never closed b")),
            [("a", Some("never closed b"))]
        );
    }

    #[test]
    fn credentials_are_a_word_a_line() {
        let fake = Fake::new();
        fake.file("run/credentials/storagetm.service/storagetm.disk", "/dev/sda\n/dev/sdb\n");
        fake.file("run/credentials/@system/storagetm.open", "");
        fake.file("run/credentials/@system/other", "x");
        let own = Some(PathBuf::from("/run/credentials/storagetm.service"));
        let found = credentials(&fake.tree(), own, "storagetm.");
        let wanted = [
            ("storagetm.disk", Some("/dev/sda")),
            ("storagetm.disk", Some("/dev/sdb")),
            ("storagetm.open", None),
        ];
        assert_eq!(pairs(&found), wanted);
    }

    /// A BIOS structure with one string, two of type 11, and the end.
    fn table() -> Vec<u8> {
        let mut bytes = vec![0, 5, 0, 0, 1];
        bytes.extend_from_slice(b"vendor\0\0");
        bytes.extend_from_slice(&[11, 5, 1, 0, 2]);
        bytes.extend_from_slice(b"io.systemd.credential:storagetm.writable=S1\0plain\0\0");
        bytes.extend_from_slice(&[11, 5, 2, 0, 0, 0, 0]);
        bytes.extend_from_slice(&[127, 4, 3, 0, 0, 0]);
        bytes
    }

    #[test]
    fn the_firmware_has_credentials_too() {
        let fake = Fake::new();
        fake.file("sys/firmware/dmi/tables/DMI", table());
        let strings = firmware_strings(&fake.tree());
        assert_eq!(strings, ["io.systemd.credential:storagetm.writable=S1", "plain"]);
        let found = credentials(&fake.tree(), None, "storagetm.");
        assert_eq!(pairs(&found), [("storagetm.writable", Some("S1"))]);
    }

    #[test]
    fn a_table_cut_anywhere_ends_without_harm() {
        let table = table();
        for cut in 0..table.len() {
            let fake = Fake::new();
            fake.file("sys/firmware/dmi/tables/DMI", &table[..cut]);
            assert!(firmware_strings(&fake.tree()).len() <= 2);
        }
    }
}
