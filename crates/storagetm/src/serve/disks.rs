//! Opens the disks that are exported at startup.

use std::fs::File;
use std::path::Path;

use daemon::device::Device;
use daemon::homes;
use daemon::hotplug::{Change, Hotplug};
use daemon::inbox::Inbox;
use daemon::lend::{
    LendOptions, LendRequest, LentDisk, Writes, block_device, check_distinct, named,
};
use failure::Failure;
use filesystem::Container;
use protocol::commands::quoted;

use super::config::ServeConfig;
use super::rescue::MapKeeper;
use crate::options::home;
use crate::unpack;

/// What was opened at the start.
pub(super) struct Requested {
    pub(super) lent: Vec<LentDisk>,
    /// What saves the map of a disk that fails.
    pub(super) map_keeper: Option<MapKeeper>,
    /// About homes that are left out.
    pub(super) notes: Vec<String>,
}

/// Opens the named disks, the demo disk, and home directories.
///
/// # Errors
/// Fails if one of them cannot be exported.
pub(super) fn open_requested(config: &ServeConfig, inbox: &Inbox) -> Result<Requested, Failure> {
    let (mut lent, map_keeper) = open_named(config, inbox)?;
    let lend = &config.lend;
    if let Some((size, writes)) = config.demo {
        lent.push(beside(&lent, lend.lend_demo(size, writes)?)?);
    }
    let notes = open_homes(config, &mut lent)?;
    Ok(Requested { lent, map_keeper, notes })
}

/// Opens the named disks. Returns also what saves the map of a disk that fails.
fn open_named(
    config: &ServeConfig,
    inbox: &Inbox,
) -> Result<(Vec<LentDisk>, Option<MapKeeper>), Failure> {
    let (lend, mut keeper) = (&config.lend, None);
    let mut lent_disks: Vec<LentDisk> = Vec::new();
    for wanted in &config.disks {
        lend.check_reachable(&wanted.path)?;
        let mut wanted = LendRequest { path: named(&lend.tree, &wanted.path), ..wanted.clone() };
        let map = config.rescue.as_ref().map(|rescue| rescue.load(&wanted.path)).transpose()?;
        wanted.rescue = map.as_ref().map(|(request, _)| request.clone());
        check_new(&known(&lent_disks), &wanted.path)?;
        let lent = beside(&lent_disks, open_one(lend, config.any_format, wanted)?)?;
        if let Some((_, map)) = map {
            keeper = Some(MapKeeper::start(&lent, map, inbox)?);
        }
        lent_disks.push(lent);
    }
    Ok((lent_disks, keeper))
}

/// Opens home directories. Returns notes about those that are left out.
fn open_homes(
    config: &ServeConfig,
    lent_disks: &mut Vec<LentDisk>,
) -> Result<Vec<String>, Failure> {
    let Some(users) = &config.homes else { return Ok(Vec::new()) };
    let writes = |name: &str| home::writes(&config.overlaid_homes, name);
    let (homes, notes) = homes::open(&config.lend, users, writes)?;
    for home in homes {
        check_name(lent_disks, &home)?;
        lent_disks.push(beside(lent_disks, home)?);
    }
    let is_lent = |name: &Path| {
        let homes = lent_disks.iter().filter(|lent| lent.export.home.is_some());
        homes.into_iter().any(|lent| Path::new(&lent.export.short) == name)
    };
    match config.overlaid_homes.iter().find(|name| !is_lent(name)) {
        Some(name) => Err(Failure::new(format!(
            "--overlay {}: this home is not lent{}",
            name.display(),
            notes.iter().map(|note| format!("; {note}")).collect::<String>()
        ))),
        None => Ok(notes),
    }
}

/// Checks that no other disk has the name of a home: access rules have it, so a home is never called otherwise.
///
/// # Errors
/// Fails if one has.
fn check_name(lent_disks: &[LentDisk], home: &LentDisk) -> Result<(), Failure> {
    let name = &home.export.short;
    match lent_disks.iter().find(|other| other.export.short == *name) {
        Some(other) => Err(Failure::new(format!(
            "{} and {} would both be called {name}: lend one of them only, or rename the file",
            other.export.name, home.export.name
        ))),
        None => Ok(()),
    }
}

