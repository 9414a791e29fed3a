//! What both ends make of the exchange: proofs that they agree, the key of what follows, and the secret. It knows no
//! order of messages and no server.

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha512;
use zeroize::Zeroizing;

use export::Secret;

use crate::cpace::{self, Half, NoElement, Said, lv_cat};
use crate::{Code, PROTOCOL};

/// Bytes of a proof.
pub(crate) const TAG: usize = 64;

/// A proof: HMAC-SHA-512.
pub(crate) type Tag = [u8; TAG];

type Key = Zeroizing<[u8; 64]>;

/// The value that only this TLS channel has.
pub(crate) type Binding = [u8; 32];

/// An end's first step: its half of the exchange under `code`, in the channel that `binding` names.
pub(crate) fn begin(code: &Code, binding: &Binding, random: Zeroizing<[u8; 32]>) -> Half {
    let ci = lv_cat(&[PROTOCOL, b"host", b"target", code.kind().name().as_bytes()]);
    Half::new(&cpace::generator(&code.password(), &ci, binding), random)
}

/// What both ends have once each has the other's share; whether it is the same shows in the proofs.
pub(crate) struct Agreement {
    transcript: Vec<u8>,
    host: Key,
    target: Key,
    after: Key,
    secret: Secret,
}

impl Agreement {
    /// With the end's own `half` and the share that the other sent, which is `host`'s or `target`'s.
    pub(crate) fn of(
        half: Half,
        theirs: &[u8],
        binding: &Binding,
        host: Said<'_>,
        target: Said<'_>,
    ) -> Result<Self, NoElement> {
        let point = half.meet(theirs)?;
        let transcript = cpace::transcript(host, target);
        let isk = cpace::isk(binding, &point, &transcript);
        let root = Hkdf::<Sha512>::new(Some(binding), &*isk);
        Ok(Self {
            transcript,
            host: key(&root, b"host confirms"),
            target: key(&root, b"target confirms"),
            after: key(&root, b"target goes on"),
            secret: Secret::new(key(&root, b"secret")[..32].to_vec()),
        })
    }

    /// The host's proof.
    pub(crate) fn host_tag(&self) -> Tag {
        self.of_host().finalize().into_bytes().into()
    }

    /// Whether that is the host's proof.
    pub(crate) fn is_host_tag(&self, tag: &Tag) -> bool {
        self.of_host().verify_slice(tag).is_ok()
    }

    /// The target's proof, and that this is its name.
    pub(crate) fn target_tag(&self, name: &str) -> Tag {
        self.of_target(name).finalize().into_bytes().into()
    }

    /// Whether that is the target's proof with that name.
    pub(crate) fn is_target_tag(&self, tag: &Tag, name: &str) -> bool {
        self.of_target(name).verify_slice(tag).is_ok()
    }

    /// What the target's further messages are sealed with, and the secret.
    pub(crate) fn into_parts(self) -> (Seal, Secret) {
        (Seal { key: self.after, count: 0 }, self.secret)
    }

    fn of_host(&self) -> Hmac<Sha512> {
        mac(&self.host).chain_update(&self.transcript)
    }

    fn of_target(&self, name: &str) -> Hmac<Sha512> {
        mac(&self.target).chain_update(&self.transcript).chain_update(lv_cat(&[name.as_bytes()]))
    }
}

/// Proves, message by message, that what the target goes on to say is said by it, in that order.
pub(crate) struct Seal {
    key: Key,
    count: u64,
}

impl Seal {
    /// The proof of the next message.
    pub(crate) fn tag(&mut self, kind: u8, body: &[u8]) -> Tag {
        self.next(kind, body).finalize().into_bytes().into()
    }

    /// Whether that is the proof of the next message.
    pub(crate) fn is_tag(&mut self, tag: &Tag, kind: u8, body: &[u8]) -> bool {
        self.next(kind, body).verify_slice(tag).is_ok()
    }

    fn next(&mut self, kind: u8, body: &[u8]) -> Hmac<Sha512> {
        let count = self.count.to_le_bytes();
        self.count = self.count.saturating_add(1);
        mac(&self.key).chain_update(count).chain_update([kind]).chain_update(body)
    }
}

