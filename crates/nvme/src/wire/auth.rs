//! The messages of authentication: what Authentication Send and Receive carry (NVMe Base 2.0 §8.13.4, §8.13.5).
//!
//! Knows the form of each message and that its parts lie inside it; not which message may come when, nor what its
//! values prove.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// SECP of the two commands: NVMe's own protocols.
pub const SECP: u8 = 0xe9;

/// SPSP0 and SPSP1 of the two commands.
pub const SPSP: u16 = 0x0101;

/// AUTH_TYPE: messages that all protocols share.
const COMMON: u8 = 0;
/// AUTH_TYPE: messages of DH-HMAC-CHAP.
const DHCHAP: u8 = 1;

/// AUTH_ID of each message.
mod id {
    pub(super) const NEGOTIATE: u8 = 0x00;
    pub(super) const CHALLENGE: u8 = 0x01;
    pub(super) const REPLY: u8 = 0x02;
    pub(super) const SUCCESS1: u8 = 0x03;
    pub(super) const SUCCESS2: u8 = 0x04;
    pub(super) const FAILURE2: u8 = 0xf0;
    pub(super) const FAILURE1: u8 = 0xf1;
}

/// Values of SC_C: what is to become of the channel.
pub mod sc_c {
    /// Nothing.
    pub const NONE: u8 = 0;
    /// A TLS key comes out of it, for a connection to come.
    pub const NEW_TLS_PSK: u8 = 2;
    /// A TLS key comes out of it in place of the one that the channel was made with.
    pub const REPLACE_TLS_PSK: u8 = 3;
}

/// Why an authentication failed: reason code explanation, with reason code 01h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Explanation {
    /// What was to be proven was not.
    Failed,
    /// No protocol that both have.
    ProtocolUnusable,
    /// The secure channel that is asked for cannot be.
    ConcatenationMismatch,
    /// No hash that both have.
    HashUnusable,
    /// No group that both have, or a public value that proves nothing.
    GroupUnusable,
    /// A message whose fields cannot be.
    IncorrectPayload,
    /// A message that was not due.
    IncorrectMessage,
}

impl Explanation {
    const ALL: [Self; 7] = [
        Self::Failed,
        Self::ProtocolUnusable,
        Self::ConcatenationMismatch,
        Self::HashUnusable,
        Self::GroupUnusable,
        Self::IncorrectPayload,
        Self::IncorrectMessage,
    ];

    /// Its code: 1 to 7.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8 + 1
    }

    /// What a code means; an unknown one that it failed.
    #[must_use]
    pub fn parse(code: u8) -> Self {
        Self::ALL.into_iter().find(|known| known.code() == code).unwrap_or(Self::Failed)
    }

    /// The sentence for the machine's owner.
    #[must_use]
    pub const fn why(self) -> &'static str {
        match self {
            Self::Failed => "did not prove that it knows its key",
            Self::ProtocolUnusable => "offers no way to prove its key that is known here",
            Self::ConcatenationMismatch => "asked for a secured channel that cannot be had",
            Self::HashUnusable => "offers no hash that is known here",
            Self::GroupUnusable => "offers no Diffie-Hellman group that is allowed here",
            Self::IncorrectPayload => "sent an authentication message with wrong fields",
            Self::IncorrectMessage => "sent an authentication message that was not due",
        }
    }
}

/// The first bytes of every message: 6 bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
struct Prefix {
    auth_type: u8,
    auth_id: u8,
    _rsvd2: U16,
    t_id: U16,
}
const _: () = assert!(size_of::<Prefix>() == 6);

impl Prefix {
    fn new(auth_type: u8, auth_id: u8, t_id: u16) -> Self {
        Self { auth_type, auth_id, t_id: U16::new(t_id), ..Self::new_zeroed() }
    }
}

/// AUTH_Negotiate with its one protocol: 72 bytes (NVMe Base 2.0 §8.13.4.1, §8.13.5.2).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
struct NegotiateFigure {
    prefix: Prefix,
    sc_c: u8,
    napd: u8,
    authid: u8,
    _rsvd9: u8,
    halen: u8,
    dhlen: u8,
    /// 30 hash identifiers, 30 group identifiers.
    idlist: [u8; 60],
}
const _: () = assert!(size_of::<NegotiateFigure>() == 72);

/// AUTHID of DH-HMAC-CHAP.
const AUTHID: u8 = 1;

