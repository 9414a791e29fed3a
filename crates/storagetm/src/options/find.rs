//! The options of `storagetm find`. They know no network.

use std::path::PathBuf;

use clap::Args;

const ABOUT: &str = "\
Machines that lend disks say so on the networks that they are on, by multicast DNS (DNS-SD: _nvme-disc._tcp for NVMe/TCP, \
_nbd._tcp for NBD). Each that answers is asked which disks it has, and the line that attaches one is shown.

A machine that wants a key first tells neither its name nor its disks to those who have none: it is called storagetm-XXXX, \
and what is shown is the line by which a key is had. Anybody on the network can answer, under any name: what proves a \
machine is its key.";

const EXAMPLES: &str = "\
Examples:
  Which machines are there, and what have they got?
    storagetm find
  The same for a script, without waiting long:
    storagetm find --timeout 1 --json | jq -r '.[].disks[].attach'

Exit status: 0, also if nobody answers; 1 if the network cannot be asked, 2 if the options are wrong.";

/// The options of `storagetm find`.
#[derive(Debug, Args)]
#[command(long_about = ABOUT, after_help = EXAMPLES)]
pub struct Find {
    /// How long machines may take to answer
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 3,
        value_parser = clap::value_parser!(u64).range(1..=600)
    )]
    pub timeout: u64,

    /// Where the keys of machines are kept that have let this one in
    ///
    /// Without this option: $STATE_DIRECTORY, else /var/lib/storagetm for root and ~/.local/state/storagetm for others.
    #[arg(long, value_name = "DIR")]
    pub keys: Option<PathBuf>,

    /// Ask machines in the clear that accept none of the keys that this machine has
    ///
    /// Without a key for any machine this one asks in the clear anyway.
    #[arg(long)]
    pub insecure: bool,

    /// Write a JSON array, one object a machine
    #[arg(long)]
    pub json: bool,

    /// Ask at this UDP port, and on the loopback interface too, instead of 5353
    #[arg(long, value_name = "PORT", hide = true)]
    pub mdns_port: Option<u16>,
}
