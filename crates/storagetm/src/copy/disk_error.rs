//! Errors of local disks and files, in words that fit a copy.

use std::io;
use std::path::Path;

use failure::Failure;
use linux::disk::OpenError;

use super::summary::refused;

pub(super) fn source_in_use(path: &Path, reason: &str) -> Failure {
    refused(format!(
        "{} is in use ({reason}), and what is read of it may be half-written; stop that first, or copy \
         it all the same with --allow-in-use",
        path.display()
    ))
}

pub(super) fn not_a_disk(path: &Path) -> Failure {
    refused(format!("{} is neither a disk nor a file; name one", path.display()))
}

/// Rewords the error of opening a disk for a copy.
pub(super) fn open_error(path: &Path, error: OpenError, is_source: bool) -> Failure {
    let name = path.display();
    match error {
        OpenError::ReadOnly { .. } => refused(format!(
            "{name} cannot be written: the disk or its medium is read-only; use another one"
        )),
        OpenError::InUse { reason, .. } if is_source => source_in_use(path, &reason),
        OpenError::InUse { reason, .. } => {
            refused(format!("{name} is in use ({reason}); stop that first"))
        }
        OpenError::Held { holder, .. } if is_source => source_in_use(path, &format!("by {holder}")),
        OpenError::Held { holder, .. } => {
            refused(format!("{name} is in use by {holder}; end that first"))
        }
        OpenError::Empty { .. } => refused(format!("{name} has no bytes")),
        other => refused(other),
    }
}

pub(super) fn io_error(path: &Path, what: &str, error: &io::Error) -> Failure {
    let name = path.display();
    match error.kind() {
        io::ErrorKind::NotFound => refused(format!(
            "{name}: there is no such disk or file; \"storagetm list\" shows the disks of this machine"
        )),
        io::ErrorKind::PermissionDenied => refused(format!(
            "{name} cannot {what}: permission denied; run this as root, or as a user who may"
        )),
        _ => refused(format!("{name} cannot {what}: {error}")),
    }
}
