//! Sources that are read from their first byte to their last by a thread, which computes their hash:
//! files of web servers, registries and buckets, and whatever must have an expected SHA-256.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;
use std::thread;
use std::time::Duration;

use ::copy::{CopyError, Pipe};
use fetch::{Body, Hash, Location};
use remote::uri::Locator;
use sha2::{Digest, Sha256};

use super::access::access;
use super::summary::refused;
use crate::options::copy::Copy;
use failure::Failure;

/// How standard input is named in messages.
pub(super) const PIPE: &str = "what comes from the pipe";

/// Bytes that are read at a time, and of a pipe.
const PIECE: usize = 1 << 20;

/// Maximum size of a list of hashes.
const MAX_LIST: u64 = 16 << 20;

/// Returns the hash that the source must have, if the user named one.
///
/// # Errors
/// Fails if it is no SHA-256 hash, if the list does not name the source, or if the source is a disk of
/// another machine.
pub(super) fn expected(options: &Copy) -> Result<Option<Hash>, Failure> {
    let expected = match (&options.sha256, &options.hash_file) {
        (None, None) => return Ok(None),
        (Some(text), _) => parse(text).ok_or_else(|| {
            Failure::usage(format!("{text} is no SHA-256 hash: 64 digits of 0-9a-f"))
        }),
        (None, Some(list)) => listed(list, &options.source),
    };
    match &options.source {
        Locator::Path(_) | Locator::Pipe | Locator::Web(_) => expected.map(Some),
        there => Err(Failure::usage(format!(
            "{there} is a disk: an expected hash is one of a file, a pipe or a URL"
        ))),
    }
}

fn listed(list: &Path, source: &Locator) -> Result<Hash, Failure> {
    let cannot = |error| refused(format!("{} cannot be read: {error}", list.display()));
    let mut text = String::new();
    File::open(list)
        .and_then(|file| file.take(MAX_LIST).read_to_string(&mut text))
        .map_err(cannot)?;
    let source = source.to_string();
    let path = source.split("?...").next().unwrap_or_default();
    let name = path.rsplit('/').next().unwrap_or_default();
    find(&text, name).ok_or_else(|| {
        refused(format!("{} has no SHA-256 hash of a file named {name}", list.display()))
    })
}

/// Returns the hash of a file in a list in the format of `sha256sum`, or of its option `--tag`.
fn find(list: &str, name: &str) -> Option<Hash> {
    list.lines().find_map(|line| {
        let tagged = || line.strip_prefix("SHA256 (")?.rsplit_once(") = ");
        let plain = || {
            let (hash, name) = line.split_once(' ')?;
            Some((name.strip_prefix([' ', '*']).unwrap_or(name), hash))
        };
        let (path, hash) = tagged().or_else(plain)?;
        let is_named = path.rsplit('/').next() == Some(name);
        parse(hash.trim_end()).filter(|_| is_named)
    })
}

fn parse(text: &str) -> Option<Hash> {
    let text = text.as_bytes();
    let mut hash = [0; 32];
    let digit =
        |digit: u8| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    for (byte, digits) in hash.iter_mut().zip(text.chunks(2)) {
        let &[high, low] = digits else { return None };
        *byte = digit(high)? << 4 | digit(low)?;
    }
    (text.len() == 2 * hash.len()).then_some(hash)
}

/// Requests a file of a web server, an object of a bucket, or an image of a registry, which names its hash.
///
/// # Errors
/// Fails if the server cannot be reached, does not give the file, or names another hash than the expected one.
pub(super) fn web(
    location: &Location,
    patience: Duration,
    expected: Option<Hash>,
) -> Result<Pipe, Failure> {
    let name = location.to_string();
    let body = Body::open(location, &access(location)?, patience);
    let body = body.map_err(|reason| refused(format!("{name} cannot be read: {reason}")))?;
    let bytes = body.length();
    match (body.hash(), expected) {
        (Some(hash), Some(expected)) if hash != expected => Err(refused(format!(
            "{name} has the SHA-256 {} by its manifest, and {} was expected: nothing was written",
            hexadecimal(&hash),
            hexadecimal(&expected)
        ))),
        (hash, expected) => feed(body, name, bytes, hash.or(expected)),
    }
}

