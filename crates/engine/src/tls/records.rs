//! Both directions of a channel after its handshake, with what the two ends say to each other below the application: key
//! updates, alerts, tickets (RFC 8446 §4.6, §6). It knows no socket and no session.

use super::record::{CONTENT, HEADER, Kind, OVERHEAD, Opener, RecordError, Sealer};
use super::s2n::Established;

/// The most bytes of a message to a server that is not data.
const MESSAGE: usize = 4 << 10;

/// The same to a client: a ticket, in which its own certificates may be.
const TICKET: usize = 32 << 10;

const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

const CLOSE_NOTIFY: u8 = 0;
const USER_CANCELED: u8 = 90;

/// Room for any record that is sent for the channel's own sake.
pub(super) const SMALL: usize = 64;

/// Both directions.
#[derive(Debug)]
pub(super) struct Records {
    pub(super) sealer: Sealer,
    opener: Opener,
    /// Whether tickets may come.
    is_client: bool,
    /// A message to us that has not come whole.
    message: Vec<u8>,
    /// Whether the peer wants to see other keys of ours.
    update_requested: bool,
    /// How often the peer has changed its keys.
    updates: u64,
}

/// What a record was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opened {
    /// So many bytes of data, at the start of the memory.
    Data(usize),
    /// Something for the channel itself.
    Control,
    /// The peer's last word: it sends no more.
    CloseNotify,
    /// The peer has given the channel up: nothing more is to be sent.
    FatalAlert,
}

impl Records {
    pub(super) fn new(established: Established) -> Self {
        let Established { is_client, sealer, opener, .. } = established;
        Self { sealer, opener, is_client, message: Vec::new(), update_requested: false, updates: 0 }
    }

    /// The body of the first record in `bytes`, and nothing while it has not come whole.
    ///
    /// # Errors
    /// That is no record of this recv_buffer of the protocol.
    pub(super) fn body<'a>(&self, bytes: &'a [u8]) -> Result<Option<&'a [u8]>, RecordError> {
        Opener::body(bytes)
    }

    /// Bytes of the record that has this body.
    pub(super) fn len(body: &[u8]) -> usize {
        HEADER + body.len()
    }

    /// Opens the next record into `out`, which has [`Opener::room`] for it.
    ///
    /// # Errors
    /// The peer broke a rule, or somebody changed what it sent.
    pub(super) fn open(&mut self, body: &[u8], out: &mut [u8]) -> Result<Opened, RecordError> {
        let (kind, len) = self.opener.open(body, out)?;
        let content = out.get(..len).unwrap_or_default();
        match kind {
            Kind::Data if self.message.is_empty() => Ok(Opened::Data(len)),
            Kind::Alert if self.message.is_empty() => parse_alert(content),
            // RFC 8446 §5.1: nothing between the parts of a message.
            Kind::Data | Kind::Alert => Err(RecordError::UnexpectedMessage),
            Kind::Handshake => self.handshake_message(content).map(|()| Opened::Control),
        }
    }

    /// How often the peer has changed its keys.
    pub(super) fn updates_seen(&self) -> u64 {
        self.updates
    }

    fn handshake_message(&mut self, part: &[u8]) -> Result<(), RecordError> {
        let most = if self.is_client { TICKET } else { MESSAGE };
        if part.is_empty() || self.message.len() + part.len() > most {
            return Err(RecordError::UnexpectedMessage);
        }
        self.message.extend_from_slice(part);
        while let Some((&[kind, a, b, c], rest)) = self.message.split_first_chunk::<4>() {
            let len = u32::from_be_bytes([0, a, b, c]) as usize;
            let Some((body, rest)) = rest.split_at_checked(len) else { break };
            match (kind, body) {
                (NEW_SESSION_TICKET, _) if self.is_client => {}
                // RFC 8446 §5.1: what follows comes with other keys, so nothing may follow in the same record.
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

    /// A record that must go before the next one with data, if there is one: at the start of `out`. Not to be asked without
    /// such data, so that any number of the peer's changes is answered once (RFC 8446 §4.6.3).
    pub(super) fn pending_update(&mut self, out: &mut [u8; SMALL]) -> usize {
        if self.update_requested || self.sealer.needs_key_update() {
            self.update_requested = false;
            return self.sealer.update(false, out);
        }
        0
    }

    /// Says that nothing follows (RFC 8446 §6.1).
    pub(super) fn close(&mut self, out: &mut [u8; SMALL]) -> usize {
        self.sealer.seal(Kind::Alert, &[1, CLOSE_NOTIFY], out)
    }

    /// Says that the peer broke a rule.
    pub(super) fn alert_record(&mut self, broken: RecordError, out: &mut [u8; SMALL]) -> usize {
        self.sealer.seal(Kind::Alert, &[2, broken.alert()], out)
    }
}

/// How many bytes `content` bytes of data may take when they are sealed in up to `pieces` records more than needed.
pub(super) fn sealed_len(content: usize, pieces: usize) -> usize {
    content + (content / CONTENT + pieces + 1) * OVERHEAD
}

fn parse_alert(content: &[u8]) -> Result<Opened, RecordError> {
    match content {
        [_, CLOSE_NOTIFY] => Ok(Opened::CloseNotify),
        [_, USER_CANCELED] => Ok(Opened::Control),
        // Any other is an error, also one that is not known, whatever its level says (RFC 8446 §6.2).
        [_, _] => Ok(Opened::FatalAlert),
        _ => Err(RecordError::DecodeError),
    }
}
