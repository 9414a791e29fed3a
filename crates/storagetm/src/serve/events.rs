//! Events of hosts and disks as they are reported: in bounds, with totals of failed requests.

use std::time::Instant;

use daemon::event::{ServeEvent, peer_of};
use daemon::rate_limit::CountedEvent;
use protocol::Protocol;

use super::event_limit::EventLimit;
use super::faults::Faults;
use super::hosts::Hosts;
use super::network::Network;

#[derive(Debug, Default)]
pub(super) struct Events {
    limit: EventLimit,
    /// Failed requests of disks.
    faults: Faults,
}

impl Events {
    /// Returns the event as it is reported, or `None` if it must not be reported now.
    pub(super) fn admit(
        &mut self,
        counted: CountedEvent,
        network: &Network,
        hosts: &Hosts,
        now: Instant,
    ) -> Option<ServeEvent> {
        self.faults.record(&counted.event, counted.count);
        let is_suppressed = self.limit.suppresses(&counted.event, now);
        (!is_suppressed).then(|| serve_event(counted, network, hosts))
    }

    /// Returns when [`Self::take_due`] is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.limit.due()
    }

    /// Returns what is to be reported of suppressed events, at the end of their windows.
    pub(super) fn take_due(
        &mut self,
        network: &Network,
        hosts: &Hosts,
        now: Instant,
    ) -> Vec<ServeEvent> {
        let (events, sentences) = self.limit.take_due(now);
        let events = events.into_iter().map(|event| serve_event(event.into(), network, hosts));
        events.chain(sentences.into_iter().map(ServeEvent::note)).collect()
    }

    /// Returns what is still to be reported, with totals, at shutdown.
    pub(super) fn take_all(&mut self, network: &Network, hosts: &Hosts) -> Vec<ServeEvent> {
        let (events, sentences) = self.limit.take_all();
        let sentences = sentences.into_iter().chain(self.faults.totals());
        let events = events.into_iter().map(|event| serve_event(event.into(), network, hosts));
        events.chain(sentences.map(ServeEvent::note)).collect()
    }
}

/// Returns the event with its protocol and host name.
fn serve_event(counted: CountedEvent, network: &Network, hosts: &Hosts) -> ServeEvent {
    let protocol = peer_of(&counted.event).map(|peer| network.protocol_of(peer));
    ServeEvent::of(counted, hosts.policy(), protocol.unwrap_or(Protocol::Nvme))
}
