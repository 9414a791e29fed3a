//! Parses a byte stream into PDUs. Checks what does not depend on the commands in flight: types,
//! lengths, alignment, flags and digests (NVMe/TCP 1.0 §3.5, §3.6).

use zerocopy::FromBytes;

use super::digest::{Crc32c, crc32c};
use super::pdu::{self, CommonHeader, DIGEST, flag, kind};
use super::violation::Violation;
use crate::wire::command::Sqe;
use crate::wire::completion::Cqe;

/// The side that receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Controller: receives PDUs of the host.
    Target,
    /// Host: receives PDUs of the controller.
    Host,
}

/// A PDU header with checked fields.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "the fields are those of the PDU in `pdu`")]
pub enum Pdu {
    IcReq(pdu::IcReq),
    IcResp(pdu::IcResp),
    /// H2CTermReq or C2HTermReq.
    Term {
        fes: u16,
        fei: u32,
    },
    /// Command capsule, with `data` bytes of in-capsule data to follow.
    Command {
        sqe: Sqe,
        data: u32,
    },
    Response(Cqe),
    /// H2CData or C2HData, with `len` bytes to follow.
    Data {
        cccid: u16,
        ttag: u16,
        offset: u32,
        len: u32,
        last: bool,
        success: bool,
    },
    R2t {
        cccid: u16,
        ttag: u16,
        offset: u32,
        len: u32,
    },
}

/// The next element of the stream.
#[derive(Debug)]
pub enum Piece<'a> {
    /// More bytes are needed. Nothing was consumed.
    Incomplete,
    /// A header, and its length in bytes.
    Header(usize, Pdu),
    /// Payload of the current PDU.
    Payload(&'a [u8]),
    /// Padding, and its length in bytes.
    Padding(usize),
    /// The end of a payload: length of the data digest in bytes, and whether the digest is correct.
    PayloadEnd(usize, bool),
}

/// Remaining parts of the current PDU.
#[derive(Debug, Clone, Copy, Default)]
struct Remaining {
    padding: u32,
    payload: u32,
    digest: bool,
}

/// PDU parser of one connection.
#[derive(Debug)]
pub struct Deframer {
    side: Side,
    header_digest: bool,
    data_digest: bool,
    /// Maximum in-capsule data in bytes.
    capsule_data: u32,
    remaining: Option<Remaining>,
    crc: Crc32c,
}

/// Maximum data of a Terminate Connection Request in bytes (§3.6.2.4).
const TERM_DATA: u32 = 128;

impl Deframer {
    /// Creates the parser of a new connection, without digests. `capsule_data` is the maximum
    /// in-capsule data in bytes.
    pub fn new(side: Side, capsule_data: u32) -> Self {
        let crc = Crc32c::new();
        Self { side, header_digest: false, data_digest: false, capsule_data, remaining: None, crc }
    }

    /// Enables or disables digests from the next PDU on.
    pub fn set_digests(&mut self, header: bool, data: bool) {
        (self.header_digest, self.data_digest) = (header, data);
    }

