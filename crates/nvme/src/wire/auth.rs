//! Messages of DH-HMAC-CHAP authentication, the data of Authentication Send and Receive (NVMe Base
//! 2.0 §8.13.4, §8.13.5). Checks lengths only; `crate::auth` checks sequence and values.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// SECP for NVMe authentication.
pub const SECP: u8 = 0xe9;

/// SPSP0 and SPSP1 for NVMe authentication.
pub const SPSP: u16 = 0x0101;

/// AUTH_TYPE of common messages.
const COMMON: u8 = 0;
/// AUTH_TYPE of DH-HMAC-CHAP messages.
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

/// Values of SC_C (secure channel concatenation).
pub mod sc_c {
    /// No concatenation.
    pub const NONE: u8 = 0;
    /// Generates a TLS PSK for further connections.
    pub const NEW_TLS_PSK: u8 = 2;
    /// Replaces the TLS PSK of this connection.
    pub const REPLACE_TLS_PSK: u8 = 3;
}

/// Reason code explanation of a failure; the reason code is 01h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Explanation {
    /// Authentication failed.
    Failed,
    /// No common authentication protocol.
    ProtocolUnusable,
    /// Secure channel concatenation mismatch.
    ConcatenationMismatch,
    /// No common hash.
    HashUnusable,
    /// No common DH group, or an invalid public value.
    GroupUnusable,
    /// Incorrect payload.
    IncorrectPayload,
    /// Incorrect protocol message.
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

    /// Returns the code: 1 to 7.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8 + 1
    }

    /// Returns the explanation of a code; [`Self::Failed`] if it is unknown.
    #[must_use]
    pub fn parse(code: u8) -> Self {
        Self::ALL.into_iter().find(|explanation| explanation.code() == code).unwrap_or(Self::Failed)
    }

    /// Returns the reason for the administrator.
    #[must_use]
    pub const fn description(self) -> &'static str {
        match self {
            Self::Failed => "DH-HMAC-CHAP authentication failed (check the key)",
            Self::ProtocolUnusable => "it offers no supported authentication protocol",
            Self::ConcatenationMismatch => "it requests a TLS connection that is not available",
            Self::HashUnusable => "it offers no supported DH-HMAC-CHAP hash",
            Self::GroupUnusable => "it offers no allowed Diffie-Hellman group",
            Self::IncorrectPayload => "it sent an authentication message with invalid fields",
            Self::IncorrectMessage => "it sent an unexpected authentication message",
        }
    }
}

/// Common header of all messages: 6 bytes.
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
struct NegotiateHeader {
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
const _: () = assert!(size_of::<NegotiateHeader>() == 72);

/// AUTHID of DH-HMAC-CHAP.
const AUTHID: u8 = 1;

/// Header of DH-HMAC-CHAP_Challenge: 16 bytes (NVMe Base 2.0 §8.13.5.3). The challenge and the
/// public value follow.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
struct ChallengeHeader {
    prefix: Prefix,
    hl: u8,
    _rsvd7: u8,
    hashid: u8,
    dhgid: u8,
    dhvlen: U16,
    seqnum: U32,
}
const _: () = assert!(size_of::<ChallengeHeader>() == 16);

/// Header of DH-HMAC-CHAP_Reply: 16 bytes (NVMe Base 2.0 §8.13.5.4). The response, the host's
/// challenge of the same length, and the public value follow.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
struct ReplyHeader {
    prefix: Prefix,
    hl: u8,
    _rsvd7: u8,
    cvalid: u8,
    _rsvd9: u8,
    dhvlen: U16,
    seqnum: U32,
}
const _: () = assert!(size_of::<ReplyHeader>() == 16);

/// Header of DH-HMAC-CHAP_Success1: 16 bytes (NVMe Base 2.0 §8.13.5.5). The response follows.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
struct Success1Header {
    prefix: Prefix,
    hl: u8,
    _rsvd7: u8,
    rvalid: u8,
    _rsvd9: [u8; 7],
}
const _: () = assert!(size_of::<Success1Header>() == 16);

/// DH-HMAC-CHAP_Success2: 16 bytes (NVMe Base 2.0 §8.13.5.6).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
struct Success2Header {
    prefix: Prefix,
    _rsvd6: [u8; 10],
}
const _: () = assert!(size_of::<Success2Header>() == 16);

/// AUTH_Failure1 and AUTH_Failure2: 8 bytes (NVMe Base 2.0 §8.13.4.2).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
struct FailureHeader {
    prefix: Prefix,
    rescode: u8,
    rescode_exp: u8,
}
const _: () = assert!(size_of::<FailureHeader>() == 8);

/// Reason code: authentication failure.
const FAILED: u8 = 1;

/// AUTH_Negotiate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiate<'a> {
    /// See [`sc_c`].
    pub sc_c: u8,
    /// Hash identifiers: at most 30.
    pub hashes: &'a [u8],
    /// Group identifiers: at most 30.
    pub groups: &'a [u8],
}

