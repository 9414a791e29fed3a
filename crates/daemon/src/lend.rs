//! Opens a disk and makes an export of it: checks that it is not in use, and determines its
//! identity and names.

mod format;
mod home;
mod lent_disk;
pub(crate) mod opening;
mod reader;
mod request;
mod rescue;
mod virtual_disk;

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use export::{Access, Cache, Export, ExportId, Home, Identity};
use filesystem::Container;
use linux::block::{self, DeviceNumber, Disk};
use linux::disk::{Kind, OpenFor, Opened};
use linux::homed;
use linux::identity::{self, MachineId, Source};
use linux::in_use::{Machine, Probe};
use linux::reason::{Asked, Code, Verdict, Weight};
use linux::tree::Tree;
use rustix::fs::OFlags;

use crate::device::Device;
use crate::examine::{SPIN_UP, examine, limit_for};
use crate::overlay::{NewOverlay, OverlayOptions};
use crate::reported::ReportedIdentity;
use crate::size::Size;
use crate::{contents, demo};
use failure::Failure;
use format::Format;
pub use home::work as recognize;
pub use lent_disk::{LentDisk, home_name, stable_name};
use nvme::nqn;
use opening::Question;
pub use opening::{Opener, work as open_disk};
use request::is_direct;
pub use request::{LendRequest, Writes, block_device, disk_named, named};
pub use rescue::{RescueRequest, image_identity};
use virtual_disk::IndexedDisk;
pub use virtual_disk::work as index;

/// Name of the demo disk.
pub const DEMO: &str = "demo";

/// Options for exporting disks.
#[derive(Debug, Clone)]
pub struct LendOptions {
    /// File tree of the machine.
    pub tree: Tree,
    /// Prefix of NQNs; `None` to derive them from the identities of disks.
    pub base: Option<String>,
    /// Whether to export disks in use, read-only.
    pub allow_in_use: bool,
    /// Whether to export disks writable whose contents cannot be read.
    pub force: bool,
    /// Whether disks are announced as removable media.
    pub removable: bool,
    /// How overlays are kept.
    pub overlay: OverlayOptions,
    /// Machine ID.
    pub machine: MachineId,
    /// Whether the machine was booted into target mode, where it uses none of its disks itself.
    pub at_rest: bool,
    /// Identification that is reported instead of that of the disks.
    pub reported: ReportedIdentity,
    /// The processes that open disks.
    pub opener: Opener,
}

/// A block device with the results of probing it.
#[allow(missing_debug_implementations, reason = "the probe has none")]
#[derive(Clone, Copy)]
pub struct ExaminedDisk<'a> {
    /// State of the machine.
    pub machine: &'a Machine,
    pub disk: &'a Disk,
    /// Probe results of the disk, its partitions and its whole disk.
    pub findings: &'a dyn Probe,
}

impl LendOptions {
    /// Opens a disk by path.
    ///
    /// # Errors
    /// Fails with a message for the user.
    pub fn lend(&self, request: &LendRequest) -> Result<LentDisk, Failure> {
        let device = block_device(&request.path);
        let Some(number) = device else { return self.lend_opened(request, None, SPIN_UP) };
        let found = self.look().ok().and_then(|machine| {
            let disk = machine.disks.iter().find(|disk| disk.number == number)?.clone();
            Some((machine, disk))
        });
        match found {
            Some((machine, disk)) => {
                let (limits, limit) = (limit_for(&disk), limit_for(&disk)(&disk));
                // A process that is opening it could hold it.
                self.opener.wait_for(number, &request.path, limit)?;
                let findings = examine(&self.tree, devices_to_examine(&machine, &disk), limits);
                self.lend_examined(
                    request,
                    &ExaminedDisk { machine: &machine, disk: &disk, findings: &findings },
                    limit,
                )
            }
            None if self.allow_in_use && !request.writes_disk() => {
                self.lend_opened(request, Some((number, None)), SPIN_UP)
            }
            None => Err(Failure::new(format!(
                "{}: it cannot be found out whether this disk is in use, since /sys does not show \
                 it; lend it read-only with --allow-in-use if you know",
                request.path.display()
            ))),
        }
    }

