//! The key store: a directory of keys and hosts, which is watched for changes.
//!
//! ```text
//! DIR/keys/NAME          one key in the interchange form
//! DIR/hosts/NAME.json    a host: its NQN, the names of its keys, what it may have and until when
//! DIR/targets/NAME.json  a machine that has let this one in (storagetm pair)
//! DIR/web-certificate.json  the certificate for HTTPS and its key, which this store does not read
//! DIR/reservations/      reservations of disks, which this store does not read
//! DIR/lock               held by whoever writes
//! ```

use std::ffi::OsString;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{env, fmt, fs};

use export::{Access, Secret};
use zeroize::Zeroizing;

use crate::date::Timestamp;
use crate::key::{self, Key};
use crate::name::Name;
use crate::record::{self, HostRecord, Rule};
use failure::Failure;
use linux::tree::Tree;

pub use crate::private::read_bounded;
use crate::private::{CREDENTIAL, HOSTS, JSON, KEYS};
pub use crate::watch::Watch;

/// Most hosts that are authorized: their keys are tried in every handshake.
pub(crate) const MAX_HOSTS: usize = 1024;
/// Most times that the hosts are read because their names change meanwhile.
const MAX_READS: usize = 16;

/// A file of the directory: its path there, and its content.
pub type StoredFile = (PathBuf, Zeroizing<Vec<u8>>);

/// The key store.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    pub(crate) credentials: Vec<Credential>,
}

/// A host from a credential.
#[derive(Debug)]
pub(crate) struct Credential {
    pub(crate) name: String,
    pub(crate) text: Secret,
}

/// A host that was just paired.
#[derive(Debug)]
pub struct PairedHost<'a> {
    /// Host NQN, as received.
    pub nqn: &'a str,
    /// Name of the host, as received.
    pub name: &'a str,
    /// TLS key in interchange format.
    pub tls: &'a Secret,
    /// Access to the disks.
    pub access: Access,
}

/// Why a paired host was not added: a message for the owner of this machine.
#[derive(Debug)]
pub enum NotAdded {
    /// The host is known, and none of its rules is in force.
    Expired(Failure),
    /// It cannot be stored.
    Failed(Failure),
}

impl fmt::Display for NotAdded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Expired(failure) | Self::Failed(failure)) = self;
        failure.fmt(f)
    }
}

impl From<Failure> for NotAdded {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Store {
    /// Returns the directory: `asked`, else that of the service (`$STATE_DIRECTORY`), else that of
    /// the user.
    ///
    /// # Errors
    /// Fails if `$HOME` is not set.
    pub fn locate(asked: Option<&Path>) -> Result<PathBuf, Failure> {
        let root = rustix::process::geteuid().is_root();
        let place =
            asked.map(Path::to_owned).or_else(|| default_folder(&|name| env::var_os(name), root));
        place.ok_or_else(|| {
            Failure::new("it is not known where keys are kept, since $HOME is not set: name a folder by --keys DIR")
        })
    }

    /// Opens the directory, creating it if needed. Includes hosts from the service's credentials.
    ///
    /// # Errors
    /// Fails if it cannot be created, or if other users can write to it.
    pub fn open(folder: &Path) -> Result<Self, Failure> {
        for inner in ["", KEYS, HOSTS] {
            crate::private::make_folder(&folder.join(inner))?;
        }
        let own = env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        let credentials = own.map(|own| credentials_in(&own)).unwrap_or_default();
        Ok(Self { folder: folder.to_owned(), credentials })
    }

    /// Includes hosts from system credentials and firmware (systemd.system-credentials(7)).
    pub fn with_boot_credentials(mut self, tree: &Tree) -> Self {
        for folder in ["run/credentials/@system", "run/credentials/@initrd"] {
            self.credentials.extend(credentials_in(&tree.path(folder)));
        }
        let strings = linux::boot::firmware_strings(tree).into_iter().map(Zeroizing::new);
        self.credentials.extend(strings.filter_map(|text| firmware_credential(&text)));
        self
    }

    /// The directory.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Watches the directory for changes.
    ///
    /// # Errors
    /// Fails if the inotify limits are reached.
    pub fn watch(&self) -> io::Result<Watch> {
        Watch::open(&self.folder)
    }

    /// Names of all keys.
    pub fn key_names(&self) -> Vec<Name> {
        self.names(KEYS).into_iter().filter_map(|name| name.parse().ok()).collect()
    }

