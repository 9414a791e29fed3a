//! Sockets that whoever started this program has opened for it (sd_listen_fds(3)): systemd, or a client that starts its own
//! server.
//!
//! Does not know what is spoken there.

use std::env;
use std::os::fd::{OwnedFd, RawFd};

use crate::syscall;

/// The first of the descriptors.
const FIRST: RawFd = 3;

/// More than anybody hands over.
const MOST: usize = 64;

/// What a descriptor without a name is called.
const NAMELESS: &str = "unknown";

/// A descriptor that was handed to this program.
#[derive(Debug)]
pub struct InheritedSocket {
    /// What the one who handed it over calls it; `unknown` if it has no name.
    pub name: String,
    /// It. Programs that this one starts do not get it.
    pub socket: OwnedFd,
}

/// Not everything was handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "LISTEN_FDS announces {announced} sockets to this program, and it was handed {there}; hand it all of them, or start \
     it without LISTEN_FDS"
)]
pub struct Missing {
    announced: usize,
    there: usize,
}

/// The descriptors that are meant for this process.
///
/// The variables that announce them stay in the environment; they name this process, so that no other one takes them to be
/// meant for itself.
///
/// # Errors
/// Not all that are announced are there: they were closed, or taken already and have an owner.
pub fn take() -> Result<Vec<InheritedSocket>, Missing> {
    let variable = |name: &str| env::var(name).ok();
    let names = announced(&variable, std::process::id());
    let sockets = syscall::take_inherited(FIRST, names.len());
    let (announced, there) = (names.len(), sockets.len());
    if there < announced {
        return Err(Missing { announced, there });
    }
    Ok(names
        .into_iter()
        .zip(sockets)
        .map(|(name, socket)| InheritedSocket { name, socket })
        .collect())
}

/// The names of those that the variables announce to the process of that number.
fn announced(variable: &dyn Fn(&str) -> Option<String>, process: u32) -> Vec<String> {
    let meant = variable("LISTEN_PID").and_then(|text| text.parse::<u32>().ok());
    if meant != Some(process) {
        return Vec::new();
    }
    let count = variable("LISTEN_FDS").and_then(|text| text.parse::<usize>().ok()).unwrap_or(0);
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let named = names.split(':').filter(|name| !name.is_empty()).map(str::to_owned);
    let nameless = std::iter::repeat_with(|| NAMELESS.to_owned());
    named.chain(nameless).take(count.min(MOST)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(pairs: &[(&str, &str)]) -> Vec<String> {
        let find = |name: &str| {
            let pair = pairs.iter().find(|(known, _)| *known == name)?;
            Some(pair.1.to_owned())
        };
        announced(&find, 77)
    }

    #[test]
    fn only_what_is_meant_for_this_process_is_taken() {
        assert_eq!(names(&[("LISTEN_PID", "77"), ("LISTEN_FDS", "1")]), ["unknown"]);
        let named = [("LISTEN_PID", "77"), ("LISTEN_FDS", "3"), ("LISTEN_FDNAMES", "nbd:nvme")];
        assert_eq!(names(&named), ["nbd", "nvme", "unknown"]);
        for pairs in [
            &[("LISTEN_FDS", "1")][..],
            &[("LISTEN_PID", "78"), ("LISTEN_FDS", "1")],
            &[("LISTEN_PID", "77"), ("LISTEN_FDS", "-1")],
            &[("LISTEN_PID", "77"), ("LISTEN_FDS", "many")],
            &[("LISTEN_PID", "77")],
        ] {
            assert!(names(pairs).is_empty(), "{pairs:?}");
        }
        assert_eq!(names(&[("LISTEN_PID", "77"), ("LISTEN_FDS", "9999999")]).len(), MOST);
    }
}
