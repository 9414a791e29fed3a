//! The record of a host: a JSON object in a file or a credential.

use std::time::SystemTime;

use export::{Access, Credential};
use nvme::auth::credential;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::date::Timestamp;
use crate::key::{Key, KeyKind};
use crate::name::Name;

/// Longest file in bytes.
pub const MAX_LEN: usize = 64 << 10;

/// A host that may connect. Unknown fields are refused, since they may restrict access.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostRecord {
    /// The name by which it identifies itself: a host NQN, or an iSCSI initiator name.
    #[serde(alias = "nqn")]
    pub id: String,
    /// Name of its TLS key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<Name>,
    /// Name of its key for DH-HMAC-CHAP; of an iSCSI initiator, for CHAP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chap_key: Option<Name>,
    /// Name of the key by which this machine authenticates to it, in the same way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chap_controller_key: Option<Name>,
    /// Its TLS key, inline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Key>,
    /// The key of `chap_key`, inline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chap: Option<Key>,
    /// The key of `chap_controller_key`, inline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chap_controller: Option<Key>,
    /// Whether its PSK is derived as by libnvme up to 1.13, where the identity does not tell.
    #[serde(default)]
    pub tls_compat: bool,
    /// Whether an iSCSI initiator may use CHAP with MD5, the only algorithm of Windows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub chap_md5: bool,
    /// Access rules.
    pub rules: Vec<Rule>,
    /// When it was added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub added: Option<Timestamp>,
}

/// An access rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Name, NQN or serial number of a disk; `None` for all exported disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
    /// Access to it.
    pub access: Allowed,
    /// End of validity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
}

/// Access to a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Allowed {
    /// Read only.
    ReadOnly,
    /// Read and write.
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
    /// Returns whether the rule has not expired at `now`.
    pub fn is_in_force(&self, now: SystemTime) -> bool {
        self.expires.is_none_or(|expires| expires.time() > now)
    }
}

impl HostRecord {
    /// Parses a file or a credential.
    ///
    /// # Errors
    /// Fails with a message for the user.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let record: Self = serde_json::from_slice(text).map_err(|error| {
            // serde's message may quote a value, which may be a key.
            format!("it is not understood (line {}, column {})", error.line(), error.column())
        })?;
        check_id(&record.id)?;
        Ok(record)
    }

    /// Formats the content of a file.
    pub fn emit(&self) -> Zeroizing<Vec<u8>> {
        let mut text = Zeroizing::new(Vec::with_capacity(MAX_LEN));
        // Cannot fail: the writer is a vector, and there are no maps.
        let _ = serde_json::to_writer_pretty(&mut *text, self);
        text.push(b'\n');
        text
    }

    /// Returns a record of a host without keys, rules and time.
    pub fn new(id: String) -> Self {
        Self {
            id,
            tls_key: None,
            chap_key: None,
            chap_controller_key: None,
            tls: None,
            chap: None,
            chap_controller: None,
            tls_compat: false,
            chap_md5: false,
            rules: Vec::new(),
            added: None,
        }
    }

    /// Returns whether it is an iSCSI initiator.
    pub fn is_iscsi(&self) -> bool {
        !self.id.starts_with(NQN)
    }

    /// Its keys, whether it has them or not.
    pub(crate) fn keys(&self) -> [RecordKey<'_>; 3] {
        let (chap, chap_controller) = match self.is_iscsi() {
            true => (KeyUse::IscsiChap, KeyUse::IscsiChapTarget),
            false => (KeyUse::Chap, KeyUse::ChapController),
        };
        let key = |usage, name, inline| RecordKey { usage, name, inline };
        [
            key(KeyUse::Tls, self.tls_key.as_ref(), self.tls.as_ref()),
            key(chap, self.chap_key.as_ref(), self.chap.as_ref()),
            key(chap_controller, self.chap_controller_key.as_ref(), self.chap_controller.as_ref()),
        ]
    }

    /// Names of the keys it refers to.
    pub fn key_names(&self) -> impl Iterator<Item = &Name> {
        self.keys().into_iter().filter_map(|key| key.name)
    }

    /// Returns whether it has a key for authentication.
    pub fn has_key(&self) -> bool {
        let is_set = |key: &RecordKey<'_>| key.name.is_some() || key.inline.is_some();
        self.keys().iter().any(|key| key.usage.authenticates_host() && is_set(key))
    }

    /// Returns the credentials that `key` is when used so.
    pub(crate) fn credentials(&self, usage: KeyUse, key: &Key) -> Vec<Credential> {
        let (text, compat) = (key.text().clone(), self.tls_compat);
        match usage {
            KeyUse::Tls => {
                let nbd = key.nbd_psk().map(nbd::credential::tls_psk);
                [credential::tls_psk(text, compat)].into_iter().chain(nbd).collect()
            }
            KeyUse::Chap => vec![credential::chap_host(text, compat)],
            KeyUse::ChapController => vec![credential::chap_controller(text)],
            KeyUse::IscsiChap => vec![iscsi::credential::chap_initiator(text, self.chap_md5)],
            KeyUse::IscsiChapTarget => vec![iscsi::credential::chap_target(text)],
        }
    }
}

