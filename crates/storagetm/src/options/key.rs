//! The options of `storagetm key`. They know no key.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use keys::name::Name;

const ABOUT: &str = "\
A key lets a machine in: who has it may have what `storagetm host add` says, and nobody can read or change what goes \
over the network. A TLS key (NVMeTLSkey-1:…) does both, and is all that most need; a DH-HMAC-CHAP key (DHHC-1:…) \
proves who the machine is and encrypts nothing.

Keys are kept in files that only their owner can read, one a file. They are taken from standard input or a file, never \
from the command line, where all users of this machine could read them.";

const EXAMPLES: &str = "\
Examples:
  Print a new TLS key, and keep none of it:
    storagetm key generate
  Make a key and keep it by a name, for storagetm host add --tls-key:
    storagetm key generate --name laptop
  Take one over that another machine has made:
    storagetm key import laptop < key.txt
  Write what the host needs to connect to a disk, for nvme-cli 2.9 or newer:
    storagetm key export laptop --for-host laptop --disk nqn.2014-08.org.nvmexpress:uuid:… --to laptop.keys
    (there, as root) nvme tls-key --import --keyfile laptop.keys
  Write what NBD clients of that host need to come by TLS:
    storagetm key export laptop --nbd --to laptop.psk
    (there) nbdinfo 'nbds://laptop@ADDRESS/DISK?tls-psk-file=laptop.psk'

Exit status: 0 if it was done, 1 if not, 2 if the options are wrong.";

/// The options of `storagetm key`.
#[derive(Debug, Args)]
#[command(long_about = ABOUT, after_help = EXAMPLES)]
pub struct Key {
    /// What is to be done.
    #[command(subcommand)]
    pub task: Task,

    /// Where keys and hosts are kept
    ///
    /// Without this option: $STATE_DIRECTORY, else /var/lib/storagetm for root and ~/.local/state/storagetm for others.
    #[arg(long, value_name = "DIR", global = true)]
    pub keys: Option<PathBuf>,
}

/// What is to be done with keys.
#[derive(Debug, Subcommand)]
pub enum Task {
    /// Make a new key, and print it or keep it by a name
    Generate(Generate),
    /// Keep a key that was made elsewhere; its text is read from standard input or a file
    Import(Import),
    /// Write a key in the form in which keys are handed over, or in that which nvme-cli or NBD clients read
    Export(Export),
    /// List the keys that are kept, and which hosts use them; never the keys themselves
    List(List),
    /// Remove a key that no host uses
    Remove(Remove),
}

/// What a key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Encrypted connections: NVMeTLSkey-1:…
    Tls,
    /// Proof of who a host is, without encryption: DHHC-1:…
    Chap,
}

/// The hash by which each host's own key is made of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Hash {
    /// The key is used as it is
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
    /// What the key is for
    #[arg(value_name = "KIND", value_enum, default_value_t = Kind::Tls)]
    pub kind: Kind,

    /// The hash by which each host's own key is made of it; it also sets how long the key is
    #[arg(long, value_name = "HASH", value_enum, default_value_t = Hash::Sha256)]
    pub hash: Hash,

    /// Keep it by this name, and print nothing secret
    #[arg(long, value_name = "NAME")]
    pub name: Option<Name>,

    /// Print it as well as keep it
    #[arg(long, requires = "name")]
    pub show: bool,

    /// Take the place of a key of that name; hosts that use it are cut off until they have the new one
    #[arg(long, requires = "name")]
    pub replace: bool,
}

/// The options of `storagetm key import`.
#[derive(Debug, Args)]
pub struct Import {
    /// The name by which it is kept: letters, digits, dots, underscores, hyphens
    pub name: Name,

    /// Read it from this file, not from standard input
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,

    /// Take the place of a key of that name; hosts that use it are cut off until they have the new one
    #[arg(long)]
    pub replace: bool,
}

/// The options of `storagetm key export`.
#[derive(Debug, Args)]
pub struct Export {
    /// The key's name
    pub name: Name,

    /// Write what this host needs, a line a disk, as `nvme tls-key --import` reads it: a host's name, or its NQN
    ///
    /// The key itself is not in it, only what follows from it for this host and these disks, and for finding them
    /// (nvme discover, nvme connect-all).
    #[arg(long, value_name = "HOST", requires = "form")]
    pub for_host: Option<String>,

    /// A disk that the host connects to, by its NQN, as `storagetm serve` shows it; may be repeated
    #[arg(long, value_name = "NQN", requires = "for_host", group = "form")]
    pub disk: Vec<String>,

    /// Write what NBD clients need, as the PSK files of libnbd, qemu and nbdkit have it: NAME:HEX
    ///
    /// A line for each host that uses the key, or only that of --for-host. The key itself is not in it, only what follows
    /// from it for NBD.
    #[arg(long, group = "form", conflicts_with = "disk")]
    pub nbd: bool,

    /// Write to this file, which only its owner can read, not to standard output
    #[arg(long, value_name = "FILE")]
    pub to: Option<PathBuf>,

    /// Overwrite the file, if it is there, without asking
    #[arg(long, requires = "to")]
    pub force: bool,
}

/// The options of `storagetm key list`.
#[derive(Debug, Args)]
pub struct List {
    /// Write a JSON array, one object a key
    #[arg(long)]
    pub json: bool,
}

/// The options of `storagetm key remove`.
#[derive(Debug, Args)]
pub struct Remove {
    /// The key's name
    pub name: Name,
}

/// What to say to whoever puts a key on the command line. It is not repeated.
pub(crate) const KEY_IN_ARGUMENTS: &str = "a key does not belong on the command line, where all users of this machine can read it: \
hand it over on standard input or in a file, and make another one in place of this";

/// Whether there is a key on the command line.
pub(crate) fn contains_key(line: &[OsString]) -> bool {
    let is_key = |word: &OsString| {
        let word = word.to_string_lossy();
        ["NVMeTLSkey-1:", "DHHC-1:"].iter().any(|begins| word.contains(begins))
    };
    line.iter().any(is_key)
}
