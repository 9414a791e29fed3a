//! Diffie-Hellman groups of DH-HMAC-CHAP: safe primes of RFC 7919, and a key exchange in constant
//! time.

use std::fmt;
use std::sync::OnceLock;
use std::time::Duration;

use crypto_bigint::modular::{BoxedMontyForm, BoxedMontyParams};
use crypto_bigint::{BoxedUint, Limb, NonZero, Odd};
use export::Secret;
use zeroize::Zeroize;

/// A DH group (NVMe Base 2.0 §8.13.5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Group {
    /// NULL: no DH exchange. Identifier 0.
    Null,
    /// Identifier 1.
    Ffdhe2048,
    /// Identifier 2.
    Ffdhe3072,
    /// Identifier 3.
    Ffdhe4096,
    /// Identifier 4.
    Ffdhe6144,
    /// Identifier 5.
    Ffdhe8192,
}

/// Bytes of randomness for one exchange: the longest private exponent.
pub const PRIVATE_KEY_LEN: usize = 56;

impl Group {
    /// All groups, the smallest first.
    pub const ALL: [Self; 6] = [
        Self::Null,
        Self::Ffdhe2048,
        Self::Ffdhe3072,
        Self::Ffdhe4096,
        Self::Ffdhe6144,
        Self::Ffdhe8192,
    ];

    /// Returns the group with that identifier.
    #[must_use]
    pub fn parse(id: u8) -> Option<Self> {
        Self::ALL.get(usize::from(id)).copied()
    }

    /// Returns the identifier: 0 to 5.
    #[must_use]
    pub const fn id(self) -> u8 {
        self as u8
    }

    /// Returns the size of the prime in bits; 0 for [`Group::Null`].
    #[must_use]
    pub const fn bits(self) -> u32 {
        match self {
            Self::Null => 0,
            Self::Ffdhe2048 => 2048,
            Self::Ffdhe3072 => 3072,
            Self::Ffdhe4096 => 4096,
            Self::Ffdhe6144 => 6144,
            Self::Ffdhe8192 => 8192,
        }
    }

    /// Returns the length of a public value and of the shared secret in bytes.
    #[must_use]
    pub const fn size(self) -> usize {
        self.bits() as usize / 8
    }

    /// Bits of a private exponent: RFC 7919 §A recommends 225 to 400, twice the strength of each
    /// group, which suffices with safe primes (§5.2). These are the next multiples of 64. Longer
    /// exponents would cost up to twenty times the calculation time for unauthenticated peers.
    const fn private_bits(self) -> u32 {
        match self {
            Self::Null => 0,
            Self::Ffdhe2048 => 256,
            Self::Ffdhe3072 => 320,
            Self::Ffdhe4096 | Self::Ffdhe6144 => 384,
            Self::Ffdhe8192 => 448,
        }
    }

    /// Returns X of RFC 7919 §A, which makes the prime safe.
    const fn offset(self) -> u64 {
        match self {
            Self::Null => 0,
            Self::Ffdhe2048 => 560_316,
            Self::Ffdhe3072 => 2_625_351,
            Self::Ffdhe4096 => 5_736_041,
            Self::Ffdhe6144 => 15_705_020,
            Self::Ffdhe8192 => 10_965_728,
        }
    }

    /// Returns the prime as RFC 7919 §A defines it: 2^b - 2^(b-64) + (floor(2^(b-130) e) + X) 2^64
    /// - 1. In bytes: eight of FFh, the bracket minus one, eight of FFh.
    fn prime(self) -> Vec<u8> {
        let middle = euler(self.bits()).wrapping_add(BoxedUint::from(self.offset() - 1));
        let bytes = middle.to_be_bytes();
        let mut prime = vec![0xff; self.size()];
        let inner = self.size() - 16;
        if let Some(place) = prime.get_mut(8..8 + inner) {
            place.copy_from_slice(bytes.get(bytes.len() - inner..).unwrap_or_default());
        }
        prime
    }

    /// Returns the Montgomery parameters of the group, calculated once.
    fn params(self) -> Option<&'static BoxedMontyParams> {
        static PARAMS: [OnceLock<Option<BoxedMontyParams>>; 6] = [const { OnceLock::new() }; 6];
        let made = PARAMS.get(usize::from(self.id()))?.get_or_init(|| match self {
            Self::Null => None,
            _ => {
                let prime = BoxedUint::from_be_slice(&self.prime(), self.bits()).ok()?;
                Some(BoxedMontyParams::new_vartime(Odd::new(prime).into_option()?))
            }
        });
        made.as_ref()
    }
}