/// The head of DH-HMAC-CHAP_Challenge: 16 bytes (NVMe Base 2.0 §8.13.5.3). The challenge follows, then the public value.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
struct ChallengeFigure {
    prefix: Prefix,
    hl: u8,
    _rsvd7: u8,
    hashid: u8,
    dhgid: u8,
    dhvlen: U16,
    seqnum: U32,
}
const _: () = assert!(size_of::<ChallengeFigure>() == 16);

/// The head of DH-HMAC-CHAP_Reply: 16 bytes (NVMe Base 2.0 §8.13.5.4). The response follows, then the host's own
/// challenge, as long, then the public value.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
struct ReplyFigure {
    prefix: Prefix,
    hl: u8,
    _rsvd7: u8,
    cvalid: u8,
    _rsvd9: u8,
    dhvlen: U16,
    seqnum: U32,
}
const _: () = assert!(size_of::<ReplyFigure>() == 16);

/// The head of DH-HMAC-CHAP_Success1: 16 bytes (NVMe Base 2.0 §8.13.5.5). The response follows.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
struct Success1Figure {
    prefix: Prefix,
    hl: u8,
    _rsvd7: u8,
    rvalid: u8,
    _rsvd9: [u8; 7],
}
const _: () = assert!(size_of::<Success1Figure>() == 16);

/// DH-HMAC-CHAP_Success2: 16 bytes (NVMe Base 2.0 §8.13.5.6).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
struct Success2Figure {
    prefix: Prefix,
    _rsvd6: [u8; 10],
}
const _: () = assert!(size_of::<Success2Figure>() == 16);

/// AUTH_Failure1 and AUTH_Failure2: 8 bytes (NVMe Base 2.0 §8.13.4.2).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
struct FailureFigure {
    prefix: Prefix,
    rescode: u8,
    rescode_exp: u8,
}
const _: () = assert!(size_of::<FailureFigure>() == 8);

/// The one reason code: authentication failure.
const FAILED: u8 = 1;

/// What a host offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiate<'a> {
    /// See [`sc_c`].
    pub sc_c: u8,
    /// Hash identifiers: at most 30.
    pub hashes: &'a [u8],
    /// Group identifiers: at most 30.
    pub groups: &'a [u8],
}

/// What a controller asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Challenge<'a> {
    /// The hash to be used.
    pub hash: u8,
    /// The group to be used.
    pub group: u8,
    /// Sequence number S1: not 0.
    pub sequence: u32,
    /// Challenge C1.
    pub challenge: &'a [u8],
    /// The controller's public value; empty without a group.
    pub public: &'a [u8],
}

/// What a host answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply<'a> {
    /// Sequence number S2: 0 if the controller need not answer the challenge.
    pub sequence: u32,
    /// Response R1.
    pub response: &'a [u8],
    /// Challenge C2, as long as the response, if there is one.
    pub challenge: Option<&'a [u8]>,
    /// The host's public value; empty without a group.
    pub public: &'a [u8],
}

