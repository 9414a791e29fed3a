//! The options of `storagetm overlay`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// The long description.
pub(super) const ABOUT: &str = "\
With `storagetm serve --overlay DISK --overlay-dir DIR` what hosts write is kept in a folder of DIR for each disk, and the \
disk is not changed. These commands are for such folders, while no storagetm serves the disk.";

const EXAMPLES: &str = "\
Examples:
  Show what is kept:
    storagetm overlay list /var/lib/overlays
  Write what the only host has written to the disk, after a repair that went well:
    storagetm overlay commit /var/lib/overlays/5e6c46ff0f4482739661d0d8f161be70 /dev/sdb
  Start a virtual machine from the changed disk:
    storagetm overlay export /var/lib/overlays/5e6c46ff0f4482739661d0d8f161be70 changed.qcow2 --qcow2 /dev/sdb
    qemu-system-x86_64 -m 2G -drive file=changed.qcow2,format=qcow2
  Throw away what one host has written:
    storagetm overlay discard /var/lib/overlays/5e6c46ff0f4482739661d0d8f161be70 --host nqn.2014-08.org.nvmexpress:uuid:4c4c4544-…

Exit status: 0 if it was done, 1 if not, 2 if the options are wrong.";

/// The options of `storagetm overlay`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Overlay {
    /// The subcommand.
    #[command(subcommand)]
    pub task: Task,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Task {
    /// List the overlays in a directory, and what each host has written
    List(List),
    /// Throw away what hosts have written
    Discard(Discard),
    /// Write what a host has written to the disk
    ///
    /// The disk must be as it was when the overlay was made, and not in use. What was written is read back and compared;
    /// then the overlay is removed. Until that, the command can be interrupted and repeated.
    Commit(Commit),
    /// Copy what a host has written to a file
    ///
    /// FILE is a sparse file as long as the disk, with the blocks that the host has written at their places, and FILE.map a map
    /// of them as of ddrescue. With --qcow2, FILE is an image of the changed disk for QEMU: it has the changes, and the disk as
    /// its backing file. `storagetm copy` from a machine that serves the disk makes a copy of all of the disk.
    Export(Export),
}

/// The options of `storagetm overlay list`.
#[derive(Debug, Args)]
pub struct List {
    /// The directory that was given to --overlay-dir
    pub dir: PathBuf,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// The options of `storagetm overlay discard`.
#[derive(Debug, Args)]
pub struct Discard {
    /// The folder of the disk's overlay
    pub folder: PathBuf,

    /// Only what the host of this name or address has written
    #[arg(long, value_name = "HOST")]
    pub host: Option<String>,

    /// Do not ask for confirmation
    #[arg(long)]
    pub yes: bool,
}

/// The options of `storagetm overlay commit`.
#[derive(Debug, Args)]
pub struct Commit {
    /// The folder of the disk's overlay
    pub folder: PathBuf,

    /// The disk or image that is written to
    pub disk: PathBuf,

    /// The host whose changes are written, by its name or address; needed if several hosts have written
    #[arg(long, value_name = "HOST")]
    pub host: Option<String>,

    /// Throw away what other hosts have written: it does not fit to the changed disk
    #[arg(long)]
    pub discard_others: bool,

    /// Do not ask for confirmation
    #[arg(long)]
    pub yes: bool,
}

/// The options of `storagetm overlay export`.
#[derive(Debug, Args)]
pub struct Export {
    /// The folder of the disk's overlay
    pub folder: PathBuf,

    /// The file to make
    pub file: PathBuf,

    /// The host whose changes are exported, by its name or address; needed if several hosts have written
    #[arg(long, value_name = "HOST")]
    pub host: Option<String>,

    /// Make a qcow2 image whose backing file is DISK, the disk under the overlay
    ///
    /// The disk must be as it was when the overlay was made. It is only read.
    #[arg(long, value_name = "DISK")]
    pub qcow2: Option<PathBuf>,
}
