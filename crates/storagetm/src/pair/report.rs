//! Result of `storagetm pair`, as text and as JSON. Contains no key.

use std::path::PathBuf;

use console::{decimal, escape_unprintable};
use serde::Serialize;

use keys::record::Allowed;
use keys::target::Target;
use protocol::commands::quoted;
use protocol::endpoint::NetAddr;
use protocol::nvme;
use remote::host_nqn::{FILE, HostNqn};

#[derive(Debug, Serialize)]
pub(super) struct Report {
    target: String,
    access: Allowed,
    host: String,
    in_keyring: bool,
    keys_file: PathBuf,
    attach_all: String,
    disks: Vec<Row>,
    #[serde(skip)]
    note: Option<String>,
    /// The commands of this program that copy the first disk, and attach all.
    #[serde(skip)]
    storagetm_commands: Option<[String; 2]>,
}

/// A disk, and the command that attaches it.
#[derive(Debug, Serialize)]
struct Row {
    nqn: String,
    name: String,
    bytes: u64,
    access: Allowed,
    attach: String,
}

impl Row {
    /// The name in a URI: the last part of the disk's name, or the NQN if that needs quoting.
    fn uri_name(&self) -> &str {
        let last = self.name.rsplit('/').next().unwrap_or_default();
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if !last.is_empty() && last.chars().all(plain) { last } else { &self.nqn }
    }
}

impl Report {
    /// `note` is the reason why the key is not in the kernel's keyring, if so.
    pub(super) fn new(
        target: &Target,
        own: &HostNqn,
        there: &NetAddr,
        keys_file: PathBuf,
        note: Option<String>,
    ) -> Self {
        // If nvme-cli would use another host NQN, each command needs --hostnqn.
        let host =
            if own.is_from_nvme_cli { String::new() } else { format!(" --hostnqn {}", own.nqn) };
        let disks = target.disks.iter().map(|disk| Row {
            nqn: disk.nqn.clone(),
            name: disk.name.clone(),
            bytes: disk.bytes,
            access: disk.access,
            attach: nvme::attach(there, true, &disk.nqn, false) + &host,
        });
        Self {
            target: target.name.clone(),
            access: target.access,
            host: own.nqn.clone(),
            in_keyring: note.is_none(),
            keys_file,
            attach_all: nvme::attach_all(there, true, false) + &host,
            storagetm_commands: disks.clone().next().map(|first| {
                let all = if target.disks.len() > 1 { " --all" } else { "" };
                let attach = format!("storagetm attach {}{all}", quoted(&nvme::machine(there)));
                [nvme::copy(there, first.uri_name()), attach]
            }),
            disks: disks.collect(),
            note,
        }
    }

    pub(super) fn text(&self) -> String {
        let what = match self.access {
            Allowed::ReadOnly => "may read its disks",
            Allowed::Writable => "may read its disks, and change those that it lends writable",
        };
        let mut lines = vec![format!("{} has let this machine in: it {what}.", self.target)];
        lines.extend(self.keys());
        lines.push(String::new());
        lines.extend(self.storagetm_commands());
        lines.extend(self.nvme_cli_commands());
        let lines: Vec<String> = lines.iter().map(|line| escape_unprintable(line, true)).collect();
        lines.join("\n") + "\n"
    }

    fn keys(&self) -> Vec<String> {
        let file = self.keys_file.display();
        let mut lines = match &self.note {
            None => vec![
                "The key is in the kernel's keyring until this machine restarts. storagetm attach puts \
                 it there again; for nvme-cli (2.9 or newer), as root:"
                    .to_owned(),
            ],
            Some(note) => vec![
                format!("The key is not in the kernel's keyring: {note}."),
                "storagetm attach puts it there; for nvme-cli (2.9 or newer), as root:".to_owned(),
                "  modprobe nvme-tcp".to_owned(),
            ],
        };
        lines.push(format!("  nvme tls-key --import --keyfile {file}"));
        lines.push(format!("  (nvme-cli 3: nvme keys import --keyfile {file})"));
        lines
    }

    /// Commands of this program.
    fn storagetm_commands(&self) -> Vec<String> {
        let Some([copy, attach]) = &self.storagetm_commands else {
            return vec!["It lends none just now; when it does: storagetm find".to_owned()];
        };
        vec![
            "To copy a disk into a file, without rights:".to_owned(),
            format!("  {copy}"),
            "To attach what it lends, as root (Linux 6.7 or newer):".to_owned(),
            format!("  {attach}"),
        ]
    }

