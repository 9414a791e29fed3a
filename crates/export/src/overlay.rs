//! Overlays: what hosts write to a disk is stored beside it, and the disk itself is never written.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};

use crate::{Backing, BlockMap, Caller, Export, Fault, Host, Transport};

/// Most hosts that have a state of their own in one overlay.
pub const MAX_STATES: usize = 16;

/// Most of them that have no key: names that a peer invents must not take all states.
const MAX_WITHOUT_KEY: usize = MAX_STATES / 2;

/// Bytes of the file of a [`BlockMap`] before the map: the head, with the host.
pub(crate) const HEAD_BYTES: u64 = 4096;

/// The first bytes of the head.
const MAGIC: &[u8; 8] = b"STMOVER1";

/// Longest text of a host in bytes. Host names of all protocols are shorter.
const MAX_TEXT: usize = 512;

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

/// The files of a disk with an overlay, and what was written: one state for all hosts, or one for
/// each.
#[derive(Debug)]
pub struct Overlay {
    /// The disk, then for each state the file with the data that was written, at the offset that it
    /// has on the disk, the file with the head and the [`BlockMap`], and perhaps its durable copy.
    files: Vec<OwnedFd>,
    layout: OverlayLayout,
    states: Box<[OverlayState]>,
    owners: Mutex<Vec<Owner>>,
}

/// What one host has written, or all hosts together.
#[derive(Debug, Default)]
pub struct OverlayState {
    has_key: AtomicBool,
    is_changed: AtomicBool,
    used: AtomicU64,
    map: OnceLock<Result<BlockMap, Fault>>,
    /// Held while the map is stored in the durable one: whether that has its head.
    persisting: Mutex<bool>,
}

/// The use of a state by a connection.
#[derive(Debug)]
pub(crate) struct Claim {
    export: Arc<Export>,
    state: usize,
}

impl Claim {
    /// Returns the use of the state of a host, as [`Overlay::claim`].
    pub(crate) fn new(
        export: &Arc<Export>,
        host: Option<&OverlayHost>,
        may_write: bool,
    ) -> Option<Self> {
        let Backing::Overlay(overlay) = export.backing() else { return None };
        let state = overlay.claim(host, may_write)?;
        Some(Self { export: export.clone(), state })
    }

    /// Returns the index of the state.
    pub(crate) fn state(&self) -> usize {
        self.state
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Backing::Overlay(overlay) = self.export.backing() {
            overlay.release(self.state);
        }
    }
}

/// The host that a state belongs to.
#[derive(Debug, Default)]
struct Owner {
    host: Option<OverlayHost>,
    connections: usize,
}

/// The host that a state of an overlay belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OverlayHost {
    /// All hosts.
    All,
    /// The host of the policy with this [`Host::id`], whose keys were proven.
    Keyed(String),
    /// A host without a key that identifies itself by this name.
    Named(String),
    /// A host without a key, in a protocol without names: its address, `unix` or `usb`.
    At(String),
}

impl Overlay {
    /// Index of the disk in [`Backing::descriptors`](crate::Backing::descriptors).
    pub const BASE: usize = 0;

    /// Returns an overlay over the first of `files`. The others are for each state a file with data, one
    /// with the map, and the durable map if the layout has one. They are empty or were used with this
    /// disk before. Returns `None` if the number of files is wrong.
    pub fn new(files: Vec<OwnedFd>, layout: OverlayLayout) -> Option<Self> {
        let is_private = layout.is_private;
        let states = files.len().checked_sub(1)? / layout.files();
        let max = if is_private { MAX_STATES } else { 1 };
        if states == 0 || states > max || files.len() != 1 + layout.files() * states {
            return None;
        }
        let owner = || Owner { host: (!is_private).then_some(OverlayHost::All), connections: 0 };
        let owners = Mutex::new((0..states).map(|_| owner()).collect());
        let states = (0..states).map(|_| OverlayState::default()).collect();
        Some(Self { files, layout, states, owners })
    }