/// DH-HMAC-CHAP_Challenge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Challenge<'a> {
    /// Identifier of the selected hash.
    pub hash: u8,
    /// Identifier of the selected DH group.
    pub group: u8,
    /// Sequence number S1: not 0.
    pub sequence: u32,
    /// Challenge C1.
    pub challenge: &'a [u8],
    /// DH public value of the controller; empty for the NULL group.
    pub public: &'a [u8],
}

/// DH-HMAC-CHAP_Reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply<'a> {
    /// Sequence number S2; 0 for unidirectional authentication.
    pub sequence: u32,
    /// Response R1.
    pub response: &'a [u8],
    /// Challenge C2, as long as the response.
    pub challenge: Option<&'a [u8]>,
    /// DH public value of the host; empty for the NULL group.
    pub public: &'a [u8],
}

/// A message of the host.
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

/// A message of the controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromController<'a> {
    /// DH-HMAC-CHAP_Challenge.
    Challenge(Challenge<'a>),
    /// DH-HMAC-CHAP_Success1, with response R2 in bidirectional authentication.
    Success1(Option<&'a [u8]>),
    /// AUTH_Failure1.
    Failure1(Explanation),
}

impl<'a> FromHost<'a> {
    /// Parses the data of Authentication Send. Returns the transaction identifier and the message;
    /// ignores trailing bytes.
    ///
    /// # Errors
    /// Fails if the message is unknown, too short, or not from a host.
    pub fn parse(bytes: &'a [u8]) -> Result<(u16, Self), Explanation> {
        let (prefix, _) = parse_header::<Prefix>(bytes)?;
        let message = match (prefix.auth_type, prefix.auth_id) {
            (COMMON, id::NEGOTIATE) => Self::Negotiate(parse_negotiate(bytes)?),
            (DHCHAP, id::REPLY) => Self::Reply(parse_reply(bytes)?),
            (DHCHAP, id::SUCCESS2) => {
                parse_header::<Success2Header>(bytes).map(|_| Self::Success2)?
            }
            (COMMON, id::FAILURE2) => Self::Failure2(Explanation::parse(
                parse_header::<FailureHeader>(bytes)?.0.rescode_exp,
            )),
            _ => return Err(Explanation::IncorrectMessage),
        };
        Ok((prefix.t_id.get(), message))
    }

    /// Returns the bytes of the message.
    #[must_use]
    pub fn emit(&self, t_id: u16) -> Vec<u8> {
        match self {
            Self::Negotiate(negotiate) => emit_negotiate(t_id, negotiate),
            Self::Reply(reply) => emit_reply(t_id, reply),
            Self::Success2 => {
                let prefix = Prefix::new(DHCHAP, id::SUCCESS2, t_id);
                Success2Header { prefix, ..Success2Header::new_zeroed() }.as_bytes().to_vec()
            }
            Self::Failure2(reason) => emit_failure(id::FAILURE2, t_id, *reason),
        }
    }
}

impl<'a> FromController<'a> {
    /// Parses the data of Authentication Receive. Returns the transaction identifier and the
    /// message.
    ///
    /// # Errors
    /// Fails if the message is unknown, too short, or not from a controller.
    pub fn parse(bytes: &'a [u8]) -> Result<(u16, Self), Explanation> {
        let (prefix, _) = parse_header::<Prefix>(bytes)?;
        let message = match (prefix.auth_type, prefix.auth_id) {
            (DHCHAP, id::CHALLENGE) => Self::Challenge(parse_challenge(bytes)?),
            (DHCHAP, id::SUCCESS1) => {
                let (head, rest) = parse_header::<Success1Header>(bytes)?;
                let response = head.rvalid & 1 != 0;
                Self::Success1(if response { Some(split(rest, head.hl.into())?.0) } else { None })
            }
            (COMMON, id::FAILURE1) => Self::Failure1(Explanation::parse(
                parse_header::<FailureHeader>(bytes)?.0.rescode_exp,
            )),
            _ => return Err(Explanation::IncorrectMessage),
        };
        Ok((prefix.t_id.get(), message))
    }

    /// Returns the bytes of the message. `hash_len` is the output length of the selected hash,
    /// which Success1 contains even without a response.
    #[must_use]
    pub fn emit(&self, t_id: u16, hash_len: usize) -> Vec<u8> {
        match self {
            Self::Challenge(challenge) => emit_challenge(t_id, challenge),
            Self::Success1(response) => {
                let prefix = Prefix::new(DHCHAP, id::SUCCESS1, t_id);
                let (hl, rvalid) = (len8(hash_len), response.is_some().into());
                let head = Success1Header { prefix, hl, rvalid, ..Success1Header::new_zeroed() };
                [head.as_bytes(), response.unwrap_or_default()].concat()
            }
            Self::Failure1(reason) => emit_failure(id::FAILURE1, t_id, *reason),
        }
    }
}

fn parse_negotiate(bytes: &[u8]) -> Result<Negotiate<'_>, Explanation> {
    let head = bytes.first_chunk::<8>().ok_or(Explanation::IncorrectPayload)?;
    // DH-HMAC-CHAP must be the first protocol in the list.
    if head[7] == 0 {
        return Err(Explanation::IncorrectPayload);
    }
    let (header, _) =
        NegotiateHeader::ref_from_prefix(bytes).map_err(|_| Explanation::IncorrectPayload)?;
    if header.authid != AUTHID {
        return Err(Explanation::ProtocolUnusable);
    }
    let (hashes, groups) = header.idlist.split_at(30);
    let listed = |list: &'_ [u8], len: u8| -> Result<usize, Explanation> {
        Some(usize::from(len)).filter(|&len| len <= list.len()).ok_or(Explanation::IncorrectPayload)
    };
    let (halen, dhlen) = (listed(hashes, header.halen)?, listed(groups, header.dhlen)?);
    let (hashes, groups) = (split(hashes, halen)?.0, split(groups, dhlen)?.0);
    Ok(Negotiate { sc_c: header.sc_c, hashes, groups })
}