/// A message from a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromHost<'a> {
    /// AUTH_Negotiate.
    Negotiate(Negotiate<'a>),
    /// DH-HMAC-CHAP_Reply.
    Reply(Reply<'a>),
    /// DH-HMAC-CHAP_Success2.
    Success2,
    /// AUTH_Failure2.
    Failure2(Explanation),
}

/// A message from a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromController<'a> {
    /// DH-HMAC-CHAP_Challenge.
    Challenge(Challenge<'a>),
    /// DH-HMAC-CHAP_Success1, with response R2 if the controller was asked for one.
    Success1(Option<&'a [u8]>),
    /// AUTH_Failure1.
    Failure1(Explanation),
}

impl<'a> FromHost<'a> {
    /// The message in what Authentication Send carries, and its transaction identifier. Bytes after it are of no concern.
    ///
    /// # Errors
    /// The message is none of a host's, or its parts reach beyond it.
    pub fn parse(bytes: &'a [u8]) -> Result<(u16, Self), Explanation> {
        let (prefix, _) = figure::<Prefix>(bytes)?;
        let message = match (prefix.auth_type, prefix.auth_id) {
            (COMMON, id::NEGOTIATE) => Self::Negotiate(parse_negotiate(bytes)?),
            (DHCHAP, id::REPLY) => Self::Reply(parse_reply(bytes)?),
            (DHCHAP, id::SUCCESS2) => figure::<Success2Figure>(bytes).map(|_| Self::Success2)?,
            (COMMON, id::FAILURE2) => {
                Self::Failure2(Explanation::parse(figure::<FailureFigure>(bytes)?.0.rescode_exp))
            }
            _ => return Err(Explanation::IncorrectMessage),
        };
        Ok((prefix.t_id.get(), message))
    }

    /// The bytes of the message.
    #[must_use]
    pub fn emit(&self, t_id: u16) -> Vec<u8> {
        match self {
            Self::Negotiate(negotiate) => emit_negotiate(t_id, negotiate),
            Self::Reply(reply) => emit_reply(t_id, reply),
            Self::Success2 => {
                let prefix = Prefix::new(DHCHAP, id::SUCCESS2, t_id);
                Success2Figure { prefix, ..Success2Figure::new_zeroed() }.as_bytes().to_vec()
            }
            Self::Failure2(why) => emit_failure(id::FAILURE2, t_id, *why),
        }
    }
}

impl<'a> FromController<'a> {
    /// The message in what Authentication Receive brought, and its transaction identifier.
    ///
    /// # Errors
    /// The message is none of a controller's, or its parts reach beyond it.
    pub fn parse(bytes: &'a [u8]) -> Result<(u16, Self), Explanation> {
        let (prefix, _) = figure::<Prefix>(bytes)?;
        let message = match (prefix.auth_type, prefix.auth_id) {
            (DHCHAP, id::CHALLENGE) => Self::Challenge(parse_challenge(bytes)?),
            (DHCHAP, id::SUCCESS1) => {
                let (head, rest) = figure::<Success1Figure>(bytes)?;
                let response = head.rvalid & 1 != 0;
                Self::Success1(if response { Some(split(rest, head.hl.into())?.0) } else { None })
            }
            (COMMON, id::FAILURE1) => {
                Self::Failure1(Explanation::parse(figure::<FailureFigure>(bytes)?.0.rescode_exp))
            }
            _ => return Err(Explanation::IncorrectMessage),
        };
        Ok((prefix.t_id.get(), message))
    }

    /// The bytes of the message. `hash_len` are the bytes of the hash in use, which Success1 names in any case.
    #[must_use]
    pub fn emit(&self, t_id: u16, hash_len: usize) -> Vec<u8> {
        match self {
            Self::Challenge(challenge) => emit_challenge(t_id, challenge),
            Self::Success1(response) => {
                let prefix = Prefix::new(DHCHAP, id::SUCCESS1, t_id);
                let (hl, rvalid) = (len8(hash_len), response.is_some().into());
                let head = Success1Figure { prefix, hl, rvalid, ..Success1Figure::new_zeroed() };
                [head.as_bytes(), response.unwrap_or_default()].concat()
            }
            Self::Failure1(why) => emit_failure(id::FAILURE1, t_id, *why),
        }
    }
}

fn parse_negotiate(bytes: &[u8]) -> Result<Negotiate<'_>, Explanation> {
    let head = bytes.first_chunk::<8>().ok_or(Explanation::IncorrectPayload)?;
    // Only DH-HMAC-CHAP is known; it must be the first of what the host can do.
    if head[7] == 0 {
        return Err(Explanation::IncorrectPayload);
    }
    let (figure, _) =
        NegotiateFigure::ref_from_prefix(bytes).map_err(|_| Explanation::IncorrectPayload)?;
    if figure.authid != AUTHID {
        return Err(Explanation::ProtocolUnusable);
    }
    let (hashes, groups) = figure.idlist.split_at(30);
    let listed = |list: &'_ [u8], len: u8| -> Result<usize, Explanation> {
        Some(usize::from(len)).filter(|&len| len <= list.len()).ok_or(Explanation::IncorrectPayload)
    };
    let (halen, dhlen) = (listed(hashes, figure.halen)?, listed(groups, figure.dhlen)?);
    let (hashes, groups) = (split(hashes, halen)?.0, split(groups, dhlen)?.0);
    Ok(Negotiate { sc_c: figure.sc_c, hashes, groups })
}

fn emit_negotiate(t_id: u16, negotiate: &Negotiate<'_>) -> Vec<u8> {
    let mut figure = NegotiateFigure {
        prefix: Prefix::new(COMMON, id::NEGOTIATE, t_id),
        sc_c: negotiate.sc_c,
        napd: 1,
        authid: AUTHID,
        ..NegotiateFigure::new_zeroed()
    };
    let (hashes, groups) = figure.idlist.split_at_mut(30);
    figure.halen = fill(hashes, negotiate.hashes);
    figure.dhlen = fill(groups, negotiate.groups);
    figure.as_bytes().to_vec()
}

