//! Home directories of systemd-homed. A process without privileges reads the headers of the disk (`storagetm
//! recognize`), and says whose home it is.

mod child;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Stdio;

use failure::Failure;
use linux::disk::{OpenError, Opened};
use linux::home::{Home, is_user_name};
use linux::homed::user_of;
use linux::identity::{self, MachineId};

use super::LendRequest;
use super::reader::message;
pub use child::work;

/// What the message of the process begins with, or is.
const HOME: &str = "home";
const NO_HOME: &str = "none";

/// Reads whose home the opened disk is.
///
/// # Errors
/// Fails if it is none, or if it cannot be read.
pub(super) fn recognize(opened: &Opened) -> Result<Home, Failure> {
    let path = opened.path.display();
    let fail = |error: std::io::Error| Failure::new(format!("{path} cannot be read: {error}"));
    run(opened).map_err(fail)?.ok_or_else(|| {
        Failure::new(format!(
            "{path} is no home directory of systemd-homed that is encrypted with LUKS2, or not only that"
        ))
    })
}

/// Runs the process.
fn run(opened: &Opened) -> std::io::Result<Option<Home>> {
    // A file description of its own: that of the disk may be for direct I/O.
    let disk = File::open(format!("/proc/self/fd/{}", opened.descriptor.as_raw_fd()))?;
    let child = ipc::spawn::command(&["recognize"], disk.into())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    // A parent that ignores SIGCHLD takes the status: the message says enough.
    let (message, _) = message(child)?;
    outcome(&String::from_utf8_lossy(&message))
}

/// Interprets the message of the process.
fn outcome(message: &str) -> std::io::Result<Option<Home>> {
    let parse = |rest: &str| {
        let (user, digits) = rest.split_once(' ')?;
        let uuid = u128::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 32)?;
        is_user_name(user).then(|| Home { user: user.to_owned(), uuid: uuid.to_be_bytes() })
    };
    if message == NO_HOME {
        return Ok(None);
    }
    let home = message.strip_prefix(HOME).and_then(|rest| parse(rest.strip_prefix(' ')?));
    home.map(Some).ok_or_else(|| {
        let reason: String = message.chars().filter(|c| !c.is_control()).take(200).collect();
        std::io::Error::other(match reason.is_empty() {
            true => "the process that reads it has ended without a word".to_owned(),
            false => reason,
        })
    })
}

/// Returns why a disk that may be a home cannot be opened.
pub(super) fn refusal(path: &Path, error: OpenError) -> Failure {
    let Some(user) = user_of(path) else { return Failure::new(error) };
    let why = match &error {
        OpenError::Locked { .. } => "it is lent already".to_owned(),
        // The loop device of an active home is such a use, too.
        OpenError::InUse { reason, .. } => format!("it is in use otherwise ({reason})"),
        _ => return Failure::new(error),
    };
    Failure::new(format!(
        "{} is not lent: {user} is logged in here, or {why}; log {user} out first (homectl deactivate {user})",
        path.display()
    ))
}

/// Returns the identity of a home.
pub(super) fn identity(home: &Home, machine: MachineId) -> identity::Identity {
    identity::of_home(&home.user, &home.uuid, machine)
}

/// Returns a note if the file of a home is lent as an image.
pub(super) fn image_note(request: &LendRequest) -> Option<String> {
    let user = user_of(&request.path).filter(|_| !request.is_home)?;
    Some(format!(
        "{} is lent as an image: for a login of {user} on another machine, which needs to write, lend it with --homes={user}",
        request.path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_of_the_process_is_validated() {
        let uuid = "000102030405060708090a0b0c0d0e0f";
        let home = outcome(&format!("home alice {uuid}")).unwrap().unwrap();
        assert_eq!((home.user.as_str(), home.uuid[15]), ("alice", 15));
        assert_eq!(outcome("none").unwrap(), None);
        for message in [
            "",
            "home",
            "home alice",
            "home alice 00",
            "home ../a 000102030405060708090a0b0c0d0e0f",
        ] {
            assert!(outcome(message).is_err(), "{message}");
        }
        assert!(outcome(&format!("homealice {uuid}")).is_err());
        let reason = outcome("its \x1b[1mheader").unwrap_err().to_string();
        assert_eq!(reason, "its [1mheader");
    }

    #[test]
    fn locked_home_names_its_user() {
        let path = Path::new("/home/alice.home");
        let locked = |path: &Path| OpenError::Locked { path: path.to_owned() };
        assert!(refusal(path, locked(path)).to_string().contains("alice is logged in here"));
        let reason = "attached as loop0".to_owned();
        let used = refusal(path, OpenError::InUse { path: path.to_owned(), reason }).to_string();
        assert!(used.contains("alice is logged in here") && used.contains("attached as loop0"));
        let image = Path::new("/home/alice.img");
        assert!(!refusal(image, locked(image)).to_string().contains("logged in"));
    }
}
