//! The listening sockets: opened at start and as addresses appear, or passed by the service
//! manager.

pub mod path;

use std::io::{self, ErrorKind};
use std::net::IpAddr;

use export::{Auth, Peer};
use linux::net::Address;

use crate::certificates::CertificateIds;
use crate::event::{EventAddr, ServeEvent};
use crate::listen::{BindAddr, Listener, Plan, Service, endpoints};
use failure::Failure;
use path::SocketFile;
use protocol::endpoint::Endpoint;
use protocol::{PROTOCOLS, Protocol, Role};

/// Binds a listener and returns the address that it got.
pub type Bind<'a> = &'a mut dyn FnMut(&Listener) -> io::Result<BindAddr>;

/// The listening sockets.
#[derive(Debug)]
pub struct Listeners {
    plan: Plan,
    /// Whether hosts need no key.
    open: bool,
    /// The certificate for HTTPS.
    certificate: Option<CertificateIds>,
    /// Bound sockets. A socket whose address is removed stays bound, and is in use again when the
    /// address returns.
    bound: Vec<Bound>,
    /// Listeners that could not be bound, as reported.
    failed: Vec<Listener>,
}

#[derive(Debug)]
struct Bound {
    planned: Listener,
    listener: Listener,
    present: bool,
    /// Removed when dropped.
    _file: Option<SocketFile>,
}

impl Listeners {
    /// Listeners of the plan, not opened yet; if `open`, hosts need no key.
    pub fn closed(plan: Plan, open: bool) -> Self {
        Self { plan, open, certificate: None, bound: Vec::new(), failed: Vec::new() }
    }

    /// The same, with this certificate for HTTPS.
    #[must_use]
    pub fn with_certificate(self, certificate: Option<CertificateIds>) -> Self {
        Self { certificate, ..self }
    }

    /// Opens the listeners of the plan for these addresses. Returns messages about optional ones
    /// whose port is in use or whose address is missing, and about protocols that cannot be served at
    /// all addresses.
    ///
    /// # Errors
    /// Fails if another one cannot be bound, or if the user has given an address at which a protocol
    /// cannot be served.
    pub fn open(&mut self, machine: &[Address], bind: Bind<'_>) -> Result<Vec<String>, Failure> {
        let mut left_out = self.without_keys()?;
        for planned in self.planned(machine) {
            match bind(&planned) {
                Ok(addr) => self.add(planned, addr),
                Err(error) if self.is_ignorable(&error) => {}
                Err(error) if planned.optional && is_taken_or_absent(&error) => {
                    left_out.push(bind_error(&planned, &error));
                    self.failed.push(planned);
                }
                Err(error) => return Err(Failure::new(bind_error(&planned, &error))),
            }
        }
        Ok(left_out)
    }

    /// Adds a socket that is already listening. Returns it with its access rule.
    ///
    /// # Errors
    /// Fails if hosts need a key there, and its protocol has none.
    pub fn adopt(&mut self, listener: Listener) -> Result<Listener, Failure> {
        let planned = self.admitting(listener.with_open_access(self.open))?;
        let listener = planned.clone();
        self.bound.push(Bound { planned, listener: listener.clone(), present: true, _file: None });
        Ok(listener)
    }

    /// What to listen on while the machine has these addresses.
    fn planned(&self, machine: &[Address]) -> Vec<Listener> {
        let planned = self.plan.listeners(machine).into_iter();
        let planned = planned.map(|listener| listener.with_open_access(self.open));
        planned.filter(Listener::admits_hosts).collect()
    }

    /// Returns a message for each protocol without keys, if it is left out at addresses that require
    /// one, which the machine may get later.
    ///
    /// # Errors
    /// Fails if the user has given such an address, unless it is awaited at boot.
    fn without_keys(&self) -> Result<Vec<String>, Failure> {
        if let Plan::Fixed(fixed) = &self.plan {
            let planned = fixed.iter().map(|listener| listener.clone().with_open_access(self.open));
            planned.map(|listener| self.admitting(listener)).collect::<Result<Vec<_>, _>>()?;
        }
        let protocols = if self.open { Vec::new() } else { self.plan.network_protocols() };
        let left_out = protocols.into_iter().filter(|protocol| !protocol.admits_hosts());
        let message = |protocol: Protocol| {
            let (label, remedy) = (protocol.row().label, self.remedy());
            format!("{label} has no keys: it is served on loopback addresses only. Or {remedy}.")
        };
        Ok(left_out.map(message).collect())
    }

