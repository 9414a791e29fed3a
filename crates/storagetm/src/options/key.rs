//! The options of `storagetm key`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use keys::name::Name;

/// The long description.
pub(super) const ABOUT: &str = "\
A key authenticates a host, whose access `storagetm host add` defines. A TLS key (NVMeTLSkey-1:…) also encrypts the \
connection, and is all that most setups need; a DH-HMAC-CHAP key (DHHC-1:…) authenticates only. A secret for CHAP of \
iSCSI has 12 to 16 characters.

Keys are stored in one file each, readable by their owner only. They are read from standard input or a file, never \
from the command line, where all users of this machine could read them.";

const EXAMPLES: &str = "\
Examples:
  Print a new TLS key without storing it:
    storagetm key generate
  Generate and store a key, for storagetm host add --tls-key:
    storagetm key generate --name laptop
  Import a key from another machine:
    storagetm key import laptop < key.txt
  Export the PSKs that a host needs to attach a disk, for nvme-cli 2.9 or newer:
    storagetm key export laptop --for-host laptop --disk nqn.2014-08.org.nvmexpress:uuid:… --to laptop.keys
    (on the host, as root) nvme tls-key --import --keyfile laptop.keys
    (nvme-cli 3) nvme keys import --keyfile laptop.keys
  Export the PSK for NBD clients of that host:
    storagetm key export laptop --nbd --to laptop.psk
    (on the host) nbdinfo 'nbds://laptop@ADDRESS/DISK?tls-psk-file=laptop.psk'

Exit status: 0 if it was done, 1 if not, 2 if the options are wrong.";

/// The options of `storagetm key`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Key {
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
    /// Generate a key, and print or store it
    Generate(Generate),
    /// Store an existing key, read from standard input or a file
    Import(Import),
    /// Write a key as it is stored, or in a format for nvme-cli or NBD clients
    Export(Export),
    /// List the names of the stored keys, and the hosts that use them
    List(List),
    /// Remove a key that no host uses
    Remove(Remove),
}

/// Kinds of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Encrypted connections: NVMeTLSkey-1:…
    Tls,
    /// Authentication without encryption: DHHC-1:…
    Chap,
    /// CHAP of iSCSI: 16 characters, as Windows demands; authentication without encryption
    Iscsi,
}

/// Hashes for the derivation of the retained key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Hash {
    /// No derivation
    None,
    /// SHA-256: a key of 32 bytes
    Sha256,
    /// SHA-384: a key of 48 bytes
    Sha384,
    /// SHA-512: a key of 64 bytes, for chap only
    Sha512,
}

/// The options of `storagetm key generate`.
#[derive(Debug, Args)]
pub struct Generate {
    /// Kind of the key
    #[arg(value_name = "KIND", value_enum, default_value_t = Kind::Tls)]
    pub kind: Kind,

    /// The hash for deriving the retained key; it also determines the key's length
    #[arg(long, value_name = "HASH", value_enum, default_value_t = Hash::Sha256)]
    pub hash: Hash,

    /// Store it under this name, and print no secret
    #[arg(long, value_name = "NAME")]
    pub name: Option<Name>,

    /// Also print it
    #[arg(long, requires = "name")]
    pub show: bool,

    /// Replace the key of that name; hosts that use it are disconnected until they have the new one
    #[arg(long, requires = "name")]
    pub replace: bool,
}

/// The options of `storagetm key import`.
#[derive(Debug, Args)]
pub struct Import {
    /// Name of the key: letters, digits, dots, underscores, hyphens
    pub name: Name,

    /// Read it from this file instead of standard input
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,

    /// Replace the key of that name; hosts that use it are disconnected until they have the new one
    #[arg(long)]
    pub replace: bool,
}

/// The options of `storagetm key export`.
#[derive(Debug, Args)]
pub struct Export {
    /// The key's name
    pub name: Name,

    /// Write the derived PSKs of this host (a name or an NQN), one line per disk, for `nvme tls-key --import`
    ///
    /// The key itself is not included, only the PSKs for this host with these disks and with the discovery subsystem
    /// (nvme discover, nvme connect-all).
    #[arg(long, value_name = "HOST", requires = "form")]
    pub for_host: Option<String>,

    /// NQN of a disk that the host attaches, as `storagetm serve` shows it; may be repeated
    #[arg(long, value_name = "NQN", requires = "for_host", group = "form")]
    pub disk: Vec<String>,

    /// Write a PSK file for libnbd, qemu and nbdkit: NAME:HEX
    ///
    /// One line for each host that uses the key, or only that of --for-host. The key itself is not included, only the
    /// PSK derived for NBD.
    #[arg(long, group = "form", conflicts_with = "disk")]
    pub nbd: bool,

    /// Write to this file, readable by its owner only, instead of standard output
    #[arg(long, value_name = "FILE")]
    pub to: Option<PathBuf>,

    /// Overwrite an existing file without asking
    #[arg(long, requires = "to")]
    pub force: bool,
}

/// The options of `storagetm key list`.
#[derive(Debug, Args)]
pub struct List {
    /// Write a JSON array, one object per key
    #[arg(long)]
    pub json: bool,
}

/// The options of `storagetm key remove`.
#[derive(Debug, Args)]
pub struct Remove {
    /// The key's name
    pub name: Name,
}

/// Error for a key on the command line; it must not repeat the key.
pub(crate) const KEY_IN_ARGUMENTS: &str = "a key does not belong on the command line, where all users of this machine can read it: \
pass it on standard input or in a file, and replace this key by a new one";

/// Returns whether an argument contains a key.
pub(crate) fn contains_key(line: &[OsString]) -> bool {
    let is_key = |word: &OsString| {
        let word = word.to_string_lossy();
        ["NVMeTLSkey-1:", "DHHC-1:"].iter().any(|begins| word.contains(begins))
    };
    line.iter().any(is_key)
}
