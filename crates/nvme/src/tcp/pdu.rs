//! Layout of the PDUs (NVMe/TCP 1.0 §3.6.2). Field names are those of the specification.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::wire::command::Sqe;
use crate::wire::completion::Cqe;

/// PDU types (§3.6.1, figure "PDU Type").
pub mod kind {
    /// Initialize Connection Request, from the host.
    pub const IC_REQ: u8 = 0x00;
    /// Initialize Connection Response, from the controller.
    pub const IC_RESP: u8 = 0x01;
    /// Terminate Connection Request from the host.
    pub const H2C_TERM_REQ: u8 = 0x02;
    /// Terminate Connection Request from the controller.
    pub const C2H_TERM_REQ: u8 = 0x03;
    /// Command Capsule, from the host.
    pub const CAPSULE_CMD: u8 = 0x04;
    /// Response Capsule, from the controller.
    pub const CAPSULE_RESP: u8 = 0x05;
    /// Data from the host.
    pub const H2C_DATA: u8 = 0x06;
    /// Data from the controller.
    pub const C2H_DATA: u8 = 0x07;
    /// Ready to Transfer, from the controller.
    pub const R2T: u8 = 0x09;
}

/// Bits of [`CommonHeader::flags`].
pub mod flag {
    /// HDGSTF: a header digest follows the header.
    pub const HDGSTF: u8 = 0x01;
    /// DDGSTF: a data digest follows the data.
    pub const DDGSTF: u8 = 0x02;
    /// LAST_PDU: the last data PDU of the transfer.
    pub const LAST_PDU: u8 = 0x04;
    /// SUCCESS: the command succeeded, and no response capsule follows.
    pub const SUCCESS: u8 = 0x08;
}

/// Length of a digest in bytes.
pub const DIGEST: u32 = 4;

/// PDU common header (§3.6.1).
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct CommonHeader {
    /// PDU type: see [`kind`].
    pub pdu_type: u8,
    /// Flags: see [`flag`].
    pub flags: u8,
    /// Header length in bytes, without digest.
    pub hlen: u8,
    /// PDU data offset in bytes; zero without data.
    pub pdo: u8,
    /// PDU length in bytes, with digests and padding.
    pub plen: U32,
}

/// Initialize Connection Request (§3.6.2.2).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct IcReq {
    /// Common header.
    pub ch: CommonHeader,
    /// PDU format version: zero.
    pub pfv: U16,
    /// Host PDU data alignment, in dwords, 0's based: 0 to 31.
    pub hpda: u8,
    /// Digests requested: bit 0 header, bit 1 data.
    pub dgst: u8,
    /// Outstanding R2T PDUs per command, 0's based.
    pub maxr2t: U32,
    rsvd: [u8; 112],
}

/// Initialize Connection Response (§3.6.2.3).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct IcResp {
    /// Common header.
    pub ch: CommonHeader,
    /// PDU format version: zero.
    pub pfv: U16,
    /// Controller PDU data alignment, in dwords, 0's based: 0 to 31.
    pub cpda: u8,
    /// Digests enabled: bit 0 header, bit 1 data.
    pub dgst: u8,
    /// Maximum data of one H2CData PDU in bytes; at least 4096.
    pub maxh2cdata: U32,
    rsvd: [u8; 112],
}

/// H2CTermReq or C2HTermReq (§3.6.2.4, §3.6.2.5), without its data.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct TermReq {
    /// Common header.
    pub ch: CommonHeader,
    /// Fatal error status.
    pub fes: U16,
    /// Fatal error information: for an invalid header field, its offset in bytes.
    pub fei: U32,
    rsvd: [u8; 10],
}

/// Command capsule (§3.6.2.6), without its data.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct CapsuleCmd {
    /// Common header.
    pub ch: CommonHeader,
    /// Submission queue entry.
    pub sqe: Sqe,
}

