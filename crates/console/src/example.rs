//! Models for tests.

use export::{Access, ExportId};
use protocol::Protocol;
use protocol::endpoint::{Endpoint, EndpointAddr, NetAddr};

use crate::{AccessRequest, Disk, Host, Link, Model, Pairing, ReadingAccess, TargetMode};

pub(crate) fn disk(n: usize) -> Disk {
    let number = u8::try_from(n).unwrap();
    let letter = char::from(b'a' + number);
    Disk {
        title: format!("/dev/sd{letter}"),
        id: ExportId::Uuid([0, 0, 0, 0, 0, 0, 0x80, 0, 0x80, 0, 0, 0, 0, 0, 0, number]),
        short: format!("sd{letter}"),
        size: 500_107_862_016,
        block_size: 512,
        model: "Example 500".to_owned(),
        serial: format!("S{n}"),
        contents: String::new(),
        access: Access::ReadOnly,
        kept: None,
        attached: Vec::new(),
        read: 0,
        written: 0,
        writes: None,
    }
}

pub(crate) fn host(name: &str) -> Host {
    let nqn = "nqn.2014-08.org.nvmexpress:uuid:2f6d1c52-0000-4000-8000-000000000000";
    let known_as = (!name.is_empty()).then(|| name.to_owned());
    Host { known_as, nqn: nqn.to_owned(), address: "169.254.1.2".to_owned() }
}

pub(crate) fn access_request() -> AccessRequest {
    AccessRequest { name: "laptop".to_owned(), address: [169, 254, 1, 2].into() }
}

/// An endpoint of NVMe/TCP at its standard port.
pub(crate) fn nvme(ip: &str, interface: Option<&str>) -> Endpoint {
    endpoint(Protocol::Nvme, ip, interface)
}

/// An endpoint of NBD at its standard port.
pub(crate) fn nbd(ip: &str, interface: Option<&str>) -> Endpoint {
    endpoint(Protocol::Nbd, ip, interface)
}

fn endpoint(protocol: Protocol, ip: &str, interface: Option<&str>) -> Endpoint {
    let (ip, interface) = (ip.parse().unwrap(), interface.map(str::to_owned));
    let port = protocol.row().ports[0].number;
    Endpoint {
        protocol,
        addr: EndpointAddr::Net(NetAddr { ip, interface, port }),
        keyed: false,
        pin: None,
    }
}

fn keyed(at: Endpoint) -> Endpoint {
    Endpoint { keyed: true, ..at }
}

/// `storagetm serve` on a machine with one network interface, with a key required.
pub(crate) fn serve(disks: usize) -> Model {
    let endpoints = [nvme, nbd].map(|at| {
        [keyed(at("169.254.7.9", None)), keyed(at("fe80::1", Some("eth0"))), at("127.0.0.1", None)]
    });
    Model {
        machine: "laptop".to_owned(),
        endpoints: endpoints.concat(),
        digests: false,
        disks: (0..disks).map(disk).collect(),
        pairing: Some(code()),
        reading: None,
        access_request: None,
        notes: Vec::new(),
        link: Link::Down,
        target_mode: None,
    }
}

/// A machine that serves HTTPS, too, with the code for reading.
pub(crate) fn web() -> Model {
    let mut model = serve(1);
    let bytes: Vec<String> = (0..16).map(|n| format!("{n:X}{n:X}")).collect();
    let https = keyed(endpoint(Protocol::Https, "169.254.7.9", None));
    model.endpoints.push(Endpoint { pin: Some("p".repeat(44).into()), ..https });
    model.reading = Some(ReadingAccess {
        code: Some("0123-4567-89AB".to_owned()),
        is_on_screen: false,
        fingerprint: [bytes.clone(), bytes].concat().join(":"),
    });
    model
}

pub(crate) fn code() -> Pairing {
    let link = "storagetm:pair?code=aaaaaaaaaaaaaaaaaaaaaaaaaa&at=169.254.7.9:4420".to_owned();
    Pairing::Code { digits: "12345678".to_owned(), link }
}

/// A machine in target mode with two network interfaces.
pub(crate) fn target_mode(disks: usize) -> Model {
    let mut model = serve(disks);
    model.endpoints.retain(|at| at.keyed);
    model.endpoints.push(keyed(nvme("169.254.99.200", None)));
    model.endpoints.push(keyed(nvme("fe80::2", Some("eth1"))));
    model.disks.iter_mut().for_each(|disk| disk.writes = Some(0));
    let hardware = "Example Laptop 13, serial L1".to_owned();
    model.target_mode = Some(TargetMode { hardware, serving: true, ..TargetMode::default() });
    model
}
