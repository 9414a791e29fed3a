//! The options of `storagetm attach` and `storagetm detach`. They know no kernel.

use std::path::PathBuf;

use clap::Args;

const ATTACH: &str = "\
Hands the connection to the NVMe/TCP host of this machine's kernel: what is attached is a disk like any other, \
/dev/nvmeXnY, and stays when this program has ended. Nothing else is needed for it, not even nvme-cli. The driver is \
loaded if it is not there.

TARGET is an address, a name in DNS, a machine that has let this one in (storagetm pair), or the name under which \
storagetm find shows one. DISK is the disk's NVMe Qualified Name, its last part, or what it is called there.

With a key (storagetm pair) the connection is encrypted: the key is put into the kernel's keyring, and the program \
tlshd (package ktls-utils) must run, which does the handshake for the kernel.";

const ATTACH_EXAMPLES: &str = "\
Examples:
  The only disk of a machine on the same cable:
    storagetm attach fe80::1%eth0
  One of several, and all of them:
    storagetm attach 192.168.1.5/sda
    storagetm attach 192.168.1.5 --all
  By address, as nvme-cli and others write it:
    storagetm attach nvme://192.168.1.5:4420/nqn.2014-08.org.nvmexpress:uuid:…

Exit status: 0 if the disk is there, 1 if not, 2 if the options are wrong, 3 if the other machine said no.";

const DETACH: &str = "\
The kernel ends the connection, and the disk goes away. A disk that is in use (mounted, swapped to, part of another \
one) stays, unless --force is given: what was not yet written is lost then.";

const DETACH_EXAMPLES: &str = "\
Examples:
    storagetm detach /dev/nvme1n1
    storagetm detach nqn.2014-08.org.nvmexpress:uuid:…
    storagetm detach 192.168.1.5
    storagetm detach --all

Exit status: 0 if the disks are gone, 1 if one is not, 2 if the options are wrong.";

/// The options of `storagetm attach`.
#[derive(Debug, Args)]
#[command(long_about = ATTACH, after_help = ATTACH_EXAMPLES)]
pub struct Attach {
    /// The machine, and which of its disks; that may be left out if it has one
    #[arg(value_name = "TARGET[/DISK]")]
    pub target: String,

    /// All disks that may be had there
    #[arg(long)]
    pub all: bool,

    /// The interface behind which a link-local address is
    #[arg(long, value_name = "IF")]
    pub interface: Option<String>,

    /// Where the keys of machines are kept that have let this one in
    ///
    /// Without this option: $STATE_DIRECTORY, else /var/lib/storagetm for root and ~/.local/state/storagetm for others.
    #[arg(long, value_name = "DIR")]
    pub keys: Option<PathBuf>,

    /// Attach in the clear what accepts none of the keys that this machine has
    ///
    /// Whoever is on the way can then read and change everything. Without a key for any machine, and on the loopback interface,
    /// it is done without this option.
    #[arg(long)]
    pub insecure: bool,

    /// Read the secret by which this machine proves itself (DHHC-1:…, DH-HMAC-CHAP) from a file
    #[arg(long, value_name = "FILE")]
    pub chap_key: Option<PathBuf>,

    /// Read the secret by which the other machine must prove itself from a file
    #[arg(long, value_name = "FILE", requires = "chap_key")]
    pub chap_controller_key: Option<PathBuf>,

    /// Be called so there; what stands in /etc/nvme/hostnqn if not given
    #[arg(long, value_name = "NQN")]
    pub hostnqn: Option<String>,

    /// How long the kernel goes on trying when the other machine is away; -1 for ever
    #[arg(
        long,
        value_name = "SECONDS",
        allow_negative_numbers = true,
        default_value_t = 600,
        value_parser = clap::value_parser!(i32).range(-1..)
    )]
    pub patience: i32,

    /// Put header and data digests around everything, against faulty networks
    #[arg(long)]
    pub digests: bool,

    /// Write what came of it as a JSON array, one object a disk
    #[arg(long)]
    pub json: bool,

    /// Ask for names at this UDP port, and on the loopback interface too, instead of 5353
    #[arg(long, value_name = "PORT", hide = true)]
    pub mdns_port: Option<u16>,
}

/// The options of `storagetm detach`.
#[derive(Debug, Args)]
#[command(
    long_about = DETACH,
    after_help = DETACH_EXAMPLES,
    group = clap::ArgGroup::new("which").required(true)
)]
pub struct Detach {
    /// A disk (/dev/nvme1n1), its NVMe Qualified Name, or the machine that lends it
    #[arg(value_name = "DISK|TARGET", group = "which")]
    pub what: Option<String>,

    /// All that is attached by NVMe/TCP
    #[arg(long, group = "which")]
    pub all: bool,

    /// Also disks that are in use
    #[arg(long)]
    pub force: bool,

    /// Where the machines are kept that have let this one in
    ///
    /// Without this option: $STATE_DIRECTORY, else /var/lib/storagetm for root and ~/.local/state/storagetm for others.
    #[arg(long, value_name = "DIR")]
    pub keys: Option<PathBuf>,

    /// Write what came of it as a JSON array, one object a connection
    #[arg(long)]
    pub json: bool,
}
