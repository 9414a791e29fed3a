//! Record protection after the handshake (RFC 8446 §5), for one direction. Records are encrypted
//! and decrypted in one pass from source to destination.

use std::fmt;

use aws_lc_rs::aead::{Aad, Nonce};

use super::TrafficKey;
use super::suite::{Keys, Suite, Traffic};

/// Most bytes of content in a record.
pub(super) const CONTENT: usize = 1 << 14;

/// Length of a record header in bytes.
pub(super) const HEADER: usize = 5;

const TAG: usize = 16;

/// Overhead of a record: header, content type and tag.
pub(super) const OVERHEAD: usize = HEADER + 1 + TAG;

/// Longest record body in bytes (RFC 8446 §5.2).
const BODY: usize = CONTENT + 256;

/// Buffer size that is sufficient to decrypt any record.
pub(super) const OPENED: usize = BODY - TAG;

/// Cipher blocks encrypted with one key before it is updated. At 8 TiB the advantage of a
/// distinguisher that sees all records is at most 2^-51. RFC 8446 §5.5 recommends 2^34.5 blocks for
/// 2^-60, but a Linux host does not survive a key update (its requests time out, and it
/// reconnects), and 256 GiB are read in minutes.
const KEY_LIMIT: u64 = 1 << 39;

/// Length of a block in bytes.
const BLOCK: u64 = 16;

/// Content type of a record (RFC 8446 §5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Alert = 21,
    Handshake = 22,
    Data = 23,
}

/// Violations of the record protocol. All are fatal; they are named after the alerts (RFC 8446
/// §6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RecordError {
    BadRecordMac,
    RecordOverflow,
    UnexpectedMessage,
    DecodeError,
    IllegalParameter,
}

impl RecordError {
    /// Returns the name, for reports.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::BadRecordMac => "TlsBadRecordMac",
            Self::RecordOverflow => "TlsRecordOverflow",
            Self::UnexpectedMessage => "TlsUnexpectedMessage",
            Self::DecodeError => "TlsDecodeError",
            Self::IllegalParameter => "TlsIllegalParameter",
        }
    }

    /// Returns the alert description.
    pub(super) fn alert(self) -> u8 {
        match self {
            Self::BadRecordMac => 20,
            Self::RecordOverflow => 22,
            Self::UnexpectedMessage => 10,
            Self::DecodeError => 50,
            Self::IllegalParameter => 47,
        }
    }
}

/// Traffic secret and keys of one direction.
struct Direction {
    suite: Suite,
    secret: Traffic,
    keys: Keys,
    /// Records processed with the current keys, and the approximate number of blocks in them.
    count: u64,
    blocks: u64,
}

impl Direction {
    fn new(suite: Suite, secret: Traffic) -> Option<Self> {
        Some(Self { keys: suite.keys(&secret)?, suite, secret, count: 0, blocks: 0 })
    }

    /// Returns the key and the IV, for another implementation; `None` once a record was processed.
    fn traffic_key(&self) -> Option<TrafficKey> {
        (self.count == 0).then(|| self.suite.traffic_key(&self.secret)).flatten()
    }

    /// Returns the nonce of the next record: the IV, XORed with the sequence number (RFC 8446
    /// §5.3).
    fn nonce(&mut self) -> Nonce {
        let mut nonce = self.keys.iv;
        let number = self.count.to_be_bytes();
        nonce.iter_mut().skip(4).zip(number).for_each(|(byte, digit)| *byte ^= digit);
        self.count += 1;
        Nonce::assume_unique_for_key(nonce)
    }

    /// Switches to the next traffic secret.
    fn update(&mut self) {
        let next = self.suite.next(&self.secret).and_then(|next| Self::new(self.suite, next));
        // The lengths were checked for the first secret.
        *self = next.unwrap_or_else(|| unreachable!("a secret makes another of its length"));
    }
}

/// Encrypts records.
pub(super) struct Sealer(Direction);

impl Sealer {
    /// Returns a sealer with this traffic secret; `None` if its length does not match the suite.
    pub(super) fn new(suite: Suite, secret: Traffic) -> Option<Self> {
        Direction::new(suite, secret).map(Self)
    }

    /// Returns its key; `None` once a record was encrypted.
    pub(super) fn traffic_key(&self) -> Option<TrafficKey> {
        self.0.traffic_key()
    }

