//! CPace (draft-irtf-cfrg-cpace) over ristretto255 with SHA-512, with initiator and responder
//! roles: derives a strong key from a short password without exposing it to offline search.

use curve25519_dalek::ristretto::{CompressedRistretto, RistrettoPoint};
use curve25519_dalek::scalar::Scalar;
use curve25519_dalek::traits::IsIdentity;
use sha2::{Digest, Sha512};
use zeroize::{Zeroize, Zeroizing};

/// Domain separation identifiers of the group and of the key (G_Ristretto255.DSI in the draft).
const DSI: &[u8] = b"CPaceRistretto255";
const DSI_ISK: &[u8] = b"CPaceRistretto255_ISK";

/// Block size of SHA-512 in bytes.
const BLOCK_LEN: usize = 128;

/// Length of a share in bytes.
pub(crate) const SHARE_LEN: usize = 32;

/// The session key: ISK in the draft.
pub(crate) type Isk = Zeroizing<[u8; 64]>;

/// The received share is not a group element, or is the identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InvalidElement;

/// Appends `part` with its LEB128 length as prefix: `prepend_len` in the draft.
pub(crate) fn push(out: &mut Vec<u8>, part: &[u8]) {
    let mut len = part.len();
    while len >= 0x80 {
        out.push(0x80 | u8::try_from(len & 0x7f).unwrap_or_default());
        len >>= 7;
    }
    out.push(u8::try_from(len).unwrap_or_default());
    out.extend_from_slice(part);
}

/// Concatenates the parts, each with its length as prefix: `lv_cat` in the draft.
pub(crate) fn lv_cat(parts: &[&[u8]]) -> Vec<u8> {
    // Allocated once, so that reallocation leaves no copies of secrets.
    let mut out = Vec::with_capacity(parts.iter().map(|part| part.len() + 10).sum());
    parts.iter().for_each(|part| push(&mut out, part));
    out
}

/// Returns the string that is hashed to the generator. The password is padded to a hash block of
/// its own, so that the hashing time does not depend on it.
fn generator_string(prs: &[u8], ci: &[u8], sid: &[u8]) -> Zeroizing<Vec<u8>> {
    let used = 1 + Zeroizing::new(lv_cat(&[prs])).len() + lv_cat(&[DSI]).len();
    let pad = vec![0; BLOCK_LEN.saturating_sub(used)];
    Zeroizing::new(lv_cat(&[DSI, prs, &pad, ci, sid]))
}

/// Returns the generator for a password and session: `calculate_generator` in the draft.
pub(crate) fn generator(prs: &[u8], ci: &[u8], sid: &[u8]) -> Zeroizing<RistrettoPoint> {
    let hash = Zeroizing::new(<[u8; 64]>::from(Sha512::digest(generator_string(prs, ci, sid))));
    Zeroizing::new(RistrettoPoint::from_uniform_bytes(&hash))
}

/// The ephemeral secret of one side. Consumed by the exchange.
pub(crate) struct Ephemeral {
    scalar: Zeroizing<Scalar>,
    /// The public share.
    pub(crate) share: [u8; SHARE_LEN],
}

impl Ephemeral {
    /// Creates an ephemeral secret from 32 random bytes, which must not be used for anything else.
    pub(crate) fn new(generator: &RistrettoPoint, mut random: Zeroizing<[u8; 32]>) -> Self {
        // `sample_scalar` in the draft: 252 bits, less than the group order.
        random[31] &= 0x0f;
        let scalar = Zeroizing::new(Scalar::from_bytes_mod_order(*random));
        let share = (generator * *scalar).compress().to_bytes();
        Self { scalar, share }
    }

    /// Computes the shared point from the peer's share: `scalar_mult_vfy` in the draft.
    pub(crate) fn diffie_hellman(
        self,
        peer_share: &[u8],
    ) -> Result<Zeroizing<[u8; 32]>, InvalidElement> {
        let encoded = CompressedRistretto::from_slice(peer_share).map_err(|_| InvalidElement)?;
        let mut point = encoded.decompress().ok_or(InvalidElement)? * *self.scalar;
        let found = if point.is_identity() { Err(InvalidElement) } else { Ok(point.compress()) };
        point.zeroize();
        found.map(|point| Zeroizing::new(point.to_bytes()))
    }
}

/// The message of one side: share and associated data (Y and AD in the draft).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Contribution<'a> {
    pub(crate) share: &'a [u8],
    pub(crate) associated_data: &'a [u8],
}

/// Returns the transcript, initiator first: `transcript_ir` in the draft.
pub(crate) fn transcript(initiator: Contribution<'_>, responder: Contribution<'_>) -> Vec<u8> {
    lv_cat(&[
        initiator.share,
        initiator.associated_data,
        responder.share,
        responder.associated_data,
    ])
}

/// Derives the session key. It matches on both sides only if password, channel, session and
/// transcript do.
pub(crate) fn isk(sid: &[u8], point: &[u8; 32], transcript: &[u8]) -> Isk {
    let head = Zeroizing::new(lv_cat(&[DSI_ISK, sid, point]));
    let hash = Sha512::new().chain_update(&*head).chain_update(transcript).finalize();
    Zeroizing::new(hash.into())
}

