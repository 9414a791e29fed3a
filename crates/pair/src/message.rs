//! Encoding of the messages.
//!
//! | type | from | body |
//! |---|---|---|
//! | 1 Hello | host | kind of the code, flags, share, host NQN, name |
//! | 2 Answer | target | share |
//! | 3 Confirm | host | tag |
//! | 4 Welcome | target | tag, name |
//! | 5 Granted | target | access, number of disks that follow; tag |
//! | 6 Disk | target | access, size, NQN, name, model; tag |
//! | 7 Refused, authenticated | target | reason; tag |
//! | 8 Refused | target | reason, seconds |
//!
//! A tag is a message authentication code; both sides can compute it after the key agreement.
//! Shares and texts are preceded by a length byte. Before key confirmation the target reveals
//! neither its name nor its disks.

use std::fmt;

use export::Access;
use serde::{Deserialize, Serialize};

use crate::agreement::{Authenticator, TAG_LEN, Tag};
use crate::code::CodeKind;
use crate::cpace::SHARE_LEN;
use crate::frame::{self, Fields, Frame, Violation, put_prefixed};

/// Maximum length of an NQN in bytes (NVMe Base 2.0 §4.5).
const MAX_NQN: usize = 223;
/// Maximum length of a machine name in bytes.
const MAX_NAME: usize = 64;
/// Maximum length of a disk model in bytes.
const MAX_MODEL: usize = 64;
/// Maximum length of a disk name in bytes.
const MAX_DISK_NAME: usize = 200;

/// Maximum number of disks sent to a host.
pub const MAX_DISKS: usize = 1024;

mod message_type {
    pub(super) const HELLO: u8 = 1;
    pub(super) const ANSWER: u8 = 2;
    pub(super) const CONFIRM: u8 = 3;
    pub(super) const WELCOME: u8 = 4;
    pub(super) const GRANTED: u8 = 5;
    pub(super) const DISK: u8 = 6;
    pub(super) const REFUSED_AUTHENTICATED: u8 = 7;
    pub(super) const REFUSED: u8 = 8;
}

/// A disk that the host may access.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The subsystem NQN.
    pub nqn: String,
    /// The name on the target.
    pub name: String,
    /// The model.
    pub model: String,
    /// The size in bytes.
    pub bytes: u64,
    /// The access.
    pub access: Access,
}

/// Why the target refuses a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalReason {
    /// Wrong or expired code.
    WrongCode,
    /// An attempt failed recently: retry later.
    RateLimited,
    /// Another attempt is in progress.
    Busy,
    /// Too many attempts failed: locked until a timeout or until an administrator unlocks pairing.
    Locked,
    /// Pairing is off.
    PairingOff,
    DeniedByAdministrator,
    /// The administrator did not answer in time.
    NoAnswer,
    /// The key could not be stored: no space left on device.
    NoSpace,
    /// The key could not be stored for another reason.
    NotStored,
    /// The host is known, and its access has expired: pairing does not give it more.
    Expired,
}

impl RefusalReason {
    const ALL: [(u8, Self); 10] = [
        (1, Self::WrongCode),
        (2, Self::RateLimited),
        (3, Self::Busy),
        (4, Self::Locked),
        (5, Self::PairingOff),
        (6, Self::DeniedByAdministrator),
        (7, Self::NoAnswer),
        (8, Self::NoSpace),
        (9, Self::NotStored),
        (10, Self::Expired),
    ];

    fn number(self) -> u8 {
        Self::ALL.iter().find(|(_, reason)| *reason == self).map_or(0, |(number, _)| *number)
    }

    fn parse(number: u8) -> Result<Self, Violation> {
        let found = Self::ALL.iter().find(|(other, _)| *other == number);
        found.map(|(_, reason)| *reason).ok_or(Violation::BodyMalformed)
    }

    /// Returns a short text for the target's journal.
    pub fn text(self) -> &'static str {
        match self {
            Self::WrongCode => "wrong code",
            Self::RateLimited => "too soon after a wrong code",
            Self::Busy => "another host is pairing",
            Self::Locked => "too many wrong codes",
            Self::PairingOff => "pairing is off",
            Self::DeniedByAdministrator => "denied by the administrator",
            Self::NoAnswer => "not confirmed in time",
            Self::NoSpace => "the key of the host could not be stored: no space left on device",
            Self::NotStored => "the key of the host could not be stored",
            Self::Expired => "the access of the host has expired",
        }
    }
}

impl fmt::Display for RefusalReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// The first message of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) code_kind: CodeKind,
    /// Whether the host requests write access.
    pub(crate) writable: bool,
    /// The share as received, of any length.
    pub(crate) share: Vec<u8>,
    /// The host NQN.
    pub(crate) host: String,
    /// The machine name.
    pub(crate) name: String,
}

