//! The format that PSKs and DH-HMAC-CHAP secrets share: `NAME-1:HH:base64(key ‖ CRC-32):` (NVMe/TCP
//! 1.0 §3.6.1.5, NVMe Base 2.0 §8.13.5.8).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use crc_fast::{CrcAlgorithm, checksum};
use export::Secret;
use zeroize::Zeroizing;

/// Why a text is not a valid key. Contains nothing of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not in the expected format.
    #[error("not a key in the form {0}:HH:…: (one line that ends with a colon)")]
    Form(&'static str),
    /// Unknown hash.
    #[error("unknown hash {0:02} in the key: it must be 00, 01 or 02, or 03 for DHHC-1")]
    Hash(u8),
    /// Invalid Base64.
    #[error("the key is damaged (invalid Base64): copy it again")]
    Base64,
    /// Invalid length in bytes.
    #[error("a key of {0} bytes does not match its hash: copy it again, or generate a new one")]
    Length(usize),
    /// Wrong checksum.
    #[error("the key is damaged (wrong checksum): copy it again")]
    Checksum,
    /// An NQN that is empty, too long, or contains a space.
    #[error("cannot derive a key for an NQN that is empty, too long, or contains a space")]
    Name,
}

/// Maximum length of a key in bytes.
const LONGEST: usize = 64;

/// Returns the hash identifier and the key. White space around `text` is ignored.
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

/// Formats a key.
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
