//! Rate limit for events that a failing disk or a hostile peer can cause with every request: events
//! of a kind are merged and reported at most once a second, with their number. A token bucket would drop them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use export::{Event, Export};
use serde::{Deserialize, Serialize};

/// Shortest interval between reports of one kind.
const INTERVAL: Duration = Duration::from_secs(1);

/// Kinds that are counted separately. Further ones are merged by the type of the event alone.
const MAX_KINDS: usize = 16;

/// An event, or several merged ones.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CountedEvent<D = Arc<Export>> {
    /// The event.
    pub event: Event<D>,
    /// Number of merged events.
    pub count: u64,
}

impl<D> From<Event<D>> for CountedEvent<D> {
    fn from(event: Event<D>) -> Self {
        Self { event, count: 1 }
    }
}

/// Events waiting until their kind may be reported again.
#[derive(Debug, Default)]
pub(crate) struct EventRateLimit {
    kinds: Vec<Kind>,
}

#[derive(Debug)]
struct Kind {
    /// An event of the kind.
    sample: Event,
    /// Whether all events of the sample's type belong here.
    is_rest: bool,
    reported: Instant,
    waiting: Option<CountedEvent>,
}

impl EventRateLimit {
    /// Adds an event at time `now`. Returns it if it is to be reported at once.
    pub(crate) fn put(&mut self, event: Event, now: Instant) -> Option<CountedEvent> {
        if !matches!(event, Event::Fault { .. } | Event::Refused { .. } | Event::Violation { .. }) {
            return Some(event.into());
        }
        self.remove_idle(now);
        let is_full = self.kinds.iter().filter(|kind| !kind.is_rest).count() >= MAX_KINDS;
        let known =
            self.kinds.iter().position(|kind| !kind.is_rest && is_alike(&kind.sample, &event));
        let rest =
            || self.kinds.iter().position(|kind| kind.is_rest && is_of_type(&kind.sample, &event));
        let at = known.or_else(|| if is_full { rest() } else { None });
        let Some(kind) = at.and_then(|at| self.kinds.get_mut(at)) else {
            let sample = event.clone();
            self.kinds.push(Kind { sample, is_rest: is_full, reported: now, waiting: None });
            return Some(event.into());
        };
        kind.waiting = Some(match kind.waiting.take() {
            Some(before) => merged(before, event),
            None => event.into(),
        });
        None
    }

    /// Returns the events that may be reported at `now`.
    pub(crate) fn take_due(&mut self, now: Instant) -> Vec<CountedEvent> {
        let due = self.kinds.iter_mut().filter(|kind| kind.reported + INTERVAL <= now);
        let taken = due.filter_map(|kind| {
            let counted = kind.waiting.take()?;
            kind.reported = now;
            Some(counted)
        });
        taken.collect()
    }

    /// Returns all waiting events.
    pub(crate) fn take_all(&mut self) -> Vec<CountedEvent> {
        std::mem::take(&mut self.kinds).into_iter().filter_map(|kind| kind.waiting).collect()
    }

    /// When to call [`EventRateLimit::take_due`]; `None` if nothing waits.
    pub(crate) fn due(&self) -> Option<Instant> {
        let waiting = self.kinds.iter().filter(|kind| kind.waiting.is_some());
        waiting.map(|kind| kind.reported + INTERVAL).min()
    }

    /// Removes kinds without recent events.
    fn remove_idle(&mut self, now: Instant) {
        self.kinds.retain(|kind| kind.waiting.is_some() || kind.reported + INTERVAL > now);
    }
}

fn is_of_type(one: &Event, other: &Event) -> bool {
    std::mem::discriminant(one) == std::mem::discriminant(other)
}

/// Whether two events differ only in the position on disk or the peer's port.
fn is_alike(one: &Event, other: &Event) -> bool {
    match (one, other) {
        (
            Event::Fault { export, op, fault, .. },
            Event::Fault { export: its_export, op: its_op, fault: its_fault, .. },
        ) => Arc::ptr_eq(export, its_export) && (op, fault) == (its_op, its_fault),
        (
            Event::Refused { peer, host, wanted, reason },
            Event::Refused {
                peer: its_peer,
                host: its_host,
                wanted: its_wanted,
                reason: its_reason,
            },
        ) => {
            peer.network() == its_peer.network()
                && (host, wanted, reason) == (its_host, its_wanted, its_reason)
        }
        (Event::Violation { peer, rule }, Event::Violation { peer: its_peer, rule: its_rule }) => {
            peer.network() == its_peer.network() && rule == its_rule
        }
        _ => false,
    }
}

