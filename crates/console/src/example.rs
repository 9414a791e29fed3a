//! Models for tests.

use export::Access;

use crate::attach::{Endpoint, Nbd};
use crate::{AccessRequest, Disk, Host, Link, Model, Pairing, TargetMode};

pub(crate) fn disk(n: usize) -> Disk {
    let letter = char::from(b'a' + u8::try_from(n).unwrap());
    Disk {
        title: format!("/dev/sd{letter}"),
        nqn: format!("nqn.2014-08.org.nvmexpress:uuid:00000000-0000-8000-8000-{n:012}"),
        short: format!("sd{letter}"),
        size: 500_107_862_016,
        block_size: 512,
        model: "Example 500".to_owned(),
        serial: format!("S{n}"),
        contents: String::new(),
        access: Access::ReadOnly,
        attached: Vec::new(),
        read: 0,
        written: 0,
        writes: None,
    }
}

pub(crate) fn host(name: &str) -> Host {
    let nqn = "nqn.2014-08.org.nvmexpress:uuid:2f6d1c52-0000-4000-8000-000000000000";
    let known_as = (!name.is_empty()).then(|| name.to_owned());
    Host { known_as, nqn: nqn.to_owned(), address: [169, 254, 1, 2].into() }
}

pub(crate) fn access_request() -> AccessRequest {
    AccessRequest { name: "laptop".to_owned(), address: [169, 254, 1, 2].into() }
}

pub(crate) fn endpoint(address: &str, interface: Option<&str>) -> Endpoint {
    Endpoint {
        address: address.parse().unwrap(),
        interface: interface.map(str::to_owned),
        port: 4420,
        keyed: false,
    }
}

/// `storagetm serve` on a machine with one network interface, with a key required.
pub(crate) fn serve(disks: usize) -> Model {
    let keyed = |at: Endpoint| Endpoint { keyed: true, ..at };
    let endpoints = vec![
        keyed(endpoint("169.254.7.9", None)),
        keyed(endpoint("fe80::1", Some("eth0"))),
        endpoint("127.0.0.1", None),
    ];
    let nbd = |at: &Endpoint| Nbd::Net(Endpoint { port: 10809, ..at.clone() });
    Model {
        machine: "laptop".to_owned(),
        nbd: endpoints.iter().map(nbd).collect(),
        endpoints,
        digests: false,
        disks: (0..disks).map(disk).collect(),
        pairing: Some(code()),
        access_request: None,
        notes: Vec::new(),
        link: Link::Down,
        target_mode: None,
    }
}

pub(crate) fn code() -> Pairing {
    let link = "storagetm:pair?code=aaaaaaaaaaaaaaaaaaaaaaaaaa&at=169.254.7.9:4420".to_owned();
    Pairing::Code { digits: "12345678".to_owned(), link }
}

/// A machine in target mode with two network interfaces.
pub(crate) fn target_mode(disks: usize) -> Model {
    let mut model = serve(disks);
    model.endpoints.pop();
    model.nbd.pop();
    for (address, interface) in [("169.254.99.200", None), ("fe80::2", Some("eth1"))] {
        model.endpoints.push(Endpoint { keyed: true, ..endpoint(address, interface) });
    }
    model.disks.iter_mut().for_each(|disk| disk.writes = Some(0));
    let hardware = "Example Laptop 13, serial L1".to_owned();
    model.target_mode = Some(TargetMode { hardware, serving: true, flushing: false });
    model
}