/// Response capsule (§3.6.2.7).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct CapsuleResp {
    /// Common header.
    pub ch: CommonHeader,
    /// Completion queue entry.
    pub cqe: Cqe,
}

/// H2CData or C2HData (§3.6.2.8, §3.6.2.9), without its data.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Data {
    /// Common header.
    pub ch: CommonHeader,
    /// Command identifier.
    pub cccid: U16,
    /// H2CData: transfer tag of the R2T.
    pub ttag: U16,
    /// Offset in the command's data in bytes.
    pub datao: U32,
    /// Length of the data in bytes.
    pub datal: U32,
    rsvd: [u8; 4],
}

/// Ready to Transfer (§3.6.2.10).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct R2t {
    /// Common header.
    pub ch: CommonHeader,
    /// Command identifier.
    pub cccid: U16,
    /// Transfer tag for the H2CData PDUs.
    pub ttag: U16,
    /// Offset of the requested data in bytes.
    pub r2to: U32,
    /// Length of the requested data in bytes.
    pub r2tl: U32,
    rsvd: [u8; 4],
}

const _: () = {
    assert!(size_of::<CommonHeader>() == 8);
    assert!(size_of::<IcReq>() == 128);
    assert!(size_of::<IcResp>() == 128);
    assert!(size_of::<TermReq>() == 24);
    assert!(size_of::<CapsuleCmd>() == 72);
    assert!(size_of::<CapsuleResp>() == 24);
    assert!(size_of::<Data>() == 24);
    assert!(size_of::<R2t>() == 24);
};

/// Returns the header length of a PDU type, or `None` if the type is unknown.
pub fn hlen_of(pdu_type: u8) -> Option<u8> {
    Some(match pdu_type {
        kind::IC_REQ | kind::IC_RESP => 128,
        kind::CAPSULE_CMD => 72,
        kind::H2C_TERM_REQ
        | kind::C2H_TERM_REQ
        | kind::CAPSULE_RESP
        | kind::H2C_DATA
        | kind::C2H_DATA
        | kind::R2T => 24,
        _ => return None,
    })
}

impl IcReq {
    /// Creates an ICReq; `hpda` and `maxr2t` are 0's based.
    pub fn new(hpda: u8, dgst: u8, maxr2t: u32) -> Self {
        let ch = CommonHeader {
            pdu_type: kind::IC_REQ,
            hlen: 128,
            plen: U32::new(128),
            ..Default::default()
        };
        Self { ch, pfv: U16::ZERO, hpda, dgst, maxr2t: U32::new(maxr2t), rsvd: [0; 112] }
    }
}

impl IcResp {
    /// Creates an ICResp; `cpda` is 0's based, `maxh2cdata` in bytes.
    pub fn new(cpda: u8, dgst: u8, maxh2cdata: u32) -> Self {
        let ch = CommonHeader {
            pdu_type: kind::IC_RESP,
            hlen: 128,
            plen: U32::new(128),
            ..Default::default()
        };
        Self { ch, pfv: U16::ZERO, cpda, dgst, maxh2cdata: U32::new(maxh2cdata), rsvd: [0; 112] }
    }
}

impl TermReq {
    /// Creates a TermReq of that type with `data` bytes of data.
    pub fn new(pdu_type: u8, fes: u16, fei: u32, data: u32) -> Self {
        let ch =
            CommonHeader { pdu_type, hlen: 24, plen: U32::new(24 + data), ..Default::default() };
        Self { ch, fes: U16::new(fes), fei: U32::new(fei), rsvd: [0; 10] }
    }
}

impl Data {
    /// Creates a data header; the framer sets the lengths in `ch`, which depend on digests and
    /// padding.
    pub fn new(ch: CommonHeader, cccid: u16, ttag: u16, datao: u32, datal: u32) -> Self {
        let (cccid, ttag) = (U16::new(cccid), U16::new(ttag));
        Self { ch, cccid, ttag, datao: U32::new(datao), datal: U32::new(datal), rsvd: [0; 4] }
    }
}

