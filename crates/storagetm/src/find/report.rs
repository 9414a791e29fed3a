//! Result of `storagetm find`, as text and as JSON. Strings from the network are untrusted.

use console::{decimal, escape_unprintable};
use serde::Serialize;

use super::MachineDisks;
use keys::record::Allowed;
use protocol::Protocol;
use protocol::commands::quoted;
use protocol::endpoint::NetAddr;
use protocol::nvme;
use remote::address::TargetAddr;
use remote::machine::{Machine, disk_name};
use remote::query::{Disk, QueryError};

/// Maximum length of a string from the network.
const MAX_CHARS: usize = 64;

/// A machine and its answer.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    name: String,
    addresses: Vec<String>,
    keyed: Option<bool>,
    /// Its name at pairing.
    paired: Option<String>,
    disks: Vec<DiskRow>,
    /// The command that pairs with it, if it requires a key.
    pair: Option<String>,
    nbd: Option<String>,
    /// Why its disks could not be listed.
    reason: Option<String>,
}

/// A disk, and the command that attaches it.
#[derive(Debug, Serialize)]
struct DiskRow {
    nqn: String,
    name: Option<String>,
    model: Option<String>,
    serial: Option<String>,
    bytes: Option<u64>,
    access: Option<Allowed>,
    attach: String,
    uri: String,
    nbd: Option<String>,
}

impl Row {
    pub(super) fn new(machine: &Machine, answer: &MachineDisks<'_>) -> Self {
        let (disks, reason) = match &answer.disks {
            Ok(disks) => (&disks[..], None),
            Err(refusal) => (&[][..], Some(reason(refusal))),
        };
        let there = machine.disks().into_iter().next();
        let nbd = machine
            .services(Protocol::Nbd)
            .first()
            .map(|place| nbd(place, machine.keyed == Some(true)));
        let lent = |disk: &Disk| {
            let alike = disks.iter().filter(|other| other.name == disk.name).count();
            let called = disk.name.as_deref().filter(|name| alike == 1 && is_plain(name));
            let called = called.or_else(|| disk.nqn.rsplit(':').next()).unwrap_or(&disk.nqn);
            let called = (disks.len() > 1).then_some(called);
            DiskRow::new(disk, there.as_ref(), answer, called, nbd.as_deref())
        };
        let needs_key = matches!(answer.disks, Err(QueryError::KeyRequired));
        Self {
            name: machine.name.clone(),
            addresses: machine
                .addresses
                .iter()
                .map(|at| TargetAddr::at(at.address, at.interface.as_deref(), 0).host())
                .collect(),
            keyed: machine.keyed,
            paired: answer.target.map(|target| target.name.clone()),
            disks: disks.iter().map(lent).collect(),
            pair: there.filter(|_| needs_key).map(|place| pair(&place)),
            nbd,
            reason,
        }
    }
}

