//! The device: all exports, as logical units.

use std::sync::Arc;
use std::time::Instant;

use export::{Account, Catalogue, Peer};
use scsi::Port;

use crate::session::Session;
use crate::unit::{Unit, caller};

/// Most logical units.
pub const MAX_UNITS: usize = 8;

/// The device. Its logical units are the first exports of the catalogue, in that order.
#[derive(Debug)]
pub struct Server {
    catalogue: Arc<Catalogue>,
    port: Arc<Port>,
}

impl Server {
    /// Creates the device.
    pub fn new(catalogue: Arc<Catalogue>) -> Arc<Self> {
        Arc::new(Self { catalogue, port: Arc::default() })
    }

    /// Returns the number of logical units.
    pub fn units(&self, peer: &Peer) -> usize {
        self.catalogue.visible(&caller(peer)).len().min(MAX_UNITS)
    }

    /// Creates the session of a host that has configured or reset the device.
    pub fn session(&self, peer: Peer, account: Account, _now: Instant) -> Session {
        let caller = caller(&peer);
        let exports = self.catalogue.visible(&caller).into_iter().take(MAX_UNITS);
        let grants = exports.filter_map(|export| self.catalogue.grant(&caller, &export.id).ok());
        let generation = self.catalogue.generation();
        let units = grants.map(|grant| Unit::new(grant, self.port.clone(), generation)).collect();
        Session::new(self.catalogue.clone(), peer, account, units)
    }
}
