//! What is kept of a host that the owner lets in: a JSON object in a file, or in a credential. It knows no file.

use std::time::SystemTime;

use export::Access;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::date::Timestamp;
use crate::key::Key;
use crate::name::Name;

/// Bytes of the longest file.
pub const MAX_LEN: usize = 64 << 10;

/// A host that the owner lets in. A field that is not known makes the whole unreadable: it might take something away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostRecord {
    /// The name that the host gives itself: its host NQN.
    pub nqn: String,
    /// The name of its key for secured channels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<Name>,
    /// The name of its key for DH-HMAC-CHAP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chap_key: Option<Name>,
    /// The name of the key with which this machine proves to it who it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chap_controller_key: Option<Name>,
    /// Its key for secured channels, itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Key>,
    /// Its key for DH-HMAC-CHAP, itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chap: Option<Key>,
    /// The key with which this machine proves who it is, itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chap_controller: Option<Key>,
    /// Whether its TLS key is derived as libnvme did up to 1.13, where that cannot be told from the specification's way.
    #[serde(default)]
    pub tls_compat: bool,
    /// What it may have.
    pub rules: Vec<Rule>,
    /// When it was let in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub added: Option<Timestamp>,
}

/// What a host may have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// A disk by its name, NQN or serial number; nothing for each that is lent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
    /// What may be done with it, at most.
    pub access: Allowed,
    /// Until when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
}

/// What may be done with a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Allowed {
    /// It may be read.
    ReadOnly,
    /// It may be read and changed.
    Writable,
}

impl From<Allowed> for Access {
    fn from(allowed: Allowed) -> Self {
        match allowed {
            Allowed::ReadOnly => Self::ReadOnly,
            Allowed::Writable => Self::Writable,
        }
    }
}

impl From<Access> for Allowed {
    fn from(access: Access) -> Self {
        match access {
            Access::ReadOnly => Self::ReadOnly,
            Access::Writable => Self::Writable,
        }
    }
}

impl Rule {
    /// Whether it holds at that moment.
    pub fn is_in_force(&self, now: SystemTime) -> bool {
        self.expires.is_none_or(|expires| expires.time() > now)
    }
}

impl HostRecord {
    /// The record in a file's or a credential's text.
    ///
    /// # Errors
    /// A sentence.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let record: Self = serde_json::from_slice(text).map_err(|error| {
            // The error's own text may quote a value, and a value may be a key.
            format!("it is not understood (line {}, column {})", error.line(), error.column())
        })?;
        check_nqn(&record.nqn)?;
        Ok(record)
    }

    /// The text of a file.
    pub fn emit(&self) -> Zeroizing<Vec<u8>> {
        let mut text = Zeroizing::new(Vec::with_capacity(MAX_LEN));
        // Only a failing writer or a map with odd keys can fail, and here is neither.
        let _ = serde_json::to_writer_pretty(&mut *text, self);
        text.push(b'\n');
        text
    }

    /// The names of the keys that it uses.
    pub fn key_names(&self) -> impl Iterator<Item = &Name> {
        [&self.tls_key, &self.chap_key, &self.chap_controller_key].into_iter().flatten()
    }

    /// Whether it has a key by which it can be known.
    pub fn has_key(&self) -> bool {
        self.tls_key.is_some()
            || self.chap_key.is_some()
            || self.tls.is_some()
            || self.chap.is_some()
    }
}

/// The longest NQN, in bytes (NVMe Base 2.0 §4.5).
const MAX_NQN: usize = 223;

/// Checks what is given as a host's NQN: a word of printable ASCII that begins as one.
///
/// # Errors
/// A sentence.
pub fn check_nqn(nqn: &str) -> Result<(), String> {
    let plain = nqn.starts_with("nqn.") && nqn.chars().all(|c| c.is_ascii_graphic());
    if plain && nqn.len() <= MAX_NQN {
        return Ok(());
    }
    Err(format!(
        "{nqn} is no host NQN: it begins with nqn., has no blanks, at most {MAX_NQN} characters of ASCII; on the \
         host it stands in /etc/nvme/hostnqn"
    ))
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::key::KeyKind;

    const EXAMPLE: &str = r#"{
        "nqn": "nqn.2024-01.test:a", "tls_key": "laptop",
        "rules": [{"access": "read-only"}, {"disk": "sdb", "access": "writable", "expires": "2026-12-01"}]
    }"#;

    #[test]
    fn a_record_reads_as_it_was_written() {
        let record = HostRecord::parse(EXAMPLE.as_bytes()).unwrap();
        assert_eq!(record.tls_key.as_ref().unwrap().as_str(), "laptop");
        assert_eq!(record.rules[0], Rule { disk: None, access: Allowed::ReadOnly, expires: None });
        let expires = record.rules[1].expires.unwrap().time();
        assert!(!record.rules[1].is_in_force(expires));
        assert!(record.rules[1].is_in_force(expires - std::time::Duration::from_secs(1)));
        assert!(record.rules[0].is_in_force(expires));
        assert_eq!(HostRecord::parse(&record.emit()), Ok(record));
    }

    #[test]
    fn a_record_may_hold_the_keys_themselves() {
        let key = Key::generate(KeyKind::Chap, None).unwrap();
        let text = String::from_utf8(key.text().bytes().to_vec()).unwrap();
        let json = format!(r#"{{"nqn": "nqn.2024-01.test:a", "chap": "{text}", "rules": []}}"#);
        let record = HostRecord::parse(json.as_bytes()).unwrap();
        assert_eq!(record.chap, Some(key));
        assert_eq!(HostRecord::parse(&record.emit()), Ok(record.clone()));
        assert!(!format!("{record:?}").contains(&text[12..]));
        let wrong = HostRecord::parse(json.replace(":\",", "\",").as_bytes()).unwrap_err();
        assert!(!wrong.contains(&text[12..24]), "{wrong}");
    }

    #[test]
    fn the_credential_in_the_documents_is_understood() {
        let page = include_str!("../../../docs/security.md");
        let (_, text) = page.split_once("```json\n").unwrap();
        let (text, _) = text.split_once("```").unwrap();
        let key = Key::generate(KeyKind::Tls, None).unwrap();
        let key = String::from_utf8(key.text().bytes().to_vec()).unwrap();
        let text = text.replace("NVMeTLSkey-1:01:…:", &key).replace('…', "0001");
        let record = HostRecord::parse(text.as_bytes()).unwrap();
        assert!(record.tls.is_some());
        assert_eq!(record.rules[0].disk.as_deref(), Some("sdb"));
    }

    #[test]
    fn a_record_that_is_not_wholly_understood_is_none() {
        for (from, to) in [
            ("\"access\": \"writable\"", "\"access\": \"everything\""),
            ("expires", "expire"),
            ("2026-12-01", "tomorrow"),
            ("\"rules\"", "\"rule\""),
            ("nqn.2024", "2024"),
            ("test:a", "test a"),
            ("test:a", "test\\u001b[2J"),
            ("\"laptop\"", "\"../laptop\""),
            ("}", ""),
        ] {
            let text = EXAMPLE.replacen(from, to, 1);
            assert_ne!(text, EXAMPLE);
            assert!(HostRecord::parse(text.as_bytes()).is_err(), "{text}");
        }
        assert!(check_nqn(&format!("nqn.{}", "a".repeat(220))).is_err());
    }
}