    /// Returns whether the key exists.
    pub fn has_key(&self, name: &Name) -> bool {
        self.key_path(name).symlink_metadata().is_ok()
    }

    /// Reads a key.
    ///
    /// # Errors
    /// Fails if it does not exist, is readable by other users, or is malformed.
    pub fn key(&self, name: &Name) -> Result<Key, Failure> {
        let path = self.key_path(name);
        if !self.has_key(name) {
            return Err(Failure::new(format!(
                "there is no key {name} in {}",
                self.folder.display()
            )));
        }
        let text = crate::private::read(&path, key::MAX_LEN)?;
        Key::parse(&text).map_err(|error| Failure::new(format!("{}: {error}", path.display())))
    }

    /// Stores a key.
    ///
    /// # Errors
    /// Fails if it exists and `replace` is not set, or if it cannot be written.
    pub fn put_key(&self, name: &Name, key: &Key, replace: bool) -> Result<(), Failure> {
        let _lock = self.lock()?;
        if self.has_key(name) && !replace {
            return Err(Failure::new(format!(
                "there is a key {name} already: choose another name, or say --replace"
            )));
        }
        crate::private::write(&self.key_path(name), &key.line())
    }

    /// Removes a key.
    ///
    /// # Errors
    /// Fails if it does not exist, is used by a host, or cannot be removed.
    pub fn remove_key(&self, name: &Name) -> Result<(), Failure> {
        let _lock = self.lock()?;
        let users: Vec<String> = self.hosts_using(name).iter().map(Name::to_string).collect();
        if !users.is_empty() {
            let users = users.join(", ");
            return Err(Failure::new(format!(
                "the key {name} is used by {users}: storagetm host remove takes away what a host may have"
            )));
        }
        if !self.has_key(name) {
            return Err(Failure::new(format!(
                "there is no key {name} in {}",
                self.folder.display()
            )));
        }
        crate::private::remove(&self.key_path(name))
    }

    /// Hosts that use a key.
    pub fn hosts_using(&self, key: &Name) -> Vec<Name> {
        let hosts = self.hosts().into_iter();
        let uses = |record: &HostRecord| record.key_names().any(|name| name == key);
        hosts.filter(|(_, found)| found.as_ref().is_ok_and(uses)).map(|(name, _)| name).collect()
    }

    /// All hosts in the directory, or why their files cannot be used. If names change meanwhile, they
    /// are read again: a host that is renamed is one host, neither none nor two.
    pub fn hosts(&self) -> Vec<(Name, Result<HostRecord, Failure>)> {
        let mut names = self.names(HOSTS);
        for _ in 1..MAX_READS {
            let hosts = self.hosts_in(&names);
            let after = self.names(HOSTS);
            if after == names {
                return hosts;
            }
            names = after;
        }
        self.hosts_in(&names)
    }

    fn hosts_in(&self, files: &[String]) -> Vec<(Name, Result<HostRecord, Failure>)> {
        let names = files.iter().filter_map(|name| name.strip_suffix(JSON)?.parse::<Name>().ok());
        names.map(|name| (name.clone(), self.host(&name))).collect()
    }

    /// Returns whether the host exists.
    pub fn has_host(&self, name: &Name) -> bool {
        self.host_path(name).symlink_metadata().is_ok()
    }

    /// Reads a host.
    ///
    /// # Errors
    /// Fails if it does not exist, is readable by other users, or is malformed.
    pub fn host(&self, name: &Name) -> Result<HostRecord, Failure> {
        let path = self.host_path(name);
        let text = crate::private::read(&path, record::MAX_LEN)?;
        HostRecord::parse(&text)
            .map_err(|reason| Failure::new(format!("{}: {reason}", path.display())))
    }

    /// Finds a host by name, NQN or iSCSI initiator name.
    pub fn find_host(&self, called: &str) -> Option<Name> {
        let by_name = || self.hosts().into_iter().find(|(name, _)| name.as_str() == called);
        self.host_by_id(called).or_else(|| by_name().map(|(name, _)| name))
    }

    /// The name of the host with this NQN or iSCSI initiator name.
    pub fn host_by_id(&self, id: &str) -> Option<Name> {
        let has_id = |found: &Result<HostRecord, Failure>| found.as_ref().is_ok_and(|r| r.id == id);
        self.hosts().into_iter().find(|(_, found)| has_id(found)).map(|(name, _)| name)
    }

