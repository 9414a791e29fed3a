//! The options of `storagetm attach` and `storagetm detach`.

use std::path::PathBuf;

use clap::Args;

/// The long description.
pub(super) const ATTACH: &str = "\
Attaches disks with the kernel's NVMe/TCP host driver, as /dev/nvmeXnY. They stay attached after this program has \
exited. nvme-cli is not needed; the driver is loaded if necessary.

Nothing on the disks is mounted or activated by storagetm. udev of this machine may activate LVM volumes and RAID arrays, \
as it does of any disk that is plugged in; docs/find.md says how to keep it from that.

TARGET is an address, a DNS name, the name of a paired machine (storagetm pair), or a name that storagetm find \
shows. DISK is the NVMe Qualified Name of the disk, its last part, or the name of the disk on the target.

With a key (storagetm pair) the connection is encrypted: the key is inserted into the kernel's keyring. The TLS handshake is \
done for the kernel by tlshd (package ktls-utils) if that runs, else by storagetm tls-agent, which is started, and ends a minute \
after the last disk is detached.";

const ATTACH_EXAMPLES: &str = "\
Examples:
  The only disk of a machine on the same cable:
    storagetm attach fe80::1%eth0
  One of several, and all of them:
    storagetm attach 192.168.1.5/sda
    storagetm attach 192.168.1.5 --all
  The home of alice, for a login here:
    storagetm attach --home=alice laptop
  By address and NQN:
    storagetm attach nvme://192.168.1.5:4420/nqn.2014-08.org.nvmexpress:uuid:…

Exit status: 0 if the disk is attached, 1 if not, 2 if the options are wrong, 3 if the other machine refused.";

/// Seconds for which the kernel tries to reconnect.
const PATIENCE: i32 = 600;

/// The long description.
pub(super) const TLS_AGENT: &str = "\
The kernel encrypts NVMe/TCP connections itself, but has a program do their TLS handshakes: usually tlshd (package \
ktls-utils). This does them with the keys of the machines that this one is paired with (storagetm pair), for Linux 6.7 or newer, as root. \
It must run as long as disks are attached: the kernel asks it again when it reconnects.

storagetm attach starts it if no program does handshakes, under systemd as the unit storagetm-tls-agent. By hand it is \
needed only for nvme connect --tls without tlshd. If both run, either does a handshake. It has the keys of one directory: machines \
whose keys are in another one (--keys) are attached again when it has ended.";

/// The long description.
pub(super) const DETACH: &str = "\
The kernel disconnects, and the disk disappears. A disk that is in use (mounted, used as swap space, part of another \
one) is not detached without --force, which loses data that were not yet written. A home directory that is active here \
is deactivated first (homectl deactivate).";

const DETACH_EXAMPLES: &str = "\
Examples:
    storagetm detach /dev/nvme1n1
    storagetm detach nqn.2014-08.org.nvmexpress:uuid:…
    storagetm detach 192.168.1.5
    storagetm detach --all

Exit status: 0 if the disks are detached, 1 if one is not, 2 if the options are wrong.";

/// The options of `storagetm attach`.
#[derive(Debug, Args)]
#[command(after_help = ATTACH_EXAMPLES)]
pub struct Attach {
    /// The machine, and one of its disks, which may be omitted if there is only one
    #[arg(value_name = "TARGET[/DISK]")]
    pub target: String,

    /// All disks of the machine that this one may attach
    #[arg(long)]
    pub all: bool,

