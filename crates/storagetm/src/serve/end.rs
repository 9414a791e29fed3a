//! How `storagetm serve` ends: hosts are let go, and what they wrote is on the disks. It knows no event.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use export::{Access, Export, Fault};

use super::{End, Server, serve_event};
use crate::desk;
use daemon::event::{DiskRef, ServeEvent};
use daemon::flush::Flush;
use daemon::worker::WriteTracker;
use dnssd::Announcer;

/// How long all of it takes at most, whatever hangs, unless the worker has to be killed: then it is half a second more.
const WHOLE: Duration = Duration::from_millis(9500);
/// How long hosts may take, from the beginning, to end what is under way. The worker process has two seconds more to end.
const PATIENCE: Duration = Duration::from_secs(4);
/// What the disks have at least to put everything on stable storage, and the reader for the last events.
const LAST: Duration = Duration::from_secs(1);
/// Between two looks at whether the writes to a disk have ended.
const PAUSE: Duration = Duration::from_millis(10);

impl Server {
    /// Ends: hosts are told and disconnected, the disks put everything on stable storage. Returns what may be lost, a
    /// sentence for each disk.
    pub(super) fn close(mut self, end: End) -> Vec<String> {
        let begun = Instant::now();
        let at_desk = self.desk.is_some();
        if let Some(desk) = self.desk.take() {
            desk.end(match end {
                End::Restart => "Disconnecting the hosts; then this machine restarts.\n",
                End::PowerOff => "Disconnecting the hosts; then this machine powers off.\n",
                End::Told | End::Broken => "Disconnecting the hosts; then this machine ends.\n",
            });
        }
        self.keyboard = None;
        self.output.stopping();
        let exports = self.status.exports();
        let writable = exports.filter(|export| export.access == Access::Writable);
        let writable: Vec<(Arc<Export>, WriteTracker)> =
            writable.map(|export| (export.clone(), self.worker.writes(export))).collect();
        self.announcer.take().into_iter().for_each(Announcer::stop);
        let in_time = self.worker.stop(PATIENCE.saturating_sub(begun.elapsed()));
        for counted in self.inbox.receive().events {
            self.faults.record(&counted.event, counted.count);
            if self.churn.hides(&counted.event, begun) {
                continue;
            }
            let event = serve_event(counted, &self.listeners, &self.access_control);
            self.output.say(&event);
        }
        let (held_back, left_out) = self.churn.take_all();
        for event in held_back {
            let event = serve_event(event.into(), &self.listeners, &self.access_control);
            self.output.say(&event);
        }
        for total in left_out.into_iter().chain(self.faults.totals()) {
            self.output.say(&ServeEvent::note(total));
        }
        if !in_time {
            self.output
                .say(&ServeEvent::note("some hosts did not let go in time and were cut off"));
        }
        let end = flushed_by(begun, Instant::now(), at_desk);
        let (failed, mut lost) = flush(writable, end);
        // Disks that were taken back are no longer lent, but may still be flushed.
        lost.extend(self.flushes.wait(end));
        lost.sort();
        lost.dedup();
        for event in failed.into_iter().chain(lost.iter().map(ServeEvent::note)) {
            self.output.say(&event);
        }
        self.output.say(&ServeEvent::Stopped);
        self.output.drain(LAST);
        if at_desk && !lost.is_empty() {
            desk::warn(&lost.join("\n"));
        }
        lost
    }
}

/// When the disks must have put everything on stable storage, if hosts are gone `now`. What comes after that takes time,
/// too: at a desk a last warning is shown, elsewhere a reader takes the last events.
fn flushed_by(begun: Instant, now: Instant, at_desk: bool) -> Instant {
    let rest = if at_desk { desk::READING } else { LAST };
    (begun + WHOLE.saturating_sub(rest)).max(now + LAST)
}

/// Puts everything on stable storage until `end`. Returns what failed, and sentences about disks that have not answered.
fn flush(disks: Vec<(Arc<Export>, WriteTracker)>, end: Instant) -> (Vec<ServeEvent>, Vec<String>) {
    let begun = disks.into_iter().map(|(export, writes)| {
        // What the first try lacked, such as memory, may be there now.
        let flush = Flush::start(&*export).or_else(|_| Flush::start(&*export));
        (export, writes, flush)
    });
    let begun: Vec<_> = begun.collect();
    let (mut failed, mut lost) = (Vec::new(), Vec::new());
    for (export, writes, flush) in begun {
        let flushed = flush.and_then(|mut flush| flush.wait(end));
        while flushed.is_ok() && writes.in_flight() && Instant::now() < end {
            std::thread::sleep(PAUSE);
        }
        lost.extend(loss(&export.name, flushed.as_ref().err(), writes.in_flight()));
        if let Err(error) = flushed
            && error.kind() != ErrorKind::TimedOut
        {
            failed.push(failed_flush(&export, error));
        }
    }
    (failed, lost)
}

fn failed_flush(export: &Export, error: io::Error) -> ServeEvent {
    let reason = Fault::from(error).to_string();
    let which = DiskRef::of(export);
    ServeEvent::Fault { which, op: "flush", offset: 0, bytes: 0, count: 1, reason }
}

/// Returns a sentence about what may be lost of a disk whose last flush ended with `error`, if it failed.
fn loss(name: &str, error: Option<&io::Error>, is_being_written: bool) -> Option<String> {
    let why = match error {
        None if !is_being_written => return None,
        Some(error) if error.kind() != ErrorKind::TimedOut => {
            format!("could not be flushed ({error})")
        }
        _ => "does not answer".to_owned(),
    };
    Some(format!("{name} {why}: what was written to it last may be lost"))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn r60_end_takes_ten_seconds_at_most_at_a_desk_too() {
        let begun = Instant::now();
        let killed = PATIENCE + Duration::from_secs(2);
        for (at_desk, rest) in [(true, desk::READING), (false, LAST)] {
            for gone in [Duration::ZERO, PATIENCE, killed] {
                let took = flushed_by(begun, begun + gone, at_desk) + rest - begun;
                assert!(took <= Duration::from_secs(10), "{at_desk} {gone:?}: {took:?}");
            }
        }
    }

    #[test]
    fn r17_final_flush_that_fails_is_a_loss() {
        let failed = |error: io::Error| loss("/dev/sdz", Some(&error), false).unwrap();
        let said = failed(rustix::io::Errno::IO.into());
        assert!(said.starts_with("/dev/sdz could not be flushed (Input/output error"), "{said}");
        let said = failed(ErrorKind::OutOfMemory.into());
        assert!(said.ends_with("what was written to it last may be lost"), "{said}");
        assert!(failed(ErrorKind::TimedOut.into()).contains("does not answer"));
        assert!(loss("/dev/sdz", None, true).unwrap().contains("does not answer"));
        assert_eq!(loss("/dev/sdz", None, false), None);
    }
}
