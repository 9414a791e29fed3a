//! DH-HMAC-CHAP: secrets, and the calculation of responses (NVMe Base 2.0 §8.13.5). `controller`
//! and `host` hold the message exchange.

use std::fmt;

use export::Secret;
use rustix::io::Errno;
use rustix::rand::GetRandomFlags;
use zeroize::Zeroizing;

use super::hash::Hash;
use super::interchange::{self, KeyError};
use crate::wire::auth::sc_c;

const NAME: &str = "DHHC-1";

/// A DH-HMAC-CHAP secret: `DHHC-1:HH:…:`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Hash that transforms the secret with the NQN; `None` if it is used untransformed.
    pub hash: Option<Hash>,
    /// The secret: 32, 48 or 64 bytes.
    pub key: Secret,
}

impl Key {
    /// Parses the secret representation. White space around it is ignored.
    ///
    /// # Errors
    /// Fails if the text is malformed, or if hash, length or checksum is invalid.
    pub fn parse(text: &[u8]) -> Result<Self, KeyError> {
        let (hash, key) = interchange::parse(NAME, text)?;
        match (hash, Hash::parse(hash)) {
            (0, hash) | (_, hash @ Some(_)) => Ok(Self { hash, key }),
            (other, None) => Err(KeyError::Hash(other)),
        }
    }

    /// Returns the secret representation.
    #[must_use]
    pub fn emit(&self) -> Secret {
        interchange::emit(NAME, self.hash.map_or(0, Hash::id), self.key.bytes())
    }

    /// Creates a secret from `random`. Uses as many bytes as the hash has, or 32 without a hash.
    #[must_use]
    pub fn generate(hash: Option<Hash>, random: &[u8; 64]) -> Self {
        let key = random.get(..hash.map_or(32, Hash::size)).unwrap_or(random);
        Self { hash, key: Secret::new(key.to_vec()) }
    }

    /// Returns the secret transformed with the NQN of its owner (NVMe Base 2.0 §8.13.5.7).
    fn transformed(&self, nqn: &str) -> Zeroizing<Vec<u8>> {
        match self.hash {
            None => Zeroizing::new(self.key.bytes().to_vec()),
            Some(hash) => hash.mac(self.key.bytes(), &[nqn.as_bytes(), b"NVMe-over-Fabrics"]),
        }
    }
}

/// The end that calculates a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Host,
    Controller,
}

/// NQNs of both ends; every response covers them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Names {
    pub(crate) host: String,
    pub(crate) subsystem: String,
}

/// Inputs of a response.
pub(super) struct ResponseInput<'a> {
    pub(super) hash: Hash,
    pub(super) t_id: u16,
    pub(super) sc_c: u8,
    pub(super) sequence: u32,
    pub(super) challenge: &'a [u8],
    /// DH shared secret, unless the NULL group is used.
    pub(super) shared_secret: Option<&'a Secret>,
}

impl ResponseInput<'_> {
    /// Calculates the response of `role` with its secret (NVMe Base 2.0 §8.13.5.4, §8.13.5.5).
    pub(super) fn response(
        &self,
        key: &Key,
        names: &Names,
        role_label: Role,
    ) -> Zeroizing<Vec<u8>> {
        let Names { host, subsystem } = names;
        let (role_label, own, other) = match role_label {
            Role::Host => ("HostHost", host, subsystem),
            Role::Controller => ("Controller", subsystem, host),
        };
        self.hash.mac(
            &key.transformed(own),
            &[
                &self.augmented(),
                &self.sequence.to_le_bytes(),
                &self.t_id.to_le_bytes(),
                &[self.sc_c],
                role_label.as_bytes(),
                own.as_bytes(),
                &[0],
                other.as_bytes(),
            ],
        )
    }

    /// Returns the inputs with SC_C zero. Some Linux versions calculate the response so, although
    /// they requested secure channel concatenation.
    pub(super) fn without_sc_c(&self) -> ResponseInput<'_> {
        ResponseInput { sc_c: sc_c::NONE, ..*self }
    }

    /// Returns the challenge augmented with the DH shared secret (Ca, NVMe Base 2.0 §8.13.5.4).
    fn augmented(&self) -> Zeroizing<Vec<u8>> {
        match self.shared_secret {
            None => Zeroizing::new(self.challenge.to_vec()),
            Some(shared_secret) => {
                self.hash.mac(&self.hash.digest(shared_secret.bytes()), &[self.challenge])
            }
        }
    }
}

/// Returns the generated PSK for secure channel concatenation: HMAC of both challenges with the DH
/// shared secret (NVMe Base 2.0 §8.13.5.9).
pub(super) fn generated_psk(hash: Hash, shared_secret: &Secret, c1: &[u8], c2: &[u8]) -> Secret {
    Secret::new(hash.mac(shared_secret.bytes(), &[c1, c2]).to_vec())
}

/// Source of random bytes. Fills the slice; returns `false` on failure.
pub type RandomSource = fn(&mut [u8]) -> bool;

/// Fills `bytes` from getrandom(2). Needs no device file, unlike `/dev/urandom`. Returns `false` on
/// failure.
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

/// Failure of a [`RandomSource`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RandomError;

impl fmt::Display for RandomError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cannot get random bytes from the system")
    }
}

