//! One interface: its state machines, their sockets, and the configuration of the kernel.

use super::Note;
use super::dhcp::{self, CLIENT_PORT, Dhcp, Lease, SERVER_PORT};
use super::ether::{Arp, Mac, broadcast};
use super::ip_parameter::Fixed;
use super::link::Link;
use super::link_local::{self, LinkLocal};
use super::plan::Plan;
use super::route::{self, Assignment};
use super::socket::{LeaseSocket, PacketSocket};
use crate::tree::Tree;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

/// Packets read from a socket before the others get their turn.
const BURST: usize = 32;

/// A managed interface.
#[derive(Debug)]
pub(super) struct Interface {
    index: u32,
    name: String,
    mac: Mac,
    plan: Plan,
    /// `None` until the first report of the kernel.
    running: Option<bool>,
    link_local: Option<LinkLocal>,
    dhcp: Option<Dhcp>,
    packets: Option<PacketSocket>,
    answers: Option<LeaseSocket>,
    /// Use without conflict detection was reported already.
    unasked: bool,
    notes: Vec<Note>,
}

impl Interface {
    /// Sets the interface up; addresses follow when it has a carrier. A VLAN or bond, `is_upper`, has
    /// the MAC address of another interface.
    pub(super) fn open(
        now: Instant,
        link: &Link,
        mac: Mac,
        is_upper: bool,
        plan: Plan,
        tree: &Tree,
    ) -> Self {
        let mut interface = Self {
            index: link.index,
            name: link.name.clone(),
            mac,
            plan,
            running: None,
            link_local: None,
            dhcp: None,
            packets: None,
            answers: None,
            unasked: false,
            notes: Vec::new(),
        };
        interface.set_kernel(tree);
        interface.set_hardware();
        let seed = if is_upper { link.name.as_str() } else { "" };
        interface.link_local =
            interface.plan.link_local.then(|| LinkLocal::new(interface.mac, seed));
        let hostname = interface.plan.hostname.clone();
        interface.dhcp = interface.plan.dhcp.then(|| Dhcp::new(now, interface.mac, hostname));
        let result = route::set_up(interface.index);
        interface.check("brought up", result);
        for fixed in std::mem::take(&mut interface.plan.fixed) {
            interface.place(&fixed);
        }
        interface
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn mac(&self) -> Mac {
        self.mac
    }

    /// Returns whether a parameter names it.
    pub(super) fn is_named(&self) -> bool {
        self.plan.named
    }

    /// Takes the notes since the last call.
    pub(super) fn notes(&mut self) -> Vec<Note> {
        std::mem::take(&mut self.notes)
    }

    /// Assigns a fixed address and its default route.
    pub(super) fn place(&mut self, fixed: &Fixed) {
        let Fixed { address, prefix, peer, gateway } = *fixed;
        let result = Assignment { index: self.index, address, prefix, peer }.add();
        self.check(format_args!("given the address {address}"), result);
        if let Some(gateway) = gateway {
            self.route(gateway);
        }
    }

    /// Updates the state of the carrier.
    pub(super) fn set_running(&mut self, now: Instant, running: bool) {
        if self.running.replace(running) == Some(running) {
            return;
        }
        let interface = self.name.clone();
        self.notes.push(match running {
            true => Note::LinkUp { interface },
            false => Note::LinkDown { interface },
        });
        if running { self.start(now) } else { self.pause() }
    }

    /// Returns when to call [`Interface::tick`].
    pub(super) fn deadline(&self) -> Option<Instant> {
        let link_local = self.link_local.as_ref().and_then(LinkLocal::deadline);
        let dhcp = self.dhcp.as_ref().and_then(Dhcp::deadline);
        [link_local, dhcp].into_iter().flatten().min()
    }

    /// Handles expired timers.
    pub(super) fn tick(&mut self, now: Instant) {
        if let Some(machine) = &mut self.link_local {
            machine.tick(now);
        }
        if let Some(machine) = &mut self.dhcp {
            machine.tick(now);
        }
        self.follow();
    }

    /// Handles pending packets; ignores those from this machine's own interfaces.
    pub(super) fn receive(&mut self, now: Instant, own: &[Mac]) {
        if let (Some(machine), Some(socket)) = (&mut self.link_local, &self.packets) {
            let waiting = std::iter::from_fn(|| socket.receive()).take(BURST);
            let packets = waiting.filter_map(|bytes| Arp::parse(&bytes));
            for packet in packets.filter(|packet| !own.contains(&packet.sender_mac)) {
                machine.receive(now, &packet);
            }
        }
        if let (Some(machine), Some(socket)) = (&mut self.dhcp, &self.answers) {
            let waiting = std::iter::from_fn(|| socket.receive()).take(BURST);
            for (message, _) in waiting.filter(|(_, port)| *port == SERVER_PORT) {
                machine.receive(now, &message);
            }
        }
        self.follow();
    }

    /// Returns the sockets to poll.
    pub(super) fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let packets = self.packets.as_ref().map(AsFd::as_fd);
        packets.into_iter().chain(self.answers.as_ref().map(AsFd::as_fd))
    }

