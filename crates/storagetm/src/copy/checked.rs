//! Sources that are read from their first byte to their last by a thread, which computes their hash:
//! files of web servers, registries and buckets, and whatever must have an expected hash.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;
use std::thread;

use ::copy::{CopyError, Pipe};
use fetch::{Body, Location};
use remote::uri::Locator;

use super::access::{Opener, access};
use super::hash_list::{Expected, Hasher, NotFound};
use super::signature::SignedList;
use super::summary::refused;
use crate::options::copy::Copy;
use failure::Failure;

/// How standard input is named in messages.
pub(super) const PIPE: &str = "what comes from the pipe";

/// Bytes that are read at a time, and of a pipe.
const PIECE: usize = 1 << 20;

/// Returns the hash that the source must have, if the user named one.
///
/// # Errors
/// Fails if it is no SHA-256 hash, if the list does not name the source or is not signed as it must be, or if the source is a
/// disk of another machine.
pub(super) fn expected(
    options: &Copy,
    opener: &mut Opener<'_>,
) -> Result<Option<Expected>, Failure> {
    let expected = match (&options.sha256, &options.hash_file) {
        (None, None) => return Ok(None),
        (Some(text), _) => match Expected::parse(text) {
            Some(hash @ Expected::Sha256(_)) => Ok(hash),
            _ => Err(Failure::usage(format!("{text} is no SHA-256 hash: 64 digits of 0-9a-f"))),
        },
        (None, Some(list)) => listed(list, options, opener),
    };
    match &options.source {
        Locator::Path(_) | Locator::Pipe | Locator::Web(_) => expected.map(Some),
        there => Err(Failure::usage(format!(
            "{there} is a disk: an expected hash is one of a file, a pipe or a URL"
        ))),
    }
}

fn listed(list: &str, options: &Copy, opener: &mut Opener<'_>) -> Result<Expected, Failure> {
    let signed = SignedList {
        list,
        signature: options.signature.as_deref(),
        keyring: options.keyring.as_deref(),
    };
    let text = signed.read(opener)?;
    let source = options.source.to_string();
    let path = source.split("?...").next().unwrap_or_default();
    let name = path.rsplit('/').next().unwrap_or_default();
    Expected::find(&text, path).map_err(|reason| {
        refused(match reason {
            NotFound::Unlisted => {
                format!("{list} has no SHA-256 or SHA-512 hash of a file named {name}")
            }
            NotFound::Ambiguous => format!(
                "{list} has several files named {name} with different hashes, and none in the folders of {path}: give the hash with --sha256"
            ),
        })
    })
}

/// Requests a file of a web server, an object of a bucket, or an image of a registry, which names its hash.
///
/// # Errors
/// Fails if the server cannot be reached, does not give the file, or names another hash than the expected one.
pub(super) fn web(
    location: &Location,
    expected: Option<Expected>,
    opener: &mut Opener<'_>,
) -> Result<Pipe, Failure> {
    let name = location.to_string();
    let (access, patience) = (access(location)?, opener.patience);
    let body = opener.open(&name, || Body::open(location, &access, patience));
    let mut body = body.map_err(|reason| refused(format!("{name} cannot be read: {reason}")))?;
    let bytes = body.length();
    let named = body.hash().map(|hash| Expected::Sha256(hash.to_vec()));
    let expected = agreed(&name, named, expected)?;
    if expected.is_some() {
        body.let_hash_decide();
    }
    feed(body, name, bytes, expected)
}

/// Returns the hash that a file must have, by the manifest of a registry or as the user said.
///
/// # Errors
/// Fails if both are known and differ.
pub(super) fn agreed(
    name: &str,
    named: Option<Expected>,
    expected: Option<Expected>,
) -> Result<Option<Expected>, Failure> {
    match (named, expected) {
        (Some(hash), Some(expected)) if hash.kind() != expected.kind() => Err(refused(format!(
            "{name} has the {} {hash} by its manifest, and only the {} {expected} is known of it: they cannot be compared; \
             without --hash-file the image is verified by its manifest",
            hash.kind(),
            expected.kind()
        ))),
        (Some(hash), Some(expected)) if hash != expected => Err(refused(format!(
            "{name} has the SHA-256 {hash} by its manifest, and the {} {expected} was expected: nothing was written",
            expected.kind()
        ))),
        (hash, expected) => Ok(hash.or(expected)),
    }
}