    /// Encrypts `content`, at most [`CONTENT`] bytes, as one record at the start of `out`. Returns
    /// the length of the record, or 0 if `out` has less than [`OVERHEAD`] bytes more than
    /// `content`.
    pub(super) fn seal(&mut self, kind: Kind, content: &[u8], out: &mut [u8]) -> usize {
        let len = content.len() + OVERHEAD;
        let Some((header, body)) = out.get_mut(..len).and_then(|o| o.split_at_mut_checked(HEADER))
        else {
            return 0;
        };
        let Some((sealed, end)) = body.split_at_mut_checked(content.len()) else { return 0 };
        let head = head(len - HEADER);
        header.copy_from_slice(&head);
        let nonce = self.0.nonce();
        self.0.blocks += len as u64 / BLOCK + 1;
        let key = &self.0.keys.key;
        let done = key.seal_out_of_place_scatter(
            nonce,
            Aad::from(head),
            content,
            sealed,
            &[kind as u8],
            end,
        );
        if done.is_ok() { len } else { 0 }
    }

    /// Returns whether the key has reached its limit. There is none for ChaCha20-Poly1305 (RFC 8446
    /// §5.5).
    pub(super) fn needs_key_update(&self) -> bool {
        self.0.blocks >= KEY_LIMIT && self.0.suite != Suite::ChaCha20
    }

    /// Emits a KeyUpdate message (RFC 8446 §4.6.3), which with `both` requests one from the peer,
    /// and switches to the next keys. Returns the length of the record, or 0 if there is not enough
    /// room.
    pub(super) fn update(&mut self, both: bool, out: &mut [u8]) -> usize {
        let len = self.seal(Kind::Handshake, &[24, 0, 0, 1, u8::from(both)], out);
        if len > 0 {
            self.0.update();
        }
        len
    }
}

/// Decrypts records.
pub(super) struct Opener(Direction);

impl Opener {
    /// Returns an opener with this traffic secret; `None` if its length does not match the suite.
    pub(super) fn new(suite: Suite, secret: Traffic) -> Option<Self> {
        Direction::new(suite, secret).map(Self)
    }

    /// Returns its key; `None` once a record was decrypted.
    pub(super) fn traffic_key(&self) -> Option<TrafficKey> {
        self.0.traffic_key()
    }

    /// Returns the body of the first record in `bytes`; `None` if it is incomplete.
    ///
    /// # Errors
    /// Fails if the header is not one of an encrypted record.
    pub(super) fn body(bytes: &[u8]) -> Result<Option<&[u8]>, RecordError> {
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() else { return Ok(None) };
        let [kind, _, _, high, low] = *header;
        let len = usize::from(u16::from_be_bytes([high, low]));
        match len {
            _ if kind != Kind::Data as u8 => Err(RecordError::UnexpectedMessage),
            len if len > BODY => Err(RecordError::RecordOverflow),
            len if len <= TAG => Err(RecordError::BadRecordMac),
            len => Ok(rest.get(..len)),
        }
    }

    /// Returns the buffer size that is needed to decrypt `body`.
    pub(super) fn room(body: &[u8]) -> usize {
        body.len().saturating_sub(TAG)
    }

    /// Decrypts a body into the start of `out`, which has [`Opener::room`] bytes. Returns the
    /// content type and length. The rest of `out`, and all of it after a failure, is unspecified.
    ///
    /// # Errors
    /// Fails if it is not the next record as encrypted by the peer.
    pub(super) fn open(
        &mut self,
        body: &[u8],
        out: &mut [u8],
    ) -> Result<(Kind, usize), RecordError> {
        let room = Self::room(body);
        let (sealed, tag) = body.split_at_checked(room).ok_or(RecordError::BadRecordMac)?;
        let out = out.get_mut(..room).ok_or(RecordError::RecordOverflow)?;
        let nonce = self.0.nonce();
        let aad = Aad::from(head(body.len()));
        let done = self.0.keys.key.open_separate_gather(nonce, aad, sealed, tag, out);
        done.map_err(|_| RecordError::BadRecordMac)?;
        // The last byte that is not zero is the content type; zeros after it are padding (RFC 8446
        // §5.4).
        let len = out.iter().rposition(|&byte| byte != 0).ok_or(RecordError::UnexpectedMessage)?;
        let kind = match out.get(len) {
            _ if len > CONTENT => return Err(RecordError::RecordOverflow),
            Some(21) => Kind::Alert,
            Some(22) => Kind::Handshake,
            Some(23) => Kind::Data,
            _ => return Err(RecordError::UnexpectedMessage),
        };
        Ok((kind, len))
    }

    /// Switches to the next keys, after a KeyUpdate of the peer.
    pub(super) fn update(&mut self) {
        self.0.update();
    }
}

