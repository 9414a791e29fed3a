//! Credentials for registries and object stores, from the environment.

use fetch::{Access, Account, Location, Login};

use failure::Failure;

/// Returns what the server of a file is told.
///
/// # Errors
/// Fails if the environment, or a file that it names, contradicts itself or cannot be used.
pub(super) fn access(location: &Location) -> Result<Access, Failure> {
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
