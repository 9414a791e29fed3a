//! Boot settings: `storagetm.` parameters on the kernel command line, in credentials and in
//! firmware strings.

use std::env;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use keys::date::Expiry;
use linux::boot::{Parameter, credentials, parse_command_line};
use linux::identity::{MachineId, firmware_id};
use linux::network::NetworkParameters;
use linux::tree::Tree;

use crate::disk_filter::{DiskFilter, DiskSelector};
use crate::listen::{ListenOption, known_protocols};
use protocol::Protocol;

/// Prefix of all parameters.
const PREFIX: &str = "storagetm.";

/// Prefix of credentials with a host.
const HOST: &str = "storagetm.host.";

/// The boot settings.
#[derive(Debug, Default)]
pub struct Settings {
    /// Which disks to export.
    pub filter: DiskFilter,
    /// Protocols to serve; all if empty.
    pub protocol: Vec<Protocol>,
    /// Addresses to listen on.
    pub listen: Vec<ListenOption>,
    /// Whether hosts need no key.
    pub open: bool,
    /// Whether pairing is disabled.
    pub no_pairing: bool,
    /// Whether `ip=` requests an address beyond link-local: then all addresses are listened on,
    /// with keys.
    pub routable: bool,
    /// Time without an attached host after which the machine restarts, if given.
    pub return_after: Option<Duration>,
    /// Machine ID, if given.
    pub machine: Option<MachineId>,
    /// Messages about parameters that were ignored.
    pub notes: Vec<String>,
}

impl Settings {
    /// Reads all sources.
    pub fn read(tree: &Tree) -> Self {
        let own = env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        let mut settings = Self::default();
        for parameter in credentials(tree, own, PREFIX) {
            // Hosts are read by the key store.
            if !parameter.name.starts_with(HOST) {
                settings.apply(tree, &parameter);
            }
        }
        // The command line comes last and takes precedence.
        settings.apply_line(tree, &tree.text("proc/cmdline").unwrap_or_default());
        settings
    }

    /// Reads a kernel command line alone.
    pub fn of_command_line(tree: &Tree, line: &str) -> Self {
        let mut settings = Self::default();
        settings.apply_line(tree, line);
        settings
    }

    fn apply_line(&mut self, tree: &Tree, line: &str) {
        for parameter in parse_command_line(line) {
            self.apply(tree, &parameter);
        }
        let (network, _) = NetworkParameters::parse(line);
        self.routable = network.may_be_routable();
    }

    fn apply(&mut self, tree: &Tree, parameter: &Parameter) {
        let Some(name) = parameter.name.strip_prefix(PREFIX) else { return };
        let value = parameter.value.as_deref().unwrap_or_default();
        match (name, value) {
            (name, _) if name.starts_with("host.") => {
                let parameter = Parameter { name: parameter.name.clone(), value: None };
                self.note(&parameter, "keys come in a credential, where not everybody reads them");
            }
            ("open", _) => self.open = self.parse_bool(parameter, value).unwrap_or(self.open),
            ("pair", _) => {
                self.no_pairing =
                    self.parse_bool(parameter, value).map_or(self.no_pairing, |yes| !yes);
            }
            // Without a value: all disks.
            ("overlay", "" | "all") => self.filter.overlay_all = true,
            ("overlay", disk) => add(&mut self.filter.overlay, DiskSelector::new(disk)),
            ("disk" | "writable" | "protocol" | "listen" | "machine_id" | "return", "") => {
                self.note(parameter, "it needs a value");
            }
            ("disk", disk) => add(&mut self.filter.only, DiskSelector::new(disk)),
            ("writable", disk) => add(&mut self.filter.writable, DiskSelector::new(disk)),
            ("protocol", names) => match protocols(names) {
                Some(named) => named.into_iter().for_each(|it| add(&mut self.protocol, it)),
                None => self.note(parameter, &known_protocols()),
            },
            ("listen", address) => match address.parse() {
                Ok(address) => add(&mut self.listen, address),
                Err(reason) => self.note(parameter, &reason),
            },
            ("return", time) => match parse_duration(time) {
                Ok(time) => self.return_after = Some(time),
                Err(reason) => self.note(parameter, reason),
            },
            ("machine_id", "firmware") => match firmware_id(tree) {
                Some(id) => self.machine = Some(id),
                None => self.note(parameter, "the firmware tells none"),
            },
            ("machine_id", digits) => match MachineId::parse(digits) {
                Some(id) => self.machine = Some(id),
                None => self.note(parameter, "it is firmware, or 32 hexadecimal digits"),
            },
            // The value is not shown: it may be a key under a misspelled name.
            _ => {
                let parameter = Parameter { name: parameter.name.clone(), value: None };
                self.note(&parameter, "there is no such setting");
            }
        }
    }

    /// Parses a boolean. Notes values that are neither true nor false.
    fn parse_bool(&mut self, parameter: &Parameter, value: &str) -> Option<bool> {
        match value {
            "" | "1" | "yes" | "true" | "on" => Some(true),
            "0" | "no" | "false" | "off" => Some(false),
            _ => {
                self.note(parameter, "it is yes or no");
                None
            }
        }
    }

