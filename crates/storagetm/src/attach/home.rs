//! `storagetm attach --home`: attaches the home directory of a user of systemd-homed on another machine, and has
//! this machine trust the key that signs the user's record. `storagetm detach` deactivates homes first.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use linux::block::Disk as Device;
use linux::home::is_user_name;
use linux::homed::{self, SigningKey};
use linux::tree::Tree;

use super::kernel::Attached;
use super::target::{FoundTarget, TargetSpec};
use crate::confirmation::consent;
use failure::Failure;
use keys::record::Allowed;
use remote::query::Disk;

/// Time for udev and systemd-homed to see the home.
const LINK_TIMEOUT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// What the names of homes begin with, as exports and as devices of systemd-homed (`/dev/mapper/home-USER`).
const PREFIX: &str = "home-";

/// Returns the user whose home a disk is, by its name and its model on the target: an image may be called
/// `home-backup`.
pub(super) fn user_of(disk: &Disk) -> Option<&str> {
    let user = user_in(disk.name.as_deref()?)?;
    (disk.model.strip_prefix("home of ") == Some(user)).then_some(user)
}

fn user_in(name: &str) -> Option<&str> {
    name.strip_prefix(PREFIX).filter(|user| is_user_name(user))
}

/// Returns the home of `user`, or the only one if that is empty.
///
/// # Errors
/// Fails if there is none or, without a user, if there are several, and if it is lent read-only.
pub(super) fn choose(
    spec: &TargetSpec,
    there: &FoundTarget<'_>,
    user: &str,
) -> Result<Disk, Failure> {
    let machine = &spec.machine;
    if spec.disk.is_some() {
        return Err(Failure::usage("say either which disk, or --home"));
    }
    let is_wanted = |disk: &&Disk| match user_of(disk) {
        Some(found) => user.is_empty() || user == found,
        None => false,
    };
    let homes: Vec<&Disk> = there.disks.iter().filter(is_wanted).collect();
    let home = match homes.as_slice() {
        [home] => *home,
        [] if user.is_empty() => {
            return Err(Failure::refused(format!(
                "{machine} lends no home to this machine just now, or another host uses it; there: storagetm serve --homes"
            )));
        }
        [] => {
            return Err(Failure::refused(format!(
                "{machine} does not lend the home of {user} to this machine just now, or another host uses it; there: \
                 storagetm serve --homes={user}"
            )));
        }
        several => {
            let users: Vec<&str> = several.iter().filter_map(|disk| user_of(disk)).collect();
            return Err(Failure::usage(format!(
                "{machine} lends several homes: say whose, as in --home={}: {}",
                users.first().copied().unwrap_or_default(),
                users.join(", ")
            )));
        }
    };
    if home.size.is_some_and(|(_, access)| access == Allowed::ReadOnly) {
        let user = user_of(home).unwrap_or_default();
        return Err(Failure::refused(format!(
            "{machine} lends the home of {user} read-only, and systemd-homed refuses a home that it cannot write to; there: \
             storagetm host add --writable, or attach it without --home, for rescue"
        )));
    }
    Ok(home.clone())
}

/// A home directory that another machine lends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ForeignHome {
    user: String,
    /// The paired machine, and the key with which it signs records. Only a channel with a key shows that it has sent it.
    signer: Option<(String, SigningKey)>,
}

impl ForeignHome {
    /// Returns the home that a disk is.
    pub(super) fn of(there: &FoundTarget<'_>, disk: &Disk) -> Option<Self> {
        let signer = there.target.zip(disk.signing_key);
        let signer = signer.map(|(target, key)| (target.name.clone(), key));
        Some(Self { user: user_of(disk)?.to_owned(), signer })
    }

    /// Has this machine trust the key of the home, which was attached, if the user agrees. Returns what is to be done
    /// next, a line each.
    ///
    /// # Errors
    /// Fails if the key cannot be stored, or if systemd-homed cannot be started again.
    pub(super) fn prepare(
        &self,
        tree: &Tree,
        attached: &Attached,
        agreed: bool,
    ) -> Result<Vec<String>, Failure> {
        let user = &self.user;
        let mut lines = Vec::new();
        if !wait_for_link(tree, attached, Instant::now() + LINK_TIMEOUT) {
            lines.push(format!(
                "udev has not recognised the home of {user} yet: `udevadm settle`, then `homectl list` should show it"
            ));
        }
        if !homed::is_present(tree) {
            lines.push("systemd-homed has never run on this machine: install and start it first (package systemd-homed)".to_owned());
            return Ok(lines);
        }
        match &self.signer {
            Some((machine, key)) if !homed::trusts(tree, key) => {
                lines.push(trust(tree, machine, key, agreed)?);
            }
            Some(_) => {}
            None => lines.push(format!(
                "the other machine has sent no key for the record of {user}: if `homectl activate {user}` is refused, copy its \
                 /var/lib/systemd/home/local.public here by hand"
            )),
        }
        lines.push(next(user));
        Ok(lines)
    }
}