/// Returns whether the name needs no quoting in a URI and in a shell.
fn is_plain(name: &str) -> bool {
    name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

impl DiskRow {
    /// `called` distinguishes the disk from others of its machine.
    fn new(
        disk: &Disk,
        there: Option<&TargetAddr>,
        answer: &MachineDisks<'_>,
        called: Option<&str>,
        nbd: Option<&str>,
    ) -> Self {
        let place = match there {
            Some(place) => place.with_port(disk.at.port()),
            None => TargetAddr::at(disk.at.ip(), None, disk.at.port()),
        };
        let target = match called {
            Some(called) => format!("{place}/{called}"),
            None => place.to_string(),
        };
        let by_nbd = disk.name.as_deref().filter(|name| is_plain(name));
        let some = |text: &str| (!text.is_empty()).then(|| truncated(text));
        Self {
            nqn: disk.nqn.clone(),
            name: disk_name(disk, answer.target).map(truncated),
            model: some(&disk.model),
            serial: some(&disk.serial),
            bytes: disk.size.map(|(bytes, _)| bytes),
            access: disk.size.map(|(_, access)| access),
            attach: format!("storagetm attach {}", quoted(&target)),
            uri: format!("nvme://{}/{}", authority(&place), disk.nqn),
            nbd: by_nbd.and_then(|name| Some(format!("{}{name}", nbd?))),
        }
    }

    fn line(&self) -> String {
        let name = self.name.as_deref().or(self.model.as_deref()).unwrap_or(&self.nqn);
        let size = self.bytes.map_or_else(|| "size not told".to_owned(), decimal);
        let access = match self.access {
            Some(Allowed::ReadOnly) => ", read-only",
            Some(Allowed::Writable) => ", writable",
            None => "",
        };
        format!("  {name}, {size}{access}")
    }
}

fn truncated(text: &str) -> String {
    text.chars().take(MAX_CHARS).collect()
}

fn reason(refusal: &QueryError) -> String {
    match refusal {
        QueryError::Unreachable(reason) => format!("it does not answer: {}", truncated_reason(reason)),
        QueryError::KeyRequired => "it wants a key, and this machine has none that it knows".to_owned(),
        QueryError::NoKeyAccepted => "it accepts no key of this machine; if it needs none and was never paired, storagetm find --insecure asks it in the clear"
            .to_owned(),
        QueryError::Protocol(reason) => {
            format!("it does not say which disks it has: {}", truncated_reason(reason))
        }
    }
}

fn truncated_reason(text: &str) -> String {
    text.chars().take(MAX_CHARS.saturating_mul(4)).collect()
}

/// Formats host and port for a URI (RFC 3986 §3.2.2): an IPv6 address in brackets, with the zone
/// after `%25` (RFC 6874 §2). A URI cannot express the interface of an IPv4 address.
fn authority(place: &TargetAddr) -> String {
    let (address, port) = (place.name(), place.port());
    match (address.contains(':'), place.interface()) {
        (true, None) => format!("[{address}]:{port}"),
        (true, Some(zone)) => format!("[{address}%25{zone}]:{port}"),
        (false, _) => format!("{address}:{port}"),
    }
}

fn nbd(place: &TargetAddr, keyed: bool) -> String {
    format!("{}://{}/", if keyed { "nbds" } else { "nbd" }, authority(place))
}

fn pair(place: &TargetAddr) -> String {
    let interface = place.interface().map(str::to_owned);
    match place.ip() {
        Some(ip) => nvme::pair(&NetAddr { ip, interface, port: place.port() }),
        None => format!("storagetm pair {}", quoted(&place.to_string())),
    }
}

/// Formats the result for a terminal.
pub(super) fn text(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "No machine nearby says that it lends disks. On the other one `storagetm serve` must run, on the same \
                network or cable. Where the network does not forward multicast, give its address to `copy`, `pair` or `attach`.\n"
            .to_owned();
    }
    let lines = rows.iter().flat_map(lines);
    lines.map(|line| escape_unprintable(&line, true) + "\n").collect()
}

fn lines(row: &Row) -> Vec<String> {
    let called = match &row.paired {
        Some(paired) => format!("{} ({})", truncated(paired), truncated(&row.name)),
        None => truncated(&row.name),
    };
    let mut lines = vec![format!("{called}, at {}", row.addresses.join(", "))];
    for disk in &row.disks {
        lines.push(disk.line());
        lines.push(format!("    {}", disk.attach));
    }
    if let Some(pair) = &row.pair {
        lines.push(format!("  needs a key: {pair}"));
    } else if let Some(reason) = &row.reason {
        lines.push(format!("  {reason}"));
    } else if row.disks.is_empty() && row.nbd.is_none() {
        lines.push("  lends none to this machine just now".to_owned());
    }
    lines.extend(row.nbd.as_ref().map(|uri| format!("  by NBD: {uri}")));
    lines
}

#[cfg(test)]
mod test {
    use super::*;
    use dnssd::FoundService;
    use keys::target::Target;
    use protocol::Protocol;
    use remote::machine::machines;

    fn disk(nqn: &str, model: &str) -> Disk {
        Disk {
            nqn: nqn.to_owned(),
            at: "10.0.0.1:4420".parse().unwrap(),
            name: None,
            signing_key: None,
            model: model.to_owned(),
            serial: "S1".to_owned(),
            size: Some((500_000_000_000, Allowed::ReadOnly)),
        }
    }

    fn machine(name: &str) -> Machine {
        let all = vec![
            FoundService::sample(
                Protocol::Nvme,
                name,
                8009,
                &[("fe80::1", Some("eth0")), ("10.0.0.1", Some("eth0"))],
            ),
            FoundService::sample(Protocol::Nbd, name, 10809, &[("10.0.0.1", Some("eth0"))]),
        ];
        machines(all).remove(0)
    }