    /// Opens a block device that was probed, within the `limit` that its probe had.
    ///
    /// # Errors
    /// Fails with a message for the user. Its cause is a timeout if the device does not respond.
    pub fn lend_examined(
        &self,
        request: &LendRequest,
        examined: &ExaminedDisk<'_>,
        limit: Duration,
    ) -> Result<LentDisk, Failure> {
        let verdict = examined.machine.judge(examined.disk, examined.findings);
        self.check(request, &verdict)?;
        let device = Some((examined.disk.number, Some(examined)));
        let lent = self.lend_opened(request, device, limit)?;
        let contents = contents::describe(examined.machine, examined.disk, examined.findings);
        Ok(lent.with_contents(contents).noting(&verdict))
    }

    /// Reads the state of the machine. Fails if `/sys/class/block` cannot be read.
    pub fn look(&self) -> std::io::Result<Machine> {
        let machine = Machine::snapshot(&self.tree)?;
        Ok(if self.at_rest { machine.at_rest() } else { machine })
    }

    /// Refuses a disk that is in use, may be in use, or does not respond. Other problems are
    /// reported when opening it.
    fn check(&self, request: &LendRequest, verdict: &Verdict) -> Result<(), Failure> {
        let asked = if self.allow_in_use { Asked::ByNameInUse } else { Asked::ByName };
        let asked = if request.writes_disk() { Asked::ByName } else { asked };
        let path = request.path.display();
        if let Some(reason) = verdict.reasons.iter().find(|reason| reason.code == Code::Silent) {
            return Err(Failure::new(format!("{path} is not lent: {reason}")));
        }
        if request.writes_disk()
            && !self.force
            && let Some(reason) = verdict.of_weight(Weight::Unread).next()
        {
            return Err(Failure::new(format!(
                "{path} {reason}; lend it read-only, or writable all the same with --force"
            )));
        }
        let Some(reason) = verdict.uses().next().filter(|_| !verdict.allows(asked)) else {
            return Ok(());
        };
        let is_known = reason.code.weight() == Weight::InUse;
        Err(Failure::new(match (is_known, request.writes_disk()) {
            (true, true) => format!(
                "{path} is in use ({reason}), and a disk in use is never lent writable; stop \
                 that first"
            ),
            (true, false) => format!(
                "{path} is in use ({reason}); stop that first, or lend it read-only all the same \
                 with --allow-in-use"
            ),
            (false, true) => format!(
                "whether {path} is in use cannot be found out ({reason}), so it is not lent writable"
            ),
            (false, false) => format!(
                "whether {path} is in use cannot be found out ({reason}); lend it read-only with \
                 --allow-in-use if you know that it is not"
            ),
        }))
    }

