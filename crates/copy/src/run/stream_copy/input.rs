//! The pieces of a pipe, which threads read in turn.

use std::fs::File;
use std::io::{self, Cursor, Read as _};
use std::os::fd::AsFd;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

use export::{Account, Buffer, Pool};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{PIECE, WAIT, broken, wait_for_rate_limit};
use crate::rate::RateLimit;
use crate::{CopyError, Outcome};

/// A piece of the pipe: [`PIECE`] bytes, or fewer at its end.
pub(super) struct Piece {
    pub(super) offset: u64,
    pub(super) buffer: Buffer,
    /// Whether nothing follows.
    pub(super) is_last: bool,
}

/// A pipe whose pieces are read by several threads, one at a time.
pub(super) struct Input {
    turn: Mutex<Turn>,
    returned: Condvar,
}

struct Turn {
    /// `None` while a thread reads.
    reader: Option<Reader>,
    /// Whether there is nothing to read any more.
    ended: bool,
}

/// The right to read; given back when it is dropped.
struct Reading<'a> {
    input: &'a Input,
    reader: Option<Reader>,
    ended: bool,
}

/// Called while a thread waits, for its connection to the disk.
pub(super) type KeepAlive<'a> = &'a mut dyn FnMut() -> Result<(), Outcome>;

impl Input {
    /// A pipe with these bytes before the rest.
    pub(super) fn new(pipe: File, head: Vec<u8>, limit: RateLimit) -> Self {
        // Limited for users without privileges.
        let _ = rustix::pipe::fcntl_setpipe_size(&pipe, PIECE);
        let reader = Reader { head: Cursor::new(head), pipe, at: 0, limit };
        let turn = Mutex::new(Turn { reader: Some(reader), ended: false });
        Self { turn, returned: Condvar::new() }
    }

    /// Reads the next piece, when no other thread reads. Returns `None` at the end, also after an error
    /// in another thread.
    pub(super) fn next(
        &self,
        account: &Account,
        keep_alive: KeepAlive<'_>,
    ) -> Result<Option<Piece>, Outcome> {
        let Some(mut reading) = self.take_turn(keep_alive)? else { return Ok(None) };
        let Some(reader) = &mut reading.reader else { return Ok(None) };
        let piece = reader.next(account, keep_alive)?;
        reading.ended = piece.as_ref().is_none_or(|piece| piece.is_last);
        Ok(piece)
    }

    /// Makes [`Input::next`] return `None` from now on.
    pub(super) fn end(&self) {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
        self.returned.notify_all();
    }

    fn take_turn(&self, keep_alive: KeepAlive<'_>) -> Result<Option<Reading<'_>>, Outcome> {
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if turn.ended {
                return Ok(None);
            }
            if let Some(reader) = turn.reader.take() {
                // Until it is known that more can be read.
                return Ok(Some(Reading { input: self, reader: Some(reader), ended: true }));
            }
            let waited = self.returned.wait_timeout(turn, WAIT);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
            keep_alive()?;
            turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let mut turn = self.input.turn.lock().unwrap_or_else(PoisonError::into_inner);
        turn.reader = self.reader.take();
        turn.ended |= self.ended;
        self.input.returned.notify_all();
    }
}

/// Reads a pipe.
struct Reader {
    head: Cursor<Vec<u8>>,
    pipe: File,
    /// Number of bytes that were returned.
    at: u64,
    limit: RateLimit,
}

/// Bytes that are read to see whether anything follows a piece.
const AHEAD: usize = 4096;

impl Reader {
    /// Reads the next piece; returns `None` if the pipe is empty.
    fn next(
        &mut self,
        account: &Account,
        keep_alive: KeepAlive<'_>,
    ) -> Result<Option<Piece>, Outcome> {
        wait_for_rate_limit(&self.limit, keep_alive)?;
        let mut buffer = memory(account, PIECE)?;
        let mut got = 0;
        while got < PIECE {
            let rest = buffer.bytes_mut().get_mut(got..).unwrap_or_default();
            match self.read(rest, keep_alive)? {
                0 => break,
                more => got += more,
            }
        }
        let buffer = match got {
            0 => return Ok(None),
            PIECE => buffer,
            _ => resized(buffer, account, got)?,
        };
        let is_last = got < PIECE || !self.has_more(keep_alive)?;
        self.limit.charge(got as u64, Instant::now());
        let offset = self.at;
        self.at += got as u64;
        Ok(Some(Piece { offset, buffer, is_last }))
    }

    /// Waits for the byte after a piece. The last piece is written at the end.
    fn has_more(&mut self, keep_alive: KeepAlive<'_>) -> Result<bool, Outcome> {
        let unread = |head: &Cursor<Vec<u8>>| head.position() < head.get_ref().len() as u64;
        if !unread(&self.head) {
            let mut ahead = vec![0; AHEAD];
            let got = self.read(&mut ahead, keep_alive)?;
            ahead.truncate(got);
            self.head = Cursor::new(ahead);
        }
        Ok(unread(&self.head))
    }

    /// Reads some bytes, waiting for them; returns 0 at the end.
    fn read(&mut self, bytes: &mut [u8], keep_alive: KeepAlive<'_>) -> Result<usize, Outcome> {
        let got = self.head.read(bytes).unwrap_or(0);
        if got > 0 {
            return Ok(got);
        }
        loop {
            wait_for_pipe(&self.pipe, keep_alive)?;
            match self.pipe.read(bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other.map_err(broken),
            }
        }
    }
}

/// Waits until the pipe is readable, calling `keep_alive` meanwhile.
fn wait_for_pipe(pipe: &File, keep_alive: KeepAlive<'_>) -> Result<(), Outcome> {
    let tick = Timespec::try_from(WAIT).unwrap_or_default();
    loop {
        keep_alive()?;
        let mut fds = [PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN)];
        if poll(&mut fds, Some(&tick)).is_ok_and(|ready| ready > 0) {
            return Ok(());
        }
    }
}

/// Memory for `len` bytes.
pub(super) fn memory(account: &Account, len: usize) -> Result<Buffer, Outcome> {
    account.take(len.min(Pool::MAX_BUFFER)).ok_or(Outcome::Failed(CopyError::Internal))
}

/// The first `len` bytes of the buffer, followed by zeros if it is shorter.
pub(super) fn resized(buffer: Buffer, account: &Account, len: usize) -> Result<Buffer, Outcome> {
    if buffer.len() == len {
        return Ok(buffer);
    }
    let mut other = memory(account, len)?;
    let (head, tail) = other.bytes_mut().split_at_mut(buffer.len().min(len));
    head.copy_from_slice(buffer.bytes().get(..head.len()).unwrap_or_default());
    tail.fill(0);
    Ok(other)
}
