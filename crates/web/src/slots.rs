//! Limits of what takes memory beside that of the connections: in all, and for each host.

use std::sync::{Arc, Mutex, PoisonError};

use export::Network;

/// The hosts of what there is now.
#[derive(Debug)]
pub(crate) struct Slots {
    max: usize,
    hosts: Arc<Mutex<Vec<Network>>>,
}

/// A slot of a host, until it is dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    hosts: Arc<Mutex<Vec<Network>>>,
    host: Network,
}

impl Slots {
    pub(crate) fn new(max: usize) -> Self {
        Self { max, hosts: Arc::default() }
    }

    /// Returns a slot; `None` if this host has as many as are left.
    pub(crate) fn get(&self, host: Network) -> Option<Slot> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let held = hosts.iter().filter(|other| **other == host).count();
        if held >= self.max.saturating_sub(hosts.len()) {
            return None;
        }
        hosts.push(host);
        Some(Slot { hosts: self.hosts.clone(), host })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = hosts.iter().position(|host| *host == self.host) {
            hosts.swap_remove(at);
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use std::net::IpAddr;

    #[test]
    fn host_has_as_many_slots_as_are_left() {
        let slots = Slots::new(16);
        let network = |n: u8| Network::of((IpAddr::from([10, 0, 0, n]), 1).into());
        let mut held: Vec<_> = (0..20).filter_map(|_| slots.get(network(1))).collect();
        assert_eq!(held.len(), 8);
        let others = (0..20).filter_map(|_| slots.get(network(2)));
        held.extend(others);
        assert_eq!(held.len(), 12);
        drop(held);
        assert!(slots.get(network(1)).is_some());
    }
}