fn next(user: &str) -> String {
    format!(
        "next: homectl activate {user}, or a login of {user} (if it is not signed by a known key: that of the machine on which \
         the home was made is missing here); at the end: storagetm detach"
    )
}

/// Asks, stores the key, and starts systemd-homed again. Returns what was done.
fn trust(tree: &Tree, machine: &str, key: &SigningKey, agreed: bool) -> Result<String, Failure> {
    let path = homed::key_path(tree, &homed::key_name(machine, key));
    let question = format!(
        "systemd-homed of this machine does not trust {machine}, whose systemd-homed normally signs the user's record. If it does, \
         {machine} decides who the users of its homes are here, and what they may do. Its key would be stored as {}",
        path.display()
    );
    consent(&question, machine, "--yes", agreed).map_err(|reason| {
        Failure::refused(format!("{reason}. The home stays attached; storagetm detach ends that"))
    })?;
    store(tree, machine, key, || run("systemctl", &["try-restart", "systemd-homed.service"]))?;
    Ok(format!("{machine} is trusted: its key is {}", path.display()))
}

/// Stores the key of a machine, and has systemd-homed read it. A key that was not read is removed again: the next attempt
/// would take it for one that is.
///
/// # Errors
/// Fails if the key cannot be written, or if `restart` fails.
fn store(
    tree: &Tree,
    machine: &str,
    key: &SigningKey,
    restart: impl FnOnce() -> Result<(), String>,
) -> Result<(), Failure> {
    let name = homed::key_name(machine, key);
    let path = homed::key_path(tree, &name);
    homed::trust(tree, &name, key)
        .map_err(|error| Failure::new(format!("{} cannot be written: {error}", path.display())))?;
    restart().map_err(|reason| {
        let kept = match std::fs::remove_file(&path) {
            Ok(()) => String::new(),
            Err(error) => format!("; remove {}, which failed here: {error}", path.display()),
        };
        Failure::new(format!(
            "{machine} is not trusted: systemd-homed could not be started again ({reason}){kept}"
        ))
    })
}

