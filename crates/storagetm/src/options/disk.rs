//! The options of `storagetm serve` and `storagetm add` that say where goes what hosts write to a disk.

use std::path::{Path, PathBuf};

use clap::Args;
use daemon::lend::{LendRequest, Writes};

/// The options. Each disk that they name is lent, too.
#[derive(Debug, Clone, Default, Args)]
pub struct DiskOptions {
    /// Lend DISK writable; may be repeated
    #[arg(long, value_name = "DISK", group = "what")]
    pub writable: Vec<PathBuf>,

    /// Lend DISK so that hosts can write to it, and keep what they write in memory; may be repeated
    ///
    /// DISK itself is opened read-only and not changed. Each host sees DISK with what it has written itself, until DISK is
    /// withdrawn or storagetm serve ends; up to 16 hosts can write, half of them without a key. Overlays with which storagetm
    /// serve is started keep a quarter of the memory together at most, one that is added half of what all others leave of
    /// half of the memory, and one host half of what the other hosts leave; once its share is full, writes to new blocks fail
    /// as on a thin disk without space. Hosts take an overlay for another disk than DISK, and one in memory for a new disk
    /// each time that it is lent.
    #[arg(long, value_name = "DISK", group = "what")]
    pub overlay: Vec<PathBuf>,

    /// With --overlay, let all hosts see what any of them has written
    ///
    /// For several machines with a cluster file system, and for one machine that attaches the disk by several paths or
    /// protocols.
    #[arg(long, requires = "overlay")]
    pub overlay_shared: bool,

    /// With --overlay, keep what hosts write in files in DIR, across restarts
    ///
    /// DIR gets a folder for each disk, in which the overlay is found again when the disk is lent with the same DIR. A disk
    /// that has changed since its overlay was made is refused. Changes are on stable storage when a flush or a write with
    /// FUA has completed, and may fill the file system of DIR but for a twentieth. `storagetm overlay` lists, discards,
    /// exports and commits them.
    #[arg(long, value_name = "DIR", requires = "overlay")]
    pub overlay_dir: Option<PathBuf>,
}

impl DiskOptions {
    /// Returns `disks`, which are read-only unless they are named here, too, and then those that are only named here, each
    /// once.
    pub fn requests(&self, disks: &[PathBuf]) -> Vec<LendRequest> {
        let mut requests: Vec<LendRequest> = Vec::new();
        for path in disks.iter().chain(&self.writable).chain(&self.overlay) {
            if !requests.iter().any(|known| known.path == *path) {
                requests.push(LendRequest::new(path.clone(), self.writes(path)));
            }
        }
        requests
    }

    /// Returns where what hosts write to the disk goes.
    pub fn writes(&self, path: &Path) -> Writes {
        let is_in = |paths: &[PathBuf]| paths.iter().any(|other| other == path);
        Writes::of(is_in(&self.overlay), is_in(&self.writable))
    }
}
