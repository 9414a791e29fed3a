//! The command line of systemd-storagetm(8), for programs and people that start this program by that
//! name.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Parser};

use super::{Serve, Task, parse};
use failure::Failure;

/// The name of the program of systemd.
pub const NAME: &str = "systemd-storagetm";

const DIFFERENCES: &str = "\
This is storagetm in place of the program of systemd. Its options and environment variables are the \
same; what differs is that disks are read-only, that hosts on other machines need a key or the pairing \
code, and that a disk in use is never lent. To lend as systemd's own program does:
  storagetm serve --open --writable DEVICE

Exit status: 0 after SIGINT or SIGTERM, 1 on any failure.";

/// The options of systemd-storagetm.
#[derive(Debug, Parser)]
#[command(
    name = NAME,
    version,
    about = "Exposes block devices and regular files as NVMe/TCP volumes",
    after_help = DIFFERENCES
)]
pub struct SystemdStoragetm {
    /// Block devices or regular files
    #[arg(value_name = "DEVICE")]
    pub devices: Vec<PathBuf>,

    /// NQN of the volumes, to which the name of each is added
    #[arg(long, value_name = "STRING")]
    pub nqn: Option<String>,

    /// Expose all devices
    #[arg(short, long, action = ArgAction::Count)]
    pub all: u8,

    /// List block devices
    #[arg(long)]
    pub list_devices: bool,
}

impl SystemdStoragetm {
    /// Returns the options of `storagetm serve` that do the same.
    ///
    /// # Errors
    /// Fails with the messages of systemd's program if there is nothing to expose, or too much.
    pub fn serve(self) -> Result<Serve, Failure> {
        if self.all > 0 && !self.devices.is_empty() {
            return Err(Failure::new("Expects no further arguments if --all/-a is specified."));
        }
        if self.all == 0 && self.devices.is_empty() {
            return Err(Failure::new("Expecting device name or --all/-a."));
        }
        let mut line: Vec<OsString> =
            ["storagetm", "serve", "--protocol=nvme"].map(OsString::from).into();
        line.extend((self.all > 0).then(|| OsString::from("--all")));
        if let Some(nqn) = self.nqn {
            line.extend(["--nqn".into(), OsString::from(nqn)]);
        }
        if self.all == 0 {
            line.push("--".into());
            line.extend(self.devices.into_iter().map(PathBuf::into_os_string));
        }
        match parse(line).map_err(Failure::new)?.task {
            Task::Serve(serve) => Ok(*serve),
            _ => Err(Failure::new("the options are those of another command")),
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn serve(line: &str) -> Result<Serve, String> {
        let words = format!("{NAME} {line}");
        let options = SystemdStoragetm::try_parse_from(words.split_whitespace());
        options.map_err(|error| error.to_string())?.serve().map_err(|failure| failure.to_string())
    }

    #[test]
    fn options_of_systemd_mean_the_same() {
        let devices = serve("--nqn=nqn.2026-01.com.example:x /dev/sdb -- --all").unwrap();
        assert_eq!(devices.disks, [PathBuf::from("/dev/sdb"), PathBuf::from("--all")]);
        assert_eq!(devices.nqn.as_deref(), Some("nqn.2026-01.com.example:x"));
        assert!(!devices.all && !devices.open && devices.access.writable.is_empty());
        for all in ["-a", "--all", "-aa", "--all --all", "-a -a"] {
            let all = serve(all).unwrap();
            assert!(all.all && !all.open && !all.allow_in_use && all.disks.is_empty());
        }
        assert_eq!(serve("").unwrap_err(), "Expecting device name or --all/-a.");
        let both = serve("--all /dev/sdb").unwrap_err();
        assert_eq!(both, "Expects no further arguments if --all/-a is specified.");
    }
}