/// What a key of a host is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyUse {
    /// TLS, with NVMe and NBD.
    Tls,
    /// The host authenticates by DH-HMAC-CHAP.
    Chap,
    /// This machine authenticates by DH-HMAC-CHAP.
    ChapController,
    /// The iSCSI initiator authenticates by CHAP.
    IscsiChap,
    /// This machine authenticates to the iSCSI initiator by CHAP.
    IscsiChapTarget,
}

impl KeyUse {
    /// The kind of key.
    pub(crate) fn kind(self) -> KeyKind {
        match self {
            Self::Tls => KeyKind::Tls,
            Self::Chap | Self::ChapController => KeyKind::Chap,
            Self::IscsiChap | Self::IscsiChapTarget => KeyKind::Iscsi,
        }
    }

    /// Returns whether the host authenticates by it.
    fn authenticates_host(self) -> bool {
        !matches!(self, Self::ChapController | Self::IscsiChapTarget)
    }
}

/// A key of a record, by name or inline.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RecordKey<'a> {
    pub(crate) usage: KeyUse,
    pub(crate) name: Option<&'a Name>,
    pub(crate) inline: Option<&'a Key>,
}

/// Longest NQN in bytes (NVMe Base 2.0 §4.5).
const MAX_NQN: usize = 223;

/// What a host NQN begins with.
const NQN: &str = "nqn.";

/// Checks the name of a host: a host NQN, or an iSCSI initiator name (RFC 7143 §4.2.7), in lower case.
///
/// # Errors
/// Fails with a message for the user.
pub fn check_id(id: &str) -> Result<(), String> {
    if !["iqn.", "eui.", "naa."].iter().any(|begin| id.starts_with(begin)) {
        return check_nqn(id);
    }
    if iscsi::iqn::normalized(id).as_deref() == Some(id) {
        return Ok(());
    }
    Err(format!(
        "{id} is not an iSCSI name: it has lower-case letters, digits and punctuation, no blanks, at most {MAX_NQN} \
         characters of ASCII"
    ))
}

/// Checks a host NQN: printable ASCII that starts with `nqn.`.
///
/// # Errors
/// Fails with a message for the user.
pub fn check_nqn(nqn: &str) -> Result<(), String> {
    let plain = nqn.starts_with(NQN) && nqn.chars().all(|c| c.is_ascii_graphic());
    if plain && nqn.len() <= MAX_NQN {
        return Ok(());
    }
    Err(format!(
        "{nqn} is not a host NQN: it begins with nqn., has no blanks, at most {MAX_NQN} characters of ASCII; on the \
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
    fn record_round_trips() {
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
    fn record_with_inline_keys_round_trips() {
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
    fn documented_credential_is_valid() {
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
    fn record_with_unknown_content_is_refused() {
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
