//! What `storagetm boot --now` will do: kernel parameters, disks, addresses, hosts.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use console::decimal;
use daemon::disk_filter::{DiskFilter, Selection};
use daemon::settings::Settings;
use failure::Failure;
use keys::name::Name;
use linux::block::{self, Disk};
use linux::network::{NetworkParameters, NetworkSettings};
use linux::transport::Transport;
use linux::tree::Tree;
use protocol::commands::quoted;
use protocol::endpoint::NetAddr;
use protocol::nvme;

use crate::options::boot::Boot;

/// Kernel parameters of the running system that hold for its hardware and consoles.
const KEPT: [&str; 12] = [
    "acpi",
    "amd_iommu",
    "clocksource",
    "console",
    "earlycon",
    "earlyprintk",
    "intel_iommu",
    "iommu",
    "module_blacklist",
    "nomodeset",
    "pci",
    "tsc",
];

/// Parameters of every target mode that is started so: after a crash of the kernel the machine
/// restarts into its normal system.
const ALWAYS: &str = "quiet panic=10";

/// The plan of a restart into target mode, as it is shown and carried out.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) command_line: String,
    kernel: String,
    disks: Vec<String>,
    network: NetworkSettings,
    hosts: Vec<Name>,
    is_open: bool,
    return_after: Option<Duration>,
}

impl Plan {
    /// Makes the plan for this machine. `hosts` may attach its disks.
    ///
    /// # Errors
    /// Fails if no host could attach a disk: without an address, host or disk.
    pub(super) fn new(tree: &Tree, options: &Boot, hosts: Vec<Name>) -> Result<Self, Failure> {
        let network = NetworkSettings::read(tree).map_err(|error| {
            Failure::new(format!("the addresses of this machine cannot be read: {error}"))
        })?;
        let disks = block::scan(tree).map_err(|error| {
            Failure::new(format!("the disks of this machine cannot be listed: {error}"))
        })?;
        Self::of(tree, options, hosts, network, &disks)
    }

    fn of(
        tree: &Tree,
        options: &Boot,
        hosts: Vec<Name>,
        network: NetworkSettings,
        disks: &[Disk],
    ) -> Result<Self, Failure> {
        let command_line = command_line(tree, options, &network);
        let settings = Settings::of_command_line(tree, &command_line);
        let (_, ignored) = NetworkParameters::parse(&command_line);
        let ignored = ignored.first().map(ToString::to_string);
        if let Some(note) = settings.notes.first().cloned().or(ignored) {
            return Err(Failure::usage(note));
        }
        if !settings.listen.is_empty() || !settings.protocol.is_empty() {
            return Err(Failure::usage(
                "storagetm.listen= and storagetm.protocol= cannot be used here: whether the other machine could still \
                 attach is checked for the addresses and protocols of the default only",
            ));
        }
        let disks = disks.iter().filter_map(|disk| describe(disk, &settings.filter)).collect();
        let plan = Self {
            command_line,
            kernel: tree.attribute("proc/sys/kernel/osrelease").unwrap_or_default(),
            disks,
            network,
            hosts,
            is_open: settings.open,
            return_after: settings.return_after,
        };
        plan.check()?;
        Ok(plan)
    }

    fn check(&self) -> Result<(), Failure> {
        if self.hosts.is_empty() && !self.is_open {
            return Err(Failure::new(
                "no host may attach the disks of this machine, so there would be no way in: authorize one (storagetm serve \
                 --all --pair here and storagetm pair there, or storagetm host add), or give access without a key by --open",
            ));
        }
        if self.addresses().is_empty() {
            let lost = self
                .network
                .lost
                .first()
                .map(|lost| format!(" ({} of {}: {})", lost.ip, lost.interface, lost.reason));
            return Err(Failure::new(format!(
                "no network address of this machine would come back in target mode{}, so there would be no way in",
                lost.unwrap_or_default()
            )));
        }
        if self.disks.is_empty() {
            return Err(Failure::new("this machine has no disk that target mode would lend"));
        }
        Ok(())
    }

    /// Returns the addresses to attach at: the routable ones, or else the link-local ones.
    fn addresses(&self) -> Vec<NetAddr> {
        let at = |ip, interface| NetAddr { ip, interface, port: ::nvme::PORT };
        let kept: Vec<NetAddr> = self.network.kept.iter().map(|kept| at(kept.ip, None)).collect();
        if !kept.is_empty() {
            return kept;
        }
        // The interface is the other machine's.
        let near = self.network.nearby.iter();
        near.map(|(_, ip)| at(IpAddr::V6(*ip), Some("INTERFACE".to_owned()))).collect()
    }