    /// Sets the sysctls for router advertisements and ARP; skips those that do not exist.
    fn set_kernel(&self, tree: &Tree) {
        let set = |family: &str, key: &str, value: &str| {
            let file = format!("proc/sys/net/{family}/conf/{}/{key}", self.name);
            // The files do not exist if the kernel lacks IPv6.
            let _ = std::fs::write(tree.path(file), value);
        };
        let routers = if self.plan.routers { "1" } else { "0" };
        set("ipv6", "accept_ra", routers);
        set("ipv6", "autoconf", routers);
        set("ipv6", "disable_ipv6", "0");
        // The link-local address is derived from the MAC address: it skips duplicate address
        // detection, which takes a second. Consequence: conflicts of other addresses of this
        // interface are not detected either.
        set("ipv6", "accept_dad", "0");
        // Two interfaces on one cable must not answer for each other, nor claim each other's
        // addresses.
        set("ipv4", "arp_ignore", "1");
        set("ipv4", "arp_announce", "2");
    }

    fn set_hardware(&mut self) {
        if let Some(mac) = self.plan.mac {
            let result = route::set_mac(self.index, mac);
            if result.is_ok() {
                self.mac = mac;
            }
            self.check(format_args!("given the hardware address {mac}"), result);
        }
        if let Some(mtu) = self.plan.mtu {
            let result = route::set_mtu(self.index, mtu);
            self.check(format_args!("given the MTU {mtu}"), result);
        }
    }

    /// The interface has a carrier. Retries what could not be opened before: the driver may have
    /// been loaded since.
    fn start(&mut self, now: Instant) {
        if self.packets.is_none() && (self.plan.link_local || self.plan.dhcp) {
            self.packets = PacketSocket::open(self.index).ok();
        }
        if self.answers.is_none() && self.plan.dhcp {
            let opened = LeaseSocket::open(&self.name);
            self.answers = self.check("configured by DHCP", opened);
        }
        if let Some(machine) = &mut self.link_local {
            match &self.packets {
                Some(_) => machine.open(now),
                None => machine.claim_unasked(),
            }
        }
        if let Some(machine) = self.dhcp.as_mut().filter(|_| self.answers.is_some()) {
            machine.open(now);
        }
        self.tick(now);
    }

    fn pause(&mut self) {
        if let Some(machine) = &mut self.link_local {
            machine.close();
        }
        if let Some(machine) = &mut self.dhcp {
            machine.close();
        }
    }

    fn follow(&mut self) {
        while let Some(step) = self.link_local.as_mut().and_then(LinkLocal::poll) {
            self.follow_link_local(step);
        }
        while let Some(step) = self.dhcp.as_mut().and_then(Dhcp::poll) {
            self.follow_dhcp(step);
        }
    }