/// Opens a file that must have a hash.
///
/// # Errors
/// Fails if it cannot be read, or is a disk.
pub(super) fn file(path: &Path, expected: Hash) -> Result<Pipe, Failure> {
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
pub(super) fn pipe(from: Pipe, expected: Hash) -> Result<Pipe, Failure> {
    feed(File::from(from.descriptor), PIPE.to_owned(), None, Some(expected))
}

/// Starts a thread that writes what is read into a pipe. Returns the other end, which fails at its end
/// if not all could be read, or if it does not have the expected hash.
fn feed(
    mut from: impl Read + Send + 'static,
    name: String,
    bytes: Option<u64>,
    expected: Option<Hash>,
) -> Result<Pipe, Failure> {
    let cannot = |error: io::Error| refused(format!("{name} cannot be read: {error}"));
    let (output, input) = io::pipe().map_err(cannot)?;
    // Limited for users without privileges.
    let _ = rustix::pipe::fcntl_setpipe_size(&input, PIECE);
    let work = move || hand_over(&mut from, input, expected.is_some());
    let thread = thread::Builder::new().name("source".to_owned()).spawn(work).map_err(cannot)?;
    let finish = move || {
        let done = thread.join().map_err(|_| CopyError::Internal)?;
        let incomplete = |error| CopyError::Incomplete(format!("{name} cannot be read: {error}"));
        let hash = done.map_err(incomplete)?;
        match expected.filter(|expected| *expected != hash) {
            None => Ok(()),
            Some(expected) => Err(CopyError::Unexpected(format!(
                "{name} has the SHA-256 {}, and {} was expected: the destination is not to be used",
                hexadecimal(&hash),
                hexadecimal(&expected)
            ))),
        }
    };
    Ok(Pipe {
        bytes,
        finish: Some(Box::new(finish)),
        ..Pipe::from(std::os::fd::OwnedFd::from(output))
    })
}

/// Writes what is read into a pipe, and returns its hash, which is computed only if it `is_expected`.
/// A pipe of which no more is read ends neither the hash nor with an error: what unpacks it knows
/// where its data ends.
fn hand_over(from: &mut dyn Read, into: io::PipeWriter, is_expected: bool) -> io::Result<Hash> {
    let mut into = Some(into);
    let mut hash = Sha256::new();
    let mut piece = vec![0; PIECE];
    while into.is_some() || is_expected {
        let count = match from.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let piece = piece.get(..count).unwrap_or_default();
        if is_expected {
            hash.update(piece);
        }
        match into.as_mut().map_or(Ok(()), |into| into.write_all(piece)) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => into = None,
            done => done?,
        }
    }
    Ok(hash.finalize().into())
}

fn hexadecimal(hash: &Hash) -> String {
    super::event::hexadecimal(hash)
}

#[cfg(test)]
mod test {
    use super::*;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn hashes_are_parsed() {
        let hash: Hash = Sha256::digest([]).into();
        assert_eq!(parse(EMPTY), Some(hash));
        assert_eq!(parse(&EMPTY.to_ascii_uppercase()), Some(hash));
        for other in ["", &EMPTY[1..], &EMPTY[2..], &format!("{EMPTY}00"), &EMPTY.replace('e', "g")]
        {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn lists_of_hashes_are_searched_by_name() {
        let list = format!(
            "# made today\n{}  b.raw\n{EMPTY} *images/a.raw\nSHA256 (c d.raw) = {EMPTY}\n",
            "0".repeat(64)
        );
        let hash = parse(EMPTY);
        assert_eq!(find(&list, "a.raw"), hash);
        assert_eq!(find(&list, "c d.raw"), hash);
        assert_eq!(find(&list, "b.raw"), Some([0; 32]));
        assert_eq!(find(&list, "raw"), None);
        assert_eq!(find(&list, ""), None);
    }

    #[test]
    fn hash_includes_what_the_reader_leaves() {
        static DATA: [u8; 3 << 20] = [7; 3 << 20];
        let pipe = feed(&DATA[..], "it".to_owned(), None, Some([0; 32])).unwrap();
        drop(pipe.descriptor);
        let error = pipe.finish.unwrap()().unwrap_err();
        let hash = hexadecimal(&Sha256::digest(&DATA[..]).into());
        assert!(matches!(&error, CopyError::Unexpected(text) if text.contains(&hash)), "{error}");
    }
}
