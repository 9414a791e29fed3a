//! Access control: hosts with keys in the store, and hosts that are paired by the code on the
//! screen.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use console::{AccessRequest, Answer, Pairing};
use export::{Access, Export, Host, PairingRequest, Peer, Policy};
use linux::tree::Tree;
use nvme::nqn;
use pair::{Codes, Disk, Invite, ServerStatus};
use protocol::endpoint::{Endpoint, NetAddr};

use crate::status::shown_address;
use failure::Failure;
use keys::key::Key;
use keys::store::{NotAdded, PairedHost, Store, Watch};

/// Poll interval for changes of the system clock, which affect expiry.
const CLOCK_CHECK: Duration = Duration::from_secs(60);

/// Poll interval of a store that cannot be watched: revoked access must end within a second.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Most pairing requests that wait for the user.
const MAX_WAITING: usize = 64;

/// A client that knew the code and waits for the user's answer.
#[derive(Debug)]
pub struct PendingPairing {
    /// The client.
    pub peer: Peer,
    /// Its request.
    pub request: Arc<PairingRequest>,
}

/// The access policy and the pairing requests.
#[derive(Debug, Default)]
pub struct AccessControl {
    store: Option<Store>,
    watch: Option<Watch>,
    policy: Policy,
    /// When to read the store again, whether or not it changes.
    due: Option<Instant>,
    complaints: Vec<String>,
    /// State of the pairing server, if pairing is enabled.
    view: Option<ServerStatus>,
    waiting: VecDeque<PendingPairing>,
    /// The request that the screen asks about. An answer applies to it, even if another one is
    /// first in the queue by then.
    prompted: Option<Arc<PairingRequest>>,
}

impl AccessControl {
    /// Without a store: only listeners that require no key can be used.
    pub fn none() -> Self {
        Self::default()
    }

    /// Opens the store in folder `asked`, or the default one. With `boot`, includes hosts from
    /// system credentials and firmware.
    ///
    /// # Errors
    /// Fails if the folder does not exist and cannot be made.
    pub fn open(asked: Option<&Path>, boot: Option<&Tree>) -> Result<Self, Failure> {
        let store = Store::open(&Store::locate(asked)?)?;
        let store = match boot {
            Some(tree) => store.with_boot_credentials(tree),
            None => store,
        };
        let watch = store.watch().ok();
        Ok(Self { store: Some(store), watch, ..Self::default() })
    }

    /// Like [`Self::open`], but does not create a store if there is none.
    ///
    /// # Errors
    /// Fails if other users can write to it.
    pub fn open_existing(asked: Option<&Path>) -> Result<Self, Failure> {
        match Store::locate(asked) {
            Ok(place) if place.is_dir() => Self::open(Some(&place), None),
            Ok(_) | Err(_) => Ok(Self::none()),
        }
    }

    /// Returns whether paired hosts can be stored.
    pub fn can_pair(&self) -> bool {
        self.store.is_some()
    }

