//! The options of `storagetm list`.

use clap::Args;

const EXAMPLES: &str = "\
Examples:
  storagetm list
  storagetm list sda group/home
  storagetm list --json | jq -r '.[] | select(.lendable) | .path'";

/// The options of `storagetm list`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct List {
    /// List only these disks, each with its partitions: sda, /dev/sda, mapper/NAME, GROUP/VOLUME
    #[arg(value_name = "DISK")]
    pub disks: Vec<String>,
    /// Write a JSON array, one object per disk
    #[arg(long)]
    pub json: bool,
}
