//! Keys: in the NVMe interchange format, and secrets for CHAP of iSCSI.

use std::fmt;

use export::Secret;
use hkdf::Hkdf;
use nvme::auth::psk::ConfiguredPsk;
use nvme::auth::{Hash, KeyError, chap};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Sha256;
use zeroize::Zeroizing;

/// Longest key file in bytes, including whitespace.
pub const MAX_LEN: usize = 512;

/// HKDF info string for NBD keys.
const NBD: &[u8] = b"storagetm nbd psk";
/// Length of an NBD key in bytes.
const NBD_LEN: usize = 32;

/// Length of a generated secret for CHAP of iSCSI: the most that Windows takes.
const ISCSI_LEN: usize = 16;
/// Its characters: easy to tell apart when they are typed. 80 bits in all.
const ISCSI_ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";

/// Returns whether `text` can be a secret for CHAP of iSCSI. Keys in interchange format are longer.
fn is_iscsi_secret(text: &[u8]) -> bool {
    (12..=ISCSI_LEN).contains(&text.len()) && text.iter().all(u8::is_ascii_graphic)
}

/// Purpose of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyKind {
    /// TLS: `NVMeTLSkey-1:…`.
    Tls,
    /// DH-HMAC-CHAP: `DHHC-1:…`.
    Chap,
    /// CHAP of iSCSI: 12 to 16 printable characters, as Windows demands.
    Iscsi,
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tls => "TLS",
            Self::Chap => "DH-HMAC-CHAP",
            Self::Iscsi => "iSCSI CHAP",
        })
    }
}

/// A key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    kind: KeyKind,
    hash: Option<Hash>,
    text: Secret,
}

impl Key {
    /// Parses a key of any kind.
    ///
    /// # Errors
    /// Fails with the reason, which does not contain any part of the key.
    pub fn parse(text: &[u8]) -> Result<Self, KeyError> {
        if text.trim_ascii_start().starts_with(b"DHHC-") {
            return chap::Key::parse(text).map(|key| Self::chap(&key));
        }
        if is_iscsi_secret(text.trim_ascii()) {
            return Ok(Self::iscsi(text.trim_ascii().to_vec()));
        }
        ConfiguredPsk::parse(text).map(|key| Self::tls(&key))
    }

    /// Generates a key.
    ///
    /// # Errors
    /// Fails with a message if the hash is not available for this kind, or if the CSPRNG fails.
    pub fn generate(kind: KeyKind, hash: Option<Hash>) -> Result<Self, String> {
        match kind {
            KeyKind::Tls if hash == Some(Hash::Sha512) => {
                Err("TLS keys are made with none, sha256 or sha384; sha512 is for DH-HMAC-CHAP"
                    .to_owned())
            }
            KeyKind::Tls => Ok(Self::tls(&ConfiguredPsk::generate(hash, &*random()?))),
            KeyKind::Chap => Ok(Self::chap(&chap::Key::generate(hash, &*random()?))),
            KeyKind::Iscsi => {
                let random: Zeroizing<[u8; ISCSI_LEN]> = random()?;
                let letter = |byte: &u8| ISCSI_ALPHABET[usize::from(byte % 32)];
                Ok(Self::iscsi(random.iter().map(letter).collect()))
            }
        }
    }

    /// The TLS key derived from the pairing secret; the same on both machines.
    pub fn from_pairing(secret: &Secret) -> Self {
        let key = pair::keys::nvme_tls(secret);
        Self::tls(&ConfiguredPsk { hash: Some(Hash::Sha256), key })
    }

    fn tls(key: &ConfiguredPsk) -> Self {
        Self { kind: KeyKind::Tls, hash: key.hash, text: key.emit() }
    }

    fn chap(key: &chap::Key) -> Self {
        Self { kind: KeyKind::Chap, hash: key.hash, text: key.emit() }
    }

    fn iscsi(text: Vec<u8>) -> Self {
        Self { kind: KeyKind::Iscsi, hash: None, text: Secret::new(text) }
    }

