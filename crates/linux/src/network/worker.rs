//! The network thread: one loop over the events of the kernel, the sockets and the timers of all
//! interfaces.

use super::Note;
use super::ether::Mac;
use super::interface::Interface;
use super::ip_parameter::{Fixed, IpParameter};
use super::link::{self, Link};
use super::parameters::NetworkParameters;
use super::plan::{Plan, unplaced};
use super::route;
use super::stack::{MISSING_AFTER, Stack};
use crate::net;
use crate::netlink::{Received, Socket};
use crate::tree::Tree;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// RTMGRP_LINK, RTMGRP_IPV4_IFADDR and RTMGRP_IPV6_IFADDR.
const GROUPS: u32 = 0x1 | 0x10 | 0x100;
/// The delay before a retry after an error of the routing socket.
const RETRY: Duration = Duration::from_secs(1);

/// The state of the thread.
pub(super) struct Worker<S> {
    parameters: Vec<IpParameter>,
    stack: Stack,
    /// Fixed addresses for the first interface with a carrier.
    unplaced: Vec<Fixed>,
    /// The index of the interface that has them.
    placed_at: Option<u32>,
    /// Interfaces that parameters name and that were not seen yet, and when to report them.
    missing: BTreeSet<String>,
    missing_due: Option<Instant>,
    events: Socket,
    retry_at: Option<Instant>,
    interfaces: BTreeMap<u32, Interface>,
    addresses: BTreeSet<(String, IpAddr)>,
    tree: Tree,
    sink: S,
}

impl<S: FnMut(Note)> Worker<S> {
    /// Opens the routing socket.
    ///
    /// # Errors
    /// Fails without routing sockets.
    pub(super) fn open(parameters: NetworkParameters, sink: S) -> io::Result<Self> {
        let NetworkParameters { ip: parameters, uppers } = parameters;
        let stack = Stack::new(uppers);
        let named = parameters.iter().filter_map(|parameter| parameter.interface.as_ref());
        let named = named.filter(|name| !stack.is_upper(name)).chain(stack.lowers());
        let missing: BTreeSet<String> = named.cloned().collect();
        Ok(Self {
            stack,
            unplaced: unplaced(&parameters),
            placed_at: None,
            missing_due: (!missing.is_empty()).then(|| Instant::now() + MISSING_AFTER),
            missing,
            parameters,
            events: Socket::listening(None, GROUPS)?,
            retry_at: None,
            interfaces: BTreeMap::new(),
            addresses: BTreeSet::new(),
            tree: Tree::machine(),
            sink,
        })
    }

    /// Runs until the other end of `stop` is closed.
    pub(super) fn run(mut self, stop: &UnixStream) {
        self.set_hostname();
        self.scan();
        while !self.wait(stop) {
            let now = Instant::now();
            let own: Vec<Mac> = self.interfaces.values().map(Interface::mac).collect();
            for interface in self.interfaces.values_mut() {
                interface.receive(now, &own);
                interface.tick(now);
            }
            if self.needs_scan(now) {
                self.scan();
            }
            self.report_missing(now);
            self.report();
        }
    }

    fn set_hostname(&mut self) {
        let Some(name) = self.parameters.iter().find_map(|parameter| parameter.hostname.as_ref())
        else {
            return;
        };
        if let Err(error) = rustix::system::sethostname(name.as_bytes()) {
            let what = format!("named {name}");
            (self.sink)(Note::Failed {
                interface: "this machine".into(),
                what,
                error: error.into(),
            });
        }
    }

    /// Waits for an event or a deadline. Returns whether to stop.
    fn wait(&self, stop: &UnixStream) -> bool {
        let timeout =
            self.deadline().map(|due| timespec(due.saturating_duration_since(Instant::now())));
        let mut watched =
            vec![PollFd::new(stop, PollFlags::IN), PollFd::new(&self.events, PollFlags::IN)];
        for socket in self.interfaces.values().flat_map(Interface::sockets) {
            watched.push(PollFd::from_borrowed_fd(socket, PollFlags::IN));
        }
        match poll(&mut watched, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            // `poll` failed: sleep, so that the loop does not spin.
            Err(_) => std::thread::sleep(RETRY),
        }
        watched.first().is_some_and(|stop| !stop.revents().is_empty())
    }

    fn deadline(&self) -> Option<Instant> {
        let interfaces = self.interfaces.values().filter_map(Interface::deadline);
        interfaces.chain(self.retry_at).chain(self.missing_due).min()
    }