    /// Parses the next element at the start of `bytes`.
    ///
    /// # Errors
    /// Fails if the peer violated the protocol. The connection must be closed.
    pub fn next<'a>(&mut self, bytes: &'a [u8]) -> Result<Piece<'a>, Violation> {
        match self.remaining {
            None => self.header(bytes),
            Some(remaining) => Ok(self.remaining(remaining, bytes)),
        }
    }

    /// Returns the number of payload bytes left of the current PDU.
    pub fn payload_left(&self) -> u32 {
        self.remaining.map_or(0, |remaining| remaining.payload)
    }

    /// Returns whether payload is next.
    pub fn at_payload(&self) -> bool {
        self.remaining.is_some_and(|remaining| remaining.padding == 0 && remaining.payload != 0)
    }

    /// Accounts for payload that was received directly into its buffer.
    pub fn skip_payload(&mut self, bytes: &[u8]) {
        if let Some(remaining) = self.remaining {
            let _ = self.payload(remaining, bytes);
        }
    }

    fn header(&mut self, bytes: &[u8]) -> Result<Piece<'static>, Violation> {
        let Ok((ch, _)) = CommonHeader::ref_from_prefix(bytes) else {
            return Ok(Piece::Incomplete);
        };
        let hlen = self.check_kind(ch)?;
        let digest = self.header_digest && has_digests(ch.pdu_type);
        let (plen, before_data) = (ch.plen.get(), header_end(hlen, digest));
        if plen < before_data {
            return Err(Violation::PlenTooShort);
        }
        self.check_plen(ch, before_data)?;
        let Some(header) = bytes.get(..before_data as usize) else { return Ok(Piece::Incomplete) };
        self.check_flags(ch)?;
        if digest {
            check_header_digest(header, usize::from(hlen))?;
        }
        let (pdu, remaining) = self.parse_pdu(ch, header, before_data)?;
        self.remaining = (remaining.payload != 0).then_some(remaining);
        Ok(Piece::Header(before_data as usize, pdu))
    }

    /// Checks PDU type, direction and header length.
    fn check_kind(&self, ch: &CommonHeader) -> Result<u8, Violation> {
        let hlen = pdu::hlen_of(ch.pdu_type).ok_or(Violation::PduTypeUnknown)?;
        let from_host = matches!(
            ch.pdu_type,
            kind::IC_REQ | kind::H2C_TERM_REQ | kind::CAPSULE_CMD | kind::H2C_DATA
        );
        if from_host != (self.side == Side::Target) {
            return Err(Violation::PduTypeWrongDirection);
        }
        if ch.hlen != hlen {
            return Err(Violation::HeaderLengthWrong);
        }
        Ok(hlen)
    }

    /// Checks PLEN against the limits of the type, before more is received.
    fn check_plen(&self, ch: &CommonHeader, before_data: u32) -> Result<(), Violation> {
        let plen = ch.plen.get();
        let max_padding = 128;
        match ch.pdu_type {
            kind::CAPSULE_CMD => {
                let max = before_data + max_padding + self.capsule_data + DIGEST;
                if plen > max { Err(Violation::CapsuleTooLong) } else { Ok(()) }
            }
            kind::H2C_TERM_REQ | kind::C2H_TERM_REQ if plen > before_data + TERM_DATA => {
                Err(Violation::TermReqTooLong)
            }
            kind::IC_REQ | kind::IC_RESP | kind::CAPSULE_RESP | kind::R2T
                if plen != before_data =>
            {
                Err(Violation::PlenWrong)
            }
            _ => Ok(()),
        }
    }

    /// Checks digest flags against those negotiated (§3.6.1).
    fn check_flags(&self, ch: &CommonHeader) -> Result<(), Violation> {
        if !has_digests(ch.pdu_type) {
            return Ok(());
        }
        let header = ch.flags & flag::HDGSTF != 0;
        if header != self.header_digest {
            let missing = self.header_digest;
            return Err(if missing {
                Violation::DigestFlagMissing
            } else {
                Violation::DigestFlagUnexpected
            });
        }
        if ch.flags & flag::DDGSTF != 0 && !self.data_digest {
            return Err(Violation::DigestFlagUnexpected);
        }
        Ok(())
    }

    fn parse_pdu(
        &self,
        ch: &CommonHeader,
        header: &[u8],
        before: u32,
    ) -> Result<(Pdu, Remaining), Violation> {
        let none = Remaining::default();
        Ok(match ch.pdu_type {
            kind::IC_REQ => (Pdu::IcReq(view(header)?), none),
            kind::IC_RESP => (Pdu::IcResp(view(header)?), none),
            kind::H2C_TERM_REQ | kind::C2H_TERM_REQ => {
                let term: pdu::TermReq = view(header)?;
                let payload = ch.plen.get() - before;
                (
                    Pdu::Term { fes: term.fes.get(), fei: term.fei.get() },
                    Remaining { payload, ..none },
                )
            }
            kind::CAPSULE_CMD => {
                let remaining = if ch.plen.get() == before {
                    none
                } else {
                    self.parse_data_layout(ch, before)?
                };
                if remaining.payload > self.capsule_data {
                    return Err(Violation::CapsuleTooLong);
                }
                (
                    Pdu::Command {
                        sqe: view::<pdu::CapsuleCmd>(header)?.sqe,
                        data: remaining.payload,
                    },
                    remaining,
                )
            }
            kind::CAPSULE_RESP => (Pdu::Response(view::<pdu::CapsuleResp>(header)?.cqe), none),
            kind::R2T => (parse_r2t(&view(header)?), none),
            _ => self.parse_data(ch, &view(header)?, before)?,
        })
    }

    fn parse_data(
        &self,
        ch: &CommonHeader,
        data: &pdu::Data,
        before: u32,
    ) -> Result<(Pdu, Remaining), Violation> {
        let len = data.datal.get();
        if len == 0 {
            return Err(Violation::DataLengthZero);
        }
        let remaining = self.parse_data_layout(ch, before)?;
        if remaining.payload != len {
            return Err(Violation::DataLengthNotPlen);
        }
        let (last, success) = (ch.flags & flag::LAST_PDU != 0, ch.flags & flag::SUCCESS != 0);
        let (cccid, ttag, offset) = (data.cccid.get(), data.ttag.get(), data.datao.get());
        Ok((Pdu::Data { cccid, ttag, offset, len, last, success }, remaining))
    }

    /// Checks PDO and PLEN, and returns what follows the header of a PDU with data.
    fn parse_data_layout(&self, ch: &CommonHeader, before: u32) -> Result<Remaining, Violation> {
        let digest = if self.data_digest { DIGEST } else { 0 };
        let (pdo, plen) = (u32::from(ch.pdo), ch.plen.get());
        let padding = pdo.checked_sub(before).ok_or(Violation::PdoOutOfRange)?;
        let after = plen.checked_sub(pdo).ok_or(Violation::PdoOutOfRange)?;
        let payload = after.checked_sub(digest).ok_or(Violation::PlenTooShort)?;
        if pdo % 4 != 0 {
            return Err(Violation::PdoUnaligned);
        }
        if payload == 0 {
            return Err(Violation::PlenTooShort);
        }
        if self.data_digest && ch.flags & flag::DDGSTF == 0 {
            return Err(Violation::DigestFlagMissing);
        }
        Ok(Remaining { padding, payload, digest: self.data_digest })
    }

    fn remaining<'a>(&mut self, remaining: Remaining, bytes: &'a [u8]) -> Piece<'a> {
        if bytes.is_empty()
            && !(remaining.padding == 0 && remaining.payload == 0 && !remaining.digest)
        {
            return Piece::Incomplete;
        }
        if remaining.padding != 0 {
            let n = clamp_len(bytes, remaining.padding);
            self.remaining = Some(Remaining { padding: remaining.padding - n, ..remaining });
            return Piece::Padding(n as usize);
        }
        if remaining.payload != 0 {
            return Piece::Payload(self.payload(remaining, bytes));
        }
        self.end(remaining, bytes)
    }

    fn payload<'a>(&mut self, remaining: Remaining, bytes: &'a [u8]) -> &'a [u8] {
        let n = clamp_len(bytes, remaining.payload);
        let (data, _) = bytes.split_at(n as usize);
        if remaining.digest {
            self.crc.update(data);
        }
        self.remaining = Some(Remaining { payload: remaining.payload - n, ..remaining });
        data
    }

    fn end(&mut self, remaining: Remaining, bytes: &[u8]) -> Piece<'static> {
        if !remaining.digest {
            self.remaining = None;
            return Piece::PayloadEnd(0, true);
        }
        let Some(digest) = bytes.first_chunk::<4>() else { return Piece::Incomplete };
        let right = u32::from_le_bytes(*digest) == self.crc.value();
        self.crc = Crc32c::new();
        self.remaining = None;
        Piece::PayloadEnd(digest.len(), right)
    }

    /// Returns whether a payload without digest is complete and its [`Piece::PayloadEnd`] is
    /// pending.
    pub fn at_end(&self) -> bool {
        self.remaining.is_some_and(|remaining| {
            remaining.padding == 0 && remaining.payload == 0 && !remaining.digest
        })
    }
}