/// Returns floor(2^(bits-130) e): sums 1/n! with 64 additional bits.
fn euler(bits: u32) -> BoxedUint {
    let mut term = BoxedUint::one_with_precision(bits).wrapping_shl_vartime(bits - 66);
    let mut sum = term.clone();
    for n in 1_u32.. {
        let Some(divisor) = NonZero::new(Limb::from(n)).into_option() else { break };
        term = term.div_rem_limb(divisor).0;
        if term.is_zero().to_bool() {
            break;
        }
        sum = sum.wrapping_add(&term);
    }
    sum.wrapping_shr_vartime(64)
}

/// One side of a DH exchange.
pub struct DhExchange {
    group: Group,
    private: BoxedUint,
    public: Vec<u8>,
}

impl DhExchange {
    /// Starts an exchange with a private exponent from `random`. Returns `None` for
    /// [`Group::Null`].
    ///
    /// Calculates in constant time. Powers of the public value may remain in memory; they do not
    /// disclose the exponent.
    #[must_use]
    pub fn generate(group: Group, random: &[u8; PRIVATE_KEY_LEN]) -> Option<Self> {
        let params = group.params()?;
        let bits = group.private_bits();
        let private = BoxedUint::from_be_slice_truncated(random, bits);
        let two = BoxedUint::one_with_precision(group.bits()).wrapping_shl_vartime(1);
        let public = BoxedMontyForm::new(two, params).pow_bounded_exp(&private, bits);
        Some(Self { group, private, public: public.retrieve().to_be_bytes().into() })
    }

    /// Estimates the calculation time of a whole exchange: two exponentiations.
    #[must_use]
    pub(crate) fn cost(group: Group) -> Duration {
        Duration::from_millis(match group {
            Group::Null => 0,
            Group::Ffdhe2048 => 2,
            Group::Ffdhe3072 => 5,
            Group::Ffdhe4096 => 10,
            Group::Ffdhe6144 => 24,
            Group::Ffdhe8192 => 47,
        })
    }

    /// Returns the public value, as long as the prime.
    #[must_use]
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// Returns the shared secret, as long as the prime. Returns `None` if the peer's public value
    /// has another length, is 0, 1, p-1 (small subgroups), p or above, or equals our own
    /// (reflection).
    #[must_use]
    pub fn shared_secret(&self, other: &[u8]) -> Option<Secret> {
        let params = self.group.params()?;
        if other.len() != self.group.size() || other == self.public {
            return None;
        }
        let value = BoxedUint::from_be_slice(other, self.group.bits()).ok()?;
        let one = BoxedUint::one_with_precision(self.group.bits());
        let last = params.modulus().as_ref().wrapping_sub(&one);
        if value <= one || value >= last {
            return None;
        }
        let power = BoxedMontyForm::new(value, params);
        let mut power = power.pow_bounded_exp(&self.private, self.group.private_bits());
        let mut shared = power.retrieve();
        let secret = Secret::new(shared.to_be_bytes().into());
        shared.zeroize();
        power.zeroize();
        Some(secret)
    }
}

impl Drop for DhExchange {
    fn drop(&mut self) {
        self.private.zeroize();
    }
}

