//! The signals that end or redraw the program, or have it let pairing go on, as a descriptor that can be polled.
//!
//! Does not know what is done about them.

use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGWINCH, SIGXFSZ};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

/// A signal that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT: Ctrl-C.
    Interrupt,
    /// SIGTERM: the service manager asks to stop.
    Terminate,
    /// SIGHUP: the terminal is gone.
    HangUp,
    /// SIGWINCH: the terminal's window has another size.
    WindowChange,
    /// SIGCONT: the process goes on after it was stopped, as by `fg` in a shell.
    Continue,
    /// SIGUSR1: pairing is to go on.
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

/// From its opening on the process no longer dies of these signals; they wait here.
#[derive(Debug)]
pub struct Signals {
    delivery: SignalDelivery<UnixStream, SignalOnly>,
}

impl Signals {
    /// Starts catching. Errors: no descriptors left.
    pub fn open() -> io::Result<Self> {
        let (read, write) = UnixStream::pair()?;
        read.set_nonblocking(true)?;
        // A write beyond the limit for files fails with EFBIG and is reported as that.
        let mut numbers = vec![SIGINT, SIGTERM, SIGWINCH, SIGCONT, SIGUSR1, SIGXFSZ];
        numbers.extend((!hang_up_is_ignored()).then_some(SIGHUP));
        let delivery = SignalDelivery::with_pipe(read, write, SignalOnly, numbers)?;
        Ok(Self { delivery })
    }

    /// The signals that came since the last call, each kind once; never waits.
    pub fn receive(&mut self) -> Vec<Signal> {
        self.delivery.pending().filter_map(Signal::of).collect()
    }
}

/// Whether the program was started to outlive its terminal, as by `nohup`.
fn hang_up_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    ignores(&status, SIGHUP)
}

/// Whether `proc_pid_status(5)` has the signal among those that are ignored.
fn ignores(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

impl AsFd for Signals {
    /// Readable when [`Signals::receive`] has something.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.delivery.get_read().as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    #[test]
    fn what_nohup_had_ignored_stays_ignored() {
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
    fn a_raised_signal_makes_the_descriptor_readable_and_comes_once() {
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
