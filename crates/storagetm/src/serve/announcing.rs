//! What `storagetm serve` has the networks told: where disks are had, as addresses come and go. It knows no event.

use std::net::SocketAddr;

use export::Auth;

use daemon::listen::{BindAddr, Listener, ListenerRole};
use dnssd::{LocalEndpoint, ServiceType};

use super::Server;

impl Server {
    /// Tells the networks nearby where disks are had now.
    pub(super) fn tell_networks(&mut self) {
        let Some(announcer) = &mut self.announcer else { return };
        let spots = spots(self.listeners.active());
        announcer.announce(&self.machine, &spots, &self.addresses);
    }
}

/// NVMe's discovery where it has a port of its own, else at that of the disks.
fn spots<'a>(here: impl Iterator<Item = &'a Listener>) -> Vec<LocalEndpoint> {
    let here: Vec<(SocketAddr, &Listener)> = here.filter_map(at).collect();
    let has_discovery = |at: SocketAddr| {
        here.iter().any(|(it, of)| of.serves == ListenerRole::Discovery && it.ip() == at.ip())
    };
    let chosen =
        here.iter().filter(|(at, of)| of.serves != ListenerRole::All || !has_discovery(*at));
    chosen.map(|(at, of)| spot(*at, of)).collect()
}

fn at(listener: &Listener) -> Option<(SocketAddr, &Listener)> {
    match listener.addr {
        BindAddr::Net(at) => Some((at, listener)),
        BindAddr::Path(_) => None,
    }
}

fn spot(at: SocketAddr, listener: &Listener) -> LocalEndpoint {
    let kind = match listener.serves {
        ListenerRole::All | ListenerRole::Discovery => ServiceType::Nvme,
        ListenerRole::Nbd => ServiceType::Nbd,
    };
    LocalEndpoint {
        kind,
        address: at.ip(),
        port: at.port(),
        keyed: listener.auth == Auth::Required,
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn listener(serves: ListenerRole, at: &str) -> Listener {
        let auth = if at.starts_with("127.") { Auth::None } else { Auth::Required };
        Listener {
            addr: BindAddr::Net(at.parse().unwrap()),
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
        let spots = spots(here.iter());
        let told: Vec<_> = spots.iter().map(|spot| (spot.kind, spot.port, spot.keyed)).collect();
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
