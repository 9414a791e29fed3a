//! The limit of what an overlay stores, and its division between hosts.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::{Overlay, OverlayState};
use crate::{Backing, Export, Fault};

/// Room that a request in flight has reserved, until it is dropped.
#[derive(Debug)]
pub struct Reserved {
    export: Arc<Export>,
    state: usize,
    bytes: u64,
}

impl Reserved {
    /// Records that the request has stored its data. The bytes count as used until the state is measured
    /// again.
    pub fn commit(self) {
        if let Some(state) = self.own() {
            state.used.fetch_add(self.bytes, Ordering::AcqRel);
        }
    }

    /// Adds what another reservation in the same state has reserved.
    pub fn join(&mut self, mut other: Self) {
        self.bytes = self.bytes.saturating_add(std::mem::take(&mut other.bytes));
    }

    fn own(&self) -> Option<&OverlayState> {
        match self.export.backing() {
            Backing::Overlay(overlay) => overlay.states.get(self.state),
            Backing::Raw(_) | Backing::Virtual(_) => None,
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Some(state) = self.own() {
            state.reserved.fetch_sub(self.bytes, Ordering::AcqRel);
        }
    }
}

impl Overlay {
    /// Reserves room for `growth` bytes more in a state, until the request has ended. `measure` returns
    /// how many bytes it stores now. What requests in flight may still store counts.
    ///
    /// # Errors
    /// [`Fault::NoSpace`] if there is no room, and the fault of `measure`.
    pub fn reserve(
        export: &Arc<Export>,
        state: usize,
        growth: u64,
        measure: impl FnOnce() -> Result<u64, Fault>,
    ) -> Result<Reserved, Fault> {
        let Backing::Overlay(overlay) = export.backing() else { return Err(Fault::Io) };
        let _reserving = overlay.reserving.lock().unwrap_or_else(PoisonError::into_inner);
        let own = overlay.states.get(state).ok_or(Fault::Io)?;
        own.set_used(measure()?);
        if !overlay.has_room(state, growth) {
            return Err(Fault::NoSpace);
        }
        own.reserved.fetch_add(growth, Ordering::AcqRel);
        Ok(Reserved { export: export.clone(), state, bytes: growth })
    }

    /// Returns whether a state may store `growth` bytes more. All states together store at most the
    /// limit. If each host has its own, one may have half of what the others leave, so that something is
    /// left for the next; three quarters are divided between hosts without a key.
    fn has_room(&self, state: usize, growth: u64) -> bool {
        let Some(own) = self.states.get(state) else { return false };
        let after = own.taken().saturating_add(growth);
        let others = self.states.iter().enumerate().filter(|(index, _)| *index != state);
        let (mut all, mut without_key) = (0u64, 0u64);
        for (_, other) in others {
            let taken = other.taken();
            all = all.saturating_add(taken);
            without_key = without_key.saturating_add(if other.has_key() { 0 } else { taken });
        }
        let limit = self.layout.limit;
        let room = limit.saturating_sub(all);
        let open = (limit - limit / 4).saturating_sub(without_key);
        match (self.layout.is_private, own.has_key()) {
            (false, _) => after <= room,
            (true, true) => after <= room / 2,
            (true, false) => after <= room.min(open) / 2,
        }
    }
}

#[cfg(test)]
mod test {
    use super::super::{Claim, MAX_STATES, MAX_WITHOUT_KEY, OverlayHost, OverlayLayout};
    use super::*;
    use crate::{Geometry, Identity};

    fn export(states: usize, limit: u64) -> Arc<Export> {
        let file = |_| std::fs::File::open("/dev/null").unwrap().into();
        let layout = OverlayLayout { limit, map_cost: 1, is_private: true, is_durable: false };
        let overlay = Overlay::new((0..1 + 2 * states).map(file).collect(), layout).unwrap();
        let (identity, geometry) = (Identity::default(), Geometry::new(512, 512).unwrap());
        let backing = Backing::Overlay(overlay);
        Arc::new(Export::new("a", "a", identity, geometry, 1 << 20, backing))
    }

    fn state(export: &Export, index: usize) -> &OverlayState {
        let Backing::Overlay(overlay) = export.backing() else { panic!("an overlay") };
        overlay.state(index).unwrap().0
    }

    /// Returns the state of a new host.
    fn host(export: &Arc<Export>, host: &OverlayHost) -> Option<usize> {
        let claim = Claim::new(export, Some(host), true).unwrap();
        let index = claim.state()?;
        state(export, index).set_changed();
        Some(index)
    }

    /// Stores bytes, if there is room beside what the state stores already.
    fn store(export: &Arc<Export>, index: usize, stored: u64, bytes: u64) -> bool {
        let reserved = Overlay::reserve(export, index, bytes, || Ok(stored));
        reserved.map(Reserved::commit).is_ok()
    }

    #[test]
    fn invented_names_do_not_exclude_hosts_with_a_key() {
        let export = export(MAX_STATES, 1600);
        let write = |host: &OverlayHost| {
            let index = self::host(&export, host)?;
            Some((0..1600).take_while(|stored| store(&export, index, *stored, 1)).count())
        };
        let named = |number: u32| OverlayHost::Named(number.to_string());
        let keyed = |number: u32| OverlayHost::Keyed(number.to_string());
        let written: Vec<_> = (0..100).filter_map(|number| write(&named(number))).collect();
        assert_eq!((written.len(), written[0], written[1]), (MAX_WITHOUT_KEY, 600, 300));
        assert!(written.iter().sum::<usize>() < 1200);
        let keyed: Vec<_> = (0..100).filter_map(|number| write(&keyed(number))).collect();
        assert_eq!((keyed.len(), keyed[0], keyed[1]), (MAX_STATES / 2, 202, 101));
    }

    #[test]
    fn a_host_may_use_half_of_what_the_others_leave() {
        let export = export(3, 90);
        let hosts = ["1", "2", "3"].map(|name| OverlayHost::Keyed(name.to_owned()));
        let states = hosts.map(|host| self::host(&export, &host).unwrap());
        assert!(store(&export, states[0], 0, 45) && !store(&export, states[0], 45, 1));
        assert!(store(&export, states[1], 0, 22) && !store(&export, states[1], 22, 1));
        // A discard makes room for all.
        state(&export, states[0]).set_used(0);
        assert!(store(&export, states[2], 0, 34) && !store(&export, states[2], 34, 1));
        assert!(!store(&export, states[2], u64::MAX, u64::MAX) && !store(&export, 9, 0, 0));
    }

    #[test]
    fn requests_in_flight_do_not_exceed_the_limit() {
        let export = export(2, 100);
        let states =
            ["1", "2"].map(|name| host(&export, &OverlayHost::Keyed(name.to_owned())).unwrap());
        let reserve = |at: usize, bytes| Overlay::reserve(&export, states[at], bytes, || Ok(0));
        // None of them has stored anything yet.
        let mut first = reserve(0, 30).unwrap();
        first.join(reserve(0, 20).unwrap());
        assert_eq!(reserve(0, 1).unwrap_err(), Fault::NoSpace);
        assert_eq!(reserve(1, 26).unwrap_err(), Fault::NoSpace, "half of what the first leaves");
        drop(reserve(1, 25).unwrap());
        // A request that failed has stored nothing.
        drop(first);
        assert!(reserve(0, 50).is_ok() && reserve(1, 50).is_ok());
        assert_eq!([0, 1].map(|at| state(&export, states[at]).taken()), [0, 0]);
        reserve(0, 30).unwrap().commit();
        assert_eq!(reserve(1, 36).unwrap_err(), Fault::NoSpace);
    }
}