    fn nvme_cli_commands(&self) -> Vec<String> {
        if self.disks.is_empty() {
            return Vec::new();
        }
        let mut lines = vec![
            "The same with nvme-cli 2.9 or newer; all of them, or one:".to_owned(),
            format!("  {}", self.attach_all),
        ];
        for disk in &self.disks {
            let access = match disk.access {
                Allowed::ReadOnly => "read-only",
                Allowed::Writable => "writable",
            };
            lines.push(format!("  {}, {}, {access}:", disk.name, decimal(disk.bytes)));
            lines.push(format!("  {}", disk.attach));
        }
        lines
    }
}

/// Advises to write the host NQN file if nvme-cli has none.
pub(super) fn advice(own: &HostNqn) -> Option<String> {
    let advice = format!(
        "nvme-cli calls this machine otherwise, or nothing: to leave --hostnqn out, write {} to {FILE}",
        own.nqn
    );
    (!own.is_from_nvme_cli).then(|| escape_unprintable(&advice, true))
}

#[cfg(test)]
mod test {
    use super::*;
    use keys::key::Key;
    use keys::key::KeyKind;
    use keys::target::Disk;

    fn report(is_from_nvme_cli: bool, note: Option<&str>) -> (Report, String) {
        let tls = Key::generate(KeyKind::Tls, None).unwrap();
        let secret = String::from_utf8(tls.text().bytes().to_vec()).unwrap();
        let disk = Disk {
            nqn: "nqn.2024-01.test:disk0".to_owned(),
            name: "sda\u{1b}[2J".to_owned(),
            bytes: 512_000_000,
            access: Allowed::ReadOnly,
        };
        let target = Target {
            name: "desk\npc".to_owned(),
            address: "10.0.0.1".to_owned(),
            port: 4420,
            host: "nqn.2024-01.test:a".to_owned(),
            access: Allowed::ReadOnly,
            tls,
            disks: vec![disk],
        };
        let own = HostNqn { nqn: "nqn.2024-01.test:a".to_owned(), is_from_nvme_cli };
        let there = NetAddr { ip: "10.0.0.1".parse().unwrap(), interface: None, port: 4420 };
        (Report::new(&target, &own, &there, "/s/a.keys".into(), note.map(str::to_owned)), secret)
    }

    #[test]
    fn text_contains_the_commands() {
        let text = report(true, None).0.text();
        assert!(text.contains("\n  storagetm attach 10.0.0.1\n"), "{text}");
        // A name that needs quoting is replaced by the NQN.
        let copy = "\n  storagetm copy nvme://10.0.0.1/nqn.2024-01.test%3Adisk0 ";
        assert!(text.contains(copy), "{text}");
        assert!(text.contains("\n  nvme connect-all -t tcp -a 10.0.0.1 -s 4420 --tls\n"), "{text}");
        assert!(text.contains("-n nqn.2024-01.test:disk0 --tls\n"), "{text}");
        let text = report(false, Some("no root")).0.text();
        assert!(text.contains("--tls --hostnqn nqn.2024-01.test:a\n"), "{text}");
    }

    /// nvme-cli 2.3 has neither `--tls` nor `tls-key`, and nvme-cli 3 has another command for keys.
    #[test]
    fn nvme_cli_versions_are_named_where_they_matter() {
        for note in [None, Some("no root")] {
            let text = report(true, note).0.text();
            assert!(text.contains("for nvme-cli (2.9 or newer)"), "{text}");
            assert!(text.contains("\n  nvme tls-key --import --keyfile /s/a.keys\n"), "{text}");
            assert!(text.contains("nvme-cli 3: nvme keys import --keyfile /s/a.keys)\n"), "{text}");
            assert!(text.contains("with nvme-cli 2.9 or newer; all of them"), "{text}");
        }
    }

    /// X53: strings from the target contain no control characters, and no key is printed.
    #[test]
    fn x53_report_has_no_escapes_and_no_key() {
        let (report, secret) = report(true, None);
        let (text, json) = (report.text(), serde_json::to_string(&report).unwrap());
        assert!(!text.contains('\u{1b}') && text.contains("desk\\u{a}pc"), "{text}");
        for said in [text, json, format!("{report:?}")] {
            assert!(!said.contains(&secret[16..40]), "{said}");
        }
    }
}
