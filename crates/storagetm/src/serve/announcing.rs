//! What `storagetm serve` has the networks told: where disks are had, as addresses come and go. It knows no event.

use std::net::SocketAddr;

use export::Auth;

use daemon::listen::{Listener, Place, Serves};
use dnssd::{LocalEndpoint, ServiceType};

use super::Server;

impl Server {
    /// Tells the networks nearby where disks are had now.
    pub(super) fn tell_networks(&mut self) {
        let Some(announcer) = &mut self.announcer else { return };
        let spots = spots(self.listeners.here());
        announcer.announce(&self.machine, &spots, &self.addresses);
    }
}

/// NVMe's discovery where it has a port of its own, else at that of the disks.
fn spots<'a>(here: impl Iterator<Item = &'a Listener>) -> Vec<LocalEndpoint> {
    let here: Vec<(SocketAddr, &Listener)> = here.filter_map(at).collect();
    let has_discovery = |at: SocketAddr| {
        here.iter().any(|(it, of)| of.serves == Serves::Discovery && it.ip() == at.ip())
    };
    let chosen = here.iter().filter(|(at, of)| of.serves != Serves::All || !has_discovery(*at));
    chosen.map(|(at, of)| spot(*at, of)).collect()
}

fn at(listener: &Listener) -> Option<(SocketAddr, &Listener)> {
    match listener.place {
        Place::Net(at) => Some((at, listener)),
        Place::Path(_) => None,
    }
}

fn spot(at: SocketAddr, listener: &Listener) -> LocalEndpoint {
    let kind = match listener.serves {
        Serves::All | Serves::Discovery => ServiceType::Nvme,
        Serves::Nbd => ServiceType::Nbd,
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

    fn listener(serves: Serves, at: &str) -> Listener {
        let auth = if at.starts_with("127.") { Auth::None } else { Auth::Required };
        Listener {
            place: Place::Net(at.parse().unwrap()),
            interface: None,
            serves,
            auth,
            spare: false,
        }
    }

    #[test]
    fn discovery_is_announced_at_its_own_port_where_it_has_one() {
        let here = [
            listener(Serves::All, "10.0.0.1:4420"),
            listener(Serves::Discovery, "10.0.0.1:8009"),
            listener(Serves::All, "127.0.0.1:5000"),
            listener(Serves::Nbd, "10.0.0.1:10809"),
            Listener {
                place: Place::Path("/run/a".into()),
                ..listener(Serves::Nbd, "127.0.0.1:1")
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
