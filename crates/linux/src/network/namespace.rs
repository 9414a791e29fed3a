//! Tests of the network in two network namespaces with a veth pair between them: link-local
//! addresses, a conflict, a DHCP server.
//!
//! Skipped without root or `ip`.

use super::ether::Mac;
use super::link_local::LinkLocal;
use super::{IpParameter, Lease, Method, Network, NetworkParameters, Note};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

const MACS: [&str; 2] = ["52:54:00:00:00:0a", "52:54:00:00:00:0b"];
const TIMEOUT: Duration = Duration::from_secs(60);

/// Two namespaces, `NAMEa` and `NAMEb`, with the interfaces `NAMEa` and `NAMEb` at the ends of a
/// veth pair.
struct Cable {
    name: String,
}

impl Cable {
    /// Prints why and returns `None` where that is impossible.
    ///
    /// Interfaces of tests that run at the same time differ by the letter; a name has 15 bytes at
    /// most.
    fn new(letter: char, test: &str) -> Option<Self> {
        if programs::lacks(test, &["ip"]) {
            return None;
        }
        let cable = Self { name: format!("stm{}{letter}", std::process::id() % 100_000) };
        let laid = cable.try_new();
        if let Err(reason) = &laid {
            println!("skip {test}: {reason}");
        }
        laid.is_ok().then_some(cable)
    }

    fn try_new(&self) -> Result<(), String> {
        let [a, b] = [self.end(0), self.end(1)];
        ip(&["netns", "add", &a])?;
        ip(&["netns", "add", &b])?;
        ip(&["-n", &a, "link", "add", &a, "type", "veth", "peer", "name", &b, "netns", &b])?;
        for (end, mac) in [&a, &b].into_iter().zip(MACS) {
            ip(&["-n", end, "link", "set", end, "address", mac])?;
        }
        Ok(())
    }

    fn end(&self, side: usize) -> String {
        format!("{}{}", self.name, ["a", "b"][side])
    }

    fn file(end: &str) -> PathBuf {
        PathBuf::from("/run/netns").join(end)
    }

    /// Runs `work` in the namespace of a side, on its own thread.
    fn within<T: Send>(&self, side: usize, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(Self::file(&self.end(side))).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }

    fn start(&self, side: usize, method: Method) -> Running {
        let interface = Some(self.end(side));
        self.start_with(side, vec![IpParameter { interface, method, ..IpParameter::link_local() }])
    }

    fn start_with(&self, side: usize, ip: Vec<IpParameter>) -> Running {
        self.start_parameters(side, NetworkParameters { ip, uppers: Vec::new() })
    }

    fn start_parameters(&self, side: usize, parameters: NetworkParameters) -> Running {
        let (sender, notes) = channel();
        let sink = move |note| drop(sender.send(note));
        let network = self.within(side, || Network::start(parameters, sink).unwrap());
        Running { _network: network, notes }
    }

    fn ip(&self, side: usize, words: &[&str]) -> String {
        let end = self.end(side);
        let mut all = vec!["-n", &end];
        all.extend_from_slice(words);
        ip(&all).unwrap()
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for side in 0..2 {
            let _ = ip(&["netns", "delete", &self.end(side)]);
        }
    }
}

fn ip(words: &[&str]) -> Result<String, String> {
    let output =
        programs::command("ip").args(words).output().map_err(|error| format!("ip: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

/// A network and its notes.
struct Running {
    _network: Network,
    notes: Receiver<Note>,
}

impl Running {
    /// Waits for a note.
    fn wait<T>(&self, wanted: impl Fn(&Note) -> Option<T>) -> T {
        let end = Instant::now() + TIMEOUT;
        let mut seen = Vec::new();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let Ok(note) = self.notes.recv_timeout(left) else { panic!("only {seen:#?}") };
            if let Some(found) = wanted(&note) {
                return found;
            }
            seen.push(note.to_string());
        }
    }

    fn wait_for_lease(&self) -> Lease {
        self.wait(|note| match note {
            Note::Lease { lease, .. } => Some(*lease),
            _ => None,
        })
    }

    fn wait_for_address(&self, wanted: impl Fn(&IpAddr) -> bool) -> IpAddr {
        self.wait(|note| match note {
            Note::Address { address, .. } => Some(*address).filter(&wanted),
            _ => None,
        })
    }
}

fn is_link_local4(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V4(address) if address.is_link_local())
}

/// The link-local address that the interface of a side claims without conflict.
fn favourite(side: usize) -> Ipv4Addr {
    let mut machine = LinkLocal::new(Mac::parse(MACS[side]).unwrap(), "");
    machine.claim_unasked();
    match machine.poll() {
        Some(super::link_local::Step::Claim(address)) => address,
        other => panic!("{other:?}"),
    }
}

#[test]
fn two_machines_on_a_cable_reach_each_other() {
    let Some(cable) = Cable::new('t', "two_machines_on_a_cable_reach_each_other") else { return };
    let a = cable.start(0, Method::LinkLocal);
    let b = cable.start(1, Method::LinkLocal);
    // This one is assigned by hand, without a probe.
    b.wait_for_address(IpAddr::is_ipv6);
    let address = b.wait_for_address(is_link_local4);
    a.wait_for_address(is_link_local4);
    assert_eq!(address, favourite(1));
    let listener =
        cable.within(1, || TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], 0))).unwrap());
    let there = SocketAddr::new(address, listener.local_addr().unwrap().port());
    cable.within(0, || TcpStream::connect_timeout(&there, TIMEOUT).unwrap());
    let end = cable.end(1);
    let file = format!("/proc/sys/net/ipv6/conf/{end}/accept_ra");
    assert_eq!(cable.within(1, || std::fs::read_to_string(file).unwrap()).trim(), "0");
}

