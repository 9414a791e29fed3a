//! Makes a system on an attached disk ready to be started on this machine: its root with changes in memory, the modules
//! of the running kernel, and what must not run from its own disk.

use std::io;
use std::iter;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};

use linux::net::addresses;
use linux::root::{self, Limits, Root};
use linux::tree::Tree;
use rustix::system::uname;

use super::fstab::{self, Entry};
use super::system::{Volume, driver};
use failure::Failure;

/// The root of the system that is started.
pub(crate) const ROOT: &str = "/sysroot";
/// The file systems of the disk, as they are, by number.
const LOWER: &str = "/lent/disk";
/// Changes, and a directory for each file system.
const MEMORY: &str = "/lent/memory";
/// The limit of all changes: of the memory of this machine.
const MEMORY_SIZE: &str = "50%";
/// What activates swap areas. A system that writes to the disk must not swap to it: to connect to the disk again takes
/// memory.
const SWAP: &str = "run/systemd/system/swap.target";

/// What is started.
pub(super) struct Start<'a> {
    /// The device of the whole disk.
    pub(super) disk: &'a Path,
    /// All volumes of the disk.
    pub(super) volumes: &'a [Volume],
    pub(super) root: &'a Volume,
    /// Whether the system writes to the disk itself.
    pub(super) write: bool,
    /// The interface by which the disk is attached, and those below it; none if it is not known.
    pub(super) interfaces: Vec<String>,
}

