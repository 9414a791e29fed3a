//! Overlays: what hosts write to a disk is stored beside it, and the disk itself is never written.

mod host;
mod room;

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};

use crate::{BlockMap, Export, Fault};
use host::MAX_TEXT;
pub use host::OverlayHost;
pub use room::Reserved;

/// Most hosts that have a state of their own in one overlay.
pub const MAX_STATES: usize = 16;

/// Most of them that have no key: names that a peer invents must not take all states.
const MAX_WITHOUT_KEY: usize = MAX_STATES / 2;

/// Bytes of the file of a [`BlockMap`] before the map: the header, with the host.
pub(crate) const HEADER_BYTES: u64 = 4096;

/// How an overlay is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverlayLayout {
    /// The most that it may store, in bytes.
    pub limit: u64,
    /// How many bytes of the limit a byte of memory for the map takes: one, unless the data is not in
    /// memory.
    pub map_cost: u64,
    /// Whether each host has a state of its own.
    pub is_private: bool,
    /// Whether there is a durable map for each state, so that it survives a restart.
    pub is_durable: bool,
}

impl OverlayLayout {
    /// Returns how many files a state has.
    fn files(self) -> usize {
        if self.is_durable { 3 } else { 2 }
    }
}

/// The files of an overlay, and what was written: one state for all hosts, or one for each.
#[derive(Debug)]
pub struct Overlay {
    /// For each state the file with the data that was written, at the offset that it has on the disk, the
    /// file with the header and the [`BlockMap`], and perhaps its durable copy.
    files: Vec<OwnedFd>,
    layout: OverlayLayout,
    states: Box<[OverlayState]>,
    owners: Mutex<Owners>,
    /// Held while a state is measured, and while what it stores or has reserved is added.
    reserving: Mutex<()>,
}

/// What one host has written, or all hosts together.
#[derive(Debug, Default)]
pub struct OverlayState {
    has_key: AtomicBool,
    is_changed: AtomicBool,
    used: AtomicU64,
    /// Bytes that requests in flight may store.
    reserved: AtomicU64,
    map: OnceLock<Result<BlockMap, Fault>>,
    /// Held while the map is stored in the durable one: whether that has its header.
    persisting: Mutex<bool>,
}

/// The use of an overlay by a connection of a host.
#[derive(Debug)]
pub(crate) struct Claim {
    export: Arc<Export>,
    claimed: Claimed,
}

/// What a connection uses.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Claimed {
    /// The state with this index.
    State(usize),
    /// Only the disk: the host has no state.
    Base(OverlayHost, NoState),
}

/// Why a host has no state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NoState {
    /// It may only read, or its name is too long.
    NotAllowed,
    /// An older connection of it uses the disk without one.
    OlderConnection,
    /// None is free.
    NoRoom,
}

impl Claim {
    /// Returns the use of the overlay by a connection of the host, as [`Overlay::claim`]; `None` without
    /// an overlay.
    pub(crate) fn new(
        export: &Arc<Export>,
        host: Option<&OverlayHost>,
        may_write: bool,
    ) -> Option<Self> {
        let overlay = export.backing().overlay()?;
        let host = if overlay.layout.is_private { host? } else { &OverlayHost::All };
        Some(Self { export: export.clone(), claimed: overlay.claim(host, may_write) })
    }

    /// Returns the index of the state.
    pub(crate) fn state(&self) -> Option<usize> {
        match self.claimed {
            Claimed::State(index) => Some(index),
            Claimed::Base(..) => None,
        }
    }

    /// Returns whether the host may write, and there was no free state.
    pub(crate) fn has_no_room(&self) -> bool {
        matches!(self.claimed, Claimed::Base(_, NoState::NoRoom))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(overlay) = self.export.backing().overlay() {
            overlay.release(&self.claimed);
        }
    }
}

/// The hosts that use an overlay.
#[derive(Debug)]
struct Owners {
    /// Of each state.
    states: Vec<Owner>,
    /// Connected hosts without a state, and the number of their connections.
    without: Vec<(OverlayHost, usize)>,
}