    /// Readable when the store has changed.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.watch.as_ref().map(AsFd::as_fd)
    }

    /// When to call [`Self::has_changed`] even without a notification.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Returns whether the store must be read again.
    pub fn has_changed(&mut self, now: Instant) -> bool {
        let changed = self.watch.as_mut().map(Watch::receive);
        if let Some(Err(_)) = changed {
            self.watch = None;
        }
        !matches!(changed, None | Some(Ok(false))) || self.due.is_some_and(|due| due <= now)
    }

    /// Reads the store. Returns the policy if it changed, and those warnings that were not returned
    /// before.
    pub fn read(&mut self, now: Instant) -> (Option<Policy>, Vec<String>) {
        let Some(store) = &self.store else { return (None, Vec::new()) };
        let time = SystemTime::now();
        let (policy, next, complaints) = keys::policy::read(store, time);
        let until = next.map(|next| next.duration_since(time).unwrap_or_default());
        // Setting the clock moves all expiry times, so it is checked at least this often.
        let longest = if self.watch.is_none() { POLL_INTERVAL } else { CLOCK_CHECK };
        let wait = until.or_else(|| self.watch.is_none().then_some(longest));
        let wait = wait.map(|wait| wait.min(longest));
        self.due = wait.map(|wait| now + wait.max(Duration::from_millis(10)));
        let new = complaints.iter().filter(|known| !self.complaints.contains(known)).cloned();
        let new = new.collect();
        self.complaints = complaints;
        let changed = policy != self.policy;
        self.policy = policy;
        (changed.then(|| self.policy.clone()), new)
    }

    /// The current access policy.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Stores the pairing state. Returns whether the code changed.
    pub fn set_view(&mut self, view: ServerStatus) -> bool {
        let code = |view: &ServerStatus| view.codes.as_ref().map(|shown| shown.digits.clone());
        let changed = self.view.as_ref().map(code) != Some(code(&view));
        self.waiting.retain(|pending| view.waiting.contains(&pending.request.number));
        self.view = Some(view);
        changed
    }

    /// Returns whether pairing is locked after too many failed attempts.
    pub fn is_stopped(&self) -> bool {
        self.view.as_ref().is_some_and(|view| view.locked)
    }

    /// The current code, as digits and as a link for a QR code.
    pub fn code(&self, endpoints: &[Endpoint]) -> Option<(String, String)> {
        let shown = self.view.as_ref()?.codes.as_ref()?;
        Some((shown.digits.text().to_owned(), link(shown, endpoints)))
    }

    /// The pairing state for the screen.
    pub fn pairing(&self, endpoints: &[Endpoint]) -> Option<Pairing> {
        let view = self.view.as_ref()?;
        if view.locked {
            return Some(Pairing::LockedOut);
        }
        let shown = view.codes.as_ref().filter(|_| view.wait_until.is_none_or(is_over));
        Some(match shown {
            None => Pairing::Delayed,
            Some(shown) => Pairing::Code {
                digits: shown.digits.text().to_owned(),
                link: link(shown, endpoints),
            },
        })
    }

    /// Adds a request that waits for the user.
    pub fn enqueue(&mut self, pending: PendingPairing) {
        // The pairing server holds fewer; a compromised worker must not exceed that.
        if self.waiting.len() < MAX_WAITING {
            self.waiting.push_back(pending);
        }
    }

    /// The request that the screen should ask about.
    pub fn prompt(&self) -> Option<AccessRequest> {
        let PendingPairing { peer, request } = self.waiting.front()?;
        Some(AccessRequest { name: request.name.clone(), address: shown_address(peer.transport) })
    }

    /// Records that the screen now asks about the first request.
    pub fn mark_prompted(&mut self) {
        self.prompted = self.waiting.front().map(|pending| pending.request.clone());
    }

    /// Removes and returns the request that the answer is for. Returns `None` if it was cancelled
    /// meanwhile.
    pub fn take_answered(&mut self) -> Option<PendingPairing> {
        let asked = self.prompted.take()?;
        self.waiting.pop_front_if(|pending| Arc::ptr_eq(&pending.request, &asked))
    }

    /// Grants access to a paired host.
    ///
    /// # Errors
    /// Fails if it is known and has expired, or if its key cannot be stored.
    pub fn add_host(&self, request: &PairingRequest, access: Access) -> Result<(), NotAdded> {
        let Some(store) = &self.store else {
            return Err(Failure::new("there is no folder to keep its key in").into());
        };
        let key = Key::from_pairing(&request.secret);
        let host = PairedHost { nqn: &request.host, name: &request.name, tls: key.text(), access };
        store.add_paired_host(&host, SystemTime::now()).map(drop)
    }
}

/// The access that the user's answer grants.
pub fn granted_access(answer: Answer) -> Option<Access> {
    match answer {
        Answer::GrantWrite => Some(Access::Writable),
        Answer::GrantRead => Some(Access::ReadOnly),
        Answer::Deny => None,
    }
}

/// The disks that the rules of `host` allow it, for the reply to it.
pub fn disk_list<'a>(exports: impl Iterator<Item = &'a Arc<Export>>, host: &Host) -> Vec<Disk> {
    let disk = |export: &Arc<Export>| {
        let access = host.access(export)?;
        Some(Disk {
            nqn: nqn::of(&export.id),
            name: export.name.clone(),
            model: export.identity.model.clone(),
            bytes: export.bytes(),
            access: if access == Access::Writable { export.access } else { Access::ReadOnly },
        })
    };
    exports.filter_map(disk).collect()
}

fn is_over(until: Instant) -> bool {
    until <= Instant::now()
}

