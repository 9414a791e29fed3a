//! What the two ends say to each other, as figures. It knows no order and no key.
//!
//! | kind | from | body |
//! |---|---|---|
//! | 1 Hello | host | form of the code, flags, share, host NQN, name |
//! | 2 Answer | target | share |
//! | 3 Confirm | host | proof |
//! | 4 Welcome | target | proof, name |
//! | 5 Granted | target | access, how many disks follow; proof |
//! | 6 Lent | target | access, size, NQN, name, model; proof |
//! | 7 Denied | target | why; proof |
//! | 8 Refused | target | why, seconds |
//!
//! Shares and texts have a byte before them that says their length. Before the host's proof the target says nothing of
//! itself: no name, no disk.

use std::fmt;

use export::Access;

use crate::agreement::{Seal, TAG, Tag};
use crate::code::Kind;
use crate::cpace::SHARE;
use crate::frame::{self, Fields, Frame, Violation, put};

/// Bytes of an NQN at most (NVMe Base 2.0 §4.5).
const NQN: usize = 223;
/// Bytes of the name of a machine or disk at most.
const NAME: usize = 64;
/// Bytes of a disk's model at most.
const MODEL: usize = 64;
/// Bytes of a disk's name at most.
const DISK_NAME: usize = 200;

/// Disks that one answer names at most.
pub const MOST_DISKS: usize = 1024;

mod kind {
    pub(super) const HELLO: u8 = 1;
    pub(super) const ANSWER: u8 = 2;
    pub(super) const CONFIRM: u8 = 3;
    pub(super) const WELCOME: u8 = 4;
    pub(super) const GRANTED: u8 = 5;
    pub(super) const LENT: u8 = 6;
    pub(super) const DENIED: u8 = 7;
    pub(super) const REFUSED: u8 = 8;
}

/// A disk that the host may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The NQN of its subsystem.
    pub nqn: String,
    /// What the target calls it.
    pub name: String,
    /// Its model.
    pub model: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// What may be done with it.
    pub access: Access,
}

/// Why the target does not let a host in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It does not know the code, or not any more.
    WrongCode,
    /// Others failed just now: come again later.
    Later,
    /// Somebody else is trying just now.
    Busy,
    /// Too many have failed: pairing goes on after a long time, or when somebody at the target says so.
    Stopped,
    /// The target shows no code just now.
    Closed,
    /// The target's owner said no.
    Denied,
    /// Nobody at the target answered in time.
    Unanswered,
    /// The target cannot store the host's key: there is no space left on its device.
    Full,
    /// The target cannot store the host's key, for another reason.
    Unkept,
}

impl Why {
    const ALL: [(u8, Self); 9] = [
        (1, Self::WrongCode),
        (2, Self::Later),
        (3, Self::Busy),
        (4, Self::Stopped),
        (5, Self::Closed),
        (6, Self::Denied),
        (7, Self::Unanswered),
        (8, Self::Full),
        (9, Self::Unkept),
    ];

    fn number(self) -> u8 {
        Self::ALL.iter().find(|(_, why)| *why == self).map_or(0, |(number, _)| *number)
    }

    fn parse(number: u8) -> Result<Self, Violation> {
        let found = Self::ALL.iter().find(|(other, _)| *other == number);
        found.map(|(_, why)| *why).ok_or(Violation::BodyMalformed)
    }

    /// In few words, for the target's journal.
    pub fn text(self) -> &'static str {
        match self {
            Self::WrongCode => "wrong code",
            Self::Later => "too soon after a wrong code",
            Self::Busy => "another host is pairing",
            Self::Stopped => "too many wrong codes",
            Self::Closed => "pairing is off",
            Self::Denied => "denied by the owner",
            Self::Unanswered => "nobody at the screen answered",
            Self::Full => "its key could not be stored: no space left on device",
            Self::Unkept => "its key could not be stored",
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// What a host asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hello {
    /// The form of the code that it has.
    pub(crate) kind: Kind,
    /// Whether it wants to change disks, too.
    pub(crate) writable: bool,
    /// Its share as it came: it may have any length.
    pub(crate) share: Vec<u8>,
    /// Its NQN.
    pub(crate) host: String,
    /// What its owner calls it.
    pub(crate) name: String,
}

impl Hello {
    /// All but the share: what goes into the transcript beside it.
    pub(crate) fn beside(&self) -> Vec<u8> {
        let form = if self.kind == Kind::Digits { 1 } else { 2 };
        let mut out = vec![frame::VERSION, form, self.writable.into()];
        put(&mut out, self.host.as_bytes());
        put(&mut out, self.name.as_bytes());
        out
    }

    /// Its frame.
    pub(crate) fn emit(&self) -> Vec<u8> {
        let form = if self.kind == Kind::Digits { 1 } else { 2 };
        let mut body = vec![form, self.writable.into()];
        put(&mut body, &self.share);
        put(&mut body, self.host.as_bytes());
        put(&mut body, self.name.as_bytes());
        frame::emit(kind::HELLO, &body)
    }

    fn parse(body: &[u8]) -> Result<Self, Violation> {
        let mut fields = Fields::new(body);
        let kind = match fields.byte()? {
            1 => Kind::Digits,
            2 => Kind::Long,
            _ => return Err(Violation::BodyMalformed),
        };
        let writable = flag(fields.byte()?)?;
        let share = fields.bytes()?.to_vec();
        let (host, name) = (fields.text(NQN)?, fields.text(NAME)?);
        fields.end()?;
        if is_nqn(&host) {
            Ok(Self { kind, writable, share, host, name })
        } else {
            Err(Violation::BodyMalformed)
        }
    }
}

/// Whether it may be an NQN: it says something, in one word.
pub(crate) fn is_nqn(text: &str) -> bool {
    (1..=NQN).contains(&text.len()) && text.chars().all(|c| !c.is_control() && !c.is_whitespace())
}

/// The text, without what may not stand in a message, and cut to `most` bytes.
fn fit(text: &str, most: usize) -> String {
    let mut out = String::new();
    for c in text.chars().filter(|c| !c.is_control()) {
        if out.len() + c.len_utf8() > most {
            break;
        }
        out.push(c);
    }
    out
}

/// The name of a machine as it can be told.
pub(crate) fn machine(name: &str) -> String {
    fit(name, NAME)
}

fn flag(byte: u8) -> Result<bool, Violation> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Violation::BodyMalformed),
    }
}

