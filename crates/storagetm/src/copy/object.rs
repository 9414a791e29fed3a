//! Copies to objects of a bucket (`s3://`): what is copied comes through a pipe, and a thread uploads it, compressed if the name
//! ends with `.zst`.

use std::io::{self, ErrorKind, PipeReader, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ::copy::{CopyError, Disk, Outcome, Report};
use console::decimal;
use failure::Failure;
use fetch::{Error, Location, Proof, Stored, Upload};

use super::access::{Opener, account};
use super::data::{Data, data};
use super::interrupt::Interrupt;
use super::local_disk::CopyEnd;
use super::summary::refused;
use crate::confirmation::OverwriteTarget;
use crate::options::copy::Copy;
use ::remote::uri::Locator;

/// Bytes that are read at a time.
const PIECE: usize = 1 << 20;
/// Level of compression, the one at which zstd is meant to be used.
const LEVEL: i32 = 3;
/// Endings of names of formats that are not written.
const OTHER_FORMATS: [&str; 9] =
    [".gz", ".xz", ".bz2", ".lz4", ".qcow2", ".vhd", ".vhdx", ".vmdk", ".vdi"];

/// An object that is to be written.
pub(super) struct NewObject {
    name: String,
    object: fetch::Object,
    data: Data,
    is_packed: bool,
    /// Whether one that exists is replaced.
    replaces: bool,
    verify: bool,
    patience: Duration,
}

/// An object that is being written.
pub(super) struct Object {
    name: String,
    bytes: u64,
    is_packed: bool,
    stop: Arc<AtomicBool>,
    writer: JoinHandle<Result<Stored, Error>>,
}

/// Fails if the destination is an object with the name of a format that is not written.
pub(super) fn check_name(options: &Copy) -> Result<(), Failure> {
    let name = options.destination.to_string();
    let lower = name.to_ascii_lowercase();
    let other = OTHER_FORMATS.into_iter().find(|ending| lower.ends_with(ending));
    match (other, &options.destination, options.format) {
        (Some(ending), Locator::Web(_), None) => Err(Failure::usage(format!(
            "{name}: objects are written as they are, or as .zst, and not as {ending}: choose another name, or add --format raw if the \
             source is in that format"
        ))),
        _ => Ok(()),
    }
}

/// Asks whether the object exists, and returns the destination. Writes nothing.
///
/// # Errors
/// Fails if the server cannot be reached or refuses, if the credentials cannot be used, or if the source is a stream.
pub(super) fn destination(
    location: &Location,
    options: &Copy,
    source: Option<&Disk>,
    opener: &mut Opener<'_>,
) -> Result<(CopyEnd, NewObject), Failure> {
    let name = location.to_string();
    let Some(object) = location.object(&account()?) else {
        return Err(Failure::usage(format!(
            "{name} can be copied from, not to: a web server or a registry has no disks"
        )));
    };
    let (data, end) = data(options, source)?;
    let head = match opener.open(&name, || object.head()) {
        Ok(head) => head,
        // Without the permission to list a bucket, a server does not tell that an object is missing.
        Err(Error::Object(refusal)) if refusal.is_denied() && options.force => None,
        Err(Error::Object(refusal)) if refusal.is_denied() => {
            return Err(refused(format!(
                "whether {name} exists cannot be found out: {refusal}; to overwrite it if it does, add --force"
            )));
        }
        Err(reason) => return Err(refused(format!("{name} cannot be written: {reason}"))),
    };
    let overwrite = head.as_ref().map(|head| OverwriteTarget {
        path: name.clone(),
        name: name.rsplit('/').next().unwrap_or(&name).to_owned(),
        description: format!("an object of {}", decimal(head.bytes)),
        bytes: head.bytes,
        option: "--force",
    });
    let is_packed = name.to_ascii_lowercase().ends_with(".zst") && options.format.is_none();
    let notes =
        is_packed.then(|| format!("{name} is compressed; --format raw copies byte by byte"));
    let new = NewObject {
        name,
        object,
        data,
        is_packed,
        replaces: head.is_some() || options.force,
        verify: !options.no_verify,
        patience: Duration::from_secs(options.patience),
    };
    Ok((CopyEnd::object(end, overwrite, notes.into_iter().collect()), new))
}

impl NewObject {
    /// Begins the upload.
    ///
    /// # Errors
    /// Fails if the server cannot be reached or refuses, or if no thread can be started.
    pub(super) fn start(self, interrupt: &Interrupt) -> Result<Object, Failure> {
        let Self { name, object, data, is_packed, replaces, verify, patience } = self;
        let cannot =
            |reason: &dyn std::fmt::Display| refused(format!("{name} cannot be written: {reason}"));
        let Data { pipe, bytes } = data;
        let max = if is_packed { packed_bound(bytes) } else { bytes };
        let stop = interrupt.stop.clone();
        let upload = Upload::begin(object, max, replaces, patience, stop.clone());
        let mut upload = upload.map_err(|reason| cannot(&reason))?;
        let (aborter, named) = (upload.aborter(), name.clone());
        interrupt.before_end(move || {
            let left = "the server keeps, and bills, the parts that were sent until this is run";
            aborter().map(|command| format!("{named}: {left}: {command}"))
        });
        let work = move || {
            let sent = match is_packed {
                true => pack(pipe, bytes, &mut upload),
                false => send(pipe, bytes, &mut upload),
            };
            match sent {
                Ok(()) => upload.finish(verify),
                Err(error) => Err(upload.cancel(Error::Write(error))),
            }
        };
        let writer = thread::Builder::new().name("object".to_owned()).spawn(work);
        let writer = writer.map_err(|error| cannot(&error))?;
        Ok(Object { name, bytes, is_packed, stop, writer })
    }
}

impl Object {
    /// Waits for the end of the upload, which was verified unless the user did not want that. Returns a note.
    pub(super) fn finish(self, report: &mut Report) -> Option<String> {
        let Self { name, bytes, is_packed, stop, writer } = self;
        let internal = |_| Err(Error::Write(io::Error::other("internal error")));
        let stored = writer.join().unwrap_or_else(internal);
        let is_other = matches!(stored, Err(Error::Differs { .. }));
        if stored.is_err() && !is_other && stop.load(Ordering::Acquire) {
            report.outcome = Outcome::Interrupted;
        }
        match (stored, &report.outcome) {
            (Ok(stored), Outcome::Success) => {
                let Stored { bytes: size, parts, proof } = stored;
                report.verified =
                    if matches!(proof, Proof::Nothing | Proof::Size) { 0 } else { bytes };
                let parts = if parts == 1 { "1 part".to_owned() } else { format!("{parts} parts") };
                Some(format!("{name}: {} in {parts}; {proof}", decimal(size)))
            }
            (Ok(_), _) => None,
            (Err(error), Outcome::Success | Outcome::Failed(CopyError::Pipe(_))) => {
                report.outcome = match error {
                    Error::Differs { start, end } => {
                        let differs = if is_packed { 0..bytes } else { start..end };
                        report.outcome = Outcome::VerifyFailed(std::iter::once(differs).collect());
                        return Some(format!(
                            "{name} is there, and does not hold what was sent: remove it"
                        ));
                    }
                    Error::Answer(reason) => {
                        Outcome::Failed(CopyError::Violation { name, reason: reason.to_owned() })
                    }
                    error @ Error::Unverified(_) => {
                        Outcome::Failed(CopyError::Incomplete(format!("{name}: {error}")))
                    }
                    error => Outcome::Failed(CopyError::Incomplete(format!(
                        "{name} cannot be written: {error}"
                    ))),
                };
                None
            }
            (Err(error @ (Error::Left { .. } | Error::Unverified(_))), _) => {
                Some(format!("{name}: {error}"))
            }
            (Err(_), _) => None,
        }
    }
}

/// Returns the most bytes that a compressed disk can have: data that cannot be compressed grows by less than a hundredth.
fn packed_bound(bytes: u64) -> u64 {
    bytes.saturating_add(bytes / 100).saturating_add(1 << 20)
}

/// Sends what comes through the pipe.
///
/// # Errors
/// Fails if the data ends early, or cannot be sent.
fn send(mut data: PipeReader, bytes: u64, into: &mut dyn Write) -> io::Result<()> {
    let (mut piece, mut total) = (vec![0; PIECE], 0);
    loop {
        match data.read(&mut piece) {
            Ok(0) if total == bytes => return Ok(()),
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                into.write_all(piece.get(..count).unwrap_or_default())?;
                total += count as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Sends what comes through the pipe as one zstd frame, with the length and a checksum of the content.
fn pack(data: PipeReader, bytes: u64, into: &mut Upload) -> io::Result<()> {
    let mut packer = zstd::Encoder::new(into, LEVEL)?;
    packer.include_checksum(true)?;
    packer.set_pledged_src_size(Some(bytes))?;
    send(data, bytes, &mut packer)?;
    packer.finish().map(drop)
}
