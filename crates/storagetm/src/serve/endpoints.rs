//! Listening sockets of `storagetm serve`, and the endpoints shown to the user, as addresses
//! change.

use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use console::Link;
use linux::net::{Address, Changes, Scope, addresses, scope_of};
use linux::tree::Tree;
use protocol::endpoint::{Endpoint, NetAddr};

use super::{COALESCE, Server};
use daemon::listen::{BindAddr, Listener};
use daemon::listeners::path;
use daemon::worker::Worker;

impl Server {
    /// The endpoints to show. In target mode nobody attaches from the machine itself.
    pub(super) fn endpoints(&self) -> Vec<Endpoint> {
        let mut endpoints = self.listeners.endpoints(&self.addresses);
        if self.remote_only {
            let is_remote = |at: &NetAddr| scope_of(at.ip) != Scope::Loopback;
            endpoints.retain(|at| at.net().is_none_or(is_remote));
        }
        endpoints
    }

    /// Returns the state of the network link.
    pub(super) fn link(&self) -> Link {
        match linux::net::cards(&Tree::machine()) {
            cards if cards.is_empty() => Link::NoCard,
            cards if cards.iter().any(|card| card.carrier) => Link::Up,
            _ => Link::Down,
        }
    }

    /// Schedules an update after address changes.
    pub(super) fn notice_addresses(&mut self, now: Instant) {
        let changed = self.address_changes.as_mut().map(Changes::receive);
        match changed {
            Some(Ok(true)) => {
                self.timers.addresses.get_or_insert(now + COALESCE);
            }
            Some(Err(_)) => self.address_changes = None,
            Some(Ok(false)) | None => {}
        }
    }

    /// Listens on the current addresses, and reports changes.
    pub(super) fn update_listeners(&mut self) {
        let before = self.endpoints();
        let Ok(now) = addresses() else {
            // Keep the known addresses, and try again.
            self.timers.addresses = Some(Instant::now() + Duration::from_secs(1));
            return;
        };
        self.addresses = now;
        let Self { listeners, worker, addresses, .. } = self;
        let changes = listeners.update(addresses, &mut |listener| bind(worker, listener));
        for change in changes {
            self.report(&change);
        }
        self.announce_mdns();
        if self.endpoints() != before {
            self.draw_soon(true);
        }
    }
}

/// Binds a listener and passes it to the worker. Returns its address.
pub(super) fn bind(worker: &Worker, listener: &Listener) -> io::Result<BindAddr> {
    let (socket, addr) = match &listener.addr {
        BindAddr::Net(address) => {
            let socket = engine::bind(*address, interface_of(address.ip()).as_deref())?;
            let bound = rustix::net::getsockname(&socket)?.try_into()?;
            (socket, BindAddr::Net(bound))
        }
        BindAddr::Path(path) => (path::bind(path)?, listener.addr.clone()),
    };
    worker.accept(socket, listener.auth, listener.serves);
    Ok(addr)
}

/// Returns the interface to bind to for a link-local IPv4 address, which Linux would otherwise
/// accept on all interfaces. IPv6 has the scope id.
fn interface_of(ip: IpAddr) -> Option<String> {
    let near = matches!(ip, IpAddr::V4(ip) if ip.is_link_local());
    let own = |address: &Address| near && address.ip == ip;
    addresses().ok()?.into_iter().find(own).map(|address| address.interface)
}

/// Returns a note about a routable address that is not served without `storagetm.listen`.
pub(super) fn unserved_address_note(addresses: &[Address]) -> Option<String> {
    let is_beyond = |address: &&Address| address.is_usable() && address.scope == Scope::Global;
    let address = addresses.iter().find(is_beyond)?;
    Some(format!(
        "Nothing is lent at {address}, which more than the next machine may reach: that takes \
         storagetm.listen={address} on the kernel command line."
    ))
}
