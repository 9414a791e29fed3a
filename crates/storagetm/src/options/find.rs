//! The options of `storagetm find`.

use std::path::PathBuf;

use clap::Args;

/// The long description.
pub(super) const ABOUT: &str = "\
Machines that lend disks announce themselves by multicast DNS (DNS-SD: _nvme-disc._tcp for NVMe/TCP, _nbd._tcp for \
NBD). Each machine found is queried for its disks, and the commands that attach them are shown.

A machine that requires a key shows neither its name nor its disks without one: it appears as storagetm-XXXX, with the \
command that pairs with it. Announcements are not authenticated: only a key proves the identity of a machine.";

const EXAMPLES: &str = "\
Examples:
  List machines and their disks:
    storagetm find
  The same for a script, with a short timeout:
    storagetm find --timeout 1 --json | jq -r '.[].disks[].attach'

Exit status: 0, also if no machine is found; 1 if multicast DNS is not available, 2 if the options are wrong.";

/// The options of `storagetm find`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Find {
    /// How long to wait for answers
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 3,
        value_parser = clap::value_parser!(u64).range(1..=600)
    )]
    pub timeout: u64,

    /// Directory of the keys of paired machines
    ///
    /// Default: $STATE_DIRECTORY, else /var/lib/storagetm for root and ~/.local/state/storagetm for others.
    #[arg(long, value_name = "DIR")]
    pub keys: Option<PathBuf>,

    /// Query machines without encryption if they accept none of the keys of this machine
    ///
    /// Not needed if this machine has no keys; without effect at an address at which a machine was paired.
    #[arg(long)]
    pub insecure: bool,

    /// Write a JSON array, one object per machine
    #[arg(long)]
    pub json: bool,

    /// Use this UDP port, also on the loopback interface, instead of 5353
    #[arg(long, value_name = "PORT", hide = true)]
    pub mdns_port: Option<u16>,
}
