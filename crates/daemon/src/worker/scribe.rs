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

use super::disks::{Disks, Held};
use super::sessions::Sessions;
use super::words::{Happened, Report, ViewWord};
use crate::mailbox::Mailbox;
use crate::tally::{Tallied, Tally};
use ipc::channel::Sender;

/// How often disks are looked at that are used, and those that are attached and rest. Nobody looks at others.
const OFTEN: Duration = Duration::from_millis(250);
const SELDOM: Duration = Duration::from_secs(1);

/// The subject of a note to the scribe itself: there is something new to look at.
const LOOK: &str = "look";

/// Who reports.
pub(super) struct Scribe {
    pub(super) sender: Sender,
    pub(super) mailbox: Mailbox,
    pub(super) disks: Arc<Disks>,
    pub(super) sessions: Arc<Sessions>,
    /// Set when all connections have gone, with whether that was in time.
    pub(super) stopped: Arc<OnceLock<bool>>,
    /// Attachments there are.
    pub(super) attached: usize,
    /// Events whose kind was reported a moment ago.
    pub(super) tally: Tally,
    /// Events and notes that were too many at once.
    pub(super) lost: usize,
    /// The pairing that was told last, and what of it may change by time alone.
    pub(super) pairing: Option<u64>,
}

/// Has the scribe look.
pub(super) fn nudge(mailbox: &Mailbox) {
    mailbox.about(LOOK, None);
}

impl Scribe {
    /// Reports until all is over, or nobody hears it any more.
    pub(super) fn run(mut self) {
        let mut patience = None;
        while let Ok(next) = self.round(patience) {
            patience = next;
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
    fn round(&mut self, patience: Option<Duration>) -> std::io::Result<Option<Duration>> {
        self.wait(patience);
        let waiting = self.mailbox.receive();
        for Tallied { event, .. } in waiting.events {
            if let Some(tallied) = self.tally.put(event, Instant::now()) {
                self.report(&tallied)?;
            }
        }
        for sentence in waiting.notes {
            self.say(&Report::Note { sentence })?;
        }
        self.lost = self.lost.saturating_add(waiting.lost);
        let now = Instant::now();
        let due = self.tally.take_due(now);
        if !due.is_empty() {
            self.report_lost()?;
        }
        due.iter().try_for_each(|tallied| self.report(tallied))?;
        let changed = self.look()?;
        let code = self.show(now)?;
        let disks = self.next_look(changed);
        let others = [code, self.tally.due()].into_iter().flatten().min();
        let others = others.map(|at| at.saturating_duration_since(now));
        Ok([disks, others].into_iter().flatten().min())
    }

    fn wait(&self, patience: Option<Duration>) {
        let patience = patience.and_then(|patience| Timespec::try_from(patience).ok());
        let _ = poll(&mut [PollFd::new(&self.mailbox, PollFlags::IN)], patience.as_ref());
    }

    /// Reports what still waits: nothing follows.
    fn report_rest(&mut self) -> std::io::Result<()> {
        let rest = self.tally.take_all();
        rest.iter().try_for_each(|tallied| self.report(tallied))?;
        self.report_lost()
    }

    /// Reports how much was too much. What is lost is of the kinds that are tallied, so this is as rare as they are.
    fn report_lost(&mut self) -> std::io::Result<()> {
        match std::mem::take(&mut self.lost) {
            0 => Ok(()),
            lost => {
                let sentence = format!("{lost} more events were not shown, too many at once");
                self.say(&Report::Note { sentence })
            }
        }
    }

    fn report(&mut self, tallied: &Tallied) -> std::io::Result<()> {
        match &tallied.event {
            Event::Attached { .. } => self.attached = self.attached.saturating_add(1),
            Event::Detached { .. } => {
                self.attached = self.attached.saturating_sub(1);
                // What its host did is to be known before it is gone.
                self.look()?;
            }
            _ => {}
        }
        let happened = Happened::new(tallied, |export| self.disks.number(export));
        happened.map_or(Ok(()), |happened| self.say(&Report::Happened(happened)))
    }

    /// Reports what has been done with the disks since; whether that is anything.
    fn look(&self) -> std::io::Result<bool> {
        let mut held = self.disks.held();
        let mut reports: Vec<Report> = held.iter_mut().filter_map(Held::news).collect();
        let released = held.extract_if(.., |held| held.is_released());
        reports.extend(released.map(|held| Report::Released { disk: held.disk }));
        drop(held);
        reports.iter().try_for_each(|report| self.say(report))?;
        Ok(!reports.is_empty())
    }

    /// When the disks must be looked at again; never, if nobody uses any.
    fn next_look(&self, changed: bool) -> Option<Duration> {
        let waits = self.disks.held().iter().any(Held::may_change);
        (self.attached > 0 || waits).then_some(if changed || waits { OFTEN } else { SELDOM })
    }

    /// Reports the code that is good now, if that is another one; when it changes by time alone.
    fn show(&mut self, now: Instant) -> std::io::Result<Option<Instant>> {
        let Some(desk) = self.sessions.desk() else { return Ok(None) };
        let view = desk.status(now);
        let generation = desk.generation();
        if self.pairing != Some(generation) {
            self.pairing = Some(generation);
            self.say(&Report::Pairing(ViewWord::new(&view, now)))?;
        }
        Ok(deadline(&desk, now))
    }

    fn say(&self, report: &Report) -> std::io::Result<()> {
        self.sender.send(report, None)
    }
}

/// Never in no time at all: what is due then is due in the next round.
fn deadline(desk: &PairingServer, now: Instant) -> Option<Instant> {
    desk.deadline(now).map(|at| at.max(now + Duration::from_millis(10)))
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
        assert!(!disks.held()[0].is_released());
        drop(export);
        assert!(disks.held()[0].is_released());
    }
}
