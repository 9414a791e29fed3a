//! Converts the stored hosts to an access policy. Files that are malformed, expired or ambiguous
//! grant no access and cause a warning.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use console::escape_unprintable;
use export::{Credential, Host, KeyId, Policy};
use nvme::nqn;
use sha2::{Digest, Sha256};

use crate::key::Key;
use crate::name::Name;
use crate::private::{CREDENTIAL, HOSTS, JSON, KEYS};
use crate::record::{HostRecord, RecordKey, Rule};
use crate::store::{MAX_HOSTS, Store};

/// If the clock is this far behind the time of a record, it is wrong, and expiry cannot be checked.
const MAX_CLOCK_LAG: Duration = Duration::from_secs(24 * 60 * 60);

/// State while reading the store.
struct PolicyReader<'a> {
    store: &'a Store,
    now: SystemTime,
    hosts: Vec<Arc<Host>>,
    next: Option<SystemTime>,
    warnings: Vec<String>,
}

/// Returns the access policy at `now`, when it changes next, and warnings.
pub fn read(store: &Store, now: SystemTime) -> (Policy, Option<SystemTime>, Vec<String>) {
    let mut reader =
        PolicyReader { store, now, hosts: Vec::new(), next: None, warnings: Vec::new() };
    reader.check_file_names();
    for (name, found) in store.hosts() {
        match found {
            Ok(record) => reader.add(&name, &record),
            Err(failure) => reader.warn(&failure.to_string()),
        }
    }
    for credential in &store.credentials {
        reader.add_credential(&credential.name, credential.text.bytes());
    }
    reader.drop_duplicates();
    reader.drop_excess();
    (Policy { hosts: reader.hosts }, reader.next, reader.warnings)
}

