//! Files that are packed: what they are packed in, and the process without rights that unpacks them (`storagetm unpack`). It
//! has the file, a pipe for what is in it, and a pipe for a sentence.

mod child;

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use ::copy::Pipe;
use filesystem::Container;
use filesystem::container::{HEAD, TAIL};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

pub(crate) use child::work;
use ipc::spawn::command;

/// Bytes of the disk that are taken out of the pipe before the copy: a partition table for blocks of 4096 bytes is in them.
pub(crate) const HEAD_BYTES: usize = 32 << 10;
/// Bytes of the longest sentence.
const MAX_ERROR: u64 = 4096;
/// How long the process may take for its first bytes out of a file.
pub(crate) const FIRST_BYTES_TIMEOUT: Duration = Duration::from_secs(120);
/// Stands for a length that is not known.
pub(super) const UNKNOWN_LENGTH: u64 = u64::MAX;

/// What a file is packed in, by its start and its end.
///
/// # Errors
/// It cannot be read.
pub(crate) fn detect(file: &File) -> io::Result<Option<Container>> {
    let bytes = file.metadata()?.len();
    let part = |offset: u64, most: usize| {
        let len = usize::try_from(bytes.saturating_sub(offset)).unwrap_or(most).min(most);
        let mut part = vec![0; len];
        file.read_exact_at(&mut part, offset).map(|()| part)
    };
    let head = part(0, HEAD)?;
    let tail = part(bytes.saturating_sub(TAIL as u64), TAIL)?;
    Ok(Container::detect(&head, &tail))
}

/// What is in a pipe, of which its beginning was read; the rest is read by a thread.
///
/// # Errors
/// As [`unpack`].
pub(crate) fn unpack_pipe(container: Container, pipe: Pipe) -> Result<Pipe, String> {
    let cannot = |error: io::Error| format!("the pipe cannot be unpacked: {error}");
    let (output, input) = io::pipe().map_err(cannot)?;
    let Pipe { descriptor, head, .. } = pipe;
    let feed = move || {
        let (mut from, mut input) = (File::from(descriptor), input);
        // The unpacking process reports a closed pipe itself.
        let _ = input.write_all(&head).and_then(|()| io::copy(&mut from, &mut input));
    };
    thread::Builder::new().name("feed".to_owned()).spawn(feed).map_err(cannot)?;
    // The program before it may take its time.
    unpack(container, output.into(), "what comes from the pipe", None)
}

/// What is in a packed file, as a pipe that says at its end whether it was all.
///
/// # Errors
/// A sentence: it is damaged at its very beginning, or cannot be unpacked here.
pub(crate) fn unpack(
    container: Container,
    input: OwnedFd,
    name: &str,
    timeout: Option<Duration>,
) -> Result<Pipe, String> {
    let cannot = |error: io::Error| format!("{name} cannot be unpacked: {error}");
    let mut unpacker = Unpacker::spawn(container, input, name).map_err(cannot)?;
    let mut output = unpacker.output.take().ok_or_else(|| cannot(ErrorKind::NotFound.into()))?;
    let mut length = Vec::new();
    take(&mut output, 8, &mut length, timeout).map_err(cannot)?;
    let Some(length) = length.first_chunk() else {
        unpacker.finish()?;
        return Err(unpacker.sentence(""));
    };
    let bytes = Some(u64::from_le_bytes(*length)).filter(|bytes| *bytes != UNKNOWN_LENGTH);
    let mut head = Vec::new();
    take(&mut output, HEAD_BYTES, &mut head, timeout).map_err(cannot)?;
    if head.len() < HEAD_BYTES {
        // It is over already: what is wrong with it is known before anything is written.
        unpacker.finish()?;
    }
    let finish = Box::new(move || unpacker.finish());
    Ok(Pipe { descriptor: output.into(), head, bytes, finish: Some(finish) })
}

/// Reads so many bytes, or what there is until the end; waits at most `timeout` for each part, or as long as it takes.
///
/// # Errors
/// It cannot be read, or took too long.
pub(crate) fn take(
    from: &mut File,
    most: usize,
    into: &mut Vec<u8>,
    timeout: Option<Duration>,
) -> io::Result<()> {
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    while into.len() < most {
        let mut fds = [PollFd::from_borrowed_fd(from.as_fd(), PollFlags::IN)];
        if rustix::io::retry_on_intr(|| poll(&mut fds, timeout.as_ref()))? == 0 {
            return Err(ErrorKind::TimedOut.into());
        }
        let mut piece = vec![0; most - into.len()];
        match from.read(&mut piece)? {
            0 => return Ok(()),
            len => into.extend_from_slice(piece.get(..len).unwrap_or_default()),
        }
    }
    Ok(())
}

/// The process; it ends with this.
struct Unpacker {
    child: Child,
    name: String,
    container: Container,
    output: Option<File>,
    ended: Option<Result<(), String>>,
}

impl Unpacker {
    fn spawn(container: Container, input: OwnedFd, name: &str) -> io::Result<Self> {
        let mut child = command(&["unpack", container.name()], input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().map(|output| File::from(OwnedFd::from(output)));
        Ok(Self { child, name: name.to_owned(), container, output, ended: None })
    }

    /// Waits for its end, after which its word counts.
    fn finish(&mut self) -> Result<(), String> {
        if let Some(ended) = &self.ended {
            return ended.clone();
        }
        let mut text = Vec::new();
        if let Some(stderr) = self.child.stderr.take() {
            let _ = stderr.take(MAX_ERROR).read_to_end(&mut text);
        }
        let success = self.child.wait().is_ok_and(|status| status.success());
        let why = String::from_utf8_lossy(&text);
        let ended = if success { Ok(()) } else { Err(self.sentence(&why)) };
        self.ended = Some(ended.clone());
        ended
    }

    fn sentence(&self, why: &str) -> String {
        let plain: String = why.chars().filter(|it| !it.is_control()).collect();
        let why = if plain.is_empty() { "the process that does it gave up" } else { &plain };
        format!("{} cannot be unpacked as {}: {why}", self.name, self.container)
    }
}

impl Drop for Unpacker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
