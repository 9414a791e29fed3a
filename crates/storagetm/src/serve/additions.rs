//! Disks that are added while the program runs. Each is opened on a thread: the loop must not wait
//! for a disk that does not answer.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use daemon::inbox::Inbox;
use daemon::lend::{LendOptions, LendRequest, LentDisk, Writes, disk_named, named};
use daemon::overlay::OverlayOptions;
use failure::{Failure, spawn_error};
use linux::tree::Tree;

use super::config::ServeConfig;
use super::disks::{Known, check_new, open_one};

/// Disks that are opened at a time.
const MAX_OPENING: usize = 4;

/// Identifies a disk that is being opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket(u64);

/// An opened disk, or why it cannot be exported.
pub(super) type Opened = (Ticket, Result<LentDisk, Failure>);

/// Disks that are being opened.
#[derive(Debug)]
pub(super) struct Additions {
    lend: LendOptions,
    any_format: bool,
    /// The disks that are being opened, and the memory that is reserved for an overlay of each, in bytes.
    opening: Vec<(Ticket, u64)>,
    next: u64,
    sender: Sender<Opened>,
    receiver: Receiver<Opened>,
    /// Wakes the loop.
    inbox: Inbox,
}

impl Additions {
    pub(super) fn new(config: &ServeConfig, inbox: &Inbox) -> Self {
        let (sender, receiver) = channel();
        // What was agreed to concerns the disks of the command line.
        let lend = config.lend.clone();
        let reported = lend.reported.clone().of_others();
        Self {
            lend: LendOptions { allow_in_use: false, force: false, reported, ..lend },
            any_format: config.any_format,
            opening: Vec::new(),
            next: 0,
            sender,
            receiver,
            inbox: inbox.clone(),
        }
    }

    /// Starts to open a disk that is to be exported beside the `known` ones, with an overlay as these options say if it
    /// is to have one: then its limit is reserved. Returns `None` if too many are being
    /// opened. Does not look at the path itself, which may be on a file system that does not answer.
    ///
    /// # Errors
    /// Fails if no thread can be started.
    pub(super) fn open(
        &mut self,
        request: LendRequest,
        overlay: OverlayOptions,
        known: Vec<Known>,
    ) -> Result<Option<Ticket>, Failure> {
        if self.opening.len() >= MAX_OPENING {
            return Ok(None);
        }
        let ticket = Ticket(self.next);
        let reserved = if request.writes == Writes::ToOverlay { overlay.limit } else { 0 };
        let lend = LendOptions { overlay, ..self.lend.clone() };
        let any_format = self.any_format;
        let (sender, inbox) = (self.sender.clone(), self.inbox.clone());
        let open = move || {
            let reached = lend.check_reachable(&request.path);
            let opened = reached.and_then(|()| found(&lend.tree, request)).and_then(|request| {
                check_new(&known, &request.path)?;
                open_one(&lend, any_format, request)
            });
            let _ = sender.send((ticket, opened));
            inbox.wake();
        };
        let thread = thread::Builder::new().name("add".to_owned()).spawn(open);
        thread.map_err(|error| Failure::new(spawn_error(&error)))?;
        self.opening.push((ticket, reserved));
        self.next += 1;
        Ok(Some(ticket))
    }

    /// Returns the disks that have been opened.
    pub(super) fn take(&mut self) -> Vec<Opened> {
        let opened: Vec<Opened> = self.receiver.try_iter().collect();
        self.opening.retain(|(ticket, _)| !opened.iter().any(|(known, _)| known == ticket));
        opened
    }

    /// Returns the memory that is reserved for overlays of disks that are being opened, in bytes.
    pub(super) fn reserved(&self) -> u64 {
        self.opening.iter().fold(0, |sum, (_, reserved)| sum.saturating_add(*reserved))
    }
}

/// Returns the request with the path of its disk.
///
/// # Errors
/// Fails if its path is relative and no disk has that name: the process that asks has another working directory.
fn found(tree: &Tree, request: LendRequest) -> Result<LendRequest, Failure> {
    let path: PathBuf = match request.path.is_absolute() {
        true => named(tree, &request.path),
        false => disk_named(tree, &request.path).ok_or_else(|| {
            Failure::new(format!(
                "{}: there is no such disk or file; the path of a file must be absolute",
                request.path.display()
            ))
        })?,
    };
    Ok(LendRequest { path, ..request })
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn file_of_the_own_working_directory_is_not_taken() {
        // The tests run in the directory of the crate.
        assert!(PathBuf::from("Cargo.toml").exists());
        let find = |path: &str| {
            let request = LendRequest::new(PathBuf::from(path), Writes::Refused);
            found(&Tree::machine(), request).map(|request| request.path)
        };
        let error = find("Cargo.toml").unwrap_err().to_string();
        assert!(error.contains("must be absolute"), "{error}");
        let path = std::path::absolute("Cargo.toml").unwrap();
        assert_eq!(find(path.to_str().unwrap()).unwrap(), path);
    }
}
