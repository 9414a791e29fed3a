//! Multicast DNS announcements of the listeners of `storagetm serve`.

use std::net::SocketAddr;

use export::Auth;

use daemon::listen::{BindAddr, Listener, ListenerRole};
use dnssd::{LocalEndpoint, ServiceType};

use super::Server;

impl Server {
    /// Announces the current listeners.
    pub(super) fn announce_mdns(&mut self) {
        let Some(announcer) = &mut self.announcer else { return };
        let found = mdns_endpoints(self.listeners.active());
        announcer.announce(&self.machine, &found, &self.addresses);
    }
}

/// Announces NVMe at the discovery port of an address where there is one, else at the I/O port.
fn mdns_endpoints<'a>(here: impl Iterator<Item = &'a Listener>) -> Vec<LocalEndpoint> {
    let here: Vec<(SocketAddr, &Listener)> = here.filter_map(tcp_listener).collect();
    let has_discovery = |tcp_listener: SocketAddr| {
        here.iter()
            .any(|(it, of)| of.serves == ListenerRole::Discovery && it.ip() == tcp_listener.ip())
    };
    let chosen = here.iter().filter(|(tcp_listener, of)| {
        of.serves != ListenerRole::All || !has_discovery(*tcp_listener)
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
    let kind = match listener.serves {
        ListenerRole::All | ListenerRole::Discovery => ServiceType::Nvme,
        ListenerRole::Nbd => ServiceType::Nbd,
    };
    LocalEndpoint {
        kind,
        address: tcp_listener.ip(),
        port: tcp_listener.port(),
        keyed: listener.auth == Auth::Required,
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn listener(serves: ListenerRole, tcp_listener: &str) -> Listener {
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
            listener(ListenerRole::All, "10.0.0.1:4420"),
            listener(ListenerRole::Discovery, "10.0.0.1:8009"),
            listener(ListenerRole::All, "127.0.0.1:5000"),
            listener(ListenerRole::Nbd, "10.0.0.1:10809"),
            Listener {
                addr: BindAddr::Path("/run/a".into()),
                ..listener(ListenerRole::Nbd, "127.0.0.1:1")
            },
        ];
        let found = mdns_endpoints(here.iter());
        let told: Vec<_> = found.iter().map(|it| (it.kind, it.port, it.keyed)).collect();
        assert_eq!(
            told,
            [
                (ServiceType::Nvme, 8009, true),
                (ServiceType::Nvme, 5000, false),
                (ServiceType::Nbd, 10809, true)
            ]
        );
    }
}