fn emit_negotiate(t_id: u16, negotiate: &Negotiate<'_>) -> Vec<u8> {
    let mut header = NegotiateHeader {
        prefix: Prefix::new(COMMON, id::NEGOTIATE, t_id),
        sc_c: negotiate.sc_c,
        napd: 1,
        authid: AUTHID,
        ..NegotiateHeader::new_zeroed()
    };
    let (hashes, groups) = header.idlist.split_at_mut(30);
    header.halen = fill(hashes, negotiate.hashes);
    header.dhlen = fill(groups, negotiate.groups);
    header.as_bytes().to_vec()
}

/// Writes as many identifiers as fit. Returns their number.
fn fill(list: &mut [u8], ids: &[u8]) -> u8 {
    list.iter_mut().zip(ids).for_each(|(entry, id)| *entry = *id);
    len8(ids.len().min(list.len()))
}

fn parse_challenge(bytes: &[u8]) -> Result<Challenge<'_>, Explanation> {
    let (head, rest) = parse_header::<ChallengeHeader>(bytes)?;
    let (challenge, rest) = split(rest, head.hl.into())?;
    let (public, _) = split(rest, head.dhvlen.get().into())?;
    let (hash, group, sequence) = (head.hashid, head.dhgid, head.seqnum.get());
    Ok(Challenge { hash, group, sequence, challenge, public })
}

