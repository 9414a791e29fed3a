//! CPace (draft-irtf-cfrg-cpace) over ristretto255 with SHA-512, with an initiator and a responder: of a password that
//! may be short, a key that cannot be searched for. It knows no message and no code.

use curve25519_dalek::ristretto::{CompressedRistretto, RistrettoPoint};
use curve25519_dalek::scalar::Scalar;
use curve25519_dalek::traits::IsIdentity;
use sha2::{Digest, Sha512};
use zeroize::{Zeroize, Zeroizing};

/// Names the group, and with a suffix the key (the draft's G_Ristretto255.DSI).
const DSI: &[u8] = b"CPaceRistretto255";
const DSI_ISK: &[u8] = b"CPaceRistretto255_ISK";

/// Bytes that SHA-512 takes at a time.
const BLOCK: usize = 128;

/// Bytes of a share.
pub(crate) const SHARE: usize = 32;

/// The key that comes out: the draft's ISK.
pub(crate) type Isk = Zeroizing<[u8; 64]>;

/// What a peer sent as its share is no element of the group, or the neutral one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NoElement;

/// Appends `part` with its length before it (LEB128), as the draft's `prepend_len`.
pub(crate) fn push(out: &mut Vec<u8>, part: &[u8]) {
    let mut len = part.len();
    while len >= 0x80 {
        out.push(0x80 | u8::try_from(len & 0x7f).unwrap_or_default());
        len >>= 7;
    }
    out.push(u8::try_from(len).unwrap_or_default());
    out.extend_from_slice(part);
}

/// The parts, each with its length before it: the draft's `lv_cat`.
pub(crate) fn lv_cat(parts: &[&[u8]]) -> Vec<u8> {
    // With room for the lengths, so that nothing secret is left behind by a move to where there is more.
    let mut out = Vec::with_capacity(parts.iter().map(|part| part.len() + 10).sum());
    parts.iter().for_each(|part| push(&mut out, part));
    out
}

/// What is hashed to the generator. The password fills the first block, whatever its length, with nothing else in it
/// that changes: how long that takes tells nothing.
fn generator_string(prs: &[u8], ci: &[u8], sid: &[u8]) -> Zeroizing<Vec<u8>> {
    let used = 1 + Zeroizing::new(lv_cat(&[prs])).len() + lv_cat(&[DSI]).len();
    let pad = vec![0; BLOCK.saturating_sub(used)];
    Zeroizing::new(lv_cat(&[DSI, prs, &pad, ci, sid]))
}

/// The generator that a password makes in one session: the draft's `calculate_generator`.
pub(crate) fn generator(prs: &[u8], ci: &[u8], sid: &[u8]) -> Zeroizing<RistrettoPoint> {
    let hash = Zeroizing::new(<[u8; 64]>::from(Sha512::digest(generator_string(prs, ci, sid))));
    Zeroizing::new(RistrettoPoint::from_uniform_bytes(&hash))
}

/// One end's part of the exchange. Used up by it.
pub(crate) struct Half {
    scalar: Zeroizing<Scalar>,
    /// What the other end is told.
    pub(crate) share: [u8; SHARE],
}

impl Half {
    /// With 32 random bytes that are used for nothing else, ever.
    pub(crate) fn new(generator: &RistrettoPoint, mut random: Zeroizing<[u8; 32]>) -> Self {
        // The draft's `sample_scalar`: 252 bits, which is below the order of the group.
        random[31] &= 0x0f;
        let scalar = Zeroizing::new(Scalar::from_bytes_mod_order(*random));
        let share = (generator * *scalar).compress().to_bytes();
        Self { scalar, share }
    }

    /// The point that only these two ends can compute, from the other's share (the draft's `scalar_mult_vfy`).
    pub(crate) fn meet(self, theirs: &[u8]) -> Result<Zeroizing<[u8; 32]>, NoElement> {
        let encoded = CompressedRistretto::from_slice(theirs).map_err(|_| NoElement)?;
        let mut point = encoded.decompress().ok_or(NoElement)? * *self.scalar;
        let found = if point.is_identity() { Err(NoElement) } else { Ok(point.compress()) };
        point.zeroize();
        found.map(|point| Zeroizing::new(point.to_bytes()))
    }
}

/// What one end said: its share, and what it said beside it (the draft's Y and AD).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Said<'a> {
    pub(crate) share: &'a [u8],
    pub(crate) beside: &'a [u8],
}

/// What both said, the initiator first: the draft's `transcript_ir`.
pub(crate) fn transcript(initiator: Said<'_>, responder: Said<'_>) -> Vec<u8> {
    lv_cat(&[initiator.share, initiator.beside, responder.share, responder.beside])
}

/// The key of the session: equal at both ends only if password, channel, session and transcript are.
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

    fn half(scalar: &str) -> Half {
        Half::new(&generator(PRS, CI, &hex(SID)), Zeroizing::new(array(scalar)))
    }

    #[test]
    fn the_drafts_generator_string_and_generator() {
        let string = generator_string(PRS, CI, &hex(SID));
        let mut wanted = hex("11435061636552697374726574746f3235350850617373776f726464");
        wanted.extend([0; 100]);
        wanted.extend(hex("180b415f696e69746961746f720b425f726573706f6e64657210"));
        wanted.extend(hex(SID));
        assert_eq!((&*string, string.len()), (&wanted, 170));
        assert_eq!(generator(PRS, CI, &hex(SID)).compress().to_bytes(), array(G));
    }

    #[test]
    fn the_drafts_shares_point_and_key() {
        assert_eq!(half(YA).share, array(SHARE_A));
        assert_eq!(half(YB).share, array(SHARE_B));
        let point = half(YA).meet(&hex(SHARE_B)).unwrap();
        assert_eq!(*point, array(K));
        assert_eq!(half(YB).meet(&hex(SHARE_A)).unwrap(), point);
        let (a, b) = (hex(SHARE_A), hex(SHARE_B));
        let said =
            transcript(Said { share: &a, beside: b"ADa" }, Said { share: &b, beside: b"ADb" });
        assert_eq!(said.len(), 74);
        assert_eq!(isk(&hex(SID), &point, &said).to_vec(), hex(ISK));
    }

    #[test]
    fn the_drafts_valid_and_invalid_elements() {
        let s = "7cd0e075fa7955ba52c02759a6c90dbbfc10e6d40aea8d283e407d88cf538a05";
        let x = "2c3c6b8c4f3800e7aef6864025b4ed79bd599117e427c41bd47d93d654b4a51c";
        let sx = "7c13645fe790a468f62c39beb7388e541d8405d1ade69d1778c5fe3e7f6b600e";
        assert_eq!(*half(s).meet(&hex(x)).unwrap(), array(sx));
        let invalid = "2b3c6b8c4f3800e7aef6864025b4ed79bd599117e427c41bd47d93d654b4a51c";
        for share in [hex(invalid), vec![0; 32]] {
            assert_eq!(half(s).meet(&share), Err(NoElement));
        }
    }

    /// X09: no encoding that is not the one of an element other than the neutral one is taken.
    #[test]
    fn x09_what_is_no_element_is_refused() {
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
            assert_eq!(half(YA).meet(&share), Err(NoElement), "{share:02x?}");
        }
    }

    #[test]
    fn a_length_of_more_than_seven_bits_takes_two_bytes() {
        assert_eq!(lv_cat(&[b"", b"a"]), b"\0\x01a");
        let long = lv_cat(&[&[7; 300]]);
        assert_eq!((long.len(), &long[..3]), (302, &[0xac, 0x02, 7][..]));
    }
}