    /// Opens the disk within `limit`; `device` is the block device that was checked, and its probe results.
    fn lend_opened(
        &self,
        request: &LendRequest,
        device: Option<(DeviceNumber, Option<&ExaminedDisk<'_>>)>,
        limit: Duration,
    ) -> Result<LentDisk, Failure> {
        let purpose = if request.writes_disk() { OpenFor::Writing } else { OpenFor::Reading };
        let (number, examined) = (device.map(|it| it.0), device.and_then(|it| it.1));
        let question = Question::new(&self.tree, &request.path, purpose, self.allow_in_use)?;
        let mut opened = self.opener.open(&question, number, limit)?;
        check_same(request, &opened, number)?;
        let home = request.is_home.then(|| home::recognize(&opened)).transpose()?;
        let indexed = |format| IndexedDisk::read(&mut opened, format, &self.tree);
        let indexed = request.format.map(indexed).transpose()?;
        if let Some(examined) = examined.filter(|_| opened.kind == Kind::Block) {
            check_still(&self.tree, request, examined.disk)?;
        }
        let name = examined.and_then(stable_name).unwrap_or_default();
        let format = Format::of(indexed, request, (&opened, &name), &self.tree)?;
        let (identity, twin) = match &home {
            Some(home) => (self.reported.replacing(home::identity(home, self.machine)), None),
            None => self.identity(&opened, examined),
        };
        let identity = request.known_as.iter().fold(identity, |own, known| known.replacing(own));
        let writer = opened.written_by.clone();
        let mut lent =
            self.export(request, identity, (opened, format), examined.map(|it| it.disk))?;
        if let Some(home) = home {
            let signing_key = homed::own_key(&self.tree);
            let lent_home = lent.with_home(Home { user: home.user, signing_key });
            lent = lent_home.ok_or_else(|| Failure::new("the home is used already"))?;
        }
        let path = request.path.display();
        lent.notes.extend(home::image_note(request));
        lent.notes.extend(writer.map(|holder| {
            format!("{path} is in use by {holder}: what is read of it may be half-written")
        }));
        lent.notes.extend(twin.map(|twin| {
            format!(
                "{path} has the same serial number or identifier as {}: its NQN is made from where it is \
                 connected; if both are paths to one disk, lend one of them only",
                twin.display()
            )
        }));
        lent.stable_name = name;
        lent.fingerprint = examined.and_then(|examined| self.fingerprint(examined));
        Ok(lent)
    }

    fn export(
        &self,
        request: &LendRequest,
        identity: Identity,
        (opened, format): (Opened, Format),
        disk: Option<&Disk>,
    ) -> Result<LentDisk, Failure> {
        let path = request.path.display().to_string();
        let geometry = request.geometry(&opened)?;
        let overlaid = request.writes == Writes::ToOverlay;
        let options = (&self.tree, &self.overlay);
        let identity = format.identity(identity);
        let container = format.container();
        let overlay = overlaid
            .then(|| NewOverlay::over(&opened, &identity, disk, container, options))
            .transpose()?;
        let identity = match &overlay {
            Some(overlay) => overlay.identity(identity)?,
            None => identity,
        };
        let id = self.id(request, &identity)?;
        let may_write = request.writes != Writes::Refused;
        let (bytes, filled) = bytes_of(&opened, &path, (may_write, container))?;
        keep_aligned(&opened);
        // In the file of a home holes would be filled again later, perhaps when there is no space for it.
        let can_discard = opened.can_discard && (opened.kind == Kind::Block || !request.is_home);
        let Opened { descriptor, volatile_cache, whole, .. } = opened;
        let kept = overlay.as_ref().map(|overlay| overlay.note(&path));
        let of_format = format.note(&path, overlaid);
        let base = format.base(descriptor)?;
        let backing = match &overlay {
            Some(overlay) => overlay.backing(base)?,
            None => base.into(),
        };
        let mut export = Export::new(&path, id, identity, geometry, bytes, backing);
        export.access = if may_write { Access::Writable } else { Access::ReadOnly };
        // Memory needs no flush.
        let is_volatile = overlay.as_ref().map_or(volatile_cache, NewOverlay::is_cached);
        export.cache = if is_volatile { Cache::Volatile } else { Cache::WriteThrough };
        export.rotational = disk.is_some_and(|disk| disk.rotational);
        export.removable = self.removable;
        (export.discard, export.discard_zeroes) = (can_discard || overlaid, overlaid);
        if let Some(disk) = disk {
            export.short = device_name(&request.path, disk);
        }
        let lent = LentDisk::new(Arc::new(export), disk.map(Device::of));
        let notes = filled.into_iter().chain(kept).chain(of_format).collect();
        let folder = overlay.and_then(|it| it.folder);
        Ok(LentDisk { notes, _whole: whole, _overlay: folder, ..lent })
    }

    fn id(&self, request: &LendRequest, identity: &Identity) -> Result<ExportId, Failure> {
        // An overlay is another disk than what hosts know by that name.
        let known_as = request.known_as.as_ref().filter(|_| request.writes != Writes::ToOverlay);
        match (known_as, &self.base) {
            (Some(known), _) => Ok(known.id()),
            (None, Some(base)) => {
                nqn::under(base, &request.path).map(ExportId::Name).map_err(Failure::new)
            }
            (None, None) => Ok(ExportId::Uuid(identity.uuid)),
        }
    }

    /// The identity, and the node of another disk with the same identifiers.
    fn identity(
        &self,
        opened: &Opened,
        examined: Option<&ExaminedDisk<'_>>,
    ) -> (Identity, Option<PathBuf>) {
        let Some(examined) = examined.filter(|_| opened.kind == Kind::Block) else {
            let identity = identity::of_image(&opened.path, self.machine);
            return (self.reported.replacing(identity), None);
        };
        let (identity, twin) = self.of_block(examined);
        (self.reported.replacing(identity), twin.map(|twin| twin.node.clone()))
    }

    fn of_block<'a>(&self, examined: &ExaminedDisk<'a>) -> (identity::Identity, Option<&'a Disk>) {
        let ExaminedDisk { machine, disk, findings } = *examined;
        let whole = machine.disk(disk.whole()).unwrap_or(disk);
        let table_of = |disk: &Disk| findings.contents(disk).ok()?.table;
        let table = table_of(whole);
        let has_same_names = |other: &&Disk| {
            let is_other = !other.is_partition() && other.bytes > 0 && other.name != whole.name;
            is_other && identity::has_same_names(whole, table.as_ref(), other, || table_of(other))
        };
        let twin = machine.disks.iter().find(has_same_names);
        (identity::of_block(disk, whole, table.as_ref(), self.machine, twin.is_some()), twin)
    }

