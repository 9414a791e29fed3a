//! Rate limit for attach and detach events of a host that reconnects in a loop.
//!
//! Only reporting (journal, JSON) is limited; the state of attachments is always recorded.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use daemon::status::shown_address;
use export::Event;

/// Window in which a host's attach events are counted.
const WINDOW: Duration = Duration::from_secs(10);
/// Maximum number of reported events per window: a client may have many connections.
const MAX_EVENTS: usize = 64;
/// Maximum number of addresses with a window of their own; all others share one.
const MAX_ADDRESSES: usize = 64;
/// The key of the shared window.
const OTHER_ADDRESSES: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// Windows by address.
#[derive(Debug, Default)]
pub(super) struct EventLimit(HashMap<IpAddr, Window>);

#[derive(Debug)]
struct Window {
    end: Instant,
    reported: usize,
    /// Unreported attachments that still exist.
    deferred: Vec<Event>,
    /// Number of unreported attachments that have ended.
    dropped: u64,
}

impl EventLimit {
    /// Returns whether the event must not be reported now.
    pub(super) fn suppresses(&mut self, event: &Event, now: Instant) -> bool {
        match event {
            Event::Attached { peer, .. } => {
                let window = self.window(shown_address(peer.transport), now);
                let suppresses = window.reported >= MAX_EVENTS;
                if suppresses {
                    window.deferred.push(event.clone());
                } else {
                    window.reported += 1;
                }
                suppresses
            }
            Event::Detached { .. } => self.0.values_mut().any(|window| window.cancels(event)),
            _ => false,
        }
    }

    fn window(&mut self, address: IpAddr, now: Instant) -> &mut Window {
        self.0.retain(|_, window| window.end > now || window.has_suppressed());
        let is_known = self.0.len() < MAX_ADDRESSES || self.0.contains_key(&address);
        let window = self.0.entry(if is_known { address } else { OTHER_ADDRESSES });
        window.or_insert_with(|| Window {
            end: now + WINDOW,
            reported: 0,
            deferred: Vec::new(),
            dropped: 0,
        })
    }

    /// Deadline of [`EventLimit::take_due`].
    pub(super) fn due(&self) -> Option<Instant> {
        self.0.values().filter(|window| window.has_suppressed()).map(|window| window.end).min()
    }

    /// Ends expired windows. Returns the deferred events, and a sentence for each host with dropped
    /// ones.
    pub(super) fn take_due(&mut self, now: Instant) -> (Vec<Event>, Vec<String>) {
        let over = self.0.extract_if(|_, window| window.end <= now).collect();
        Self::summarize(over)
    }

    /// Ends all windows, at shutdown.
    pub(super) fn take_all(&mut self) -> (Vec<Event>, Vec<String>) {
        Self::summarize(self.0.drain().collect())
    }

    fn summarize(windows: Vec<(IpAddr, Window)>) -> (Vec<Event>, Vec<String>) {
        let (mut events, mut sentences) = (Vec::new(), Vec::new());
        for (address, window) in windows {
            events.extend(window.deferred);
            if window.dropped > 0 {
                let host = if address == OTHER_ADDRESSES {
                    "other hosts".to_owned()
                } else {
                    address.to_string()
                };
                let dropped = window.dropped;
                sentences
                    .push(format!("{host}: {dropped} more times attached and detached a disk"));
            }
        }
        (events, sentences)
    }
}

impl Window {
    fn has_suppressed(&self) -> bool {
        self.dropped > 0 || !self.deferred.is_empty()
    }

    /// Returns whether the event ends a deferred attachment.
    fn cancels(&mut self, event: &Event) -> bool {
        let at = self.deferred.iter().position(|attached| is_pair(attached, event));
        at.map(|at| self.deferred.swap_remove(at)).inspect(|_| self.dropped += 1).is_some()
    }
}

fn is_pair(attached: &Event, detached: &Event) -> bool {
    let (
        Event::Attached { export, peer, host, .. },
        Event::Detached { export: its_export, peer: its_peer, host: its_host, .. },
    ) = (attached, detached)
    else {
        return false;
    };
    Arc::ptr_eq(export, its_export) && (peer.transport, host) == (its_peer.transport, its_host)
}

#[cfg(test)]
mod test {
    use super::*;
    use export::{Auth, Export, Identity, Peer, Reason};

    fn peer(remote: &str) -> Peer {
        let local = "10.0.0.1:4420".parse().unwrap();
        Peer::ip(remote.parse().unwrap(), local, Auth::None)
    }

    fn pair(export: &Arc<Export>, remote: &str) -> [Event; 2] {
        let (export, peer, host) = (export.clone(), peer(remote), "h".to_owned());
        let attached = Event::Attached {
            export: export.clone(),
            peer: peer.clone(),
            host: host.clone(),
            proven: None,
            no_room: false,
        };
        let (reason, read, written) = (Reason::Peer, 0, 0);
        [attached, Event::Detached { export, peer, host, reason, read, written }]
    }

    #[test]
    fn attach_loop_of_one_host_is_reported_in_bounds() {
        let export = Arc::new(testkit::export("sda", "n", Identity::default(), (512, 512), 512));
        let (mut event_limit, now) = (EventLimit::default(), Instant::now());
        let mut shown = 0;
        for port in 1..1000 {
            let events = pair(&export, &format!("10.0.0.2:{port}"));
            let hidden = events.each_ref().map(|event| event_limit.suppresses(event, now));
            assert_eq!(hidden[0], hidden[1], "both or none");
            shown += usize::from(!hidden[0]);
        }
        assert_eq!(shown, MAX_EVENTS);
        let [other, _] = pair(&export, "10.0.0.3:1");
        assert!(!event_limit.suppresses(&other, now), "another host is reported at once");
        let [last, end] = pair(&export, "10.0.0.2:1000");
        assert!(event_limit.suppresses(&last, now));
        assert_eq!(event_limit.due(), Some(now + WINDOW));
        let (events, sentences) = event_limit.take_due(now + WINDOW);
        assert!(is_pair(&events[0], &end) && events.len() == 1, "{events:?}");
        assert_eq!(
            sentences,
            [format!("10.0.0.2: {} more times attached and detached a disk", 999 - MAX_EVENTS)]
        );
        assert!(!event_limit.suppresses(&end, now + WINDOW), "its beginning was reported");
        assert!(event_limit.due().is_none());
        let [again, _] = pair(&export, "10.0.0.2:1001");
        assert!(!event_limit.suppresses(&again, now + WINDOW));
    }
}
