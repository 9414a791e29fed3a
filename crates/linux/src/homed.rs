//! systemd-homed of this machine: where its homes are, and the keys by which it trusts the records of users.

use crate::home::is_user_name;
use crate::tree::Tree;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Where systemd-homed has its keys and its records.
const STATE: &str = "var/lib/systemd/home";
/// The public key with which it signs records itself.
const OWN: &str = "local.public";
/// Where homes are made.
const HOMES: &str = "home";
/// Longest file that is read; a key has 113 bytes.
const MAX_FILE: u64 = 64 << 10;
/// What precedes the 32 bytes of an Ed25519 public key in SubjectPublicKeyInfo (RFC 8410 §4).
const PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
const BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
const END: &str = "-----END PUBLIC KEY-----";

/// A public key that signs records of users.
pub type SigningKey = [u8; 32];

/// Returns the key in a PEM file (RFC 7468 §13); `None` if it is not one Ed25519 public key alone.
pub fn parse_key(pem: &str) -> Option<SigningKey> {
    let lines = pem.trim().strip_prefix(BEGIN)?.strip_suffix(END)?;
    let digits: String = lines.split_ascii_whitespace().collect();
    let der = STANDARD.decode(digits).ok()?;
    der.strip_prefix(&PREFIX)?.try_into().ok()
}

/// Returns a key as a PEM file.
pub fn key_file(key: &SigningKey) -> String {
    let der = [&PREFIX[..], key].concat();
    format!("{BEGIN}\n{}\n{END}\n", STANDARD.encode(der))
}

/// Returns the key with which this machine signs records, if it has one.
pub fn own_key(tree: &Tree) -> Option<SigningKey> {
    parse_key(&read(&tree.path(STATE).join(OWN)).ok()?)
}

/// Returns whether systemd-homed has run on this machine.
pub fn is_present(tree: &Tree) -> bool {
    tree.path(STATE).is_dir()
}

/// Returns whether this machine trusts the key, by a file named `*.public`.
pub fn trusts(tree: &Tree, key: &SigningKey) -> bool {
    let entries = tree.path(STATE).read_dir().into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    let mut files = paths.filter(|path| path.extension().is_some_and(|it| it == "public"));
    files.any(|path| read(&path).is_ok_and(|text| parse_key(&text).as_ref() == Some(key)))
}

/// Returns the name of the file for the key of a machine: `storagetm-MACHINE-KEY.public`, with `-` in place of what is
/// neither an ASCII letter nor a digit, and the first 8 hexadecimal digits of the key: machines of one name have
/// different files, and so have the keys that a machine had one after the other.
pub fn key_name(machine: &str, key: &SigningKey) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let name: String = machine.chars().take(64).map(safe).collect();
    let digits: String = key.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("storagetm-{name}-{digits}.public")
}

/// Returns the path of the file of that name.
pub fn key_path(tree: &Tree, name: &str) -> PathBuf {
    tree.path(STATE).join(name)
}

/// Makes this machine trust a key once systemd-homed is started again. Returns the file that was written. A file of
/// that name is replaced.
///
/// # Errors
/// Fails if the file cannot be written.
pub fn trust(tree: &Tree, name: &str, key: &SigningKey) -> io::Result<PathBuf> {
    let path = key_path(tree, name);
    let new = path.with_extension("public.new");
    let mut file = std::fs::File::create(&new)?;
    file.write_all(key_file(key).as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, &path)?;
    Ok(path)
}

/// What is in the directory of homes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// Files that may be homes, with the user that their name says, sorted.
    pub files: Vec<(String, PathBuf)>,
    /// Users whose homes are no disks, and why.
    pub others: Vec<(String, &'static str)>,
}

/// Lists the homes of this machine.
pub fn list(tree: &Tree) -> Listing {
    let mut listing = Listing::default();
    for entry in tree.path(HOMES).read_dir().into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        // Of a link nothing is known that is not known of the file itself.
        let Ok(kind) = entry.file_type() else { continue };
        let Some((user, ending)) = name.to_str().and_then(|name| name.rsplit_once('.')) else {
            continue;
        };
        match ending {
            _ if !is_user_name(user) => {}
            "home" if kind.is_file() => listing.files.push((user.to_owned(), path)),
            "homedir" if kind.is_dir() => {
                listing.others.push((user.to_owned(), "it is a directory (*.homedir)"));
            }
            _ => {}
        }
    }
    listing.files.sort();
    listing.others.sort();
    listing
}

/// Returns the user whose home a file is by its name: `USER.home`.
pub fn user_of(path: &Path) -> Option<&str> {
    let user = path.file_name()?.to_str()?.strip_suffix(".home")?;
    is_user_name(user).then_some(user)
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_FILE).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The public key of the first test of RFC 8032 §7.1, as OpenSSL writes it.
    const PEM: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n";

    #[test]
    fn key_is_read_and_written_as_openssl_does() {
        let key = parse_key(PEM).unwrap();
        assert_eq!(key[..4], [0xd7, 0x5a, 0x98, 0x01]);
        assert_eq!(key_file(&key), PEM);
    }

    #[test]
    fn anything_but_one_public_key_is_refused() {
        let private = PEM.replace("PUBLIC", "PRIVATE");
        let two = PEM.repeat(2);
        let longer = PEM.replace("URo=", "URoA");
        let x25519 = PEM.replace("K2Vw", "K2Vu");
        for text in ["", &private, &two, &longer, &x25519, &PEM[1..]] {
            assert_eq!(parse_key(text), None, "{text}");
        }
    }

    #[test]
    fn installed_key_is_trusted() {
        let root = std::env::temp_dir().join(format!("storagetm-homed-{}", std::process::id()));
        std::fs::create_dir_all(root.join(STATE)).unwrap();
        let (tree, key) = (Tree::at(&root), parse_key(PEM).unwrap());
        assert!(!trusts(&tree, &key) && own_key(&tree).is_none());
        let path = trust(&tree, &key_name("desk.example/../x", &key), &key).unwrap();
        assert_eq!(path.file_name().unwrap(), "storagetm-desk-example----x-d75a9801.public");
        assert!(trusts(&tree, &key) && !trusts(&tree, &[1; 32]));
        let other = trust(&tree, &key_name("desk-example/../x", &[1; 32]), &[1; 32]).unwrap();
        assert!(other != path && trusts(&tree, &key), "another machine replaces no key");
        std::fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn homes_are_listed_by_kind() {
        let root = std::env::temp_dir().join(format!("storagetm-homes-{}", std::process::id()));
        std::fs::create_dir_all(root.join("home/bob.homedir")).unwrap();
        for name in ["alice.home", "-x.home", "1.home", "notes.txt", ".home"] {
            std::fs::write(root.join("home").join(name), "").unwrap();
        }
        std::os::unix::fs::symlink("alice.home", root.join("home/carol.home")).unwrap();
        let listing = list(&Tree::at(&root));
        std::fs::remove_dir_all(&root).unwrap();
        let users: Vec<&str> = listing.files.iter().map(|(user, _)| user.as_str()).collect();
        assert_eq!(users, ["alice"]);
        assert_eq!(listing.others, [("bob".to_owned(), "it is a directory (*.homedir)")]);
    }
}
