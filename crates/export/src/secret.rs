//! Bytes that nobody else may know. It knows nothing of what they open.

use std::fmt;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// A secret: wiped from memory when it is dropped, never shown, compared without telling where it differs.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes `bytes` over; they are wiped with the secret.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes. Do not copy them to where they are not wiped.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl PartialEq for Secret {
    /// Takes the same time wherever two secrets of one length differ.
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({} bytes)", self.0.len())
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_secret_is_never_shown() {
        let secret = Secret::new(b"open sesame".to_vec());
        assert_eq!(format!("{secret:?}"), "Secret(11 bytes)");
        assert_eq!(secret, Secret::new(b"open sesame".to_vec()));
        assert_ne!(secret, Secret::new(b"open sesamE".to_vec()));
        assert_ne!(secret, Secret::new(Vec::new()));
    }
}
