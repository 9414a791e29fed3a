//! The options of `storagetm boot`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use daemon::settings::parse_duration;

use super::protocol_help;

fn examples() -> String {
    format!(
        "\
With --now, this system stops in the orderly way, and its kernel starts anew with storagetm as the only \
program (kexec). Every disk is lent, that of the system included, at the addresses that the machine has now, \
to the hosts that may attach its disks now (storagetm host). The next restart starts the normal system. \
Shown first are the disks, the addresses, the line for the other machine, and the way back; then consent is \
asked for. This needs root, systemd, and a kernel with kexec.

Without --now this is PID 1 of the initramfs that `storagetm image` builds. It mounts only the \
kernel's own file systems, loads drivers for the hardware, configures the network, and lends every \
disk read-only. It writes to no disk. With the kernel parameter storagetm.boot it attaches a disk that another machine \
lends, and starts the system on it, whose changes are kept in memory.

Examples:
  Show what would happen, and do it; without a host for half an hour the machine restarts:
    storagetm boot --now --for 30m --dry-run
    storagetm boot --now --for 30m
  Let hosts change one disk:
    storagetm boot --now --command-line storagetm.writable=SERIAL

On the kernel command line:
  storagetm.disk=PATH        lend this disk only; may be repeated
  storagetm.writable=PATH    lend this disk writable; may be repeated
  storagetm.overlay[=PATH]   hosts write to memory, and this disk, or each, is not changed
  storagetm.protocol=NAME    {}
  storagetm.listen=ADDRESS   listen on ADDRESS, as with storagetm serve --listen
  storagetm.open             access without a key and without encryption, on every address
  storagetm.pair=no          show no pairing code
  storagetm.return=TIME      restart after TIME (30m, 2h) without an attached host
  storagetm.machine_id=firmware|HEX
  storagetm.boot[=nvme://HOST[:PORT][/DISK]]   lend nothing: start the system on a disk that another machine lends, in an \
image of `storagetm image --boot`
  storagetm.code=DIGITS      the code on the screen of that machine
  storagetm.root=PARTITION   where the system is: a number, PARTUUID=..., UUID=..., LABEL=...
  storagetm.boot.write       let the system write to the disk itself
  storagetm.boot.unencrypted start also from a machine that lends without a key
  ip=link-local|dhcp|...     as in dracut.cmdline(7); link-local addresses are always configured
  vlan=... bond=...          make a VLAN or a bond of network cards, as in dracut.cmdline(7)",
        protocol_help::boot_parameter()
    )
}

/// The options of `storagetm boot`.
#[derive(Debug, Args)]
#[command(after_help = examples())]
pub struct Boot {
    /// Restart this machine into target mode
    #[arg(long)]
    pub now: bool,

    /// Restart into the normal system after this time without an attached host: 30m, 2h
    #[arg(long = "for", value_name = "TIME", requires = "now", value_parser = parse_duration)]
    pub return_after: Option<Duration>,

    /// Allow access without a key and without encryption
    #[arg(long, requires = "now")]
    pub open: bool,

    /// More kernel parameters, such as storagetm.disk=SERIAL
    #[arg(long, value_name = "TEXT", requires = "now", allow_hyphen_values = true)]
    pub command_line: Option<String>,

    /// Directory of keys and hosts
    ///
    /// Default: $STATE_DIRECTORY, else /var/lib/storagetm.
    #[arg(long, value_name = "DIR", requires = "now")]
    pub keys: Option<PathBuf>,

    /// Show what would happen, and do nothing
    #[arg(long, requires = "now")]
    pub dry_run: bool,

    /// Restart without asking for consent
    #[arg(long, requires = "now", conflicts_with = "dry_run")]
    pub yes: bool,
}
