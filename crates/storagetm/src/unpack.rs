//! Compressed and packaged files: detection, and the process without privileges that unpacks them
//! (`storagetm unpack`). Its descriptors are the file, a pipe for the content, and a pipe for an error
//! message.

mod child;

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use ::copy::{CopyError, Pipe};
use filesystem::Container;
use filesystem::container::{HEAD, TAIL};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

pub(crate) use child::work;
use ipc::spawn::command;

/// Bytes read from the pipe before the copy: enough for a partition table with blocks of 4096
/// bytes.
pub(crate) const HEAD_BYTES: usize = 32 << 10;
/// Bytes that a pipe holds.
const PIPE_BYTES: usize = 1 << 20;
/// Maximum length of the error message.
const MAX_ERROR: u64 = 4096;
/// Timeout for the first bytes from a file.
pub(crate) const FIRST_BYTES_TIMEOUT: Duration = Duration::from_secs(120);
/// An unknown length.
pub(super) const UNKNOWN_LENGTH: u64 = u64::MAX;

/// Detects the format of a file by its first and last bytes.
///
/// # Errors
/// Fails if the file cannot be read.
pub(crate) fn detect(file: &File) -> io::Result<Option<Container>> {
    let bytes = file.metadata()?.len();
    let part = |offset: u64, max: usize| {
        let len = usize::try_from(bytes.saturating_sub(offset)).unwrap_or(max).min(max);
        let mut part = vec![0; len];
        file.read_exact_at(&mut part, offset).map(|()| part)
    };
    let head = part(0, HEAD)?;
    let tail = part(bytes.saturating_sub(TAIL as u64), TAIL)?;
    Ok(Container::detect(&head, &tail))
}

/// Unpacks a pipe whose head was read already. A thread writes head and rest to the child.
///
/// # Errors
/// As [`unpack`].
pub(crate) fn unpack_pipe(container: Container, pipe: Pipe, name: &str) -> Result<Pipe, String> {
    let unpack_error = |error: io::Error| format!("{name} cannot be unpacked: {error}");
    let (output, input) = io::pipe().map_err(unpack_error)?;
    enlarge(&input);
    let Pipe { descriptor, head, finish: input_finish, .. } = pipe;
    let feed = move || {
        let (mut from, mut input) = (File::from(descriptor), input);
        // The child reports a truncated stream itself.
        let _ = input.write_all(&head).and_then(|()| io::copy(&mut from, &mut input));
    };
    thread::Builder::new().name("feed".to_owned()).spawn(feed).map_err(unpack_error)?;
    // No timeout: the program that writes the pipe may be slow.
    let mut pipe = unpack(container, output.into(), name, None)?;
    let finish = pipe.finish.take();
    pipe.finish = Some(Box::new(move || {
        // That the input is not what was expected explains that it cannot be unpacked.
        let unpacked = finish.map_or(Ok(()), |finish| finish());
        input_finish.map_or(Ok(()), |finish| finish()).and(unpacked)
    }));
    Ok(pipe)
}

/// Unpacks a file. The returned pipe reports at its end whether the content was complete.
///
/// # Errors
/// Fails if the file is damaged at its beginning, or cannot be unpacked.
pub(crate) fn unpack(
    container: Container,
    input: OwnedFd,
    name: &str,
    timeout: Option<Duration>,
) -> Result<Pipe, String> {
    let unpack_error = |error: io::Error| format!("{name} cannot be unpacked: {error}");
    let mut unpacker = Unpacker::spawn(container, input, name).map_err(unpack_error)?;
    let mut output =
        unpacker.output.take().ok_or_else(|| unpack_error(ErrorKind::NotFound.into()))?;
    enlarge(&output);
    let mut length = Vec::new();
    read_up_to(&mut output, 8, &mut length, timeout).map_err(unpack_error)?;
    let Some(length) = length.first_chunk() else {
        unpacker.finish()?;
        return Err(unpacker.sentence(""));
    };
    let bytes = Some(u64::from_le_bytes(*length)).filter(|bytes| *bytes != UNKNOWN_LENGTH);
    let mut head = Vec::new();
    read_up_to(&mut output, HEAD_BYTES, &mut head, timeout).map_err(unpack_error)?;
    if head.len() < HEAD_BYTES {
        // Already complete: report damage before anything is written.
        unpacker.finish()?;
    }
    let finish = Box::new(move || unpacker.finish().map_err(CopyError::Incomplete));
    Ok(Pipe { descriptor: output.into(), head, bytes, finish: Some(finish) })
}

/// Gives a pipe more room, so that both of its ends wait less often. Limited for users without privileges.
fn enlarge(pipe: impl AsFd) {
    let _ = rustix::pipe::fcntl_setpipe_size(pipe, PIPE_BYTES);
}

/// Reads `max` bytes, or up to the end of the stream; waits at most `timeout` for each part.
///
/// # Errors
/// Fails on a read error or timeout.
pub(crate) fn read_up_to(
    from: &mut File,
    max: usize,
    into: &mut Vec<u8>,
    timeout: Option<Duration>,
) -> io::Result<()> {
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    while into.len() < max {
        let mut fds = [PollFd::from_borrowed_fd(from.as_fd(), PollFlags::IN)];
        if rustix::io::retry_on_intr(|| poll(&mut fds, timeout.as_ref()))? == 0 {
            return Err(ErrorKind::TimedOut.into());
        }
        let mut piece = vec![0; max - into.len()];
        match from.read(&mut piece)? {
            0 => return Ok(()),
            len => into.extend_from_slice(piece.get(..len).unwrap_or_default()),
        }
    }
    Ok(())
}

/// The child process; killed when dropped.
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

    /// Waits for the child, and returns its result.
    fn finish(&mut self) -> Result<(), String> {
        if let Some(ended) = &self.ended {
            return ended.clone();
        }
        let mut text = Vec::new();
        if let Some(stderr) = self.child.stderr.take() {
            let _ = stderr.take(MAX_ERROR).read_to_end(&mut text);
        }
        let success = self.child.wait().is_ok_and(|status| status.success());
        let reason = String::from_utf8_lossy(&text);
        let ended = if success { Ok(()) } else { Err(self.sentence(&reason)) };
        self.ended = Some(ended.clone());
        ended
    }

    fn sentence(&self, reason: &str) -> String {
        let plain: String = reason.chars().filter(|c| !c.is_control()).collect();
        let reason =
            if plain.is_empty() { "the unpacking process ended without a reason" } else { &plain };
        format!("{} cannot be unpacked as {}: {reason}", self.name, self.container)
    }
}

impl Drop for Unpacker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
