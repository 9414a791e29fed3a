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
    Iso,
    Entry,
}

/// Firmware of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Firmware {
    UefiSecureBoot,
    Uefi,
    Uefi32,
    Bios,
}

impl Firmware {
    fn name(self) -> &'static str {
        match self {
            Self::UefiSecureBoot => "UEFI with Secure Boot",
            Self::Uefi => "UEFI without Secure Boot",
            Self::Uefi32 => "32-bit UEFI without Secure Boot",
            Self::Bios => "BIOS",
        }
    }
}

/// The firmware that starts a stick or CD, and why others do not.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Starts {
    #[serde(rename = "starts")]
    on: Vec<Firmware>,
    #[serde(rename = "does_not_start")]
    not_on: Vec<Missing>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Missing {
    firmware: Firmware,
    reason: String,
}

impl Starts {
    pub(super) fn on(&mut self, firmware: Firmware) {
        self.on.push(firmware);
    }

    pub(super) fn not_on(&mut self, firmware: Firmware, reason: String) {
        self.on.retain(|other| *other != firmware);
        self.not_on.push(Missing { firmware, reason });
    }

    #[cfg(test)]
    pub(super) fn has(&self, firmware: Firmware) -> bool {
        self.on.contains(&firmware)
    }

    /// Returns lines of text.
    fn text(&self) -> String {
        let names: Vec<&str> = self.on.iter().map(|firmware| firmware.name()).collect();
        let mut text = String::new();
        if !names.is_empty() {
            text = format!("Starts on: {}.\n", names.join("; "));
        }
        for Missing { firmware, reason } in &self.not_on {
            let reason = console::escape_unprintable(reason, true);
            text.push_str(&format!("Does not start on {}: {reason}.\n", firmware.name()));
        }
        text
    }
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
    /// Drivers of disks and networks that are not in the image.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) left_out_drivers: Vec<String>,
    /// Firmware files that are not in the image because of their size.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) left_out_firmware: Vec<String>,
    #[serde(flatten)]
    starts: Option<Starts>,
    /// The command that chooses an entry for the next start.
    #[serde(skip_serializing_if = "Option::is_none")]
    once: Option<String>,
    /// Whether it starts a system from a lent disk.
    #[serde(skip)]
    pub(super) boots_lent: bool,
    /// Whether the boot loader can start an entry once and no more.
    #[serde(skip)]
    forgets_choice: bool,
}

impl Report {
    pub(super) fn new(kind: Kind, kernel: &str, modules: usize, firmware: usize) -> Self {
        let kernel = kernel.to_owned();
        let path = String::new();
        Self {
            event: "image",
            kind,
            path,
            bytes: 0,
            kernel,
            modules,
            firmware,
            left_out_drivers: Vec::new(),
            left_out_firmware: Vec::new(),
            starts: None,
            once: None,
            boots_lent: false,
            forgets_choice: false,
        }
    }

    /// Sets the command that chooses the entry for the next start, if the loader
    /// [forgets the choice](super::entry::Loader::forgets_choice) then.
    pub(super) fn once(self, command: String, forgets_choice: bool) -> Self {
        Self { once: Some(command).filter(|_| forgets_choice), forgets_choice, ..self }
    }

    pub(super) fn with(self, starts: Starts) -> Self {
        Self { starts: Some(starts), ..self }
    }

