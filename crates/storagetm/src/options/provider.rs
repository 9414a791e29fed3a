//! The options of `storagetm provider`.

use std::path::PathBuf;

use clap::Args;

/// Where systemd looks for storage providers.
pub const SOCKET: &str = "/run/systemd/io.systemd.StorageProvider/storagetm";

/// The long description.
pub(super) const ABOUT: &str = "\
Gives disks of other machines to the programs of systemd (since version 261) as volumes of a storage provider: to mount, \
systemd-vmspawn, storagectl and varlinkctl. Serves the varlink interface io.systemd.StorageProvider. A volume is called \
MACHINE/DISK, where MACHINE is a paired machine (storagetm pair) and DISK one of the disks that it lends to this one; \
it is attached when it is acquired, as by storagetm attach, and stays attached (storagetm detach). Disks of this machine \
itself are volumes too, under their names (sda), unless they are in use.

systemd starts it for each connection: systemctl enable --now storagetm-provider.socket. Without systemd it listens by \
itself.

A volume is read-only unless it is asked for as writable (mount -o rw), and it must be lent writable. Root may acquire \
volumes, others by polkit (io.github.storagetm.provider.acquire).";

const EXAMPLES: &str = "\
Examples:
  The disks that can be acquired:
    storagectl volumes
  Mount the file system on a disk of the machine desk:
    mount -t storage.ext4 -o ro storagetm:desk/sdb /mnt
  A virtual machine with that disk:
    systemd-vmspawn --bind-volume=storagetm:desk/sdb …
  Try it by hand, and ask for all volumes:
    storagetm provider --listen /tmp/provider &
    varlinkctl call --more /tmp/provider io.systemd.StorageProvider.ListVolumes {}

Exit status: 0 after SIGINT or SIGTERM, or when the client of a socket handed over by systemd has closed it; 1 if the \
socket cannot be listened on, 2 if the options are wrong.";

/// The options of `storagetm provider`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Provider {
    /// Listen on this Unix socket
    ///
    /// Without effect if systemd hands a socket over.
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    pub listen: PathBuf,

    /// Directory of the keys of paired machines
    ///
    /// Default: $STATE_DIRECTORY, else /var/lib/storagetm for root and ~/.local/state/storagetm for others.
    #[arg(long, value_name = "DIR")]
    pub keys: Option<PathBuf>,

    /// Use this UDP port for multicast DNS, also on the loopback interface, instead of 5353
    #[arg(long, value_name = "PORT", hide = true)]
    pub mdns_port: Option<u16>,
}
