//! The options of `storagetm host`. They know no host.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use keys::date::Expiry;
use keys::name::Name;

const ABOUT: &str = "\
A host is a machine that may have disks of this one, known by its NVMe Qualified Name (on the host: \
/etc/nvme/hostnqn) and by a key. What is said here holds at once, also for a `storagetm serve` that is running: a host \
that is removed, or whose time is over, is cut off within a second.

Two machines that stand side by side need none of this: `storagetm pair` lets a machine in by the code on the screen.";

const EXAMPLES: &str = "\
Examples:
  Let a host read every disk that is lent; a key is made, and what to do with it is said:
    storagetm host add nqn.2014-08.org.nvmexpress:uuid:4c4c4544-… --name laptop
  Let it change one disk, for a week:
    storagetm host add nqn.2014-08.org.nvmexpress:uuid:4c4c4544-… --disk sdb --writable --expires 7d --replace
  Take that away:
    storagetm host remove laptop

Exit status: 0 if it was done, 1 if not, 2 if the options are wrong.";

/// The options of `storagetm host`.
#[derive(Debug, Args)]
#[command(long_about = ABOUT, after_help = EXAMPLES)]
pub struct Host {
    /// What is to be done.
    #[command(subcommand)]
    pub task: Task,

    /// Where keys and hosts are kept
    ///
    /// Without this option: $STATE_DIRECTORY, else /var/lib/storagetm for root and ~/.local/state/storagetm for others.
    #[arg(long, value_name = "DIR", global = true)]
    pub keys: Option<PathBuf>,
}

/// What is to be done with hosts.
#[derive(Debug, Subcommand)]
pub enum Task {
    /// Let a host in
    Add(Add),
    /// Let a host in no longer, and cut it off if it is here
    Remove(Remove),
    /// List the hosts that are let in, and what they may have
    List(List),
}

/// The options of `storagetm host add`.
#[derive(Debug, Args)]
pub struct Add {
    /// The host's NVMe Qualified Name: what stands in /etc/nvme/hostnqn there
    pub nqn: String,

    /// What to call it here; made of the NQN if not given
    #[arg(long, value_name = "NAME")]
    pub name: Option<Name>,

    /// The key for encrypted connections, by its name; without any key option, one is made
    #[arg(long, value_name = "NAME")]
    pub tls_key: Option<Name>,

    /// The key by which the host proves who it is (DH-HMAC-CHAP), by its name
    ///
    /// With a TLS key, the host must show both. Without one, nothing is encrypted.
    #[arg(long, value_name = "NAME")]
    pub chap_key: Option<Name>,

    /// The key by which this machine proves to the host who it is (DH-HMAC-CHAP), by its name
    #[arg(long, value_name = "NAME", requires = "chap_key")]
    pub chap_controller_key: Option<Name>,

    /// Let it have this disk and no other: a disk's name, NQN or serial number; may be repeated, for more than one
    #[arg(long, value_name = "DISK")]
    pub disk: Vec<String>,

    /// Let it change what it may have, as far as that is lent writable
    #[arg(long)]
    pub writable: bool,

    /// Only for that long, or until then: 30m, 2h, 7d, 4w, 2026-12-01, 2026-12-01T15:00:00Z (UTC)
    #[arg(long, value_name = "WHEN")]
    pub expires: Option<Expiry>,

    /// Expect what libnvme up to 1.13 makes of a TLS key, where that cannot be told from what later ones make
    ///
    /// That is so for keys without a hash, and for identities of version 0, if nvme-cli at the host derives them by
    /// itself (nvme check-tls-key --insert). What `storagetm key export --for-host` writes needs it never.
    #[arg(long)]
    pub tls_compat: bool,

    /// Change what a host that is known may have; it keeps its keys unless others are named
    #[arg(long)]
    pub replace: bool,
}

/// The options of `storagetm host remove`.
#[derive(Debug, Args)]
pub struct Remove {
    /// The host's name here, or its NQN
    pub host: String,
}

/// The options of `storagetm host list`.
#[derive(Debug, Args)]
pub struct List {
    /// Write a JSON array, one object a host
    #[arg(long)]
    pub json: bool,
}
