//! The exports that are lent just now, and what a peer may see and have of them. It knows no protocol.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock, Weak};

use crate::{Access, Auth, Caller, Export, Grant, Host, Policy, Refusal};

/// The exports that are lent just now. Shared by all sessions.
#[derive(Debug, Default)]
pub struct Catalogue {
    lent: RwLock<Vec<Arc<Export>>>,
    /// Exports that are lent no longer, as long as something refers to them.
    past: Mutex<Vec<Weak<Export>>>,
    policy: RwLock<Arc<Policy>>,
    generation: AtomicU64,
}

impl Catalogue {
    /// Lends `export` from now on, in place of one of the same name if there is one.
    pub fn publish(&self, export: Arc<Export>) {
        let mut lent = self.lent.write().unwrap_or_else(|poison| poison.into_inner());
        let replaced = lent.iter().position(|other| other.nqn == export.nqn);
        replaced.map(|at| lent.remove(at)).iter().for_each(|other| self.retire(other));
        export.succeed(self.predecessors(&export));
        lent.push(export);
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Lends the export of that name no longer, and has its requests fail. Tells whether there was one.
    pub fn withdraw(&self, nqn: &str) -> Option<Arc<Export>> {
        let mut lent = self.lent.write().unwrap_or_else(|poison| poison.into_inner());
        let export = lent.iter().position(|export| export.nqn == nqn).map(|at| lent.remove(at))?;
        export.withdraw();
        self.retire(&export);
        self.generation.fetch_add(1, Ordering::Release);
        Some(export)
    }

    /// Keeps an export in mind that is lent no longer.
    fn retire(&self, export: &Arc<Export>) {
        let mut past = self.past.lock().unwrap_or_else(|poison| poison.into_inner());
        past.retain(|other| other.strong_count() != 0);
        past.push(Arc::downgrade(export));
    }

    /// Those in whose place `export` is lent and that are still in use: their connections may write until they notice.
    fn predecessors(&self, export: &Export) -> Vec<Weak<Export>> {
        let past = self.past.lock().unwrap_or_else(|poison| poison.into_inner());
        let before = |other: &&Weak<Export>| {
            let other = other.upgrade().filter(|other| !std::ptr::eq(&**other, export));
            other.is_some_and(|other| other.nqn == export.nqn)
        };
        past.iter().filter(before).cloned().collect()
    }

    /// A number that grows with each change of what is lent.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The export of that name, whoever asks.
    pub fn find(&self, nqn: &str) -> Option<Arc<Export>> {
        let lent = self.lent.read().unwrap_or_else(|poison| poison.into_inner());
        lent.iter().find(|export| export.nqn == nqn).cloned()
    }

    /// Lets in whom `policy` names from now on, and nobody else where keys are needed.
    pub fn set_policy(&self, policy: Policy) {
        *self.policy.write().unwrap_or_else(|poison| poison.into_inner()) = Arc::new(policy);
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Whom the owner lets in just now.
    pub fn policy(&self) -> Arc<Policy> {
        self.policy.read().unwrap_or_else(|poison| poison.into_inner()).clone()
    }

    /// Policy, first question: what may this peer see? In the order in which they were lent.
    pub fn visible(&self, caller: &Caller<'_>) -> Vec<Arc<Export>> {
        let lent = self.lent.read().unwrap_or_else(|poison| poison.into_inner()).clone();
        match self.authenticate(caller) {
            Ok(None) => lent,
            Ok(Some(host)) => {
                lent.into_iter().filter(|export| host.access(export).is_some()).collect()
            }
            Err(_) => Vec::new(),
        }
    }

    /// Policy, second question: what may this peer have of the export of that name?
    ///
    /// # Errors
    /// The reason why it gets nothing. What it has not shown comes before what there is.
    pub fn grant(&self, caller: &Caller<'_>, nqn: &str) -> Result<Grant, Refusal> {
        let host = self.authenticate(caller)?;
        let export = self.find(nqn).ok_or(Refusal::Unknown)?;
        let Some(host) = host else { return Ok(Grant::new(export)) };
        let access = host.access(&export).ok_or(Refusal::NotAllowed)?;
        let grant = Grant::new(export);
        Ok(if access == Access::Writable { grant } else { grant.read_only() })
    }

    /// The same by the short name of the export; by no name, the only export that the peer may see.
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
        // What it may not see is not there: of a name that people choose, a stranger learns nothing by guessing.
        let export = export.ok_or(Refusal::Unknown)?;
        self.grant(caller, &export.nqn)
    }

    /// Policy, third question: which host is it whose keys the caller must show, if it must show any?
    ///
    /// # Errors
    /// It has not shown them, or there is no such host.
    pub fn authenticate(&self, caller: &Caller<'_>) -> Result<Option<Arc<Host>>, Refusal> {
        if caller.peer.auth == Auth::None {
            return Ok(None);
        }
        let policy = self.policy();
        let host = policy.host(caller.host).ok_or(Refusal::NotAllowed)?;
        host.accepts(caller)?;
        Ok(Some(host.clone()))
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::{Channel, Geometry, Identity, KeyId, Peer, Rule, Secret};

    fn export(name: &str) -> Arc<Export> {
        let disk = std::fs::File::open("/dev/null").unwrap().into();
        let geometry = Geometry::new(512, 512).unwrap();
        let mut export = Export::new(name, name, Identity::default(), geometry, 512, disk);
        export.access = Access::Writable;
        Arc::new(export)
    }

    fn host(tls: bool, chap: bool, rules: &[(Option<&str>, Access)]) -> Host {
        let secret = |there: bool| there.then(|| Secret::new(vec![1]));
        let rule = |(disk, access): &(Option<&str>, Access)| Rule {
            disk: disk.map(str::to_owned),
            access: *access,
        };
        Host {
            nqn: "host".to_owned(),
            name: "laptop".to_owned(),
            key: KeyId::new(7),
            tls: secret(tls),
            tls_compat: false,
            chap: secret(chap),
            chap_controller: None,
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
        Peer { remote: address, local: address, auth, channel }
    }

    fn ask(catalogue: &Catalogue, peer: &Peer, proven: Option<u64>) -> Result<Access, Refusal> {
        let caller = Caller { peer, host: "host", proven: proven.map(KeyId::new) };
        catalogue.grant(&caller, "a").map(|grant| grant.access())
    }

    const ALL: &[(Option<&str>, Access)] = &[(None, Access::Writable)];

    fn write(grant: &Grant) -> Result<crate::Admitted, crate::Fault> {
        let buffer = crate::Pool::new(1 << 20).open().take(512);
        let (op, ticket) = (crate::Op::Write { durable: false }, crate::Ticket::new(1));
        let request = crate::Request { op, lba: 0, blocks: 1, buffer, ticket };
        grant.admit(request).map_err(|denied| denied.fault)
    }

    #[test]
    fn export_lent_anew_waits_for_writes_to_the_one_before() {
        let catalogue = Catalogue::default();
        let old = export("a");
        catalogue.publish(old.clone());
        let before = Grant::new(old.clone());
        let in_flight = write(&before).unwrap();
        // Lending the same export again replaces none.
        catalogue.publish(old.clone());
        assert!(!old.has_orphans());
        let new = export("a");
        catalogue.publish(new.clone());
        let grant = Grant::new(new.clone());
        assert_eq!(write(&grant).err(), Some(crate::Fault::Busy));
        assert!(new.has_orphans() && !old.is_contended());
        drop(in_flight.finish(Ok(())));
        assert!(old.is_contended() && !new.has_orphans() && write(&grant).is_ok());
    }

    #[test]
    fn export_lent_anew_waits_for_later_writes_to_the_one_before() {
        let catalogue = Catalogue::default();
        let (old, new) = (export("a"), export("a"));
        catalogue.publish(old.clone());
        let before = Grant::new(old.clone());
        catalogue.publish(new.clone());
        let in_flight = write(&before).unwrap();
        let grant = Grant::new(new.clone());
        assert_eq!(write(&grant).err(), Some(crate::Fault::Busy));
        drop(in_flight.finish(Ok(())));
        assert!(old.is_contended() && write(&grant).is_ok());
    }

    #[test]
    fn nobody_is_alone_while_the_export_before_is_written() {
        let catalogue = Catalogue::default();
        let (old, new) = (export("a"), export("a"));
        catalogue.publish(old.clone());
        let in_flight = write(&Grant::new(old.clone())).unwrap();
        catalogue.publish(new.clone());
        let right = crate::Exclusive::claim(&new).unwrap();
        assert!(!right.is_drained());
        drop(in_flight.finish(Ok(())));
        assert!(old.is_contended() && right.is_drained());
    }

    #[test]
    fn an_open_door_asks_nothing_and_a_keyed_one_lets_no_stranger_in() {
        let catalogue = catalogue(host(true, false, ALL));
        assert_eq!(ask(&catalogue, &peer(Auth::None, None), None), Ok(Access::Writable));
        let keyed = peer(Auth::Required, Some(7));
        let stranger = Caller { peer: &keyed, host: "other", proven: Some(KeyId::new(7)) };
        assert_eq!(catalogue.grant(&stranger, "a").unwrap_err(), Refusal::NotAllowed);
        assert!(catalogue.visible(&stranger).is_empty());
        // A stranger learns nothing of what is lent: not even that it is not.
        assert_eq!(catalogue.grant(&stranger, "c").unwrap_err(), Refusal::NotAllowed);
    }

    #[test]
    fn a_host_must_show_every_key_that_it_has() {
        for (tls, chap, channel, proven, expected) in [
            (true, false, None, None, Err(Refusal::TlsRequired)),
            (true, false, Some(8), None, Err(Refusal::TlsRequired)),
            (true, false, Some(7), None, Ok(Access::Writable)),
            (true, true, Some(7), None, Err(Refusal::ChapRequired)),
            (true, true, None, Some(7), Err(Refusal::TlsRequired)),
            (true, true, Some(7), Some(7), Ok(Access::Writable)),
            (false, true, None, None, Err(Refusal::ChapRequired)),
            (false, true, None, Some(8), Err(Refusal::ChapRequired)),
            (false, true, None, Some(7), Ok(Access::Writable)),
            // A channel whose key came out of the proof.
            (false, true, Some(7), None, Ok(Access::Writable)),
            (false, false, None, None, Err(Refusal::NotAllowed)),
        ] {
            let catalogue = catalogue(host(tls, chap, ALL));
            let found = ask(&catalogue, &peer(Auth::Required, channel), proven);
            assert_eq!(found, expected, "{tls} {chap} {channel:?} {proven:?}");
        }
    }

    #[test]
    fn a_certificate_does_for_the_host_that_it_names_and_for_nobody_else() {
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
            let known = catalogue.policy().host_of(&channel).map(|host| host.nqn.clone());
            let found = ask(&catalogue, &peer, None);
            // By whatever name it calls itself there.
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
            // What proves it within the protocol is another key, and no certificate does for that.
            (host(true, true, ALL), true, "laptop", Refusal::ChapRequired),
            (host(false, true, ALL), true, "laptop", Refusal::ChapRequired),
        ] {
            assert_eq!(shows(host, certified, name), Err(refusal), "{name}");
        }
    }

    #[test]
    fn a_host_sees_and_has_what_the_rules_give_and_the_most_of_them_counts() {
        let rules = [(Some("a"), Access::ReadOnly), (Some("a"), Access::Writable)];
        let catalogue = catalogue(host(true, false, &rules));
        let peer = peer(Auth::Required, Some(7));
        assert_eq!(ask(&catalogue, &peer, None), Ok(Access::Writable));
        let caller = Caller { peer: &peer, host: "host", proven: None };
        assert_eq!(catalogue.grant(&caller, "b").unwrap_err(), Refusal::NotAllowed);
        assert_eq!(catalogue.grant(&caller, "c").unwrap_err(), Refusal::Unknown);
        let seen: Vec<_> = catalogue.visible(&caller).iter().map(|e| e.name.clone()).collect();
        assert_eq!(seen, ["a"]);
        let read_only = self::catalogue(host(true, false, &rules[..1]));
        assert_eq!(ask(&read_only, &peer, None), Ok(Access::ReadOnly));
    }
}