fn key(root: &Hkdf<Sha512>, label: &[u8]) -> Key {
    let mut key = Key::new([0; 64]);
    // Fails only for more than 255 hashes' worth.
    let full = root.expand_multi_info(&[PROTOCOL, b" ", label], &mut *key);
    debug_assert!(full.is_ok());
    key
}

#[allow(clippy::expect_used, reason = "HMAC takes a key of any length (RFC 2104 §2)")]
fn mac(key: &Key) -> Hmac<Sha512> {
    Hmac::new_from_slice(&**key).expect("a key of any length")
}

#[cfg(test)]
mod test {
    use super::*;

    const BINDING: Binding = [5; 32];

    fn code(number: u32) -> Code {
        Code::parse(&format!("{number:08}")).unwrap()
    }

    fn half(number: u32, binding: &Binding, random: u8) -> Half {
        begin(&code(number), binding, Zeroizing::new([random; 32]))
    }

    fn both(
        host: (u32, Binding),
        target: (u32, Binding),
        beside: [&[u8]; 2],
    ) -> (Agreement, Agreement) {
        let (a, b) = (half(host.0, &host.1, 1), half(target.0, &target.1, 2));
        let (share_a, share_b) = (a.share, b.share);
        let said_b = Said { share: &share_b, beside: b"target" };
        let said = |beside| Said { share: &share_a, beside };
        let host = Agreement::of(a, &share_b, &host.1, said(beside[0]), said_b);
        let target = Agreement::of(b, &share_a, &target.1, said(beside[1]), said_b);
        (host.ok().unwrap(), target.ok().unwrap())
    }

    #[test]
    fn both_agree_only_on_the_same_code_channel_and_words() {
        let (right, other) = ((12, BINDING), (12, [6; 32]));
        for (host, target, beside, agrees) in [
            (right, right, [b"host", b"host"], true),
            (right, (13, BINDING), [b"host", b"host"], false),
            (right, other, [b"host", b"host"], false),
            (right, right, [b"host", b"hosT"], false),
        ] {
            let (a, b) = both(host, target, beside.map(|it| &it[..]));
            assert_eq!(b.is_host_tag(&a.host_tag()), agrees);
            assert_eq!(a.is_target_tag(&b.target_tag("laptop"), "laptop"), agrees);
            assert!(!a.is_target_tag(&b.target_tag("laptop"), "desktop"));
            assert!(!a.is_target_tag(&a.host_tag(), "laptop") && !b.is_host_tag(&a.target_tag("")));
            assert_eq!(a.secret == b.secret, agrees);
        }
    }

    #[test]
    fn what_is_sealed_comes_once_and_in_order() {
        let (a, b) = both((1, BINDING), (1, BINDING), [b"", b""]);
        let (mut from, mut to) = (b.into_parts().0, a.into_parts().0);
        let (one, two) = (from.tag(5, b"one"), from.tag(6, b"two"));
        assert!(to.is_tag(&one, 5, b"one"));
        assert!(!to.is_tag(&one, 5, b"one"));
        assert!(!to.is_tag(&two, 6, b"two"), "its turn is over");
        assert!(from.tag(5, b"one") != one && from.tag(6, b"one") != from.tag(5, b"one"));
    }

    /// X10: who has all that went over the wire and tries each code needs the point that only the ends can compute:
    /// none of the points that he can compute confirms any code, not even the right one.
    #[test]
    fn x10_no_candidate_is_confirmed_by_what_a_listener_has() {
        let (a, b) = (half(500, &BINDING, 1), half(500, &BINDING, 2));
        let (share_a, share_b) = (a.share, b.share);
        let said_a = Said { share: &share_a, beside: b"host" };
        let said_b = Said { share: &share_b, beside: b"target" };
        let tag = Agreement::of(a, &share_b, &BINDING, said_a, said_b).ok().unwrap().host_tag();
        for candidate in 400..600 {
            for random in [[0; 32], [7; 32]] {
                let small = || begin(&code(candidate), &BINDING, Zeroizing::new(one(random)));
                for theirs in [small().share, share_a, share_b] {
                    let guess = Agreement::of(small(), &theirs, &BINDING, said_a, said_b);
                    assert!(guess.is_ok_and(|guess| !guess.is_host_tag(&tag)), "{candidate}");
                }
            }
        }
    }

    /// A scalar that is not zero.
    fn one(mut random: [u8; 32]) -> [u8; 32] {
        random[0] |= 1;
        random
    }
}