    /// Returns all files.
    pub(crate) fn files(&self) -> &[OwnedFd] {
        &self.files
    }

    /// Returns the disk, which is only read.
    pub fn base(&self) -> &OwnedFd {
        &self.files[Self::BASE]
    }

    pub(crate) fn first_data(&self) -> &OwnedFd {
        &self.files[1]
    }

    /// Returns the index of the file with the data of a state in
    /// [`Backing::descriptors`](crate::Backing::descriptors).
    pub fn data_index(&self, state: usize) -> usize {
        1 + self.layout.files() * state
    }

    /// Returns the state with this index, and its files with the data and with the map.
    pub fn state(&self, index: usize) -> Option<(&OverlayState, &OwnedFd, &OwnedFd)> {
        let data = self.data_index(index);
        Some((self.states.get(index)?, self.files.get(data)?, self.files.get(data + 1)?))
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

    fn owners(&self) -> MutexGuard<'_, Vec<Owner>> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the host that a state belongs to.
    pub fn host(&self, state: usize) -> Option<OverlayHost> {
        self.owners().get(state)?.host.clone()
    }

    /// Sets what was read from the files of a state: the host that the head names, and the bytes that
    /// it stores.
    pub fn restore(&self, state: usize, host: OverlayHost, used: u64) {
        let mut owners = self.owners();
        if let (Some(owner), Some(state)) = (owners.get_mut(state), self.states.get(state)) {
            state.has_key.store(host.has_key(), Ordering::Release);
            state.is_changed.store(true, Ordering::Release);
            state.used.store(used, Ordering::Release);
            owner.host = Some(host);
        }
    }

    /// Returns the index of the state of a host for a new connection, until [`Self::release`].
    /// Without one it gets a free state if it `may_write`; `None` if it has none and gets none.
    fn claim(&self, host: Option<&OverlayHost>, may_write: bool) -> Option<usize> {
        let mut owners = self.owners();
        let index = if self.layout.is_private {
            let host = host.filter(|host| host.text().len() <= MAX_TEXT)?;
            let known = owners.iter().position(|owner| owner.host.as_ref() == Some(host));
            match known {
                Some(known) => known,
                None if may_write => self.take(&mut owners, host)?,
                None => return None,
            }
        } else {
            0
        };
        owners.get_mut(index)?.connections += 1;
        Some(index)
    }

    /// Gives a state to a host. States of hosts that are not connected and have written nothing are
    /// free.
    fn take(&self, owners: &mut [Owner], host: &OverlayHost) -> Option<usize> {
        let is_free =
            |(state, owner): (&OverlayState, &Owner)| owner.connections == 0 && !state.is_changed();
        let with_key = |owner: &Owner| owner.host.as_ref().is_some_and(OverlayHost::has_key);
        let all = || self.states.iter().zip(owners.iter());
        let without_key = all().filter(|both| !is_free(*both) && !with_key(both.1)).count();
        if !host.has_key() && without_key >= MAX_WITHOUT_KEY {
            return None;
        }
        let index = all().position(is_free)?;
        self.states.get(index)?.has_key.store(host.has_key(), Ordering::Release);
        owners.get_mut(index)?.host = Some(host.clone());
        Some(index)
    }

    /// Ends the use of a state by a connection.
    fn release(&self, state: usize) {
        if let Some(owner) = self.owners().get_mut(state) {
            owner.connections = owner.connections.saturating_sub(1);
        }
    }

    /// Returns whether a state that stores `used` bytes may store `growth` bytes more, and then counts
    /// them. All states together store at most the limit. If each host has its own, one may have half
    /// of what the others leave, so that something is left for the next; three quarters are divided
    /// between hosts without a key.
    pub fn reserve(&self, state: usize, used: u64, growth: u64) -> bool {
        let after = used.saturating_add(growth);
        let Some(own) = self.states.get(state) else { return false };
        let others = self.states.iter().enumerate().filter(|(index, _)| *index != state);
        let (mut all, mut without_key) = (0u64, 0u64);
        for (_, other) in others {
            let used = other.used.load(Ordering::Acquire);
            all = all.saturating_add(used);
            without_key = without_key.saturating_add(if other.has_key() { 0 } else { used });
        }
        let limit = self.layout.limit;
        let room = limit.saturating_sub(all);
        let open = (limit - limit / 4).saturating_sub(without_key);
        let fits = match (self.layout.is_private, own.has_key()) {
            (false, _) => after <= room,
            (true, true) => after <= room / 2,
            (true, false) => after <= room.min(open) / 2,
        };
        if fits {
            own.set_used(after);
        }
        fits
    }
}

impl OverlayState {
    fn has_key(&self) -> bool {
        self.has_key.load(Ordering::Acquire)
    }

