//! Encoding of the messages.
//!
//! | kind | from | body |
//! |---|---|---|
//! | 1 Hello | host | form of the code, flags, share, host NQN, name |
//! | 2 Answer | target | share |
//! | 3 Confirm | host | tag |
//! | 4 Welcome | target | tag, name |
//! | 5 Granted | target | access, number of disks that follow; tag |
//! | 6 Disk | target | access, size, NQN, name, model; tag |
//! | 7 Denied | target | reason; tag |
//! | 8 Refused | target | reason, seconds |
//!
//! Shares and texts are preceded by a length byte. Before key confirmation the target reveals
//! neither its name nor its disks.

use std::fmt;

use export::Access;
use serde::{Deserialize, Serialize};

use crate::agreement::{Authenticator, TAG_LEN, Tag};
use crate::code::CodeKind;
use crate::cpace::SHARE_LEN;
use crate::frame::{self, Fields, Frame, Violation, put};

/// Maximum length of an NQN in bytes (NVMe Base 2.0 §4.5).
const MAX_NQN: usize = 223;
/// Maximum length of a machine name in bytes.
const MAX_NAME: usize = 64;
/// Maximum length of a disk model in bytes.
const MAX_MODEL: usize = 64;
/// Maximum length of a disk name in bytes.
const MAX_DISK_NAME: usize = 200;

/// Maximum number of disks sent to a client.
pub const MAX_DISKS: usize = 1024;

mod kind {
    pub(super) const HELLO: u8 = 1;
    pub(super) const ANSWER: u8 = 2;
    pub(super) const CONFIRM: u8 = 3;
    pub(super) const WELCOME: u8 = 4;
    pub(super) const GRANTED: u8 = 5;
    pub(super) const DISK: u8 = 6;
    pub(super) const DENIED: u8 = 7;
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
    /// Too many attempts failed: locked for a long time, or until unlocked at the target.
    Locked,
    /// Pairing is off.
    PairingOff,
    /// Denied by the administrator.
    Denied,
    /// The administrator did not answer in time.
    NoAnswer,
    /// The key could not be stored: no space left on device.
    NoSpace,
    /// The key could not be stored for another reason.
    NotStored,
}

impl RefusalReason {
    const ALL: [(u8, Self); 9] = [
        (1, Self::WrongCode),
        (2, Self::RateLimited),
        (3, Self::Busy),
        (4, Self::Locked),
        (5, Self::PairingOff),
        (6, Self::Denied),
        (7, Self::NoAnswer),
        (8, Self::NoSpace),
        (9, Self::NotStored),
    ];

    fn number(self) -> u8 {
        Self::ALL.iter().find(|(_, why)| *why == self).map_or(0, |(number, _)| *number)
    }

    fn parse(number: u8) -> Result<Self, Violation> {
        let found = Self::ALL.iter().find(|(other, _)| *other == number);
        found.map(|(_, why)| *why).ok_or(Violation::BodyMalformed)
    }

    /// Returns a short text for the target's journal.
    pub fn text(self) -> &'static str {
        match self {
            Self::WrongCode => "wrong code",
            Self::RateLimited => "too soon after a wrong code",
            Self::Busy => "another host is pairing",
            Self::Locked => "too many wrong codes",
            Self::PairingOff => "pairing is off",
            Self::Denied => "denied by the administrator",
            Self::NoAnswer => "not confirmed in time",
            Self::NoSpace => "its key could not be stored: no space left on device",
            Self::NotStored => "its key could not be stored",
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
    /// The form of the code.
    pub(crate) kind: CodeKind,
    /// Requests write access.
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
        let form = if self.kind == CodeKind::Digits { 1 } else { 2 };
        let mut out = vec![frame::VERSION, form, self.writable.into()];
        put(&mut out, self.host.as_bytes());
        put(&mut out, self.name.as_bytes());
        out
    }

    /// Encodes the frame.
    pub(crate) fn emit(&self) -> Vec<u8> {
        let form = if self.kind == CodeKind::Digits { 1 } else { 2 };
        let mut body = vec![form, self.writable.into()];
        put(&mut body, &self.share);
        put(&mut body, self.host.as_bytes());
        put(&mut body, self.name.as_bytes());
        frame::emit(kind::HELLO, &body)
    }

    fn parse(body: &[u8]) -> Result<Self, Violation> {
        let mut fields = Fields::new(body);
        let kind = match fields.byte()? {
            1 => CodeKind::Digits,
            2 => CodeKind::Long,
            _ => return Err(Violation::BodyMalformed),
        };
        let writable = flag(fields.byte()?)?;
        let share = fields.bytes()?.to_vec();
        let (host, name) = (fields.text(MAX_NQN)?, fields.text(MAX_NAME)?);
        fields.end()?;
        if is_nqn(&host) {
            Ok(Self { kind, writable, share, host, name })
        } else {
            Err(Violation::BodyMalformed)
        }
    }
}

/// Returns whether `text` may be an NQN: not empty, not too long, no spaces.
pub(crate) fn is_nqn(text: &str) -> bool {
    (1..=MAX_NQN).contains(&text.len())
        && text.chars().all(|c| !c.is_control() && !c.is_whitespace())
}

/// Removes control characters and truncates to `most` bytes.
fn sanitize(text: &str, most: usize) -> String {
    let mut out = String::new();
    for c in text.chars().filter(|c| !c.is_control()) {
        if out.len() + c.len_utf8() > most {
            break;
        }
        out.push(c);
    }
    out
}

/// Sanitizes a machine name.
pub(crate) fn machine_name(name: &str) -> String {
    sanitize(name, MAX_NAME)
}