/// Returns a record header. Its type is always application_data (RFC 8446 §5.2).
fn head(body: usize) -> [u8; HEADER] {
    #[allow(clippy::cast_possible_truncation, reason = "the body of a record is below 2^15 bytes")]
    let [high, low] = (body as u16).to_be_bytes();
    [Kind::Data as u8, 3, 3, high, low]
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealer({:?}, {} records)", self.0.suite, self.0.count)
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Opener({:?}, {} records)", self.0.suite, self.0.count)
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use zeroize::Zeroizing;

    fn ends(suite: Suite) -> (Sealer, Opener) {
        let secret: Vec<u8> = (0u8..).take(suite.secret_len()).collect();
        let secret = Zeroizing::new(secret);
        (Sealer::new(suite, secret.clone()).unwrap(), Opener::new(suite, secret).unwrap())
    }

    fn open(opener: &mut Opener, record: &[u8]) -> Result<(Kind, Vec<u8>), RecordError> {
        let body = Opener::body(record)?.unwrap();
        let mut out = vec![0xee; OPENED];
        let (kind, len) = opener.open(body, &mut out)?;
        out.truncate(len);
        Ok((kind, out))
    }

    #[test]
    fn records_round_trip_across_key_updates() {
        for suite in [Suite::Aes128, Suite::Aes256, Suite::ChaCha20] {
            let (mut sealer, mut opener) = ends(suite);
            let mut out = vec![0; CONTENT + OVERHEAD];
            for len in [0, 1, 24, 4096, CONTENT] {
                let content = vec![0x5a; len];
                let sealed = sealer.seal(Kind::Data, &content, &mut out);
                assert_eq!(sealed, len + OVERHEAD);
                let (kind, opened) = open(&mut opener, &out[..sealed]).unwrap();
                assert_eq!((kind, opened), (Kind::Data, content));
                let sealed = sealer.update(false, &mut out);
                let sent = open(&mut opener, &out[..sealed]).unwrap();
                assert_eq!(sent, (Kind::Handshake, vec![24, 0, 0, 1, 0]));
                opener.update();
            }
        }
    }

    #[test]
    fn key_limit_is_reached_by_sealed_bytes() {
        let mut out = vec![0; CONTENT + OVERHEAD];
        for suite in [Suite::Aes128, Suite::Aes256, Suite::ChaCha20] {
            let (mut sealer, _) = ends(suite);
            sealer.seal(Kind::Data, &[0; CONTENT], &mut out);
            assert_eq!(KEY_LIMIT * BLOCK, 8 << 40);
            sealer.0.blocks = KEY_LIMIT - 5;
            sealer.seal(Kind::Data, &[0; 24], &mut out);
            assert!(!sealer.needs_key_update());
            sealer.seal(Kind::Data, &[0; 24], &mut out);
            assert_eq!(sealer.needs_key_update(), suite != Suite::ChaCha20);
            sealer.update(false, &mut out);
            assert!(!sealer.needs_key_update());
        }
    }

    #[test]
    fn seal_without_room_does_nothing() {
        let (mut sealer, mut opener) = ends(Suite::Aes128);
        let mut out = [0; 100];
        assert_eq!(sealer.seal(Kind::Data, &[1; 79], &mut out), 0);
        let sealed = sealer.seal(Kind::Data, &[1; 78], &mut out);
        assert_eq!(open(&mut opener, &out[..sealed]).unwrap().1, [1; 78]);
    }

    #[test]
    fn modified_repeated_and_missing_records_are_refused() {
        let sealed = |sealer: &mut Sealer| {
            let mut out = vec![0; 100];
            let len = sealer.seal(Kind::Data, b"data", &mut out);
            out.truncate(len);
            out
        };
        for at in HEADER..HEADER + 21 {
            let (mut sealer, mut opener) = ends(Suite::Aes256);
            let mut record = sealed(&mut sealer);
            record[at] ^= 1;
            assert_eq!(open(&mut opener, &record), Err(RecordError::BadRecordMac));
        }
        let (mut sealer, mut opener) = ends(Suite::Aes128);
        let (first, second) = (sealed(&mut sealer), sealed(&mut sealer));
        assert!(open(&mut opener, &first).is_ok());
        assert_eq!(open(&mut opener, &first), Err(RecordError::BadRecordMac));
        let (_, mut opener) = ends(Suite::Aes128);
        assert_eq!(open(&mut opener, &second), Err(RecordError::BadRecordMac));
    }

    #[test]
    fn invalid_record_headers_are_refused() {
        assert_eq!(Opener::body(&[23, 3, 3, 0x41, 0x01]), Err(RecordError::RecordOverflow));
        assert_eq!(Opener::body(&[23, 3, 3, 0x41, 0x00]), Ok(None));
        assert_eq!(Opener::body(&[23, 3, 3, 0, 16]), Err(RecordError::BadRecordMac));
        assert_eq!(Opener::body(&[21, 3, 3, 0, 2, 2, 40]), Err(RecordError::UnexpectedMessage));
        assert_eq!(Opener::body(&[23, 3, 3, 0]), Ok(None));
    }
}
