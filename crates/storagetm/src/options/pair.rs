//! The options of `storagetm pair`. They know no socket.

use std::path::PathBuf;

use clap::Args;

const ABOUT: &str = "\
On the machine that lends its disks, `storagetm serve` (or the machine booted into target mode) shows a code of eight \
digits. Typed here, it proves to both machines that they are the ones in front of you, and leaves them with a new key \
that nobody else has: the code itself is no key, is good once, and is worth nothing afterwards.

As root the key goes where the kernel looks for it, and the line that is shown then attaches the disks; otherwise it \
is written to a file that only you can read, with the line by which root imports it.";

const EXAMPLES: &str = "\
Examples:
  The line that the other machine's screen shows:
    storagetm pair fe80::1%eth0
  Ask to be allowed to change disks, too (somebody at the other machine must agree):
    storagetm pair 192.168.1.5 --writable
  For a script, with the code on standard input:
    storagetm pair 192.168.1.5 --code-file - --json

Exit status: 0 if this machine is let in, 1 if something did not work, 2 if the options are wrong, 3 if the other \
machine said no or the code was wrong.";

/// The options of `storagetm pair`.
#[derive(Debug, Args)]
#[command(long_about = ABOUT, after_help = EXAMPLES)]
pub struct Pair {
    /// The machine that lends disks: 192.168.1.5, name.local:4420, fe80::1%eth0, [fe80::1%eth0]:4420
    ///
    /// It may be left out if the text of the QR code is given for the code: that has the address in it.
    #[arg(value_name = "HOST[:PORT]", required_unless_present = "code_file")]
    pub host: Option<String>,

    /// Ask to be allowed to change disks, too
    #[arg(long)]
    pub writable: bool,

    /// The interface behind which a link-local address is
    #[arg(long, value_name = "IF")]
    pub interface: Option<String>,

    /// Read the code from a file, or from standard input if this is -
    #[arg(long, value_name = "FILE")]
    pub code_file: Option<PathBuf>,

    /// What the other machine is to call this one; its host name if not given
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// Be let in under this host NQN; what stands in /etc/nvme/hostnqn if not given
    #[arg(long, value_name = "NQN")]
    pub hostnqn: Option<String>,

    /// Where what is known of the other machine is kept
    ///
    /// Without this option: $STATE_DIRECTORY, else /var/lib/storagetm for root and ~/.local/state/storagetm for others.
    #[arg(long, value_name = "DIR")]
    pub keys: Option<PathBuf>,

    /// Write what came of it as a JSON object
    #[arg(long)]
    pub json: bool,
}