/// What a host may say.
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

/// What a target may say. That it is sealed is the reader's to check, with the frame.
#[derive(Debug)]
pub(crate) enum FromTarget {
    Answer(Vec<u8>),
    Welcome(Box<Tag>, String),
    Granted(Access, usize),
    Lent(Disk),
    Denied(Why),
    Refused(Why, u16),
}

impl FromTarget {
    pub(crate) fn parse(frame: &Frame) -> Result<Self, Violation> {
        let body = if is_sealed(frame) { frame::split_tag(&frame.body)?.0 } else { &frame.body };
        let mut fields = Fields::new(body);
        let found = match frame.kind {
            kind::ANSWER => Self::Answer(fields.bytes()?.to_vec()),
            kind::WELCOME => Self::Welcome(Box::new(fields.array::<TAG>()?), fields.text(NAME)?),
            kind::GRANTED => Self::Granted(
                access(fields.byte()?)?,
                usize::from(u16::from_le_bytes(fields.array()?)),
            ),
            kind::LENT => Self::Lent(disk(&mut fields)?),
            kind::DENIED => Self::Denied(Why::parse(fields.byte()?)?),
            kind::REFUSED => {
                Self::Refused(Why::parse(fields.byte()?)?, u16::from_le_bytes(fields.array()?))
            }
            _ => return Err(Violation::KindUnknown),
        };
        fields.end()?;
        Ok(found)
    }
}

/// Whether frames of that kind end in a proof.
fn is_sealed(frame: &Frame) -> bool {
    matches!(frame.kind, kind::GRANTED | kind::LENT | kind::DENIED)
}

/// Whether the frame, if it must be sealed, was sealed by who holds `seal`.
pub(crate) fn is_genuine(frame: &Frame, seal: &mut Seal) -> Result<bool, Violation> {
    if !is_sealed(frame) {
        return Ok(false);
    }
    let (body, tag) = frame::split_tag(&frame.body)?;
    Ok(seal.is_tag(tag, frame.kind, body))
}

fn disk(fields: &mut Fields<'_>) -> Result<Disk, Violation> {
    let access = access(fields.byte()?)?;
    let bytes = u64::from_le_bytes(fields.array()?);
    let (nqn, name, model) = (fields.text(NQN)?, fields.text(DISK_NAME)?, fields.text(MODEL)?);
    if !is_nqn(&nqn) {
        return Err(Violation::BodyMalformed);
    }
    Ok(Disk { nqn, name, model, bytes, access })
}

fn access(byte: u8) -> Result<Access, Violation> {
    Ok(if flag(byte)? { Access::Writable } else { Access::ReadOnly })
}

/// The host's proof.
pub(crate) fn confirm(tag: &Tag) -> Vec<u8> {
    frame::emit(kind::CONFIRM, tag)
}

/// The target's share.
pub(crate) fn answer(share: &[u8; SHARE]) -> Vec<u8> {
    let mut body = Vec::new();
    put(&mut body, share);
    frame::emit(kind::ANSWER, &body)
}

/// The target's proof, and its name.
pub(crate) fn welcome(tag: &Tag, name: &str) -> Vec<u8> {
    let mut body = tag.to_vec();
    put(&mut body, name.as_bytes());
    frame::emit(kind::WELCOME, &body)
}

/// The target does not let the host in; to be asked again in so many seconds, if that is of use.
pub(crate) fn refused(why: Why, seconds: u16) -> Vec<u8> {
    let [low, high] = seconds.to_le_bytes();
    frame::emit(kind::REFUSED, &[why.number(), low, high])
}

/// The same, once both have proven who they are.
pub(crate) fn denied(why: Why, seal: &mut Seal) -> Vec<u8> {
    sealed(kind::DENIED, vec![why.number()], seal)
}

/// What the host may do, and the disks that it may have: the first [`MOST_DISKS`] whose NQN is one.
pub(crate) fn granted(access: Access, disks: &[Disk], seal: &mut Seal) -> Vec<u8> {
    let told = || disks.iter().filter(|disk| is_nqn(&disk.nqn)).take(MOST_DISKS);
    let mut body = vec![writable(access)];
    body.extend(u16::try_from(told().count()).unwrap_or_default().to_le_bytes());
    let mut out = sealed(kind::GRANTED, body, seal);
    told().for_each(|disk| out.extend(lent(disk, seal)));
    out
}

fn lent(disk: &Disk, seal: &mut Seal) -> Vec<u8> {
    let mut body = vec![writable(disk.access)];
    body.extend(disk.bytes.to_le_bytes());
    put(&mut body, disk.nqn.as_bytes());
    put(&mut body, fit(&disk.name, DISK_NAME).as_bytes());
    put(&mut body, fit(&disk.model, MODEL).as_bytes());
    sealed(kind::LENT, body, seal)
}

fn writable(access: Access) -> u8 {
    u8::from(access == Access::Writable)
}

fn sealed(kind: u8, mut body: Vec<u8>, seal: &mut Seal) -> Vec<u8> {
    let tag = seal.tag(kind, &body);
    body.extend_from_slice(&tag);
    frame::emit(kind, &body)
}
