//! Non-blocking writer for standard output: a stalled reader must not block the event loop.

use std::collections::VecDeque;
use std::io::{self, Stdout};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// A pipe that is writable accepts this many bytes without blocking (`PIPE_BUF`).
const CHUNK: usize = 4096;
/// Maximum number of pending bytes; more is dropped.
const MAX_PENDING: usize = 1 << 20;
/// Pause between attempts if a writable descriptor returns `EAGAIN`.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// A descriptor, and the bytes pending for it.
#[derive(Debug)]
pub(crate) struct NonBlockingWriter<F = Stdout> {
    output: F,
    pending: VecDeque<u8>,
    /// Lines dropped since the last accepted one.
    lost: u64,
    closed: bool,
}

impl NonBlockingWriter {
    pub(crate) fn stdout() -> Self {
        Self::new(io::stdout())
    }
}

impl<F: AsFd> NonBlockingWriter<F> {
    pub(crate) fn new(output: F) -> Self {
        Self { output, pending: VecDeque::new(), lost: 0, closed: false }
    }

    /// Queues the text, and writes what can be written.
    pub(crate) fn push(&mut self, text: &str) {
        self.queue(text);
        self.write();
    }

    /// Queues a line. If lines were dropped before it, queues first the line that `lost_line` returns for
    /// their number.
    pub(crate) fn push_line(&mut self, line: &str, lost_line: impl FnOnce(u64) -> String) {
        let before = if self.lost > 0 { lost_line(self.lost) } else { String::new() };
        self.lost = if self.queue(&(before + line)) { 0 } else { self.lost.saturating_add(1) };
        self.write();
    }

    /// Returns whether the text was accepted.
    fn queue(&mut self, text: &str) -> bool {
        let has_room = !self.closed && self.pending.len() + text.len() <= MAX_PENDING;
        if has_room {
            self.pending.extend(text.as_bytes());
        }
        has_room
    }

    /// Writes pending bytes without blocking.
    pub(crate) fn write(&mut self) {
        while !self.pending.is_empty() && self.is_writable(Duration::ZERO) && self.write_chunk() {}
    }

    /// Writes pending bytes, at most for `timeout`.
    pub(crate) fn drain(&mut self, timeout: Duration) {
        let end = Instant::now() + timeout;
        while !self.pending.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            if !self.is_writable(left) {
                return;
            }
            if !self.write_chunk() {
                if left.is_zero() {
                    return;
                }
                std::thread::sleep(left.min(RETRY_INTERVAL));
            }
        }
    }

    pub(crate) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Returns whether the reader had closed its end at the last write or
    /// [`NonBlockingWriter::check_closed`].
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Checks whether the reader has closed its end. Never blocks.
    pub(crate) fn check_closed(&mut self) {
        let mut fds = [PollFd::new(&self.output, PollFlags::empty())];
        let ready = poll(&mut fds, Some(&Timespec::default()));
        if ready.is_ok_and(|ready| ready > 0) {
            self.close();
        }
    }

    /// Returns whether progress was made. A terminal may be writable and still not accept a
    /// newline, which takes two characters.
    fn write_chunk(&mut self) -> bool {
        let (front, _) = self.pending.as_slices();
        let chunk = front.get(..CHUNK).unwrap_or(front);
        match rustix::io::write(&self.output, chunk) {
            Ok(written) => drop(self.pending.drain(..written)),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return false,
            Err(_) => self.close(),
        }
        true
    }

    fn close(&mut self) {
        self.closed = true;
        self.pending.clear();
    }

    fn is_writable(&self, timeout: Duration) -> bool {
        let mut fds = [PollFd::new(&self.output, PollFlags::OUT)];
        let timeout = Timespec::try_from(timeout).ok();
        poll(&mut fds, timeout.as_ref()).is_ok_and(|ready| ready > 0)
    }
}

impl<F: AsFd> AsFd for NonBlockingWriter<F> {
    /// Writable when [`NonBlockingWriter::write`] makes progress.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.output.as_fd()
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use std::io::Read;

    #[test]
    fn stalled_reader_does_not_block() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut writer = NonBlockingWriter::new(writer);
        let line = format!("{}\n", "x".repeat(9_999));
        for _ in 0..200 {
            writer.push(&line);
        }
        assert!(writer.has_pending());
        assert!(writer.pending.len() <= MAX_PENDING);
        let begun = Instant::now();
        writer.drain(Duration::from_millis(20));
        assert!(begun.elapsed() < Duration::from_secs(5));
        let mut some = [0; 65_536];
        assert!(reader.read(&mut some).unwrap() >= CHUNK);
        let before = writer.pending.len();
        writer.write();
        assert!(writer.pending.len() < before);
    }

    #[test]
    fn dropped_lines_are_counted_by_the_next_one() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut writer = NonBlockingWriter::new(writer);
        let line = format!("{}\n", "x".repeat(9_999));
        let lost_line = |count| format!("{count} lost\n");
        let pushed = 200;
        (0..pushed).for_each(|_| writer.push_line(&line, lost_line));
        let mut read = vec![0; 65_536];
        let mut text = String::new();
        for lines in [&[][..], &["last\n", "end\n"]] {
            lines.iter().for_each(|line| writer.push_line(line, lost_line));
            while writer.has_pending() {
                let got = reader.read(&mut read).unwrap();
                text += std::str::from_utf8(&read[..got]).unwrap();
                writer.write();
            }
        }
        drop(writer);
        reader.read_to_string(&mut text).unwrap();
        let kept = text.lines().filter(|line| line.starts_with('x')).count();
        assert!(kept < pushed, "{kept}");
        let end = format!("x\n{} lost\nlast\nend\n", pushed - kept);
        assert!(text.ends_with(&end), "{}", &text[text.len() - 40..]);
    }

    #[test]
    fn spurious_writability_does_not_loop() {
        use rustix::event::{EventfdFlags, eventfd};
        // An eventfd is writable as long as 1 can be added; the eight bytes below are a larger
        // number.
        let counter = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        rustix::io::write(&counter, &(u64::MAX - 9).to_ne_bytes()).unwrap();
        let mut writer = NonBlockingWriter::new(counter);
        writer.push("12345678");
        writer.drain(Duration::from_millis(30));
        assert!(writer.has_pending() && !writer.is_closed());
    }

    #[test]
    fn closed_reader_is_detected() {
        let (reader, writer) = io::pipe().unwrap();
        let mut writer = NonBlockingWriter::new(writer);
        writer.push("first\n");
        assert!(!writer.is_closed());
        drop(reader);
        writer.push("second\n");
        assert!(writer.is_closed() && !writer.has_pending());
    }

    #[test]
    fn closed_reader_is_detected_without_writing() {
        let (pipe, pipe_writer) = io::pipe().unwrap();
        let (socket, socket_writer) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut writers = [
            NonBlockingWriter::new(pipe_writer.as_fd()),
            NonBlockingWriter::new(socket_writer.as_fd()),
        ];
        for writer in &mut writers {
            writer.check_closed();
            assert!(!writer.is_closed());
        }
        drop((pipe, socket));
        for writer in &mut writers {
            writer.check_closed();
            assert!(writer.is_closed());
        }
    }
}
