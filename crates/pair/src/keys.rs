//! Derives the key of the machines from the shared secret.

use export::Secret;
use hkdf::Hkdf;
use sha2::Sha256;

/// Length of a key in bytes.
pub const LEN: usize = 32;

/// HKDF label of the key: a key for another use has another label, so that neither reveals the
/// other.
const NVME_TLS: &[u8] = b"nvme tls psk";

/// Derives the configured TLS PSK of NVMe/TCP, to be used with SHA-256 (NVMe/TCP 1.0 §3.6.1), by
/// HKDF-SHA-256 (RFC 5869) from the shared `secret` of a pairing.
pub fn nvme_tls(secret: &Secret) -> Secret {
    let mut key = vec![0; LEN];
    // Fails only for an output of more than 255 hash lengths.
    let full =
        Hkdf::<Sha256>::new(Some(crate::PROTOCOL), secret.bytes()).expand(NVME_TLS, &mut key);
    debug_assert!(full.is_ok());
    Secret::new(key)
}

#[cfg(test)]
mod test {
    use std::fmt::Write;

    use sha2::{Digest, Sha512};

    use super::*;
    use crate::Code;

    fn key(secret: &[u8]) -> Vec<u8> {
        nvme_tls(&Secret::new(secret.to_vec())).bytes().to_vec()
    }

    /// X11: 256 bits, distinct for each secret, and not derived from the code.
    #[test]
    fn x11_keys_differ_by_secret_and_from_the_code() {
        let code = Code::parse("12345678").unwrap();
        let mut found = vec![key(&[7; 32]), key(&[8; 32])];
        assert!(found.iter().all(|key| key.len() == LEN));
        for code in [code.text().as_bytes(), &code.password()] {
            let hashed = [Sha256::digest(code).to_vec(), Sha512::digest(code)[..32].to_vec()];
            found.extend(hashed.into_iter().chain([key(code)]));
        }
        let count = found.len();
        found.sort();
        found.dedup();
        assert_eq!(found.len(), count, "all distinct");
    }

    /// Computed independently with Python's hmac module.
    #[test]
    fn golden_key() {
        let mut text = String::new();
        for byte in key(&(0..32).collect::<Vec<u8>>()) {
            write!(text, "{byte:02x}").unwrap();
        }
        assert_eq!(text, "d3ad9e45a10b91fbf5a50f7e0f8e05b77d0a2c1d383b381f000c13121b00d578");
    }
}
