//! Credentials for connections to other machines: a named key, the key from pairing, a PSK file, or
//! certificates.

use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use engine::tls::{Hash, Psk, Trust};
use export::Secret;
use linux::tree::Tree;
use nvme::auth::{Credentials, chap};
use zeroize::Zeroizing;

use crate::dial::TlsAuth;
use crate::host_nqn::HostNqn;
use crate::uri::Tls;
use failure::Failure;
use keys::key::{Key, KeyKind};
use keys::record::check_nqn;
use keys::store::{read_bounded, read_key};
use keys::target::{Disk, Target};

/// Maximum size of a key or certificate file.
const MAX_FILE: usize = 256 << 10;

/// How to authenticate to other machines.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options<'a> {
    /// The folder of the store.
    pub keys: Option<&'a Path>,
    /// The file of a key, in place of the one from pairing.
    pub key: Option<&'a Path>,
    /// The host NQN, in place of the usual one.
    pub hostnqn: Option<&'a str>,
    /// Whether a machine that accepts none of the keys is connected to in plaintext.
    pub insecure: bool,
}

/// Credentials of this machine for one target.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    /// Host NQN.
    pub(crate) host: String,
    /// The key for TLS.
    tls: Option<Key>,
    /// The secret for DH-HMAC-CHAP.
    pub(crate) chap: Option<Arc<Credentials>>,
    /// The disks that the target had at pairing.
    disks: Vec<Disk>,
}

impl Keys {
    /// Returns the credentials for a target: the named key, else the one from pairing.
    ///
    /// # Errors
    /// Fails if a key cannot be read; never falls back to plaintext.
    pub(crate) fn find(
        tree: &Tree,
        options: &Options<'_>,
        target: Option<Target>,
    ) -> Result<Self, Failure> {
        let asked = options.hostnqn.or_else(|| Some(target.as_ref()?.host.as_str()));
        let nqn = HostNqn::find(tree, asked).nqn;
        check_nqn(&nqn).map_err(Failure::usage)?;
        let (known, disks) = target.map(|target| (target.tls, target.disks)).unzip();
        let named = options.key.map(read_key_file).transpose()?;
        let is_chap = |key: &Key| key.kind() == KeyKind::Chap;
        // A named CHAP key adds to the TLS key of pairing: nothing is sent in the clear to a
        // machine for which there is one.
        let (chap, tls) = match (named, known) {
            (Some(named), known) if is_chap(&named) => (Some(named), known),
            (named, known) => {
                let key = named.or(known);
                if key.as_ref().is_some_and(is_chap) { (key, None) } else { (None, key) }
            }
        };
        let parse = |key: Key| chap::Key::parse(key.text().bytes()).map_err(Failure::new);
        let chap = chap.map(parse).transpose()?.map(|key| Arc::new(Credentials::new(key)));
        Ok(Self { host: nqn, tls, chap, disks: disks.unwrap_or_default() })
    }

    /// Returns whether it has no credentials.
    pub(crate) fn is_plaintext(&self) -> bool {
        self.tls.is_none() && self.chap.is_none()
    }

    /// Derives the TLS PSK for a subsystem. Returns `None` for a plaintext connection.
    ///
    /// # Errors
    /// Fails if no PSK can be derived.
    pub(crate) fn nvme(&self, subsystem: &str) -> Result<Option<Psk>, String> {
        let Some(key) = &self.tls else { return Ok(None) };
        nvme_psk(key, &self.host, subsystem).map(Some)
    }

    /// Returns the credentials for an NBD connection with TLS.
    ///
    /// # Errors
    /// Fails if there are none.
    pub(crate) fn nbd(&self, tls: &Tls, host: &str) -> Result<TlsAuth, Failure> {
        if let Some(folder) = &tls.certificates {
            let name = tls.hostname.as_deref().unwrap_or(host);
            return read_certificates(folder, name)
                .map(|read_certificates| TlsAuth::Certificates(Arc::new(read_certificates)));
        }
        if let Some(path) = &tls.psk_file {
            return psk_from_file(path, tls.user.as_deref()).map(TlsAuth::Psk);
        }
        let key =
            self.tls.as_ref().and_then(|key| nbd_psk(key, tls.user.as_ref().unwrap_or(&self.host)));
        key.map(TlsAuth::Psk).ok_or_else(|| {
            Failure::new(format!(
                "there is no key for {host}: get one by \"storagetm pair\", or name one by --key, \
                 ?tls-psk-file= or ?tls-certificates="
            ))
        })
    }

