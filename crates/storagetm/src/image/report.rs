//! Result of `storagetm image`, as text and as JSON.

use std::io::{self, Write};
use std::path::Path;

use console::decimal;
use serde::Serialize;

use daemon::event::escaped;
use failure::Failure;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    Initramfs,
    Uki,
    Disk,
}

/// What was built: one JSON line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Report {
    event: &'static str,
    kind: Kind,
    path: String,
    bytes: u64,
    kernel: String,
    modules: usize,
    firmware: usize,
}

impl Report {
    pub(super) fn new(kind: Kind, kernel: &str, modules: usize, firmware: usize) -> Self {
        let kernel = kernel.to_owned();
        Self { event: "image", kind, path: String::new(), bytes: 0, kernel, modules, firmware }
    }

    pub(super) fn of_size(mut self, bytes: usize) -> Self {
        self.bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self
    }

    /// Prints the result to standard output.
    pub(super) fn print(mut self, path: &Path, json: bool) -> Result<(), Failure> {
        self.path = path.display().to_string();
        let text = if json { self.json()? } else { self.text() };
        let written = io::stdout().write_all(text.as_bytes());
        written.map_err(|error| Failure::new(format!("standard output cannot be written: {error}")))
    }

    fn json(&self) -> Result<String, Failure> {
        let text = serde_json::to_string(self).map_err(Failure::new)?;
        Ok(escaped(&text) + "\n")
    }

    fn text(&self) -> String {
        let path = console::escape_unprintable(&self.path, true);
        let Self { bytes, kernel, modules, firmware, .. } = self;
        format!(
            "{path}: {}, kernel {kernel}, {modules} drivers, {firmware} firmware files\n{}\n",
            decimal(*bytes),
            self.next(&path)
        )
    }

    /// Returns the next step for the user.
    fn next(&self, path: &str) -> String {
        match self.kind {
            Kind::Initramfs => format!(
                "Boot the kernel {} with it as its initrd; nothing else is needed.",
                self.kernel
            ),
            Kind::Uki => format!(
                "Put it where the boot loader finds it (EFI/Linux on the EFI system partition), or run {path} from the \
                 EFI shell."
            ),
            Kind::Disk => {
                "Boot from it: the machine then shows what to type on the other one.".to_owned()
            }
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_json_is_the_documented_one() {
        let mut report = Report::new(Kind::Uki, "6.12", 5, 0).of_size(100);
        report.path = "a\u{1b}.efi".to_owned();
        assert_eq!(
            report.json().unwrap(),
            "{\"event\":\"image\",\"kind\":\"uki\",\"path\":\"a\\u001b.efi\",\"bytes\":100,\"kernel\":\"6.12\",\
             \"modules\":5,\"firmware\":0}\n"
        );
        assert!(!report.text().contains('\u{1b}'));
    }
}