/// The host of a state.
#[derive(Debug, Default)]
struct Owner {
    host: Option<OverlayHost>,
    connections: usize,
}

impl Overlay {
    /// Returns the overlay in `files`: for each state a file with data, one with the map, and the durable
    /// map if the layout has one. They are empty or were used with this disk before. Returns `None` if the
    /// number of files is wrong.
    pub fn new(files: Vec<OwnedFd>, layout: OverlayLayout) -> Option<Self> {
        let is_private = layout.is_private;
        let states = files.len() / layout.files();
        let max = if is_private { MAX_STATES } else { 1 };
        if states == 0 || states > max || files.len() != layout.files() * states {
            return None;
        }
        let owner = || Owner { host: (!is_private).then_some(OverlayHost::All), connections: 0 };
        let owners = Owners { states: (0..states).map(|_| owner()).collect(), without: Vec::new() };
        let (owners, reserving) = (Mutex::new(owners), Mutex::new(()));
        let states = (0..states).map(|_| OverlayState::default()).collect();
        Some(Self { files, layout, states, owners, reserving })
    }

    /// Returns all files.
    pub(crate) fn files(&self) -> &[OwnedFd] {
        &self.files
    }

    pub(crate) fn first_data(&self) -> &OwnedFd {
        &self.files[0]
    }

    /// Returns the index of the file with the data of a state in [`Overlay::files`].
    pub(crate) fn data_index(&self, state: usize) -> usize {
        self.layout.files() * state
    }

    /// Returns the state with this index, and its files with the data and with the map.
    pub fn state(&self, index: usize) -> Option<(&OverlayState, &OwnedFd, &OwnedFd)> {
        let data = self.data_index(index);
        Some((self.states.get(index)?, self.files.get(data)?, self.files.get(data + 1)?))
    }

    /// Returns whether anything was written to a state.
    pub fn is_changed(&self, state: usize) -> bool {
        self.states.get(state).is_some_and(OverlayState::is_changed)
    }

    /// Returns the file with the durable map of a state, if there is one.
    pub fn durable_map(&self, state: usize) -> Option<&OwnedFd> {
        self.files.get(self.data_index(state) + 2).filter(|_| self.layout.is_durable)
    }

    /// Returns the number of states.
    pub fn states(&self) -> usize {
        self.states.len()
    }

    /// Returns how it is kept.
    pub fn layout(&self) -> OverlayLayout {
        self.layout
    }

    fn owners(&self) -> MutexGuard<'_, Owners> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the host that a state belongs to.
    pub fn host(&self, state: usize) -> Option<OverlayHost> {
        self.owners().states.get(state)?.host.clone()
    }

    /// Sets what was read from the files of a state: the host that the header names, and the bytes that
    /// it stores.
    pub fn restore(&self, state: usize, host: OverlayHost, used: u64) {
        let mut owners = self.owners();
        if let (Some(owner), Some(state)) = (owners.states.get_mut(state), self.states.get(state)) {
            state.has_key.store(host.has_key(), Ordering::Release);
            state.is_changed.store(true, Ordering::Release);
            state.used.store(used, Ordering::Release);
            owner.host = Some(host);
        }
    }

    /// Returns what a new connection of a host uses, until [`Self::release`]. A host without a state gets
    /// a free one if it `may_write`, but not while connections of it use the disk without one: it would
    /// read two contents.
    fn claim(&self, host: &OverlayHost, may_write: bool) -> Claimed {
        let mut owners = self.owners();
        let found =
            if self.layout.is_private { self.find(&mut owners, host, may_write) } else { Ok(0) };
        let cause = match found {
            Ok(index) => {
                if let Some(owner) = owners.states.get_mut(index) {
                    owner.connections += 1;
                }
                return Claimed::State(index);
            }
            Err(cause) => cause,
        };
        match owners.without.iter_mut().find(|(known, _)| known == host) {
            Some((_, connections)) => *connections += 1,
            None => owners.without.push((host.clone(), 1)),
        }
        Claimed::Base(host.clone(), cause)
    }