impl Hello {
    /// Returns the associated data for the transcript: everything except the share.
    pub(crate) fn associated_data(&self) -> Vec<u8> {
        let code_kind = if self.code_kind == CodeKind::Digits { 1 } else { 2 };
        let mut out = vec![frame::VERSION, code_kind, self.writable.into()];
        put_prefixed(&mut out, self.host.as_bytes());
        put_prefixed(&mut out, self.name.as_bytes());
        out
    }

    /// Encodes the frame.
    pub(crate) fn emit(&self) -> Vec<u8> {
        let code_kind = if self.code_kind == CodeKind::Digits { 1 } else { 2 };
        let mut body = vec![code_kind, self.writable.into()];
        put_prefixed(&mut body, &self.share);
        put_prefixed(&mut body, self.host.as_bytes());
        put_prefixed(&mut body, self.name.as_bytes());
        frame::emit(message_type::HELLO, &body)
    }

    fn parse(body: &[u8]) -> Result<Self, Violation> {
        let mut fields = Fields::new(body);
        let code_kind = match fields.byte()? {
            1 => CodeKind::Digits,
            2 => CodeKind::Long,
            _ => return Err(Violation::BodyMalformed),
        };
        let writable = parse_flag(fields.byte()?)?;
        let share = fields.bytes()?.to_vec();
        let (host, name) = (fields.text(MAX_NQN)?, fields.text(MAX_NAME)?);
        fields.end()?;
        if is_nqn(&host) {
            Ok(Self { code_kind, writable, share, host, name })
        } else {
            Err(Violation::BodyMalformed)
        }
    }
}

/// Returns whether `text` may be an NQN: not empty, not too long, without spaces and control characters.
pub(crate) fn is_nqn(text: &str) -> bool {
    (1..=MAX_NQN).contains(&text.len())
        && text.chars().all(|c| !c.is_control() && !c.is_whitespace())
}

/// Removes control characters and truncates to `max_len` bytes.
fn strip_and_truncate(text: &str, max_len: usize) -> String {
    let mut out = String::new();
    for c in text.chars().filter(|c| !c.is_control()) {
        if out.len() + c.len_utf8() > max_len {
            break;
        }
        out.push(c);
    }
    out
}

/// Returns a machine name that fits in a message: without control characters, and truncated.
pub(crate) fn to_machine_name(name: &str) -> String {
    strip_and_truncate(name, MAX_NAME)
}

fn parse_flag(byte: u8) -> Result<bool, Violation> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Violation::BodyMalformed),
    }
}

/// A message of the host.
#[derive(Debug)]
pub(crate) enum FromHost {
    Hello(Hello),
    Confirm(Box<Tag>),
}

impl FromHost {
    pub(crate) fn parse(frame: &Frame) -> Result<Self, Violation> {
        match frame.message_type {
            message_type::HELLO => Hello::parse(&frame.body).map(Self::Hello),
            message_type::CONFIRM => {
                let tag = <Tag>::try_from(frame.body.as_slice());
                tag.map(|tag| Self::Confirm(Box::new(tag))).map_err(|_| Violation::BodyMalformed)
            }
            _ => Err(Violation::TypeUnknown),
        }
    }
}

/// A message of the target. The tag of a message is verified by [`verify_tag`].
#[derive(Debug)]
pub(crate) enum FromTarget {
    Answer(Vec<u8>),
    Welcome(Box<Tag>, String),
    Granted(Access, usize),
    Disk(Disk),
    /// After key confirmation.
    RefusedAuthenticated(RefusalReason),
    /// Before key confirmation, with the number of seconds after which to retry.
    Refused(RefusalReason, u16),
}

impl FromTarget {
    /// Parses a message. Does not verify its tag.
    pub(crate) fn parse_unverified(frame: &Frame) -> Result<Self, Violation> {
        let body = if has_tag(frame) { frame::split_tag(&frame.body)?.0 } else { &frame.body };
        let mut fields = Fields::new(body);
        let found = match frame.message_type {
            message_type::ANSWER => Self::Answer(fields.bytes()?.to_vec()),
            message_type::WELCOME => {
                Self::Welcome(Box::new(fields.array::<TAG_LEN>()?), fields.text(MAX_NAME)?)
            }
            message_type::GRANTED => Self::Granted(
                parse_access(fields.byte()?)?,
                usize::from(u16::from_le_bytes(fields.array()?)),
            ),
            message_type::DISK => Self::Disk(parse_disk(&mut fields)?),
            message_type::REFUSED_AUTHENTICATED => {
                Self::RefusedAuthenticated(RefusalReason::parse(fields.byte()?)?)
            }
            message_type::REFUSED => Self::Refused(
                RefusalReason::parse(fields.byte()?)?,
                u16::from_le_bytes(fields.array()?),
            ),
            _ => return Err(Violation::TypeUnknown),
        };
        fields.end()?;
        Ok(found)
    }
}

