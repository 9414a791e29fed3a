//! Lines as they are made: sentences that are broken between words, lines to be typed that are never broken, colours.

use crate::width::columns;
use crate::{Disk, Host, Model, host_name, printable};
use export::Access;

/// How the lines are to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// Columns that there are; lines to be typed may be longer.
    pub width: usize,
    /// Whether colours may be used (ECMA-48 SGR).
    pub color: bool,
    /// Whether the locale has more than ASCII.
    pub utf8: bool,
}

impl Style {
    /// Plain text, for a pipe or a log.
    pub const PLAIN: Self = Self { width: 100, color: false, utf8: false };
}

/// What a piece of text is, from which its colour follows.
#[derive(Clone, Copy)]
pub(crate) enum Ink {
    Title,
    Typed,
    Alarm,
    Faint,
}

/// Lines as they are made.
pub(crate) struct Page {
    pub(crate) style: Style,
    pub(crate) lines: Vec<String>,
}

impl Page {
    pub(crate) fn new(style: Style) -> Self {
        Self { style, lines: Vec::new() }
    }

    /// An empty line.
    pub(crate) fn blank(&mut self) {
        self.lines.push(String::new());
    }

    /// A line as it is.
    pub(crate) fn push(&mut self, line: String) {
        self.lines.push(line);
    }

    /// A sentence, broken between words.
    pub(crate) fn sentence(&mut self, text: &str) {
        self.paragraph(text, None);
    }

    /// A sentence in a colour.
    pub(crate) fn colored(&mut self, ink: Ink, text: &str) {
        self.paragraph(text, Some(ink));
    }

    fn paragraph(&mut self, text: &str, ink: Option<Ink>) {
        let words: Vec<String> = self.safe(text).split(' ').map(str::to_owned).collect();
        for line in filled(&words, " ", self.style.width) {
            self.lines.push(match ink {
                Some(ink) => self.ink(ink, &line),
                None => line,
            });
        }
    }

    /// A line to be typed: indented, never broken.
    pub(crate) fn typed(&mut self, line: &str) {
        let line = self.safe(line);
        self.push(format!("    {}", self.ink(Ink::Typed, &line)));
    }

    /// Facts with commas between them, indented.
    pub(crate) fn facts(&mut self, facts: &[String]) {
        for line in filled(facts, ", ", self.style.width.saturating_sub(2)) {
            self.push(format!("  {line}"));
        }
    }

    /// The disk's name and model, on a terminal with a line to the right of them.
    pub(crate) fn rule(&mut self, disk: &Disk) {
        let title = self.safe(&disk.title);
        let name = match self.safe(&disk.model) {
            model if model.is_empty() => title,
            model => format!("{title}: {model}"),
        };
        let left = self.style.width.saturating_sub(columns(&name) + 1).min(60);
        let stroke = if self.style.utf8 { "\u{2500}" } else { "-" };
        let line = if self.style.color { stroke.repeat(left) } else { String::new() };
        let name = self.ink(Ink::Title, &name);
        self.push(format!("{name} {}", self.ink(Ink::Faint, &line)).trim_end().to_owned());
    }

    /// What hosts may do with a disk.
    pub(crate) fn access(&self, disk: &Disk) -> String {
        match disk.access {
            Access::ReadOnly => "read-only".to_owned(),
            Access::Writable => self.ink(Ink::Alarm, "writable: hosts can change it"),
        }
    }

    pub(crate) fn safe(&self, text: &str) -> String {
        printable(text, self.style.utf8)
    }

    pub(crate) fn ink(&self, ink: Ink, text: &str) -> String {
        if !self.style.color || text.is_empty() {
            return text.to_owned();
        }
        let code = match ink {
            Ink::Title => "1",
            Ink::Typed => "32",
            Ink::Alarm => "1;33",
            Ink::Faint => "2",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// A host as people call it: by its owner's name for it, else by the name that it gives itself.
pub(crate) fn name_of(host: &Host, utf8: bool) -> String {
    match &host.known_as {
        Some(name) => printable(name, utf8),
        None if host.nqn.is_empty() => host.address.to_string(),
        None => host_name(&host.nqn, utf8),
    }
}

/// A host that has attached a disk, and its address.
pub(crate) fn attached_by(host: &Host, utf8: bool) -> String {
    if host.known_as.is_none() && host.nqn.is_empty() {
        return format!("attached from {}", host.address);
    }
    format!("attached by {} at {}", name_of(host, utf8), host.address)
}

/// Digits as they are read aloud: in groups of four.
pub(crate) fn in_groups(digits: &str) -> String {
    let all: Vec<char> = digits.chars().collect();
    all.chunks(4).map(String::from_iter).collect::<Vec<_>>().join(" ")
}

/// The parts with `between` them, on as many lines as their width needs; a part is never broken.
pub(crate) fn filled(parts: &[String], between: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for part in parts {
        let room =
            lines.last_mut().filter(|line| columns(line) + between.len() + columns(part) <= width);
        match room {
            Some(line) => line.extend([between, part]),
            None => lines.push(part.clone()),
        }
    }
    lines
}

/// Protocols by which the disks are lent.
pub(crate) fn protocols(model: &Model) -> &'static str {
    match (model.endpoints.is_empty(), model.nbd.is_empty()) {
        (_, true) => "NVMe/TCP",
        (true, false) => "NBD",
        (false, false) => "NVMe/TCP and NBD",
    }
}

/// How many disks there are.
pub(crate) fn count(disks: usize) -> String {
    match disks {
        0 => "no disk yet".to_owned(),
        1 => "1 disk".to_owned(),
        n => format!("{n} disks"),
    }
}