    #[test]
    fn each_disk_has_the_line_that_attaches_it() {
        let (a, b) = (disk("nqn.2024-01.test:a", "Example"), disk("nqn.2024-01.test:b", "Other"));
        let answer = MachineDisks { target: None, disks: Ok(vec![a.clone()]) };
        let row = Row::new(&machine("desk"), &answer);
        let shown = text(std::slice::from_ref(&row));
        assert_eq!(
            shown,
            "desk, at fe80::1%eth0, 10.0.0.1\n  Example, 500 GB, read-only\n    storagetm attach fe80::1%eth0\n  \
             by NBD: nbd://10.0.0.1:10809/\n"
        );
        assert_eq!(row.disks[0].uri, "nvme://[fe80::1%25eth0]:4420/nqn.2024-01.test:a");
        let answer = MachineDisks { target: None, disks: Ok(vec![a, b]) };
        let row = Row::new(&machine("desk"), &answer);
        assert_eq!(row.disks[1].attach, "storagetm attach fe80::1%eth0/b");
        assert_eq!(row.disks[1].nbd, None);
    }

    #[test]
    fn uris_have_interfaces_as_rfc_6874_has_them() {
        let uri = |address: &str| {
            let address = address.parse().unwrap();
            nbd(&TargetAddr::at(address, Some("eth0"), 10809), true)
        };
        assert_eq!(uri("169.254.7.9"), "nbds://169.254.7.9:10809/");
        assert_eq!(uri("10.0.0.1"), "nbds://10.0.0.1:10809/");
        assert_eq!(uri("fe80::1"), "nbds://[fe80::1%25eth0]:10809/");
        assert_eq!(uri("2001:db8::1"), "nbds://[2001:db8::1]:10809/");
    }

    #[test]
    fn disk_is_named_by_its_name_if_unambiguous() {
        let called =
            |nqn: &str, name: &str| Disk { name: Some(name.to_owned()), ..disk(nqn, "Example") };
        let disks = vec![
            called("nqn.2024-01.test:a", "sda"),
            called("nqn.2024-01.test:b", "disk"),
            called("nqn.2024-01.test:c", "disk"),
            called("nqn.2024-01.test:d", "a b/c"),
        ];
        let row = Row::new(&machine("desk"), &MachineDisks { target: None, disks: Ok(disks) });
        let ends: Vec<_> =
            row.disks.iter().filter_map(|disk| disk.attach.rsplit('/').next()).collect();
        assert_eq!(ends, ["sda", "b", "c", "d"]);
        assert_eq!(row.disks[0].nbd.as_deref(), Some("nbd://10.0.0.1:10809/sda"));
        assert_eq!(row.disks[3].nbd, None);
        assert!(text(&[row]).contains("  sda, 500 GB, read-only\n"));
    }

    #[test]
    fn machine_that_requires_a_key_is_shown_with_pair() {
        let mut keyed = machine("storagetm-abcd");
        keyed.keyed = Some(true);
        let row =
            Row::new(&keyed, &MachineDisks { target: None, disks: Err(QueryError::KeyRequired) });
        let shown = text(&[row]);
        assert!(shown.contains("  needs a key: storagetm pair fe80::1%eth0\n"), "{shown}");
        assert!(shown.contains("nbds://"), "{shown}");
        let known = Target::sample("desk pc", "fe80::1%eth0");
        let answer =
            MachineDisks { target: Some(&known), disks: Ok(vec![disk("nqn.2024-01.test:a", "")]) };
        let shown = text(&[Row::new(&keyed, &answer)]);
        assert!(
            shown.starts_with("desk pc (storagetm-abcd), at ") && !shown.contains("needs a key")
        );
    }

    /// X53: announced strings contain no control characters, and are truncated.
    #[test]
    fn x53_text_from_the_network_is_shown_harmless() {
        let evil = format!("\u{1b}[2J\u{202e}{}", "x".repeat(200));
        let answer =
            MachineDisks { target: None, disks: Ok(vec![disk("nqn.2024-01.test:a", &evil)]) };
        let row = Row::new(&machine(&evil), &answer);
        let shown = text(std::slice::from_ref(&row));
        assert!(shown.chars().all(|c| c == '\n' || !c.is_control()), "{shown:?}");
        assert!(!shown.contains('\u{202e}') && shown.lines().all(|line| line.len() < 200));
        let refusal = QueryError::Protocol("\u{1b}]0;owned\u{7}".to_owned());
        let shown =
            text(&[Row::new(&machine("a"), &MachineDisks { target: None, disks: Err(refusal) })]);
        assert!(!shown.contains('\u{1b}'), "{shown:?}");
        assert!(text(&[]).starts_with("No machine nearby"));
    }
}