fn flag(byte: u8) -> Result<bool, Violation> {
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
        match frame.kind {
            kind::HELLO => Hello::parse(&frame.body).map(Self::Hello),
            kind::CONFIRM => {
                let tag = <Tag>::try_from(frame.body.as_slice());
                tag.map(|tag| Self::Confirm(Box::new(tag))).map_err(|_| Violation::BodyMalformed)
            }
            _ => Err(Violation::KindUnknown),
        }
    }
}

/// A message of the target. The tag is checked separately by [`is_genuine`].
#[derive(Debug)]
pub(crate) enum FromTarget {
    Answer(Vec<u8>),
    Welcome(Box<Tag>, String),
    Granted(Access, usize),
    Disk(Disk),
    Denied(RefusalReason),
    Refused(RefusalReason, u16),
}

impl FromTarget {
    pub(crate) fn parse(frame: &Frame) -> Result<Self, Violation> {
        let body = if has_tag(frame) { frame::split_tag(&frame.body)?.0 } else { &frame.body };
        let mut fields = Fields::new(body);
        let found = match frame.kind {
            kind::ANSWER => Self::Answer(fields.bytes()?.to_vec()),
            kind::WELCOME => {
                Self::Welcome(Box::new(fields.array::<TAG_LEN>()?), fields.text(MAX_NAME)?)
            }
            kind::GRANTED => Self::Granted(
                access(fields.byte()?)?,
                usize::from(u16::from_le_bytes(fields.array()?)),
            ),
            kind::DISK => Self::Disk(disk(&mut fields)?),
            kind::DENIED => Self::Denied(RefusalReason::parse(fields.byte()?)?),
            kind::REFUSED => Self::Refused(
                RefusalReason::parse(fields.byte()?)?,
                u16::from_le_bytes(fields.array()?),
            ),
            _ => return Err(Violation::KindUnknown),
        };
        fields.end()?;
        Ok(found)
    }
}

/// Returns whether messages of that type end in a tag.
fn has_tag(frame: &Frame) -> bool {
    matches!(frame.kind, kind::GRANTED | kind::DISK | kind::DENIED)
}

/// Returns whether the frame ends in a valid tag.
pub(crate) fn is_genuine(
    frame: &Frame,
    authenticator: &mut Authenticator,
) -> Result<bool, Violation> {
    if !has_tag(frame) {
        return Ok(false);
    }
    let (body, tag) = frame::split_tag(&frame.body)?;
    Ok(authenticator.is_tag(tag, frame.kind, body))
}

fn disk(fields: &mut Fields<'_>) -> Result<Disk, Violation> {
    let access = access(fields.byte()?)?;
    let bytes = u64::from_le_bytes(fields.array()?);
    let (nqn, name, model) =
        (fields.text(MAX_NQN)?, fields.text(MAX_DISK_NAME)?, fields.text(MAX_MODEL)?);
    if !is_nqn(&nqn) {
        return Err(Violation::BodyMalformed);
    }
    Ok(Disk { nqn, name, model, bytes, access })
}

fn access(byte: u8) -> Result<Access, Violation> {
    Ok(if flag(byte)? { Access::Writable } else { Access::ReadOnly })
}

/// Encodes Confirm with the host's tag.
pub(crate) fn confirm(tag: &Tag) -> Vec<u8> {
    frame::emit(kind::CONFIRM, tag)
}

/// Encodes Answer with the target's share.
pub(crate) fn answer(share: &[u8; SHARE_LEN]) -> Vec<u8> {
    let mut body = Vec::new();
    put(&mut body, share);
    frame::emit(kind::ANSWER, &body)
}

/// Encodes Welcome with the target's tag and name.
pub(crate) fn welcome(tag: &Tag, name: &str) -> Vec<u8> {
    let mut body = tag.to_vec();
    put(&mut body, name.as_bytes());
    frame::emit(kind::WELCOME, &body)
}

/// Encodes Refused, with the number of seconds after which to retry; zero if a retry is of no use.
pub(crate) fn refused(why: RefusalReason, seconds: u16) -> Vec<u8> {
    let [low, high] = seconds.to_le_bytes();
    frame::emit(kind::REFUSED, &[why.number(), low, high])
}

/// Encodes Denied, the authenticated refusal after key confirmation.
pub(crate) fn denied(why: RefusalReason, authenticator: &mut Authenticator) -> Vec<u8> {
    authenticated(kind::DENIED, vec![why.number()], authenticator)
}

/// Encodes Granted and the disks: the first [`MAX_DISKS`] with a valid NQN.
pub(crate) fn granted(
    access: Access,
    disks: &[Disk],
    authenticator: &mut Authenticator,
) -> Vec<u8> {
    let told = || disks.iter().filter(|disk| is_nqn(&disk.nqn)).take(MAX_DISKS);
    let mut body = vec![writable(access)];
    body.extend(u16::try_from(told().count()).unwrap_or_default().to_le_bytes());
    let mut out = authenticated(kind::GRANTED, body, authenticator);
    told().for_each(|disk| out.extend(disk_message(disk, authenticator)));
    out
}

fn disk_message(disk: &Disk, authenticator: &mut Authenticator) -> Vec<u8> {
    let mut body = vec![writable(disk.access)];
    body.extend(disk.bytes.to_le_bytes());
    put(&mut body, disk.nqn.as_bytes());
    put(&mut body, sanitize(&disk.name, MAX_DISK_NAME).as_bytes());
    put(&mut body, sanitize(&disk.model, MAX_MODEL).as_bytes());
    authenticated(kind::DISK, body, authenticator)
}

fn writable(access: Access) -> u8 {
    u8::from(access == Access::Writable)
}

fn authenticated(kind: u8, mut body: Vec<u8>, authenticator: &mut Authenticator) -> Vec<u8> {
    let tag = authenticator.tag(kind, &body);
    body.extend_from_slice(&tag);
    frame::emit(kind, &body)
}
