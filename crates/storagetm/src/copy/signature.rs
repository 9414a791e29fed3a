//! Signatures of lists of hashes: by OpenPGP, detached or inline, verified by `gpgv`; or by minisign. What is used is exactly
//! what was verified: the list is read once, and for an inline signature `gpgv` returns the text that is signed.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use fetch::{Body, Location};
use rustix::fs::MemfdFlags;

use super::access::{Opener, access};
use super::summary::refused;
use failure::Failure;

/// The largest list of hashes, and the largest signature, in bytes.
const MAX_LIST: u64 = 16 << 20;
const MAX_SIGNATURE: u64 = 1 << 20;

/// The first lines of an inline signature (RFC 9580 §7) and of one of minisign.
const INLINE: &[u8] = b"-----BEGIN PGP SIGNED MESSAGE-----";
const MINISIGN: &[u8] = b"untrusted comment:";

/// The lines by which `gpgv` reports a signature: that one is good and valid, and that one is not.
const GOOD: [&str; 2] = ["GOODSIG", "VALIDSIG"];
const BAD: [&str; 6] = ["BADSIG", "ERRSIG", "EXPSIG", "EXPKEYSIG", "REVKEYSIG", "NODATA"];

/// A list of hashes, its signature, and the keys that are trusted, as the user named them.
pub(super) struct SignedList<'a> {
    /// A file or a URL.
    pub(super) list: &'a str,
    /// A file or a URL.
    pub(super) signature: Option<&'a str>,
    pub(super) keyring: Option<&'a Path>,
}

impl SignedList<'_> {
    /// Returns the text of the list, whose signature is valid if the user named a signature or keys.
    ///
    /// # Errors
    /// Fails if a file cannot be read, if the signature is not valid, or if the program that verifies it is not installed.
    pub(super) fn read(&self, opener: &mut Opener<'_>) -> Result<String, Failure> {
        let bytes = read(self.list, MAX_LIST, opener)?;
        let bytes = match self.keyring {
            Some(keyring) => self.verified(bytes, keyring, opener)?,
            None => bytes,
        };
        String::from_utf8(bytes).map_err(|_| refused(format!("{} is not a text", self.list)))
    }

    fn verified(
        &self,
        bytes: Vec<u8>,
        keyring: &Path,
        opener: &mut Opener<'_>,
    ) -> Result<Vec<u8>, Failure> {
        let list = self.list;
        let cannot =
            |path: &Path, error| refused(format!("{} cannot be read: {error}", path.display()));
        // gpgv looks for a name without a directory elsewhere.
        let keyring = &keyring.canonicalize().map_err(|error| cannot(keyring, error))?;
        let Some(signature) = self.signature else {
            if !bytes.starts_with(INLINE) {
                return Err(Failure::usage(format!(
                    "{list} has no signature in it: name the file that has it with --signature"
                )));
            }
            let output = gpgv(keyring, &["--output", "-"], &bytes, list)?;
            return Ok(output.stdout);
        };
        let content = read(signature, MAX_SIGNATURE, opener)?;
        let file = in_memory(&content).map_err(|error| cannot(Path::new(signature), error))?;
        // The child has the descriptor, too.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        if content.starts_with(MINISIGN) {
            minisign(keyring, &path, &bytes, list)?;
        } else {
            gpgv(keyring, &[&path, "-"], &bytes, list)?;
        }
        Ok(bytes)
    }
}

/// Runs `gpgv` on data, which must have a valid signature of a key of the keyring, and no other one.
fn gpgv(keyring: &Path, args: &[&str], data: &[u8], name: &str) -> Result<Output, Failure> {
    let mut command = Command::new("gpgv");
    // Status lines begin with a word that its messages do not have.
    command.args(["--status-fd", "2", "--keyring"]).arg(keyring).args(args);
    let output = run(command, data, "gpgv", "gpgv")?;
    let messages = String::from_utf8_lossy(&output.stderr).into_owned();
    let status = |words: &[&str]| {
        let lines = messages.lines().filter_map(|line| line.strip_prefix("[GNUPG:] "));
        let firsts: Vec<&str> = lines.filter_map(|line| line.split(' ').next()).collect();
        words.iter().filter(|word| firsts.contains(word)).count()
    };
    if output.status.success() && status(&GOOD) == GOOD.len() && status(&BAD) == 0 {
        return Ok(output);
    }
    let reason = messages.lines().rfind(|line| line.starts_with("gpgv: "));
    Err(invalid(name, reason.unwrap_or("gpgv: it is not valid")))
}

/// Runs `minisign` on data, of which a file has the signature.
fn minisign(key: &Path, signature: &str, data: &[u8], name: &str) -> Result<(), Failure> {
    let mut command = Command::new("minisign");
    command.args(["-V", "-q", "-m", "/dev/stdin", "-x", signature, "-p"]).arg(key);
    let output = run(command, data, "minisign", "minisign")?;
    if output.status.success() {
        return Ok(());
    }
    let messages = String::from_utf8_lossy(&output.stderr).into_owned();
    let reason = messages.lines().rfind(|line| !line.trim().is_empty());
    Err(invalid(name, reason.unwrap_or("minisign: it is not valid")))
}

fn run(mut command: Command, data: &[u8], program: &str, package: &str) -> Result<Output, Failure> {
    let cannot = |error| refused(format!("{program} cannot be run: {error}"));
    let input = in_memory(data).map_err(cannot)?;
    command.stdin(Stdio::from(input)).env("LC_ALL", "C");
    command.output().map_err(|error| match error.kind() {
        ErrorKind::NotFound => refused(format!(
            "the signature cannot be verified without {program}: install the package {package}"
        )),
        _ => cannot(error),
    })
}

fn invalid(name: &str, reason: &str) -> Failure {
    let reason: String = reason.chars().filter(|c| !c.is_control()).collect();
    refused(format!("the signature of {name} is not valid ({reason}): nothing was written"))
}

/// Returns a file in memory, at its start; it is inherited by child processes.
fn in_memory(bytes: &[u8]) -> std::io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create("storagetm", MemfdFlags::empty())?);
    file.write_all(bytes)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

/// Reads a file, or a file of a web server, a registry or a bucket.
fn read(place: &str, max: u64, opener: &mut Opener<'_>) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let is_url = Location::SCHEMES
        .iter()
        .any(|scheme| place.strip_prefix(scheme).is_some_and(|rest| rest.starts_with("://")));
    let (name, count) = if is_url {
        let location: Location = place.parse().map_err(Failure::usage)?;
        let name = location.to_string();
        let (access, patience) = (access(&location)?, opener.patience);
        let body = opener.open(&name, || Body::open(&location, &access, patience));
        let body = body.map_err(|reason| refused(format!("{name} cannot be read: {reason}")))?;
        (name, body.take(max + 1).read_to_end(&mut bytes))
    } else {
        let file = File::open(place);
        (place.to_owned(), file.and_then(|file| file.take(max + 1).read_to_end(&mut bytes)))
    };
    count.map_err(|error| refused(format!("{name} cannot be read: {error}")))?;
    match bytes.len() as u64 > max {
        true => Err(refused(format!("{name} is longer than {max} bytes"))),
        false => Ok(bytes),
    }
}
