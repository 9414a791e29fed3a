//! The device: all exports, as logical units.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use export::{Account, Catalogue, ExportId, Peer};
use scsi::Port;

use crate::session::Session;
use crate::unit::{Slot, caller};

/// Most logical units.
pub const MAX_UNITS: usize = 8;

/// The device. Its logical units are the first exports that the catalogue has had. Hosts that scan
/// the units ask for their number first: only then exports that are new get numbers, which they
/// keep when they are withdrawn.
#[derive(Debug)]
pub struct Server {
    catalogue: Arc<Catalogue>,
    port: Arc<Port>,
    /// The exports by the numbers of their units.
    numbers: Mutex<Vec<ExportId>>,
}

impl Server {
    /// Creates the device.
    pub fn new(catalogue: Arc<Catalogue>) -> Arc<Self> {
        Arc::new(Self { catalogue, port: Arc::default(), numbers: Mutex::default() })
    }

    /// Returns the number of logical units, for a host that scans them now.
    pub fn units(&self, peer: &Peer) -> usize {
        self.numbered(peer, true).len()
    }

    /// Creates the session of a host that has configured or reset the device.
    pub fn session(&self, peer: Peer, account: Account, _now: Instant) -> Session {
        let slot = |id| Slot::new(id, self.port.clone(), &self.catalogue, &peer);
        let mut units: Vec<_> =
            self.numbered(&peer, false).into_iter().map(|id| slot(Some(id))).collect();
        if units.is_empty() {
            units.push(slot(None));
        }
        Session::new(self.catalogue.clone(), peer, account, units)
    }

    /// Returns the exports by their numbers. Numbers new ones `if_scanned`, or if there are none.
    fn numbered(&self, peer: &Peer, if_scanned: bool) -> Vec<ExportId> {
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        if if_scanned || numbers.is_empty() {
            for export in self.catalogue.visible(&caller(peer)) {
                if numbers.len() < MAX_UNITS && !numbers.contains(&export.id) {
                    numbers.push(export.id.clone());
                }
            }
        }
        numbers.clone()
    }
}
