//! CHAP: algorithms and responses (RFC 7143 §12.1.3, RFC 1994).

use export::Secret;
use md5::Md5;
use rustix::io::Errno;
use rustix::rand::GetRandomFlags;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use sha3::Sha3_256;

use crate::wire::text;

/// A hash algorithm of CHAP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    Sha256,
    Sha3_256,
    Sha1,
    Md5,
}

impl Algorithm {
    /// All algorithms, the preferred ones first.
    pub const ALL: [Self; 4] = [Self::Sha256, Self::Sha3_256, Self::Sha1, Self::Md5];

    /// Returns its number in `CHAP_A`.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::Md5 => 5,
            Self::Sha1 => 6,
            Self::Sha256 => 7,
            Self::Sha3_256 => 8,
        }
    }

    /// Returns the length of a response in bytes.
    #[must_use]
    pub fn response_len(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha1 => 20,
            Self::Sha256 | Self::Sha3_256 => 32,
        }
    }

    /// Returns the preferred algorithm of the list in `CHAP_A`. MD5 counts only if it is allowed.
    #[must_use]
    pub fn choose(list: &str, md5: bool) -> Option<Self> {
        let offered: Vec<u32> = list.split(',').filter_map(text::number).collect();
        let known = Self::ALL.into_iter().filter(|algorithm| md5 || *algorithm != Self::Md5);
        known.into_iter().find(|algorithm| offered.contains(&algorithm.number()))
    }

    /// Returns the response to a challenge: the hash of identifier, secret and challenge.
    #[must_use]
    pub fn response(self, id: u8, secret: &Secret, challenge: &[u8]) -> Secret {
        let parts = [&[id][..], secret.bytes(), challenge];
        Secret::new(match self {
            Self::Md5 => hash::<Md5>(parts),
            Self::Sha1 => hash::<Sha1>(parts),
            Self::Sha256 => hash::<Sha256>(parts),
            Self::Sha3_256 => hash::<Sha3_256>(parts),
        })
    }
}

fn hash<D: Digest>(parts: [&[u8]; 3]) -> Vec<u8> {
    let mut digest = D::new();
    parts.iter().for_each(|part| digest.update(part));
    digest.finalize().to_vec()
}

/// Source of random bytes. Fills the slice; returns `false` on failure.
pub type RandomSource = fn(&mut [u8]) -> bool;

/// Fills `bytes` from getrandom(2). Returns `false` on failure.
#[must_use]
pub fn system_random(bytes: &mut [u8]) -> bool {
    let mut rest = bytes;
    while !rest.is_empty() {
        match rustix::rand::getrandom(&mut *rest, GetRandomFlags::empty()) {
            Ok(n) => rest = rest.get_mut(n..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
    true
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn preferred_algorithm_is_chosen_in_any_order() {
        let choose = |list: &str| Algorithm::choose(list, false);
        for list in ["5,6,7,8", "8,7,6,5", "7", "5,7"] {
            assert_eq!(choose(list), Some(Algorithm::Sha256), "{list}");
        }
        assert_eq!(choose("5,6"), Some(Algorithm::Sha1));
        assert_eq!(choose("8,5"), Some(Algorithm::Sha3_256));
        assert_eq!([choose("5"), choose(""), choose("9,x"), choose("-7")], [None; 4]);
        assert_eq!(Algorithm::choose("5", true), Some(Algorithm::Md5));
        assert_eq!(Algorithm::choose("5,6", true), Some(Algorithm::Sha1));
    }

    /// Computed by Python's hashlib: identifier 5c, secret `secretsecret`, challenge 00 to 0f.
    #[test]
    fn golden_responses() {
        let challenge: Vec<u8> = (0..16).collect();
        let secret = Secret::new(b"secretsecret".to_vec());
        for (algorithm, expected) in [
            (Algorithm::Md5, MD5),
            (Algorithm::Sha1, SHA1),
            (Algorithm::Sha256, SHA256),
            (Algorithm::Sha3_256, SHA3_256),
        ] {
            let response = algorithm.response(0x5c, &secret, &challenge);
            assert_eq!(text::to_hex(response.bytes()), expected);
            assert_eq!(response.bytes().len(), algorithm.response_len());
        }
    }

    const MD5: &str = "0xd014e01972490bc064433465999ad76f";
    const SHA1: &str = "0xabc67fdc4e0747289311d4ecdfd3a72b8164387a";
    const SHA256: &str = "0x2664952fb1761dc98378645d366df1c0a4a48d7c30ef5ab03205defb340b16d4";
    const SHA3_256: &str = "0x0b697a73dfb9be8cb587cd34cec35bd4bd776d11c1892676d1b723a4823677b3";
}
