//! The limit of what an overlay stores, and its division between hosts.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

use super::Overlay;
use crate::{Export, Fault};

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
    pub fn commit(mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let Some(overlay) = self.export.backing().overlay() else { return };
        let Some(state) = overlay.states.get(self.state) else { return };
        // A measurement that has begun may have missed the data: it must not be stored after this.
        let _reserving = overlay.reserving();
        state.used.fetch_add(bytes, Ordering::AcqRel);
        state.reserved.fetch_sub(bytes, Ordering::AcqRel);
    }

    /// Adds what another reservation in the same state has reserved.
    pub fn join(&mut self, mut other: Self) {
        self.bytes = self.bytes.saturating_add(std::mem::take(&mut other.bytes));
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let Some(overlay) = self.export.backing().overlay() else { return };
        if let Some(state) = overlay.states.get(self.state) {
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
        let overlay = export.backing().overlay().ok_or(Fault::Io)?;
        let _reserving = overlay.reserving();
        let own = overlay.states.get(state).ok_or(Fault::Io)?;
        own.set_used(measure()?);
        if !overlay.has_room(state, growth) {
            return Err(Fault::NoSpace);
        }
        own.reserved.fetch_add(growth, Ordering::AcqRel);
        Ok(Reserved { export: export.clone(), state, bytes: growth })
    }

    /// Measures how many bytes a state stores, as a discard makes room for other hosts.
    ///
    /// # Errors
    /// The fault of `measure`.
    pub fn measure(
        export: &Export,
        state: usize,
        measure: impl FnOnce() -> Result<u64, Fault>,
    ) -> Result<(), Fault> {
        let overlay = export.backing().overlay().ok_or(Fault::Io)?;
        let _reserving = overlay.reserving();
        overlay.states.get(state).ok_or(Fault::Io)?.set_used(measure()?);
        Ok(())
    }

    fn reserving(&self) -> MutexGuard<'_, ()> {
        self.reserving.lock().unwrap_or_else(PoisonError::into_inner)
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
    use super::super::{
        Claim, MAX_STATES, MAX_WITHOUT_KEY, OverlayHost, OverlayLayout, OverlayState,
    };
    use super::*;
    use std::sync::atomic::AtomicU64;
    use std::thread::JoinHandle;
    use std::time::Duration;

    use crate::{Backing, Geometry, Identity};

    fn export(states: usize, limit: u64) -> Arc<Export> {
        export_of(states, limit, true)
    }

    fn export_of(states: usize, limit: u64, is_private: bool) -> Arc<Export> {
        let file = |_| std::fs::File::open("/dev/null").unwrap().into();
        let layout = OverlayLayout { limit, map_cost: 1, is_private, is_durable: false };
        let files = (0..1 + 2 * states).map(file).collect();
        let backing = Backing::new(layout.into(), files).unwrap();
        let (identity, geometry) = (Identity::default(), Geometry::new(512, 512).unwrap());
        Arc::new(Export::new("a", "a", identity, geometry, 1 << 20, backing))
    }

    fn state(export: &Export, index: usize) -> &OverlayState {
        export.backing().overlay().unwrap().state(index).unwrap().0
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
        Overlay::measure(&export, states[0], || Ok(0)).unwrap();
        assert!(store(&export, states[2], 0, 34) && !store(&export, states[2], 34, 1));
        assert!(!store(&export, states[2], u64::MAX, u64::MAX) && !store(&export, 9, 0, 0));
    }

    #[test]
    fn commit_during_a_measurement_is_counted() {
        let export = export(1, 1000);
        let index = host(&export, &OverlayHost::Keyed("1".to_owned())).unwrap();
        let reserve = |bytes| Overlay::reserve(&export, index, bytes, || Ok(0)).unwrap();
        let commit = |reserved: Reserved, thread: &mut Option<JoinHandle<()>>| {
            *thread = Some(std::thread::spawn(move || reserved.commit()));
            // It has ended by then, if it does not wait for the measurement.
            std::thread::sleep(Duration::from_millis(50));
            Ok(0)
        };
        let (reserved, mut thread) = (reserve(30), None);
        drop(Overlay::reserve(&export, index, 10, || commit(reserved, &mut thread)).unwrap());
        thread.take().unwrap().join().unwrap();
        assert_eq!(state(&export, index).taken(), 30);
        let reserved = reserve(30);
        Overlay::measure(&export, index, || commit(reserved, &mut thread)).unwrap();
        thread.unwrap().join().unwrap();
        assert_eq!(state(&export, index).taken(), 30);
    }

    #[test]
    fn writes_and_discards_at_once_keep_the_limit() {
        const LIMIT: u64 = 40;
        let export = export_of(1, LIMIT, false);
        let file = AtomicU64::new(0);
        let stored = || {
            let bytes = file.load(Ordering::SeqCst);
            std::thread::yield_now();
            Ok(bytes)
        };
        let work = |discards: bool| {
            for round in 0..20_000 {
                if discards && round % 16 == 0 {
                    file.store(0, Ordering::SeqCst);
                    Overlay::measure(&export, 0, stored).unwrap();
                }
                let growth = 1 + round % 7;
                let Ok(room) = Overlay::reserve(&export, 0, growth, stored) else { continue };
                let all = file.fetch_add(growth, Ordering::SeqCst) + growth;
                room.commit();
                assert!(all <= LIMIT, "{all}");
            }
        };
        std::thread::scope(|scope| {
            for discards in [false, false, false, true] {
                scope.spawn(move || work(discards));
            }
        });
        assert!(state(&export, 0).taken() >= file.into_inner());
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