/// Waits until a link in `/dev/disk/by-uuid` shows that udev knows the disk or its partition.
fn wait_for_link(tree: &Tree, attached: &Attached, end: Instant) -> bool {
    let disks: Vec<PathBuf> =
        attached.devices.iter().map(|device| PathBuf::from(&device.path)).collect();
    loop {
        let links = tree.path("dev/disk/by-uuid").read_dir().into_iter().flatten().flatten();
        let mut nodes = links.filter_map(|link| link.path().canonicalize().ok());
        if nodes.any(|node| disks.iter().any(|disk| is_part(&node, disk))) {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Returns whether a device node is that of an NVMe disk or of one of its partitions (`nvme0n1p1`).
fn is_part(node: &Path, disk: &Path) -> bool {
    let names = [node, disk].map(|path| path.file_name().and_then(|name| name.to_str()));
    let [Some(node), Some(disk)] = names else { return false };
    node.strip_prefix(disk).is_some_and(|rest| rest.is_empty() || rest.starts_with('p'))
}

/// An active home on an attached disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ActiveHome {
    user: String,
    /// The kernel's name of the disk.
    pub(super) disk: String,
}

/// Returns the active homes on these disks.
pub(super) fn active(tree: &Tree, disks: &[String]) -> Vec<ActiveHome> {
    active_on(&linux::block::scan(tree).unwrap_or_default(), disks)
}

/// systemd-homed calls the unlocked volume `home-USER`.
fn active_on(devices: &[Device], disks: &[String]) -> Vec<ActiveHome> {
    let whole = |name: &String| devices.iter().find(|it| it.name == *name).map(Device::whole);
    let disk_of = |device: &Device| {
        let mut wholes = device.stacking.slaves.iter().filter_map(whole);
        wholes.find(|name| disks.iter().any(|disk| disk == name)).map(str::to_owned)
    };
    let home = |device: &Device| {
        let user = user_in(device.stacking.dm_name.as_deref()?)?.to_owned();
        Some(ActiveHome { user, disk: disk_of(device)? })
    };
    devices.iter().filter_map(home).collect()
}

/// Deactivates homes.
///
/// # Errors
/// Fails if systemd-homed refuses, for example because a program of the user still runs.
pub(super) fn deactivate(homes: &[ActiveHome]) -> Result<(), Failure> {
    for ActiveHome { user, .. } in homes {
        run("homectl", &["deactivate", user]).map_err(|reason| {
            Failure::new(format!(
                "the home of {user} is active, and stays attached: {reason}; log {user} out first, or say --force, and lose what was \
                 not yet written"
            ))
        })?;
    }
    Ok(())
}

/// Runs a program. Fails with what it printed last.
fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let last = text.lines().rev().find(|line| !line.trim().is_empty());
    Err(last.map_or_else(|| format!("{program} ended with {}", output.status), str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;
    use remote::address::TargetAddr;
    use remote::host_identity::HostIdentity;

    fn disk(name: &str, access: Allowed) -> Disk {
        let user = name.strip_prefix(PREFIX).unwrap_or_default();
        Disk {
            nqn: format!("nqn.2026-01.com.example:{name}"),
            at: "10.0.0.1:4420".parse().unwrap(),
            name: Some(name.to_owned()),
            signing_key: None,
            model: format!("home of {user}"),
            serial: String::new(),
            size: Some((1, access)),
        }
    }

    fn chosen(disks: &[Disk], user: &str) -> Result<String, (u8, String)> {
        let there = FoundTarget {
            place: TargetAddr::parse("10.0.0.1", None).unwrap(),
            target: None,
            identity: HostIdentity { nqn: "nqn.h".to_owned(), id: [0; 16] },
            disks: disks.to_vec(),
        };
        let home = choose(&TargetSpec::parse("desk").unwrap(), &there, user);
        home.map(|disk| user_of(&disk).unwrap().to_owned())
            .map_err(|failure| (failure.status(), failure.to_string()))
    }

    #[test]
    fn the_only_home_needs_no_user() {
        let disks = ["sda", "home-alice", "home-../x"].map(|name| disk(name, Allowed::Writable));
        assert_eq!(chosen(&disks, ""), Ok("alice".to_owned()));
        assert_eq!(chosen(&disks, "alice"), Ok("alice".to_owned()));
        assert_eq!(chosen(&disks, "bob").unwrap_err().0, 3);
        assert_eq!(chosen(&disks[..1], "").unwrap_err().0, 3);
        let image = Disk { model: "storagetm image".to_owned(), ..disks[1].clone() };
        assert_eq!(chosen(&[image], "").unwrap_err().0, 3);
    }

    #[test]
    fn one_of_several_homes_must_be_named() {
        let disks = ["home-alice", "home-bob"].map(|name| disk(name, Allowed::Writable));
        let (status, said) = chosen(&disks, "").unwrap_err();
        assert!(status == 2 && said.contains("alice, bob"), "{said}");
        assert_eq!(chosen(&disks, "bob"), Ok("bob".to_owned()));
    }

    #[test]
    fn key_that_systemd_homed_did_not_read_is_removed() {
        let folder = testkit::Scratch::new();
        std::fs::create_dir_all(folder.0.join("var/lib/systemd/home")).unwrap();
        let (tree, key) = (Tree::at(&folder.0), [7; 32]);
        let failure = store(&tree, "desk", &key, || Err("no D-Bus".to_owned())).unwrap_err();
        assert!(failure.to_string().contains("no D-Bus") && !homed::trusts(&tree, &key));
        store(&tree, "desk", &key, || Ok(())).unwrap();
        assert!(homed::trusts(&tree, &key));
    }

    #[test]
    fn home_that_is_lent_read_only_is_refused() {
        let (status, said) = chosen(&[disk("home-alice", Allowed::ReadOnly)], "").unwrap_err();
        assert!(status == 3 && said.contains("systemd-homed refuses"), "{said}");
    }

    #[test]
    fn partitions_belong_to_their_disk_only() {
        let is_part = |node: &str| is_part(Path::new(node), Path::new("/dev/nvme1n1"));
        assert!(is_part("/dev/nvme1n1") && is_part("/dev/nvme1n1p1"));
        assert!(!is_part("/dev/nvme1n10") && !is_part("/dev/nvme1n10p1") && !is_part("/dev/sda"));
    }
}
