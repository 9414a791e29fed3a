//! The worker's thread that reports: what happened, what has been done with each disk, and which code is good. It knows no
//! protocol.
//!
//! It is a thread of its own so that orders are always taken, however much there is to report: the opener may wait until
//! an order is taken, and hear reports no sooner.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use export::Event;
use pair::PairingServer;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::disks::{DiskEntry, Disks};
use super::messages::{EventWire, Report, ViewWire};
use super::sessions::Sessions;
use crate::inbox::Inbox;
use crate::rate_limit::{CountedEvent, EventRateLimit};
use ipc::channel::Sender;

/// How often disks are looked at that are used, and those that are attached and rest. Nobody looks at others.
const BUSY_INTERVAL: Duration = Duration::from_millis(250);
const IDLE_INTERVAL: Duration = Duration::from_secs(1);

/// The subject of a note to the scribe itself: there is something new to look at.
const WAKE: &str = "look";

/// Who reports.
pub(super) struct Reporter {
    pub(super) sender: Sender,
    pub(super) inbox: Inbox,
    pub(super) disks: Arc<Disks>,
    pub(super) sessions: Arc<Sessions>,
    /// Set when all connections have gone, with whether that was in time.
    pub(super) stopped: Arc<OnceLock<bool>>,
    /// Attachments there are.
    pub(super) attached: usize,
    /// Events whose kind was reported a moment ago.
    pub(super) rate_limit: EventRateLimit,
    /// Events and notes that were too many at once.
    pub(super) lost: usize,
    /// The pairing that was told last, and what of it may change by time alone.
    pub(super) pairing: Option<u64>,
}

/// Has the scribe look.
pub(super) fn wake(inbox: &Inbox) {
    inbox.set_subject(WAKE, None);
}

impl Reporter {
    /// Reports until all is over, or nobody hears it any more.
    pub(super) fn run(mut self) {
        let mut timeout = None;
        while let Ok(next) = self.round(timeout) {
            timeout = next;
            if let Some(in_time) = self.stopped.get().copied() {
                // What happened last was said before it was set.
                let _ = self.round(Some(Duration::ZERO));
                let _ = self.report_rest();
                let _ = self.sender.send(&Report::Stopped { in_time }, None);
                return;
            }
        }
    }

    /// Waits, and reports what there is; how long to wait then.
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

    /// Reports what still waits: nothing follows.
    fn report_rest(&mut self) -> std::io::Result<()> {
        let rest = self.rate_limit.take_all();
        rest.iter().try_for_each(|counted| self.report(counted))?;
        self.report_lost()
    }

    /// Reports how much was too much. What is lost is of the kinds that are tallied, so this is as rare as they are.
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
                // What its host did is to be known before it is gone.
                self.report_usage()?;
            }
            _ => {}
        }
        let event = EventWire::new(counted, |export| self.disks.number(export));
        event.map_or(Ok(()), |event| self.send(&Report::Event(event)))
    }

    /// Reports what has been done with the disks since; whether that is anything.
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

    /// When the disks must be looked at again; never, if nobody uses any.
    fn next_usage_report(&self, changed: bool) -> Option<Duration> {
        let waits = self.disks.entries().iter().any(DiskEntry::may_change);
        (self.attached > 0 || waits).then_some(if changed || waits {
            BUSY_INTERVAL
        } else {
            IDLE_INTERVAL
        })
    }

    /// Reports the code that is good now, if that is another one; when it changes by time alone.
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
        self.sender.send(report, None)
    }
}

/// Never in no time at all: what is due then is due in the next round.
fn deadline(server: &PairingServer, now: Instant) -> Option<Instant> {
    server.deadline(now).map(|at| at.max(now + Duration::from_millis(10)))
}

#[cfg(test)]
mod test {
    use super::*;
    use export::{Export, Geometry, Identity};

    #[test]
    fn a_disk_is_released_when_nobody_has_it_any_more() {
        let disk = std::fs::File::open("/dev/null").unwrap().into();
        let geometry = Geometry::new(512, 512).unwrap();
        let export = Arc::new(Export::new("d", "n", Identity::default(), geometry, 512, disk));
        let disks = Disks::default();
        disks.add(7, export.clone());
        assert_eq!(disks.number(&export), Some(7));
        disks.withdraw(7);
        assert!(!disks.entries()[0].is_released());
        drop(export);
        assert!(disks.entries()[0].is_released());
    }
}
