//! The kernel parameters of a boot from a lent disk, and credentials of the same names.

use linux::boot::{Parameter, command_line, credentials};
use linux::tree::Tree;

/// The parameter that asks for a boot from a lent disk.
const BOOT: &str = "storagetm.boot";

/// What the parameters say. Whatever they do not say is asked for on the console.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Parameters {
    /// The address of the machine that lends the disk.
    pub(super) machine: Option<String>,
    /// The disk: its NQN, or its name there.
    pub(super) disk: Option<String>,
    /// The code on the screen of that machine.
    pub(super) code: Option<String>,
    /// The partition with the root file system.
    pub(super) root: Option<String>,
    /// Whether the system writes to the disk itself.
    pub(super) write: bool,
    /// Whether a machine that lends without a key may be booted from though no person agrees.
    pub(super) unencrypted: bool,
    /// Messages about parameters that are ignored.
    pub(super) notes: Vec<String>,
}

impl Parameters {
    /// Returns the parameters, if this machine is to boot from a lent disk. Those of the kernel command line have the
    /// last word.
    pub(super) fn read(tree: &Tree) -> Option<Self> {
        let mut all = credentials(tree, None, "storagetm.");
        all.extend(command_line(tree));
        Self::of(&all)
    }

    /// Returns whether they are for the machine that is asked: they name it, or name none. `named`: whether they have chosen
    /// it, and not a person.
    pub(super) fn are_for(&self, named: bool) -> bool {
        named || self.machine.is_none()
    }

    /// Returns whether the system writes to the disk of the machine that is asked: what is allowed for one machine is not for
    /// another, which a person chooses after that one failed.
    pub(super) fn writes(&self, named: bool) -> bool {
        self.write && self.are_for(named)
    }

    fn of(all: &[Parameter]) -> Option<Self> {
        let is_wanted = |it: &&Parameter| it.name == BOOT && !is_no(it);
        all.iter().rfind(|it| it.name == BOOT).filter(is_wanted)?;
        let mut found = Self::default();
        all.iter().for_each(|parameter| found.apply(parameter));
        Some(found)
    }

    fn apply(&mut self, parameter: &Parameter) {
        let value = parameter.value.clone().filter(|value| !value.is_empty());
        match (parameter.name.as_str(), value) {
            (BOOT, Some(value)) if !is_yes(&value) && !is_no(parameter) => self.address(&value),
            ("storagetm.code", Some(code)) => self.code = Some(code),
            ("storagetm.root", Some(root)) => self.root = Some(root),
            ("storagetm.boot.write", _) => self.write = !is_no(parameter),
            ("storagetm.boot.unencrypted", _) => self.unencrypted = !is_no(parameter),
            ("storagetm.code" | "storagetm.root", None) => {
                self.notes.push(format!("{} is ignored: it needs a value.", parameter.name));
            }
            _ => {}
        }
    }

    /// Applies `nvme://HOST[:PORT][/DISK]`; `nvme://` may be left out.
    fn address(&mut self, value: &str) {
        let rest = value.strip_prefix("nvme://").unwrap_or(value);
        if rest.contains("://") {
            self.notes.push(format!(
                "{BOOT}={value} is ignored: a disk is nvme://HOST/DISK; no other protocol can be booted from."
            ));
            return;
        }
        let (machine, disk) = rest.split_once('/').unwrap_or((rest, ""));
        self.machine = Some(machine.to_owned()).filter(|machine| !machine.is_empty());
        self.disk = Some(disk.to_owned()).filter(|disk| !disk.is_empty());
    }
}

/// Returns whether this machine is to boot from a lent disk.
pub(crate) fn is_wanted(tree: &Tree) -> bool {
    Parameters::read(tree).is_some()
}

fn is_yes(value: &str) -> bool {
    ["1", "yes", "true", "on"].contains(&value)
}

fn is_no(parameter: &Parameter) -> bool {
    parameter.value.as_deref().is_some_and(|value| ["0", "no", "false", "off"].contains(&value))
}

#[cfg(test)]
mod test {
    use super::*;
    use linux::boot::parse_command_line;

    fn parameters(line: &str) -> Option<Parameters> {
        Parameters::of(&parse_command_line(line))
    }

    #[test]
    fn boot_from_a_lent_disk_is_asked_for() {
        for line in
            ["quiet storagetm.boot", "storagetm.boot=yes", "storagetm.boot=no storagetm.boot"]
        {
            assert_eq!(parameters(line), Some(Parameters::default()), "{line}");
        }
        for line in ["quiet", "storagetm.boot=no", "storagetm.boot.write", "storagetm.root=2"] {
            assert_eq!(parameters(line), None, "{line}");
        }
    }

    #[test]
    fn machine_disk_code_and_root_are_read() {
        let found = parameters(
            "storagetm.boot storagetm.boot=nvme://[fe80::1%eth0]:4421/nqn.a:b storagetm.code=\"1234 5678\" \
             storagetm.root=PARTUUID=7 storagetm.boot.write",
        );
        let wanted = Parameters {
            machine: Some("[fe80::1%eth0]:4421".to_owned()),
            disk: Some("nqn.a:b".to_owned()),
            code: Some("1234 5678".to_owned()),
            root: Some("PARTUUID=7".to_owned()),
            write: true,
            unencrypted: false,
            notes: Vec::new(),
        };
        assert_eq!(found, Some(wanted));
        let short = parameters("storagetm.boot=desk storagetm.boot.write=no").unwrap();
        assert_eq!(
            (short.machine.as_deref(), short.disk, short.write),
            (Some("desk"), None, false)
        );
        let open = |line: &str| parameters(line).unwrap().unencrypted;
        assert!(open("storagetm.boot=desk storagetm.boot.unencrypted"));
        assert!(!open("storagetm.boot=desk storagetm.boot.unencrypted=no"));
    }

    #[test]
    fn writing_is_for_the_machine_that_is_named() {
        let named = parameters("storagetm.boot=nvme://10.0.0.1/ storagetm.boot.write").unwrap();
        assert!(named.writes(true) && !named.writes(false), "a person chooses another machine");
        let unnamed = parameters("storagetm.boot storagetm.boot.write").unwrap();
        assert!(unnamed.writes(false));
        let reads = parameters("storagetm.boot=nvme://10.0.0.1/").unwrap();
        assert!(!reads.writes(true) && reads.are_for(true) && !reads.are_for(false));
    }

    #[test]
    fn what_cannot_be_used_is_noted() {
        let found =
            parameters("storagetm.boot=nbd://desk/sda storagetm.code= storagetm.root").unwrap();
        assert_eq!((found.machine, found.notes.len()), (None, 3));
    }
}