    /// Returns whether anything was written, so that the head is stored and there is a map.
    pub fn is_changed(&self) -> bool {
        self.is_changed.load(Ordering::Acquire)
    }

    /// Records that the head is stored.
    pub fn set_changed(&self) {
        self.is_changed.store(true, Ordering::Release);
    }

    /// Sets how many bytes it stores.
    pub fn set_used(&self, bytes: u64) {
        self.used.store(bytes, Ordering::Release);
    }

    /// Returns whether the durable map has its head, which the caller sets. No other thread stores the
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

impl OverlayHost {
    /// Returns the host of a caller, which has proven that it is `host`.
    pub(crate) fn of(caller: &Caller<'_>, host: Option<&Host>) -> Self {
        match (host, caller.host, caller.peer.transport) {
            (Some(host), ..) => Self::Keyed(host.id.clone()),
            (None, "", Transport::Ip { remote, .. }) => {
                // A link-local address is valid on its interface only.
                let (ip, scope) = match remote {
                    std::net::SocketAddr::V6(at) => (remote.ip().to_canonical(), at.scope_id()),
                    std::net::SocketAddr::V4(_) => (remote.ip(), 0),
                };
                Self::At(if scope == 0 { ip.to_string() } else { format!("{ip}%{scope}") })
            }
            (None, "", transport) => Self::At(transport.to_string()),
            (None, name, _) => Self::Named(name.to_owned()),
        }
    }

    fn has_key(&self) -> bool {
        matches!(self, Self::Keyed(_))
    }

    fn text(&self) -> &str {
        match self {
            Self::All => "",
            Self::Keyed(text) | Self::Named(text) | Self::At(text) => text,
        }
    }

    /// Returns the first bytes of the file with the map, which name the host.
    pub fn head(&self) -> Vec<u8> {
        let kind = match self {
            Self::All => 0,
            Self::Keyed(_) => 1,
            Self::Named(_) => 2,
            Self::At(_) => 3,
        };
        let text = self.text().as_bytes();
        let len = u16::try_from(text.len()).unwrap_or(u16::MAX);
        [&MAGIC[..], &[kind], &len.to_le_bytes(), text].concat()
    }