impl R2t {
    /// Creates an R2T for `r2tl` bytes from `r2to`.
    pub fn new(ch: CommonHeader, cccid: u16, ttag: u16, r2to: u32, r2tl: u32) -> Self {
        let (cccid, ttag) = (U16::new(cccid), U16::new(ttag));
        Self { ch, cccid, ttag, r2to: U32::new(r2to), r2tl: U32::new(r2tl), rsvd: [0; 4] }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn ic_req_golden_bytes() {
        let bytes = IcReq::new(3, 0b11, 1);
        let bytes = bytes.as_bytes();
        assert_eq!(
            bytes[..16],
            [
                0x00, // PDU-Type: ICReq
                0x00, // FLAGS
                0x80, // HLEN 128
                0x00, // PDO
                0x80, 0, 0, 0, // PLEN 128
                0, 0,    // PFV 0
                0x03, // HPDA: 16 bytes
                0x03, // DGST: header and data
                1, 0, 0, 0, // MAXR2T: two
            ]
        );
        assert!(bytes[16..].iter().all(|&b| b == 0));
    }

    #[test]
    fn ic_resp_golden_bytes() {
        let resp = IcResp::new(0, 0b01, 0x2_0000);
        assert_eq!(
            resp.as_bytes()[..16],
            [
                0x01, 0x00, 0x80, 0x00, 0x80, 0, 0, 0, // ICResp, HLEN and PLEN 128
                0, 0,    // PFV 0
                0x00, // CPDA
                0x01, // DGST: header
                0x00, 0x00, 0x02, 0x00, // MAXH2CDATA 128 KiB
            ]
        );
    }

    #[test]
    fn term_req_golden_bytes() {
        let term = TermReq::new(kind::C2H_TERM_REQ, 2, 0x0102_0304, 8);
        assert_eq!(
            term.as_bytes(),
            [
                0x03, 0x00, 0x18, 0x00, 0x20, 0, 0, 0, // C2HTermReq, HLEN 24, PLEN 32
                0x02, 0x00, // FES: PDU sequence error
                0x04, 0x03, 0x02, 0x01, // FEI
                0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // reserved
            ]
        );
    }

    #[test]
    fn data_golden_bytes() {
        let flags = flag::LAST_PDU | flag::SUCCESS;
        let ch = CommonHeader {
            pdu_type: kind::C2H_DATA,
            flags,
            hlen: 24,
            pdo: 24,
            plen: U32::new(0x1018),
        };
        assert_eq!(
            Data::new(ch, 0xabcd, 0x0102, 0x2000, 0x1000).as_bytes(),
            [
                0x07, 0x0c, 0x18, 0x18, 0x18, 0x10, 0,
                0, // C2HData, LAST|SUCCESS, HLEN, PDO, PLEN
                0xcd, 0xab, // CCCID
                0x02, 0x01, // TTAG
                0x00, 0x20, 0, 0, // DATAO
                0x00, 0x10, 0, 0, // DATAL
                0, 0, 0, 0, // reserved
            ]
        );
    }

    #[test]
    fn r2t_golden_bytes() {
        let ch = CommonHeader {
            pdu_type: kind::R2T,
            flags: flag::HDGSTF,
            hlen: 24,
            pdo: 0,
            plen: U32::new(28),
        };
        assert_eq!(
            R2t::new(ch, 0x0011, 0x0022, 0, 0x2_0000).as_bytes(),
            [
                0x09, 0x01, 0x18, 0x00, 0x1c, 0, 0, 0, // R2T, HDGSTF, HLEN 24, PLEN 28
                0x11, 0x00, // CCCID
                0x22, 0x00, // TTAG
                0, 0, 0, 0, // R2TO
                0, 0, 0x02, 0, // R2TL 128 KiB
                0, 0, 0, 0, // reserved
            ]
        );
    }
}
