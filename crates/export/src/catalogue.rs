//! The exports served now, and the access checks for them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock, Weak};

use crate::{Auth, Caller, Export, ExportId, Grant, Host, OverlayHost, Policy, Refusal};

/// The exports served now, and the [`Policy`] that guards them. Shared by all sessions.
#[derive(Debug, Default)]
pub struct Catalogue {
    exports: RwLock<Vec<Arc<Export>>>,
    /// Exports that were replaced or withdrawn and are still referred to.
    retired: Mutex<Vec<Weak<Export>>>,
    policy: RwLock<Arc<Policy>>,
    generation: AtomicU64,
}

impl Catalogue {
    /// Serves `export` from now on. Replaces an export with the same id.
    pub fn publish(&self, export: Arc<Export>) {
        let mut exports = self.exports.write().unwrap_or_else(|poison| poison.into_inner());
        let replaced = exports.iter().position(|other| other.id == export.id);
        replaced.map(|at| exports.remove(at)).iter().for_each(|other| self.retire(other));
        export.set_predecessors(self.predecessors(&export));
        exports.push(export);
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Stops serving the export with this id: its requests fail with [`crate::Fault::Gone`] from
    /// now on. Returns it, or `None` if there is none.
    pub fn withdraw(&self, id: &ExportId) -> Option<Arc<Export>> {
        let mut exports = self.exports.write().unwrap_or_else(|poison| poison.into_inner());
        let export =
            exports.iter().position(|export| export.id == *id).map(|at| exports.remove(at))?;
        export.withdraw();
        self.retire(&export);
        self.generation.fetch_add(1, Ordering::Release);
        Some(export)
    }

    fn retire(&self, export: &Arc<Export>) {
        let mut retired = self.retired.lock().unwrap_or_else(|poison| poison.into_inner());
        retired.retain(|other| other.strong_count() != 0);
        retired.push(Arc::downgrade(export));
    }

    /// Returns the retired exports with the id of `export` that are still in use: their
    /// connections may write until they have seen the change.
    fn predecessors(&self, export: &Export) -> Vec<Weak<Export>> {
        let retired = self.retired.lock().unwrap_or_else(|poison| poison.into_inner());
        let is_predecessor = |other: &&Weak<Export>| {
            let other = other.upgrade().filter(|other| !std::ptr::eq(&**other, export));
            other.is_some_and(|other| other.id == export.id)
        };
        retired.iter().filter(is_predecessor).cloned().collect()
    }

    /// Returns a number that grows with each change of the exports or the policy.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Returns the export with this id, without an access check.
    pub fn find(&self, id: &ExportId) -> Option<Arc<Export>> {
        let exports = self.exports.read().unwrap_or_else(|poison| poison.into_inner());
        exports.iter().find(|export| export.id == *id).cloned()
    }

    /// Replaces the policy.
    pub fn set_policy(&self, policy: Policy) {
        *self.policy.write().unwrap_or_else(|poison| poison.into_inner()) = Arc::new(policy);
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Returns the policy in force.
    pub fn policy(&self) -> Arc<Policy> {
        self.policy.read().unwrap_or_else(|poison| poison.into_inner()).clone()
    }

    /// Returns the exports that `caller` may see, in the order in which they were published.
    pub fn visible(&self, caller: &Caller<'_>) -> Vec<Arc<Export>> {
        let exports = self.exports.read().unwrap_or_else(|poison| poison.into_inner()).clone();
        match self.authenticate(caller) {
            Ok(None) => {
                let proven = self.proven(caller);
                let is_visible = |export: &Arc<Export>| match (&export.home, &proven) {
                    (None, _) => true,
                    (Some(_), None) => false,
                    (Some(_), Some(host)) => host.access(export).is_some(),
                };
                exports.into_iter().filter(is_visible).collect()
            }
            Ok(Some(host)) => {
                exports.into_iter().filter(|export| host.access(export).is_some()).collect()
            }
            Err(_) => Vec::new(),
        }
    }

    /// Authorizes `caller` to use the export with this id.
    ///
    /// # Errors
    /// Why access is refused. Authentication is checked before the export is looked up, so that an
    /// unauthenticated peer cannot learn which exports exist.
    pub fn grant(&self, caller: &Caller<'_>, id: &ExportId) -> Result<Grant, Refusal> {
        let host = self.authenticate(caller)?;
        let export = self.find(id).ok_or(Refusal::Unknown)?;
        // A host may prove its name where it need not.
        let proven = host.clone().or_else(|| self.proven(caller));
        // A home directory needs a key everywhere.
        let host = match export.home {
            Some(_) => Some(proven.clone().ok_or(Refusal::NotAllowed)?),
            None => host,
        };
        let access = match &host {
            Some(host) => host.access(&export).ok_or(Refusal::NotAllowed)?,
            None => export.access,
        };
        let owner = OverlayHost::of(caller, proven.as_deref());
        let grant = Grant::for_host(export, access, &owner).ok_or(Refusal::OtherHost)?;
        Ok(if proven.is_some() { grant.proven() } else { grant })
    }

    /// Returns the host of the policy whose keys `caller` has proven.
    fn proven(&self, caller: &Caller<'_>) -> Option<Arc<Host>> {
        let policy = self.policy();
        policy.host(caller.host).filter(|host| host.authenticate(caller).is_ok()).cloned()
    }

    /// Authorizes `caller` to use the export with this short name. An empty name stands for the
    /// only export that the caller may see.
    ///
    /// # Errors
    /// As [`Catalogue::grant`].
    pub fn grant_short(&self, caller: &Caller<'_>, short: &str) -> Result<Grant, Refusal> {
        self.authenticate(caller)?;
        let visible = self.visible(caller);
        let export = match (short, visible.as_slice()) {
            ("", [only]) => Some(only),
            ("", _) => None,
            (short, all) => all.iter().find(|export| export.short == short),
        };
        // An export that the caller may not see is reported as unknown: short names are easy to
        // guess.
        let export = export.ok_or(Refusal::Unknown)?;
        self.grant(caller, &export.id)
    }

    /// Authorizes `caller` to read the export with this short name. Where each host has its own state
    /// of an overlay, that is the disk under it: a reader takes none of the states.
    ///
    /// # Errors
    /// As [`Catalogue::grant_short`].
    pub fn grant_reader(&self, caller: &Caller<'_>, short: &str) -> Result<Grant, Refusal> {
        self.authenticate(caller)?;
        let mut visible = self.visible(caller).into_iter();
        let export = visible.find(|export| export.short == short).ok_or(Refusal::Unknown)?;
        Ok(Grant::new(export).read_only())
    }

    /// Returns the host that `caller` has authenticated as, or `None` where no authentication is
    /// required.
    ///
    /// # Errors
    /// The policy does not contain the host, or the caller has not proven the host's keys.
    pub fn authenticate(&self, caller: &Caller<'_>) -> Result<Option<Arc<Host>>, Refusal> {
        if caller.peer.auth == Auth::None {
            return Ok(None);
        }
        let policy = self.policy();
        let host = policy.host(caller.host).ok_or(Refusal::NotAllowed)?;
        host.authenticate(caller)?;
        Ok(Some(host.clone()))
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::{
        Access, Backing, Channel, Credential, Geometry, Identity, KeyId, OverlayLayout, Peer,
        Proof, Rule, Secret,
    };

    fn export(name: &str) -> Arc<Export> {
        let disk = std::fs::File::open("/dev/null").unwrap().into();
        let geometry = Geometry::new(512, 512).unwrap();
        let mut export = Export::new(name, name, Identity::default(), geometry, 512, disk);
        export.access = Access::Writable;
        Arc::new(export)
    }

    fn host(tls: bool, chap: bool, rules: &[(Option<&str>, Access)]) -> Host {
        let credential = |proof: Proof| Credential {
            scheme: format!("{proof:?}"),
            proof,
            parameter: String::new(),
            secret: Secret::new(vec![1]),
        };
        // This machine's own credential requires nothing of the host.
        let there = [(tls, Proof::Tls), (chap, Proof::InBand), (true, Proof::Target)];
        let rule = |(disk, access): &(Option<&str>, Access)| Rule {
            disk: disk.map(str::to_owned),
            access: *access,
        };
        Host {
            id: "host".to_owned(),
            name: "laptop".to_owned(),
            key: KeyId::new(7),
            credentials: there.iter().filter(|it| it.0).map(|it| credential(it.1)).collect(),
            rules: rules.iter().map(rule).collect(),
        }
    }

    fn catalogue(host: Host) -> Catalogue {
        let catalogue = Catalogue::default();
        catalogue.publish(export("a"));
        catalogue.publish(export("b"));
        catalogue.set_policy(Policy { hosts: vec![Arc::new(host)] });
        catalogue
    }

    #[test]
    fn proven_host_does_not_share_changes_with_a_claimed_name() {
        let catalogue = catalogue(host(true, false, &[(None, Access::Writable)]));
        let files = [(); 5].map(|()| std::fs::File::open("/dev/null").unwrap().into());
        let layout =
            OverlayLayout { limit: 1 << 30, map_cost: 1, is_private: true, is_durable: false };
        let overlay = Backing::new(layout.into(), files.into()).unwrap();
        let (identity, geometry) = (Identity::default(), Geometry::new(512, 512).unwrap());
        let mut export = Export::new("c", "c", identity, geometry, 512, overlay);
        export.access = Access::Writable;
        catalogue.publish(Arc::new(export));
        // No key is required here, and one of the two has proven its key all the same.
        let grant = |key: Option<u64>| {
            let peer = peer(Auth::None, key);
            let caller = Caller { peer: &peer, host: "host", proven: None };
            catalogue.grant(&caller, &"c".into()).unwrap()
        };
        let (proven, claimed) = (grant(Some(7)), grant(None));
        assert!(proven.is_proven() && !claimed.is_proven());
        assert!(proven.state().is_some() && claimed.state().is_some());
        assert_ne!(proven.state(), claimed.state());
    }

    #[test]
    fn reader_takes_no_state_of_an_overlay() {
        let catalogue = catalogue(host(true, false, &[(Some("a"), Access::Writable)]));
        let files = [(); 5].map(|()| std::fs::File::open("/dev/null").unwrap().into());
        let layout =
            OverlayLayout { limit: 1 << 30, map_cost: 1, is_private: true, is_durable: false };
        let overlay = Backing::new(layout.into(), files.into()).unwrap();
        let (identity, geometry) = (Identity::default(), Geometry::new(512, 512).unwrap());
        let mut export = Export::new("c", "c", identity, geometry, 512, overlay);
        export.access = Access::Writable;
        catalogue.publish(Arc::new(export));
        let read = |auth: Auth, short: &str| {
            let peer = peer(auth, Some(7));
            let caller = Caller { peer: &peer, host: "host", proven: None };
            catalogue.grant_reader(&caller, short)
        };
        let grant = read(Auth::None, "c").unwrap();
        assert_eq!((grant.state(), grant.access()), (None, Access::ReadOnly));
        assert_eq!(read(Auth::None, "b").unwrap().access(), Access::ReadOnly);
        assert_eq!(write(&read(Auth::None, "b").unwrap()).err(), Some(crate::Fault::ReadOnly));
        assert!(read(Auth::Required, "a").is_ok());
        assert_eq!(read(Auth::Required, "b").err(), Some(Refusal::Unknown));
        assert_eq!(read(Auth::None, "none").err(), Some(Refusal::Unknown));
    }

    #[test]
    fn reader_without_a_key_gets_no_home() {
        let catalogue = Catalogue::default();
        let disk = std::fs::File::open("/dev/null").unwrap().into();
        let (identity, geometry) = (Identity::default(), Geometry::new(512, 512).unwrap());
        let mut export = Export::new("h", "h", identity, geometry, 512, disk);
        export.home = Some(crate::Home { user: "ann".to_owned(), signing_key: None });
        catalogue.publish(Arc::new(export));
        let peer = peer(Auth::None, None);
        let caller = Caller { peer: &peer, host: "", proven: None };
        assert!(catalogue.visible(&caller).is_empty());
        assert_eq!(catalogue.grant_reader(&caller, "h").err(), Some(Refusal::Unknown));
    }

    fn peer(auth: Auth, key: Option<u64>) -> Peer {
        let address = "10.0.0.1:1".parse().unwrap();
        let channel = key.map(|key| {
            Arc::new(Channel {
                key: Some(KeyId::new(key)),
                certified: false,
                identity: String::new(),
                cipher: String::new(),
                binding: [0; 32],
            })
        });
        Peer { channel, ..Peer::ip(address, address, auth) }
    }

    fn ask(catalogue: &Catalogue, peer: &Peer, proven: Option<u64>) -> Result<Access, Refusal> {
        let caller = Caller { peer, host: "host", proven: proven.map(KeyId::new) };
        catalogue.grant(&caller, &"a".into()).map(|grant| grant.access())
    }

    const ALL: &[(Option<&str>, Access)] = &[(None, Access::Writable)];

    fn write(grant: &Grant) -> Result<crate::Admitted, crate::Fault> {
        let buffer = crate::Pool::new(1 << 20).open().take(512);
        let (op, ticket) = (crate::Op::Write { durable: false }, crate::Ticket::new(1));
        let request = crate::Request { op, lba: 0, blocks: 1, buffer, ticket };
        grant.admit(request).map_err(|denied| denied.fault)
    }

    fn home(name: &str, access: Access) -> Arc<Export> {
        let mut home = Arc::into_inner(export(name)).unwrap();
        home.access = access;
        home.home = Some(crate::Home { user: name.to_owned(), signing_key: None });
        Arc::new(home)
    }

    #[test]
    fn home_is_used_by_one_host_at_a_time() {
        let catalogue = Catalogue::default();
        catalogue.publish(home("a", Access::Writable));
        catalogue.publish(home("b", Access::ReadOnly));
        let hosts = ["laptop", "desk"]
            .map(|id| Arc::new(Host { id: id.to_owned(), ..host(true, false, ALL) }));
        catalogue.set_policy(Policy { hosts: hosts.into() });
        let peer = peer(Auth::Required, Some(7));
        let grant = |host: &str, id: &str| {
            let caller = Caller { peer: &peer, host, proven: None };
            catalogue.grant(&caller, &id.into())
        };
        let first = grant("laptop", "a").unwrap();
        let second = grant("laptop", "a").unwrap();
        assert_eq!(grant("desk", "a").unwrap_err(), Refusal::OtherHost);
        drop(first);
        let in_flight = write(&second).unwrap();
        drop(second);
        assert_eq!(grant("desk", "a").unwrap_err(), Refusal::OtherHost, "a write is in flight");
        drop(in_flight);
        grant("laptop", "a").unwrap().leave();
        let _desk = grant("desk", "a").unwrap();
        assert_eq!(grant("laptop", "a").unwrap_err(), Refusal::OtherHost);
        let _readers = [grant("laptop", "b").unwrap(), grant("desk", "b").unwrap()];
    }

    #[test]
    fn home_is_kept_for_a_host_that_was_lost() {
        let catalogue = Catalogue::default();
        catalogue.publish(home("a", Access::Writable));
        let hosts = ["laptop", "desk"]
            .map(|id| Arc::new(Host { id: id.to_owned(), ..host(true, false, ALL) }));
        catalogue.set_policy(Policy { hosts: hosts.into() });
        let peer = peer(Auth::Required, Some(7));
        let grant = |host: &str| {
            let caller = Caller { peer: &peer, host, proven: None };
            catalogue.grant(&caller, &"a".into())
        };
        let queues = || {
            let controller = crate::Association::default();
            [(); 2].map(|()| grant("laptop").unwrap().with_association(&controller))
        };
        let [admin, io] = queues();
        let _ = write(&io).unwrap().finish(Ok(()));
        drop((io, admin));
        assert_eq!(grant("desk").unwrap_err(), Refusal::OtherHost);
        // It comes back, detaches, and its other connection ends later. A check of its access changes nothing.
        let [admin, io] = queues();
        let _ = write(&io).unwrap().finish(Ok(()));
        admin.leave();
        drop(grant("laptop").unwrap());
        drop(admin);
        assert_eq!(grant("desk").unwrap_err(), Refusal::OtherHost);
        drop(io);
        drop(grant("desk").unwrap());
        // A host that has only read has nothing that could be out of date.
        drop(grant("laptop").unwrap());
    }

    #[test]
    fn home_needs_a_key_where_other_disks_need_none() {
        let catalogue = catalogue(host(true, false, ALL));
        catalogue.publish(home("home-alice", Access::Writable));
        for (key, expected) in [(None, Err(Refusal::NotAllowed)), (Some(7), Ok(()))] {
            let peer = peer(Auth::None, key);
            let caller = Caller { peer: &peer, host: "host", proven: None };
            let found = catalogue.grant(&caller, &"home-alice".into()).map(drop);
            assert_eq!(found, expected);
            let seen = catalogue.visible(&caller);
            assert_eq!(seen.iter().any(|export| export.home.is_some()), expected.is_ok());
            assert!(catalogue.grant(&caller, &"a".into()).is_ok());
        }
    }

    #[test]
    fn replacement_waits_for_writes_in_flight() {
        let catalogue = Catalogue::default();
        let old = export("a");
        catalogue.publish(old.clone());
        let before = Grant::new(old.clone());
        let in_flight = write(&before).unwrap();
        // Publishing the same export again replaces none.
        catalogue.publish(old.clone());
        assert!(!old.has_orphans());
        let new = export("a");
        catalogue.publish(new.clone());
        let grant = Grant::new(new.clone());
        assert_eq!(write(&grant).err(), Some(crate::Fault::Busy));
        assert!(new.has_orphans() && !old.is_contended());
        assert!(in_flight.finish(Ok(())).contended.is_some());
        assert!(!new.has_orphans() && write(&grant).is_ok());
    }

    #[test]
    fn replacement_waits_for_later_writes_to_the_replaced_export() {
        let catalogue = Catalogue::default();
        let (old, new) = (export("a"), export("a"));
        catalogue.publish(old.clone());
        let before = Grant::new(old.clone());
        catalogue.publish(new.clone());
        let in_flight = write(&before).unwrap();
        let grant = Grant::new(new.clone());
        assert_eq!(write(&grant).err(), Some(crate::Fault::Busy));
        assert!(in_flight.finish(Ok(())).contended.is_some() && write(&grant).is_ok());
    }

    #[test]
    fn exclusive_right_waits_for_writes_to_the_replaced_export() {
        let catalogue = Catalogue::default();
        let (old, new) = (export("a"), export("a"));
        catalogue.publish(old.clone());
        let in_flight = write(&Grant::new(old.clone())).unwrap();
        catalogue.publish(new.clone());
        let right = crate::Exclusive::claim(&new).unwrap();
        assert!(!right.is_drained());
        assert!(in_flight.finish(Ok(())).contended.is_some() && right.is_drained());
    }

    #[test]
    fn only_auth_required_refuses_an_unknown_host() {
        let catalogue = catalogue(host(true, false, ALL));
        assert_eq!(ask(&catalogue, &peer(Auth::None, None), None), Ok(Access::Writable));
        let keyed = peer(Auth::Required, Some(7));
        let unknown = Caller { peer: &keyed, host: "other", proven: Some(KeyId::new(7)) };
        assert_eq!(catalogue.grant(&unknown, &"a".into()).unwrap_err(), Refusal::NotAllowed);
        assert!(catalogue.visible(&unknown).is_empty());
        // An unknown host cannot learn whether an export exists.
        assert_eq!(catalogue.grant(&unknown, &"c".into()).unwrap_err(), Refusal::NotAllowed);
    }

    #[test]
    fn host_must_prove_every_key_that_it_has() {
        for (tls, chap, channel, proven, expected) in [
            (true, false, None, None, Err(Refusal::TlsRequired)),
            (true, false, Some(8), None, Err(Refusal::TlsRequired)),
            (true, false, Some(7), None, Ok(Access::Writable)),
            (true, true, Some(7), None, Err(Refusal::InBandRequired)),
            (true, true, None, Some(7), Err(Refusal::TlsRequired)),
            (true, true, Some(7), Some(7), Ok(Access::Writable)),
            (false, true, None, None, Err(Refusal::InBandRequired)),
            (false, true, None, Some(8), Err(Refusal::InBandRequired)),
            (false, true, None, Some(7), Ok(Access::Writable)),
            // The channel's PSK was derived from the in-band exchange.
            (false, true, Some(7), None, Ok(Access::Writable)),
            (false, false, None, None, Err(Refusal::NotAllowed)),
        ] {
            let catalogue = catalogue(host(tls, chap, ALL));
            let found = ask(&catalogue, &peer(Auth::Required, channel), proven);
            assert_eq!(found, expected, "{tls} {chap} {channel:?} {proven:?}");
        }
    }

    #[test]
    fn plaintext_needs_an_in_band_scheme_of_the_protocol() {
        let schemes = ["Tls", "InBand", "Target"];
        for (tls, chap, schemes, expected) in [
            (false, true, &schemes[..], true),
            (false, true, &schemes[..1], false),
            (true, true, &schemes[..], false),
            (true, false, &schemes[..], false),
            (false, false, &schemes[..], false),
        ] {
            let found = host(tls, chap, ALL).authenticates_in_plaintext(schemes);
            assert_eq!(found, expected, "{tls} {chap} {schemes:?}");
        }
    }

    #[test]
    fn certificate_authenticates_only_the_host_that_it_names() {
        let shows = |host: Host, certified, name: &str| {
            let catalogue = catalogue(host);
            let channel = Channel {
                key: None,
                certified,
                identity: name.to_owned(),
                cipher: String::new(),
                binding: [0; 32],
            };
            let peer =
                Peer { channel: Some(Arc::new(channel.clone())), ..peer(Auth::Required, None) };
            let known = catalogue.policy().host_of(&channel).map(|host| host.id.clone());
            let found = ask(&catalogue, &peer, None);
            // The certificate may carry the host's NQN or its display name.
            assert_eq!(known.is_none(), !certified || !["host", "laptop"].contains(&name));
            found
        };
        let read = &[(None, Access::ReadOnly)];
        assert_eq!(shows(host(true, false, read), true, "laptop"), Ok(Access::ReadOnly));
        assert_eq!(shows(host(true, false, read), true, "host"), Ok(Access::ReadOnly));
        for (host, certified, name, refusal) in [
            (host(true, false, ALL), true, "tower", Refusal::TlsRequired),
            (host(true, false, ALL), true, "", Refusal::TlsRequired),
            (host(true, false, ALL), false, "laptop", Refusal::TlsRequired),
            // A certificate does not replace in-band authentication.
            (host(true, true, ALL), true, "laptop", Refusal::InBandRequired),
            (host(false, true, ALL), true, "laptop", Refusal::InBandRequired),
        ] {
            assert_eq!(shows(host, certified, name), Err(refusal), "{name}");
        }
    }

    #[test]
    fn host_gets_the_most_that_any_rule_allows() {
        let rules = [(Some("a"), Access::ReadOnly), (Some("a"), Access::Writable)];
        let catalogue = catalogue(host(true, false, &rules));
        let peer = peer(Auth::Required, Some(7));
        assert_eq!(ask(&catalogue, &peer, None), Ok(Access::Writable));
        let caller = Caller { peer: &peer, host: "host", proven: None };
        assert_eq!(catalogue.grant(&caller, &"b".into()).unwrap_err(), Refusal::NotAllowed);
        assert_eq!(catalogue.grant(&caller, &"c".into()).unwrap_err(), Refusal::Unknown);
        let seen: Vec<_> = catalogue.visible(&caller).iter().map(|e| e.name.clone()).collect();
        assert_eq!(seen, ["a"]);
        let read_only = self::catalogue(host(true, false, &rules[..1]));
        assert_eq!(ask(&read_only, &peer, None), Ok(Access::ReadOnly));
    }
}