/// Writes as many identifiers as there is room for, and tells how many.
fn fill(list: &mut [u8], ids: &[u8]) -> u8 {
    list.iter_mut().zip(ids).for_each(|(place, id)| *place = *id);
    len8(ids.len().min(list.len()))
}

fn parse_challenge(bytes: &[u8]) -> Result<Challenge<'_>, Explanation> {
    let (head, rest) = figure::<ChallengeFigure>(bytes)?;
    let (challenge, rest) = split(rest, head.hl.into())?;
    let (public, _) = split(rest, head.dhvlen.get().into())?;
    let (hash, group, sequence) = (head.hashid, head.dhgid, head.seqnum.get());
    Ok(Challenge { hash, group, sequence, challenge, public })
}

fn emit_challenge(t_id: u16, challenge: &Challenge<'_>) -> Vec<u8> {
    let head = ChallengeFigure {
        prefix: Prefix::new(DHCHAP, id::CHALLENGE, t_id),
        hl: len8(challenge.challenge.len()),
        hashid: challenge.hash,
        dhgid: challenge.group,
        dhvlen: len16(challenge.public.len()).into(),
        seqnum: U32::new(challenge.sequence),
        ..ChallengeFigure::new_zeroed()
    };
    [head.as_bytes(), challenge.challenge, challenge.public].concat()
}

fn parse_reply(bytes: &[u8]) -> Result<Reply<'_>, Explanation> {
    let (head, rest) = figure::<ReplyFigure>(bytes)?;
    let (response, rest) = split(rest, head.hl.into())?;
    // There is room for the host's challenge whether it is valid or not.
    let (challenge, rest) = split(rest, head.hl.into())?;
    let (public, _) = split(rest, head.dhvlen.get().into())?;
    let challenge = Some(challenge).filter(|_| head.cvalid & 1 != 0);
    Ok(Reply { sequence: head.seqnum.get(), response, challenge, public })
}

fn emit_reply(t_id: u16, reply: &Reply<'_>) -> Vec<u8> {
    let head = ReplyFigure {
        prefix: Prefix::new(DHCHAP, id::REPLY, t_id),
        hl: len8(reply.response.len()),
        cvalid: reply.challenge.is_some().into(),
        dhvlen: len16(reply.public.len()).into(),
        seqnum: U32::new(reply.sequence),
        ..ReplyFigure::new_zeroed()
    };
    let none = vec![0; reply.response.len()];
    [head.as_bytes(), reply.response, reply.challenge.unwrap_or(&none), reply.public].concat()
}

fn emit_failure(auth_id: u8, t_id: u16, why: Explanation) -> Vec<u8> {
    let prefix = Prefix::new(COMMON, auth_id, t_id);
    FailureFigure { prefix, rescode: FAILED, rescode_exp: why.code() }.as_bytes().to_vec()
}

/// The figure at the front of a message, and what follows it.
fn figure<T: FromBytes + KnownLayout + Immutable + Unaligned>(
    bytes: &[u8],
) -> Result<(&T, &[u8]), Explanation> {
    T::ref_from_prefix(bytes).map_err(|_| Explanation::IncorrectPayload)
}

fn split(bytes: &[u8], at: usize) -> Result<(&[u8], &[u8]), Explanation> {
    bytes.split_at_checked(at).ok_or(Explanation::IncorrectPayload)
}

/// Lengths of hashes and of groups' values, which fit.
fn len8(len: usize) -> u8 {
    u8::try_from(len).unwrap_or(u8::MAX)
}

