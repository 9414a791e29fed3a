//! Selects the connections to end, checks that their disks are not in use, and ends them.

use std::io;
use std::net::{IpAddr, SocketAddr};

use linux::block::Disk;
use linux::disk::Live;
use linux::fabrics::{Controller, FabricsError, controllers};
use linux::in_use::{Machine, Probe};
use linux::reason::Weight;
use linux::signature::Contents;
use linux::tree::Tree;
use serde::Serialize;

use super::target::TargetSpec;
use failure::Failure;
use keys::target::{Target, named};
use nvme::PORT as NVME_PORT;
use remote::address::TargetAddr;

/// A connection that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Detached {
    /// NQN of the disk's subsystem.
    pub(super) nqn: String,
    /// The kernel's name of the connection.
    pub(super) controller: String,
    /// The disks of the connection.
    pub(super) devices: Vec<String>,
}

/// Returns the connections that match a device, an NQN or a machine; all of them if `what` is
/// `None`.
///
/// # Errors
/// Fails if none matches.
pub(super) fn matching(
    tree: &Tree,
    what: Option<&str>,
    known: &[Target],
) -> Result<Vec<Controller>, Failure> {
    let all = controllers(tree);
    let Some(what) = what else { return Ok(all) };
    let device = what.strip_prefix("/dev/").unwrap_or(what);
    let mut by_name = all.clone();
    by_name.retain(|it| {
        it.name == device || it.subsystem == what || it.disks.iter().any(|disk| disk == device)
    });
    if !by_name.is_empty() {
        return Ok(by_name);
    }
    let target = TargetSpec::parse(what).map_err(|_| unknown(what))?;
    let (addresses, port) = addresses(&target.machine, known)?;
    let mut there = all;
    there.retain(|it| {
        let is_there = it.address.is_some_and(|address| addresses.contains(&address));
        let part = it.subsystem.rsplit(':').next();
        let disk = target.disk.as_deref();
        let is_disk = disk.is_none_or(|disk| disk == it.subsystem || Some(disk) == part);
        is_there && is_disk && port.is_none_or(|port| it.port == Some(port))
    });
    if there.is_empty() {
        return Err(unknown(what));
    }
    Ok(there)
}

fn unknown(what: &str) -> Failure {
    Failure::new(format!(
        "nothing is attached by NVMe/TCP that is called {what}, or comes from there; /sys/class/nvme shows what is"
    ))
}

/// Returns the addresses that a machine has or had, and its port if that is not the default.
///
/// # Errors
/// Fails with a usage error if several machines have that name.
fn addresses(machine: &str, known: &[Target]) -> Result<(Vec<IpAddr>, Option<u16>), Failure> {
    let at = known.iter().find(|target| target.address == machine);
    let target = at.map_or_else(|| named(known, machine), |target| Ok(Some(target)))?;
    let called = target.map_or(machine, |target| target.address.as_str());
    // The interface does not matter here.
    let Ok(place) = TargetAddr::parse(called, Some("any")) else { return Ok((Vec::new(), None)) };
    let resolved = || place.addresses().map(|all| all.iter().map(SocketAddr::ip).collect());
    let found = place.ip().map_or_else(|| resolved().unwrap_or_default(), |address| vec![address]);
    Ok((found, Some(place.port()).filter(|port| *port != NVME_PORT)))
}

/// Returns the disks that no other connection reaches: one that is, stays (multipath).
pub(super) fn disks_that_go(tree: &Tree, leaving: &[Controller]) -> Vec<String> {
    let mut staying = controllers(tree);
    staying.retain(|it| !leaving.iter().any(|leaving| leaving.name == it.name));
    let stays = |disk: &str| staying.iter().any(|it| it.disks.iter().any(|other| other == disk));
    let mut disks: Vec<String> = leaving.iter().flat_map(|it| it.disks.clone()).collect();
    disks.retain(|disk| !stays(disk));
    disks
}

/// Checks that none of the disks is in use.
///
/// # Errors
/// Fails with the name of a disk that is in use, and by what.
pub(super) fn check_unused(tree: &Tree, disks: &[String]) -> Result<(), Failure> {
    let machine = Machine::snapshot(tree).map_err(|error| {
        Failure::new(format!("it cannot be found out whether disks are in use: {error}"))
    })?;
    let probe = KernelProbe(Live { tree: tree.clone() });
    for disk in disks.iter().filter_map(|name| machine.disk(name)) {
        let verdict = machine.judge(disk, &probe);
        if verdict.is_in_use() {
            let reasons: Vec<String> = verdict.uses().map(ToString::to_string).collect();
            let known = verdict.of_weight(Weight::InUse).next().is_some();
            let state = if known { "is in use" } else { "may be in use" };
            return Err(Failure::new(format!(
                "{} {state}: {}; end that first, or say --force, and lose what was not yet written",
                disk.node.display(),
                reasons.join(", ")
            )));
        }
    }
    Ok(())
}

/// Asks the kernel only: reading from a disk whose target is away would block.
struct KernelProbe(Live);

impl Probe for KernelProbe {
    fn contents(&self, _: &Disk) -> io::Result<Contents> {
        Ok(Contents::default())
    }

    fn is_busy(&self, disk: &Disk) -> io::Result<bool> {
        self.0.is_busy(disk)
    }
}

/// Ends the connections.
///
/// # Errors
/// Fails if the kernel keeps one; those before it have ended.
pub(super) fn release(tree: &Tree, leaving: Vec<Controller>) -> Result<Vec<Detached>, Failure> {
    let failed = |it: &Controller, error: FabricsError| {
        Failure::new(format!("{} ({}) stays attached: {error}", it.name, it.subsystem))
    };
    let end = |it: Controller| {
        it.delete(tree).map_err(|error| failed(&it, error))?;
        let devices = it.disks.iter().map(|disk| format!("/dev/{disk}")).collect();
        Ok(Detached { nqn: it.subsystem, controller: it.name, devices })
    };
    leaving.into_iter().map(end).collect()
}
