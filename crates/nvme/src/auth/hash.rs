//! Hash functions of NVMe authentication, with HMAC and HKDF. Results are zeroized on drop.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256, Sha384, Sha512};
use zeroize::Zeroizing;

/// A hash function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hash {
    /// SHA-256, identifier 1.
    Sha256,
    /// SHA-384, identifier 2.
    Sha384,
    /// SHA-512, identifier 3.
    Sha512,
}

impl Hash {
    /// All hash functions, the shortest first.
    pub const ALL: [Self; 3] = [Self::Sha256, Self::Sha384, Self::Sha512];

    /// Returns the function with that identifier.
    #[must_use]
    pub fn parse(id: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|hash| hash.id() == id)
    }

    /// Returns the identifier: 1, 2 or 3.
    #[must_use]
    pub const fn id(self) -> u8 {
        match self {
            Self::Sha256 => 1,
            Self::Sha384 => 2,
            Self::Sha512 => 3,
        }
    }

    /// Returns the output length in bytes: 32, 48 or 64.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// Returns the hash of `bytes`.
    pub(crate) fn digest(self, bytes: &[u8]) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(match self {
            Self::Sha256 => Sha256::digest(bytes).to_vec(),
            Self::Sha384 => Sha384::digest(bytes).to_vec(),
            Self::Sha512 => Sha512::digest(bytes).to_vec(),
        })
    }

    /// Returns the HMAC of the concatenated `parts`.
    pub(crate) fn mac(self, key: &[u8], parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
        match self {
            Self::Sha256 => mac::<Hmac<Sha256>>(key, parts),
            Self::Sha384 => mac::<Hmac<Sha384>>(key, parts),
            Self::Sha512 => mac::<Hmac<Sha512>>(key, parts),
        }
    }

    /// Returns one output block of HKDF (RFC 5869) with no salt and the concatenated `info`.
    pub(crate) fn hkdf(self, secret: &[u8], info: &[&[u8]]) -> Zeroizing<Vec<u8>> {
        let salt = [0; 64];
        let extracted = self.mac(salt.get(..self.size()).unwrap_or(&salt), &[secret]);
        let parts: Vec<&[u8]> = info.iter().copied().chain([[1].as_slice()]).collect();
        self.mac(&extracted, &parts)
    }
}

fn mac<M: Mac + KeyInit>(key: &[u8], parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
    // HMAC takes keys of any length.
    let Ok(mut mac) = <M as KeyInit>::new_from_slice(key) else { return Zeroizing::default() };
    for part in parts {
        mac.update(part);
    }
    Zeroizing::new(mac.finalize().into_bytes().to_vec())
}

#[cfg(test)]
mod test {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn hash_identifiers_round_trip() {
        for hash in Hash::ALL {
            assert_eq!(Hash::parse(hash.id()), Some(hash));
            assert_eq!(hash.digest(b"").len(), hash.size());
            assert_eq!(hash.mac(b"k", &[b"m"]).len(), hash.size());
        }
        assert_eq!((Hash::parse(0), Hash::parse(4)), (None, None));
    }

    /// RFC 4231 §4.3, test case 2.
    #[test]
    fn hmac_matches_rfc_4231() {
        let mac = |hash: Hash| hex(&hash.mac(b"Jefe", &[b"what do ya want ", b"for nothing?"]));
        assert_eq!(
            mac(Hash::Sha256),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        assert!(mac(Hash::Sha384).starts_with("af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47"));
        assert!(mac(Hash::Sha512).starts_with("164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd6"));
    }

    /// RFC 5869 §A.3: no salt, no info, the first 32 bytes.
    #[test]
    fn hkdf_matches_rfc_5869() {
        assert_eq!(
            hex(&Hash::Sha256.hkdf(&[0x0b; 22], &[])),
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"
        );
    }
}
