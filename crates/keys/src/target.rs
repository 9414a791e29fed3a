//! Targets that this machine is paired with: address, disks and key.

use serde::{Deserialize, Serialize};

use crate::key::Key;
use crate::name::Name;
use crate::private::{self, JSON, TARGETS};
use crate::record::Allowed;
use crate::store::Store;
use failure::Failure;
use zeroize::Zeroizing;

/// Longest file in bytes.
const MAX_LEN: usize = 256 << 10;

/// A target that this machine is paired with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Its name.
    pub name: String,
    /// Address at which it was paired.
    pub address: String,
    /// TCP port.
    pub port: u16,
    /// Host NQN that was used for pairing.
    pub host: String,
    /// Access granted.
    pub access: Allowed,
    /// TLS key.
    pub tls: Key,
    /// Its disks at the time of pairing.
    pub disks: Vec<Disk>,
}

/// A disk of a target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// NQN.
    pub nqn: String,
    /// Name on the target.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Access granted.
    pub access: Allowed,
}

impl Target {
    /// A target with a new key and no disks, for tests.
    ///
    /// # Panics
    /// Panics if no key can be generated.
    #[doc(hidden)]
    #[allow(clippy::unwrap_used, reason = "for tests")]
    pub fn sample(name: &str, address: &str) -> Self {
        Self {
            name: name.to_owned(),
            address: address.to_owned(),
            port: 4420,
            host: "nqn.2024-01.test:host".to_owned(),
            access: Allowed::ReadOnly,
            tls: Key::generate(crate::key::KeyKind::Tls, None).unwrap(),
            disks: Vec::new(),
        }
    }

    /// Returns whether both are the same machine: the same name, and a common disk; or the same
    /// address if one of them had no disk.
    fn is_same(&self, other: &Self) -> bool {
        let in_common =
            self.disks.iter().any(|disk| other.disks.iter().any(|it| it.nqn == disk.nqn));
        let empty = self.disks.is_empty() || other.disks.is_empty();
        self.name == other.name && (in_common || (empty && self.address == other.address))
    }

    /// Returns whether it has this name or address.
    pub fn matches(&self, called: &str) -> bool {
        self.name.eq_ignore_ascii_case(called) || self.address == called
    }
}

/// Returns the target with this name, ignoring case.
///
/// # Errors
/// Fails with a usage error that lists their addresses if several are called so: machines in target mode often have
/// the same name.
pub fn named<'a>(targets: &'a [Target], called: &str) -> Result<Option<&'a Target>, Failure> {
    let named = targets.iter().filter(|target| target.name.eq_ignore_ascii_case(called));
    match named.collect::<Vec<_>>().as_slice() {
        [] => Ok(None),
        [target] => Ok(Some(target)),
        several => {
            let addresses: Vec<&str> = several.iter().map(|it| it.address.as_str()).collect();
            Err(Failure::usage(format!(
                "several paired machines are called {called}: give the address instead ({})",
                addresses.join(", ")
            )))
        }
    }
}

impl Store {
    /// All targets, or why their files cannot be read.
    pub fn targets(&self) -> Vec<(Name, Result<Target, Failure>)> {
        let names = self.names(TARGETS).into_iter();
        let names = names.filter_map(|name| name.strip_suffix(JSON)?.parse().ok());
        names.map(|name: Name| (name.clone(), self.target(&name))).collect()
    }

    fn target(&self, name: &Name) -> Result<Target, Failure> {
        let path = self.folder().join(TARGETS).join(format!("{name}{JSON}"));
        let text = private::read(&path, MAX_LEN)?;
        serde_json::from_slice(&text)
            .map_err(|error| Failure::new(format!("{} is not understood: {error}", path.display())))
    }

    /// Stores a target; replaces the record of the same machine, but not of another one with the
    /// same name. Returns the name of the record.
    ///
    /// # Errors
    /// Fails if it cannot be written.
    pub fn put_target(&self, target: &Target) -> Result<Name, Failure> {
        let _lock = self.lock()?;
        let stored = self.targets();
        let same = |(_, known): &&(Name, Result<Target, Failure>)| {
            known.as_ref().is_ok_and(|known| known.is_same(target))
        };
        let name = match stored.iter().find(same) {
            Some((name, _)) => name.clone(),
            None => {
                let is_taken = |name: &Name| stored.iter().any(|(other, _)| other == name);
                Name::sanitized(&target.name).make_unique(is_taken)
            }
        };
        let folder = self.folder().join(TARGETS);
        private::make_folder(&folder)?;
        let mut text = Zeroizing::new(Vec::with_capacity(MAX_LEN));
        serde_json::to_writer_pretty(&mut *text, target)
            .map_err(|error| Failure::new(format!("cannot write JSON: {error}")))?;
        text.push(b'\n');
        private::write(&folder.join(format!("{name}{JSON}")), &text)?;
        Ok(name)
    }

    /// Stores keys for import in the file `NAME.keys`. Returns its path.
    ///
    /// # Errors
    /// Fails if it cannot be written.
    pub fn put_import_keys(&self, name: &Name, text: &[u8]) -> Result<std::path::PathBuf, Failure> {
        let _lock = self.lock()?;
        let folder = self.folder().join(TARGETS);
        private::make_folder(&folder)?;
        let path = folder.join(format!("{name}.keys"));
        private::write(&path, text)?;
        Ok(path)
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use testkit::Scratch;

    fn with_disk(address: &str, nqn: &str) -> Target {
        let access = Allowed::ReadOnly;
        let disk = Disk { nqn: nqn.to_owned(), name: "/dev/sda".to_owned(), bytes: 1, access };
        Target { disks: vec![disk], ..Target::sample("localhost", address) }
    }

    #[test]
    fn a_name_of_several_targets_is_none_of_them() {
        let targets = [
            with_disk("192.0.2.1", "nqn.a"),
            with_disk("192.0.2.2", "nqn.b"),
            Target { name: "desk".to_owned(), ..with_disk("192.0.2.3", "nqn.c") },
        ];
        let found = |called| named(&targets, called).map(|it| it.map(|it| it.address.as_str()));
        assert_eq!(found("DESK").unwrap(), Some("192.0.2.3"));
        assert_eq!(found("nas").unwrap(), None);
        let failure = found("localhost").unwrap_err();
        assert!(failure.status() == 2 && failure.to_string().contains("192.0.2.1, 192.0.2.2"));
    }

    #[test]
    fn targets_of_one_name_are_both_kept() {
        let folder = Scratch::new();
        let store = Store::open(&folder.0.join("keys")).unwrap();
        let put = |target: &Target| store.put_target(target).unwrap().to_string();
        assert_eq!(put(&with_disk("192.0.2.1", "nqn.a")), "localhost");
        assert_eq!(put(&with_disk("192.0.2.2", "nqn.b")), "localhost-2");
        // Another target has the first one's address by now.
        assert_eq!(put(&with_disk("192.0.2.1", "nqn.c")), "localhost-3");
        // The second target was paired again at another address.
        assert_eq!(put(&with_disk("192.0.2.9", "nqn.b")), "localhost-2");
        assert_eq!(put(&Target::sample("localhost", "192.0.2.9")), "localhost-2");
        let stored = store.targets();
        let addresses = stored.iter().map(|(_, target)| &target.as_ref().unwrap().address);
        let mut addresses: Vec<_> = addresses.collect();
        addresses.sort();
        assert_eq!(addresses, ["192.0.2.1", "192.0.2.1", "192.0.2.9"]);
    }
}