impl PolicyReader<'_> {
    fn warn(&mut self, sentence: &str) {
        self.warnings.push(escape_unprintable(sentence, true));
    }

    /// Warns about files with invalid names, which would be skipped silently.
    fn check_file_names(&mut self) {
        for file in self.store.names(HOSTS) {
            if file.strip_suffix(JSON).is_none_or(|name| name.parse::<Name>().is_err()) {
                self.warn(&format!("{HOSTS}/{file} lets nobody in: it is not called NAME{JSON}"));
            }
        }
        for file in self.store.names(KEYS) {
            if file.parse::<Name>().is_err() {
                self.warn(&format!("{KEYS}/{file} is used by nobody: no key can have that name"));
            }
        }
    }

    fn add_credential(&mut self, credential: &str, text: &[u8]) {
        let name = credential.strip_prefix(CREDENTIAL).unwrap_or_default().parse::<Name>();
        let read =
            name.map_err(str::to_owned).and_then(|name| Ok((name, HostRecord::parse(text)?)));
        match read {
            Ok((name, record)) => self.add(&name, &record),
            Err(reason) => {
                self.warn(&format!("the credential {credential} lets nobody in: {reason}"))
            }
        }
    }

    fn add(&mut self, name: &Name, record: &HostRecord) {
        match self.host(name, record) {
            Ok(Some(host)) => self.hosts.push(Arc::new(host)),
            Ok(None) => {}
            Err(reason) => self.warn(&format!("the host {name} is not authorized: {reason}")),
        }
    }

    /// The host of a record. Returns `None` if all its rules have expired.
    fn host(&mut self, name: &Name, record: &HostRecord) -> Result<Option<Host>, String> {
        if record.is_iscsi() && (record.tls_key.is_some() || record.tls.is_some()) {
            return Err(
                "it has a TLS key, and is an iSCSI initiator, which can use none".to_owned()
            );
        }
        let mut credentials = Vec::new();
        for listed in record.keys() {
            if let Some(key) = self.key(&listed)? {
                credentials.extend(record.credentials(listed.usage, &key));
            }
        }
        if !record.has_key() {
            return Err("it has no key".to_owned());
        }
        let rules = self.rules(name, record);
        if rules.is_empty() {
            return Ok(None);
        }
        let rules = rules.into_iter();
        let rules = rules.map(|rule| export::Rule {
            // An NQN names the same export by any protocol.
            disk: rule.disk.map(|disk| nqn::export_id(&disk).to_string()),
            access: rule.access.into(),
        });
        Ok(Some(Host {
            id: record.id.clone(),
            name: name.to_string(),
            key: key_id(&record.id, &credentials),
            credentials,
            rules: rules.collect(),
        }))
    }

    /// The key that a record lists, named or inline.
    fn key(&self, listed: &RecordKey<'_>) -> Result<Option<Key>, String> {
        let kind = listed.usage.kind();
        let key = match (listed.name, listed.inline) {
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => {
                return Err(format!("it has two {kind} keys, one by its name and one itself"));
            }
            (Some(name), None) => self.store.key(name).map_err(|failure| failure.to_string())?,
            (None, Some(key)) => key.clone(),
        };
        if key.kind() == kind {
            Ok(Some(key))
        } else {
            Err(format!("its key for {kind} is one for {}", key.kind()))
        }
    }

    /// The rules in force. Schedules the expiry of the first one.
    fn rules(&mut self, name: &Name, record: &HostRecord) -> Vec<Rule> {
        let added = record.added.map_or(SystemTime::UNIX_EPOCH, |added| added.time());
        let is_behind = self.now.checked_add(MAX_CLOCK_LAG).is_some_and(|now| now < added);
        let expires = |rule: &&Rule| rule.expires.is_some();
        if is_behind && record.rules.iter().any(|rule| expires(&rule)) {
            self.schedule(added);
            self.warn(&format!(
                "what the host {name} may have for some time only is kept from it: this machine's clock is behind the \
                 time at which it was authorized, so it is not known whether it has expired; set the clock"
            ));
        }
        let rules = record.rules.iter().filter(|rule| rule.is_in_force(self.now));
        let rules: Vec<Rule> =
            rules.filter(|rule| !(is_behind && expires(rule))).cloned().collect();
        for moment in rules.iter().filter_map(|rule| rule.expires) {
            self.schedule(moment.time());
        }
        rules
    }

    fn schedule(&mut self, moment: SystemTime) {
        self.next = Some(self.next.map_or(moment, |next| next.min(moment)));
    }

    /// Removes all hosts that share an identifier, since it is ambiguous which one applies.
    fn drop_duplicates(&mut self) {
        let mut named: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for host in &self.hosts {
            named.entry(host.id.clone()).or_default().push(host.name.clone());
        }
        named.retain(|_, names| names.len() > 1);
        self.hosts.retain(|host| !named.contains_key(&host.id));
        for (id, names) in named {
            let names = names.join(" and ");
            self.warn(&format!(
                "{id} is not authorized, because it has several names, {names}: remove all but one"
            ));
        }
    }

    fn drop_excess(&mut self) {
        if self.hosts.len() > MAX_HOSTS {
            let (first, more) = (MAX_HOSTS, self.hosts.len() - MAX_HOSTS);
            self.warn(&format!(
                "only the first {first} hosts are authorized, {more} are not: remove some"
            ));
            self.hosts.truncate(MAX_HOSTS);
        }
    }
}

/// Identifies a host and its secrets. Salted with random bytes, so that it reveals nothing about
/// the secrets.
fn key_id(id: &str, credentials: &[Credential]) -> KeyId {
    static SALT: OnceLock<[u8; 32]> = OnceLock::new();
    let salt = SALT.get_or_init(|| {
        let mut salt = [0; 32];
        // Without a salt, IDs still differ for different keys.
        let _ = nvme::auth::chap::system_random(&mut salt);
        salt
    });
    let mut hash = Sha256::new_with_prefix(salt);
    let parts = credentials.iter().flat_map(|it| [it.scheme.as_bytes(), it.secret.bytes()]);
    for part in [id.as_bytes()].into_iter().chain(parts) {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    let hash = hash.finalize();
    KeyId::new(hash.first_chunk().map_or(0, |first| u64::from_le_bytes(*first)))
}

#[cfg(test)]
mod test;
