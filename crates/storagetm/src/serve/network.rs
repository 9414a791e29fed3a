//! The machine's addresses, the sockets that listen on them, and their announcement.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use console::Link;
use daemon::certificates::CertificateIds;
use daemon::event::ServeEvent;
use daemon::inbox::Inbox;
use daemon::listen::{BindAddr, DefaultScope, Listener, Plan, Protocols, Service, plan};
use daemon::listeners::{Listeners, path};
use daemon::status::loopback_advice;
use daemon::worker::Worker;
use dnssd::Announcer;
use export::{Auth, Export, Peer};
use failure::Failure;
use linux::net::{Address, Changes, Scope, addresses, hostname, scope_of};
use linux::tree::Tree;
use protocol::Protocol;
use protocol::endpoint::{Endpoint, NetAddr};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::config::ServeConfig;
use super::mdns::mdns_endpoints;
use super::socket_activation::{InheritedSockets, unusable};
use super::{Context, coalesced};

pub(super) struct Network {
    /// Name of the machine.
    machine: String,
    listeners: Listeners,
    addresses: Vec<Address>,
    changes: Option<Changes>,
    /// When the addresses are read again.
    update_due: Option<Instant>,
    /// When they were last read after a change.
    updated: Option<Instant>,
    /// Announces the disks by multicast DNS, if enabled.
    announcer: Option<Announcer>,
    /// Whether a listener requires a key, now or later.
    may_require_key: bool,
    /// Whether loopback addresses are left out of what is shown.
    remote_only: bool,
    /// Whether attach commands enable digests.
    digests: bool,
    /// The socket of the only client (`--stdin`).
    only_peer: Option<OwnedFd>,
}

/// Plans where to listen. `has_inherited`: whether sockets are passed by the service manager.
///
/// # Errors
/// Fails if an address cannot be listened on.
pub(super) fn planned(
    config: &ServeConfig,
    has_inherited: bool,
    addresses: &[Address],
) -> Result<Plan, Failure> {
    let scope = match (config.open, config.routable) {
        (true, _) => DefaultScope::Everywhere,
        (false, true) => DefaultScope::Present,
        (false, false) => DefaultScope::Nearby,
    };
    let (listen, protocols) = (&config.listen, Protocols::of(&config.protocols));
    if has_inherited && listen.is_empty() {
        return Ok(Plan::Fixed(Vec::new()));
    }
    plan(listen, protocols, scope, config.is_target(), addresses)
}

impl Network {
    /// Plans where to listen, on the addresses that the machine has.
    ///
    /// # Errors
    /// Fails if an address cannot be listened on.
    pub(super) fn open(
        config: &ServeConfig,
        certificate: Option<CertificateIds>,
        inherited: Option<&InheritedSockets>,
        inbox: &Inbox,
    ) -> Result<Self, Failure> {
        let changes = Changes::open().ok();
        let addresses = addresses().unwrap_or_else(|_| vec![loopback()]);
        let plan = planned(config, inherited.is_some(), &addresses)?;
        let is_keyed = |listener: &Listener| listener.auth == Auth::Required;
        let may_require_key = !config.open
            && (inherited.is_some_and(InheritedSockets::is_keyed)
                || !matches!(plan, Plan::Fixed(_))
                || plan.listeners(&addresses).iter().any(is_keyed));
        let notes = inbox.clone();
        let announcer =
            || Announcer::new(config.mdns_port, Arc::new(move |sentence| notes.note(sentence)));
        Ok(Self {
            machine: hostname(),
            listeners: Listeners::closed(plan, config.open).with_certificate(certificate),
            addresses,
            changes,
            update_due: None,
            updated: None,
            announcer: config.announce.then(announcer),
            may_require_key,
            remote_only: config.is_target(),
            digests: config.digests,
            only_peer: None,
        })
    }

    pub(super) fn may_require_key(&self) -> bool {
        self.may_require_key
    }

    pub(super) fn machine(&self) -> &str {
        &self.machine
    }

    pub(super) fn digests(&self) -> bool {
        self.digests
    }

    /// Opens the listeners, and passes the inherited sockets to the worker.
    ///
    /// # Errors
    /// Fails if an address cannot be bound, or if no descriptor is available.
    pub(super) fn listen(
        &mut self,
        inherited: Option<InheritedSockets>,
        cx: &mut Context<'_>,
    ) -> Result<(), Failure> {
        let bind = &mut |listener: &Listener| bind(cx.worker, listener);
        let left_out = self.listeners.open(&self.addresses, bind)?;
        left_out.into_iter().for_each(|sentence| cx.ui.note(sentence));
        match inherited {
            None => {}
            Some(InheritedSockets::Peer(socket, auth)) => {
                let kept = socket.try_clone().map_err(|error| unusable("standard input", error))?;
                cx.worker.adopt(socket, auth, Service::unix());
                self.only_peer = Some(kept);
            }
            Some(InheritedSockets::Listening(sockets)) => {
                for (listener, socket) in sockets {
                    let listener = self.listeners.adopt(listener)?;
                    cx.worker.accept(socket, listener.auth, listener.serves);
                }
            }
        }
        Ok(())
    }

