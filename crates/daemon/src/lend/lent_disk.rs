//! A disk that is exported.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use export::{Access, Base, Export, Home};
use linux::identity::{self, MachineId, Source};
use linux::reason::{Verdict, Weight};
use rustix::fs::{AtFlags, FileType, StatxFlags, statx};

use super::ExaminedDisk;
use crate::device::Device;
use crate::overlay::OverlayFolder;

/// An opened disk and its export.
#[derive(Debug)]
pub struct LentDisk {
    /// The export.
    pub export: Arc<Export>,
    /// The block device; `None` for images.
    pub device: Option<Device>,
    /// Messages for the user.
    pub notes: Vec<String>,
    /// Identifies the disk across reconnection; `None` if it has no unique identifier.
    pub fingerprint: Option<[u8; 16]>,
    /// Its name that is the same on every machine, as the maps of copies have it; empty if there is none.
    pub stable_name: String,
    /// Lock on the whole disk of a partition.
    pub(super) _whole: Option<OwnedFd>,
    /// The folder of its overlay, which is locked.
    pub(super) _overlay: Option<OverlayFolder>,
}

impl LentDisk {
    pub fn new(export: Arc<Export>, device: Option<Device>) -> Self {
        let (notes, stable_name) = (Vec::new(), String::new());
        let (fingerprint, _whole, _overlay) = (None, None, None);
        Self { export, device, notes, fingerprint, stable_name, _whole, _overlay }
    }

    /// Current size of an image file, as cached: a network file system is not queried, since its
    /// server may be unresponsive. Returns `None` for devices, and with an overlay.
    pub fn file_bytes(&self) -> Option<u64> {
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        // The size of an export with an overlay does not change.
        let backing = self.export.backing();
        let Base::Raw(file) = backing.base() else { return None };
        if backing.overlay().is_some() {
            return None;
        }
        let stat = statx(file, "", flags, StatxFlags::TYPE | StatxFlags::SIZE).ok()?;
        let kind = FileType::from_raw_mode(stat.stx_mode.into());
        (kind == FileType::RegularFile).then_some(stat.stx_size)
    }

    /// Makes it a home directory, with a name by its user. Returns `None` if the export is shared already.
    pub(super) fn with_home(mut self, home: Home) -> Option<Self> {
        self.notes.push(home_note(&home.user, &self.export));
        let export = Arc::get_mut(&mut self.export)?;
        export.short = home_name(&home.user);
        export.home = Some(home);
        Some(self)
    }

    /// Adds a description of what is on it.
    pub(super) fn with_contents(mut self, contents: String) -> Self {
        // The export is not shared yet.
        if let Some(export) = Arc::get_mut(&mut self.export) {
            export.contents = contents;
        }
        self
    }

    /// Adds notes about what could not be read.
    pub(super) fn noting(mut self, verdict: &Verdict) -> Self {
        let unread = verdict.of_weight(Weight::Unread);
        self.notes.extend(unread.map(|reason| format!("{} {reason}", self.export.name)));
        self
    }

    /// Appends a number to the short name if one of `others` has it.
    pub fn with_unique_name(mut self, others: &[Self]) -> Self {
        let is_taken = |name: &str| others.iter().any(|other| other.export.short == name);
        let short = &self.export.short;
        let numbered = (2u32..).map(|number| format!("{short}-{number}"));
        let free = std::iter::once(short.clone()).chain(numbered).find(|name| !is_taken(name));
        // The export is not shared yet.
        if let (Some(free), Some(export)) = (free, Arc::get_mut(&mut self.export)) {
            export.short = free;
        }
        self
    }
}

/// The name of the export of a user's home.
pub fn home_name(user: &str) -> String {
    format!("home-{user}")
}

/// Returns what to do with a home on the machine that attaches it.
fn home_note(user: &str, export: &Export) -> String {
    if export.access == Access::ReadOnly {
        return format!(
            "the home of {user} is lent read-only, which systemd-homed refuses: it is for rescue (cryptsetup open --readonly)"
        );
    }
    if export.is_private() {
        return format!(
            "the home of {user} is lent with an overlay: what is written to it is not kept in it; on each host \"storagetm attach \
             --home={user} MACHINE\", then \"homectl activate {user}\" or a login"
        );
    }
    format!(
        "the home of {user} is lent to one host at a time: there \"storagetm attach --home={user} MACHINE\", then \"homectl \
         activate {user}\" or a login; at the end \"homectl deactivate {user}\" and \"storagetm detach\""
    )
}

/// Returns a name of a disk that is the same on every machine, as the map of a copy has it. Returns `None` if only its
/// place identifies it.
pub fn stable_name(examined: &ExaminedDisk<'_>) -> Option<String> {
    let ExaminedDisk { machine, disk, findings } = *examined;
    let whole = machine.disk(disk.whole()).unwrap_or(disk);
    let table = findings.contents(whole).ok().and_then(|contents| contents.table);
    // An identity by location alone is none: another disk may take the same place.
    let nobody = MachineId { bytes: [0; 16], stable: false };
    let who = identity::of_block(disk, whole, table.as_ref(), nobody, false);
    if who.source == Source::Path {
        return None;
    }
    let uuid: String = who.uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    Some(console::escape_unprintable(&format!("{} {} {uuid}", who.model, who.serial), false))
}
