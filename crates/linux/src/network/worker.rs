//! The thread that looks after all interfaces: one loop, which sleeps until the kernel, a neighbour or a clock has
//! something for it.
//!
//! Does not know how an interface comes to its addresses.

use super::Note;
use super::ether::Mac;
use super::interface::Interface;
use super::link::{self, Link};
use super::plan::{Plan, unplaced};
use super::route;
use super::setting::{Fixed, Setting};
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
/// After an error of the kernel's routing socket it is asked again.
const AGAIN: Duration = Duration::from_secs(1);
/// An interface that is named and has not come by then is reported; it may still come.
const MISSING_AFTER: Duration = Duration::from_secs(10);

/// What the thread knows.
pub(super) struct Worker<S> {
    settings: Vec<Setting>,
    /// Fixed addresses that wait for the first interface with a carrier.
    unplaced: Vec<Fixed>,
    /// Interfaces that settings name and that nobody has seen yet, and when this is told.
    missing: BTreeSet<String>,
    missing_due: Option<Instant>,
    events: Socket,
    again: Option<Instant>,
    ports: BTreeMap<u32, Interface>,
    addresses: BTreeSet<(String, IpAddr)>,
    tree: Tree,
    sink: S,
}

impl<S: FnMut(Note)> Worker<S> {
    /// Starts listening to the kernel. Errors: no routing sockets here.
    pub(super) fn open(settings: Vec<Setting>, sink: S) -> io::Result<Self> {
        let missing: BTreeSet<String> =
            settings.iter().filter_map(|setting| setting.interface.clone()).collect();
        Ok(Self {
            unplaced: unplaced(&settings),
            missing_due: (!missing.is_empty()).then(|| Instant::now() + MISSING_AFTER),
            missing,
            settings,
            events: Socket::listening(None, GROUPS)?,
            again: None,
            ports: BTreeMap::new(),
            addresses: BTreeSet::new(),
            tree: Tree::machine(),
            sink,
        })
    }

    /// Works until the other end of `stop` is closed.
    pub(super) fn run(mut self, stop: &UnixStream) {
        self.set_hostname();
        self.look();
        while !self.wait(stop) {
            let now = Instant::now();
            let own: Vec<Mac> = self.ports.values().map(Interface::mac).collect();
            for port in self.ports.values_mut() {
                port.receive(now, &own);
                port.tick(now);
            }
            if self.is_to_look(now) {
                self.look();
            }
            self.report_missing(now);
            self.report();
        }
    }

    fn set_hostname(&mut self) {
        let Some(name) = self.settings.iter().find_map(|setting| setting.hostname.as_ref()) else {
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

    /// Sleeps until there is something to do; whether it is time to end.
    fn wait(&self, stop: &UnixStream) -> bool {
        let timeout =
            self.deadline().map(|due| timespec(due.saturating_duration_since(Instant::now())));
        let mut watched =
            vec![PollFd::new(stop, PollFlags::IN), PollFd::new(&self.events, PollFlags::IN)];
        for socket in self.ports.values().flat_map(Interface::sockets) {
            watched.push(PollFd::from_borrowed_fd(socket, PollFlags::IN));
        }
        match poll(&mut watched, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            // Nothing can be waited for; the loop must not run hot.
            Err(_) => std::thread::sleep(AGAIN),
        }
        watched.first().is_some_and(|stop| !stop.revents().is_empty())
    }

    fn deadline(&self) -> Option<Instant> {
        let ports = self.ports.values().filter_map(Interface::deadline);
        ports.chain(self.again).chain(self.missing_due).min()
    }

    /// Takes all that the kernel says; whether anything of it is a reason to look.
    fn is_to_look(&mut self, now: Instant) -> bool {
        let mut look = self.again.is_some_and(|again| again <= now);
        loop {
            match self.events.receive() {
                Ok(Received::Nothing) => return look,
                Ok(_) => look = true,
                // The socket is asked again when the tables are.
                Err(_) => return true,
            }
        }
    }

    /// Reads the kernel's tables, which is right also after messages were lost.
    fn look(&mut self) {
        self.again = None;
        let looked = self.look_at_links().and_then(|()| self.look_at_addresses());
        if let Err(error) = looked {
            self.again = Some(Instant::now() + AGAIN);
            let what = "read from the kernel's tables".to_owned();
            (self.sink)(Note::Failed { interface: "the network".into(), what, error });
        }
        self.report();
    }

    fn look_at_links(&mut self) -> io::Result<()> {
        let links = link::links()?;
        self.forget(&links);
        for link in &links {
            self.missing.remove(&link.name);
            match link.mac.filter(|_| link.ethernet) {
                Some(mac) => self.attend(link, mac),
                None if link.loopback && !link.up => drop(route::set_up(link.index)),
                None => {}
            }
        }
        Ok(())
    }

    /// Those that are gone, or have another name and thus other settings.
    fn forget(&mut self, links: &[Link]) {
        let sink = &mut self.sink;
        self.ports.retain(|index, port| {
            let stays = links.iter().any(|link| link.index == *index && link.name == port.name());
            if !stays {
                sink(Note::Gone { interface: port.name().to_owned() });
            }
            stays
        });
    }

    fn attend(&mut self, link: &Link, mac: Mac) {
        let now = Instant::now();
        self.missing.retain(|name| Mac::parse(name) != Some(mac));
        if !self.ports.contains_key(&link.index) {
            let wired = link.is_wired(&self.tree);
            let Some(plan) = Plan::of(&link.name, mac, wired, &self.settings) else { return };
            self.ports.insert(link.index, Interface::open(now, link, mac, plan, &self.tree));
        }
        let Some(port) = self.ports.get_mut(&link.index) else { return };
        port.set_running(now, link.running);
        if link.running && !port.is_named() {
            self.unplaced.drain(..).for_each(|fixed| port.place(&fixed));
        }
    }

    /// Tells of addresses that can be used now and of those that went.
    fn look_at_addresses(&mut self) -> io::Result<()> {
        if self.ports.is_empty() {
            return Ok(());
        }
        let found = net::addresses()?;
        let key = |address: &net::Address| (address.interface.clone(), address.ip);
        let there: BTreeSet<_> = found.iter().map(key).collect();
        for (interface, address) in self.addresses.difference(&there).cloned() {
            (self.sink)(Note::AddressGone { interface, address });
        }
        self.addresses.retain(|address| there.contains(address));
        let names: BTreeSet<&str> = self.ports.values().map(Interface::name).collect();
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
        let notes: Vec<Note> = self.ports.values_mut().flat_map(Interface::notes).collect();
        notes.into_iter().for_each(&mut self.sink);
    }
}

/// Rounded up to the millisecond: waking just before a deadline would be for nothing.
fn timespec(wait: Duration) -> Timespec {
    let wait = wait.saturating_add(Duration::from_millis(1));
    Timespec {
        tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: wait.subsec_nanos().into(),
    }
}
