//! The options of `storagetm host`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use keys::date::Expiry;
use keys::name::Name;

/// The long description.
pub(super) const ABOUT: &str = "\
A host is a machine that may attach disks of this one. It is identified by its NVMe Qualified Name (on the host: \
/etc/nvme/hostnqn) and a key; with iSCSI, by its initiator name and a secret for CHAP. Changes apply at once, also to a running `storagetm serve`: a host that is removed or \
expired is disconnected within a second.

For two machines at the same place `storagetm pair` does all this with the code on the screen.";

const EXAMPLES: &str = "\
Examples:
  Let a host read all lent disks; this generates a key and prints the next steps:
    storagetm host add nqn.2014-08.org.nvmexpress:uuid:4c4c4544-… --name laptop
  Allow writing to one disk, for a week:
    storagetm host add nqn.2014-08.org.nvmexpress:uuid:4c4c4544-… --disk sdb --writable --expires 7d --replace
  Let a Windows machine attach by iSCSI; this generates a secret and prints the next steps:
    storagetm host add iqn.1991-05.com.microsoft:laptop --chap-md5
  Revoke its access:
    storagetm host remove laptop

Exit status: 0 if it was done, 1 if not, 2 if the options are wrong.";

/// The options of `storagetm host`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Host {
    /// The subcommand.
    #[command(subcommand)]
    pub task: Task,

    /// Directory of keys and hosts
    ///
    /// Default: $STATE_DIRECTORY, else /var/lib/storagetm for root and ~/.local/state/storagetm for others.
    #[arg(long, value_name = "DIR", global = true)]
    pub keys: Option<PathBuf>,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Task {
    /// Authorize a host
    Add(Add),
    /// Revoke the access of a host, and disconnect it
    Remove(Remove),
    /// List the authorized hosts and their rules
    List(List),
}

/// The options of `storagetm host add`.
#[derive(Debug, Args)]
pub struct Add {
    /// The host's NVMe Qualified Name, the content of its /etc/nvme/hostnqn; or its iSCSI initiator name
    ///
    /// The initiator name is shown by Windows in the Configuration tab of the iSCSI Initiator, and is in
    /// /etc/iscsi/initiatorname.iscsi on Linux.
    #[arg(value_name = "NQN|IQN")]
    pub id: String,

    /// Name of the host here; default: derived from the NQN or the initiator name
    #[arg(long, value_name = "NAME")]
    pub name: Option<Name>,

    /// Name of the TLS key; without any key option, one is generated
    #[arg(long, value_name = "NAME")]
    pub tls_key: Option<Name>,

    /// Name of the host's key for DH-HMAC-CHAP; of an iSCSI initiator, for CHAP
    ///
    /// With a TLS key, the host must use both. Without one, nothing is encrypted.
    #[arg(long, value_name = "NAME")]
    pub chap_key: Option<Name>,

    /// Name of this machine's key for DH-HMAC-CHAP or CHAP, for bidirectional authentication
    #[arg(long, value_name = "NAME", requires = "chap_key")]
    pub chap_controller_key: Option<Name>,

    /// Allow this disk only: a name, NQN or serial number; may be repeated
    #[arg(long, value_name = "DISK")]
    pub disk: Vec<String>,

    /// Allow each disk that is lent: the default for a new host
    #[arg(long, conflicts_with = "disk")]
    pub all_disks: bool,

    /// Allow writing to disks that are lent writable
    #[arg(long)]
    pub writable: bool,

    /// Expire after this time, or at this time: 30m, 2h, 7d, 4w, 2026-12-01, 2026-12-01T15:00:00Z (UTC)
    #[arg(long, value_name = "WHEN")]
    pub expires: Option<Expiry>,

    /// Derive TLS PSKs as libnvme up to 1.13 does, where they differ from those of later versions
    ///
    /// They differ for keys without a hash, and for identities of version 0, if nvme-cli on the host derives them
    /// (nvme check-tls-key --insert). Not needed for the output of `storagetm key export --for-host`.
    #[arg(long)]
    pub tls_compat: bool,

    /// Allow an iSCSI initiator to authenticate by CHAP with MD5, the only algorithm of Windows and iPXE, and the default
    /// of Linux
    #[arg(long)]
    pub chap_md5: bool,

    /// Change a known host
    ///
    /// With --disk, --all-disks, --writable or --expires all its rules are replaced by new ones, also their access and
    /// their end. Without any of these they stay, and its name, its keys, --tls-compat or --chap-md5 are changed.
    #[arg(long)]
    pub replace: bool,
}

/// The options of `storagetm host remove`.
#[derive(Debug, Args)]
pub struct Remove {
    /// The host's name here, its NQN, or its iSCSI initiator name
    pub host: String,
}

/// The options of `storagetm host list`.
#[derive(Debug, Args)]
pub struct List {
    /// Write a JSON array, one object per host
    #[arg(long)]
    pub json: bool,
}