    /// Identifies the disk across reconnection; `None` if it has no unique identifier.
    pub fn fingerprint(&self, examined: &ExaminedDisk<'_>) -> Option<[u8; 16]> {
        let (identity, _) = self.of_block(examined);
        (identity.source != Source::Path).then_some(identity.uuid)
    }

    /// Makes and opens the demo disk.
    ///
    /// # Errors
    /// Fails if memory is exhausted.
    pub fn lend_demo(&self, size: Size, writes: Writes) -> Result<LentDisk, Failure> {
        let writable = writes == Writes::ToDisk;
        let path = PathBuf::from(DEMO);
        let identity = Identity {
            model: "storagetm demo".to_owned(),
            ..ReportedIdentity::default().replacing(identity::of_image(&path, self.machine))
        };
        let disk = demo::open(size.bytes(), identity.uuid, writable)
            .map_err(|error| Failure::new(format!("the demo disk cannot be made: {error}")))?;
        let opened = Opened {
            descriptor: disk.into(),
            whole: None,
            path: path.clone(),
            kind: Kind::Image,
            number: DeviceNumber { major: 0, minor: 0 },
            bytes: size.bytes(),
            tail: 0,
            logical_block: demo::BLOCK,
            physical_block: 4096,
            read_only: !writable,
            exclusive: true,
            written_by: None,
            direct: false,
            memory_alignment: 1,
            atomic_writes: None,
            volatile_cache: true,
            can_discard: writable,
            can_zero: writable,
        };
        self.export(&LendRequest::new(path, writes), identity, (opened, Format::Raw), None)
    }
}

/// The devices to probe before a disk is judged and named: the disk, its partitions, its whole
/// disk, and disks that may have the same identifiers. Empty if the disk is not to be probed.
pub fn devices_to_examine<'a>(machine: &'a Machine, disk: &'a Disk) -> Vec<&'a Disk> {
    let mut devices = machine.examined_for(disk);
    if devices.is_empty() {
        return devices;
    }
    let whole = machine.disk(disk.whole()).unwrap_or(disk);
    devices.push(whole);
    if identity::is_named_by_contents(whole) {
        let others = machine.disks.iter().filter(|other| !other.is_partition());
        let others = others.filter(|other| identity::is_named_by_contents(other));
        devices.extend(others.filter(|other| !machine.examined_for(other).is_empty()));
    }
    devices
}

