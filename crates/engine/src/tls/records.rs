//! Both directions of an established channel, with the messages below the application: key updates,
//! alerts and tickets (RFC 8446 §4.6, §6).

use super::record::{CONTENT, HEADER, Kind, OVERHEAD, Opener, RecordError, Sealer};
use super::s2n::Established;

/// Longest handshake message to a server.
const MESSAGE: usize = 4 << 10;

/// Longest handshake message to a client: a ticket, which may contain the client's certificates.
const TICKET: usize = 32 << 10;

const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

const CLOSE_NOTIFY: u8 = 0;
const USER_CANCELED: u8 = 90;

/// Buffer size that is sufficient for any KeyUpdate or alert record.
pub(super) const SMALL: usize = 64;

/// Both directions.
#[derive(Debug)]
pub(crate) struct Records {
    pub(super) sealer: Sealer,
    opener: Opener,
    /// Whether tickets are accepted.
    is_client: bool,
    /// An incomplete handshake message.
    message: Vec<u8>,
    /// Whether the peer has requested a KeyUpdate.
    update_requested: bool,
    /// Number of key updates by the peer.
    updates: u64,
}

/// Content of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opened {
    /// This many bytes of application data, at the start of the buffer.
    Data(usize),
    /// A message for the channel itself.
    Control,
    /// The peer has closed its sending side.
    CloseNotify,
    /// A fatal alert of the peer: nothing more may be sent.
    FatalAlert,
}

impl Records {
    pub(crate) fn new(established: Established) -> Self {
        let Established { is_client, sealer, opener, .. } = established;
        Self { sealer, opener, is_client, message: Vec::new(), update_requested: false, updates: 0 }
    }

    /// Returns the body of the first record in `bytes`; `None` if it is incomplete.
    ///
    /// # Errors
    /// Fails if the header is not one of an encrypted record.
    pub(super) fn body<'a>(&self, bytes: &'a [u8]) -> Result<Option<&'a [u8]>, RecordError> {
        Opener::body(bytes)
    }

    /// Returns the length of the record with this body.
    pub(super) fn len(body: &[u8]) -> usize {
        HEADER + body.len()
    }

    /// Decrypts the next record into `out`, which has [`Opener::room`] bytes.
    ///
    /// # Errors
    /// Fails if the peer has violated the protocol, or the record was modified.
    pub(super) fn open(&mut self, body: &[u8], out: &mut [u8]) -> Result<Opened, RecordError> {
        let (kind, len) = self.opener.open(body, out)?;
        let content = out.get(..len).unwrap_or_default();
        match kind {
            Kind::Data if self.message.is_empty() => Ok(Opened::Data(len)),
            Kind::Alert if self.message.is_empty() => parse_alert(content),
            // No other record may come between the fragments of a message (RFC 8446 §5.1).
            Kind::Data | Kind::Alert => Err(RecordError::UnexpectedMessage),
            Kind::Handshake => self.handshake_message(content).map(|()| Opened::Control),
        }
    }

    /// Returns the number of key updates by the peer.
    pub(super) fn updates_seen(&self) -> u64 {
        self.updates
    }

    fn handshake_message(&mut self, part: &[u8]) -> Result<(), RecordError> {
        let max = if self.is_client { TICKET } else { MESSAGE };
        if part.is_empty() || self.message.len() + part.len() > max {
            return Err(RecordError::UnexpectedMessage);
        }
        self.message.extend_from_slice(part);
        while let Some((&[kind, a, b, c], rest)) = self.message.split_first_chunk::<4>() {
            let len = u32::from_be_bytes([0, a, b, c]) as usize;
            let Some((body, rest)) = rest.split_at_checked(len) else { break };
            match (kind, body) {
                (NEW_SESSION_TICKET, _) if self.is_client => {}
                // The next record has other keys, so nothing may follow in this one (RFC 8446
                // §5.1).
                (KEY_UPDATE, _) if !rest.is_empty() => return Err(RecordError::UnexpectedMessage),
                (KEY_UPDATE, &[wants @ (0 | 1)]) => {
                    self.update_requested |= wants == 1;
                    self.opener.update();
                    self.updates += 1;
                }
                (KEY_UPDATE, [_]) => return Err(RecordError::IllegalParameter),
                (KEY_UPDATE, _) => return Err(RecordError::DecodeError),
                _ => return Err(RecordError::UnexpectedMessage),
            }
            self.message.drain(..4 + len);
        }
        Ok(())
    }

    /// Writes the KeyUpdate record that must precede the next application data, if there is one.
    /// Returns its length, else 0. Only called when there is such data, so that any number of
    /// requests is answered once (RFC 8446 §4.6.3).
    pub(super) fn pending_update(&mut self, out: &mut [u8; SMALL]) -> usize {
        if self.update_requested || self.sealer.needs_key_update() {
            self.update_requested = false;
            return self.sealer.update(false, out);
        }
        0
    }

    /// Writes a close_notify alert (RFC 8446 §6.1). Returns its length.
    pub(super) fn close(&mut self, out: &mut [u8; SMALL]) -> usize {
        self.sealer.seal(Kind::Alert, &[1, CLOSE_NOTIFY], out)
    }

    /// Writes the alert for a violation by the peer. Returns its length.
    pub(super) fn alert_record(&mut self, broken: RecordError, out: &mut [u8; SMALL]) -> usize {
        self.sealer.seal(Kind::Alert, &[2, broken.alert()], out)
    }
}

/// Returns an upper bound on the length of `content` bytes when encrypted in up to `pieces` more
/// records than necessary.
pub(super) fn sealed_len(content: usize, pieces: usize) -> usize {
    content + (content / CONTENT + pieces + 1) * OVERHEAD
}

fn parse_alert(content: &[u8]) -> Result<Opened, RecordError> {
    match content {
        [_, CLOSE_NOTIFY] => Ok(Opened::CloseNotify),
        [_, USER_CANCELED] => Ok(Opened::Control),
        // All other alerts are fatal, unknown ones included, whatever their level (RFC 8446 §6.2).
        [_, _] => Ok(Opened::FatalAlert),
        _ => Err(RecordError::DecodeError),
    }
}
