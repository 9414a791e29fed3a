//! How files of servers are opened: with which credentials, and whether a server that does not answer is waited for.

use std::time::Duration;

use fetch::{Access, Account, Error, Location, Login, waiting};

use crate::options::copy::Copy;
use failure::Failure;

/// Opens the files of servers that a copy needs.
pub(super) struct Opener<'a> {
    /// How long a lost connection is made again.
    pub(super) patience: Duration,
    waits: bool,
    tell: &'a mut dyn FnMut(&str),
}

impl<'a> Opener<'a> {
    /// As the options say. `tell` is called with a sentence when a server is waited for.
    pub(super) fn new(options: &Copy, tell: &'a mut dyn FnMut(&str)) -> Self {
        Self { patience: Duration::from_secs(options.patience), waits: options.wait, tell }
    }

    /// Returns what `open` returns for the file `name`; with `--wait`, servers that cannot be reached or are busy are asked again.
    ///
    /// # Errors
    /// Fails with the last error of `open`.
    pub(super) fn open<T>(
        &mut self,
        name: &str,
        mut open: impl FnMut() -> Result<T, Error>,
    ) -> Result<T, Error> {
        if !self.waits {
            return open();
        }
        let seconds = self.patience.as_secs();
        let mut tell = |reason: &Error| {
            (self.tell)(&format!("waiting up to {seconds} seconds for {name}: {reason}"));
        };
        waiting(self.patience, &mut tell, open)
    }
}

/// Returns what the server of a file is told.
///
/// # Errors
/// Fails if the environment, or a file that it names, contradicts itself or cannot be used.
pub(super) fn access(location: &Location) -> Result<Access, Failure> {
    if let Some(name) = fetch::unusable_proxy() {
        return Err(Failure::usage(format!("{name} names no proxy that can be used")));
    }
    if location.is_object() {
        return account().map(|account| Access { account: Some(account), login: None });
    }
    Ok(Access { login: login()?, account: None })
}

/// Returns the server of objects and the credentials for it, named as for other programs (`AWS_...`).
///
/// # Errors
/// As [`access`].
pub(super) fn account() -> Result<Account, Failure> {
    Account::read(&|name| std::env::var(name).ok()).map_err(Failure::usage)
}

/// Returns the user of registries that the environment names, as Tinkerbell does it.
///
/// # Errors
/// Fails if only one of user name and password is set, or is not readable.
fn login() -> Result<Option<Login>, Failure> {
    let [user, password] = ["REGISTRY_USERNAME", "REGISTRY_PASSWORD"]
        .map(|name| std::env::var_os(name).filter(|value| !value.is_empty()));
    match (user, password) {
        (None, None) => Ok(None),
        (Some(user), Some(password)) => match (user.into_string(), password.into_string()) {
            (Ok(user), Ok(password)) => Ok(Some(Login { user, password })),
            _ => Err(Failure::usage("REGISTRY_USERNAME and REGISTRY_PASSWORD have to be UTF-8")),
        },
        _ => Err(Failure::usage("only one of REGISTRY_USERNAME and REGISTRY_PASSWORD is set")),
    }
}
