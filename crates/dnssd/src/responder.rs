//! `storagetm announcer`: the multicast DNS responder. It receives requests from its parent, and
//! its sandbox allows it only to send and receive packets.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use linux::sandbox;
use linux::signal::Signals;
use mdns_sd::{
    IfKind, MDNS_PORT, ResolvedService, ScopedIp, ServiceDaemon, ServiceEvent, ServiceInfo,
};
use rustix::process::{Resource, Rlimit, setrlimit};
use socket2::{Domain, Socket, Type};

use super::messages::{Event, FoundService, MAX_EVENTS, MAX_LINE, Request, ScopedAddr, Service};
use failure::Failure;
use protocol::{PROTOCOLS, Protocol};

/// Memory limit in bytes; bounds what hostile packets can allocate.
const MEMORY: u64 = 256 << 20;
/// Timeout for the goodbye packet of a service.
const GOODBYE: Duration = Duration::from_millis(300);
/// Delay before a goodbye packet is repeated, in case the first one is lost.
const REPEAT_DELAY: Duration = Duration::from_millis(150);

/// Handles requests until the parent closes the pipe.
///
/// # Errors
/// Fails if it was not started by this program.
pub fn work() -> Result<(), Failure> {
    // Signals from the terminal or the service manager are handled by the parent.
    let _ignored = Signals::open();
    let Some(parent) = rustix::process::getppid() else { return Ok(()) };
    if sandbox::drop_privileges(parent).is_err() {
        return Ok(());
    }
    let _ = setrlimit(Resource::Data, Rlimit { current: Some(MEMORY), maximum: Some(MEMORY) });
    let _ = sandbox::restrict_files();
    let mut requests = requests(io::stdin().lock());
    let Some(Request::Start { port }) = requests.next() else {
        return Err(Failure::usage(
            "storagetm announcer is a part of storagetm serve and storagetm find, which start it by themselves",
        ));
    };
    match Responder::start(port) {
        Ok(responder) => responder.run(requests),
        Err(reason) => send_event(&Event::Note(reason)),
    }
    Ok(())
}

/// Reads requests; ends at the first malformed one.
fn requests(from: impl BufRead) -> impl Iterator<Item = Request> {
    let mut from = BufReader::new(from);
    std::iter::from_fn(move || {
        let mut line = Vec::new();
        let limit = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
        from.by_ref().take(limit).read_until(b'\n', &mut line).ok()?;
        serde_json::from_slice(&line).ok()
    })
}

fn send_event(event: &Event) {
    static OUTPUT: Mutex<()> = Mutex::new(());
    let _one_at_a_time = OUTPUT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Ok(mut line) = serde_json::to_vec(event) {
        line.push(b'\n');
        // If the parent does not read, it is about to kill this process.
        let mut output = io::stdout().lock();
        let _ = output.write_all(&line).and_then(|()| output.flush());
    }
}

/// The mDNS daemon, and the announced services by full name.
struct Responder {
    daemon: ServiceDaemon,
    announced: HashMap<String, Service>,
    interfaces: Vec<String>,
}

impl Responder {
    fn start(port: Option<u16>) -> Result<Self, String> {
        check(port.unwrap_or(MDNS_PORT)).map_err(|error| error.to_string())?;
        let daemon = ServiceDaemon::new_with_port(port.unwrap_or(MDNS_PORT));
        let daemon = daemon.map_err(|error| error.to_string())?;
        if port.is_none() {
            // Not needed: clients on this machine do not browse.
            let loopback = vec![IfKind::LoopbackV4, IfKind::LoopbackV6];
            daemon.disable_interface(loopback).map_err(|error| error.to_string())?;
        }
        // All threads have been started.
        let _ = sandbox::deny_dangerous_syscalls();
        Ok(Self { daemon, announced: HashMap::new(), interfaces: Vec::new() })
    }

    fn run(mut self, requests: impl Iterator<Item = Request>) {
        for request in requests {
            let done = match request {
                Request::Start { .. } => Ok(()),
                Request::Announce { services } => self.announce(services),
                Request::Browse => self.browse(),
            };
            if let Err(error) = done {
                send_event(&Event::Note(error.to_string()));
            }
        }
        self.withdraw_all();
    }

    fn announce(&mut self, services: Vec<Service>) -> mdns_sd::Result<()> {
        self.enable_interfaces(&services)?;
        let mut wanted = HashMap::new();
        for service in services {
            let info = info(&service)?;
            let name = info.get_fullname().to_owned();
            if self.announced.get(&name) != Some(&service) {
                self.daemon.register(info)?;
            }
            wanted.insert(name, service);
        }
        for name in self.announced.keys().filter(|name| !wanted.contains_key(*name)) {
            self.withdraw(name);
        }
        self.announced = wanted;
        Ok(())
    }

    /// Enables exactly the interfaces of the announced services.
    fn enable_interfaces(&mut self, services: &[Service]) -> mdns_sd::Result<()> {
        let mut wanted: Vec<String> =
            services.iter().flat_map(|service| service.interfaces.clone()).collect();
        wanted.sort();
        wanted.dedup();
        if self.announced.is_empty() {
            self.daemon.disable_interface(IfKind::All)?;
            self.interfaces.clear();
        }
        let named = |name: &String| IfKind::Name(name.clone());
        let removed = self.interfaces.iter().filter(|name| !wanted.contains(name)).map(named);
        let (removed, added): (Vec<IfKind>, Vec<IfKind>) = (
            removed.collect(),
            wanted.iter().filter(|name| !self.interfaces.contains(name)).map(named).collect(),
        );
        for (kinds, enabled) in [(removed, false), (added, true)] {
            match (kinds.is_empty(), enabled) {
                (true, _) => {}
                (_, true) => self.daemon.enable_interface(kinds)?,
                (_, false) => self.daemon.disable_interface(kinds)?,
            }
        }
        self.interfaces = wanted;
        Ok(())
    }

