//! Key agreement: key confirmation tags, the key that authenticates later messages, and the shared
//! secret, all derived from the CPace exchange.

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha512;
use zeroize::Zeroizing;

use export::Secret;

use crate::cpace::{self, Contribution, Ephemeral, InvalidElement, lv_cat};
use crate::{Code, PROTOCOL};

/// Length of a confirmation tag in bytes.
pub(crate) const TAG_LEN: usize = 64;

/// A key confirmation tag: HMAC-SHA-512.
pub(crate) type Tag = [u8; TAG_LEN];

type Key = Zeroizing<[u8; 64]>;

/// Exporter value that is unique to the TLS channel.
pub(crate) type Binding = [u8; 32];

/// Creates this side's ephemeral share from `code`, bound to the TLS channel by `binding`.
pub(crate) fn begin(code: &Code, binding: &Binding, random: Zeroizing<[u8; 32]>) -> Ephemeral {
    let ci = lv_cat(&[PROTOCOL, b"host", b"target", code.kind().name().as_bytes()]);
    Ephemeral::new(&cpace::generator(&code.password(), &ci, binding), random)
}

/// The derived keys. Whether both sides derived the same ones is shown by the confirmation tags.
pub(crate) struct Agreement {
    transcript: Vec<u8>,
    host: Key,
    target: Key,
    messages: Key,
    secret: Secret,
}

impl Agreement {
    /// Derives the keys from this side's `ephemeral` secret and the share received from the peer.
    /// `host` and `target` are the transcript.
    pub(crate) fn derive(
        ephemeral: Ephemeral,
        peer_share: &[u8],
        binding: &Binding,
        host: Contribution<'_>,
        target: Contribution<'_>,
    ) -> Result<Self, InvalidElement> {
        let point = ephemeral.diffie_hellman(peer_share)?;
        let transcript = cpace::transcript(host, target);
        let isk = cpace::isk(binding, &point, &transcript);
        let root = Hkdf::<Sha512>::new(Some(binding), &*isk);
        Ok(Self {
            transcript,
            host: key(&root, b"host confirms"),
            target: key(&root, b"target confirms"),
            messages: key(&root, b"target goes on"),
            secret: Secret::new(key(&root, b"secret")[..32].to_vec()),
        })
    }

    /// Returns the host's confirmation tag.
    pub(crate) fn host_tag(&self) -> Tag {
        self.host_mac().finalize().into_bytes().into()
    }

    /// Returns whether `tag` is the host's confirmation tag.
    pub(crate) fn is_host_tag(&self, tag: &Tag) -> bool {
        self.host_mac().verify_slice(tag).is_ok()
    }

    /// Returns the target's confirmation tag, which covers its `name`.
    pub(crate) fn target_tag(&self, name: &str) -> Tag {
        self.target_mac(name).finalize().into_bytes().into()
    }

    /// Returns whether `tag` is the target's confirmation tag for `name`.
    pub(crate) fn is_target_tag(&self, tag: &Tag, name: &str) -> bool {
        self.target_mac(name).verify_slice(tag).is_ok()
    }

    /// Returns the authenticator of the target's later messages, and the shared secret.
    pub(crate) fn into_parts(self) -> (Authenticator, Secret) {
        (Authenticator { key: self.messages, count: 0 }, self.secret)
    }

    fn host_mac(&self) -> Hmac<Sha512> {
        mac(&self.host).chain_update(&self.transcript)
    }

    fn target_mac(&self, name: &str) -> Hmac<Sha512> {
        mac(&self.target).chain_update(&self.transcript).chain_update(lv_cat(&[name.as_bytes()]))
    }
}

/// Authenticates the target's messages after key confirmation, including their order.
pub(crate) struct Authenticator {
    key: Key,
    count: u64,
}

impl Authenticator {
    /// Returns the tag of the next message.
    pub(crate) fn tag(&mut self, message_type: u8, body: &[u8]) -> Tag {
        self.next(message_type, body).finalize().into_bytes().into()
    }

    /// Returns whether `tag` authenticates the next message.
    pub(crate) fn verify(&mut self, tag: &Tag, message_type: u8, body: &[u8]) -> bool {
        self.next(message_type, body).verify_slice(tag).is_ok()
    }