    /// Returns the hosts that may attach something at `now`, each with its files: its own and those
    /// of its keys. Hosts whose keys cannot be read are left out.
    pub fn files_of_hosts(&self, now: SystemTime) -> Vec<(Name, Vec<StoredFile>)> {
        let hosts = self.hosts().into_iter().filter_map(|(name, record)| {
            let record = record.ok()?;
            let allowed = record.has_key() && record.rules.iter().any(|it| it.is_in_force(now));
            let files = allowed.then(|| self.files_of(&name, &record))?;
            Some((name, files.ok()?))
        });
        hosts.collect()
    }

    fn files_of(&self, name: &Name, record: &HostRecord) -> Result<Vec<StoredFile>, Failure> {
        let own = (Path::new(HOSTS).join(format!("{name}{JSON}")), record.emit());
        let key = |name: &Name| Ok((Path::new(KEYS).join(name.as_str()), self.key(name)?.line()));
        std::iter::once(Ok(own)).chain(record.key_names().map(key)).collect()
    }

    /// Stores a host; replaces one of the same name. `known` is the name under which it is stored so
    /// far, if it is: its file is changed and then renamed, so that it is authorized all the time.
    ///
    /// # Errors
    /// Fails if it cannot be written or renamed.
    pub fn put_host(
        &self,
        name: &Name,
        record: &HostRecord,
        known: Option<&Name>,
    ) -> Result<(), Failure> {
        let _lock = self.lock()?;
        let (old, new) = (self.host_path(known.unwrap_or(name)), self.host_path(name));
        crate::private::write(&old, &record.emit())?;
        if old == new { Ok(()) } else { crate::private::rename(&old, &new) }
    }

    /// Removes a host, and those of its keys that are named after it and not used by another host.
    /// Returns the names of the removed keys.
    ///
    /// # Errors
    /// Fails if it cannot be removed.
    pub fn remove_host(&self, name: &Name) -> Result<Vec<Name>, Failure> {
        let _lock = self.lock()?;
        let record = self.host(name);
        crate::private::remove(&self.host_path(name))?;
        let Ok(record) = record else { return Ok(Vec::new()) };
        let own = |key: &&Name| key.is_variant_of(name);
        let unused = |key: &&Name| self.hosts_using(key).is_empty() && self.has_key(key);
        let mut removed: Vec<Name> =
            record.key_names().filter(own).filter(unused).cloned().collect();
        removed.dedup();
        removed.iter().try_for_each(|key| crate::private::remove(&self.key_path(key)))?;
        Ok(removed)
    }

    /// Adds a paired host, which may access all exported disks. If the NQN is known, replaces its keys
    /// and access; the disks and the expiry of its rules stay. Returns its name.
    ///
    /// # Errors
    /// Fails if the NQN or the key is invalid, if all rules of a known host have expired, if it would be
    /// one of too many hosts, or if it cannot be written.
    pub fn add_paired_host(
        &self,
        host: &PairedHost<'_>,
        now: SystemTime,
    ) -> Result<Name, NotAdded> {
        record::check_nqn(host.nqn).map_err(Failure::new)?;
        if self.is_in_credential(host.nqn) {
            // A duplicate NQN would deny access to both.
            return Err(Failure::new(format!(
                "{} is authorized by a credential, and can only be changed there",
                host.nqn
            ))
            .into());
        }
        let key = Key::parse(host.tls.bytes()).map_err(Failure::new)?;
        let known = self.host_by_id(host.nqn);
        if known.is_none() && self.names(HOSTS).len() >= MAX_HOSTS {
            return Err(Failure::new(format!(
                "{MAX_HOSTS} hosts are authorized already, which is the most: remove some by \
                 storagetm host remove"
            ))
            .into());
        }
        let rules = match &known {
            Some(name) => remaining_rules(name, self.host(name)?, host.access, now)?,
            None => vec![Rule { disk: None, access: host.access.into(), expires: None }],
        };
        let name = known.unwrap_or_else(|| {
            Name::sanitized(host.name).make_unique(|name| self.has_key(name) || self.has_host(name))
        });
        // Keys used by other hosts are not replaced.
        let others = |key: &Name| self.has_key(key) && self.hosts_using(key) != [name.clone()];
        let key_name = name.clone().make_unique(others);
        let record = HostRecord {
            tls_key: Some(key_name.clone()),
            rules,
            added: Some(Timestamp::new(now)),
            ..HostRecord::new(host.nqn.to_owned())
        };
        let _lock = self.lock()?;
        let (key_path, host_path) = (self.key_path(&key_name), self.host_path(&name));
        crate::private::write_all(&[(&key_path, &key.line()), (&host_path, &record.emit())])?;
        Ok(name)
    }

