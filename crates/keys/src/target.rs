//! A machine that has let this one in: where it is, which of its disks may be had, and with which key. It knows no
//! connection.

use serde::{Deserialize, Serialize};

use crate::key::Key;
use crate::name::Name;
use crate::private::{self, JSON, TARGETS};
use crate::record::Allowed;
use crate::store::Store;
use failure::Failure;
use zeroize::Zeroizing;

/// Bytes of the longest file.
const MAX_LEN: usize = 256 << 10;

/// A machine that has let this one in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// What it calls itself.
    pub name: String,
    /// Where it was reached.
    pub address: String,
    /// The TCP port there.
    pub port: u16,
    /// The name under which this machine was let in: its host NQN.
    pub host: String,
    /// What may be done with its disks.
    pub access: Allowed,
    /// The key for secured channels.
    pub tls: Key,
    /// The disks that there were.
    pub disks: Vec<Disk>,
}

/// A disk of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Its NQN.
    pub nqn: String,
    /// What it is called there.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// What may be done with it.
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

    /// Whether both are of one machine: of one name, and with a disk in common, or met at one address where one had no disk.
    fn is_same(&self, other: &Self) -> bool {
        let in_common =
            self.disks.iter().any(|disk| other.disks.iter().any(|it| it.nqn == disk.nqn));
        let empty = self.disks.is_empty() || other.disks.is_empty();
        self.name == other.name && (in_common || (empty && self.address == other.address))
    }

    /// Whether it is the machine that is called so, or was reached there.
    pub fn matches(&self, called: &str) -> bool {
        self.name.eq_ignore_ascii_case(called) || self.address == called
    }
}

impl Store {
    /// The machines that have let this one in; for each either what is known of it, or why that cannot be read.
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

    /// Remembers a machine that has let this one in, in place of what was known of it, and of no other with the same name. Returns
    /// the name under which it is kept.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn put_target(&self, target: &Target) -> Result<Name, Failure> {
        let _lock = self.lock()?;
        let kept = self.targets();
        let same = |(_, known): &&(Name, Result<Target, Failure>)| {
            known.as_ref().is_ok_and(|known| known.is_same(target))
        };
        let name = match kept.iter().find(same) {
            Some((name, _)) => name.clone(),
            None => {
                let is_taken = |name: &Name| kept.iter().any(|(other, _)| other == name);
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

    /// Keeps something for this machine's own use, in a file of that name; returns its path.
    ///
    /// # Errors
    /// It cannot be written.
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
    fn two_machines_of_one_name_are_both_kept() {
        let folder = Scratch::new();
        let store = Store::open(&folder.0.join("keys")).unwrap();
        let put = |target: &Target| store.put_target(target).unwrap().to_string();
        assert_eq!(put(&with_disk("192.0.2.1", "nqn.a")), "localhost");
        assert_eq!(put(&with_disk("192.0.2.2", "nqn.b")), "localhost-2");
        // Another machine has the address of the first by now.
        assert_eq!(put(&with_disk("192.0.2.1", "nqn.c")), "localhost-3");
        // The second was paired with again, by another address.
        assert_eq!(put(&with_disk("192.0.2.9", "nqn.b")), "localhost-2");
        assert_eq!(put(&Target::sample("localhost", "192.0.2.9")), "localhost-2");
        let kept = store.targets();
        let addresses = kept.iter().map(|(_, target)| &target.as_ref().unwrap().address);
        let mut addresses: Vec<_> = addresses.collect();
        addresses.sort();
        assert_eq!(addresses, ["192.0.2.1", "192.0.2.1", "192.0.2.9"]);
    }
}