    /// The home directory of USER, a user of systemd-homed on that machine, for a login on this one
    ///
    /// USER may be omitted if the machine lends one home only (storagetm serve --homes). systemd-homed of this machine must
    /// trust the key with which that of the other one has signed the user's record: storagetm asks, and stores it as
    /// /var/lib/systemd/home/storagetm-MACHINE-KEY.public. Then `homectl activate USER` or a login unlocks the home.
    #[arg(
        long,
        value_name = "USER",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "",
        value_parser = super::home::user,
        conflicts_with = "all"
    )]
    pub home: Option<String>,

    /// With --home, trust the key of the machine without a question
    #[arg(long, requires = "home")]
    pub yes: bool,

    /// The interface of a link-local address
    #[arg(long, value_name = "IF")]
    pub interface: Option<String>,

    /// Directory of the keys of paired machines
    ///
    /// Default: $STATE_DIRECTORY, else /var/lib/storagetm for root and ~/.local/state/storagetm for others.
    #[arg(long, value_name = "DIR")]
    pub keys: Option<PathBuf>,

    /// Attach without encryption if the target accepts none of the keys of this machine
    ///
    /// Anyone on the network path can then read and change everything. Not needed if this machine has no keys, nor on
    /// the loopback interface; without effect at an address at which a machine was paired.
    #[arg(long)]
    pub insecure: bool,

    /// File with the DH-HMAC-CHAP secret of this host (DHHC-1:…)
    #[arg(long, value_name = "FILE")]
    pub chap_key: Option<PathBuf>,

    /// File with the DH-HMAC-CHAP secret of the controller, for bidirectional authentication
    #[arg(long, value_name = "FILE", requires = "chap_key")]
    pub chap_controller_key: Option<PathBuf>,

    /// Host NQN; default: the content of /etc/nvme/hostnqn
    #[arg(long, value_name = "NQN")]
    pub hostnqn: Option<String>,

    /// How long the kernel tries to reconnect (ctrl_loss_tmo); -1 forever
    #[arg(
        long,
        value_name = "SECONDS",
        allow_negative_numbers = true,
        default_value_t = PATIENCE,
        value_parser = clap::value_parser!(i32).range(-1..)
    )]
    pub patience: i32,

    /// Use header and data digests, for unreliable networks
    #[arg(long)]
    pub digests: bool,

    /// Write the result as a JSON array, one object per disk
    #[arg(long)]
    pub json: bool,

    /// Use this UDP port for multicast DNS, also on the loopback interface, instead of 5353
    #[arg(long, value_name = "PORT", hide = true)]
    pub mdns_port: Option<u16>,
}

impl Attach {
    /// Returns the options with which a machine, or one disk of it, is attached by its name alone.
    pub(crate) fn of(target: String, keys: Option<PathBuf>, mdns_port: Option<u16>) -> Self {
        Self {
            target,
            all: false,
            home: None,
            yes: false,
            interface: None,
            keys,
            insecure: false,
            chap_key: None,
            chap_controller_key: None,
            hostnqn: None,
            patience: PATIENCE,
            digests: false,
            json: false,
            mdns_port,
        }
    }
}

/// The options of `storagetm detach`.
#[derive(Debug, Args)]
#[command(
    after_help = DETACH_EXAMPLES,
    group = clap::ArgGroup::new("which").required(true)
)]
pub struct Detach {
    /// A disk (/dev/nvme1n1), its NVMe Qualified Name, or the machine that lends it
    #[arg(value_name = "DISK|TARGET", group = "which")]
    pub what: Option<String>,

    /// All disks attached by NVMe/TCP
    #[arg(long, group = "which")]
    pub all: bool,

    /// Also disks that are in use
    #[arg(long)]
    pub force: bool,

    /// Directory of the keys of paired machines
    ///
    /// Default: $STATE_DIRECTORY, else /var/lib/storagetm for root and ~/.local/state/storagetm for others.
    #[arg(long, value_name = "DIR")]
    pub keys: Option<PathBuf>,

    /// Write the result as a JSON array, one object per connection
    #[arg(long)]
    pub json: bool,
}

/// The options of `storagetm tls-agent`.
#[derive(Debug, Args)]
pub struct TlsAgent {
    /// Directory of the keys of paired machines
    ///
    /// Default: $STATE_DIRECTORY, else /var/lib/storagetm.
    #[arg(long, value_name = "DIR")]
    pub keys: Option<PathBuf>,

    /// End a minute after the last disk is detached
    #[arg(long)]
    pub until_detached: bool,
}
