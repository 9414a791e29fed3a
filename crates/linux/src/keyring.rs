//! The kernel's keyring in which NVMe/TCP looks for the keys of its secured channels.
//!
//! Does not know how such a key or its name is made.

use std::ffi::CString;
use std::io;

use rustix::io::Errno;
use thiserror::Error;

use crate::syscall::{Serial, add_key, hold_keyring, remove_key};
use crate::tree::Tree;

/// The keyring that the kernel's NVMe driver makes for itself (`drivers/nvme/common/keyring.c`, Linux 6.7).
const NAME: &str = ".nvme";

/// Why a key cannot be handed to the kernel.
#[derive(Debug, Error)]
pub enum KeyringError {
    /// The driver is not loaded, or has no TLS.
    #[error(
        "the kernel has no keyring for NVMe keys: load the driver with `modprobe nvme-tcp` (Linux 6.7 or newer, built \
         with NVMe/TCP TLS)"
    )]
    Absent,
    /// Only root may.
    #[error("only root may put keys into the kernel's keyring for NVMe: run this as root")]
    Denied,
    /// The name has a zero byte in it.
    #[error("the name of an NVMe key has a zero byte in it, which no kernel takes")]
    Name,
    /// Something else.
    #[error("the kernel does not take the key: {0}")]
    Other(#[from] io::Error),
}

impl From<Errno> for KeyringError {
    fn from(error: Errno) -> Self {
        match error {
            // A kind of key that it does not know, and a call that it was built without.
            Errno::NOKEY | Errno::NODEV | Errno::NOSYS => Self::Absent,
            Errno::ACCESS | Errno::PERM => Self::Denied,
            other => Self::Other(other.into()),
        }
    }
}

/// The keyring, found.
#[derive(Debug)]
pub struct Keyring {
    serial: Serial,
}

impl Keyring {
    /// Looks for it among the keys that this user sees (`/proc/keys`).
    ///
    /// # Errors
    /// It is not there, or is not for this user.
    pub fn find(tree: &Tree) -> Result<Self, KeyringError> {
        let keys = tree.text("proc/keys").unwrap_or_default();
        let Some(serial) = keys.lines().find_map(serial) else {
            // The keyring is root's: others do not even see it.
            let root = rustix::process::geteuid().is_root();
            return Err(if root { KeyringError::Absent } else { KeyringError::Denied });
        };
        hold_keyring(serial)?;
        Ok(Self { serial })
    }

    /// Puts the key of a secured channel into it, under its identity (NVMe/TCP 1.0 §3.6.1.3), in place of one that is
    /// there.
    ///
    /// # Errors
    /// The kernel does not take it.
    pub fn insert(&self, identity: &str, psk: &[u8]) -> Result<(), KeyringError> {
        let identity = CString::new(identity).map_err(|_| KeyringError::Name)?;
        add_key(c"psk", &identity, psk, self.serial)?;
        Ok(())
    }

    /// Takes those keys out of it whose identities are `old`: the kernel takes any that is for the host and the
    /// subsystem, and would find one that the other end no longer has.
    ///
    /// # Errors
    /// The kernel does not let one go.
    pub fn remove(&self, tree: &Tree, old: impl Fn(&str) -> bool) -> Result<(), KeyringError> {
        let keys = tree.text("proc/keys").unwrap_or_default();
        let keys = keys.lines().filter_map(described).filter(|key| key.kind == "psk");
        for key in keys.filter(|key| old(&key.name)) {
            match remove_key(key.serial, self.serial) {
                // It is in another keyring, or gone meanwhile.
                Ok(()) | Err(Errno::NOENT | Errno::NOKEY) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// The number of the keyring, if the line is its.
fn serial(line: &str) -> Option<Serial> {
    let found = described(line)?;
    (found.kind == "keyring" && found.name == NAME).then_some(found.serial)
}

/// A key as the kernel describes it.
#[derive(Debug, PartialEq, Eq)]
struct Described {
    serial: Serial,
    kind: String,
    name: String,
}

/// A line of nine columns: a number, six that do not matter here, the kind, and the name, with a colon and how much is
/// in it behind (proc_keys(5)).
fn described(line: &str) -> Option<Described> {
    let columns: Vec<&str> = line.split_ascii_whitespace().collect();
    let (number, kind) = (columns.first()?, columns.get(7)?);
    let rest = columns.get(8..)?.join(" ");
    let (name, _) = rest.rsplit_once(": ")?;
    let serial = u32::from_str_radix(number, 16).ok()?.cast_signed();
    Some(Described { serial, kind: (*kind).to_owned(), name: name.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::fake::Fake;

    const KEYS: &str = "\
0c3de96f I--Q---     1 perm 1f3f0000     0 65534 keyring   _uid.0: empty
1c6a5b0f I------     2 perm 3f3f0000     0     0 keyring   .nvme: 1
3e1d2a7b I--Q---     1 perm 3f010000     0     0 psk       NVMe1R01 nqn.host nqn.disk: a/b=: 32
";

    #[test]
    fn the_keyring_is_the_one_that_the_driver_made() {
        let found: Vec<_> = KEYS.lines().filter_map(serial).collect();
        assert_eq!(found, [0x1c6a_5b0f]);
        let psk = KEYS.lines().filter_map(described).next_back().unwrap();
        assert_eq!(
            (psk.kind.as_str(), psk.name.as_str()),
            ("psk", "NVMe1R01 nqn.host nqn.disk: a/b=")
        );
        assert_eq!(serial(""), None);
        assert_eq!(serial("zz I 1 perm 0 0 0 keyring .nvme: 1"), None);
    }

    #[test]
    fn without_the_driver_there_is_none_and_the_sentence_says_what_to_do() {
        let fake = Fake::new();
        fake.file("proc/keys", "");
        let error = Keyring::find(&fake.tree()).unwrap_err().to_string();
        assert!(error.contains("modprobe nvme-tcp") || error.contains("as root"), "{error}");
        for (errno, word) in [
            (Errno::NOSYS, "modprobe nvme-tcp"),
            (Errno::NODEV, "modprobe nvme-tcp"),
            (Errno::ACCESS, "root"),
            (Errno::DQUOT, "does not take"),
        ] {
            let said = KeyringError::from(errno).to_string();
            assert!(said.contains(word), "{said}");
        }
    }

    #[test]
    fn a_number_that_names_no_keyring_is_an_error() {
        let fake = Fake::new();
        fake.file("proc/keys", "00000001 I 1 perm 0 0 0 keyring .nvme: empty\n");
        assert!(Keyring::find(&fake.tree()).is_err());
        let gone = Keyring { serial: 1 };
        assert!(gone.insert("NVMe1R01 a b", &[0; 32]).is_err());
        assert!(matches!(gone.insert("NVMe1R01\0 a b", &[0; 32]), Err(KeyringError::Name)));
    }
}
