//! Confirmation before an existing disk or file is overwritten: shows what it is and what is on it,
//! and asks for its name. All commands that write use it; scripts pass an option instead.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::Path;

use console::{decimal, escape_lines_to_ascii, escape_unprintable};
use linux::block::Disk;
use linux::in_use::Machine;

use crate::inspect;

/// Maximum length of an answer.
const MAX_ANSWER: u64 = 256;

/// A disk or a file that would be overwritten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OverwriteTarget {
    /// The path or address, as typed.
    pub(crate) path: String,
    /// The name to be typed: the last part of the path.
    pub(crate) name: String,
    /// Model, serial number, size and contents.
    pub(crate) description: String,
    /// Size.
    pub(crate) bytes: u64,
    /// The option that confirms without a prompt.
    pub(crate) option: &'static str,
}

impl OverwriteTarget {
    /// Describes a disk of this machine.
    pub(crate) fn device(
        path: &Path,
        machine: &Machine,
        disk: &Disk,
        option: &'static str,
    ) -> Self {
        let whole = machine.disk(disk.whole()).unwrap_or(disk);
        let mut parts: Vec<String> = Vec::new();
        if let Some(part) = &disk.part {
            parts.push(format!("partition {} of {}", part.number, part.whole_disk));
        }
        parts.extend(whole.hardware.model.clone());
        parts.extend(whole.hardware.serial.as_ref().map(|it| format!("serial number {it}")));
        parts.push(decimal(disk.bytes));
        let survey = File::open(path).map_err(|error| error.to_string()).and_then(|file| {
            let block = rustix::fs::ioctl_blksszget(&file).ok();
            inspect::survey(&file, disk.bytes, block)
        });
        parts.push(contents(survey));
        Self {
            path: path.display().to_string(),
            name: disk.name.clone(),
            description: parts.join(", "),
            bytes: disk.bytes,
            option,
        }
    }

    /// Describes a regular file. Returns `None` if there is none.
    ///
    /// # Errors
    /// Fails with a sentence if the file cannot be examined.
    pub(crate) fn file(path: &Path, option: &'static str) -> Result<Option<Self>, String> {
        let meta = match path.metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => {
                other.map_err(|error| format!("{} cannot be looked at: {error}", path.display()))?
            }
        };
        let contents = match File::open(path) {
            _ if meta.len() == 0 => "an empty file".to_owned(),
            Ok(file) => contents(inspect::survey(&file, meta.len(), None)),
            Err(_) => contents(Err(String::new())),
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Some(Self {
            path: path.display().to_string(),
            name,
            description: format!("{}, {contents}", decimal(meta.len())),
            bytes: meta.len(),
            option,
        }))
    }
}

/// Describes the contents of a disk, for [`OverwriteTarget::description`].
pub(crate) fn contents(survey: Result<filesystem::Survey, String>) -> String {
    survey.map_or_else(|_| "what is on it cannot be read".to_owned(), |survey| survey.describe())
}

impl fmt::Display for OverwriteTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.path, self.description)
    }
}

/// Asks the user to type the name, unless the option was `given`. `with` is what is to be written.
///
/// # Errors
/// Fails with a sentence if the user declines, or without a terminal.
pub(crate) fn confirm(overwrite: &OverwriteTarget, with: &str, given: bool) -> Result<(), String> {
    if given {
        return Ok(());
    }
    let input = io::stdin();
    if !input.is_terminal() || !io::stderr().is_terminal() {
        return Err(format!(
            "{overwrite} is there and would be overwritten; if that may be, add {}",
            overwrite.option
        ));
    }
    let question = format!("{overwrite}\nwill be overwritten with {with}. This cannot be undone.");
    let mut output = io::stderr();
    let _ = writeln!(output, "{}", escape_lines_to_ascii(&question));
    let _ = write!(output, "Type {} to go on: ", escape_unprintable(&overwrite.name, true));
    let _ = output.flush();
    if is_confirmed(input.lock(), &overwrite.name) {
        return Ok(());
    }
    Err(format!("{} is left as it is: that was not its name", overwrite.path))
}

/// Asks the user to type the name before something is added, unless the option was `given`.
///
/// # Errors
/// Fails with a sentence if the user declines, or without a terminal.
pub(crate) fn consent(question: &str, name: &str, option: &str, given: bool) -> Result<(), String> {
    if given {
        return Ok(());
    }
    let input = io::stdin();
    if !input.is_terminal() || !io::stderr().is_terminal() {
        return Err(format!("{question}; if that may be, add {option}"));
    }
    let mut output = io::stderr();
    let _ = write!(output, "{}\nType {name} to go on: ", escape_lines_to_ascii(question));
    let _ = output.flush();
    let is_confirmed = is_confirmed(input.lock(), name);
    if is_confirmed { Ok(()) } else { Err(format!("nothing is done: {name} was not typed")) }
}

/// Returns whether the line read is the name, or `yes`.
fn is_confirmed(input: impl BufRead, name: &str) -> bool {
    let mut line = String::new();
    let read = input.take(MAX_ANSWER).read_line(&mut line);
    let line = line.trim();
    read.is_ok() && (line == name || line == "yes" || line.strip_prefix("/dev/") == Some(name))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn only_the_name_or_yes_confirms() {
        for (typed, agrees) in [
            ("sdb\n", true),
            (" yes \n", true),
            ("/dev/sdb\n", true),
            ("sda\n", false),
            ("y\n", false),
            ("\n", false),
            ("", false),
            ("sdb sdb\n", false),
        ] {
            assert_eq!(is_confirmed(typed.as_bytes(), "sdb"), agrees, "{typed:?}");
        }
        let long = "x".repeat(1000);
        assert!(!is_confirmed(long.as_bytes(), "sdb"));
    }

    /// The tests have no terminal.
    #[test]
    fn confirmation_without_a_terminal_fails() {
        if io::stdin().is_terminal() && io::stderr().is_terminal() {
            println!("skip asking without a terminal: there is one");
            return;
        }
        let overwrite = OverwriteTarget {
            path: "/dev/sdb".to_owned(),
            name: "sdb".to_owned(),
            description: "1 TB".to_owned(),
            bytes: 1 << 40,
            option: "--yes",
        };
        let said = confirm(&overwrite, "a", false).unwrap_err();
        assert!(said.contains("/dev/sdb (1 TB)") && said.contains("--yes"), "{said}");
        assert_eq!(confirm(&overwrite, "a", true), Ok(()));
    }
}
