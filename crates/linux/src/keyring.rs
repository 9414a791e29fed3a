//! The kernel keyring in which the NVMe/TCP host looks for TLS keys.

use std::ffi::CString;
use std::io;

use rustix::io::Errno;
use thiserror::Error;

use crate::syscall::{Serial, add_key, hold_keyring, remove_key};
use crate::tree::Tree;

/// The keyring that the kernel's NVMe driver creates (`drivers/nvme/common/keyring.c`, Linux 6.7).
const NAME: &str = ".nvme";

/// Why a key cannot be added to the keyring.
#[derive(Debug, Error)]
pub enum KeyringError {
    /// The driver is not loaded, or was built without TLS.
    #[error(
        "the kernel has no keyring for NVMe keys: load the driver with `modprobe nvme-tcp` (Linux 6.7 or newer, built \
         with NVMe/TCP TLS)"
    )]
    Absent,
    /// The caller is not root.
    #[error("only root can add keys to the kernel's keyring for NVMe: run this as root")]
    Denied,
    /// The identity contains a zero byte.
    #[error("the identity of the NVMe key contains a zero byte")]
    Name,
    /// Another error.
    #[error("the kernel refuses the key: {0}")]
    Other(#[from] io::Error),
}

impl From<Errno> for KeyringError {
    fn from(error: Errno) -> Self {
        match error {
            // An unknown key type, or a kernel without the system call.
            Errno::NOKEY | Errno::NODEV | Errno::NOSYS => Self::Absent,
            Errno::ACCESS | Errno::PERM => Self::Denied,
            other => Self::Other(other.into()),
        }
    }
}

/// The keyring.
#[derive(Debug)]
pub struct Keyring {
    serial: Serial,
}

impl Keyring {
    /// Finds the keyring among the keys that this user can see (`/proc/keys`).
    ///
    /// # Errors
    /// Fails if it does not exist, or this user has no access.
    pub fn find(tree: &Tree) -> Result<Self, KeyringError> {
        let keys = tree.text("proc/keys").unwrap_or_default();
        let Some(serial) = keys.lines().find_map(serial) else {
            // The keyring belongs to root: other users cannot see it.
            let root = rustix::process::geteuid().is_root();
            return Err(if root { KeyringError::Absent } else { KeyringError::Denied });
        };
        hold_keyring(serial)?;
        Ok(Self { serial })
    }

    /// Adds a TLS PSK under its identity (NVMe/TCP 1.0 §3.6.1.3), or replaces it.
    ///
    /// # Errors
    /// Fails if the kernel refuses it.
    pub fn insert(&self, identity: &str, psk: &[u8]) -> Result<(), KeyringError> {
        let identity = CString::new(identity).map_err(|_| KeyringError::Name)?;
        add_key(c"psk", &identity, psk, self.serial)?;
        Ok(())
    }

    /// Removes the keys whose identities are `old`: the kernel uses any key for the host and the
    /// subsystem, and could choose one that the target no longer has.
    ///
    /// # Errors
    /// Fails if the kernel refuses to remove one.
    pub fn remove(&self, tree: &Tree, old: impl Fn(&str) -> bool) -> Result<(), KeyringError> {
        let keys = tree.text("proc/keys").unwrap_or_default();
        let keys = keys.lines().filter_map(described).filter(|key| key.kind == "psk");
        for key in keys.filter(|key| old(&key.name)) {
            match remove_key(key.serial, self.serial) {
                // It is in another keyring, or was removed meanwhile.
                Ok(()) | Err(Errno::NOENT | Errno::NOKEY) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Returns the identity of the TLS PSK with this serial number, if this user can see it.
pub fn identity(tree: &Tree, serial: i32) -> Option<String> {
    let keys = tree.text("proc/keys").ok()?;
    let mut keys = keys.lines().filter_map(described);
    keys.find(|key| key.serial == serial && key.kind == "psk").map(|key| key.name)
}

/// Returns the serial number if the line describes the keyring.
fn serial(line: &str) -> Option<Serial> {
    let found = described(line)?;
    (found.kind == "keyring" && found.name == NAME).then_some(found.serial)
}

#[derive(Debug, PartialEq, Eq)]
struct Described {
    serial: Serial,
    kind: String,
    name: String,
}

/// Parses a line of proc_keys(5): nine columns, of which the first is the serial number, the eighth
/// the type, and the ninth the description, followed by a colon and the payload size.
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
    fn keyring_of_the_driver_is_found() {
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
    fn key_has_its_identity_by_its_serial_number() {
        let fake = Fake::new();
        fake.file("proc/keys", KEYS);
        let found = identity(&fake.tree(), 0x3e1d_2a7b);
        assert_eq!(found.as_deref(), Some("NVMe1R01 nqn.host nqn.disk: a/b="));
        assert_eq!(identity(&fake.tree(), 0x1c6a_5b0f), None, "a keyring");
    }

    #[test]
    fn missing_keyring_is_reported_with_advice() {
        let fake = Fake::new();
        fake.file("proc/keys", "");
        let error = Keyring::find(&fake.tree()).unwrap_err().to_string();
        assert!(error.contains("modprobe nvme-tcp") || error.contains("as root"), "{error}");
        for (errno, word) in [
            (Errno::NOSYS, "modprobe nvme-tcp"),
            (Errno::NODEV, "modprobe nvme-tcp"),
            (Errno::ACCESS, "root"),
            (Errno::DQUOT, "refuses"),
        ] {
            let said = KeyringError::from(errno).to_string();
            assert!(said.contains(word), "{said}");
        }
    }

    #[test]
    fn invalid_serial_number_is_an_error() {
        let fake = Fake::new();
        fake.file("proc/keys", "00000001 I 1 perm 0 0 0 keyring .nvme: empty\n");
        assert!(Keyring::find(&fake.tree()).is_err());
        let gone = Keyring { serial: 1 };
        assert!(gone.insert("NVMe1R01 a b", &[0; 32]).is_err());
        assert!(matches!(gone.insert("NVMe1R01\0 a b", &[0; 32]), Err(KeyringError::Name)));
    }
}