    /// Reads all pending messages. Returns whether the tables must be read again.
    fn needs_scan(&mut self, now: Instant) -> bool {
        let mut is_needed = self.retry_at.is_some_and(|at| at <= now);
        loop {
            match self.events.receive() {
                Ok(Received::Nothing) => return is_needed,
                Ok(_) => is_needed = true,
                // The socket is read again after the tables.
                Err(_) => return true,
            }
        }
    }

    /// Reads the kernel's tables. Correct also after lost messages.
    fn scan(&mut self) {
        self.retry_at = None;
        let result = self.scan_links().and_then(|()| self.scan_addresses());
        if let Err(error) = result {
            self.retry_at = Some(Instant::now() + RETRY);
            let what = "read from the kernel's tables".to_owned();
            (self.sink)(Note::Failed { interface: "the network".into(), what, error });
        }
        self.report();
    }

    fn scan_links(&mut self) -> io::Result<()> {
        let links = link::links()?;
        if self.stack.build(&links, &mut self.sink) {
            self.retry_at = Some(Instant::now() + RETRY);
        }
        self.forget(&links);
        for link in &links {
            self.missing.remove(&link.name);
            self.missing
                .retain(|name| Mac::parse(name).is_none_or(|mac| link.own_mac != Some(mac)));
            if self.stack.is_bare(link, &links) {
                continue;
            }
            match link.mac.filter(|_| link.ethernet) {
                Some(mac) => self.attend(link, mac),
                None if link.loopback && !link.up => drop(route::set_up(link.index)),
                None => {}
            }
        }
        Ok(())
    }

    /// Drops interfaces that are gone, or were renamed and thus have other parameters.
    fn forget(&mut self, links: &[Link]) {
        let (sink, placed_at) = (&mut self.sink, &mut self.placed_at);
        self.interfaces.retain(|index, interface| {
            let stays =
                links.iter().any(|link| link.index == *index && link.name == interface.name());
            if !stays {
                // The next one with a cable gets the addresses, or the same one when it is plugged in again.
                placed_at.take_if(|at| *at == *index);
                sink(Note::Gone { interface: interface.name().to_owned() });
            }
            stays
        });
    }

    fn attend(&mut self, link: &Link, mac: Mac) {
        let now = Instant::now();
        if !self.interfaces.contains_key(&link.index) {
            let is_upper = self.stack.is_upper(&link.name);
            let wired = link.is_wired(&self.tree) || is_upper;
            // A VLAN has the MAC address of the card.
            let own = (!is_upper).then_some(mac);
            let Some(plan) = Plan::of(&link.name, own, wired, &self.parameters) else { return };
            let interface = Interface::open(now, link, mac, is_upper, plan, &self.tree);
            self.interfaces.insert(link.index, interface);
        }
        let Some(interface) = self.interfaces.get_mut(&link.index) else { return };
        interface.set_running(now, link.running);
        let has_all = self.placed_at.is_some() || self.unplaced.is_empty();
        if link.running && !interface.is_named() && !has_all {
            self.placed_at = Some(link.index);
            self.unplaced.iter().for_each(|fixed| interface.place(fixed));
        }
    }

    /// Reinterfaces addresses that became usable or were removed.
    fn scan_addresses(&mut self) -> io::Result<()> {
        if self.interfaces.is_empty() {
            return Ok(());
        }
        let found = net::addresses()?;
        let key = |address: &net::Address| (address.interface.clone(), address.ip);
        let there: BTreeSet<_> = found.iter().map(key).collect();
        for (interface, address) in self.addresses.difference(&there).cloned() {
            (self.sink)(Note::AddressGone { interface, address });
        }
        self.addresses.retain(|address| there.contains(address));
        let names: BTreeSet<&str> = self.interfaces.values().map(Interface::name).collect();
        for address in found.iter().filter(|address| names.contains(address.interface.as_str())) {
            if address.is_usable() && self.addresses.insert(key(address)) {
                let interface = address.interface.clone();
                (self.sink)(Note::Address { interface, address: address.ip });
            }
        }
        Ok(())
    }

    fn report_missing(&mut self, now: Instant) {
        if self.missing_due.is_none_or(|due| now < due) {
            return;
        }
        self.missing_due = None;
        for interface in std::mem::take(&mut self.missing) {
            (self.sink)(Note::Missing { interface });
        }
    }

    fn report(&mut self) {
        let notes: Vec<Note> = self.interfaces.values_mut().flat_map(Interface::notes).collect();
        notes.into_iter().for_each(&mut self.sink);
    }
}

/// Rounds up to the millisecond: waking just before a deadline would be useless.
fn timespec(wait: Duration) -> Timespec {
    let wait = wait.saturating_add(Duration::from_millis(1));
    Timespec {
        tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: wait.subsec_nanos().into(),
    }
}