    /// Returns the NQN of the disk with that name at pairing: `sda` matches `/dev/sda`, and `disk`
    /// matches `/srv/disk.img`.
    pub(crate) fn disk(&self, name: &str) -> Option<String> {
        let parts = |disk: &Disk| {
            let path = Path::new(&disk.name);
            let stem = |part: Option<&OsStr>| part.is_some_and(|part| part == name);
            disk.name == name || stem(path.file_name()) || stem(path.file_stem())
        };
        let found = self.disks.iter().filter(|disk| !name.is_empty() && parts(disk));
        let nqns: Vec<&String> = found.map(|disk| &disk.nqn).collect();
        match nqns.as_slice() {
            [only] => Some((*only).clone()),
            _ => None,
        }
    }
}

/// Derives the TLS PSK of a host for a subsystem, in the first of the forms that the specification
/// defines.
///
/// # Errors
/// Fails if no PSK can be derived.
pub(crate) fn nvme_psk(key: &Key, host: &str, subsystem: &str) -> Result<Psk, String> {
    let psks = nvme::auth::psk::derive_psks(key.text(), false, host, subsystem);
    let psk = psks.map_err(|error| error.to_string())?.into_iter().next();
    Ok(of_nvme(psk.ok_or("no key can be derived for it")?))
}

/// Derives the PSK with this identity for a host and a subsystem; `None` if it has another.
pub(crate) fn nvme_psk_named(
    key: &Key,
    (host, subsystem): (&str, &str),
    identity: &str,
) -> Option<Psk> {
    let psks = nvme::auth::psk::derive_psks(key.text(), false, host, subsystem).ok()?;
    psks.into_iter().find(|psk| psk.identity == identity).map(of_nvme)
}

fn of_nvme(psk: nvme::auth::psk::Psk) -> Psk {
    let hash = match psk.hash {
        nvme::auth::Hash::Sha384 => Hash::Sha384,
        _ => Hash::Sha256,
    };
    Psk { identity: psk.identity, secret: psk.secret, hash, key: None }
}

/// Derives the NBD PSK of a host.
pub(crate) fn nbd_psk(key: &Key, host: &str) -> Option<Psk> {
    Some(psk(host.to_owned(), key.nbd_psk()?))
}

fn psk(identity: String, secret: Secret) -> Psk {
    Psk { identity, secret, hash: Hash::Sha256, key: None }
}

/// Reads the CHAP secret of an iSCSI initiator or target from a file. Those of targets of others may
/// be longer or shorter than those that storagetm makes.
///
/// # Errors
/// Fails if the file cannot be read, or has another key.
pub(crate) fn iscsi_secret(path: &Path) -> Result<Secret, Failure> {
    let (text, shown) = (read(path)?, path.display());
    let secret = text.trim_ascii();
    match Key::parse(secret).map(|key| key.kind()) {
        Ok(kind) if kind != KeyKind::Iscsi => {
            Err(Failure::new(format!("{shown}: a {kind} key is not for iSCSI")))
        }
        _ if (1..=255).contains(&secret.len())
            && secret.iter().all(|c| (b' '..=b'~').contains(c)) =>
        {
            Ok(Secret::new(secret.to_vec()))
        }
        _ => Err(Failure::new(format!("{shown}: a CHAP secret is a line of 1 to 255 characters"))),
    }
}

fn read_key_file(path: &Path) -> Result<Key, Failure> {
    let what = path.display().to_string();
    let file = File::open(path)
        .map_err(|error| Failure::new(format!("{what} cannot be read: {error}")))?;
    read_key(file, &what).map_err(|failure| Failure::new(format!("{what}: {failure}")))
}

/// Reads the PSK of `user` from a file of `NAME:HEX` lines, or the only one.
fn psk_from_file(path: &Path, user: Option<&str>) -> Result<Psk, Failure> {
    let text = read(path)?;
    let shown = path.display();
    let keys: Vec<(&[u8], &[u8])> = text
        .split(|byte| *byte == b'\n')
        .map(<[u8]>::trim_ascii)
        .filter(|line| !line.is_empty() && !line.starts_with(b"#"))
        .filter_map(|line| Some((line, line.iter().rposition(|byte| *byte == b':')?)))
        .map(|(line, at)| {
            (line.get(..at).unwrap_or_default(), line.get(at + 1..).unwrap_or_default())
        })
        .collect();
    let found = match (user, keys.as_slice()) {
        (Some(user), keys) => keys.iter().find(|(name, _)| *name == user.as_bytes()),
        (None, [only]) => Some(only),
        (None, _) => {
            return Err(Failure::new(format!(
                "{shown} has {} keys; say by whose name to go: nbds://NAME@…",
                keys.len()
            )));
        }
    };
    let (name, digits) =
        found.ok_or_else(|| Failure::new(format!("{shown} has no key of that name")))?;
    let name = std::str::from_utf8(name);
    let secret = unhex(digits).filter(|secret| secret.bytes().len() >= 16);
    match (name, secret) {
        (Ok(name), Some(secret)) => Ok(psk(name.to_owned(), secret)),
        _ => Err(Failure::new(format!(
            "{shown}: a line is NAME:HEX, with 32 hexadecimal digits at least"
        ))),
    }
}