    /// Returns the state of a host, or gives it a free one.
    fn find(
        &self,
        owners: &mut Owners,
        host: &OverlayHost,
        may_write: bool,
    ) -> Result<usize, NoState> {
        if let Some(known) =
            owners.states.iter().position(|owner| owner.host.as_ref() == Some(host))
        {
            return Ok(known);
        }
        if !may_write || host.text().len() > MAX_TEXT {
            return Err(NoState::NotAllowed);
        }
        let index = self.free(&owners.states, host).ok_or(NoState::NoRoom)?;
        if owners.without.iter().any(|(other, _)| other == host) {
            return Err(NoState::OlderConnection);
        }
        let both = self.states.get(index).zip(owners.states.get_mut(index));
        let (state, owner) = both.ok_or(NoState::NoRoom)?;
        state.has_key.store(host.has_key(), Ordering::Release);
        owner.host = Some(host.clone());
        Ok(index)
    }

    /// Returns a free state for a host. States of hosts that are not connected and have written nothing
    /// are free.
    fn free(&self, owners: &[Owner], host: &OverlayHost) -> Option<usize> {
        let is_free =
            |(state, owner): (&OverlayState, &Owner)| owner.connections == 0 && !state.is_changed();
        let with_key = |owner: &Owner| owner.host.as_ref().is_some_and(OverlayHost::has_key);
        let all = || self.states.iter().zip(owners.iter());
        let without_key = all().filter(|both| !is_free(*both) && !with_key(both.1)).count();
        if !host.has_key() && without_key >= MAX_WITHOUT_KEY {
            return None;
        }
        all().position(is_free)
    }

    /// Ends the use by a connection.
    fn release(&self, claimed: &Claimed) {
        let mut owners = self.owners();
        match claimed {
            Claimed::State(index) => {
                if let Some(owner) = owners.states.get_mut(*index) {
                    owner.connections = owner.connections.saturating_sub(1);
                }
            }
            Claimed::Base(host, _) => {
                if let Some((_, connections)) =
                    owners.without.iter_mut().find(|(known, _)| known == host)
                {
                    *connections = connections.saturating_sub(1);
                }
                owners.without.retain(|(_, connections)| *connections > 0);
            }
        }
    }
}

impl OverlayState {
    fn has_key(&self) -> bool {
        self.has_key.load(Ordering::Acquire)
    }

    /// Returns how many bytes it takes, with those that requests in flight may store.
    fn taken(&self) -> u64 {
        let [used, reserved] = [&self.used, &self.reserved].map(|it| it.load(Ordering::Acquire));
        used.saturating_add(reserved)
    }

    /// Returns whether anything was written, so that the header is stored and there is a map.
    pub fn is_changed(&self) -> bool {
        self.is_changed.load(Ordering::Acquire)
    }

    /// Records that the header is stored.
    pub fn set_changed(&self) {
        self.is_changed.store(true, Ordering::Release);
    }

    /// Sets how many bytes it stores.
    fn set_used(&self, bytes: u64) {
        self.used.store(bytes, Ordering::Release);
    }