/// Opens a file that must have a hash.
///
/// # Errors
/// Fails if it cannot be read, or is a disk.
pub(super) fn file(path: &Path, expected: Expected) -> Result<Pipe, Failure> {
    let name = path.display().to_string();
    let cannot = |error| refused(format!("{name} cannot be read: {error}"));
    let meta = fs::metadata(path).map_err(cannot)?;
    if !meta.is_file() {
        return Err(Failure::usage(format!(
            "{name} is no file: an expected hash is one of a file, a pipe or a URL"
        )));
    }
    let file = File::open(path).map_err(cannot)?;
    feed(file, name, Some(meta.len()), Some(expected))
}

/// Returns a pipe with the data of another one, which must have a hash.
///
/// # Errors
/// Fails if no thread can be started.
pub(super) fn pipe(from: Pipe, expected: Expected) -> Result<Pipe, Failure> {
    feed(File::from(from.descriptor), PIPE.to_owned(), None, Some(expected))
}

/// Starts a thread that writes what is read into a pipe. Returns the other end, which fails at its end
/// if not all could be read, or if it does not have the expected hash.
fn feed(
    mut from: impl Read + Send + 'static,
    name: String,
    bytes: Option<u64>,
    expected: Option<Expected>,
) -> Result<Pipe, Failure> {
    let cannot = |error: io::Error| refused(format!("{name} cannot be read: {error}"));
    let (output, input) = io::pipe().map_err(cannot)?;
    // Limited for users without privileges.
    let _ = rustix::pipe::fcntl_setpipe_size(&input, PIECE);
    let hasher = expected.as_ref().map(Expected::hasher);
    let work = move || hand_over(&mut from, input, hasher);
    let thread = thread::Builder::new().name("source".to_owned()).spawn(work).map_err(cannot)?;
    let finish = move || {
        let done = thread.join().map_err(|_| CopyError::Internal)?;
        let incomplete = |error| CopyError::Incomplete(format!("{name} cannot be read: {error}"));
        match (done.map_err(incomplete)?, expected) {
            (Some(hash), Some(expected)) if hash != expected => {
                Err(CopyError::Unexpected(format!(
                    "{name} has the {} {hash}, and {expected} was expected: the destination is not to be used",
                    expected.kind()
                )))
            }
            _ => Ok(()),
        }
    };
    Ok(Pipe {
        bytes,
        finish: Some(Box::new(finish)),
        ..Pipe::from(std::os::fd::OwnedFd::from(output))
    })
}

/// Writes what is read into a pipe, and returns its hash by `hasher`, if there is one.
/// A pipe of which no more is read ends neither the hash nor with an error: what unpacks it knows
/// where its data ends.
fn hand_over(
    from: &mut dyn Read,
    into: io::PipeWriter,
    mut hasher: Option<Hasher>,
) -> io::Result<Option<Expected>> {
    let mut into = Some(into);
    let mut piece = vec![0; PIECE];
    while into.is_some() || hasher.is_some() {
        let count = match from.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let piece = piece.get(..count).unwrap_or_default();
        if let Some(hasher) = &mut hasher {
            hasher.update(piece);
        }
        match into.as_mut().map_or(Ok(()), |into| into.write_all(piece)) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => into = None,
            done => done?,
        }
    }
    Ok(hasher.map(Hasher::finish))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn hash_includes_what_the_reader_leaves() {
        static DATA: [u8; 3 << 20] = [7; 3 << 20];
        for digits in ["0".repeat(64), "0".repeat(128)] {
            let expected = Expected::parse(&digits).unwrap();
            let mut hasher = expected.hasher();
            hasher.update(&DATA);
            let hash = hasher.finish().to_string();
            let pipe = feed(&DATA[..], "it".to_owned(), None, Some(expected)).unwrap();
            drop(pipe.descriptor);
            let error = pipe.finish.unwrap()().unwrap_err();
            assert!(
                matches!(&error, CopyError::Unexpected(text) if text.contains(&hash)),
                "{error}"
            );
        }
    }
}