/// Returns whether a frame of that type ends in a tag that [`verify_tag`] verifies.
fn has_tag(frame: &Frame) -> bool {
    matches!(
        frame.message_type,
        message_type::GRANTED | message_type::DISK | message_type::REFUSED_AUTHENTICATED
    )
}

/// Returns whether the frame ends in a valid tag.
pub(crate) fn verify_tag(
    frame: &Frame,
    authenticator: &mut Authenticator,
) -> Result<bool, Violation> {
    if !has_tag(frame) {
        return Ok(false);
    }
    let (body, tag) = frame::split_tag(&frame.body)?;
    Ok(authenticator.verify(tag, frame.message_type, body))
}

fn parse_disk(fields: &mut Fields<'_>) -> Result<Disk, Violation> {
    let access = parse_access(fields.byte()?)?;
    let bytes = u64::from_le_bytes(fields.array()?);
    let (nqn, name, model) =
        (fields.text(MAX_NQN)?, fields.text(MAX_DISK_NAME)?, fields.text(MAX_MODEL)?);
    if !is_nqn(&nqn) {
        return Err(Violation::BodyMalformed);
    }
    Ok(Disk { nqn, name, model, bytes, access })
}

fn parse_access(byte: u8) -> Result<Access, Violation> {
    Ok(if parse_flag(byte)? { Access::Writable } else { Access::ReadOnly })
}

/// Encodes Confirm with the host's tag.
pub(crate) fn emit_confirm(tag: &Tag) -> Vec<u8> {
    frame::emit(message_type::CONFIRM, tag)
}

/// Encodes Answer with the target's share.
pub(crate) fn emit_answer(share: &[u8; SHARE_LEN]) -> Vec<u8> {
    let mut body = Vec::new();
    put_prefixed(&mut body, share);
    frame::emit(message_type::ANSWER, &body)
}

/// Encodes Welcome with the target's tag and name.
pub(crate) fn emit_welcome(tag: &Tag, name: &str) -> Vec<u8> {
    let mut body = tag.to_vec();
    put_prefixed(&mut body, name.as_bytes());
    frame::emit(message_type::WELCOME, &body)
}

/// Encodes Refused, with the number of seconds after which to retry; zero if a retry is of no use.
pub(crate) fn emit_refused(reason: RefusalReason, seconds: u16) -> Vec<u8> {
    let [low, high] = seconds.to_le_bytes();
    frame::emit(message_type::REFUSED, &[reason.number(), low, high])
}

/// Encodes the authenticated refusal, which is sent after key confirmation.
pub(crate) fn emit_refused_authenticated(
    reason: RefusalReason,
    authenticator: &mut Authenticator,
) -> Vec<u8> {
    emit_authenticated(message_type::REFUSED_AUTHENTICATED, vec![reason.number()], authenticator)
}

/// Encodes Granted and the disks: the first [`MAX_DISKS`] with a valid NQN.
pub(crate) fn emit_granted(
    access: Access,
    disks: &[Disk],
    authenticator: &mut Authenticator,
) -> Vec<u8> {
    let listed = || disks.iter().filter(|disk| is_nqn(&disk.nqn)).take(MAX_DISKS);
    let mut body = vec![access_byte(access)];
    body.extend(u16::try_from(listed().count()).unwrap_or_default().to_le_bytes());
    let mut out = emit_authenticated(message_type::GRANTED, body, authenticator);
    listed().for_each(|disk| out.extend(emit_disk(disk, authenticator)));
    out
}

fn emit_disk(disk: &Disk, authenticator: &mut Authenticator) -> Vec<u8> {
    let mut body = vec![access_byte(disk.access)];
    body.extend(disk.bytes.to_le_bytes());
    put_prefixed(&mut body, disk.nqn.as_bytes());
    put_prefixed(&mut body, strip_and_truncate(&disk.name, MAX_DISK_NAME).as_bytes());
    put_prefixed(&mut body, strip_and_truncate(&disk.model, MAX_MODEL).as_bytes());
    emit_authenticated(message_type::DISK, body, authenticator)
}

fn access_byte(access: Access) -> u8 {
    u8::from(access == Access::Writable)
}

fn emit_authenticated(
    message_type: u8,
    mut body: Vec<u8>,
    authenticator: &mut Authenticator,
) -> Vec<u8> {
    let tag = authenticator.tag(message_type, &body);
    body.extend_from_slice(&tag);
    frame::emit(message_type, &body)
}