    fn is_in_credential(&self, nqn: &str) -> bool {
        let mut records = self.credentials.iter().map(|it| HostRecord::parse(it.text.bytes()));
        records.any(|record| record.is_ok_and(|record| record.id == nqn))
    }

    /// Sorted names of files in a subdirectory, without temporary files.
    pub(crate) fn names(&self, inner: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.folder.join(inner)) else { return Vec::new() };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<String> = names.filter(|name| !name.starts_with('.')).collect();
        names.sort();
        names
    }

    fn key_path(&self, name: &Name) -> PathBuf {
        self.folder.join(KEYS).join(name.as_str())
    }

    fn host_path(&self, name: &Name) -> PathBuf {
        self.folder.join(HOSTS).join(format!("{name}{JSON}"))
    }

    pub(crate) fn lock(&self) -> Result<crate::private::Lock, Failure> {
        crate::private::Lock::take(&self.folder)
    }
}

/// The rules in force of a known host, with the access granted now.
///
/// # Errors
/// Fails if there is none: pairing gives a host no more than its owner did.
fn remaining_rules(
    name: &Name,
    record: HostRecord,
    access: Access,
    now: SystemTime,
) -> Result<Vec<Rule>, NotAdded> {
    let holding = record.rules.into_iter().filter(|rule| rule.is_in_force(now));
    let rules: Vec<Rule> = holding.map(|rule| Rule { access: access.into(), ..rule }).collect();
    if rules.is_empty() {
        return Err(NotAdded::Expired(Failure::new(format!(
            "it is known as {name}, and none of its rules is in force any more: give it others by storagetm host add \
             NQN --replace --disk DISK --expires 7d, or remove it by storagetm host remove {name}, and pair again"
        ))));
    }
    Ok(rules)
}

/// The default directory.
pub(crate) fn default_folder(
    variable: &dyn Fn(&str) -> Option<OsString>,
    root: bool,
) -> Option<PathBuf> {
    let folder = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    // systemd separates several directories by colons.
    let service = variable("STATE_DIRECTORY").and_then(|all| {
        let first = all.to_str()?.split(':').next()?.to_owned();
        Some(PathBuf::from(first)).filter(|path| path.is_absolute())
    });
    let home = || {
        let state = folder("XDG_STATE_HOME");
        let state = state.or_else(|| Some(folder("HOME")?.join(".local/state")));
        state.map(|state| state.join("storagetm"))
    };
    service.or_else(|| if root { Some(PathBuf::from("/var/lib/storagetm")) } else { home() })
}

/// Reads credentials with hosts. The service manager controls who can read them.
pub(crate) fn credentials_in(folder: &Path) -> Vec<Credential> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.starts_with(CREDENTIAL)).collect();
    names.sort();
    names.into_iter().map(|name| read_credential(folder, name)).collect()
}

/// Reads a credential. If that fails, the content is empty, which is reported as malformed.
fn read_credential(folder: &Path, name: String) -> Credential {
    let opened = fs::File::open(folder.join(&name));
    let text = opened.and_then(|file| read_bounded(file, record::MAX_LEN));
    let mut text = text.unwrap_or_default();
    Credential { name, text: Secret::new(std::mem::take(&mut text)) }
}

/// Parses a firmware string `io.systemd.credential:NAME=TEXT`.
fn firmware_credential(text: &str) -> Option<Credential> {
    let (name, text) = text.strip_prefix("io.systemd.credential:")?.split_once('=')?;
    let text = Secret::new(text.as_bytes().to_vec());
    name.starts_with(CREDENTIAL).then(|| Credential { name: name.to_owned(), text })
}

/// Writes a secret to a file given by the user, with mode 0600.
///
/// # Errors
/// Fails if it cannot be written.
pub fn write_private(path: &Path, text: &[u8]) -> Result<(), Failure> {
    crate::private::write(path, text)
}

/// Reads a key from a file given by the user, or from standard input.
///
/// # Errors
/// Fails if it cannot be read, or is malformed.
pub fn read_key(from: impl Read, what: &str) -> Result<Key, Failure> {
    let text = read_bounded(from, key::MAX_LEN).map_err(|error| match error.kind() {
        ErrorKind::FileTooLarge => Failure::new(format!("{what} is not a key: {error}")),
        _ => Failure::new(format!("{what} cannot be read: {error}")),
    })?;
    Key::parse(&text).map_err(|error| Failure::new(format!("{what}: {error}")))
}
