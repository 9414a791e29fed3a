//! The supported cipher suites of TLS 1.3, and their key schedule after the handshake (RFC 8446
//! §7).

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Algorithm, CHACHA20_POLY1305};
use aws_lc_rs::aead::{LessSafeKey, UnboundKey};
use aws_lc_rs::hkdf::{self, HKDF_SHA256, HKDF_SHA384, KeyType, Prk};
use zeroize::Zeroizing;

use super::{Cipher, TrafficKey};

/// A traffic secret.
pub(super) type Traffic = Zeroizing<Vec<u8>>;

/// A cipher suite (RFC 8446 §B.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Suite {
    /// TLS_AES_128_GCM_SHA256.
    Aes128,
    /// TLS_AES_256_GCM_SHA384.
    Aes256,
    /// TLS_CHACHA20_POLY1305_SHA256.
    ChaCha20,
}

/// Key and IV of one direction.
pub(super) struct Keys {
    pub(super) key: LessSafeKey,
    pub(super) iv: [u8; 12],
}

/// Output length for HKDF.
struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

impl Suite {
    /// Returns the suite with this name.
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "TLS_AES_128_GCM_SHA256" => Self::Aes128,
            "TLS_AES_256_GCM_SHA384" => Self::Aes256,
            "TLS_CHACHA20_POLY1305_SHA256" => Self::ChaCha20,
            _ => return None,
        })
    }

    fn cipher(self) -> &'static Algorithm {
        match self {
            Self::Aes128 => &AES_128_GCM,
            Self::Aes256 => &AES_256_GCM,
            Self::ChaCha20 => &CHACHA20_POLY1305,
        }
    }

    fn hash(self) -> hkdf::Algorithm {
        if self == Self::Aes256 { HKDF_SHA384 } else { HKDF_SHA256 }
    }

    /// Returns the length of a traffic secret in bytes.
    pub(super) fn secret_len(self) -> usize {
        if self == Self::Aes256 { 48 } else { 32 }
    }

    /// Derives the keys of a direction (RFC 8446 §7.3). Returns `None` if the length of the secret
    /// does not match the suite.
    pub(super) fn keys(self, secret: &Traffic) -> Option<Keys> {
        let TrafficKey { key, iv, .. } = self.traffic_key(secret)?;
        let key = LessSafeKey::new(UnboundKey::new(self.cipher(), &key).ok()?);
        Some(Keys { key, iv })
    }

    /// As [`Suite::keys`], for another implementation of the records.
    pub(super) fn traffic_key(self, secret: &Traffic) -> Option<TrafficKey> {
        let mut key = Zeroizing::new(vec![0; self.cipher().key_len()]);
        self.expand(secret, b"key", &mut key)?;
        let mut iv = [0; 12];
        self.expand(secret, b"iv", &mut iv)?;
        let cipher = match self {
            Self::Aes128 => Cipher::Aes128Gcm,
            Self::Aes256 => Cipher::Aes256Gcm,
            Self::ChaCha20 => Cipher::ChaCha20Poly1305,
        };
        Some(TrafficKey { cipher, key, iv })
    }

    /// Derives the secret that follows a key update (RFC 8446 §7.2).
    pub(super) fn next(self, secret: &Traffic) -> Option<Traffic> {
        let mut next = Zeroizing::new(vec![0; self.secret_len()]);
        self.expand(secret, b"traffic upd", &mut next)?;
        Some(next)
    }

    /// HKDF-Expand-Label without a context (RFC 8446 §7.1).
    fn expand(self, secret: &Traffic, label: &[u8], out: &mut [u8]) -> Option<()> {
        if secret.len() != self.secret_len() {
            return None;
        }
        let length = u16::try_from(out.len()).ok()?.to_be_bytes();
        let named = [u8::try_from(label.len() + 6).ok()?];
        let info = [&length[..], &named, b"tls13 ", label, &[0]];
        let prk = Prk::new_less_safe(self.hash(), secret);
        prk.expand(&info, Length(out.len())).ok()?.fill(out).ok()
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        let hex: Vec<char> = hex.chars().filter(|c| !c.is_whitespace()).collect();
        let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16);
        hex.chunks(2).map(|pair| byte(pair).unwrap()).collect()
    }

    /// RFC 8448 §3: the server's application traffic secret, and what is derived from it.
    #[test]
    fn keys_are_those_of_rfc_8448() {
        let secret = Zeroizing::new(bytes(
            "a1 1a f9 f0 55 31 f8 56 ad 47 11 6b 45 a9 50 32
             82 04 b4 f4 4b fb 6b 3a 4b 4f 1f 3f cb 63 16 43",
        ));
        let (mut key, mut iv) = ([0; 16], [0; 12]);
        Suite::Aes128.expand(&secret, b"key", &mut key).unwrap();
        Suite::Aes128.expand(&secret, b"iv", &mut iv).unwrap();
        assert_eq!(key[..], bytes("9f 02 28 3b 6c 9c 07 ef c2 6b b9 f2 ac 92 e3 56"));
        assert_eq!(iv[..], bytes("cf 78 2b 88 dd 83 54 9a ad f1 e9 84"));
    }

    #[test]
    fn secret_of_another_suite_is_refused() {
        assert!(Suite::Aes256.keys(&Zeroizing::new(vec![1; 32])).is_none());
        assert!(Suite::Aes128.next(&Zeroizing::new(vec![1; 48])).is_none());
        assert_eq!(Suite::named("TLS_AES_128_CCM_SHA256"), None);
    }
}