    /// Returns events for all open listeners.
    pub(super) fn open_events(&self) -> Vec<ServeEvent> {
        self.listeners.open_events()
    }

    /// Returns the endpoints that are shown. In target mode nobody attaches from the machine itself.
    pub(super) fn endpoints(&self) -> Vec<Endpoint> {
        let mut endpoints = self.listeners.endpoints(&self.addresses);
        if self.remote_only {
            let is_remote = |at: &NetAddr| scope_of(at.ip) != Scope::Loopback;
            endpoints.retain(|at| at.net().is_none_or(is_remote));
        }
        endpoints
    }

    /// Returns the event for a new export, with the commands that attach it.
    pub(super) fn lent_event(&self, export: &Export) -> ServeEvent {
        ServeEvent::lent(export, &self.endpoints(), self.digests)
    }

    /// Returns the protocol of a peer.
    pub(super) fn protocol_of(&self, peer: &Peer) -> Protocol {
        self.listeners.protocol_of(peer)
    }

    /// Returns notes about addresses; with `unserved` also about one that is not listened on.
    pub(super) fn notes(&self, unserved: bool) -> Vec<String> {
        let advice = loopback_advice(&self.endpoints()).filter(|_| !self.listeners.are_fixed());
        let mut notes: Vec<String> = advice.map(str::to_owned).into_iter().collect();
        if unserved && self.listeners.is_nearby() {
            notes.extend(unserved_address_note(&self.addresses));
        }
        let awaited = |address| format!("This machine does not have the address {address} yet.");
        notes.extend(self.listeners.awaited(&self.addresses).into_iter().map(awaited));
        notes
    }

    /// Schedules an update after address changes.
    pub(super) fn receive(&mut self, now: Instant) {
        match self.changes.as_mut().map(Changes::receive) {
            Some(Ok(true)) => {
                self.update_due.get_or_insert_with(|| coalesced(self.updated, now));
            }
            Some(Err(_)) => self.changes = None,
            Some(Ok(false)) | None => {}
        }
    }

    /// Readable after address changes.
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.changes.as_ref().map(AsFd::as_fd)
    }

    /// Returns when [`Self::update`] is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.update_due
    }

    /// Listens on the current addresses, and reports changes.
    pub(super) fn update(&mut self, cx: &mut Context<'_>) {
        let before = self.endpoints();
        let Ok(addresses) = addresses() else {
            // Keep the known addresses, and try again.
            self.update_due = Some(Instant::now() + Duration::from_secs(1));
            return;
        };
        self.update_due = None;
        self.updated = Some(cx.now);
        self.addresses = addresses;
        let bind = &mut |listener: &Listener| bind(cx.worker, listener);
        for change in self.listeners.update(&self.addresses, bind) {
            cx.ui.report(&change);
        }
        self.announce();
        if self.endpoints() != before {
            cx.ui.draw_soon(true);
        }
    }

    /// Announces the current listeners by multicast DNS.
    pub(super) fn announce(&mut self) {
        let Some(announcer) = &mut self.announcer else { return };
        let found = mdns_endpoints(self.listeners.active());
        announcer.announce(&self.machine, &found, &self.addresses);
    }

    /// Ends the announcement.
    pub(super) fn stop_announcing(&mut self) {
        self.announcer.take().into_iter().for_each(Announcer::stop);
    }

    /// The socket of the only client, to be polled for its end.
    pub(super) fn only_peer(&self) -> Option<BorrowedFd<'_>> {
        self.only_peer.as_ref().map(AsFd::as_fd)
    }

    /// Returns whether the only client is gone. A half-closed connection may still wait for
    /// replies.
    pub(super) fn only_peer_gone(&self) -> bool {
        let gone = |socket: &OwnedFd| {
            let mut ends = [PollFd::new(socket, PollFlags::empty())];
            poll(&mut ends, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
        };
        self.only_peer.as_ref().is_some_and(gone)
    }
}

/// Returns the state of the network link.
pub(super) fn link() -> Link {
    match linux::net::cards(&Tree::machine()) {
        cards if cards.is_empty() => Link::NoCard,
        cards if cards.iter().any(|card| card.carrier) => Link::Up,
        _ => Link::Down,
    }
}

/// Fallback if the kernel's addresses cannot be read.
fn loopback() -> Address {
    Address {
        ip: std::net::Ipv4Addr::LOCALHOST.into(),
        interface: "lo".to_owned(),
        scope_id: 1,
        scope: Scope::Loopback,
        tentative: false,
        deprecated: false,
        running: true,
    }
}

/// Binds a listener and passes it to the worker. Returns its address.
fn bind(worker: &Worker, listener: &Listener) -> io::Result<BindAddr> {
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
fn unserved_address_note(addresses: &[Address]) -> Option<String> {
    let is_beyond = |address: &&Address| address.is_usable() && address.scope == Scope::Global;
    let address = addresses.iter().find(is_beyond)?;
    Some(format!(
        "Nothing is lent at {address}, which more than the next machine may reach: that takes \
         storagetm.listen={address} on the kernel command line."
    ))
}