    /// Returns the host that a head names; `None` if there is no head.
    pub fn parse_head(head: &[u8]) -> Option<Self> {
        let (&[kind, low, high], text) = head.strip_prefix(MAGIC)?.split_first_chunk()?;
        let text = text.get(..u16::from_le_bytes([low, high]).into())?;
        let text = String::from_utf8(text.to_vec()).ok().filter(|text| text.len() <= MAX_TEXT)?;
        match kind {
            0 => Some(Self::All),
            1 => Some(Self::Keyed(text)),
            2 => Some(Self::Named(text)),
            3 => Some(Self::At(text)),
            _ => None,
        }
    }
}

impl fmt::Display for OverlayHost {
    /// Writes the name or the address of the host, or `all hosts`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::All { "all hosts" } else { self.text() })
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn overlay(states: usize, limit: u64, is_private: bool) -> Option<Overlay> {
        let file = |_| std::fs::File::open("/dev/null").unwrap().into();
        let layout = OverlayLayout { limit, map_cost: 1, is_private, is_durable: false };
        Overlay::new((0..1 + 2 * states).map(file).collect(), layout)
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
        let hosts = [named(1), keyed(1), named(2), OverlayHost::At("nqn.1".to_owned())];
        let claim = |host: &OverlayHost| overlay.claim(Some(host), true);
        let states: Vec<_> = hosts.iter().map(|host| claim(host).unwrap()).collect();
        assert_eq!(states, [0, 1, 2, 3]);
        states.iter().for_each(|state| overlay.release(*state));
        overlay.state(1).unwrap().0.set_changed();
        assert_eq!(claim(&keyed(1)), Some(1));
        // The state of a host that has written nothing is given to the next one.
        assert_eq!((claim(&named(9)), overlay.host(0)), (Some(0), Some(named(9))));
        // A host that may only read gets none, but finds what it has written before.
        assert_eq!(overlay.claim(Some(&named(8)), false), None);
        assert_eq!(overlay.claim(Some(&keyed(1)), false), Some(1));
        assert_eq!(overlay.claim(None, true), None);
    }

    #[test]
    fn all_hosts_share_one_state() {
        let overlay = overlay(1, 100, false).unwrap();
        let all = [None, Some(&named(1)), Some(&keyed(1))];
        assert_eq!(all.map(|host| overlay.claim(host, false)), [Some(0); 3]);
        assert_eq!(overlay.host(0), Some(OverlayHost::All));
        assert!(self::overlay(0, 100, false).is_none());
        assert!(self::overlay(2, 100, false).is_none());
        assert!(self::overlay(MAX_STATES + 1, 100, true).is_none());
    }

    #[test]
    fn invented_names_do_not_exclude_hosts_with_a_key() {
        let overlay = overlay(MAX_STATES, 1600, true).unwrap();
        let write = |host: &OverlayHost, bytes| {
            let state = overlay.claim(Some(host), true)?;
            overlay.state(state).unwrap().0.set_changed();
            Some((0..bytes).take_while(|used| overlay.reserve(state, *used, 1)).count())
        };
        let written: Vec<_> = (0..100).filter_map(|number| write(&named(number), 1600)).collect();
        assert_eq!((written.len(), written[0], written[1]), (MAX_WITHOUT_KEY, 600, 300));
        assert!(written.iter().sum::<usize>() < 1200);
        let keyed: Vec<_> = (0..100).filter_map(|number| write(&keyed(number), 1600)).collect();
        assert_eq!((keyed.len(), keyed[0], keyed[1]), (MAX_STATES / 2, 202, 101));
    }

    #[test]
    fn a_host_may_use_half_of_what_the_others_leave() {
        let overlay = overlay(3, 90, true).unwrap();
        let states = [1, 2, 3].map(|number| overlay.claim(Some(&keyed(number)), true).unwrap());
        assert!(overlay.reserve(states[0], 0, 45) && !overlay.reserve(states[0], 45, 1));
        assert!(overlay.reserve(states[1], 0, 22) && !overlay.reserve(states[1], 22, 1));
        // A discard makes room for all.
        overlay.state(states[0]).unwrap().0.set_used(0);
        assert!(overlay.reserve(states[2], 0, 34) && !overlay.reserve(states[2], 34, 1));
        assert!(!overlay.reserve(states[2], u64::MAX, u64::MAX) && !overlay.reserve(9, 0, 0));
    }

    #[test]
    fn head_names_the_host() {
        let long = OverlayHost::Named("x".repeat(MAX_TEXT));
        for host in [OverlayHost::All, named(1), keyed(1), OverlayHost::At("::1".into()), long] {
            let mut head = host.head();
            head.resize(4096, 0);
            assert_eq!(OverlayHost::parse_head(&head), Some(host));
        }
        let head = named(1).head();
        assert_eq!(OverlayHost::parse_head(&head[..head.len() - 1]), None);
        assert_eq!(OverlayHost::parse_head(&[0; 4096]), None);
    }
}