    fn next(&mut self, message_type: u8, body: &[u8]) -> Hmac<Sha512> {
        let count = self.count.to_le_bytes();
        self.count = self.count.saturating_add(1);
        mac(&self.key).chain_update(count).chain_update([message_type]).chain_update(body)
    }
}

fn key(root: &Hkdf<Sha512>, label: &[u8]) -> Key {
    let mut key = Key::new([0; 64]);
    // Fails only for an output of more than 255 hash lengths.
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

    fn ephemeral(number: u32, binding: &Binding, random: u8) -> Ephemeral {
        begin(&code(number), binding, Zeroizing::new([random; 32]))
    }

    fn both(
        host: (u32, Binding),
        target: (u32, Binding),
        associated_data: [&[u8]; 2],
    ) -> (Agreement, Agreement) {
        let (a, b) = (ephemeral(host.0, &host.1, 1), ephemeral(target.0, &target.1, 2));
        let (share_a, share_b) = (a.share, b.share);
        let said_b = Contribution { share: &share_b, associated_data: b"target" };
        let said = |associated_data| Contribution { share: &share_a, associated_data };
        let host = Agreement::derive(a, &share_b, &host.1, said(associated_data[0]), said_b);
        let target = Agreement::derive(b, &share_a, &target.1, said(associated_data[1]), said_b);
        (host.ok().unwrap(), target.ok().unwrap())
    }

    #[test]
    fn keys_match_only_for_same_code_channel_and_data() {
        let (right, other) = ((12, BINDING), (12, [6; 32]));
        for (host, target, associated_data, agrees) in [
            (right, right, [b"host", b"host"], true),
            (right, (13, BINDING), [b"host", b"host"], false),
            (right, other, [b"host", b"host"], false),
            (right, right, [b"host", b"hosT"], false),
        ] {
            let (a, b) = both(host, target, associated_data.map(|it| &it[..]));
            assert_eq!(b.is_host_tag(&a.host_tag()), agrees);
            assert_eq!(a.is_target_tag(&b.target_tag("laptop"), "laptop"), agrees);
            assert!(!a.is_target_tag(&b.target_tag("laptop"), "desktop"));
            assert!(!a.is_target_tag(&a.host_tag(), "laptop") && !b.is_host_tag(&a.target_tag("")));
            assert_eq!(a.secret == b.secret, agrees);
        }
    }

    #[test]
    fn authenticated_messages_are_accepted_once_in_order() {
        let (a, b) = both((1, BINDING), (1, BINDING), [b"", b""]);
        let (mut from, mut to) = (b.into_parts().0, a.into_parts().0);
        let (one, two) = (from.tag(5, b"one"), from.tag(6, b"two"));
        assert!(to.verify(&one, 5, b"one"));
        assert!(!to.verify(&one, 5, b"one"));
        assert!(!to.verify(&two, 6, b"two"), "out of order");
        assert!(from.tag(5, b"one") != one && from.tag(6, b"one") != from.tag(5, b"one"));
    }

    /// X10: an eavesdropper cannot confirm any candidate code, because that needs the
    /// Diffie-Hellman point that only the two sides can compute.
    #[test]
    fn x10_eavesdropper_cannot_confirm_any_code() {
        let (a, b) = (ephemeral(500, &BINDING, 1), ephemeral(500, &BINDING, 2));
        let (share_a, share_b) = (a.share, b.share);
        let said_a = Contribution { share: &share_a, associated_data: b"host" };
        let said_b = Contribution { share: &share_b, associated_data: b"target" };
        let tag = Agreement::derive(a, &share_b, &BINDING, said_a, said_b).ok().unwrap().host_tag();
        for candidate in 400..600 {
            for random in [[0; 32], [7; 32]] {
                let small = || begin(&code(candidate), &BINDING, Zeroizing::new(one(random)));
                for peer_share in [small().share, share_a, share_b] {
                    let guess = Agreement::derive(small(), &peer_share, &BINDING, said_a, said_b);
                    assert!(guess.is_ok_and(|guess| !guess.is_host_tag(&tag)), "{candidate}");
                }
            }
        }
    }

    /// Returns a non-zero scalar.
    fn one(mut random: [u8; 32]) -> [u8; 32] {
        random[0] |= 1;
        random
    }
}