    fn attach_commands(&self, at: &NetAddr) -> [String; 2] {
        let all = if self.disks.len() > 1 { " --all" } else { "" };
        [
            format!("storagetm attach {}{all}", quoted(&nvme::machine(at))),
            nvme::attach_all(at, !self.is_open, false),
        ]
    }
}

/// Returns the kernel command line of target mode.
fn command_line(tree: &Tree, options: &Boot, network: &NetworkSettings) -> String {
    let running = tree.text("proc/cmdline").unwrap_or_default();
    let name = |word: &str| word.split('=').next().unwrap_or_default().to_owned();
    let kept = running.split_whitespace().filter(|word| KEPT.contains(&name(word).as_str()));
    let mut words: Vec<String> = vec![ALWAYS.to_owned()];
    words.extend(kept.map(str::to_owned));
    words.extend(network.uppers.iter().cloned());
    words.extend(network.kept.iter().map(|kept| kept.parameter.clone()));
    words.extend(options.open.then(|| "storagetm.open".to_owned()));
    words.extend(
        options.return_after.map(|time| format!("storagetm.return={}m", time.as_secs() / 60)),
    );
    words.extend(options.command_line.clone());
    words.join(" ")
}

/// Describes a disk that target mode will lend; returns `None` for others.
fn describe(disk: &Disk, filter: &DiskFilter) -> Option<String> {
    if disk.is_partition() || disk.bytes == 0 || !is_hardware(disk.transport) {
        return None;
    }
    let access = match filter.select(disk)? {
        Selection::Writable => "writable",
        Selection::Any | Selection::Named => "read-only",
    };
    let hardware = [&disk.hardware.model, &disk.hardware.serial];
    let hardware = hardware.into_iter().flatten().map(|text| format!(", {text}"));
    let hardware: String = hardware.collect();
    Some(format!("{}, {}{hardware}, {access}", disk.name, decimal(disk.bytes)))
}