    /// Returns whether the durable map has its header, which the caller sets. No other thread stores the
    /// map until this is dropped.
    pub fn persisting(&self) -> MutexGuard<'_, bool> {
        self.persisting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the map, which `load` reads when it is used for the first time.
    ///
    /// # Errors
    /// The fault of `load`, from then on.
    pub fn map(&self, load: impl FnOnce() -> Result<BlockMap, Fault>) -> Result<&BlockMap, Fault> {
        self.map.get_or_init(load).as_ref().map_err(|fault| *fault)
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::{Backing, Base};

    fn overlay(states: usize, limit: u64, is_private: bool) -> Option<Overlay> {
        let file = |_| std::fs::File::open("/dev/null").unwrap().into();
        let layout = OverlayLayout { limit, map_cost: 1, is_private, is_durable: false };
        Overlay::new((0..2 * states).map(file).collect(), layout)
    }

    fn named(number: usize) -> OverlayHost {
        OverlayHost::Named(format!("nqn.{number}"))
    }

    fn keyed(number: usize) -> OverlayHost {
        OverlayHost::Keyed(format!("nqn.{number}"))
    }

    #[test]
    fn every_host_has_its_own_state_and_keeps_it() {
        let overlay = overlay(MAX_STATES, 100, true).unwrap();
        let hosts = [named(1), keyed(1), named(2), OverlayHost::Address("nqn.1".to_owned())];
        let claim = |host: &OverlayHost| overlay.claim(host, true);
        let states = hosts.each_ref().map(claim);
        assert_eq!(states, [0, 1, 2, 3].map(Claimed::State));
        states.iter().for_each(|state| overlay.release(state));
        overlay.state(1).unwrap().0.set_changed();
        assert_eq!(claim(&keyed(1)), Claimed::State(1));
        // The state of a host that has written nothing is given to the next one.
        assert_eq!((claim(&named(9)), overlay.host(0)), (Claimed::State(0), Some(named(9))));
        // A host that may only read gets none, but finds what it has written before.
        assert_eq!(overlay.claim(&named(8), false), Claimed::Base(named(8), NoState::NotAllowed));
        assert_eq!(overlay.claim(&keyed(1), false), Claimed::State(1));
    }

    #[test]
    fn host_with_a_connection_without_state_gets_none() {
        let overlay = overlay(1, 100, true).unwrap();
        let (state, base) = (Claimed::State(0), |cause| Claimed::Base(named(2), cause));
        assert_eq!(overlay.claim(&named(1), true), state);
        // There is no room, or the host may only read.
        for (may_write, cause) in [(true, NoState::NoRoom), (false, NoState::NotAllowed)] {
            assert_eq!(overlay.claim(&named(2), may_write), base(cause));
        }
        overlay.release(&state);
        // There is room now, but one connection of the host still reads the disk.
        overlay.release(&base(NoState::NoRoom));
        let older = base(NoState::OlderConnection);
        assert_eq!(overlay.claim(&named(2), true), older);
        overlay.release(&older);
        overlay.release(&older);
        assert_eq!(overlay.claim(&named(2), true), state);
        assert!(overlay.owners().without.is_empty());
    }

    #[test]
    fn no_room_is_reported_only_if_no_state_is_free() {
        let overlay = overlay(1, 100, true).unwrap();
        let (identity, geometry) =
            (crate::Identity::default(), crate::Geometry::new(512, 512).unwrap());
        let base = Base::Raw(std::fs::File::open("/dev/null").unwrap().into());
        let backing = Backing::over(base, overlay);
        let export = Arc::new(Export::new("a", "a", identity, geometry, 1 << 20, backing));
        let claim = |host: OverlayHost, may_write| {
            let claim = Claim::new(&export, Some(&host), may_write).unwrap();
            ((claim.state(), claim.has_no_room()), claim)
        };
        let (has, first) = claim(named(1), true);
        assert_eq!(has, (Some(0), false));
        let (has, older) = claim(named(2), true);
        assert_eq!((has, claim(named(3), false).0), ((None, true), (None, false)));
        drop(first);
        assert_eq!(claim(named(2), true).0, (None, false), "the older connection reads the disk");
        drop(older);
        let long = OverlayHost::Named("n".repeat(MAX_TEXT + 1));
        assert_eq!(claim(long, true).0, (None, false), "its name is too long");
        assert_eq!(claim(named(2), true).0, (Some(0), false));
    }

    #[test]
    fn all_hosts_share_one_state() {
        let overlay = overlay(1, 100, false).unwrap();
        let all = [named(1), keyed(1)].map(|host| overlay.claim(&host, false));
        assert_eq!(all, [0, 0].map(Claimed::State));
        assert_eq!(overlay.host(0), Some(OverlayHost::All));
        assert!(self::overlay(0, 100, false).is_none());
        assert!(self::overlay(2, 100, false).is_none());
        assert!(self::overlay(MAX_STATES + 1, 100, true).is_none());
    }
}