impl Start<'_> {
    /// Mounts the system at [`ROOT`]. Returns messages for the user.
    ///
    /// # Errors
    /// Fails if a file system that it needs cannot be mounted; what is mounted then is left to [`undo`].
    pub(super) fn prepare(&self) -> Result<Vec<String>, Failure> {
        let mut notes = Vec::new();
        if self.write {
            self.mount_writable()?;
        } else {
            let failed = |error| Failure::new(format!("memory for changes: {error}"));
            root::mount_memory(Path::new(MEMORY), MEMORY_SIZE).map_err(failed)?;
            self.mount_layers(self.root, 0, Path::new(ROOT), Limits::default())?;
        }
        let system = Root::open(Path::new(ROOT)).map_err(Failure::new)?;
        if !self.write {
            self.change_tables(&system, &mut notes)?;
        }
        let failed = |error| Failure::new(format!("/run of the system: {error}"));
        system.mount_memory("run", "20%").map_err(failed)?;
        if self.write {
            // A unit file without contents is masked (systemd.unit(5)).
            system.write(SWAP, "").map_err(failed)?;
        }
        if let Err(error) = keep_network(&system, &self.interfaces) {
            notes.push(format!("The system may take the network over: {error}."));
        }
        if let Err(error) = give_modules(&system) {
            notes.push(format!("The system has no modules of this kernel: {error}."));
        }
        Ok(notes)
    }

    /// Mounts the root to be written to, which the kernel has refused for the whole disk until now.
    fn mount_writable(&self) -> Result<(), Failure> {
        let (kind, _) = self.driver(self.root)?;
        for device in iter::once(self.disk).chain(self.volumes.iter().map(|it| it.device.as_path()))
        {
            root::allow_writes(device).map_err(|error| {
                Failure::new(format!("{} cannot be made writable: {error}", device.display()))
            })?;
        }
        root::mount_disk(&self.root.device, Path::new(ROOT), kind, true, "")
            .map_err(|error| mount_failed(self.root, &error))
    }

    fn driver(&self, volume: &Volume) -> Result<(&'static str, &'static str), Failure> {
        let found = volume.contents.and_then(driver);
        found.ok_or_else(|| {
            Failure::new(format!("{}: its driver is not in this image", volume.shown()))
        })
    }

    /// Mounts a volume read-only, without its journal, and over it a layer in memory that takes all changes.
    fn mount_layers(
        &self,
        volume: &Volume,
        number: usize,
        at: &Path,
        limits: Limits,
    ) -> Result<(), Failure> {
        let (kind, options) = self.driver(volume)?;
        let lower = PathBuf::from(format!("{LOWER}{number}"));
        let memory = Path::new(MEMORY).join(number.to_string());
        let failed = |error| mount_failed(volume, &error);
        root::mount_disk(&volume.device, &lower, kind, false, options).map_err(failed)?;
        root::mount_overlay(&lower, &memory, at, limits).map_err(failed)
    }

    /// Takes the disk's devices out of fstab and crypttab, and mounts those of its file systems that can be mounted with
    /// a layer in memory.
    fn change_tables(&self, system: &Root, notes: &mut Vec<String>) -> Result<(), Failure> {
        if let Ok(table) = system.text("etc/fstab") {
            let (text, entries) = fstab::without_devices(&table);
            let failed = |error| Failure::new(format!("/etc/fstab of the system: {error}"));
            system.write("etc/fstab", &text).map_err(failed)?;
            for (entry, number) in entries.iter().zip(1..) {
                self.mount_entry(system, entry, number, notes)?;
            }
        }
        if let Ok(table) = system.text("etc/crypttab") {
            let failed = |error| Failure::new(format!("/etc/crypttab of the system: {error}"));
            system.write("etc/crypttab", &fstab::without_entries(&table)).map_err(failed)?;
        }
        Ok(())
    }

    fn mount_entry(
        &self,
        system: &Root,
        entry: &Entry,
        number: usize,
        notes: &mut Vec<String>,
    ) -> Result<(), Failure> {
        let volume = self.volumes.iter().find(|volume| volume.is_called(&entry.device));
        let mounted = match volume.filter(|volume| volume.contents.and_then(driver).is_some()) {
            None => Err(Failure::new(format!("{} ({}) is not mounted", entry.point, entry.device))),
            Some(volume) => {
                let layer = PathBuf::from(format!("{LOWER}{number}-layer"));
                self.mount_layers(volume, number, &layer, entry.limits).and_then(|()| {
                    let placed = system
                        .make_directories(&entry.point)
                        .and_then(|()| system.bind(&layer, &entry.point));
                    placed.map_err(|error| Failure::new(format!("{}: {error}", entry.point)))
                })
            }
        };
        match mounted {
            Err(failure) if entry.is_vital() => Err(failure),
            Err(failure) => {
                notes.push(format!("{failure}."));
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}

fn mount_failed(volume: &Volume, error: &io::Error) -> Failure {
    Failure::new(format!("{} cannot be mounted: {error}", volume.shown()))
}

/// Unmounts what [`Start::prepare`] has mounted.
pub(super) fn undo() {
    // They fail if nothing is mounted there.
    let _ = root::detach(Path::new(ROOT));
    for number in 0..32 {
        let _ = root::detach(Path::new(&format!("{LOWER}{number}-layer")));
        let _ = root::detach(Path::new(&format!("{LOWER}{number}")));
    }
    let _ = root::detach(Path::new(MEMORY));
}

/// Keeps the system's network services off the interfaces by which the disk is attached: it would lose its root.
fn keep_network(system: &Root, interfaces: &[String]) -> Result<(), Failure> {
    if interfaces.is_empty() {
        return Err(Failure::new("the interface to the other machine is not known"));
    }
    for (path, text) in network_files(interfaces) {
        system.write(&path, &text).map_err(|error| Failure::new(format!("{path}: {error}")))?;
    }
    Ok(())
}

/// Returns an interface and those below it: the ports of a bond, the interface of a VLAN.
pub(super) fn with_lower(tree: &Tree, interface: String) -> Vec<String> {
    let mut all = vec![interface];
    let mut at = 0;
    while let Some(upper) = all.get(at) {
        let found = tree.names(format!("sys/class/net/{upper}"));
        let lower = found.iter().filter_map(|name| name.strip_prefix("lower_"));
        let new: Vec<String> =
            lower.filter(|name| !all.iter().any(|it| it == name)).map(str::to_owned).collect();
        all.extend(new);
        at = at.saturating_add(1);
    }
    all
}

/// Returns the interface with the address that packets to `lender`, no link-local IPv6 address, are sent from.
pub(super) fn interface_to(lender: IpAddr) -> Option<String> {
    let own = address_to(lender).ok()?.ip();
    addresses().ok()?.into_iter().find(|it| it.ip == own).map(|it| it.interface)
}

/// Returns the address that packets to a machine are sent from. Sends nothing.
///
/// # Errors
/// Fails if the kernel knows no way to it.
pub(super) fn address_to(machine: IpAddr) -> io::Result<SocketAddr> {
    let any: IpAddr = match machine {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect((machine, 9))?;
    socket.local_addr()
}

/// The files below /run that leave interfaces as they are: their names (systemd.link(5)), and their addresses and masters
/// (systemd.network(5), NetworkManager.conf(5), ifup(8)).
fn network_files(interfaces: &[String]) -> Vec<(String, String)> {
    let matched: Vec<String> =
        interfaces.iter().map(|name| format!("interface-name:{name}")).collect();
    let state = interfaces.iter().map(|name| format!("{name}={name}\n")).collect();
    let manager = format!("[device-storagetm]\nmatch-device={}\nmanaged=0\n", matched.join(","));
    let mut files = vec![
        ("run/NetworkManager/conf.d/00-storagetm.conf".to_owned(), manager),
        ("run/network/ifstate".to_owned(), state),
        (
            "run/systemd/network/00-storagetm.network".to_owned(),
            format!("[Match]\nName={}\n\n[Link]\nUnmanaged=yes\n", interfaces.join(" ")),
        ),
    ];
    files.extend(interfaces.iter().map(|name| {
        let text =
            format!("[Match]\nOriginalName={name}\n\n[Link]\nNamePolicy=keep\nName={name}\n");
        (format!("run/systemd/network/00-storagetm-{name}.link"), text)
    }));
    files
}

/// Mounts the modules of the running kernel in the system, unless it has them. Its own depmod makes the indexes of them
/// that its tools need, before they need them.
fn give_modules(system: &Root) -> Result<(), Failure> {
    let uname = uname();
    let release = uname.release().to_string_lossy();
    let place = format!("lib/modules/{release}");
    if system.has(&format!("{place}/modules.dep")) {
        return Ok(());
    }
    let failed = |error| Failure::new(format!("/{place}: {error}"));
    system.make_directories(&place).map_err(failed)?;
    system.bind(&Path::new("/").join(&place), &place).map_err(failed)?;
    for (path, text) in depmod_unit(&release) {
        system.write(&path, &text).map_err(failed)?;
    }
    Ok(())
}

/// A unit that runs depmod(8) before anything loads modules, and what pulls it in.
fn depmod_unit(release: &str) -> [(String, String); 2] {
    let name = "storagetm-modules.service";
    let unit = format!(
        "[Unit]\nDescription=Index of the modules of the running kernel\nDefaultDependencies=no\n\
         Before=systemd-udevd.service systemd-udev-trigger.service systemd-modules-load.service\n\n\
         [Service]\nType=oneshot\nExecStart=-depmod {release}\n"
    );
    let wanted = format!("[Unit]\nWants={name}\n");
    [
        (format!("run/systemd/system/{name}"), unit),
        ("run/systemd/system/sysinit.target.d/storagetm.conf".to_owned(), wanted),
    ]
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn interface_of_the_disk_is_left_alone() {
        let folder = testkit::Scratch::new();
        for link in ["bond0.5/lower_bond0", "bond0/lower_eth0", "bond0/lower_eth1", "eth0/x"] {
            std::fs::create_dir_all(folder.0.join("sys/class/net").join(link)).unwrap();
        }
        let all = with_lower(&Tree::at(&folder.0), "bond0.5".to_owned());
        assert_eq!(all, ["bond0.5", "bond0", "eth0", "eth1"]);
        let files = network_files(&all);
        assert!(files.iter().all(|(path, _)| path.starts_with("run/")));
        for name in &all {
            let about = files.iter().filter(|(_, text)| text.contains(name.as_str())).count();
            assert!(about >= 4, "{name} is in {about} files");
            let link = format!("run/systemd/network/00-storagetm-{name}.link");
            assert!(files.iter().any(|(path, _)| *path == link));
        }
        let lo = interface_to("127.0.0.1".parse().unwrap());
        assert_eq!(lo.as_deref(), Some("lo"));
    }

    #[test]
    fn depmod_runs_before_modules_are_loaded() {
        let [(path, unit), (_, wanted)] = depmod_unit("6.12.0-test");
        assert!(
            path.ends_with("storagetm-modules.service") && wanted.contains("storagetm-modules")
        );
        assert!(
            unit.contains("ExecStart=-depmod 6.12.0-test\n")
                && unit.contains("Before=systemd-udevd")
        );
    }
}