    fn withdraw(&self, name: &str) -> bool {
        let result = self.daemon.unregister(name).ok();
        result.is_some_and(|result| result.recv_timeout(GOODBYE).is_ok())
    }

    /// Sends goodbye packets for all services.
    fn withdraw_all(&self) {
        let withdrawn = self.announced.keys().filter(|name| self.withdraw(name));
        if withdrawn.count() > 0 {
            thread::sleep(REPEAT_DELAY);
        }
        if let Ok(ended) = self.daemon.shutdown() {
            let _ = ended.recv_timeout(GOODBYE);
        }
    }

    /// Reports services as they are found, one thread per type.
    fn browse(&self) -> mdns_sd::Result<()> {
        let remaining = Arc::new(Mutex::new(MAX_EVENTS));
        let announced = PROTOCOLS.iter().filter_map(|row| Some((row.protocol, row.service_type?)));
        for (kind, service_type) in announced {
            let found = self.daemon.browse(service_type)?;
            let remaining = remaining.clone();
            thread::spawn(move || {
                for event in found.iter() {
                    let ServiceEvent::ServiceResolved(service) = event else { continue };
                    let mut remaining = remaining.lock().unwrap_or_else(PoisonError::into_inner);
                    let Some(left) = remaining.checked_sub(1) else { return };
                    *remaining = left;
                    send_event(&Event::Found(resolved(kind, &service)));
                }
            });
        }
        Ok(())
    }
}

/// Checks that the port can be bound, shared with other responders: the mDNS library does not
/// report that error.
fn check(port: u16) -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(socket2::Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port).into())
}

/// The DNS-SD records of a service.
fn info(service: &Service) -> mdns_sd::Result<ServiceInfo> {
    let mut text = vec![("keyed", if service.keyed { "1" } else { "0" })];
    text.extend(service.kind.row().txt);
    let host = format!("{}.local.", service.host);
    let kind = service.kind.row().service_type.unwrap_or_default();
    let addresses: &[IpAddr] = &service.addresses;
    ServiceInfo::new(kind, &service.name, &host, addresses, service.port, &text[..])
}

fn resolved(kind: Protocol, service: &ResolvedService) -> FoundService {
    let mut addresses: Vec<ScopedAddr> = service.addresses.iter().map(place).collect();
    // Link-local addresses first: they need no router or DHCP.
    addresses.sort_by_key(|place| {
        (linux::net::scope_of(place.address) != linux::net::Scope::Link, place.clone())
    });
    addresses.truncate(8);
    FoundService {
        kind,
        name: instance(&service.fullname, kind),
        host: service.host.clone(),
        port: service.port,
        addresses,
        keyed: service.get_property_val_str("keyed").map(|value| value == "1"),
    }
}

fn place(address: &ScopedIp) -> ScopedAddr {
    let interface = match address {
        ScopedIp::V4(v4) => v4.interface_ids().first().map(|id| id.name.clone()),
        ScopedIp::V6(v6) => Some(v6.scope_id().name.clone()),
        _ => None,
    };
    let interface = interface.filter(|name| !name.is_empty());
    ScopedAddr { address: address.to_ip_addr(), interface }
}

/// The instance name in a full name, in which dots and backslashes are escaped.
fn instance(full: &str, kind: Protocol) -> String {
    let end = full.len().saturating_sub(kind.row().service_type.map_or(0, str::len) + 1);
    let escaped = full.get(..end).unwrap_or(full);
    let mut name = String::with_capacity(escaped.len());
    let mut chars = escaped.chars();
    while let Some(c) = chars.next() {
        name.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    name
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn instance_name_is_unescaped() {
        for (full, name) in [
            ("desk._nvme-disc._tcp.local.", "desk"),
            ("Anna's pc (2)._nvme-disc._tcp.local.", "Anna's pc (2)"),
            ("a\\.b\\\\c._nvme-disc._tcp.local.", "a.b\\c"),
            ("", ""),
            ("\u{e9}", ""),
        ] {
            assert_eq!(instance(full, Protocol::Nvme), name, "{full:?}");
        }
    }

    #[test]
    fn announcement_has_discovery_nqn_and_nothing_else() {
        let service = Service {
            kind: Protocol::Nvme,
            name: "storagetm-abcd".to_owned(),
            host: "storagetm-abcd0102".to_owned(),
            port: 8009,
            addresses: vec!["fe80::1".parse().unwrap()],
            interfaces: vec!["eth0".to_owned()],
            keyed: true,
        };
        let info = info(&service).unwrap();
        assert_eq!(info.get_fullname(), "storagetm-abcd._nvme-disc._tcp.local.");
        assert_eq!(info.get_hostname(), "storagetm-abcd0102.local.");
        let mut text: Vec<String> = info.get_properties().iter().map(|it| it.to_string()).collect();
        text.sort();
        assert_eq!(text, ["keyed=1", "nqn=nqn.2014-08.org.nvmexpress.discovery", "p=tcp"]);
    }

    #[test]
    fn requests_end_at_the_first_malformed_line() {
        let lines = b"{\"start\":{\"port\":null}}\n\"browse\"\nmount everything\n\"browse\"\n";
        let requests: Vec<Request> = requests(&lines[..]).collect();
        assert_eq!(requests, [Request::Start { port: None }, Request::Browse]);
    }
}
