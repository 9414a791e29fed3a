//! Shutdown of `storagetm serve`: disconnects hosts and flushes disks.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use export::{Access, Export, Fault};

use super::{Server, StopReason, serve_event};
use crate::console_ui;
use daemon::event::{DiskRef, ServeEvent};
use daemon::flush::Flush;
use daemon::worker::WriteTracker;
use dnssd::Announcer;

/// Time limit of the shutdown. Killing the worker takes half a second more.
const TOTAL_TIMEOUT: Duration = Duration::from_millis(9500);
/// Time for hosts to finish requests in flight. The worker has two more seconds to exit.
const HOST_TIMEOUT: Duration = Duration::from_secs(4);
/// Minimum time for flushing, and for the reader of the last events.
const MIN_FLUSH_TIME: Duration = Duration::from_secs(1);
/// Interval of the check for writes in flight.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

impl Server {
    /// Disconnects hosts and flushes disks. Returns a sentence for each disk that may have lost
    /// data.
    pub(super) fn close(mut self, end: StopReason) -> Vec<String> {
        let begun = Instant::now();
        let has_console_ui = self.console_ui.is_some();
        if let Some(console_ui) = self.console_ui.take() {
            console_ui.close(match end {
                StopReason::Restart => "Disconnecting the hosts; then this machine restarts.\n",
                StopReason::PowerOff => "Disconnecting the hosts; then this machine powers off.\n",
                StopReason::Signalled | StopReason::Failed => {
                    "Disconnecting the hosts; then this machine ends.\n"
                }
            });
        }
        self.terminal_keys = None;
        self.output.stopping();
        let exports = self.status.exports();
        let writable = exports.filter(|export| export.access == Access::Writable);
        let writable: Vec<(Arc<Export>, WriteTracker)> =
            writable.map(|export| (export.clone(), self.worker.writes(export))).collect();
        self.announcer.take().into_iter().for_each(Announcer::stop);
        // The last events of the worker need room.
        self.handle_events(begun);
        let in_time = self.worker.stop(HOST_TIMEOUT.saturating_sub(begun.elapsed()));
        for counted in self.inbox.receive().events {
            self.faults.record(&counted.event, counted.count);
            if self.event_limit.suppresses(&counted.event, begun) {
                continue;
            }
            let event = serve_event(counted, &self.listeners, &self.access_control);
            self.output.report(&event);
        }
        let (deferred, dropped) = self.event_limit.take_all();
        for event in deferred {
            let event = serve_event(event.into(), &self.listeners, &self.access_control);
            self.output.report(&event);
        }
        for total in dropped.into_iter().chain(self.faults.totals()) {
            self.output.report(&ServeEvent::note(total));
        }
        if !in_time {
            self.output
                .report(&ServeEvent::note("some hosts did not let go in time and were cut off"));
        }
        let end = flush_deadline(begun, Instant::now(), has_console_ui);
        let (failed, mut lost) = flush(writable, end);
        // Withdrawn disks may still be flushed.
        lost.extend(self.flushes.wait(end));
        lost.sort();
        lost.dedup();
        for event in failed.into_iter().chain(lost.iter().map(ServeEvent::note)) {
            self.output.report(&event);
        }
        self.output.report(&ServeEvent::Stopped);
        self.output.drain(MIN_FLUSH_TIME);
        if has_console_ui && !lost.is_empty() {
            console_ui::warn(&lost.join("\n"));
        }
        lost
    }
}

/// Deadline of the flushes, if the hosts are gone at `now`. Leaves time for the last warning on the
/// consoles, or for the reader of the last events.
fn flush_deadline(begun: Instant, now: Instant, has_console_ui: bool) -> Instant {
    let rest = if has_console_ui { console_ui::WARNING_TIME } else { MIN_FLUSH_TIME };
    (begun + TOTAL_TIMEOUT.saturating_sub(rest)).max(now + MIN_FLUSH_TIME)
}

/// Flushes the disks until `end`. Returns failures, and sentences about disks that did not answer.
fn flush(disks: Vec<(Arc<Export>, WriteTracker)>, end: Instant) -> (Vec<ServeEvent>, Vec<String>) {
    let begun = disks.into_iter().map(|(export, writes)| {
        // Transient failures, such as lack of memory, are retried once.
        let start = || Flush::start(export.backing().written());
        let flush = start().or_else(|_| start());
        (export, writes, flush)
    });
    let begun: Vec<_> = begun.collect();
    let (mut failed, mut lost) = (Vec::new(), Vec::new());
    for (export, writes, flush) in begun {
        let flushed = flush.and_then(|mut flush| flush.wait(end));
        while flushed.is_ok() && writes.in_flight() && Instant::now() < end {
            std::thread::sleep(POLL_INTERVAL);
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

/// Returns a sentence if data may be lost after a flush that ended with `error`.
fn loss(name: &str, error: Option<&io::Error>, is_being_written: bool) -> Option<String> {
    let reason = match error {
        None if !is_being_written => return None,
        Some(error) if error.kind() != ErrorKind::TimedOut => {
            format!("could not be flushed ({error})")
        }
        _ => "does not answer".to_owned(),
    };
    Some(format!("{name} {reason}: what was written to it last may be lost"))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn r60_shutdown_takes_at_most_ten_seconds() {
        let begun = Instant::now();
        let killed = HOST_TIMEOUT + Duration::from_secs(2);
        for (has_console_ui, rest) in [(true, console_ui::WARNING_TIME), (false, MIN_FLUSH_TIME)] {
            for gone in [Duration::ZERO, HOST_TIMEOUT, killed] {
                let took = flush_deadline(begun, begun + gone, has_console_ui) + rest - begun;
                assert!(took <= Duration::from_secs(10), "{has_console_ui} {gone:?}: {took:?}");
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
