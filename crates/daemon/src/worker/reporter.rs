//! The reporter thread of the worker: sends events, I/O counters and the pairing state to the
//! opener.
//!
//! It is separate from the main loop to avoid a deadlock: the opener may block until a request is
//! received, and receives no reports meanwhile.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use export::Event;
use pair::PairingServer;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::disks::{DiskEntry, Disks};
use super::messages::{Report, ViewWire};
use super::sessions::Sessions;
use crate::inbox::Inbox;
use crate::rate_limit::{CountedEvent, EventRateLimit};
use ipc::channel::Sender;

/// Poll intervals for counters: of disks in use, and of idle attached disks. Other disks are not
/// polled.
const BUSY_INTERVAL: Duration = Duration::from_millis(250);
const IDLE_INTERVAL: Duration = Duration::from_secs(1);

/// The reporter.
pub(super) struct Reporter {
    pub(super) sender: Sender,
    pub(super) inbox: Inbox,
    pub(super) disks: Arc<Disks>,
    pub(super) sessions: Arc<Sessions>,
    /// Set when all connections are closed: whether that was in time.
    pub(super) stopped: Arc<OnceLock<bool>>,
    /// Number of attachments.
    pub(super) attached: usize,
    pub(super) rate_limit: EventRateLimit,
    /// Events and notes dropped because the inbox was full.
    pub(super) lost: usize,
    /// Generation of the pairing state that was last reported.
    pub(super) pairing: Option<u64>,
}

impl Reporter {
    /// Reports until the worker has stopped, or the channel is closed.
    pub(super) fn run(mut self) {
        let mut timeout = None;
        while let Ok(next) = self.round(timeout) {
            timeout = next;
            if let Some(in_time) = self.stopped.get().copied() {
                // All events precede `stopped`, so this round reports the last of them.
                let _ = self.round(Some(Duration::ZERO));
                let _ = self.report_rest();
                let _ = self.sender.send(&Report::Stopped { in_time }, &[]);
                return;
            }
        }
    }

    /// Waits for at most `timeout`, then reports. Returns the next timeout.
    fn round(&mut self, timeout: Option<Duration>) -> std::io::Result<Option<Duration>> {
        self.wait(timeout);
        let pending = self.inbox.receive();
        for CountedEvent { event, .. } in pending.events {
            if let Some(counted) = self.rate_limit.put(event, Instant::now()) {
                self.report(&counted)?;
            }
        }
        for sentence in pending.notes {
            self.send(&Report::Note { sentence })?;
        }
        self.lost = self.lost.saturating_add(pending.lost);
        let now = Instant::now();
        let due = self.rate_limit.take_due(now);
        if !due.is_empty() {
            self.report_lost()?;
        }
        due.iter().try_for_each(|counted| self.report(counted))?;
        self.report_publications()?;
        self.report_reservations()?;
        let changed = self.report_usage()?;
        let code = self.report_pairing(now)?;
        let disks = self.next_usage_report(changed);
        let others = [code, self.rate_limit.due()].into_iter().flatten().min();
        let others = others.map(|at| at.saturating_duration_since(now));
        Ok([disks, others].into_iter().flatten().min())
    }

    fn wait(&self, timeout: Option<Duration>) {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let _ = poll(&mut [PollFd::new(&self.inbox, PollFlags::IN)], timeout.as_ref());
    }

    /// Reports all pending events.
    fn report_rest(&mut self) -> std::io::Result<()> {
        let rest = self.rate_limit.take_all();
        rest.iter().try_for_each(|counted| self.report(counted))?;
        self.report_lost()
    }

    /// Reports the number of dropped events. Only rate-limited kinds are dropped, so this is as
    /// rare.
    fn report_lost(&mut self) -> std::io::Result<()> {
        match std::mem::take(&mut self.lost) {
            0 => Ok(()),
            lost => {
                let sentence = format!("{lost} more events were not shown, too many at once");
                self.send(&Report::Note { sentence })
            }
        }
    }