/// Returns whether a disk is there without the programs and settings of this system.
fn is_hardware(transport: Transport) -> bool {
    use Transport as T;
    !transport.is_network()
        && !matches!(
            transport,
            T::Loop | T::Zram | T::Ram | T::DeviceMapper | T::Md | T::Bcache | T::Zvol | T::Ublk
        )
        && !matches!(transport, T::Optical | T::Floppy | T::Null | T::Mtd)
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "This system stops, and its kernel {} starts anew with storagetm alone.",
            self.kernel
        )?;
        writeln!(f, "\nDisks that are lent:")?;
        self.disks.iter().try_for_each(|disk| writeln!(f, "  {disk}"))?;
        let addresses = self.addresses();
        writeln!(f, "\nAddresses:")?;
        addresses.iter().try_for_each(|at| writeln!(f, "  {}", nvme::machine(at)))?;
        for lost in &self.network.lost {
            writeln!(f, "  not {} of {}: {}", lost.ip, lost.interface, lost.reason)?;
        }
        let hosts: Vec<&str> = self.hosts.iter().map(Name::as_str).collect();
        match self.is_open {
            true => writeln!(
                f,
                "\nEVERY machine that reaches an address may attach them, without a key."
            )?,
            false => writeln!(f, "\nHosts that may attach them: {}.", hosts.join(", "))?,
        }
        writeln!(f, "\nOn the other machine, either of:")?;
        for command in addresses.iter().take(1).flat_map(|at| self.attach_commands(at)) {
            writeln!(f, "  {command}")?;
        }
        writeln!(
            f,
            "\nThe way back: the next restart starts the normal system. Press r on this machine, or switch it off and on."
        )?;
        match self.return_after {
            Some(time) => writeln!(
                f,
                "It restarts by itself after {} minutes without an attached host.",
                time.as_secs() / 60
            ),
            None => writeln!(f, "It does not restart by itself: --for TIME makes it."),
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::options::{Task, parse};
    use linux::network::{Kept, Lost};
    use testkit::Scratch;

    fn boot(line: &str) -> Boot {
        let words = format!("storagetm boot --now {line}");
        match parse(words.split_whitespace()).unwrap().task {
            Task::Boot(boot) => boot,
            _ => unreachable!("the line says boot"),
        }
    }

    /// A machine with a disk `sda`, a partition of it and a loop device.
    fn machine() -> Scratch {
        let folder = Scratch::new();
        let file = |path: &str, text: &str| {
            let path = folder.0.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        file("proc/cmdline", "root=/dev/sda1 ro console=tty0 console=ttyS0,115200 splash\n");
        file("proc/sys/kernel/osrelease", "6.12.0\n");
        let devices =
            "sys/devices/pci0000:00/0000:00:05.0/ata1/host0/target0:0:0/0:0:0:0/block/sda";
        for (place, number, sectors) in [
            (devices.to_owned(), "8:0", "2000000\n"),
            (format!("{devices}/sda1"), "8:1", "1000\n"),
            ("sys/devices/virtual/block/loop0".to_owned(), "7:0", "1000\n"),
        ] {
            file(&format!("{place}/dev"), number);
            file(&format!("{place}/size"), sectors);
            let name = place.rsplit('/').next().unwrap();
            std::fs::create_dir_all(folder.0.join("sys/class/block")).unwrap();
            let link = folder.0.join("sys/class/block").join(name);
            std::os::unix::fs::symlink(format!("../../../{place}"), link).unwrap();
        }
        file(&format!("{devices}/sda1/partition"), "1\n");
        folder
    }

    fn network() -> NetworkSettings {
        let parameter = "ip=192.0.2.5::192.0.2.1:24:desk:52-54-00-12-34-56:none".to_owned();
        let kept = Kept { ip: [192, 0, 2, 5].into(), interface: "eth0".to_owned(), parameter };
        let near = ("eth0".to_owned(), "fe80::5".parse().unwrap());
        NetworkSettings { kept: vec![kept], nearby: vec![near], ..NetworkSettings::default() }
    }

    fn plan(line: &str, hosts: &[&str], network: NetworkSettings) -> Result<Plan, String> {
        let folder = machine();
        let tree = Tree::at(&folder.0);
        let hosts = hosts.iter().map(|name| name.parse().unwrap()).collect();
        let disks = block::scan(&tree).unwrap();
        let plan = Plan::of(&tree, &boot(line), hosts, network, &disks);
        plan.map_err(|failure| failure.to_string())
    }

    #[test]
    fn plan_names_disks_addresses_hosts_and_the_way_back() {
        let plan = plan("--for 30m", &["laptop"], network()).unwrap();
        assert_eq!(
            plan.command_line,
            "quiet panic=10 console=tty0 console=ttyS0,115200 \
             ip=192.0.2.5::192.0.2.1:24:desk:52-54-00-12-34-56:none storagetm.return=30m"
        );
        let text = plan.to_string();
        for part in [
            "kernel 6.12.0",
            "  sda, 1 GB",
            ", read-only\n\n",
            "\n  192.0.2.5\n",
            "attach them: laptop.",
            "  storagetm attach 192.0.2.5\n",
            "  nvme connect-all -t tcp -a 192.0.2.5 -s 4420 --tls\n",
            "switch it off and on",
            "after 30 minutes without",
        ] {
            assert!(text.contains(part), "{part:?} in {text}");
        }
        assert!(!text.contains("loop0") && !text.contains("sda1"), "{text}");
    }

    #[test]
    fn without_a_way_in_there_is_no_plan() {
        let failure = plan("", &[], network()).unwrap_err();
        assert!(failure.contains("no host may attach"), "{failure}");
        assert!(plan("--open", &[], network()).unwrap().to_string().contains("EVERY machine"));
        let reason = "it is wireless";
        let lost = Lost { ip: [192, 0, 2, 5].into(), interface: "wlan0".to_owned(), reason };
        let none = NetworkSettings { lost: vec![lost], ..NetworkSettings::default() };
        let failure = plan("", &["laptop"], none).unwrap_err();
        assert!(failure.contains("192.0.2.5 of wlan0: it is wireless"), "{failure}");
    }

    #[test]
    fn parameters_that_would_be_ignored_make_no_plan() {
        let failure = plan("--command-line ip=dhpc", &["laptop"], network()).unwrap_err();
        assert!(failure.starts_with("ip=dhpc on the kernel command line is ignored"), "{failure}");
        let uppers = vec!["bond=bond0:52-54-00-12-34-56:mode=fast".to_owned()];
        let bond = NetworkSettings { uppers, ..network() };
        let failure = plan("", &["laptop"], bond).unwrap_err();
        assert!(failure.contains("mode=fast"), "{failure}");
    }

    #[test]
    fn link_local_addresses_are_enough() {
        let near = NetworkSettings { kept: Vec::new(), ..network() };
        let text = plan("", &["laptop"], near).unwrap().to_string();
        assert!(text.contains("storagetm attach fe80::5%INTERFACE\n"), "{text}");
        assert!(text.contains("--for TIME"), "{text}");
    }

    #[test]
    fn disks_are_those_that_the_parameters_select() {
        let line = "--command-line storagetm.writable=sda";
        let text = plan(line, &["laptop"], network()).unwrap().to_string();
        assert!(text.contains(", writable\n"), "{text}");
        let failure =
            plan("--command-line storagetm.disk=sdb", &["laptop"], network()).unwrap_err();
        assert!(failure.contains("no disk"), "{failure}");
        let failure = plan("--command-line storagetm.disks=sda", &["a"], network()).unwrap_err();
        assert!(failure.contains("is ignored"), "{failure}");
    }
}
