//! Multicast DNS announcements of the listeners of `storagetm serve`.

use std::net::SocketAddr;

use export::Auth;

use daemon::listen::{BindAddr, Listener, Service};
use dnssd::LocalEndpoint;
use protocol::{Protocol, Role};

/// Announces NVMe at the discovery port of an address where there is one, else at the I/O port.
pub(super) fn mdns_endpoints<'a>(here: impl Iterator<Item = &'a Listener>) -> Vec<LocalEndpoint> {
    let here: Vec<(SocketAddr, &Listener)> = here.filter_map(tcp_listener).collect();
    let has_discovery = |at: SocketAddr, protocol: Protocol| {
        let discovery = Service::discovery(protocol);
        here.iter().any(|(it, of)| of.serves == discovery && it.ip() == at.ip())
    };
    let chosen = here.iter().filter(|(tcp_listener, of)| {
        let is_chosen =
            of.serves.role == Role::Discovery || !has_discovery(*tcp_listener, of.serves.protocol);
        is_chosen && of.serves.protocol.row().service_type.is_some()
    });
    chosen.map(|(tcp_listener, of)| mdns_endpoint(*tcp_listener, of)).collect()
}

fn tcp_listener(listener: &Listener) -> Option<(SocketAddr, &Listener)> {
    match listener.addr {
        BindAddr::Net(tcp_listener) => Some((tcp_listener, listener)),
        BindAddr::Path(_) => None,
    }
}

fn mdns_endpoint(tcp_listener: SocketAddr, listener: &Listener) -> LocalEndpoint {
    LocalEndpoint {
        kind: listener.serves.protocol,
        address: tcp_listener.ip(),
        port: tcp_listener.port(),
        keyed: listener.auth == Auth::Required,
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn listener(serves: Service, tcp_listener: &str) -> Listener {
        let auth = if tcp_listener.starts_with("127.") { Auth::None } else { Auth::Required };
        Listener {
            addr: BindAddr::Net(tcp_listener.parse().unwrap()),
            interface: None,
            serves,
            auth,
            optional: false,
        }
    }

    #[test]
    fn discovery_is_announced_at_its_own_port_where_it_has_one() {
        let here = [
            listener(Service::disks(Protocol::Nvme), "10.0.0.1:4420"),
            listener(Service::discovery(Protocol::Nvme), "10.0.0.1:8009"),
            listener(Service::disks(Protocol::Nvme), "127.0.0.1:5000"),
            listener(Service::disks(Protocol::Nbd), "10.0.0.1:10809"),
            Listener {
                addr: BindAddr::Path("/run/a".into()),
                ..listener(Service::disks(Protocol::Nbd), "127.0.0.1:1")
            },
        ];
        let found = mdns_endpoints(here.iter());
        let told: Vec<_> = found.iter().map(|it| (it.kind, it.port, it.keyed)).collect();
        assert_eq!(
            told,
            [
                (Protocol::Nvme, 8009, true),
                (Protocol::Nvme, 5000, false),
                (Protocol::Nbd, 10809, true)
            ]
        );
    }
}
