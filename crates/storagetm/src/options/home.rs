//! The options for home directories of systemd-homed.

use std::path::{Path, PathBuf};

use clap::Args;

use daemon::lend::Writes;
use linux::home::is_user_name;

/// The homes that `storagetm serve` lends.
#[derive(Debug, Args)]
pub struct Homes {
    /// Lend home directories of systemd-homed, so that their users can log in on another machine: all, or those of USER
    ///
    /// Homes that are encrypted with LUKS2 are found as /home/USER.home, and on disks that hold one and nothing else. Each is
    /// a writable disk called home-USER, for one host at a time, which always needs a key; with --overlay home-USER it is not
    /// changed. A home whose user is logged in here is not lent, and while it is lent its user cannot log in here.
    #[arg(
        long = "homes",
        group = "what",
        value_name = "USER",
        num_args = 0..=1,
        require_equals = true,
        value_delimiter = ',',
        default_missing_value = "",
        value_parser = user,
        id = "homes",
        conflicts_with_all = ["open", "usb", "stdin"]
    )]
    users: Option<Vec<String>>,
}

impl Homes {
    /// Returns the users whose homes are lent, none for all; `None` if no homes are.
    pub fn users(&self) -> Option<Vec<String>> {
        let users = self.users.as_ref()?.iter();
        Some(users.filter(|user| !user.is_empty()).cloned().collect())
    }

    /// Returns whether a path is the name of a home: `home-USER`.
    pub fn names(&self, path: &Path) -> bool {
        let user = path.to_str().and_then(|name| name.strip_prefix("home-"));
        self.users.is_some() && user.is_some_and(is_user_name)
    }
}

/// Returns where what hosts write to the home of that name goes.
pub fn writes(overlaid: &[PathBuf], name: &str) -> Writes {
    match overlaid.iter().any(|path| path == Path::new(name)) {
        true => Writes::ToOverlay,
        false => Writes::ToDisk,
    }
}

/// Parses the name of a user; empty for all users.
pub(super) fn user(name: &str) -> Result<String, String> {
    match name.is_empty() || is_user_name(name) {
        true => Ok(name.to_owned()),
        false => Err("this is not the name of a user".to_owned()),
    }
}
