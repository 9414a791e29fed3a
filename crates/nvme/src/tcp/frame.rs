//! Builds PDUs with the negotiated digests and padding (NVMe/TCP 1.0 §3.6.2).

use std::sync::Arc;

use export::{Body, Head, Segment};
use zerocopy::IntoBytes;
use zerocopy::little_endian::U32;

use super::crc32c;
use super::pdu::{self, CommonHeader, DIGEST, flag, kind};
use crate::wire::command::Sqe;
use crate::wire::completion::Cqe;

/// PDU builder of one connection.
#[derive(Debug, Clone)]
pub struct Framer {
    header_digest: bool,
    data_digest: bool,
    /// Alignment of data in bytes: 4 to 128.
    alignment: u32,
    padding: Arc<[u8]>,
}

impl Default for Framer {
    fn default() -> Self {
        Self {
            header_digest: false,
            data_digest: false,
            alignment: 4,
            padding: Arc::from([0; 128]),
        }
    }
}

impl Framer {
    /// Sets digests, and the alignment of data to `pda` + 1 dwords (HPDA or CPDA, 0 to 31), from
    /// the next PDU on.
    pub fn set_layout(&mut self, header: bool, data: bool, pda: u8) {
        (self.header_digest, self.data_digest) = (header, data);
        self.alignment = (u32::from(pda.min(31)) + 1) * 4;
    }

    /// Returns whether data is sent with a digest.
    pub fn has_data_digest(&self) -> bool {
        self.data_digest
    }

    /// Builds a response capsule.
    pub fn response(&self, cqe: Cqe) -> Segment {
        let ch = self.header(kind::CAPSULE_RESP, 24);
        self.single_segment(pdu::CapsuleResp { ch, cqe }.as_bytes())
    }

    /// Builds an R2T for `len` bytes from `offset`.
    pub fn r2t(&self, cccid: u16, ttag: u16, offset: u32, len: u32) -> Segment {
        let ch = self.header(kind::R2T, 24);
        self.single_segment(pdu::R2t::new(ch, cccid, ttag, offset, len).as_bytes())
    }

    /// Builds a command capsule without data.
    pub fn command(&self, sqe: Sqe, send: &mut impl FnMut(Segment)) {
        let ch = self.header(kind::CAPSULE_CMD, 72);
        self.send_long_header(pdu::CapsuleCmd { ch, sqe }.as_bytes(), send);
    }

    /// Builds a command capsule with in-capsule data.
    pub fn command_with(&self, sqe: Sqe, data: Body, len: usize, send: &mut impl FnMut(Segment)) {
        #[allow(clippy::cast_possible_truncation, reason = "the caller keeps to the capsule size")]
        let ch = self.data_header(kind::CAPSULE_CMD, 72, 0, len as u32);
        self.send_long_header(pdu::CapsuleCmd { ch, sqe }.as_bytes(), send);
        self.payload(Head::new(&[]), u32::from(ch.pdo) - self.header_len(72), data, 0, len, send);
    }

    /// Builds an H2CData or C2HData PDU with `len` bytes of `body` from `start`, which is also the
    /// offset in the command's data.
    #[allow(clippy::too_many_arguments, reason = "the fields of the PDU")]
    pub fn data(
        &self,
        pdu_type: u8,
        flags: u8,
        cccid: u16,
        ttag: u16,
        body: Body,
        start: usize,
        len: usize,
        send: &mut impl FnMut(Segment),
    ) {
        #[allow(clippy::cast_possible_truncation, reason = "a transfer is at most a buffer long")]
        let (datao, datal) = (start as u32, len as u32);
        let ch = self.data_header(pdu_type, 24, flags, datal);
        let header = pdu::Data::new(ch, cccid, ttag, datao, datal);
        let head = self.with_digest(header.as_bytes());
        self.payload(head, u32::from(ch.pdo) - self.header_len(24), body, start, len, send);
    }

    /// Builds ICReq or ICResp, which have neither digest nor data.
    pub fn plain(pdu: &[u8]) -> Segment {
        Segment::with_shared(Head::new(&[]), Arc::from(pdu))
    }

    /// Builds an H2CTermReq or C2HTermReq with the header of the offending PDU, at most 128 bytes.
    pub fn terminate(pdu_type: u8, fes: u16, fei: u32, header: &[u8]) -> Segment {
        let header = header.get(..128).unwrap_or(header);
        #[allow(clippy::cast_possible_truncation, reason = "at most 128")]
        let term = pdu::TermReq::new(pdu_type, fes, fei, header.len() as u32);
        Segment::with_shared(Head::new(term.as_bytes()), Arc::from(header))
    }

    fn header(&self, pdu_type: u8, hlen: u8) -> CommonHeader {
        let flags = if self.header_digest { flag::HDGSTF } else { 0 };
        CommonHeader { pdu_type, flags, hlen, pdo: 0, plen: U32::new(self.header_len(hlen)) }
    }

    fn data_header(&self, pdu_type: u8, hlen: u8, flags: u8, len: u32) -> CommonHeader {
        let pdo = self.header_len(hlen).next_multiple_of(self.alignment);
        let (ddgstf, digest) = if self.data_digest { (flag::DDGSTF, DIGEST) } else { (0, 0) };
        let ch = self.header(pdu_type, hlen);
        let flags = ch.flags | flags | ddgstf;
        #[allow(clippy::cast_possible_truncation, reason = "76 bytes aligned to 128 at most")]
        CommonHeader { flags, pdo: pdo as u8, plen: U32::new(pdo + len + digest), ..ch }
    }

    fn header_len(&self, hlen: u8) -> u32 {
        u32::from(hlen) + if self.header_digest { DIGEST } else { 0 }
    }

    fn single_segment(&self, header: &[u8]) -> Segment {
        Segment::head(self.with_digest(header))
    }

    /// Returns the header with its digest.
    fn with_digest(&self, header: &[u8]) -> Head {
        let mut head = Head::new(header);
        if self.header_digest {
            head.push(&crc32c(header).to_le_bytes());
        }
        head
    }

    /// Sends a header that is too long for one [`Head`].
    fn send_long_header(&self, header: &[u8], send: &mut impl FnMut(Segment)) {
        let (first, second) = header.split_at(header.len() / 2);
        let mut rest = Head::new(second);
        if self.header_digest {
            rest.push(&crc32c(header).to_le_bytes());
        }
        send(Segment::head(Head::new(first)));
        send(Segment::head(rest));
    }

    fn payload(
        &self,
        head: Head,
        padding: u32,
        body: Body,
        start: usize,
        len: usize,
        send: &mut impl FnMut(Segment),
    ) {
        let mut head = head;
        if padding != 0 {
            let pad = self.padding.get(..padding as usize).unwrap_or_default();
            send(Segment::with_shared(head, Arc::from(pad)));
            head = Head::new(&[]);
        }
        let segment = Segment::with_body(head, body, start, len);
        let digest = self.data_digest.then(|| crc32c(segment.body()).to_le_bytes());
        send(match digest {
            Some(digest) => segment.with_tail(digest),
            None => segment,
        });
    }
}