    fn note(&mut self, parameter: &Parameter, reason: &str) {
        let name = &parameter.name;
        let value = parameter.value.as_ref().map(|value| format!("={value}")).unwrap_or_default();
        self.notes.push(format!("{name}{value} is ignored: {reason}"));
    }
}

/// Parses a duration: `30m`, `2h`, `7d`.
///
/// # Errors
/// Fails with a message for the user.
pub fn parse_duration(text: &str) -> Result<Duration, &'static str> {
    match text.parse() {
        Ok(Expiry::In(duration)) => Ok(duration),
        _ => Err("it is a time such as 30m, 2h or 7d"),
    }
}

/// Parses a comma-separated list of protocols.
fn protocols(names: &str) -> Option<Vec<Protocol>> {
    names.split(',').map(|name| Protocol::from_str(name, false).ok()).collect()
}

fn add<T: PartialEq>(list: &mut Vec<T>, item: T) {
    if !list.contains(&item) {
        list.push(item);
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use testkit::Scratch;

    fn settings(line: &str) -> Settings {
        Settings::of_command_line(&Tree::at("/nonexistent"), line)
    }

    #[test]
    fn time_after_which_the_machine_returns_has_a_unit() {
        let found =
            settings("storagetm.return=30m storagetm.return=30 storagetm.return=2026-12-01");
        assert_eq!(found.return_after, Some(Duration::from_secs(1800)));
        assert_eq!(found.notes.len(), 2, "{:?}", found.notes);
    }

    #[test]
    fn all_settings_are_read_and_others_ignored() {
        let found = settings(
            "quiet root=off storagetm.disk=/dev/sda storagetm.disk=/dev/sda storagetm.writable=S2 \
             storagetm.listen=127.0.0.1:4420 storagetm.open storagetm.machine-id=\
             0123456789abcdef0123456789abcdef",
        );
        assert_eq!(found.filter.only, [DiskSelector::new("/dev/sda")]);
        assert_eq!(found.filter.writable, [DiskSelector::new("S2")]);
        assert_eq!((found.listen.len(), found.open), (1, true));
        assert_eq!(found.machine.unwrap().bytes[..2], [0x01, 0x23]);
        assert!(found.notes.is_empty(), "{:?}", found.notes);
    }

    #[test]
    fn overlay_is_for_named_disks_or_for_all() {
        let named = settings("storagetm.overlay=S1 storagetm.overlay=sdb").filter;
        assert_eq!(named.overlay, [DiskSelector::new("S1"), DiskSelector::new("sdb")]);
        assert!(!named.overlay_all);
        for line in ["storagetm.overlay", "storagetm.overlay=all"] {
            let all = settings(line).filter;
            assert!(all.overlay_all && all.is_empty(), "{line}");
        }
    }

    #[test]
    fn invalid_settings_are_noted_and_ignored() {
        let found = settings(
            "storagetm.disk= storagetm.listen=here storagetm.open=perhaps storagetm.speed=9 \
             storagetm.machine_id=firmware storagetm.machine_id=0 storagetm.disk=sda",
        );
        assert_eq!(found.filter.only, [DiskSelector::new("sda")]);
        assert!(!found.open);
        assert_eq!(found.notes.len(), 6, "{:?}", found.notes);
        assert!(found.notes.iter().all(|note| note.contains(" is ignored: ")));
    }

    #[test]
    fn keys_on_the_command_line_are_ignored_and_hidden() {
        let found = settings("storagetm.host.laptop={secret}");
        assert!(!found.notes[0].contains("secret"), "{:?}", found.notes);
        let found = settings("storagetm.hosts.laptop={secret}");
        assert!(!found.notes[0].contains("secret"), "{:?}", found.notes);
    }

    #[test]
    fn protocols_are_repeated_or_comma_separated() {
        let named = |line| settings(line).protocol;
        assert_eq!(named("storagetm.protocol=nvme"), [Protocol::Nvme]);
        let both = [Protocol::Nbd, Protocol::Nvme];
        assert_eq!(named("storagetm.protocol=nbd,nvme storagetm.protocol=nbd"), both);
        assert_eq!(settings("storagetm.protocol=nbd,smb storagetm.protocol=").notes.len(), 2);
    }

    #[test]
    fn dhcp_and_static_addresses_are_listened_on() {
        for (line, routable) in [
            ("quiet ip=dhcp", true),
            ("ip=eth0:any", true),
            ("ip=192.0.2.5/24:::::eth0", true),
            ("ip=link-local", false),
            ("ip=none", false),
            ("quiet", false),
        ] {
            let folder = Scratch::new();
            std::fs::create_dir(folder.0.join("proc")).unwrap();
            std::fs::write(folder.0.join("proc/cmdline"), line).unwrap();
            assert_eq!(Settings::read(&Tree::at(&folder.0)).routable, routable, "{line}");
        }
    }

    #[test]
    fn last_value_of_a_setting_wins() {
        assert!(!settings("storagetm.open storagetm.open=no").open);
        assert!(settings("storagetm.pair=no").no_pairing);
        assert!(!settings("storagetm.pair=no storagetm.pair").no_pairing);
    }
}
