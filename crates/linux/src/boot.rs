//! Boot parameters: the kernel command line, credentials, and OEM strings of the firmware.

use std::path::PathBuf;

use crate::tree::Tree;

/// The name of the partition of the disk images from which target mode is booted.
pub const PARTITION_NAME: &str = "storagetm";

/// The prefix of OEM strings that are credentials (systemd.system-credentials(7)).
const CREDENTIAL: &str = "io.systemd.credential:";

/// Directories of system-wide credentials, and of those passed to an initrd.
const SYSTEM: [&str; 2] = ["run/credentials/@system", "run/credentials/@initrd"];

/// A parameter: `storagetm.disk=/dev/sda` has a value, `storagetm.open` does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// The part before the equals sign, with `-` replaced by `_`: the kernel treats them as the
    /// same.
    pub name: String,
    /// The part after the equals sign, without quotes.
    pub value: Option<String>,
}

impl Parameter {
    fn new(name: &str, value: Option<&str>) -> Self {
        Self { name: name.replace('-', "_"), value: value.map(str::to_owned) }
    }
}

/// Returns all parameters of the kernel command line, in order, up to `--`: the rest is for init.
pub fn command_line(tree: &Tree) -> Vec<Parameter> {
    parse_command_line(&tree.text("proc/cmdline").unwrap_or_default())
}

/// Splits a command line as the kernel does (`next_arg` in `lib/cmdline.c`): at blanks that are not
/// between double quotes. Quotes around a parameter or a value are removed.
pub fn parse_command_line(line: &str) -> Vec<Parameter> {
    words(line).take_while(|word| *word != "--").map(word).collect()
}

/// Returns the words of a kernel command line, with their quotes.
pub fn words(line: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    let apart = move |c: char| {
        quoted ^= c == '"';
        !quoted && c.is_ascii_whitespace()
    };
    line.split(apart).filter(|word| !word.is_empty())
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

/// Returns the credentials whose names begin with `prefix`: those of the service in the directory
/// `own`, those of the system, and those in the firmware's OEM strings. Each line of a credential
/// is a parameter.
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

/// Returns the firmware's OEM strings: those of all SMBIOS structures of type 11 (SMBIOS 3.6
/// §7.12).
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

/// An SMBIOS structure.
struct Structure<'a> {
    kind: u8,
    strings: Vec<&'a [u8]>,
}

impl<'a> Structure<'a> {
    /// Parses the first structure of the table; returns it and the rest. A structure is a formatted
    /// area whose length is in its second byte, strings that each end with a zero byte, and one
    /// more zero byte; two zero bytes without strings (SMBIOS 3.6 §6.1.3).
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
    fn command_line_is_split_as_the_kernel_does() {
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
    fn each_line_of_a_credential_is_a_parameter() {
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
    fn credentials_are_read_from_oem_strings() {
        let fake = Fake::new();
        fake.file("sys/firmware/dmi/tables/DMI", table());
        let strings = firmware_strings(&fake.tree());
        assert_eq!(strings, ["io.systemd.credential:storagetm.writable=S1", "plain"]);
        let found = credentials(&fake.tree(), None, "storagetm.");
        assert_eq!(pairs(&found), [("storagetm.writable", Some("S1"))]);
    }

    #[test]
    fn truncated_smbios_table_does_not_panic() {
        let table = table();
        for cut in 0..table.len() {
            let fake = Fake::new();
            fake.file("sys/firmware/dmi/tables/DMI", &table[..cut]);
            assert!(firmware_strings(&fake.tree()).len() <= 2);
        }
    }
}