/// The short name of a block device: the file name of its path; for paths in `/dev/disk`, which are
/// long, the device mapper's or the kernel's name. The kernel's name of a device mapper device is
/// not stable.
fn device_name(path: &Path, disk: &Disk) -> String {
    let mapper = disk.stacking.dm_name.as_ref();
    let kernel = mapper.unwrap_or(&disk.name);
    let own = path.file_name().filter(|_| !path.starts_with("/dev/disk"));
    let own = own.map(|name| name.to_string_lossy().into_owned());
    own.filter(|own| *own != disk.name).unwrap_or_else(|| kernel.clone())
}

/// Checks that the opened disk is the one that was judged.
fn check_same(
    request: &LendRequest,
    opened: &Opened,
    judged: Option<DeviceNumber>,
) -> Result<(), Failure> {
    let number = (opened.kind == Kind::Block).then_some(opened.number);
    if number == judged {
        return Ok(());
    }
    Err(became_another(request))
}

/// Checks that the device number was not reused for another disk. It cannot be while the disk is
/// open.
fn check_still(tree: &Tree, request: &LendRequest, judged: &Disk) -> Result<(), Failure> {
    let now = block::by_number(tree, judged.number);
    let is_same = now.is_some_and(|now| Device::of(&now) == Device::of(judged));
    is_same.then_some(()).ok_or_else(|| became_another(request))
}

fn became_another(request: &LendRequest) -> Failure {
    let path = request.path.display();
    Failure::new(format!("{path} became another disk while it was being opened; try again"))
}

/// Payload buffers are aligned to pages; disks that require more are accessed through the page
/// cache.
fn keep_aligned(opened: &Opened) {
    if opened.direct
        && !is_direct(opened)
        && let Ok(flags) = rustix::fs::fcntl_getfl(&opened.descriptor)
    {
        let _ = rustix::fs::fcntl_setfl(opened.descriptor.as_fd(), flags - OFlags::DIRECT);
    }
}

/// Returns the size of the disk in bytes, and a note if it ends with a part of a block. The size of a device is
/// rounded down to whole blocks.
///
/// # Errors
/// Fails if hosts may write to an image that ends with a part of a block.
fn bytes_of(
    opened: &Opened,
    path: &str,
    (may_write, container): (bool, Option<Container>),
) -> Result<(u64, Option<String>), Failure> {
    let tail = if opened.kind == Kind::Image { opened.tail } else { 0 };
    let (bytes, block) = (opened.bytes + tail, opened.logical_block);
    if tail == 0 {
        return Ok((bytes, None));
    }
    if may_write && container.is_some() {
        return Err(Failure::new(format!(
            "the disk in {path} has {bytes} bytes, which is not a multiple of its block size; lend it read-only"
        )));
    }
    if may_write {
        return Err(Failure::new(format!(
            "{path} has {bytes} bytes, which is not a multiple of its block size; lengthen it \
             with \"truncate -s %{block} {path}\", or lend it read-only"
        )));
    }
    let zeros = u64::from(block) - tail;
    let note = format!(
        "the last block of {path} is filled up with {zeros} bytes of zeros for hosts that \
         attach it over NVMe/TCP"
    );
    Ok((bytes, Some(note)))
}

