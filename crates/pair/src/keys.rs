//! Derives a key for each protocol and use from the shared secret.

use export::Secret;
use hkdf::Hkdf;
use sha2::Sha256;

/// Length of each key in bytes.
pub const LEN: usize = 32;

/// Derives keys by HKDF-SHA-256 (RFC 5869) with one label per use, so that no key reveals another.
pub struct DerivedKeys(Hkdf<Sha256>);

impl std::fmt::Debug for DerivedKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DerivedKeys")
    }
}

impl DerivedKeys {
    /// Derives keys from the shared `secret` of a pairing.
    pub fn new(secret: &Secret) -> Self {
        Self(Hkdf::new(Some(crate::PROTOCOL), secret.bytes()))
    }

    /// Returns the configured TLS PSK of NVMe/TCP, to be used with SHA-256 (NVMe/TCP 1.0 §3.6.1).
    pub fn nvme_tls(&self) -> Secret {
        self.key("nvme tls psk")
    }

    /// Returns the DH-HMAC-CHAP secret of the host (NVMe Base 2.0 §8.13).
    pub fn nvme_chap_host(&self) -> Secret {
        self.key("nvme dh-hmac-chap host")
    }

    /// Returns the DH-HMAC-CHAP secret of the controller.
    pub fn nvme_chap_controller(&self) -> Secret {
        self.key("nvme dh-hmac-chap controller")
    }

    /// Returns the TLS PSK of NBD.
    pub fn nbd(&self) -> Secret {
        self.key("nbd tls psk")
    }

    /// Returns the input of the iSCSI CHAP secret.
    pub fn iscsi_chap(&self) -> Secret {
        self.key("iscsi chap")
    }

    fn key(&self, label: &str) -> Secret {
        let mut key = vec![0; LEN];
        // Fails only for an output of more than 255 hash lengths.
        let full = self.0.expand(label.as_bytes(), &mut key);
        debug_assert!(full.is_ok());
        Secret::new(key)
    }
}

#[cfg(test)]
mod test {
    use std::fmt::Write;

    use sha2::{Digest, Sha512};

    use super::*;
    use crate::Code;

    fn all(secret: &[u8]) -> Vec<Vec<u8>> {
        let keys = DerivedKeys::new(&Secret::new(secret.to_vec()));
        let keys = [
            keys.nvme_tls(),
            keys.nvme_chap_host(),
            keys.nvme_chap_controller(),
            keys.nbd(),
            keys.iscsi_chap(),
        ];
        keys.iter().map(|key| key.bytes().to_vec()).collect()
    }

    /// X11: 256 bits each, distinct for each use, and not derived from the code.
    #[test]
    fn x11_keys_differ_by_use_and_secret_and_from_the_code() {
        let code = Code::parse("12345678").unwrap();
        let mut found = all(&[7; 32]);
        found.extend(all(&[8; 32]));
        assert!(found.iter().all(|key| key.len() == LEN));
        let of_code: Vec<Vec<u8>> = [code.text().as_bytes(), &code.password()]
            .into_iter()
            .flat_map(|code| {
                let hashed = [Sha256::digest(code).to_vec(), Sha512::digest(code)[..32].to_vec()];
                hashed.into_iter().chain(all(code))
            })
            .collect();
        found.extend(of_code);
        let count = found.len();
        found.sort();
        found.dedup();
        assert_eq!(found.len(), count, "all distinct");
    }

    /// Computed independently with Python's hmac module.
    #[test]
    fn golden_keys() {
        let mut text = String::new();
        for key in all(&(0..32).collect::<Vec<u8>>()) {
            key.iter().for_each(|byte| write!(text, "{byte:02x}").unwrap());
            text.push('\n');
        }
        assert_eq!(text, GOLDEN);
    }

    const GOLDEN: &str = "\
d3ad9e45a10b91fbf5a50f7e0f8e05b77d0a2c1d383b381f000c13121b00d578
4ded0c4015e02b5194a9c7857d1a84363aaaf3342eb365e91cfe5cc386318eb3
50165a47560c9fa42f24d249eea6152432043afb5296a67b8fd2af7654a4a680
662825476da6213964b33c8b0bfc171e4c7de8f7375275d68fde5b8c2c4febec
6b58c763f04d88e707a1921d0c8f0df17cb6712196784e3918d9930494701c4c
";
}
