//! Shutdown of `storagetm serve`: disconnects hosts and flushes disks.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use export::{Access, Export, Fault};

use super::ui::MIN_DRAIN_TIME;
use super::{Server, StopReason};
use crate::console_ui;
use daemon::event::{DiskRef, ServeEvent};
use daemon::flush::Flush;
use daemon::worker::WriteTracker;

/// Time limit of the shutdown. Killing the worker takes half a second more.
const TOTAL_TIMEOUT: Duration = Duration::from_millis(9500);
/// Time for hosts to finish requests in flight. The worker has two more seconds to exit.
const HOST_TIMEOUT: Duration = Duration::from_secs(4);
/// Minimum time for flushing.
const MIN_FLUSH_TIME: Duration = Duration::from_secs(1);
/// Interval of the check for writes in flight.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

impl Server {
    /// Disconnects hosts and flushes disks. Returns a sentence for each disk that may have lost
    /// data.
    pub(super) fn close(mut self, end: &StopReason) -> Vec<String> {
        let begun = Instant::now();
        // The last events of the worker need room. While there are consoles, so that a request to
        // pair is not decided as if there were none.
        let _ = self.handle_events(begun);
        let has_consoles = self.ui.close(end);
        let writable =
            self.exports.status().exports().filter(|export| export.access == Access::Writable);
        let writable: Vec<(Arc<Export>, WriteTracker)> =
            writable.map(|export| (export.clone(), self.worker.writes(export))).collect();
        self.network.stop_announcing();
        self.usb.disconnect();
        let Self {
            worker, network, mut exports, hosts, mut events, mut ui, control, inbox, ..
        } = self;
        let in_time = worker.stop(HOST_TIMEOUT.saturating_sub(begun.elapsed()));
        for counted in inbox.receive().events {
            if let Some(event) = events.admit(counted, &network, &hosts, begun) {
                ui.emit(&event);
            }
        }
        events.take_all(&network, &hosts).iter().for_each(|event| ui.emit(event));
        if !in_time {
            ui.emit(&ServeEvent::note("some hosts did not let go in time and were cut off"));
        }
        let end = flush_deadline(begun, Instant::now(), has_consoles);
        let (failed, mut lost) = flush(writable, end);
        // Withdrawn disks may still be flushed.
        lost.extend(exports.wait_for_flushes(end));
        match exports.save_map(end) {
            Some(Ok(summary)) => ui.emit(&ServeEvent::note(summary)),
            Some(Err(sentence)) => lost.push(sentence),
            None => {}
        }
        lost.sort();
        lost.dedup();
        for event in failed.into_iter().chain(lost.iter().map(ServeEvent::note)) {
            ui.emit(&event);
        }
        ui.emit(&ServeEvent::Stopped);
        control.close(&ui.take_recorded());
        ui.finish(has_consoles, &lost);
        lost
    }
}

/// Deadline of the flushes, if the hosts are gone at `now`. Leaves time for the last warning on the
/// consoles, or for the reader of the last events.
fn flush_deadline(begun: Instant, now: Instant, has_console_ui: bool) -> Instant {
    let rest = if has_console_ui { console_ui::WARNING_TIME } else { MIN_DRAIN_TIME };
    (begun + TOTAL_TIMEOUT.saturating_sub(rest)).max(now + MIN_FLUSH_TIME)
}

/// Flushes the disks until `end`. Returns failures, and sentences about disks that did not answer.
fn flush(disks: Vec<(Arc<Export>, WriteTracker)>, end: Instant) -> (Vec<ServeEvent>, Vec<String>) {
    let begun = disks.into_iter().map(|(export, writes)| {
        // Transient failures, such as lack of memory, are retried once.
        let start = || {
            // No worker is left.
            engine::persist_overlay(&export)
                .map_err(|fault| io::Error::other(fault.to_string()))?;
            Flush::start(export.backing().written())
        };
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
        for (has_console_ui, rest) in [(true, console_ui::WARNING_TIME), (false, MIN_DRAIN_TIME)] {
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