#[cfg(test)]
mod test {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digit = |c: char| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let digits: Vec<u8> = text.chars().filter_map(digit).collect();
        digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    }

    fn array(text: &str) -> [u8; 32] {
        hex(text).try_into().unwrap()
    }

    // From the draft's appendix for ristretto255 and SHA-512.
    const PRS: &[u8] = b"Password";
    const CI: &[u8] = b"\x0bA_initiator\x0bB_responder";
    const SID: &str = "7e4b4791d6a8ef019b936c79fb7f2c57";
    const G: &str = "222b6b195fe84b1652badb6f6a3ae3d24341e7306967f0b8115b40d5698c7e56";
    const YA: &str = "da3d23700a9e5699258aef94dc060dfda5ebb61f02a5ea77fad53f4ff0976d08";
    const YB: &str = "d2316b454718c35362d83d69df6320f38578ed5984651435e2949762d900b80d";
    const SHARE_A: &str = "d6bac480f2c386c394efc7c47adb9925dcd2630b64f240c50f8d0eec482b9157";
    const SHARE_B: &str = "3ea7e0b19560d7c0b0f5734f63b955286dfa8232b5ebe63324e2d9e7433f7258";
    const K: &str = "80b69a8a76457ab6a4d7f887a4bf6b55a2f80ac19c333f917a05fc9887c8b40f";
    const ISK: &str = "b69effbf61b51d56401c0f65601abe428de8206feaaf0e32198896dcae7b35cd\
                       2b38950a39dfd5d4a79164614c2984f7daa460b588c1e80c3fa2068af7900447";

    fn ephemeral(scalar: &str) -> Ephemeral {
        Ephemeral::new(&generator(PRS, CI, &hex(SID)), Zeroizing::new(array(scalar)))
    }

    #[test]
    fn draft_vectors_of_generator_string_and_generator() {
        let string = generator_string(PRS, CI, &hex(SID));
        let mut wanted = hex("11435061636552697374726574746f3235350850617373776f726464");
        wanted.extend([0; 100]);
        wanted.extend(hex("180b415f696e69746961746f720b425f726573706f6e64657210"));
        wanted.extend(hex(SID));
        assert_eq!((&*string, string.len()), (&wanted, 170));
        assert_eq!(generator(PRS, CI, &hex(SID)).compress().to_bytes(), array(G));
    }

    #[test]
    fn draft_vectors_of_shares_point_and_key() {
        assert_eq!(ephemeral(YA).share, array(SHARE_A));
        assert_eq!(ephemeral(YB).share, array(SHARE_B));
        let point = ephemeral(YA).diffie_hellman(&hex(SHARE_B)).unwrap();
        assert_eq!(*point, array(K));
        assert_eq!(ephemeral(YB).diffie_hellman(&hex(SHARE_A)).unwrap(), point);
        let (a, b) = (hex(SHARE_A), hex(SHARE_B));
        let joined = transcript(
            Contribution { share: &a, associated_data: b"ADa" },
            Contribution { share: &b, associated_data: b"ADb" },
        );
        assert_eq!(joined.len(), 74);
        assert_eq!(isk(&hex(SID), &point, &joined).to_vec(), hex(ISK));
    }

    #[test]
    fn draft_vectors_of_valid_and_invalid_elements() {
        let s = "7cd0e075fa7955ba52c02759a6c90dbbfc10e6d40aea8d283e407d88cf538a05";
        let x = "2c3c6b8c4f3800e7aef6864025b4ed79bd599117e427c41bd47d93d654b4a51c";
        let sx = "7c13645fe790a468f62c39beb7388e541d8405d1ade69d1778c5fe3e7f6b600e";
        assert_eq!(*ephemeral(s).diffie_hellman(&hex(x)).unwrap(), array(sx));
        let invalid = "2b3c6b8c4f3800e7aef6864025b4ed79bd599117e427c41bd47d93d654b4a51c";
        for share in [hex(invalid), vec![0; 32]] {
            assert_eq!(ephemeral(s).diffie_hellman(&share), Err(InvalidElement));
        }
    }

    /// X09: only canonical encodings of elements other than the identity are accepted.
    #[test]
    fn x09_invalid_elements_are_refused() {
        let mut p = [0xff; 32];
        (p[0], p[31]) = (0xed, 0x7f); // the field's prime: a second zero
        let mut wrong = vec![vec![], vec![7; 31], vec![7; 33], vec![0xff; 32], p.to_vec()];
        let mut odd = p.to_vec();
        odd[0] = 0xec; // minus one: of low order on the curve, and negative
        wrong.push(odd);
        let mut one = vec![0; 32];
        one[0] = 1;
        wrong.push(one);
        let mut high = hex(SHARE_A);
        high[31] |= 0x80;
        wrong.push(high);
        for share in wrong {
            assert_eq!(ephemeral(YA).diffie_hellman(&share), Err(InvalidElement), "{share:02x?}");
        }
    }

    #[test]
    fn length_above_seven_bits_takes_two_bytes() {
        assert_eq!(lv_cat(&[b"", b"a"]), b"\0\x01a");
        let long = lv_cat(&[&[7; 300]]);
        assert_eq!((long.len(), &long[..3]), (302, &[0xac, 0x02, 7][..]));
    }
}
