//! A signalfd for the signals that stop or redraw the program, or resume pairing.

use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGWINCH, SIGXFSZ};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT (Ctrl-C).
    Interrupt,
    /// SIGTERM: stop.
    Terminate,
    /// SIGHUP: the terminal was closed.
    HangUp,
    /// SIGWINCH: the terminal was resized.
    WindowChange,
    /// SIGCONT: the process was resumed, as by `fg` in a shell.
    Continue,
    /// SIGUSR1: resume pairing.
    ReopenPairing,
}

impl Signal {
    fn of(number: i32) -> Option<Self> {
        match number {
            SIGINT => Some(Self::Interrupt),
            SIGTERM => Some(Self::Terminate),
            SIGHUP => Some(Self::HangUp),
            SIGWINCH => Some(Self::WindowChange),
            SIGCONT => Some(Self::Continue),
            SIGUSR1 => Some(Self::ReopenPairing),
            _ => None,
        }
    }
}

/// While it exists, these signals do not have their default action, and are queued here.
#[derive(Debug)]
pub struct Signals {
    delivery: SignalDelivery<UnixStream, SignalOnly>,
}

impl Signals {
    /// Blocks the signals and opens the descriptor.
    ///
    /// # Errors
    /// Fails if the limit of descriptors is reached.
    pub fn open() -> io::Result<Self> {
        let (read, write) = UnixStream::pair()?;
        read.set_nonblocking(true)?;
        // A write beyond the file size limit fails with EFBIG, which is reported.
        let mut numbers = vec![SIGINT, SIGTERM, SIGWINCH, SIGCONT, SIGUSR1, SIGXFSZ];
        numbers.extend((!hang_up_is_ignored()).then_some(SIGHUP));
        let delivery = SignalDelivery::with_pipe(read, write, SignalOnly, numbers)?;
        Ok(Self { delivery })
    }

    /// Returns the signals since the last call, each kind once. Does not block.
    pub fn receive(&mut self) -> Vec<Signal> {
        self.delivery.pending().filter_map(Signal::of).collect()
    }
}

/// Returns whether SIGHUP is ignored, as by `nohup`.
fn hang_up_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    ignores(&status, SIGHUP)
}

/// Returns whether proc_pid_status(5) lists the signal as ignored.
fn ignores(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

impl AsFd for Signals {
    /// Becomes readable when [`Signals::receive`] has something.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.delivery.get_read().as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    #[test]
    fn signal_ignored_by_nohup_stays_ignored() {
        let status = |mask: &str| format!("Name:\tx\nSigIgn:\t{mask}\nSigCgt:\tffffffffffffffff\n");
        assert!(ignores(&status("0000000000001001"), SIGHUP));
        assert!(!ignores(&status("0000000000001000"), SIGHUP));
        assert!(!ignores("", SIGHUP));
    }

    fn readable(signals: &Signals, seconds: i64) -> bool {
        let wait = Timespec { tv_sec: seconds, tv_nsec: 0 };
        poll(&mut [PollFd::new(signals, PollFlags::IN)], Some(&wait)).unwrap() == 1
    }

    #[test]
    fn raised_signal_is_received_once() {
        let mut signals = Signals::open().unwrap();
        assert!(!readable(&signals, 0));
        signal_hook::low_level::raise(SIGWINCH).unwrap();
        signal_hook::low_level::raise(SIGTERM).unwrap();
        signal_hook::low_level::raise(SIGCONT).unwrap();
        assert!(readable(&signals, 5));
        let mut came = signals.receive();
        came.sort_by_key(|signal| *signal as u8);
        assert_eq!(came, [Signal::Terminate, Signal::WindowChange, Signal::Continue]);
        assert!(!readable(&signals, 0));
        assert!(signals.receive().is_empty());
    }
}
