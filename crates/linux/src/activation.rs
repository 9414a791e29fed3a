//! Socket activation: sockets passed to this program when it was started (sd_listen_fds(3)), by
//! systemd or by a client that starts its own server.

use std::env;
use std::os::fd::{OwnedFd, RawFd};

use crate::syscall;

/// `SD_LISTEN_FDS_START`.
const FIRST: RawFd = 3;

/// Upper bound on the number of sockets taken.
const MOST: usize = 64;

/// The name of a descriptor that is not in `LISTEN_FDNAMES`.
const NAMELESS: &str = "unknown";

/// A socket passed to this program.
#[derive(Debug)]
pub struct InheritedSocket {
    /// Its name from `LISTEN_FDNAMES`, or `unknown`.
    pub name: String,
    /// Close-on-exec.
    pub socket: OwnedFd,
}

/// Fewer sockets were passed than `LISTEN_FDS` announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "LISTEN_FDS announces {announced} sockets to this program, and it was passed {there}; pass all of them, or start \
     it without LISTEN_FDS"
)]
pub struct Missing {
    announced: usize,
    there: usize,
}

/// Takes the sockets passed to this process.
///
/// The variables that announce them stay in the environment. They contain the process identifier,
/// so that children do not use them.
///
/// # Errors
/// Fails if not all announced descriptors are open: they were closed, or taken before.
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

/// Returns the names of the sockets that the variables announce to `process`.
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
    fn sockets_for_other_processes_are_not_taken() {
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
