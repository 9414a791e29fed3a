//! Keys for secured channels that came out of DH-HMAC-CHAP, until the host comes back with them (NVMe Base 2.0
//! §8.13.5.9). It knows no connection.

use std::time::{Duration, Instant};

use export::KeyId;

use crate::auth::psk::Psk;

/// A key is forgotten so long after it was made or last used: its host comes back within seconds, with all its queues,
/// and makes another one when it has lost its connections.
const KEPT: Duration = Duration::from_secs(3600);

/// Keys that are kept at most; the oldest of the host that has the most goes first, so that none drives out the others'.
const KEYS: usize = 256;

/// The generated keys of a target.
#[derive(Debug, Default)]
pub(super) struct Generated(Vec<Entry>);

#[derive(Debug)]
struct Entry {
    psk: Psk,
    /// The key that the host had proven to know.
    key: KeyId,
    until: Instant,
}

impl Generated {
    /// Keeps a key, in place of one of the same identity.
    pub(super) fn keep(&mut self, key: KeyId, psk: Psk, now: Instant) {
        self.0.retain(|entry| entry.until > now && entry.psk.identity != psk.identity);
        if self.0.len() >= KEYS {
            self.drop_one();
        }
        self.0.push(Entry { psk, key, until: now + KEPT });
    }

    fn drop_one(&mut self) {
        let of = |key| self.0.iter().filter(|entry| entry.key == key).count();
        let all = self.0.iter().enumerate().rev();
        if let Some((at, _)) = all.max_by_key(|(_, entry)| of(entry.key)) {
            self.0.remove(at);
        }
    }

    /// A host came with a key.
    pub(super) fn used(&mut self, identity: &str, now: Instant) {
        if let Some(entry) = self.0.iter_mut().find(|entry| entry.psk.identity == identity) {
            entry.until = now + KEPT;
        }
    }

    /// The keys that a host may come with.
    pub(super) fn all(&self, now: Instant) -> Vec<(KeyId, Psk)> {
        let live = self.0.iter().filter(|entry| entry.until > now);
        live.map(|entry| (entry.key, entry.psk.clone())).collect()
    }
}

#[cfg(test)]
mod test {
    use export::Secret;

    use super::*;
    use crate::auth::Hash;

    fn psk(identity: &str) -> Psk {
        Psk { identity: identity.to_owned(), secret: Secret::new(vec![1; 32]), hash: Hash::Sha256 }
    }

    #[test]
    fn keys_are_few_and_not_for_ever() {
        let (mut kept, now) = (Generated::default(), Instant::now());
        for number in 0..KEYS + 3 {
            kept.keep(KeyId::new(1), psk(&number.to_string()), now);
        }
        assert_eq!(kept.all(now).len(), KEYS);
        assert_eq!(kept.all(now)[0].1.identity, "3");
        kept.keep(KeyId::new(2), psk("7"), now);
        assert_eq!(kept.all(now).len(), KEYS);
        // A busy host keeps out none but its own.
        kept.keep(KeyId::new(1), psk("more"), now);
        kept.keep(KeyId::new(1), psk("and more"), now);
        let all = kept.all(now);
        assert_eq!((all.len(), all[0].1.identity.as_str()), (KEYS, "5"));
        assert!(all.iter().any(|(key, psk)| (key.number(), psk.identity.as_str()) == (2, "7")));
        kept.used("9", now + KEPT / 2);
        let left = kept.all(now + KEPT);
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].1.identity, "9");
    }
}