/// The link for a QR code. It contains only one address: with more the code would not fit small
/// screens.
fn link(shown: &Codes, endpoints: &[Endpoint]) -> String {
    let pairing = endpoints.iter().filter(|at| at.keyed && at.protocol.row().pairing);
    let addresses: Vec<&NetAddr> = pairing.filter_map(Endpoint::net).collect();
    let best = addresses.iter().find(|at| at.ip.is_ipv4()).or_else(|| addresses.first());
    let at = best.map(ToString::to_string).into_iter().collect();
    Invite { at, code: shown.long.clone() }.to_string()
}

#[cfg(test)]
mod test {
    use super::*;
    use export::{Auth, Secret};

    fn pending(number: u64) -> PendingPairing {
        let address = "10.0.0.2:1".parse().unwrap();
        let peer = Peer::ip(address, address, Auth::Required);
        let (host, name, secret) = (String::new(), String::new(), Secret::new(vec![1; 32]));
        let request = Arc::new(PairingRequest { number, host, name, writable: true, secret });
        PendingPairing { peer, request }
    }

    fn view(waiting: &[u64]) -> ServerStatus {
        let waiting = waiting.to_vec();
        ServerStatus {
            codes: None,
            wait_until: None,
            locked: false,
            failures: 0,
            lockouts: 0,
            waiting,
        }
    }

    #[test]
    fn answer_applies_to_the_prompted_request() {
        let mut access_control = AccessControl::none();
        access_control.enqueue(pending(1));
        assert!(access_control.take_answered().is_none(), "nobody was asked about yet");
        access_control.mark_prompted();
        access_control.enqueue(pending(2));
        // The first client disconnects, and the screen is not updated yet.
        let _ = access_control.set_view(view(&[2]));
        assert!(access_control.take_answered().is_none());
        access_control.mark_prompted();
        assert_eq!(access_control.take_answered().unwrap().request.number, 2);
        assert!(access_control.take_answered().is_none());
    }

    /// Returns an export that can be written, of that name.
    fn export(name: &str) -> Arc<Export> {
        let disk = std::fs::File::open("/dev/null").unwrap().into();
        let geometry = export::Geometry::new(512, 512).unwrap();
        let identity = export::Identity::default();
        let mut export = Export::new(name, name, identity, geometry, 512, disk);
        export.access = Access::Writable;
        Arc::new(export)
    }

    #[test]
    fn paired_host_is_told_the_disks_of_its_rules() {
        let exports = ["sda", "sdb", "sdc"].map(export);
        let told = |rules: &[(Option<&str>, Access)]| {
            let rule = |(disk, access): &(Option<&str>, Access)| export::Rule {
                disk: disk.map(str::to_owned),
                access: *access,
            };
            let host = Host {
                id: "nqn.2024-01.test:a".to_owned(),
                name: "laptop".to_owned(),
                key: export::KeyId::new(1),
                credentials: Vec::new(),
                rules: rules.iter().map(rule).collect(),
            };
            let disks = disk_list(exports.iter(), &host).into_iter();
            disks.map(|disk| (disk.name, disk.access)).collect::<Vec<_>>()
        };
        let (read, write) = (Access::ReadOnly, Access::Writable);
        assert_eq!(told(&[(Some("sdb"), read)]), [("sdb".to_owned(), read)]);
        let both = [("sda".to_owned(), read), ("sdc".to_owned(), write)];
        assert_eq!(told(&[(Some("sda"), read), (Some("sdc"), write)]), both);
        assert_eq!(told(&[(None, read)]).len(), 3);
        assert_eq!(told(&[]), []);
    }

    #[test]
    fn pairing_requests_are_bounded() {
        let mut access_control = AccessControl::none();
        (0..1000).for_each(|number| access_control.enqueue(pending(number)));
        assert_eq!(access_control.waiting.len(), MAX_WAITING);
    }

    #[test]
    fn unwatched_store_is_polled_each_second() {
        let folder = testkit::Scratch::new();
        let mut access_control = AccessControl::open(Some(&folder.0), None).unwrap();
        let now = Instant::now();
        access_control.read(now);
        assert_eq!(access_control.due(), None);
        access_control.watch = None;
        access_control.read(now);
        assert_eq!(access_control.due(), Some(now + POLL_INTERVAL));
        assert!(
            !access_control.has_changed(now) && access_control.has_changed(now + POLL_INTERVAL)
        );
    }
}