    fn follow_link_local(&mut self, step: link_local::Step) {
        let interface = self.name.clone();
        match step {
            link_local::Step::Send(packet) => {
                // A packet that cannot be sent counts as lost.
                let _ = self.packets.as_ref().map(|socket| socket.send_arp(&packet.emit()));
            }
            link_local::Step::Claim(address) => self.claim(address),
            link_local::Step::Release(address) => {
                let _ = route::remove_link_rule(self.index, address);
                let result = self.assignment(address, 16).delete();
                self.check(format_args!("relieved of {address}"), result);
            }
            link_local::Step::Conflict(address, other) => {
                self.notes.push(Note::Conflict { interface, address, other });
            }
        }
    }

    fn claim(&mut self, address: Ipv4Addr) {
        let result = self.assignment(address, 16).add();
        self.check(format_args!("given the address {address}"), result);
        // Where the kernel has no routing rules, a second cable answers by the first: no reason to refuse the first.
        let _ = route::keep_on_link(self.index, address);
        if self.packets.is_none() && !self.unasked {
            self.unasked = true;
            self.notes.push(Note::Unasked { interface: self.name.clone(), address });
        }
    }

    fn follow_dhcp(&mut self, step: dhcp::Step) {
        let interface = self.name.clone();
        match step {
            dhcp::Step::Broadcast(source, message) => self.ask_all(source, &message),
            dhcp::Step::Send(server, message) => self.ask(server, &message),
            dhcp::Step::Take(lease) => self.take(lease),
            dhcp::Step::Drop(lease) => self.drop_lease(lease),
            dhcp::Step::NoAnswer => self.notes.push(Note::NoAnswer { interface }),
        }
    }

    fn ask_all(&self, source: Ipv4Addr, message: &[u8]) {
        match &self.packets {
            Some(socket) => {
                let packet = broadcast((source, CLIENT_PORT), SERVER_PORT, message);
                let _ = socket.send_ipv4(&packet);
            }
            // The kernel then chooses the source; most servers ignore it.
            None => self.ask(Ipv4Addr::BROADCAST, message),
        }
    }

    /// A message that cannot be sent counts as lost: it is retransmitted.
    fn ask(&self, server: Ipv4Addr, message: &[u8]) {
        let _ = self.answers.as_ref().map(|socket| socket.send(server, SERVER_PORT, message));
    }

    fn take(&mut self, lease: Lease) {
        let result = self.assignment(lease.address, lease.prefix).add();
        self.check(format_args!("given the address {}", lease.address), result);
        if let Some(router) = lease.router {
            self.route(router.into());
        }
        if let Some(mtu) = lease.mtu.filter(|_| self.plan.mtu.is_none()) {
            let result = route::set_mtu(self.index, mtu);
            self.check(format_args!("given the MTU {mtu}"), result);
        }
        self.notes.push(Note::Lease { interface: self.name.clone(), lease });
    }

    fn drop_lease(&mut self, lease: Lease) {
        // The kernel may have removed the route with the address or the carrier.
        let _ = lease.router.map(|router| route::delete_default_route(self.index, router.into()));
        let result = self.assignment(lease.address, lease.prefix).delete();
        self.check(format_args!("relieved of {}", lease.address), result);
        self.notes.push(Note::LeaseLost { interface: self.name.clone(), lease });
    }

    fn route(&mut self, router: IpAddr) {
        let result = route::add_default_route(self.index, router);
        self.check(format_args!("given the router {router}"), result);
    }

    fn assignment(&self, address: Ipv4Addr, prefix: u8) -> Assignment {
        Assignment { index: self.index, address: address.into(), prefix, peer: None }
    }

    /// Records an error as [`Note::Failed`].
    fn check<T>(&mut self, what: impl fmt::Display, result: io::Result<T>) -> Option<T> {
        result
            .map_err(|error| {
                let interface = self.name.clone();
                self.notes.push(Note::Failed { interface, what: what.to_string(), error });
            })
            .ok()
    }
}
