//! Names of users and of their homes, as typed.

use std::path::Path;

use linux::home::is_user_name;

/// Parses the name of a user; empty for all users.
pub(super) fn user(name: &str) -> Result<String, String> {
    match name.is_empty() || is_user_name(name) {
        true => Ok(name.to_owned()),
        false => Err("this is not the name of a user".to_owned()),
    }
}

/// Returns whether a path is the name of a home: `home-USER`.
pub(super) fn is_home(path: &Path) -> bool {
    let user = path.to_str().and_then(|name| name.strip_prefix("home-"));
    user.is_some_and(is_user_name)
}
