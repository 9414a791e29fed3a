//! The options of `storagetm status`, `add` and `remove`.

use std::path::PathBuf;

use clap::Args;

use super::disk::DiskOptions;

/// The long description.
pub(super) const STATUS: &str = "\
Asks the storagetm serve that run on this machine, by a Unix socket: /run/storagetm/io.github.storagetm.Serve for \
root, $XDG_RUNTIME_DIR/storagetm/io.github.storagetm.Serve for others, with the process number at its end for all but the \
first. Only root and the user that started one may ask it. It is a varlink service (varlinkctl introspect PATH).";

const STATUS_EXAMPLES: &str = "\
Examples:
  What is lent to whom:
    storagetm status
  The hosts, for a script:
    storagetm status --json | jq -r '.[].hosts[].host'
  The counters for Prometheus, by the textfile collector of its node_exporter:
    storagetm status --metrics > /var/lib/prometheus/node-exporter/storagetm.prom
  Each event as it happens:
    storagetm status --follow | jq -c 'select(.event == \"attached\")'

Exit status: 0, 1 if no storagetm serve is running, or one does not answer (the others are shown), 2 if the options are wrong.";

/// The long description.
pub(super) const ADD: &str = "\
The running storagetm serve lends the disks beside its others, without a restart. The same rules apply as at its start: \
a disk is read-only unless --writable or --overlay is given, and one that is in use is not lent. All overlays together get \
half of the memory at most. The disks are not lent again when storagetm serve is started the next time.";

const ADD_EXAMPLES: &str = "\
Examples:
  Read-only, and so that hosts can change it:
    storagetm add /dev/sdb
    storagetm add --writable disk.img
  Hosts write to memory, and the image is not changed:
    storagetm add --overlay disk.img
  The same, kept across restarts (the next storagetm serve names both options, too):
    storagetm add --overlay disk.img --overlay-dir /var/lib/overlays

Exit status: 0 if the disks are lent, 1 if one is not, 2 if the options are wrong.";

/// The long description.
pub(super) const REMOVE: &str = "\
The running storagetm serve no longer lends the disks. Returns when what hosts have written is on stable storage and the disk \
is closed; or five seconds after that, if something still holds the disk open. With storagetm serve --all, a disk that was removed is lent again when it is plugged in again.";

const REMOVE_EXAMPLES: &str = "\
Examples:
    storagetm remove sdb
    storagetm remove --force disk.img

Exit status: 0 if the disks are withdrawn, 1 if one is not, or could not be flushed, 2 if the options are wrong.";

/// The options of `storagetm status`.
#[derive(Debug, Args)]
#[command(after_help = STATUS_EXAMPLES)]
pub struct Status {
    /// The socket of one storagetm serve; default: all of this user
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,

    /// Write the events of storagetm serve --json as they happen, after those for what is lent now
    #[arg(long)]
    pub follow: bool,

    /// Write sizes, hosts and counters of the disks in the text format of Prometheus
    #[arg(long, conflicts_with = "follow")]
    pub metrics: bool,

    /// Write a JSON array, one object per storagetm serve
    #[arg(long, conflicts_with_all = ["follow", "metrics"])]
    pub json: bool,
}

/// The options of `storagetm add`.
#[derive(Debug, Args)]
#[command(
    after_help = ADD_EXAMPLES,
    group = clap::ArgGroup::new("what").required(true).multiple(true)
)]
pub struct Add {
    /// Disks, partitions or disk images to lend read-only, by path or name
    #[arg(value_name = "DISK", group = "what")]
    pub disks: Vec<PathBuf>,

    /// Where what hosts write goes.
    #[command(flatten)]
    pub access: DiskOptions,

    /// The socket of storagetm serve; default: that of the only one of this user
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,

    /// Write a JSON array, one object per disk, with the members of the event lent
    #[arg(long)]
    pub json: bool,
}

/// The options of `storagetm remove`.
#[derive(Debug, Args)]
#[command(after_help = REMOVE_EXAMPLES)]
pub struct Remove {
    /// Disks that are lent, by the name that storagetm status shows, by path or by NVMe Qualified Name
    #[arg(value_name = "NAME", required = true)]
    pub names: Vec<String>,

    /// Also disks that hosts have attached, and those with changes in memory (--overlay): both are lost at once
    #[arg(long)]
    pub force: bool,

    /// The socket of storagetm serve; default: that of the only one of this user
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}
