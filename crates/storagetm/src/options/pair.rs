//! The options of `storagetm pair`.

use std::path::PathBuf;

use clap::Args;

/// The long description.
pub(super) const ABOUT: &str = "\
On the machine that lends its disks, `storagetm serve` (or the machine booted into target mode) shows a code of eight \
digits. Typed here, it authenticates both machines to each other, and they agree on a new key. The code is not the key: \
it is valid once, and worthless afterwards.

As root, the key is inserted into the kernel's keyring, and the command that attaches the disks is shown; otherwise \
the key is written to a file readable by you only, and the command for root to import it is shown.";

const EXAMPLES: &str = "\
Examples:
  As the other machine's screen shows it:
    storagetm pair fe80::1%eth0
  Request write access (to be confirmed on the screen of the other machine):
    storagetm pair 192.168.1.5 --writable
  For a script, with the code on standard input:
    storagetm pair 192.168.1.5 --code-file - --json

Exit status: 0 if the machines are paired, 1 on failure, 2 if the options are wrong, 3 if the other machine \
refused or the code was wrong.";

/// The options of `storagetm pair`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Pair {
    /// The machine that lends disks: 192.168.1.5, name.local:4420, fe80::1%eth0, [fe80::1%eth0]:4420
    ///
    /// It may be omitted if the code is the text of the QR code, which contains the address.
    #[arg(value_name = "HOST[:PORT]", required_unless_present = "code_file")]
    pub host: Option<String>,

    /// Request write access
    #[arg(long)]
    pub writable: bool,

    /// The interface of a link-local address
    #[arg(long, value_name = "IF")]
    pub interface: Option<String>,

    /// Read the code from a file; - is standard input
    #[arg(long, value_name = "FILE")]
    pub code_file: Option<PathBuf>,

    /// Name of this host on the other machine; default: the host name
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// Host NQN; default: the content of /etc/nvme/hostnqn
    #[arg(long, value_name = "NQN")]
    pub hostnqn: Option<String>,

    /// Directory of the keys of paired machines
    ///
    /// Default: $STATE_DIRECTORY, else /var/lib/storagetm for root and ~/.local/state/storagetm for others.
    #[arg(long, value_name = "DIR")]
    pub keys: Option<PathBuf>,

    /// Write the result as a JSON object
    #[arg(long)]
    pub json: bool,
}