    fn report(&mut self, counted: &CountedEvent) -> std::io::Result<()> {
        match &counted.event {
            Event::Attached { .. } => self.attached = self.attached.saturating_add(1),
            Event::Detached { .. } => {
                self.attached = self.attached.saturating_sub(1);
                // The counters must be reported before the host is reported as gone.
                self.report_usage()?;
            }
            _ => {}
        }
        let CountedEvent { event, count } = counted.clone();
        let event = event.map_export(|export| self.disks.number(&export));
        event.map_or(Ok(()), |event| self.send(&Report::Event(CountedEvent { event, count })))
    }

    /// Reports reservations that are to be stored.
    fn report_reservations(&self) -> std::io::Result<()> {
        let entries = self.disks.entries();
        let reports: Vec<Report> =
            entries.iter().filter_map(DiskEntry::reservations_to_store).collect();
        drop(entries);
        reports.iter().try_for_each(|report| self.send(report))
    }

    /// Reports disks that were published.
    fn report_publications(&self) -> std::io::Result<()> {
        let mut entries = self.disks.entries();
        let reports: Vec<Report> = entries.iter_mut().filter_map(DiskEntry::publication).collect();
        drop(entries);
        reports.iter().try_for_each(|report| self.send(report))
    }

    /// Reports changed counters and released disks. Returns whether there were any.
    fn report_usage(&self) -> std::io::Result<bool> {
        let mut entries = self.disks.entries();
        let mut reports: Vec<Report> =
            entries.iter_mut().filter_map(DiskEntry::changed_counts).collect();
        let released = entries.extract_if(.., |entries| entries.is_released());
        reports.extend(released.map(|entries| Report::Released { disk: entries.disk }));
        drop(entries);
        reports.iter().try_for_each(|report| self.send(report))?;
        Ok(!reports.is_empty())
    }

    /// When to poll the counters again; `None` if no disk is in use.
    fn next_usage_report(&self, changed: bool) -> Option<Duration> {
        let entries = self.disks.entries();
        let waits = entries.iter().any(DiskEntry::may_change);
        // The last connection of a host ends after it was reported as detached.
        let is_used = self.attached > 0 || entries.iter().any(DiskEntry::is_kept);
        (is_used || waits).then_some(if changed || waits { BUSY_INTERVAL } else { IDLE_INTERVAL })
    }

    /// Reports the pairing state if it changed. Returns when it changes by itself.
    fn report_pairing(&mut self, now: Instant) -> std::io::Result<Option<Instant>> {
        let Some(server) = self.sessions.pairing_server() else { return Ok(None) };
        let view = server.status(now);
        let generation = server.generation();
        if self.pairing != Some(generation) {
            self.pairing = Some(generation);
            self.send(&Report::Pairing(ViewWire::new(&view, now)))?;
        }
        Ok(deadline(&server, now))
    }

    fn send(&self, report: &Report) -> std::io::Result<()> {
        self.sender.send(report, &[])
    }
}

/// The next deadline, at least 10 ms ahead to avoid a busy loop.
fn deadline(server: &PairingServer, now: Instant) -> Option<Instant> {
    server.deadline(now).map(|at| at.max(now + Duration::from_millis(10)))
}

#[cfg(test)]
mod test {
    use super::*;
    use export::{Catalogue, Identity};

    #[test]
    fn disk_is_released_with_its_last_reference() {
        let export = Arc::new(testkit::export("d", "n", Identity::default(), (512, 512), 512));
        let disks = Disks::default();
        disks.add(7, export.clone(), None, &Catalogue::default());
        assert_eq!(disks.number(&export), Some(7));
        disks.withdraw(7);
        assert!(!disks.entries()[0].is_released());
        drop(export);
        assert!(disks.entries()[0].is_released());
    }
}