/// Both ends of both cables have routes to 169.254.0.0/16 over the first; only the rules send
/// replies over the second.
#[test]
fn second_cable_between_two_machines_works() {
    let Some(cable) = Cable::new('s', "second_cable_between_two_machines_works") else {
        return;
    };
    let ends = [0, 1].map(|side| cable.end(side));
    let second = ends.each_ref().map(|end| format!("{end}2"));
    let [a2, b2] = &second;
    ip(&["-n", &ends[0], "link", "add", a2, "type", "veth", "peer", "name", b2, "netns", &ends[1]])
        .unwrap();
    let addresses = [0, 1].map(|side| {
        let interfaces = [&ends[side], &second[side]];
        let parameters = interfaces
            .map(|name| IpParameter { interface: Some(name.clone()), ..IpParameter::link_local() });
        let running = cable.start_with(side, parameters.to_vec());
        (running, second[side].clone())
    });
    let [a, b] = addresses.each_ref().map(|(running, name)| {
        running.wait(|note| match note {
            Note::Address { interface, address } if interface == name => {
                Some(*address).filter(is_link_local4)
            }
            _ => None,
        })
    });
    let listener = cable.within(1, || TcpListener::bind(SocketAddr::new(b, 0)).unwrap());
    let there = listener.local_addr().unwrap();
    cable.within(0, || {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(a, 0).into()).unwrap();
        socket.connect_timeout(&there.into(), TIMEOUT).unwrap();
    });
}

#[test]
fn conflicting_address_is_not_claimed() {
    let Some(cable) = Cable::new('a', "conflicting_address_is_not_claimed") else { return };
    let (end, taken) = (cable.end(1), favourite(0));
    cable.ip(1, &["link", "set", &end, "up"]);
    cable.ip(1, &["address", "add", &format!("{taken}/16"), "dev", &end]);
    let a = cable.start(0, Method::LinkLocal);
    let other = a.wait(|note| match note {
        Note::Conflict { address, other, .. } if *address == taken => Some(*other),
        _ => None,
    });
    assert_eq!(other.to_string(), MACS[1]);
    let address = a.wait_for_address(is_link_local4);
    assert_ne!(address, taken);
    // Now the other machine takes that one as well, and announces it twice.
    cable.ip(1, &["address", "add", &format!("{address}/16"), "dev", &end]);
    for _ in 0..2 {
        let words = ["netns", "exec", &end, "busybox", "arping", "-A", "-c", "1", "-I", &end];
        ip(&[&words[..], &[&address.to_string()]].concat()).unwrap();
        std::thread::sleep(Duration::from_millis(300));
    }
    a.wait(|note| {
        matches!(note, Note::AddressGone { address: gone, .. } if *gone == address).then_some(())
    });
}

#[test]
fn address_is_kept_when_the_cable_is_replugged() {
    let Some(cable) = Cable::new('p', "address_is_kept_when_the_cable_is_replugged") else {
        return;
    };
    let a = cable.start(0, Method::LinkLocal);
    a.wait(|note| matches!(note, Note::LinkDown { .. }).then_some(()));
    let end = cable.end(1);
    cable.ip(1, &["link", "set", &end, "up"]);
    a.wait(|note| matches!(note, Note::LinkUp { .. }).then_some(()));
    let address = a.wait_for_address(is_link_local4);
    cable.ip(1, &["link", "set", &end, "down"]);
    a.wait(|note| matches!(note, Note::LinkDown { .. }).then_some(()));
    assert!(cable.ip(0, &["address"]).contains(&address.to_string()));
    cable.ip(1, &["link", "set", &end, "up"]);
    a.wait(|note| matches!(note, Note::LinkUp { .. }).then_some(()));
    cable.ip(1, &["link", "delete", &end]);
    a.wait(|note| matches!(note, Note::Gone { .. }).then_some(()));
}

#[test]
fn fixed_address_has_its_router() {
    let Some(cable) = Cable::new('f', "fixed_address_has_its_router") else {
        return;
    };
    let (end, other) = (cable.end(0), cable.end(1));
    cable.ip(1, &["link", "set", &other, "up"]);
    let words = [
        format!("10.98.0.5::10.98.0.1:255.255.255.0::{end}:none:1400:52:54:00:00:00:0c"),
        format!("[2001:db8::5]::[fe80::1]:64::{end}:none"),
    ];
    let parameters = words.map(|word| IpParameter::parse(&word).unwrap());
    let a = cable.start_with(0, parameters.to_vec());
    a.wait_for_address(is_link_local4);
    let link = cable.ip(0, &["link", "show", &end]);
    assert!(link.contains("mtu 1400") && link.contains("52:54:00:00:00:0c"), "{link}");
    let addresses = cable.ip(0, &["address"]);
    assert!(addresses.contains("10.98.0.5/24 brd 10.98.0.255"), "{addresses}");
    assert!(addresses.contains("2001:db8::5/64"), "{addresses}");
    assert!(cable.ip(0, &["route"]).contains("default via 10.98.0.1"));
    assert!(cable.ip(0, &["-6", "route"]).contains("default via fe80::1"));
}

