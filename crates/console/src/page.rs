//! Line layout: wrapped sentences, commands that are never wrapped, colours.

use crate::width::columns;
use crate::{Disk, Host, Model, decimal, escape_unprintable, short_host_nqn};
use export::Access;
use protocol::endpoint::Endpoint;
use protocol::{PROTOCOLS, Protocol};

/// The display properties.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// Number of columns. Commands may be longer.
    pub width: usize,
    /// Whether colours may be used (ECMA-48 SGR).
    pub color: bool,
    /// Whether the locale is UTF-8; otherwise ASCII only.
    pub utf8: bool,
}

impl Style {
    /// Plain text, for pipes and logs.
    pub const PLAIN: Self = Self { width: 100, color: false, utf8: false };
}

/// The role of a text, which determines its colour.
#[derive(Clone, Copy)]
pub(crate) enum Role {
    Title,
    Command,
    Warning,
    Dim,
}

/// A page under construction.
pub(crate) struct Page {
    pub(crate) style: Style,
    pub(crate) lines: Vec<String>,
}

impl Page {
    pub(crate) fn new(style: Style) -> Self {
        Self { style, lines: Vec::new() }
    }

    /// Adds an empty line.
    pub(crate) fn blank(&mut self) {
        self.lines.push(String::new());
    }

    /// Adds a line as it is.
    pub(crate) fn push(&mut self, line: String) {
        self.lines.push(line);
    }

    /// Adds a wrapped sentence.
    pub(crate) fn sentence(&mut self, text: &str) {
        self.paragraph(text, None);
    }

    /// Adds a wrapped sentence in the colour of a role.
    pub(crate) fn colored(&mut self, role: Role, text: &str) {
        self.paragraph(text, Some(role));
    }

    fn paragraph(&mut self, text: &str, role: Option<Role>) {
        let words: Vec<String> = self.escape(text).split(' ').map(str::to_owned).collect();
        for line in wrap(&words, " ", self.style.width) {
            self.lines.push(match role {
                Some(role) => self.colorize(role, &line),
                None => line,
            });
        }
    }

    /// Adds a command: indented, never wrapped.
    pub(crate) fn command(&mut self, line: &str) {
        let line = self.escape(line);
        self.push(format!("    {}", self.colorize(Role::Command, &line)));
    }

    /// Adds facts separated by commas, indented and wrapped.
    pub(crate) fn facts(&mut self, facts: &[String]) {
        for line in wrap(facts, ", ", self.style.width.saturating_sub(2)) {
            self.push(format!("  {line}"));
        }
    }

    /// Adds name and model of a disk, followed on a terminal by a horizontal line.
    pub(crate) fn disk_heading(&mut self, disk: &Disk) {
        let title = self.escape(&disk.title);
        let name = match self.escape(&disk.model) {
            model if model.is_empty() => title,
            model => format!("{title}: {model}"),
        };
        let left = self.style.width.saturating_sub(columns(&name) + 1).min(60);
        let stroke = if self.style.utf8 { "\u{2500}" } else { "-" };
        let line = if self.style.color { stroke.repeat(left) } else { String::new() };
        let name = self.colorize(Role::Title, &name);
        self.push(format!("{name} {}", self.colorize(Role::Dim, &line)).trim_end().to_owned());
    }

    /// Formats the access to a disk.
    pub(crate) fn access(&self, disk: &Disk) -> String {
        match (disk.access, &disk.kept) {
            (Access::ReadOnly, _) => "read-only".to_owned(),
            (Access::Writable, Some(kept)) => {
                let bytes = decimal(kept.bytes);
                let place = if kept.in_files { "files" } else { "memory" };
                format!("overlay: {bytes} of changes in {place}, the disk is not changed")
            }
            (Access::Writable, None) => {
                self.colorize(Role::Warning, "writable: hosts can change it")
            }
        }
    }

    /// Escapes control characters, and non-ASCII text outside UTF-8.
    pub(crate) fn escape(&self, text: &str) -> String {
        escape_unprintable(text, self.style.utf8)
    }

    /// Returns text in the colour of a role, or as it is without colours.
    pub(crate) fn colorize(&self, role: Role, text: &str) -> String {
        if !self.style.color || text.is_empty() {
            return text.to_owned();
        }
        let code = match role {
            Role::Title => "1",
            Role::Command => "32",
            Role::Warning => "1;33",
            Role::Dim => "2",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// Returns the display name of a host: its configured name, else its NQN, else its address.
pub(crate) fn name_of(host: &Host, utf8: bool) -> String {
    match &host.known_as {
        Some(name) => escape_unprintable(name, utf8),
        None if host.nqn.is_empty() => host.address.clone(),
        None => short_host_nqn(&host.nqn, utf8),
    }
}

/// Formats an attached host and its address.
pub(crate) fn attached_by(host: &Host, utf8: bool) -> String {
    if host.known_as.is_none() && host.nqn.is_empty() {
        return format!("attached from {}", host.address);
    }
    format!("attached by {} at {}", name_of(host, utf8), host.address)
}

/// Formats digits in groups of four.
pub(crate) fn group_digits(digits: &str) -> String {
    let all: Vec<char> = digits.chars().collect();
    all.chunks(4).map(String::from_iter).collect::<Vec<_>>().join(" ")
}

/// Joins parts by `separator`, wrapped to `width` columns; a part is never broken.
pub(crate) fn wrap(parts: &[String], separator: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for part in parts {
        let last = lines
            .last_mut()
            .filter(|line| columns(line) + separator.len() + columns(part) <= width);
        match last {
            Some(line) => line.extend([separator, part]),
            None => lines.push(part.clone()),
        }
    }
    lines
}

/// Names the protocols by which disks are served: the first one of the table if there is no
/// endpoint yet.
pub(crate) fn protocols(model: &Model) -> String {
    let served = labels(model.endpoints.iter());
    if served.is_empty() { PROTOCOLS[0].label.to_owned() } else { served }
}

/// Names the protocols of endpoints: `NVMe/TCP and NBD`.
pub(crate) fn labels<'a>(endpoints: impl Iterator<Item = &'a Endpoint>) -> String {
    let served: Vec<Protocol> = endpoints.map(|at| at.protocol).collect();
    let rows = PROTOCOLS.iter().filter(|row| served.contains(&row.protocol));
    protocol::joined(rows.map(|row| row.label), "and")
}

/// Formats the number of disks.
pub(crate) fn disk_count(disks: usize) -> String {
    match disks {
        0 => "no disk yet".to_owned(),
        1 => "1 disk".to_owned(),
        n => format!("{n} disks"),
    }
}
