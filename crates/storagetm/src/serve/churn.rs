//! Rate limit for the events of hosts that attach and detach disks in a loop.
//!
//! Who has a disk is always recorded; what is limited is what the journal and programs get of it.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use daemon::event::ServeEvent;
use export::Event;

use super::{Server, serve_event};

/// For how long the attachments of a host are counted.
const WINDOW: Duration = Duration::from_secs(10);
/// How many of them are reported meanwhile: a client may have many connections.
const MOST: usize = 64;
/// Addresses that are counted separately. Hosts at further ones are counted together.
const ADDRESSES: usize = 64;
/// Those further ones.
const REST: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// What hosts have attached of late.
#[derive(Debug, Default)]
pub(super) struct Churn(HashMap<IpAddr, Window>);

#[derive(Debug)]
struct Window {
    end: Instant,
    reported: usize,
    /// Attachments that were not reported and still hold.
    held_back: Vec<Event>,
    /// Attachments that were over before they were reported.
    left_out: u64,
}

impl Churn {
    /// Returns whether the event, which has just happened, is not to be reported now.
    pub(super) fn hides(&mut self, event: &Event, now: Instant) -> bool {
        match event {
            Event::Attached { peer, .. } => {
                let window = self.window(peer.remote.ip(), now);
                let hides = window.reported >= MOST;
                if hides {
                    window.held_back.push(event.clone());
                } else {
                    window.reported += 1;
                }
                hides
            }
            Event::Detached { .. } => self.0.values_mut().any(|window| window.ends(event)),
            _ => false,
        }
    }

    fn window(&mut self, address: IpAddr, now: Instant) -> &mut Window {
        self.0.retain(|_, window| window.end > now || window.has_more());
        let is_known = self.0.len() < ADDRESSES || self.0.contains_key(&address);
        let window = self.0.entry(if is_known { address } else { REST });
        window.or_insert_with(|| Window {
            end: now + WINDOW,
            reported: 0,
            held_back: Vec::new(),
            left_out: 0,
        })
    }

    /// When to call [`Churn::take_due`].
    pub(super) fn due(&self) -> Option<Instant> {
        self.0.values().filter(|window| window.has_more()).map(|window| window.end).min()
    }

    /// Ends the windows that are over `now`: returns the attachments that still hold, and a sentence for each host with
    /// others.
    fn take_due(&mut self, now: Instant) -> (Vec<Event>, Vec<String>) {
        let over = self.0.extract_if(|_, window| window.end <= now).collect();
        Self::summed_up(over)
    }

    /// The same for all windows: nothing follows.
    pub(super) fn take_all(&mut self) -> (Vec<Event>, Vec<String>) {
        Self::summed_up(self.0.drain().collect())
    }

    fn summed_up(windows: Vec<(IpAddr, Window)>) -> (Vec<Event>, Vec<String>) {
        let (mut events, mut sentences) = (Vec::new(), Vec::new());
        for (address, window) in windows {
            events.extend(window.held_back);
            if window.left_out > 0 {
                let host =
                    if address == REST { "other hosts".to_owned() } else { address.to_string() };
                let left_out = window.left_out;
                sentences
                    .push(format!("{host}: {left_out} more times attached and detached a disk"));
            }
        }
        (events, sentences)
    }
}

impl Window {
    fn has_more(&self) -> bool {
        self.left_out > 0 || !self.held_back.is_empty()
    }

    /// Returns whether the event ends an attachment that was not reported.
    fn ends(&mut self, event: &Event) -> bool {
        let at = self.held_back.iter().position(|attached| is_pair(attached, event));
        at.map(|at| self.held_back.swap_remove(at)).inspect(|_| self.left_out += 1).is_some()
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
    Arc::ptr_eq(export, its_export) && (peer.remote, host) == (its_peer.remote, its_host)
}

impl Server {
    /// Reports what was held back of hosts, for windows that are over.
    pub(super) fn report_churn(&mut self, now: Instant) {
        let (events, sentences) = self.churn.take_due(now);
        for event in events {
            let event = serve_event(event.into(), &self.listeners, &self.access_control);
            self.say(&event);
        }
        sentences.into_iter().for_each(|sentence| self.say(&ServeEvent::note(sentence)));
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use export::{Auth, Export, Geometry, Identity, Peer, Reason};

    fn peer(remote: &str) -> Peer {
        let local = "10.0.0.1:4420".parse().unwrap();
        Peer { remote: remote.parse().unwrap(), local, auth: Auth::None, channel: None }
    }

    fn pair(export: &Arc<Export>, remote: &str) -> [Event; 2] {
        let (export, peer, host) = (export.clone(), peer(remote), "h".to_owned());
        let attached = Event::Attached {
            export: export.clone(),
            peer: peer.clone(),
            host: host.clone(),
            proven: None,
        };
        let (reason, read, written) = (Reason::Peer, 0, 0);
        [attached, Event::Detached { export, peer, host, reason, read, written }]
    }

    #[test]
    fn attach_loop_of_one_host_is_reported_in_bounds() {
        let disk = std::fs::File::open("/dev/null").unwrap().into();
        let geometry = Geometry::new(512, 512).unwrap();
        let export = Arc::new(Export::new("sda", "n", Identity::default(), geometry, 512, disk));
        let (mut churn, now) = (Churn::default(), Instant::now());
        let mut shown = 0;
        for port in 1..1000 {
            let events = pair(&export, &format!("10.0.0.2:{port}"));
            let hidden = events.each_ref().map(|event| churn.hides(event, now));
            assert_eq!(hidden[0], hidden[1], "both or none");
            shown += usize::from(!hidden[0]);
        }
        assert_eq!(shown, MOST);
        let [other, _] = pair(&export, "10.0.0.3:1");
        assert!(!churn.hides(&other, now), "another host is reported at once");
        let [last, end] = pair(&export, "10.0.0.2:1000");
        assert!(churn.hides(&last, now));
        assert_eq!(churn.due(), Some(now + WINDOW));
        let (events, sentences) = churn.take_due(now + WINDOW);
        assert!(is_pair(&events[0], &end) && events.len() == 1, "{events:?}");
        assert_eq!(
            sentences,
            [format!("10.0.0.2: {} more times attached and detached a disk", 999 - MOST)]
        );
        assert!(!churn.hides(&end, now + WINDOW), "its beginning was reported");
        assert!(churn.due().is_none());
        let [again, _] = pair(&export, "10.0.0.2:1001");
        assert!(!churn.hides(&again, now + WINDOW));
    }
}