/// Opens a named disk.
///
/// # Errors
/// Fails if it cannot be exported.
pub(super) fn open_one(
    lend: &LendOptions,
    any_format: bool,
    mut wanted: LendRequest,
) -> Result<LentDisk, Failure> {
    // A disk that is lent by a map is one, whatever its first bytes are.
    if !any_format && wanted.rescue.is_none() {
        wanted.format = format(&wanted)?;
    }
    lend.lend(&wanted)
}

/// Adds the disks that are present. Returns notes, also about disks that are left out because
/// another one has their identity.
///
/// # Errors
/// Fails if the disks cannot be listed.
pub(super) fn open_present(
    hotplug: &mut Hotplug,
    lent_disks: &mut Vec<LentDisk>,
) -> Result<Vec<String>, Failure> {
    let mut notes = Vec::new();
    for change in hotplug.initial_scan(lent_disks)? {
        match change {
            Change::Added(lent) => match beside(lent_disks, *lent) {
                Ok(lent) => lent_disks.push(lent),
                Err(failure) => notes.push(failure.to_string()),
            },
            Change::Note(note) => notes.push(note),
            Change::Over(note) => notes.retain(|known| *known != note),
            Change::Removed(_) | Change::Resized(..) => {}
        }
    }
    Ok(notes)
}

/// Returns the disk with a name that no other one has.
///
/// # Errors
/// Fails if another one has its identity.
pub(super) fn beside(others: &[LentDisk], lent: LentDisk) -> Result<LentDisk, Failure> {
    others.iter().try_for_each(|known| check_distinct(&known.export, &lent.export))?;
    Ok(lent.with_unique_name(others))
}

/// Returns the format of an image file of a virtual machine, which is lent as the disk in it. Read errors are
/// reported when it is opened.
///
/// # Errors
/// Fails for a compressed file, which hosts could not use, and for an image that hosts may change.
fn format(wanted: &LendRequest) -> Result<Option<Container>, Failure> {
    let path = &wanted.path;
    if !path.is_file() {
        return Ok(None);
    }
    let container = File::open(path).and_then(|file| unpack::detect(&file));
    let Ok(Some(container)) = container else { return Ok(None) };
    if container.is_virtual_disk() && wanted.writes != Writes::ToDisk {
        return Ok(Some(container));
    }
    let name = path.display();
    let quoted = quoted(&name.to_string());
    let way = match container.is_stream() {
        true => format!("{} > disk.img", container.unpack_command(&quoted)),
        false => container.unpack_command(&quoted),
    };
    if container.is_virtual_disk() {
        return Err(Failure::new(format!(
            "{name} is {container}, which is never written to: for hosts that write, lend it with --overlay, unpack it first \
             ({way}), or lend it as it is with --format raw"
        )));
    }
    Err(Failure::new(format!(
        "{name} is {container}, and hosts would get its bytes as they are: unpack it first ({way}), or lend it as it is with \
         --format raw"
    )))
}

/// A block device that is exported, and the path by which it is.
#[derive(Debug, Clone)]
pub(super) struct Known {
    device: Device,
    name: String,
}

/// Returns the block devices that are exported.
pub(super) fn known(lent_disks: &[LentDisk]) -> Vec<Known> {
    let known = |lent: &LentDisk| {
        let name = lent.export.name.clone();
        lent.device.clone().map(|device| Known { device, name })
    };
    lent_disks.iter().filter_map(known).collect()
}

/// Rejects a second path to the same disk, which would appear to be in use by this process.
///
/// # Errors
/// Fails if the disk is exported.
pub(super) fn check_new(known: &[Known], path: &Path) -> Result<(), Failure> {
    let Some(number) = block_device(path) else { return Ok(()) };
    let is_it = |known: &&Known| known.device.is(number);
    known.iter().find(is_it).map_or(Ok(()), |known| {
        let (first, second) = (&known.name, path.display());
        Err(Failure::new(format!("{first} and {second} are the same disk; name it once")))
    })
}
