//! The interchange form that TLS and DH-HMAC-CHAP keys share: `NAME-1:HH:base64(key ‖ CRC-32):` (NVMe/TCP 1.0 §3.6.1.5,
//! NVMe Base 2.0 §8.13.5.8). It knows not what a key is for.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use crc_fast::{CrcAlgorithm, checksum};
use export::Secret;
use zeroize::Zeroizing;

/// Why a text is no key. It never holds any of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not of the form.
    #[error("this is no key of the form {0}:HH:…: (one line, ended by a colon)")]
    Form(&'static str),
    /// A hash that there is not.
    #[error(
        "the key names the hash {0:02}, which there is not: it may be 00, 01 or 02, and 03 for DHHC-1"
    )]
    Hash(u8),
    /// What is between the last two colons is no Base64.
    #[error("the key was damaged: its last part is no Base64; copy it once more")]
    Base64,
    /// A length that there is not, in bytes.
    #[error(
        "the key has {0} bytes, which does not fit its hash; copy it once more, or make a new one"
    )]
    Length(usize),
    /// The checksum is wrong.
    #[error("the key was damaged: its checksum is wrong; copy it once more")]
    Checksum,
    /// A name too long to derive anything for, or with a space in it.
    #[error("the NQN is too long, or has a space in it: no key can be derived for it")]
    Name,
}

/// Bytes of the longest key.
const LONGEST: usize = 64;

/// The number of the hash, and the key. White space around `text` is ignored.
pub(super) fn parse(name: &'static str, text: &[u8]) -> Result<(u8, Secret), KeyError> {
    let text = text.trim_ascii();
    let rest = text.strip_prefix(name.as_bytes()).and_then(|rest| rest.strip_prefix(b":"));
    let rest = rest.and_then(|rest| rest.strip_suffix(b":")).ok_or(KeyError::Form(name))?;
    let &[tens @ b'0'..=b'9', ones @ b'0'..=b'9', b':', ref coded @ ..] = rest else {
        return Err(KeyError::Form(name));
    };
    Ok(((tens - b'0') * 10 + (ones - b'0'), decode(coded)?))
}

fn decode(coded: &[u8]) -> Result<Secret, KeyError> {
    let mut bytes = Zeroizing::new([0; LONGEST + 8]);
    if coded.len() > bytes.len() / 3 * 4 {
        return Err(KeyError::Length(coded.len() / 4 * 3));
    }
    let len = STANDARD.decode_slice(coded, bytes.as_mut()).map_err(|_| KeyError::Base64)?;
    let bytes = bytes.get(..len).unwrap_or_default();
    let (key, sum) = bytes.split_last_chunk::<4>().ok_or(KeyError::Length(0))?;
    if ![32, 48, 64].contains(&key.len()) {
        return Err(KeyError::Length(key.len()));
    }
    if checksum_of(key) == *sum { Ok(Secret::new(key.to_vec())) } else { Err(KeyError::Checksum) }
}

/// The text of a key.
pub(super) fn emit(name: &str, hash: u8, key: &[u8]) -> Secret {
    let mut bytes = Zeroizing::new(Vec::with_capacity(key.len() + 4));
    bytes.extend_from_slice(key);
    bytes.extend_from_slice(&checksum_of(key));
    let coded = Zeroizing::new(STANDARD.encode(&*bytes));
    let mut text = Vec::with_capacity(name.len() + coded.len() + 5);
    for part in [name, ":", &format!("{hash:02}"), ":", &coded, ":"] {
        text.extend_from_slice(part.as_bytes());
    }
    Secret::new(text)
}

#[allow(clippy::cast_possible_truncation, reason = "a 32-bit checksum in a 64-bit value")]
fn checksum_of(key: &[u8]) -> [u8; 4] {
    (checksum(CrcAlgorithm::Crc32IsoHdlc, key) as u32).to_le_bytes()
}
