//! Where `storagetm serve` is reached: the sockets of its listeners, and what is told of them as addresses come and go. It
//! knows no disk.

use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use console::Link;
use console::attach::{Endpoint, Nbd};
use linux::net::{Address, Changes, Scope, addresses, scope_of};
use linux::tree::Tree;

use super::{COALESCE, Server};
use daemon::listen::{BindAddr, Listener};
use daemon::listeners::path;
use daemon::worker::Worker;

impl Server {
    /// Where hosts reach the disks by NVMe/TCP.
    pub(super) fn endpoints(&self) -> Vec<Endpoint> {
        let mut endpoints = self.listeners.endpoints(&self.addresses);
        endpoints.retain(|at| self.is_advertised(at));
        endpoints
    }

    /// Where they reach them by NBD.
    pub(super) fn nbd_endpoints(&self) -> Vec<Nbd> {
        let mut endpoints = self.listeners.nbd_endpoints(&self.addresses);
        endpoints.retain(|at| at.endpoint().is_none_or(|at| self.is_advertised(at)));
        endpoints
    }

    /// Where nobody works, this machine itself is no host.
    fn is_advertised(&self, at: &Endpoint) -> bool {
        !self.remote_only || scope_of(at.address) != Scope::Loopback
    }

    /// Whether a cable is connected, for a screen without an address.
    pub(super) fn link(&self) -> Link {
        match linux::net::cards(&Tree::machine()) {
            cards if cards.is_empty() => Link::NoCard,
            cards if cards.iter().any(|card| card.carrier) => Link::Up,
            _ => Link::Down,
        }
    }

    /// Takes note that addresses have come or gone, to look a moment later.
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

    /// Listens at the addresses that there are now, and tells of them.
    pub(super) fn update_listeners(&mut self) {
        let before = (self.endpoints(), self.nbd_endpoints());
        let Ok(now) = addresses() else {
            // The kernel was busy: what is known stays true until it answers.
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
        if (self.endpoints(), self.nbd_endpoints()) != before {
            self.draw_soon(true);
        }
    }
}

/// Has the worker serve at a place; that which it got comes back.
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

/// The interface that alone may bring connections to an address: that of a link-local IPv4 address, which Linux would
/// otherwise answer on every other, too. The scope of an IPv6 one says the same by itself.
fn interface_of(ip: IpAddr) -> Option<String> {
    let near = matches!(ip, IpAddr::V4(ip) if ip.is_link_local());
    let own = |address: &Address| near && address.ip == ip;
    addresses().ok()?.into_iter().find(own).map(|address| address.interface)
}

/// What to say of addresses that other machines reach by more than a cable: nothing is lent there unasked.
pub(super) fn unserved_address_note(addresses: &[Address]) -> Option<String> {
    let is_beyond = |address: &&Address| address.is_usable() && address.scope == Scope::Global;
    let address = addresses.iter().find(is_beyond)?;
    Some(format!(
        "Nothing is lent at {address}, which more than the next machine may reach: that takes \
         storagetm.listen={address} on the kernel command line."
    ))
}