fn len16(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod test {
    use super::*;

    /// What Linux 6.12 sends.
    #[test]
    fn golden_negotiate() {
        let mut bytes = vec![0, 0, 0, 0, 0x34, 0x12]; // common messages, negotiate, T_ID
        bytes.extend([0, 1]); // SC_C, NAPD
        bytes.extend([1, 0, 3, 6]); // AUTHID, HALEN, DHLEN
        bytes.extend([1, 2, 3]);
        bytes.extend([0; 27]);
        bytes.extend([0, 1, 2, 3, 4, 5]);
        bytes.extend([0; 24]);
        let negotiate = Negotiate { sc_c: 0, hashes: &[1, 2, 3], groups: &[0, 1, 2, 3, 4, 5] };
        let message = FromHost::Negotiate(negotiate);
        assert_eq!(FromHost::parse(&bytes), Ok((0x1234, message)));
        assert_eq!(message.emit(0x1234), bytes);
    }

    /// X32: lists that reach beyond their room.
    #[test]
    fn x32_a_negotiate_that_reaches_beyond_itself_is_refused() {
        let good = FromHost::Negotiate(Negotiate { sc_c: 0, hashes: &[1], groups: &[1] }).emit(1);
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            FromHost::parse(&bytes).map(|_| ()).map_err(Explanation::code)
        };
        assert_eq!(with(10, 30), Ok(()));
        assert_eq!(with(11, 30), Ok(()));
        for (at, byte, code) in
            [(7, 0, 6), (8, 2, 2), (10, 31, 6), (10, 255, 6), (11, 31, 6), (1, 9, 7), (0, 2, 7)]
        {
            assert_eq!(with(at, byte), Err(code), "{at} {byte}");
        }
        for len in 0..good.len() {
            assert_eq!(FromHost::parse(&good[..len]), Err(Explanation::IncorrectPayload), "{len}");
        }
    }

    #[test]
    fn golden_challenge() {
        let mut bytes = vec![1, 1, 0, 0, 7, 0, 32, 0, 1, 1, 2, 0, 0x44, 0x33, 0x22, 0x11];
        bytes.extend([0xc1; 32]);
        bytes.extend([0xd1, 0xd2]);
        let message = FromController::Challenge(Challenge {
            hash: 1,
            group: 1,
            sequence: 0x1122_3344,
            challenge: &[0xc1; 32],
            public: &[0xd1, 0xd2],
        });
        assert_eq!(FromController::parse(&bytes), Ok((7, message)));
        assert_eq!(message.emit(7, 32), bytes);
        for len in 0..bytes.len() {
            assert_eq!(FromController::parse(&bytes[..len]), Err(Explanation::IncorrectPayload));
        }
    }

    #[test]
    fn golden_reply() {
        let mut bytes = vec![1, 2, 0, 0, 7, 0, 2, 0, 1, 0, 3, 0, 5, 0, 0, 0];
        bytes.extend([0xa1, 0xa2, 0xc1, 0xc2, 0xd1, 0xd2, 0xd3]);
        let reply = Reply {
            sequence: 5,
            response: &[0xa1, 0xa2],
            challenge: Some(&[0xc1, 0xc2]),
            public: &[0xd1, 0xd2, 0xd3],
        };
        assert_eq!(FromHost::parse(&bytes), Ok((7, FromHost::Reply(reply))));
        assert_eq!(FromHost::Reply(reply).emit(7), bytes);
        for len in 0..bytes.len() {
            assert_eq!(FromHost::parse(&bytes[..len]), Err(Explanation::IncorrectPayload));
        }
        // Without a challenge its room stays, and holds zeros.
        let alone = FromHost::Reply(Reply { challenge: None, sequence: 0, ..reply }).emit(7);
        assert_eq!(alone.len(), bytes.len());
        assert_eq!((alone[8], &alone[18..20]), (0, [0, 0].as_slice()));
    }

    #[test]
    fn golden_ends() {
        let mut success1 = vec![1, 3, 0, 0, 7, 0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0xb1, 0xb2];
        let message = FromController::Success1(Some(&[0xb1, 0xb2]));
        assert_eq!(FromController::parse(&success1), Ok((7, message)));
        assert_eq!(message.emit(7, 2), success1);
        assert!(FromController::parse(&success1[..17]).is_err());
        (success1[8], success1[6]) = (0, 32);
        success1.truncate(16);
        assert_eq!(FromController::parse(&success1), Ok((7, FromController::Success1(None))));
        assert_eq!(FromController::Success1(None).emit(7, 32), success1);
        let success2 = [1, 4, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(FromHost::parse(&success2), Ok((7, FromHost::Success2)));
        assert_eq!(FromHost::Success2.emit(7), success2);
        let (failure1, failure2) = ([0, 0xf1, 0, 0, 7, 0, 1, 5], [0, 0xf0, 0, 0, 7, 0, 1, 1]);
        let (one, two) = (
            FromController::Failure1(Explanation::GroupUnusable),
            FromHost::Failure2(Explanation::Failed),
        );
        assert_eq!(FromController::parse(&failure1), Ok((7, one)));
        assert_eq!(one.emit(7, 0), failure1);
        assert_eq!(FromHost::parse(&failure2), Ok((7, two)));
        assert_eq!(two.emit(7), failure2);
    }

    #[test]
    fn every_explanation_keeps_its_code() {
        for why in Explanation::ALL {
            assert_eq!(Explanation::parse(why.code()), why);
        }
        assert_eq!(
            (Explanation::parse(0), Explanation::parse(8)),
            (Explanation::Failed, Explanation::Failed)
        );
    }
}