    /// Records that BIOS does not start from larger blocks than its own.
    pub(super) fn on_blocks(mut self, block: u32) -> Self {
        let with_bios = |starts: &&mut Starts| starts.on.contains(&Firmware::Bios) && block != 512;
        if let Some(starts) = self.starts.as_mut().filter(with_bios) {
            let reason = format!("the disk has blocks of {block} bytes, and BIOS needs 512");
            starts.not_on(Firmware::Bios, reason);
        }
        self
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
            "{path}: {}, kernel {kernel}, {modules} drivers, {firmware} firmware files\n{}{}{}\n",
            decimal(*bytes),
            self.left_out(),
            self.starts.as_ref().map(Starts::text).unwrap_or_default(),
            self.next(&path)
        )
    }

    /// Returns what is not in the image, a line for each kind.
    fn left_out(&self) -> String {
        let line = |what: &str, names: &[String], how: &str| match names.is_empty() {
            true => String::new(),
            false => {
                let names = console::escape_unprintable(&names.join(", "), true);
                format!("Without the {what} {names}{how}.\n")
            }
        };
        let firmware = &self.left_out_firmware;
        line("drivers", &self.left_out_drivers, "")
            + &line("large firmware files", firmware, " (--all-firmware includes them)")
    }

    /// Returns the next step for the user.
    fn next(&self, path: &str) -> String {
        match self.kind {
            Kind::Initramfs if self.boots_lent => format!(
                "Boot the kernel {} with it as its initrd and the kernel parameter storagetm.boot.",
                self.kernel
            ),
            Kind::Initramfs => format!(
                "Boot the kernel {} with it as its initrd; nothing else is needed.",
                self.kernel
            ),
            Kind::Uki => format!(
                "Put it where the boot loader finds it (EFI/Linux on the EFI system partition), or run {path} from the \
                 EFI shell."
            ),
            Kind::Entry if !self.forgets_choice => "Choose it in the boot menu. Do not use grub-reboot here: GRUB cannot \
                                                    clear that choice on this disk, or that is not known, and would \
                                                    start target mode each time."
                .to_owned(),
            Kind::Entry => format!(
                "Choose it in the boot menu, or for the next start only:\n  {} && reboot\nThe machine comes back by a \
                 restart.",
                self.once.as_deref().unwrap_or_default()
            ),
            Kind::Disk | Kind::Iso if self.boots_lent => {
                "Boot from it: the machine then asks which disk of another machine to start from.".to_owned()
            }
            Kind::Disk | Kind::Iso => {
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

    #[test]
    fn drivers_and_firmware_that_are_left_out_are_named() {
        let mut report = Report::new(Kind::Initramfs, "6.12", 5, 0);
        assert!(
            Report { boots_lent: true, ..report.clone() }.text().ends_with("storagetm.boot.\n")
        );
        assert!(!report.text().contains("Without"));
        report.left_out_drivers = vec!["lpfc".to_owned(), "qed".to_owned()];
        report.left_out_firmware = vec!["mellanox/large.mfa2".to_owned()];
        let text = report.text();
        for line in [
            "\nWithout the drivers lpfc, qed.\n",
            "\nWithout the large firmware files mellanox/large.mfa2 (--all-firmware includes them).\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
        assert!(report.json().unwrap().contains("\"left_out_drivers\":[\"lpfc\",\"qed\"]"));
    }

    #[test]
    fn firmware_that_starts_a_stick_is_named() {
        let mut starts = Starts::default();
        starts.not_on(Firmware::UefiSecureBoot, "the kernel a is not signed".to_owned());
        starts.on(Firmware::Uefi);
        starts.on(Firmware::Bios);
        let report = Report::new(Kind::Disk, "6.12", 5, 0).with(starts);
        let text = report.text();
        for line in [
            "Starts on: UEFI without Secure Boot; BIOS.\n",
            "Does not start on UEFI with Secure Boot: the kernel a is not signed.\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
        assert!(report.json().unwrap().ends_with(
            "\"starts\":[\"uefi\",\"bios\"],\"does_not_start\":[{\"firmware\":\"uefi-secure-boot\",\
             \"reason\":\"the kernel a is not signed\"}]}\n"
        ));
        let text = report.clone().on_blocks(4096).text();
        assert!(text.contains("Does not start on BIOS: the disk has blocks of 4096"), "{text}");
        assert_eq!(report.clone().on_blocks(512), report);
    }
}