    /// Returns a listener that the user has given, or the service manager.
    ///
    /// # Errors
    /// Fails if hosts need a key there, and its protocol has none.
    fn admitting(&self, listener: Listener) -> Result<Listener, Failure> {
        if listener.admits_hosts() {
            return Ok(listener);
        }
        let (label, remedy) = (listener.serves.protocol.row().label, self.remedy());
        Err(Failure::usage(format!(
            "cannot serve {label} on {listener}: {label} has no keys. Give a loopback address, or {remedy}"
        )))
    }

    /// What makes protocols without keys reachable.
    fn remedy(&self) -> &'static str {
        match self.plan {
            // Planned at boot.
            Plan::Present(_) | Plan::Awaited(..) => {
                "serve it without keys to everyone who reaches this machine (storagetm.open)"
            }
            Plan::Fixed(_) | Plan::Everywhere(_) | Plan::Nearby(_) => {
                "serve it without keys to everyone who reaches this machine (--open)"
            }
        }
    }

    /// Whether the listener may be missing: no IPv6 support, or an address that was just removed.
    fn is_ignorable(&self, error: &io::Error) -> bool {
        !matches!(self.plan, Plan::Fixed(_)) && is_absent(error)
    }

    fn add(&mut self, planned: Listener, addr: BindAddr) {
        let _file = match &addr {
            BindAddr::Path(path) => SocketFile::of(path),
            BindAddr::Net(_) => None,
        };
        let listener = Listener { addr, ..planned.clone() };
        self.bound.push(Bound { planned, listener, present: true, _file });
    }

    /// Updates the listeners to the machine's addresses if the plan follows them, and tries again
    /// to bind those that failed. Returns the changes.
    pub fn update(&mut self, machine: &[Address], bind: Bind<'_>) -> Vec<ServeEvent> {
        let planned = self.planned(machine);
        let follows = !matches!(self.plan, Plan::Fixed(_) | Plan::Everywhere(_));
        let certificate = self.certificate.clone();
        let mut changes = if follows { self.mark_present(&planned) } else { Vec::new() };
        self.failed.retain(|known| planned.contains(known));
        for planned in planned {
            let is_bound = self.bound.iter().any(|bound| bound.planned == planned);
            if !is_bound && (follows || self.failed.contains(&planned)) {
                changes.extend(self.bind_one(planned, bind));
            }
        }
        changes.iter_mut().for_each(|change| change.set_certificate(certificate.as_ref()));
        changes
    }

    /// Records which bound addresses are present.
    fn mark_present(&mut self, planned: &[Listener]) -> Vec<ServeEvent> {
        let mut changes = Vec::new();
        for bound in &mut self.bound {
            let is_it = |planned: &&Listener| {
                planned.addr == bound.planned.addr && planned.serves == bound.planned.serves
            };
            let now = planned.iter().find(is_it);
            let present = now.is_some();
            if let Some(now) = now.filter(|now| now.interface != bound.planned.interface) {
                // The interface was renamed; the socket stays.
                changes.extend(bound.present.then(|| closed(&bound.listener)));
                bound.planned.interface.clone_from(&now.interface);
                bound.listener.interface.clone_from(&now.interface);
                bound.present = false;
            }
            if present != bound.present {
                bound.present = present;
                changes.push(if present {
                    opened(&bound.listener)
                } else {
                    closed(&bound.listener)
                });
            }
        }
        changes
    }

    fn bind_one(&mut self, planned: Listener, bind: Bind<'_>) -> Option<ServeEvent> {
        match bind(&planned) {
            Ok(addr) => {
                self.failed.retain(|known| *known != planned);
                self.add(planned, addr);
                self.bound.last().map(|bound| opened(&bound.listener))
            }
            Err(_) if self.failed.contains(&planned) => None,
            Err(error) => {
                let event = ServeEvent::note(bind_error(&planned, &error));
                self.failed.push(planned);
                Some(event)
            }
        }
    }

    /// Events for all open listeners.
    pub fn open_events(&self) -> Vec<ServeEvent> {
        self.bound
            .iter()
            .filter(|bound| bound.present)
            .map(|bound| {
                let mut event = opened(&bound.listener);
                event.set_certificate(self.certificate.as_ref());
                event
            })
            .collect()
    }

    /// Returns whether the addresses were given by the user or the service manager.
    pub fn are_fixed(&self) -> bool {
        matches!(self.plan, Plan::Fixed(_) | Plan::Awaited(..))
    }

    /// Given addresses that the machine does not have yet.
    pub fn awaited(&self, machine: &[Address]) -> Vec<IpAddr> {
        match &self.plan {
            Plan::Awaited(given, _) => {
                let awaited = given.iter().filter(|listen| !listen.is_at(machine));
                awaited.filter_map(|listen| listen.ip()).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Returns whether only loopback and link-local addresses are listened on.
    pub fn is_nearby(&self) -> bool {
        matches!(self.plan, Plan::Nearby(_))
    }

    /// Listeners whose address is present.
    pub fn active(&self) -> impl Iterator<Item = &Listener> {
        self.bound.iter().filter(|bound| bound.present).map(|bound| &bound.listener)
    }

    /// The endpoints of all protocols.
    pub fn endpoints(&self, machine: &[Address]) -> Vec<Endpoint> {
        let mut endpoints = endpoints(self.active(), machine);
        let certified = endpoints.iter_mut().filter(|at| at.protocol.row().reading_code);
        certified.for_each(|at| at.pin = self.certificate.as_ref().map(|ids| ids.pin.clone()));
        endpoints
    }

    /// The protocol of a peer by its local address.
    pub fn protocol_of(&self, peer: &Peer) -> Protocol {
        let Some(local) = peer.local() else { return Service::unix().protocol };
        let listener = self.bound.iter().find(|bound| bound.listener.accepts(local));
        listener.map_or(PROTOCOLS[0].protocol, |bound| bound.listener.serves.protocol)
    }
}

/// Returns whether another program has the port, or this machine does not have the address.
fn is_taken_or_absent(error: &io::Error) -> bool {
    error.kind() == ErrorKind::AddrInUse || is_absent(error)
}

/// Returns whether this machine does not have the address, or not its family.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::AddrNotAvailable | ErrorKind::Unsupported)
        || error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
}

fn opened(listener: &Listener) -> ServeEvent {
    ServeEvent::Listening {
        protocol: listener.serves.protocol.name(),
        at: at(listener),
        serves: match listener.serves.role {
            Role::Disks if listener.serves.protocol.row().discovery => &["discovery", "disks"],
            Role::Disks => &["disks"],
            Role::Discovery => &["discovery"],
        },
        keyed: listener.auth == Auth::Required,
        certificate: None,
        public_key: None,
    }
}

fn closed(listener: &Listener) -> ServeEvent {
    ServeEvent::Closed { protocol: listener.serves.protocol.name(), at: at(listener) }
}

fn at(listener: &Listener) -> EventAddr {
    match listener.socket() {
        Some(socket) => EventAddr::Net { address: listener.host(), port: socket.port() },
        None => EventAddr::Path { path: listener.host() },
    }
}

fn bind_error(listener: &Listener, error: &io::Error) -> String {
    let Some(socket) = listener.socket() else { return path_bind_error(listener, error) };
    let host = listener.host();
    let host = if socket.is_ipv6() { format!("[{host}]") } else { host };
    let row = listener.serves.protocol.row();
    match error.kind() {
        // A port without a protocol is for the first one.
        ErrorKind::AddrInUse if row.protocol != PROTOCOLS[0].protocol => format!(
            "cannot listen for {} on {listener}: another program listens there; stop it, or choose \
             another port, as with --listen {}:{host}:PORT",
            row.label, row.option
        ),
        ErrorKind::AddrInUse => format!(
            "cannot listen on {listener}: another program listens there; stop it, or choose another \
             port, as with --listen {host}:PORT"
        ),
        // ip_unprivileged_port_start, ip(7).
        ErrorKind::PermissionDenied if socket.port() < 1024 => format!(
            "cannot listen on {listener}: this needs root; choose a port from 1024 on, as with \
             --listen {host}:PORT"
        ),
        ErrorKind::PermissionDenied => format!(
            "cannot listen on {listener}: {error}; run this as root, or allow it in the policy of \
             this system (SELinux, AppArmor)"
        ),
        ErrorKind::AddrNotAvailable => format!(
            "cannot listen on {listener}: this machine does not have that address; `ip address` \
             shows those that it has"
        ),
        _ => format!("cannot listen on {listener}: {error}"),
    }
}

fn path_bind_error(listener: &Listener, error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::AddrInUse => format!(
            "cannot listen at {listener}: another program listens there; stop it, or choose another path"
        ),
        ErrorKind::AlreadyExists => format!(
            "cannot listen at {listener}: a file exists there that is not a socket; remove it, or \
             choose another path"
        ),
        ErrorKind::NotFound => {
            format!("cannot listen at {listener}: no such directory; create it first")
        }
        _ => format!("cannot listen at {listener}: {error}"),
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::listen::Protocols;
    use linux::net::scope_of;

    fn address(ip: &str) -> Address {
        let ip: IpAddr = ip.parse().unwrap();
        Address {
            ip,
            interface: "eth0".to_owned(),
            scope_id: 2,
            scope: scope_of(ip),
            tentative: false,
            deprecated: false,
            running: true,
        }
    }

    fn opened_of(
        plan: Plan,
        open: bool,
        machine: &[Address],
        bind: Bind<'_>,
    ) -> Result<Listeners, Failure> {
        let mut listeners = Listeners::closed(plan, open);
        listeners.open(machine, bind).map(|_| listeners)
    }

    fn json(events: &[ServeEvent]) -> Vec<String> {
        events.iter().map(ServeEvent::json).collect()
    }

    fn any(listener: &Listener) -> io::Result<BindAddr> {
        Ok(listener.addr.clone())
    }

    fn nvme() -> Protocols {
        Protocols::of(&[Protocol::Nvme])
    }

    fn inherited(addr: BindAddr) -> Listener {
        Listener::inherited(addr, "", &Protocols::nvme_and_nbd()).unwrap()
    }

    #[test]
    fn listeners_follow_added_and_removed_addresses() {
        let (lo, link) = (address("127.0.0.1"), address("fe80::1"));
        let mut listeners =
            opened_of(Plan::Nearby(nvme()), false, std::slice::from_ref(&lo), &mut any).unwrap();
        assert_eq!(listeners.open_events().len(), 2);
        let both = [lo.clone(), link];
        let added = json(&listeners.update(&both, &mut any));
        assert_eq!(added.len(), 2);
        assert!(added[0].contains(r#""address":"fe80::1%eth0","port":4420"#), "{added:?}");
        assert!(listeners.update(&both, &mut any).is_empty());
        assert_eq!(listeners.endpoints(&both).len(), 2);
        let removed = json(&listeners.update(std::slice::from_ref(&lo), &mut any));
        assert!(removed.iter().all(|line| line.contains("closed")), "{removed:?}");
        assert_eq!(listeners.endpoints(&[lo]).len(), 1);
        let mut never = |_: &Listener| -> io::Result<BindAddr> { panic!("it is still bound") };
        assert_eq!(listeners.update(&both, &mut never).len(), 2);
    }

    #[test]
    fn given_address_is_awaited_and_bound_once() {
        let given = ["192.168.1.5", "192.168.1.5:4420"].map(|text| text.parse().unwrap());
        let mut taken = Vec::new();
        let mut once = |listener: &Listener| -> io::Result<BindAddr> {
            if taken.contains(&listener.addr) {
                return Err(ErrorKind::AddrInUse.into());
            }
            taken.push(listener.addr.clone());
            Ok(listener.addr.clone())
        };
        let plan = Plan::Awaited(given.to_vec(), nvme());
        let mut listeners = opened_of(plan.clone(), false, &[], &mut once).unwrap();
        assert_eq!(listeners.awaited(&[]).len(), 2);
        let machine = [address("192.168.1.5")];
        assert!(listeners.awaited(&machine).is_empty());
        assert_eq!(listeners.update(&machine, &mut once).len(), 2);
        taken.clear();
        let mut once = |listener: &Listener| -> io::Result<BindAddr> {
            assert!(!taken.contains(&listener.addr), "{listener} twice");
            taken.push(listener.addr.clone());
            Ok(listener.addr.clone())
        };
        assert!(opened_of(plan, false, &machine, &mut once).is_ok());
    }

    #[test]
    fn renamed_interface_is_not_bound_again() {
        let before = [address("fe80::1")];
        let after = [Address { interface: "enp3s0".to_owned(), ..address("fe80::1") }];
        let mut listeners = opened_of(Plan::Nearby(nvme()), false, &before, &mut any).unwrap();
        let mut never = |_: &Listener| -> io::Result<BindAddr> { panic!("it is still bound") };
        let events = json(&listeners.update(&after, &mut never));
        assert_eq!(events.len(), 4, "{events:?}");
        assert!(
            events[1].contains("listening") && events[1].contains("fe80::1%enp3s0"),
            "{events:?}"
        );
        let endpoints = listeners.endpoints(&after);
        assert_eq!(endpoints[0].net().unwrap().interface.as_deref(), Some("enp3s0"));
    }

    #[test]
    fn busy_port_error_suggests_another() {
        let plan = Plan::Fixed(Plan::Nearby(nvme()).listeners(&[address("127.0.0.1")]));
        let mut taken = |_: &Listener| Err(ErrorKind::AddrInUse.into());
        let failure = opened_of(plan, false, &[], &mut taken).unwrap_err();
        assert_eq!(
            failure.to_string(),
            "cannot listen on 127.0.0.1 port 4420: another program listens there; stop it, or \
             choose another port, as with --listen 127.0.0.1:PORT"
        );
    }

    #[test]
    fn machine_without_ipv6_listens_on_ipv4() {
        let mut four = |listener: &Listener| {
            if listener.socket().is_some_and(|socket| socket.is_ipv4()) {
                return Ok(listener.addr.clone());
            }
            Err(io::Error::from_raw_os_error(rustix::io::Errno::AFNOSUPPORT.raw_os_error()))
        };
        let listeners = opened_of(Plan::Everywhere(nvme()), false, &[], &mut four).unwrap();
        assert_eq!(listeners.open_events().len(), 2);
    }

    #[test]
    fn later_bind_error_is_reported_once() {
        let mut listeners = opened_of(Plan::Nearby(nvme()), false, &[], &mut any).unwrap();
        let mut taken = |_: &Listener| Err(ErrorKind::AddrInUse.into());
        let machine = [address("169.254.1.1")];
        assert_eq!(listeners.update(&machine, &mut taken).len(), 2);
        assert_eq!(listeners.update(&machine, &mut taken).len(), 0);
    }

    #[test]
    fn protocol_without_keys_is_served_where_none_is_required() {
        let machine = [address("127.0.0.1"), address("169.254.1.1")];
        let http = || Protocols::of(&[Protocol::Http, Protocol::Nbd]);
        let served = |open: bool| {
            let mut listeners = Listeners::closed(Plan::Nearby(http()), open);
            let left_out = listeners.open(&machine, &mut any).unwrap();
            let http = listeners.active().filter(|at| at.serves.protocol == Protocol::Http);
            let served: Vec<_> = http.map(ToString::to_string).collect();
            assert_eq!(listeners.active().count(), 2 + served.len());
            assert!(listeners.update(&machine, &mut any).is_empty());
            (served, left_out)
        };
        let (here, left_out) = served(false);
        assert_eq!(here, ["127.0.0.1 port 8080"]);
        assert!(left_out.len() == 1 && left_out[0].starts_with("HTTP has no keys"), "{left_out:?}");
        assert_eq!(
            served(true),
            (vec!["127.0.0.1 port 8080".into(), "169.254.1.1 port 8080".into()], vec![])
        );
        let given = Plan::Fixed(Plan::Nearby(http()).listeners(&machine));
        let failure = opened_of(given.clone(), false, &machine, &mut any).unwrap_err();
        assert!(failure.to_string().contains("cannot serve HTTP on 169.254.1.1"), "{failure}");
        assert!(opened_of(given, true, &machine, &mut any).is_ok());
    }

    #[test]
    fn inherited_socket_without_keys_is_for_loopback() {
        let adopt = |socket: &str, open: bool| {
            let http = Protocols::of(&[Protocol::Http]);
            let socket = BindAddr::Net(socket.parse().unwrap());
            let listener = Listener::inherited(socket, "http", &http).unwrap();
            Listeners::closed(Plan::Fixed(Vec::new()), open).adopt(listener)
        };
        let failure = adopt("0.0.0.0:8080", false).unwrap_err();
        assert_eq!(failure.status(), 2);
        assert!(failure.to_string().contains("cannot serve HTTP on 0.0.0.0"), "{failure}");
        assert_eq!(adopt("0.0.0.0:8080", true).unwrap().auth, Auth::None);
        assert_eq!(adopt("127.0.0.1:8080", false).unwrap().auth, Auth::None);
    }

    /// Also at boot: `storagetm.protocol=https` needs no `storagetm.open`.
    #[test]
    fn https_is_served_where_a_key_is_required() {
        let machine = [address("127.0.0.1"), address("169.254.1.1")];
        let https = || Protocols::of(&[Protocol::Https]);
        let ids = CertificateIds { fingerprint: "AA:BB".into(), pin: "pin".into() };
        for plan in [Plan::Nearby(https()), Plan::Present(https())] {
            let listeners = Listeners::closed(plan, false).with_certificate(Some(ids.clone()));
            let mut listeners = listeners;
            assert!(listeners.open(&machine, &mut any).unwrap().is_empty());
            let events = json(&listeners.open_events());
            assert_eq!(events.len(), 2, "{events:?}");
            let keyed = r#""port":8443,"serves":["disks"],"keyed":true,"certificate":"AA:BB","public_key":"pin""#;
            assert!(events[1].contains(keyed), "{events:?}");
            let endpoints = listeners.endpoints(&machine);
            assert!(endpoints.iter().all(|at| at.pin.as_deref() == Some("pin")));
        }
        let named = |name: &str| {
            let all = Protocols::of(&[Protocol::Http, Protocol::Https]);
            let socket = BindAddr::Net("10.0.0.1:1".parse().unwrap());
            Listener::inherited(socket, name, &all).unwrap().serves.protocol
        };
        assert_eq!([named("https"), named("http-a")], [Protocol::Https, Protocol::Http]);
    }

    /// The machine has no address of a network yet.
    #[test]
    fn protocol_without_keys_is_noted_at_boot() {
        let protocols = || Protocols::of(&[Protocol::Nvme, Protocol::Http]);
        let awaited = |text: &str| Plan::Awaited(vec![text.parse().unwrap()], protocols());
        let noted = |plan: Plan, open: bool| {
            Listeners::closed(plan, open).open(&[address("127.0.0.1")], &mut any).unwrap()
        };
        for plan in [
            Plan::Present(protocols()),
            awaited("192.168.1.5"),
            awaited("http:192.168.1.5"),
            awaited("http:192.168.1.5:80"),
        ] {
            let notes = noted(plan.clone(), false);
            assert!(notes.len() == 1 && notes[0].starts_with("HTTP has no keys"), "{notes:?}");
            assert!(notes[0].contains("storagetm.open"), "{notes:?}");
            assert!(noted(plan, true).is_empty());
        }
        for near in ["127.0.0.1", "192.168.1.5:4420", "nvme:192.168.1.5"] {
            assert!(noted(awaited(near), false).is_empty(), "{near}");
        }
    }

    #[test]
    fn busy_nbd_port_fails_only_if_nbd_was_requested() {
        let mut taken = |listener: &Listener| match listener.serves.protocol {
            Protocol::Nbd => Err(ErrorKind::AddrInUse.into()),
            _ => Ok(listener.addr.clone()),
        };
        let machine = [address("127.0.0.1")];
        let mut listeners = Listeners::closed(Plan::Nearby(Protocols::nvme_and_nbd()), false);
        let left_out = listeners.open(&machine, &mut taken).unwrap();
        assert_eq!(left_out.len(), 1);
        assert!(left_out[0].contains("127.0.0.1 port 10809: another program"), "{left_out:?}");
        assert!(left_out[0].contains("--listen nbd:127.0.0.1:PORT"), "{left_out:?}");
        assert!(listeners.update(&machine, &mut taken).is_empty(), "it was reported");
        let named = Protocols::of(&[Protocol::Nbd]);
        let failed = Listeners::closed(Plan::Nearby(named), false).open(&machine, &mut taken);
        assert!(failed.is_err());
    }

    #[test]
    fn optional_listener_is_left_out_only_if_its_port_is_taken() {
        let failing = |kind: ErrorKind| {
            let mut bind = |listener: &Listener| match listener.optional {
                true => Err(kind.into()),
                false => Ok(listener.addr.clone()),
            };
            let plan = Plan::Everywhere(Protocols::nvme_and_nbd());
            Listeners::closed(plan, false).open(&[], &mut bind)
        };
        assert_eq!(failing(ErrorKind::AddrInUse).unwrap().len(), 2);
        assert!(failing(ErrorKind::AddrNotAvailable).is_ok());
        for kind in [ErrorKind::PermissionDenied, ErrorKind::OutOfMemory] {
            assert!(failing(kind).is_err(), "{kind}");
        }
    }

    #[test]
    fn taken_port_of_a_wildcard_address_is_tried_again() {
        let mut taken = |listener: &Listener| match listener.optional {
            true => Err(ErrorKind::AddrInUse.into()),
            false => Ok(listener.addr.clone()),
        };
        let wildcard = Listener {
            optional: true,
            ..inherited(BindAddr::Net("0.0.0.0:10809".parse().unwrap()))
        };
        for plan in [Plan::Everywhere(Protocols::nvme_and_nbd()), Plan::Fixed(vec![wildcard])] {
            let mut listeners = Listeners::closed(plan, false);
            let left_out = listeners.open(&[], &mut taken).unwrap().len();
            assert!(listeners.update(&[], &mut taken).is_empty(), "it was reported");
            let opened = json(&listeners.update(&[], &mut any));
            assert_eq!(opened.len(), left_out, "{opened:?}");
            assert!(opened.iter().all(|line| line.contains("10809")), "{opened:?}");
            assert!(listeners.update(&[], &mut taken).is_empty(), "it is bound");
        }
    }

    #[test]
    fn protocol_follows_from_local_address() {
        let net = |text: &str| BindAddr::Net(text.parse().unwrap());
        let mut listeners = Listeners::closed(Plan::Fixed(Vec::new()), false);
        for addr in [net("0.0.0.0:7"), net("127.0.0.1:4420"), BindAddr::Path("/run/x".into())] {
            listeners.adopt(inherited(addr)).unwrap();
        }
        let peer = |local| Peer::ip(local, local, Auth::None);
        let speaks = |text: &str| listeners.protocol_of(&peer(text.parse().unwrap()));
        assert_eq!(speaks("10.0.0.1:7"), Protocol::Nbd);
        assert_eq!(speaks("127.0.0.1:4420"), Protocol::Nvme);
        assert_eq!(listeners.protocol_of(&Peer::unix(Auth::None)), Protocol::Nbd);
        let events = json(&listeners.open_events());
        let last = r#"{"event":"listening","protocol":"nbd","path":"/run/x","serves":["disks"],"keyed":false}"#;
        assert_eq!(events[2], last);
        assert!(listeners.are_fixed());
    }
}
