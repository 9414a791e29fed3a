//! `storagetm hold`: keeps the terminal as it is until a key is pressed.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use linux::tty::Raw;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::options::Hold;
use failure::Failure;

/// A timeout that `Instant` can represent.
const MAX_TIMEOUT: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Waits for a key or for the timeout.
pub(crate) fn hold(options: &Hold) -> Result<(), Failure> {
    println!("Press a key to go on; without one it goes on in {} seconds.", options.timeout);
    let _raw = Raw::enter(io::stdin());
    wait(io::stdin(), Duration::from_secs(options.timeout).min(MAX_TIMEOUT));
    Ok(())
}

/// Waits for a byte. Without a terminal, or after a hang-up, waits for the full time: a restart may
/// follow, and the screen may still be read.
fn wait(mut input: impl AsFd + Read, timeout: Duration) {
    let end = Instant::now() + timeout;
    let left = || end.saturating_duration_since(Instant::now());
    let is_readable = poll_once(&input, left());
    if is_readable && !matches!(input.read(&mut [0]), Ok(1..)) {
        std::thread::sleep(left());
    }
}

fn poll_once(input: &impl AsFd, timeout: Duration) -> bool {
    let timeout = Timespec::try_from(timeout).ok();
    let mut fds = [PollFd::new(input, PollFlags::IN)];
    poll(&mut fds, timeout.as_ref()).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod test {
    use super::*;
    use std::io::Write;

    fn waited(input: impl AsFd + Read, timeout: Duration) -> Duration {
        let begun = Instant::now();
        wait(input, timeout);
        begun.elapsed()
    }

    #[test]
    fn a_key_ends_it_and_nothing_else_before_the_time() {
        let (long, short) = (Duration::from_secs(60), Duration::from_millis(300));
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"x").unwrap();
        assert!(waited(reader, long) < long / 2);
        let (silent, _writer) = io::pipe().unwrap();
        assert!(waited(silent, short) >= short);
        let nobody = std::fs::File::open("/dev/null").unwrap();
        assert!(waited(nobody, short) >= short);
    }
}