fn unhex(digits: &[u8]) -> Option<Secret> {
    let digit =
        |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pairs = digits.chunks(2);
    let mut bytes = Vec::with_capacity(digits.len() / 2);
    for pair in pairs {
        let [high, low] = pair else { return None };
        bytes.push(digit(high)? << 4 | digit(low)?);
    }
    Some(Secret::new(bytes))
}

/// Reads a certificate directory laid out as for libnbd, nbdkit and qemu.
fn read_certificates(folder: &Path, name: &str) -> Result<Trust, Failure> {
    let authority = read(&folder.join("ca-cert.pem"))?.to_vec();
    let (chain, key) = (folder.join("client-cert.pem"), folder.join("client-key.pem"));
    let own = match chain.exists() || key.exists() {
        true => Some((read(&chain)?.to_vec(), Secret::new(std::mem::take(&mut *read(&key)?)))),
        false => None,
    };
    Ok(Trust { authority, name: name.to_owned(), own })
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let text = File::open(path).and_then(|file| read_bounded(file, MAX_FILE));
    text.map_err(|error| Failure::new(format!("{} cannot be read: {error}", path.display())))
}

#[cfg(test)]
mod test {
    use super::*;
    use std::fs;
    use testkit::Scratch;

    #[test]
    fn disk_name_on_the_target_is_resolved_if_unique() {
        let disk = |name: &str| Disk {
            nqn: format!("nqn.2024-01.test:{name}"),
            name: name.to_owned(),
            bytes: 1,
            access: keys::record::Allowed::ReadOnly,
        };
        let disks = vec![disk("/dev/sda"), disk("/a/disk.img"), disk("/b/disk.raw"), disk("demo")];
        let keys = Keys { host: String::new(), tls: None, chap: None, disks };
        let known =
            |name: &str| keys.disk(name).and_then(|nqn| Some(nqn.split_once(':')?.1.to_owned()));
        assert_eq!(known("sda").as_deref(), Some("/dev/sda"));
        assert_eq!(known("/dev/sda").as_deref(), Some("/dev/sda"));
        assert_eq!(known("disk.img").as_deref(), Some("/a/disk.img"));
        assert_eq!(known("demo").as_deref(), Some("demo"));
        assert_eq!((known("disk"), known("sdb"), known("")), (None, None, None));
    }

    #[test]
    fn keys_come_from_a_list_by_name() {
        let folder = Scratch::new();
        let path = folder.0.join("psk");
        let line = |name: &str, byte: &str| format!("{name}:{}\n", byte.repeat(32));
        fs::write(&path, line("nqn.2024-01.test:a", "aB") + "# no\n\n" + &line("b", "02")).unwrap();
        let found =
            |user| psk_from_file(&path, user).map(|psk| (psk.identity, psk.secret.bytes()[0]));
        assert_eq!(found(Some("nqn.2024-01.test:a")).unwrap().1, 0xab);
        assert_eq!(found(Some("b")).unwrap(), ("b".to_owned(), 2));
        assert!(found(Some("c")).is_err());
        assert!(found(None).unwrap_err().to_string().contains("2 keys"));
        fs::write(&path, line("b", "02")).unwrap();
        assert_eq!(found(None).unwrap().0, "b");
        for wrong in ["b:zz", "b:0", "b:0011"] {
            fs::write(&path, wrong).unwrap();
            let said = found(None).unwrap_err().to_string();
            assert!(said.contains("NAME:HEX") && !said.contains("0011"), "{said}");
        }
    }

    #[test]
    fn named_chap_key_leaves_the_tls_key_of_pairing_in_use() {
        let folder = Scratch::new();
        let path = folder.0.join("key");
        fs::write(&path, &*Key::generate(KeyKind::Chap, None).unwrap().line()).unwrap();
        let options = Options { key: Some(&path), ..Options::default() };
        let target = Target::sample("desk", "192.0.2.1");
        let keys = Keys::find(&Tree::at(&folder.0), &options, Some(target)).unwrap();
        assert!(keys.tls.is_some() && keys.chap.is_some());
        let keys = Keys::find(&Tree::at(&folder.0), &options, None).unwrap();
        assert!(keys.tls.is_none() && keys.chap.is_some());
    }

    #[test]
    fn invalid_key_file_is_refused() {
        let folder = Scratch::new();
        let path = folder.0.join("key");
        assert_eq!(read_key_file(&path).unwrap_err().status(), 1);
        fs::write(&path, "no key").unwrap();
        let failure = read_key_file(&path).unwrap_err();
        assert!(failure.status() == 1 && !failure.to_string().contains("no key\n"));
        let key = Key::generate(KeyKind::Chap, None).unwrap();
        fs::write(&path, &*key.line()).unwrap();
        assert_eq!(read_key_file(&path).unwrap(), key);
    }
}