/// Returns the length of `bytes`, at most `max`.
fn clamp_len(bytes: &[u8], max: u32) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX).min(max)
}

/// ICReq, ICResp and TermReq have no digests (§3.6.2.2 to §3.6.2.5).
fn has_digests(pdu_type: u8) -> bool {
    !matches!(pdu_type, kind::IC_REQ | kind::IC_RESP | kind::H2C_TERM_REQ | kind::C2H_TERM_REQ)
}

fn header_end(hlen: u8, digest: bool) -> u32 {
    u32::from(hlen) + if digest { DIGEST } else { 0 }
}

fn check_header_digest(header: &[u8], hlen: usize) -> Result<(), Violation> {
    let (fields, digest) = header.split_at(hlen.min(header.len()));
    if *digest == crc32c(fields).to_le_bytes() { Ok(()) } else { Err(Violation::HeaderDigestWrong) }
}

/// Reads the header, whose length was checked.
fn view<T: FromBytes + zerocopy::KnownLayout + zerocopy::Immutable>(
    header: &[u8],
) -> Result<T, Violation> {
    T::read_from_prefix(header).map(|(value, _)| value).map_err(|_| Violation::HeaderLengthWrong)
}

fn parse_r2t(r2t: &pdu::R2t) -> Pdu {
    let (offset, len) = (r2t.r2to.get(), r2t.r2tl.get());
    Pdu::R2t { cccid: r2t.cccid.get(), ttag: r2t.ttag.get(), offset, len }
}