/// Refuses two disks that hosts could not tell apart.
///
/// # Errors
/// Fails with a message that names both.
pub fn check_distinct(lent: &Export, other: &Export) -> Result<(), Failure> {
    let (first, second) = (&lent.name, &other.name);
    if lent.identity.uuid == other.identity.uuid {
        return Err(Failure::new(format!(
            "{first} and {second} have the same identity (serial number {}), so hosts would take \
             them for one disk; lend one of them only",
            other.identity.serial
        )));
    }
    if lent.id == other.id {
        // Hosts have the other names from a file, or from what is on the disk.
        let way = match &lent.id {
            ExportId::Name(_) => "lend them without --nqn, or from paths that end differently",
            ExportId::Uuid(_) => "lend one of them only",
        };
        return Err(Failure::new(format!(
            "{first} and {second} would both be called {}; {way}",
            other.id
        )));
    }
    Ok(())
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::reported::KnownAs;
    use std::fs;

    fn options() -> LendOptions {
        let tree = Tree::machine();
        let machine = identity::machine_id(&tree);
        LendOptions {
            tree,
            base: None,
            allow_in_use: false,
            force: false,
            removable: false,
            overlay: OverlayOptions { limit: 1 << 20, is_shared: false, dir: None },
            machine,
            at_rest: false,
            reported: ReportedIdentity::default(),
            opener: Opener::default(),
        }
    }

    fn image(name: &str, bytes: u64) -> PathBuf {
        let path = std::env::temp_dir().join(format!("storagetm-{}-{name}", std::process::id()));
        fs::File::create(&path).unwrap().set_len(bytes).unwrap();
        path
    }

    fn request(path: &Path, writable: bool) -> LendRequest {
        let writes = if writable { Writes::ToDisk } else { Writes::Refused };
        LendRequest::new(path.to_owned(), writes)
    }

    #[test]
    fn image_with_partial_block_is_read_only_in_full() {
        let path = image("tail.img", (1 << 20) + 100);
        let lent = options().lend(&request(&path, false)).unwrap();
        let export = &lent.export;
        assert_eq!((export.bytes(), export.blocks()), ((1 << 20) + 100, 2049));
        assert_eq!((export.geometry.block(), export.access), (512, Access::ReadOnly));
        assert_eq!(export.id, ExportId::Uuid(export.identity.uuid));
        assert!(lent.notes[0].contains("412 bytes of zeros"));
        drop(lent);
        let refused = options().lend(&request(&path, true)).unwrap_err().to_string();
        fs::remove_file(&path).unwrap();
        assert!(refused.contains("truncate -s %512 "), "{refused}");
    }

    #[test]
    fn reused_device_number_is_detected() {
        let root = std::env::temp_dir().join(format!("storagetm-lend-{}", std::process::id()));
        let place = root.join("sys/class/block/sdz");
        fs::create_dir_all(&place).unwrap();
        fs::create_dir_all(root.join("sys/dev/block")).unwrap();
        std::os::unix::fs::symlink("../../class/block/sdz", root.join("sys/dev/block/8:400"))
            .unwrap();
        fs::write(place.join("dev"), "8:400\n").unwrap();
        fs::write(place.join("size"), "2048\n").unwrap();
        fs::write(place.join("diskseq"), "7\n").unwrap();
        let tree = Tree::at(&root);
        let judged = block::scan(&tree).unwrap().remove(0);
        let request = request(Path::new("/dev/sdz"), true);
        check_still(&tree, &request, &judged).unwrap();
        fs::write(place.join("diskseq"), "8\n").unwrap();
        let refused = check_still(&tree, &request, &judged).unwrap_err().to_string();
        fs::remove_dir_all(&root).unwrap();
        assert!(refused.contains("became another disk"), "{refused}");
    }

    #[test]
    fn read_only_image_is_opened_read_only() {
        let path = image("ro.img", 1 << 20);
        let lent = options().lend(&request(&path, false)).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(rustix::io::write(lent.export.backing().written(), b"x").is_err());
    }

    #[test]
    fn image_is_opened_in_a_process_of_its_own() {
        let path = image("process.img", 1 << 20);
        let opener = Opener::failing();
        let refused = LendOptions { opener, ..options() }.lend(&request(&path, false));
        fs::remove_file(&path).unwrap();
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("process.img cannot be opened: "), "{refused}");
    }

    #[test]
    fn images_of_one_name_clash_only_with_nqn_base() {
        let (a, b) = (image("same.img", 4096), image("other.img", 4096));
        let named = LendOptions { base: Some("nqn.2026-01.com.example".to_owned()), ..options() };
        let first = named.lend(&request(&a, false)).unwrap().export;
        let second = options().lend(&request(&b, false)).unwrap().export;
        assert!(check_distinct(&first, &second).is_ok());
        let error = check_distinct(&first, &named.lend(&request(&a, false)).unwrap().export);
        assert!(error.unwrap_err().to_string().contains("same identity"));
        for path in [a, b] {
            fs::remove_file(path).unwrap();
        }
    }

    #[test]
    fn duplicate_short_names_get_a_number() {
        let images = ["same.one.img", "same.one.raw", "same.one"].map(|name| image(name, 4096));
        let mut lent_disks: Vec<LentDisk> = Vec::new();
        for path in &images {
            let lent = options().lend(&request(path, false)).unwrap().with_unique_name(&lent_disks);
            lent_disks.push(lent);
        }
        let own = std::process::id();
        let names: Vec<String> = lent_disks.iter().map(|lent| lent.export.short.clone()).collect();
        let request =
            ["same.one", "same.one-2", "same"].map(|name| format!("storagetm-{own}-{name}"));
        assert_eq!(names, request);
        images.iter().for_each(|path| fs::remove_file(path).unwrap());
    }

    #[test]
    fn disk_under_an_overlay_is_opened_read_only() {
        let path = image("overlay.img", 1 << 20);
        let request = LendRequest::new(path.clone(), Writes::ToOverlay);
        let lent = options().lend(&request).unwrap();
        let mut shared = options();
        shared.overlay.is_shared = true;
        let shared = shared.lend(&request).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(lent.export.access, Access::Writable);
        for (lent, said) in [
            (&lent, "in memory separately for each host, 1 MB at most, which may be swapped"),
            (
                &lent,
                "room for 16 hosts that write, half of them without a key, and one host gets half",
            ),
            (&shared, "is kept in memory, 1 MB at most"),
            (&shared, "mount it on one at a time"),
        ] {
            assert!(lent.notes[0].contains(said), "{:?}", lent.notes);
        }
        let mut only_read = lent.export.backing().only_read(Access::Writable);
        let (Some(base), None) = (only_read.next(), only_read.next()) else { panic!("no overlay") };
        let mode = rustix::fs::fcntl_getfl(base).unwrap() & OFlags::ACCMODE;
        assert_eq!((mode, lent.file_bytes()), (OFlags::RDONLY, None));
    }

    #[test]
    fn every_overlay_is_another_disk_to_hosts() {
        let path = image("instances.img", 1 << 20);
        let lend = |writes| {
            let request = LendRequest::new(path.clone(), writes);
            options().lend(&request).unwrap().export.clone()
        };
        let disks = [Writes::Refused, Writes::ToOverlay, Writes::ToOverlay].map(lend);
        fs::remove_file(&path).unwrap();
        for (one, other) in [(0, 1), (0, 2), (1, 2)] {
            let (one, other) = (&disks[one], &disks[other]);
            assert_ne!(one.id, other.id);
            assert_ne!(one.identity.uuid, other.identity.uuid);
            assert_ne!(one.identity.serial, other.identity.serial);
        }
    }

    #[test]
    fn overlay_has_no_name_of_the_disk_under_it() {
        let path = image("known.img", 1 << 20);
        let known_as = KnownAs::new("nqn.2026-12.com.example:one");
        let lend = |writes| {
            let request = LendRequest::new(path.clone(), writes);
            let request = LendRequest { known_as: known_as.clone(), ..request };
            options().lend(&request).unwrap().export.clone()
        };
        let [disk, overlay] = [Writes::Refused, Writes::ToOverlay].map(lend);
        fs::remove_file(&path).unwrap();
        assert_eq!(nqn::of(&disk.id), "nqn.2026-12.com.example:one");
        assert_eq!(overlay.id, ExportId::Uuid(overlay.identity.uuid));
        assert_ne!(overlay.identity.uuid, disk.identity.uuid);
    }

    #[test]
    fn demo_disk_identity_is_stable() {
        let size: Size = "4M".parse().unwrap();
        let one = options().lend_demo(size, Writes::Refused).unwrap().export;
        let two = options().lend_demo(size, Writes::ToDisk).unwrap().export;
        assert_eq!((&one.id, &one.identity), (&two.id, &two.identity));
        assert_eq!((one.access, two.access), (Access::ReadOnly, Access::Writable));
    }
}