/// Merges two events: the newer one, with the range of both if they are on the same disk.
fn merged(before: CountedEvent, mut event: Event) -> CountedEvent {
    if let (
        Event::Fault { export, offset, len, .. },
        Event::Fault { export: its_export, offset: its_offset, len: its_len, .. },
    ) = (&before.event, &mut event)
        && Arc::ptr_eq(export, its_export)
    {
        let end = offset.saturating_add(*len).max(its_offset.saturating_add(*its_len));
        *its_offset = (*its_offset).min(*offset);
        *its_len = end.saturating_sub(*its_offset);
    }
    CountedEvent { event, count: before.count.saturating_add(1) }
}

#[cfg(test)]
mod test {
    use super::*;
    use export::{Auth, Export, Fault, Identity, Peer};

    fn export() -> Arc<Export> {
        Arc::new(testkit::export("d", "n", Identity::default(), (512, 512), 1 << 40))
    }

    fn fault(export: &Arc<Export>, offset: u64) -> Event {
        Event::Fault { export: export.clone(), op: "read", offset, len: 512, fault: Fault::Io }
    }

    fn violation(address: u8, rule: &'static str) -> Event {
        let remote = format!("10.0.0.{address}:{}", 1000 + u16::from(address)).parse().unwrap();
        let peer = Peer::ip(remote, remote, Auth::None);
        Event::Violation { peer, rule }
    }

    fn span(counted: &CountedEvent) -> (u64, u64, u64) {
        let Event::Fault { offset, len, .. } = counted.event else { panic!("{counted:?}") };
        (offset, offset + len, counted.count)
    }

    /// Passes one event every `step` through the rate limit, as the reporter does. Returns the
    /// reports with their times.
    fn run(events: impl Iterator<Item = Event>, step: Duration) -> Vec<(Duration, CountedEvent)> {
        let (mut rate_limit, begun) = (EventRateLimit::default(), Instant::now());
        let mut reports = Vec::new();
        let mut now = begun;
        for event in events {
            while let Some(due) = rate_limit.due().filter(|due| *due <= now) {
                let taken = rate_limit.take_due(due);
                reports.extend(taken.into_iter().map(|it| (due - begun, it)));
            }
            reports.extend(rate_limit.put(event, now).map(|it| (now - begun, it)));
            now += step;
        }
        reports.extend(rate_limit.take_all().into_iter().map(|it| (now - begun, it)));
        reports
    }

    /// 1 GiB of unreadable sectors at 10,000 requests a second: 2,097,152 failures in 210 s.
    #[test]
    fn r62_gibibyte_of_bad_sectors_is_an_event_a_second() {
        let disk = export();
        let sectors = (1u64 << 30) / 512;
        let events = (0..sectors).map(|sector| fault(&disk, sector * 512));
        let reports = run(events, Duration::from_micros(100));
        assert!((200..=212).contains(&reports.len()), "{}", reports.len());
        let close = reports.windows(2).filter(|pair| pair[1].0 - pair[0].0 < INTERVAL).count();
        assert!(close <= 1, "only the last one, at the end, may come early");
        assert_eq!(reports.iter().map(|(_, it)| it.count).sum::<u64>(), sectors, "none is lost");
        assert_eq!(span(&reports[0].1), (0, 512, 1), "the first is reported at once");
        let mut end = 0;
        for (_, report) in &reports {
            let (from, to, count) = span(report);
            assert_eq!((from, to - from), (end, count * 512));
            end = to;
        }
    }

    #[test]
    fn rare_failures_are_reported_at_once() {
        let disk = export();
        let reports = run((0..5).map(|n| fault(&disk, n)), Duration::from_secs(2));
        let times: Vec<u64> = reports.iter().map(|(at, _)| at.as_secs()).collect();
        assert_eq!(times, [0, 2, 4, 6, 8]);
    }

    #[test]
    fn disks_operations_and_peers_are_separate_kinds() {
        let (one, other) = (export(), export());
        let write = Event::Fault {
            export: one.clone(),
            op: "write",
            offset: 0,
            len: 512,
            fault: Fault::Io,
        };
        let events = [
            fault(&one, 0),
            fault(&other, 0),
            write,
            violation(1, "rule"),
            violation(2, "rule"),
            violation(1, "another rule"),
        ];
        let count = events.len();
        assert_eq!(run(events.into_iter(), Duration::ZERO).len(), count);
    }

    #[test]
    fn flood_from_many_peers_is_bounded_and_counted() {
        let events = (0..10_000u32).map(|n| violation((n % 200) as u8, "rule"));
        let reports = run(events, Duration::from_micros(100));
        assert!(reports.len() <= 3 * (MAX_KINDS + 1), "{}", reports.len());
        assert_eq!(reports.iter().map(|(_, it)| it.count).sum::<u64>(), 10_000);
    }
}