/// Returns `N` random bytes.
pub(super) fn random_bytes<const N: usize>(
    random: RandomSource,
) -> Result<Zeroizing<[u8; N]>, RandomError> {
    let mut bytes = Zeroizing::new([0; N]);
    if random(bytes.as_mut()) { Ok(bytes) } else { Err(RandomError) }
}

#[cfg(test)]
mod test {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn names() -> Names {
        Names { host: "nqn.h".to_owned(), subsystem: "nqn.s".to_owned() }
    }

    fn key(hash: Option<Hash>, len: u8) -> Key {
        Key { hash, key: Secret::new((0..len).collect()) }
    }

    const TEXT: &str = "DHHC-1:01:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:";
    const LONG: &str = "DHHC-1:03:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0+P4zODhA=:";

    #[test]
    fn secret_representation_round_trip() {
        assert_eq!(Key::parse(TEXT.as_bytes()), Ok(key(Some(Hash::Sha256), 32)));
        assert_eq!(Key::parse(LONG.as_bytes()), Ok(key(Some(Hash::Sha512), 64)));
        assert_eq!(key(Some(Hash::Sha256), 32).emit().bytes(), TEXT.as_bytes());
        for hash in [None, Some(Hash::Sha256), Some(Hash::Sha384), Some(Hash::Sha512)] {
            let made = Key::generate(hash, &[9; 64]);
            assert_eq!(made.key.bytes().len(), hash.map_or(32, Hash::size));
            assert_eq!(Key::parse(made.emit().bytes()), Ok(made));
        }
    }

    /// X14: a secret that is too short, an unknown hash, a wrong checksum.
    #[test]
    fn x14_weak_or_damaged_keys_are_refused() {
        let reason = |text: &str| Key::parse(text.as_bytes()).unwrap_err();
        assert_eq!(reason(&TEXT.replace(":01:", ":04:")), KeyError::Hash(4));
        assert_eq!(reason(&TEXT.replace("AAEC", "AAED")), KeyError::Checksum);
        assert_eq!(reason("NVMeTLSkey-1:01:AAAA:"), KeyError::Form("DHHC-1"));
        let short = interchange::emit(NAME, 1, &[1; 16]);
        assert_eq!(Key::parse(short.bytes()), Err(KeyError::Length(16)));
    }

    /// Computed by an independent implementation.
    #[test]
    fn known_responses() {
        let shared_secret = Secret::new(vec![0xdd; 256]);
        let input = |hash, t_id, sc_c, sequence, challenge, shared_secret| ResponseInput {
            hash,
            t_id,
            sc_c,
            sequence,
            challenge,
            shared_secret,
        };
        let plain = input(Hash::Sha256, 0x5566, 0, 0x1122_3344, &[0xc1; 32], None);
        assert_eq!(
            hex(&plain.response(&key(None, 32), &names(), Role::Host)),
            "a3945194d33b52c368eb4ab5aa7a520542306b346cf0233b018475535cd4c5eb"
        );
        let augmented = input(Hash::Sha384, 1, 2, 7, &[0xc1; 48], Some(&shared_secret));
        assert_eq!(
            hex(&augmented.response(&key(Some(Hash::Sha256), 32), &names(), Role::Host)),
            "e2b5ae9a64d930ca1fd5fb18f842e02a088fb5ea5886b3cb5720fc938ea62d7cff2dbca657546acd8a50cd9e29b0933b"
        );
        let controller = input(Hash::Sha512, 1, 0, 9, &[0xc2; 64], Some(&shared_secret));
        assert_eq!(
            hex(&controller.response(&key(Some(Hash::Sha512), 64), &names(), Role::Controller)),
            "282663862294e99eb41b96116a9d8306c2aef77a70574bcacdc3107a0c9e67ffb701371c5d12e0564cc6832f828b11df6c5e9205b47c1ae5daa15150f21b6b2a"
        );
        let psk = generated_psk(Hash::Sha256, &shared_secret, &[0xc1; 32], &[0xc2; 32]);
        assert_eq!(
            hex(psk.bytes()),
            "b6042b1206d65cec7ae0972d3139063063b7336cadae4c8ee17f88e49f581349"
        );
    }

    /// Set for the child processes of the test, which print random values and exit.
    const DRAWS: &str = "STORAGETM_TEST_DRAWS";

    /// X12: challenges do not repeat, neither in a process nor across restarts. Fails without a
    /// random source.
    #[test]
    fn x12_random_bytes_do_not_repeat_after_restarts() {
        if std::env::var_os(DRAWS).is_some() {
            let random =
                (0..1000).map(|_| hex(&random_bytes::<32>(system_random).unwrap()[..8]) + "\n");
            print!("\n{}", random.collect::<String>());
            return;
        }
        let mut seen = std::collections::HashSet::new();
        for _ in 0..100 {
            let mut this = std::process::Command::new(std::env::current_exe().unwrap());
            let name = "auth::chap::test::x12_random_bytes_do_not_repeat_after_restarts";
            let output =
                this.args(["--exact", name, "--nocapture"]).env(DRAWS, "1").output().unwrap();
            let printed = String::from_utf8(output.stdout).unwrap();
            let is_drawn =
                |line: &&str| line.len() == 16 && line.bytes().all(|byte| byte.is_ascii_hexdigit());
            for line in printed.lines().filter(is_drawn) {
                assert!(seen.insert(line.to_owned()), "{line} comes twice");
            }
        }
        assert_eq!(seen.len(), 100_000);
        assert_eq!(random_bytes::<32>(|_| false).unwrap_err(), RandomError);
    }
}