fn emit_challenge(t_id: u16, challenge: &Challenge<'_>) -> Vec<u8> {
    let head = ChallengeHeader {
        prefix: Prefix::new(DHCHAP, id::CHALLENGE, t_id),
        hl: len8(challenge.challenge.len()),
        hashid: challenge.hash,
        dhgid: challenge.group,
        dhvlen: len16(challenge.public.len()).into(),
        seqnum: U32::new(challenge.sequence),
        ..ChallengeHeader::new_zeroed()
    };
    [head.as_bytes(), challenge.challenge, challenge.public].concat()
}

fn parse_reply(bytes: &[u8]) -> Result<Reply<'_>, Explanation> {
    let (head, rest) = parse_header::<ReplyHeader>(bytes)?;
    let (response, rest) = split(rest, head.hl.into())?;
    // The field for the host's challenge is present even if it is not valid.
    let (challenge, rest) = split(rest, head.hl.into())?;
    let (public, _) = split(rest, head.dhvlen.get().into())?;
    let challenge = Some(challenge).filter(|_| head.cvalid & 1 != 0);
    Ok(Reply { sequence: head.seqnum.get(), response, challenge, public })
}

fn emit_reply(t_id: u16, reply: &Reply<'_>) -> Vec<u8> {
    let head = ReplyHeader {
        prefix: Prefix::new(DHCHAP, id::REPLY, t_id),
        hl: len8(reply.response.len()),
        cvalid: reply.challenge.is_some().into(),
        dhvlen: len16(reply.public.len()).into(),
        seqnum: U32::new(reply.sequence),
        ..ReplyHeader::new_zeroed()
    };
    let none = vec![0; reply.response.len()];
    [head.as_bytes(), reply.response, reply.challenge.unwrap_or(&none), reply.public].concat()
}

fn emit_failure(auth_id: u8, t_id: u16, reason: Explanation) -> Vec<u8> {
    let prefix = Prefix::new(COMMON, auth_id, t_id);
    FailureHeader { prefix, rescode: FAILED, rescode_exp: reason.code() }.as_bytes().to_vec()
}

/// Splits a message into its header and the rest.
fn parse_header<T: FromBytes + KnownLayout + Immutable + Unaligned>(
    bytes: &[u8],
) -> Result<(&T, &[u8]), Explanation> {
    T::ref_from_prefix(bytes).map_err(|_| Explanation::IncorrectPayload)
}

fn split(bytes: &[u8], at: usize) -> Result<(&[u8], &[u8]), Explanation> {
    bytes.split_at_checked(at).ok_or(Explanation::IncorrectPayload)
}

/// Converts the length of a hash or public value, which fits.
fn len8(len: usize) -> u8 {
    u8::try_from(len).unwrap_or(u8::MAX)
}

fn len16(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod test {
    use super::*;

    /// As sent by Linux 6.12.
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

    /// X32: list lengths beyond the fields.
    #[test]
    fn x32_negotiate_with_excessive_lengths_is_refused() {
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
        // Without a challenge the field contains zeros.
        let alone = FromHost::Reply(Reply { challenge: None, sequence: 0, ..reply }).emit(7);
        assert_eq!(alone.len(), bytes.len());
        assert_eq!((alone[8], &alone[18..20]), (0, [0, 0].as_slice()));
    }

    #[test]
    fn golden_success_and_failure() {
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
    fn explanation_codes_round_trip() {
        for reason in Explanation::ALL {
            assert_eq!(Explanation::parse(reason.code()), reason);
        }
        assert_eq!(
            (Explanation::parse(0), Explanation::parse(8)),
            (Explanation::Failed, Explanation::Failed)
        );
    }
}
