//! The volumes: disks that paired machines lend to this one, and disks of this machine that are not
//! in use.

use std::collections::HashSet;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use daemon::examine::{LIMIT, examine};
use keys::record::Allowed;
use keys::target::Target;
use linux::block::Disk;
use linux::fabrics::controllers;
use linux::glob;
use linux::in_use::Machine;
use linux::reason::{Asked, Code};
use linux::tree::Tree;
use remote::machine;

use super::interface::{Volume, VolumeType};
use super::{Provider, report};
use crate::attach::{LentDisk, lent_disks};
use crate::options::attach::Attach;

/// How long machines are waited for. Less than callers wait (45 seconds by sd-varlink).
const PATIENCE: Duration = Duration::from_secs(10);

/// Machines that are asked at a time.
const MAX_MACHINES: usize = 64;

/// Returns the volumes whose name or alias matches `pattern`, sorted by name. Machines that do not
/// answer are left out.
pub(super) fn list(provider: &Provider, pattern: Option<&str>) -> Vec<Volume> {
    let remote = remote_volumes(provider);
    let mut volumes: Vec<Volume> = local_volumes().into_iter().chain(remote).collect();
    volumes.retain(|volume| pattern.is_none_or(|pattern| is_match(volume, pattern)));
    volumes.sort_by(|a, b| a.name.cmp(&b.name));
    volumes
}

fn is_match(volume: &Volume, pattern: &str) -> bool {
    let matches = |name: &String| glob::matches(pattern.as_bytes(), name.as_bytes());
    matches(&volume.name) || volume.aliases.iter().any(matches)
}

/// Asks all paired machines at once.
fn remote_volumes(provider: &Provider) -> Vec<Volume> {
    let known = machine::readable_targets(provider.keys.as_deref()).unwrap_or_else(|failure| {
        report(&failure.to_string());
        Vec::new()
    });
    let (sender, receiver) = mpsc::channel();
    for name in names(&known).into_iter().take(MAX_MACHINES) {
        let options = Attach::of(name.clone(), provider.keys.clone(), provider.mdns_port);
        let sender = sender.clone();
        let ask = move || {
            let _ = sender.send((name, lent_disks(&options)));
        };
        let _ = thread::Builder::new().name("volumes".to_owned()).spawn(ask);
    }
    drop(sender);
    let (mut volumes, end) = (Vec::new(), Instant::now() + PATIENCE);
    while let Ok((name, disks)) =
        receiver.recv_timeout(end.saturating_duration_since(Instant::now()))
    {
        match disks {
            Ok(disks) => volumes.extend(volumes_of(&name, &disks)),
            Err(failure) => report(&format!("no volumes of {name}: {failure}")),
        }
    }
    volumes
}

/// Returns what each machine is called: its name, or its address if another one before it has that name.
fn names(targets: &[Target]) -> Vec<String> {
    let mut taken = HashSet::new();
    let name = |target: &Target| match taken.insert(target.name.to_ascii_lowercase()) {
        true => target.name.clone(),
        false => target.address.clone(),
    };
    targets.iter().map(name).collect()
}

/// Returns the volumes of a machine. A disk whose name another one has is called by its NQN.
fn volumes_of(machine: &str, disks: &[LentDisk]) -> Vec<Volume> {
    let is_unique = |name: &str| disks.iter().filter(|disk| disk.name == name).count() == 1;
    let volume = |disk: &LentDisk| {
        let by_nqn = format!("{machine}/{}", disk.nqn);
        let name = is_unique(&disk.name).then(|| format!("{machine}/{}", disk.name));
        Volume {
            aliases: name.iter().map(|_| by_nqn.clone()).collect(),
            name: name.unwrap_or(by_nqn),
            r#type: VolumeType::Blk,
            read_only: disk.size.map(|(_, access)| access == Allowed::ReadOnly),
            size_bytes: disk.size.map(|(bytes, _)| bytes),
        }
    };
    disks.iter().map(volume).collect()
}

/// Returns the disks of this machine that may be used. Disks of other machines that are attached are
/// left out.
fn local_volumes() -> Vec<Volume> {
    let tree = Tree::machine();
    let Ok(machine) = Machine::snapshot(&tree) else { return Vec::new() };
    let attached: Vec<String> = controllers(&tree).into_iter().flat_map(|it| it.disks).collect();
    let is_own = |disk: &&Disk| disk.bytes > 0 && !attached.iter().any(|it| it == disk.whole());
    let disks: Vec<&Disk> = machine.disks.iter().filter(is_own).collect();
    let examined = disks.iter().flat_map(|disk| machine.examined_for(disk));
    let findings = examine(&tree, examined, |_| LIMIT);
    let volume = |disk: &Disk| {
        let verdict = machine.judge(disk, &findings);
        let is_read_only =
            disk.read_only || verdict.reasons.iter().any(|it| it.code == Code::ReadOnly);
        verdict.allows(Asked::ByName).then(|| Volume {
            name: disk.name.clone(),
            aliases: vec![disk.node.display().to_string()],
            r#type: VolumeType::Blk,
            read_only: Some(is_read_only),
            size_bytes: Some(disk.bytes),
        })
    };
    disks.into_iter().filter_map(volume).collect()
}

#[cfg(test)]
mod test {
    use super::*;

    fn disk(name: &str, nqn: &str) -> LentDisk {
        let size = Some((1 << 20, Allowed::ReadOnly));
        LentDisk { name: name.to_owned(), nqn: nqn.to_owned(), size, encrypted: true }
    }

    #[test]
    fn no_two_volumes_have_one_name() {
        let disks = [disk("sda", "nqn.a:1"), disk("sdb", "nqn.a:2"), disk("sdb", "nqn.a:3")];
        let volumes = volumes_of("desk", &disks);
        let names: Vec<&str> = volumes.iter().map(|volume| volume.name.as_str()).collect();
        assert_eq!(names, ["desk/sda", "desk/nqn.a:2", "desk/nqn.a:3"]);
        let targets = [Target::sample("desk", "10.0.0.1"), Target::sample("Desk", "10.0.0.2")];
        assert_eq!(names_of(&targets), ["desk", "10.0.0.2"]);
    }

    fn names_of(targets: &[Target]) -> Vec<String> {
        names(targets)
    }

    #[test]
    fn pattern_is_that_of_the_shell() {
        let volume = &volumes_of("desk", &[disk("sda", "nqn.a:1")])[0];
        for (pattern, expected) in
            [("*", true), ("desk/*", true), ("*sda", true), ("*nqn.a:[0-9]", true), ("sda", false)]
        {
            assert_eq!(is_match(volume, pattern), expected, "{pattern}");
        }
    }
}