impl fmt::Debug for DhExchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Exchange({:?})", self.group)
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::auth::Hash;

    fn hash(bytes: &[u8]) -> String {
        Hash::Sha256.digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn counted(first: u8) -> [u8; PRIVATE_KEY_LEN] {
        // Only the last bytes are used for the exponent.
        let mut bytes = [0xaa; PRIVATE_KEY_LEN];
        for (at, byte) in (0..32).zip(&mut bytes[PRIVATE_KEY_LEN - 32..]) {
            *byte = first + at;
        }
        bytes
    }

    const GROUPS: [Group; 5] =
        [Group::Ffdhe2048, Group::Ffdhe3072, Group::Ffdhe4096, Group::Ffdhe6144, Group::Ffdhe8192];

    /// SHA-256 of each prime, calculated independently, and the last words as RFC 7919 prints them.
    #[test]
    fn primes_match_rfc_7919() {
        for (group, tail, digest) in [
            (
                Group::Ffdhe2048,
                0x886b_4238_6128_5c97_u64,
                "9cd3b7f336872f46c09428d1bbc19877a4d440512cda8d1c1cf0cd6e33698966",
            ),
            (
                Group::Ffdhe3072,
                0x25e4_1d2b_66c6_2e37,
                "0eaf67db3a839156d5013494a5318a772b5697d270d721f37f092efc69ea5a17",
            ),
            (
                Group::Ffdhe4096,
                0xc68a_007e_5e65_5f6a,
                "4648414224ac881b3d0dc59b466f96d06a558278776807797ecf1f66ff397b3e",
            ),
            (
                Group::Ffdhe6144,
                0xa40e_329c_d0e4_0e65,
                "227ac9066b3ddd9e193670cda2388fa884f65ba0cf98b742d1fe77a6687c79c7",
            ),
            (
                Group::Ffdhe8192,
                0xd68c_8bb7_c5c6_424c,
                "770b14efaf6f049929c523113b3fa99a8d11dab1b18af3609590122075d19833",
            ),
        ] {
            let prime = group.prime();
            assert_eq!(prime.len(), group.size());
            assert_eq!(prime[group.size() - 16..group.size() - 8], tail.to_be_bytes(), "{group:?}");
            assert_eq!(hash(&prime), digest, "{group:?}");
        }
    }

    /// Calculated independently, with the exponents 01 02 … 20h and C8 C9 … E7h.
    #[test]
    fn exchange_matches_a_known_result() {
        let [one, other] = [1, 200].map(|first| {
            let random = counted(first);
            DhExchange::generate(Group::Ffdhe2048, &random).unwrap()
        });
        assert_eq!(
            hash(one.public()),
            "53b37a098c5882b9f56495d787706d354ac8ebc273e680a7047c70228ce24ad3"
        );
        let secret = one.shared_secret(other.public()).unwrap();
        assert_eq!(
            hash(secret.bytes()),
            "d1fb08f8d3dad7be7033b4b6ea54e5b0b78202698bb5688e7658d759f3f5507d"
        );
    }

    #[test]
    fn both_sides_get_the_same_secret_in_every_group() {
        for group in GROUPS {
            let one = DhExchange::generate(group, &[0x5a; PRIVATE_KEY_LEN]).unwrap();
            let other = DhExchange::generate(group, &[0xc3; PRIVATE_KEY_LEN]).unwrap();
            let shared_secret = one.shared_secret(other.public()).unwrap();
            assert_eq!(shared_secret, other.shared_secret(one.public()).unwrap());
            assert_eq!(
                (shared_secret.bytes().len(), one.public().len()),
                (group.size(), group.size())
            );
        }
        assert!(DhExchange::generate(Group::Null, &[1; PRIVATE_KEY_LEN]).is_none());
    }

    /// NVMe Base 2.0 §8.13.5.4: 0, 1, p-1 and values outside the group.
    #[test]
    fn weak_public_values_are_refused() {
        for group in GROUPS {
            let exchange = DhExchange::generate(group, &[0x5a; PRIVATE_KEY_LEN]).unwrap();
            let mut low = vec![0; group.size()];
            assert!(exchange.shared_secret(&low).is_none());
            *low.last_mut().unwrap() = 1;
            assert!(exchange.shared_secret(&low).is_none());
            *low.last_mut().unwrap() = 2;
            assert!(exchange.shared_secret(&low).is_some());
            assert!(exchange.shared_secret(&low[1..]).is_none());
            let mut high = group.prime();
            assert!(exchange.shared_secret(&high).is_none());
            *high.last_mut().unwrap() -= 1;
            assert!(exchange.shared_secret(&high).is_none());
            assert!(exchange.shared_secret(&vec![0xff; group.size()]).is_none());
            assert!(exchange.shared_secret(exchange.public()).is_none());
            assert!(exchange.shared_secret(&[]).is_none());
        }
    }

    #[test]
    fn group_identifiers_round_trip() {
        for group in Group::ALL {
            assert_eq!(Group::parse(group.id()), Some(group));
            assert!(group.private_bits() as usize <= PRIVATE_KEY_LEN * 8);
        }
        assert_eq!(Group::parse(6), None);
    }

    #[test]
    #[ignore = "a measurement"]
    fn measure_exchange() {
        for group in GROUPS {
            let other = DhExchange::generate(group, &[0xc3; PRIVATE_KEY_LEN]).unwrap();
            let start = std::time::Instant::now();
            for _ in 0..10 {
                let one = DhExchange::generate(group, &[0x5a; PRIVATE_KEY_LEN]).unwrap();
                assert!(one.shared_secret(other.public()).is_some());
            }
            println!("{group:?}: {:?}", start.elapsed() / 10);
        }
    }
}
