//! Options of `storagetm serve` for a disk that fails.

use std::path::PathBuf;

use clap::Args;

/// How a disk that fails is lent.
#[derive(Debug, Args)]
pub struct Rescue {
    /// Lend a disk that fails as this map of GNU ddrescue or `storagetm copy --map` says, and record in it what is found out
    ///
    /// For one DISK, read-only or with --overlay. With --image, what the map calls finished is read from there. Other
    /// blocks are read from DISK when a host wants them, and then kept in the image and called finished. A block that cannot be
    /// read is recorded, and answered with an error at once from then on. The map is made if it does not exist.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["all", "demo", "writable", "overlay_dir", "allow_in_use"])]
    pub map: Option<PathBuf>,

    /// With --map, the file with what was rescued: that to which ddrescue or `storagetm copy` writes
    ///
    /// It is made if it does not exist and the map calls nothing finished. Without it, what hosts want is read from DISK each
    /// time.
    #[arg(long, value_name = "FILE", requires = "map")]
    pub image: Option<PathBuf>,

    /// With --map, read blocks once more that the map calls bad
    #[arg(long, requires = "map")]
    pub retry_bad: bool,
}