/// The kernel takes no ports for `lo`.
#[test]
fn refused_port_of_a_bond_is_set_up_with_addresses() {
    let Some(cable) = Cable::new('r', "refused_port_of_a_bond_is_set_up_with_addresses") else {
        return;
    };
    let (end, other) = (cable.end(0), cable.end(1));
    cable.ip(0, &["link", "set", &end, "up"]);
    cable.ip(1, &["link", "set", &other, "up"]);
    let line = format!("ip={end}:link-local bond=lo:{end}:mode=active-backup");
    let (parameters, ignored) = NetworkParameters::parse(&line);
    assert_eq!(ignored, []);
    let a = cable.start_parameters(0, parameters);
    let failed = a.wait(|note| match note {
        Note::Failed { .. } => Some(note.to_string()),
        _ => None,
    });
    assert!(failed.starts_with(&format!("{end}: could not be made a port of lo: ")), "{failed}");
    assert_eq!(a.wait_for_address(is_link_local4), favourite(0));
}

/// busybox's DHCP server on side 1, stopped on drop.
struct Server {
    child: Child,
    folder: PathBuf,
}

impl Server {
    fn start(cable: &Cable, address: &str) -> Self {
        let end = cable.end(1);
        cable.ip(1, &["address", "replace", "10.99.0.1/24", "dev", &end]);
        let folder = std::env::temp_dir().join(format!("{}-dhcp", cable.name));
        std::fs::create_dir_all(&folder).unwrap();
        let place = folder.display();
        let settings = format!(
            "start {address}\nend {address}\ninterface {end}\nlease_file {place}/leases\npidfile {place}/pid\n\
             option subnet 255.255.255.0\noption router 10.99.0.1\noption mtu 1400\noption lease 10\nmin_lease 5\n"
        );
        std::fs::write(folder.join("leases"), "").unwrap();
        std::fs::write(folder.join("settings"), settings).unwrap();
        let mut command = programs::command("ip");
        command
            .args(["netns", "exec", &end, "busybox", "udhcpd", "-f"])
            .arg(folder.join("settings"));
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let server = Self { child, folder };
        server.wait();
        cable.ip(1, &["link", "set", &end, "up"]);
        server
    }

    /// Waits until it listens, a moment after it wrote its PID file.
    fn wait(&self) {
        let end = Instant::now() + TIMEOUT;
        while !self.folder.join("pid").exists() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn dhcp_lease_is_obtained_renewed_and_lost() {
    const TEST: &str = "dhcp_lease_is_obtained_renewed_and_lost";
    if programs::lacks(TEST, &["busybox"]) {
        return;
    }
    let udhcpd = programs::command("busybox").args(["udhcpd", "--help"]).output().unwrap();
    if !udhcpd.status.success() {
        println!("skip {TEST}: this busybox has no udhcpd");
        return;
    }
    let Some(cable) = Cable::new('d', TEST) else { return };
    let server = Server::start(&cable, "10.99.0.20");
    let a = cable.start(0, Method::Dhcp);
    let lease = a.wait_for_lease();
    assert_eq!((lease.address, lease.prefix), (Ipv4Addr::new(10, 99, 0, 20), 24));
    assert_eq!((lease.router, lease.mtu), (Some(lease.server), Some(1400)));
    let end = cable.end(0);
    assert!(cable.ip(0, &["route"]).contains(&format!("default via 10.99.0.1 dev {end}")));
    assert!(cable.ip(0, &["link", "show", &end]).contains("mtu 1400"));
    // Longer than the lease of ten seconds: the lease was renewed.
    std::thread::sleep(Duration::from_secs(11));
    let addresses = cable.ip(0, &["address"]);
    assert!(addresses.contains("10.99.0.20"), "renewed");
    assert!(addresses.contains(&favourite(0).to_string()), "beside the link-local one");
    drop(server);
    // The cable is plugged into another network, whose server has no record of the lease.
    let other = cable.end(1);
    cable.ip(1, &["link", "set", &other, "down"]);
    a.wait(|note| matches!(note, Note::LinkDown { .. }).then_some(()));
    let _server = Server::start(&cable, "10.99.0.30");
    a.wait(|note| matches!(note, Note::LeaseLost { .. }).then_some(()));
    assert!(!cable.ip(0, &["address"]).contains("10.99.0.20"));
    let lease = a.wait_for_lease();
    assert_eq!(lease.address, Ipv4Addr::new(10, 99, 0, 30));
    assert!(cable.ip(0, &["address"]).contains("10.99.0.30"));
}