    /// The kind of key.
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// Name of the hash in the key.
    pub fn hash(&self) -> &'static str {
        match self.hash {
            None => "none",
            Some(Hash::Sha256) => "sha256",
            Some(Hash::Sha384) => "sha384",
            Some(Hash::Sha512) => "sha512",
        }
    }

    /// The key in interchange format, or the secret itself, without line break.
    pub fn text(&self) -> &Secret {
        &self.text
    }

    /// Derives the PSK for NBD over TLS: HKDF-SHA-256 (RFC 5869) of the configured PSK, without
    /// salt, 32 bytes, for cipher suites with SHA-256. One TLS key serves both protocols; neither
    /// derived key reveals the other. Returns `None` for keys of other kinds.
    pub fn nbd_psk(&self) -> Option<Secret> {
        if self.kind != KeyKind::Tls {
            return None;
        }
        let configured = ConfiguredPsk::parse(self.text.bytes()).ok()?.key;
        let mut psk = vec![0; NBD_LEN];
        Hkdf::<Sha256>::new(None, configured.bytes()).expand(NBD, &mut psk).ok()?;
        Some(Secret::new(psk))
    }

    /// The text with a line break, as in files.
    pub fn line(&self) -> Zeroizing<Vec<u8>> {
        let mut line = Zeroizing::new(Vec::with_capacity(MAX_LEN));
        line.extend_from_slice(self.text.bytes());
        line.push(b'\n');
        line
    }
}

/// Random bytes for a key.
fn random<const N: usize>() -> Result<Zeroizing<[u8; N]>, String> {
    let mut bytes = Zeroizing::new([0; N]);
    let filled = chap::system_random(&mut *bytes);
    filled.then_some(bytes).ok_or_else(|| "this machine gives no random bytes for a key".to_owned())
}

impl Serialize for Key {
    /// Serializes the key itself: only for private files.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&String::from_utf8_lossy(self.text.bytes()))
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        Self::parse(text.as_bytes()).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn generated_keys_differ_and_parse() {
        for (kind, hash, begins, word) in [
            (KeyKind::Tls, None, "NVMeTLSkey-1:00:", "none"),
            (KeyKind::Tls, Some(Hash::Sha256), "NVMeTLSkey-1:01:", "sha256"),
            (KeyKind::Tls, Some(Hash::Sha384), "NVMeTLSkey-1:02:", "sha384"),
            (KeyKind::Chap, None, "DHHC-1:00:", "none"),
            (KeyKind::Chap, Some(Hash::Sha512), "DHHC-1:03:", "sha512"),
        ] {
            let key = Key::generate(kind, hash).unwrap();
            assert!(key.text().bytes().starts_with(begins.as_bytes()));
            assert_eq!((key.kind(), key.hash()), (kind, word));
            assert_eq!(Key::parse(&key.line()), Ok(key.clone()));
            assert_ne!(Key::generate(kind, hash).unwrap(), key);
        }
        assert!(Key::generate(KeyKind::Tls, Some(Hash::Sha512)).is_err());
    }

    #[test]
    fn iscsi_secret_has_12_to_16_printable_characters() {
        let key = Key::generate(KeyKind::Iscsi, None).unwrap();
        assert_eq!((key.text().bytes().len(), key.hash()), (16, "none"));
        assert_eq!(Key::parse(&key.line()), Ok(key));
        for right in [&b"abcdefghijkl"[..], b" abc:efgh/jkl=n \n"] {
            assert_eq!(Key::parse(right).unwrap().kind(), KeyKind::Iscsi);
        }
        for wrong in
            [&b"abcdefghijk"[..], b"abcdefghijklmnopq", b"abcdef ghijklm", b"abcdefghijk\xff"]
        {
            assert!(Key::parse(wrong).is_err());
        }
        assert_eq!(Key::generate(KeyKind::Iscsi, None).unwrap().nbd_psk(), None);
    }

    /// Reference, in Python: `hmac.digest(hmac.digest(32 zeros, key), b"storagetm nbd psk\x01")`.
    #[test]
    fn nbd_psk_is_derived_from_tls_key() {
        let text = b"NVMeTLSkey-1:01:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:";
        let psk = Key::parse(text).unwrap().nbd_psk().unwrap();
        let hex: String = psk.bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "c66a055c438b5fc2a269c15d1d7e7c7a54401fc3a1e71f3af0434a4a1125237e");
        assert_eq!(Key::generate(KeyKind::Chap, None).unwrap().nbd_psk(), None);
    }

    #[test]
    fn key_errors_do_not_contain_the_key() {
        let key = Key::generate(KeyKind::Tls, None).unwrap();
        let text = String::from_utf8(key.text().bytes().to_vec()).unwrap();
        let mut damaged = text.clone().into_bytes();
        damaged[20] = if damaged[20] == b'A' { b'B' } else { b'A' };
        for wrong in [&damaged[..], b"", b"hunter2", &text.as_bytes()[..30]] {
            let error = Key::parse(wrong).unwrap_err().to_string();
            assert!(!error.contains("hunter2") && !error.contains(&text[20..40]), "{error}");
        }
        assert!(!format!("{key:?}").contains(&text[16..40]));
    }
}
