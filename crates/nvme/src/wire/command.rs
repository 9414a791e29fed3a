//! The submission queue entry, its data pointer, and its layouts for Fabrics commands.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A submission queue entry: 64 bytes (NVMe Base 2.0 §3.3.3.1, "Common Command Format").
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Sqe {
    /// Opcode: see [`super::opcode`].
    pub opcode: u8,
    /// FUSE in bits 1:0, PSDT in bits 7:6.
    pub flags: u8,
    /// Command identifier, chosen by the host.
    pub cid: U16,
    /// Namespace identifier; its lowest byte is FCTYPE in a Fabrics command.
    pub nsid: U32,
    /// Command dword 2.
    pub cdw2: U32,
    /// Command dword 3.
    pub cdw3: U32,
    /// Metadata pointer.
    pub mptr: U64,
    /// Data pointer, as an SGL descriptor.
    pub sgl1: Sgl,
    /// Command dword 10.
    pub cdw10: U32,
    /// Command dword 11.
    pub cdw11: U32,
    /// Command dword 12.
    pub cdw12: U32,
    /// Command dword 13.
    pub cdw13: U32,
    /// Command dword 14.
    pub cdw14: U32,
    /// Command dword 15.
    pub cdw15: U32,
}
const _: () = assert!(size_of::<Sqe>() == 64);

/// Part of a fused operation (CDW0.FUSE, NVMe Base 2.0 §3.3.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fuse {
    /// 00b: not fused.
    Normal,
    /// 01b: first command.
    First,
    /// 10b: second command.
    Second,
    /// 11b.
    Reserved,
}

impl Sqe {
    /// PSDT 01b: the data pointer is an SGL, the metadata pointer an address. Required over
    /// fabrics.
    pub const PSDT_SGL: u8 = 0b01;

    /// Returns CDW0.FUSE, bits 1:0 of the flags.
    #[must_use]
    pub const fn fuse(&self) -> Fuse {
        match self.flags & 0b11 {
            0b00 => Fuse::Normal,
            0b01 => Fuse::First,
            0b10 => Fuse::Second,
            _ => Fuse::Reserved,
        }
    }

    /// Returns CDW0.PSDT, bits 7:6 of the flags: 00b PRP, 01b SGL, 10b SGL with metadata SGL.
    #[must_use]
    pub const fn psdt(&self) -> u8 {
        self.flags >> 6
    }

    /// Returns FCTYPE, byte 4 of a Fabrics command.
    #[must_use]
    pub const fn fctype(&self) -> u8 {
        let [fctype, ..] = self.nsid.to_bytes();
        fctype
    }

    /// Sets the command identifier.
    #[must_use]
    pub const fn with_cid(mut self, cid: u16) -> Self {
        self.cid = U16::new(cid);
        self
    }

    /// Sets the data pointer.
    #[must_use]
    pub const fn with_data(mut self, sgl: Sgl) -> Self {
        self.sgl1 = sgl;
        self
    }

    /// Sets CDW0.FUSE.
    #[must_use]
    pub const fn with_fuse(mut self, fuse: Fuse) -> Self {
        self.flags = (self.flags & !0b11) | fuse as u8;
        self
    }
}

/// An SGL descriptor: 16 bytes (NVMe Base 2.0 §4.1.2).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Sgl {
    /// Address, or an offset into the capsule for subtype 1.
    pub addr: U64,
    /// Length in bytes.
    pub length: U32,
    pub(crate) _reserved: [u8; 3],
    /// SGL identifier: type in bits 7:4, subtype in bits 3:0.
    pub id: u8,
}
const _: () = assert!(size_of::<Sgl>() == 16);

impl Sgl {
    /// Data block at an address; not valid over TCP.
    pub const DATA_BLOCK: u8 = 0x00;
    /// Data block at an offset from the start of the in-capsule data.
    pub const OFFSET: u8 = 0x01;
    /// Transport data block (NVMe/TCP 1.0 §3.3.2).
    pub const TRANSPORT: u8 = 0x5a;

    /// Creates a descriptor.
    #[must_use]
    pub const fn new(id: u8, addr: u64, length: u32) -> Self {
        Self { addr: U64::new(addr), length: U32::new(length), _reserved: [0; 3], id }
    }

    /// Returns a descriptor for `length` bytes of in-capsule data at `offset`.
    #[must_use]
    pub const fn in_capsule(offset: u64, length: u32) -> Self {
        Self::new(Self::OFFSET, offset, length)
    }

    /// Returns a descriptor for `length` bytes in data PDUs.
    #[must_use]
    pub const fn transport(length: u32) -> Self {
        Self::new(Self::TRANSPORT, 0, length)
    }

    /// Returns the descriptor type, bits 7:4 of the identifier.
    #[must_use]
    pub const fn kind(&self) -> u8 {
        self.id >> 4
    }

    /// Returns the descriptor subtype, bits 3:0 of the identifier.
    #[must_use]
    pub const fn subtype(&self) -> u8 {
        self.id & 0x0f
    }
}

/// Layout of Connect (NVMe Base 2.0 §6.3).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct ConnectCmd {
    /// 7Fh.
    pub opcode: u8,
    /// See [`Sqe::flags`].
    pub flags: u8,
    /// Command identifier.
    pub cid: U16,
    /// 01h.
    pub fctype: u8,
    pub(crate) _rsvd5: [u8; 19],
    /// SGL of the 1024 bytes of [`super::fabrics::ConnectData`].
    pub sgl1: Sgl,
    /// Record format: 0.
    pub recfmt: U16,
    /// Queue identifier; 0 is the Admin queue.
    pub qid: U16,
    /// Submission queue size, 0's based.
    pub sqsize: U16,
    /// Connect attributes: see [`super::fabrics::cattr`].
    pub cattr: u8,
    pub(crate) _rsvd47: u8,
    /// Keep Alive Timeout in milliseconds; 0 disables it.
    pub kato: U32,
    pub(crate) _rsvd52: [u8; 12],
}
const _: () = assert!(size_of::<ConnectCmd>() == 64);

/// Layout of Property Get (NVMe Base 2.0 §6.5).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct PropertyGetCmd {
    /// 7Fh.
    pub opcode: u8,
    /// See [`Sqe::flags`].
    pub flags: u8,
    /// Command identifier.
    pub cid: U16,
    /// 04h.
    pub fctype: u8,
    pub(crate) _rsvd5: [u8; 35],
    /// Size of the property in bits 2:0: 0 is 4 bytes, 1 is 8.
    pub attrib: u8,
    pub(crate) _rsvd41: [u8; 3],
    /// Offset of the property: see [`super::fabrics::property`].
    pub ofst: U32,
    pub(crate) _rsvd48: [u8; 16],
}
const _: () = assert!(size_of::<PropertyGetCmd>() == 64);

/// Layout of Property Set (NVMe Base 2.0 §6.6).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct PropertySetCmd {
    /// 7Fh.
    pub opcode: u8,
    /// See [`Sqe::flags`].
    pub flags: u8,
    /// Command identifier.
    pub cid: U16,
    /// 00h.
    pub fctype: u8,
    pub(crate) _rsvd5: [u8; 35],
    /// Size of the property in bits 2:0: 0 is 4 bytes, 1 is 8.
    pub attrib: u8,
    pub(crate) _rsvd41: [u8; 3],
    /// Offset of the property: see [`super::fabrics::property`].
    pub ofst: U32,
    /// The new value; the upper half is reserved for a 4-byte property.
    pub value: U64,
    pub(crate) _rsvd56: [u8; 8],
}
const _: () = assert!(size_of::<PropertySetCmd>() == 64);

/// Layout of Authentication Send and Receive (NVMe Base 2.0 §6.1, §6.2).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct AuthCmd {
    /// 7Fh.
    pub opcode: u8,
    /// See [`Sqe::flags`].
    pub flags: u8,
    /// Command identifier.
    pub cid: U16,
    /// 05h for Send, 06h for Receive.
    pub fctype: u8,
    pub(crate) _rsvd5: [u8; 19],
    /// SGL of the message.
    pub sgl1: Sgl,
    pub(crate) _rsvd40: u8,
    /// SP Specific 0.
    pub spsp0: u8,
    /// SP Specific 1.
    pub spsp1: u8,
    /// Security protocol: E9h for NVMe.
    pub secp: u8,
    /// Transfer Length (send) or Allocation Length (receive) in bytes.
    pub length: U32,
    pub(crate) _rsvd48: [u8; 16],
}
const _: () = assert!(size_of::<AuthCmd>() == 64);

/// Conversions between [`Sqe`] and the layouts of commands.
macro_rules! views {
    ($($view:ident)*) => { $(
        impl $view {
            /// Reinterprets the entry with the layout of this command.
            #[must_use]
            pub fn view(sqe: &Sqe) -> &Self {
                zerocopy::transmute_ref!(sqe)
            }
        }

        impl From<$view> for Sqe {
            fn from(view: $view) -> Self {
                zerocopy::transmute!(view)
            }
        }
    )* };
}
views!(ConnectCmd PropertyGetCmd PropertySetCmd AuthCmd);

#[cfg(test)]
mod test {
    use super::*;
    use core::mem::offset_of;
    use zerocopy::FromZeros;

    #[test]
    fn entry_offsets_match_the_specification() {
        assert_eq!(offset_of!(Sqe, opcode), 0);
        assert_eq!(offset_of!(Sqe, flags), 1);
        assert_eq!(offset_of!(Sqe, cid), 2);
        assert_eq!(offset_of!(Sqe, nsid), 4);
        assert_eq!(offset_of!(Sqe, cdw2), 8);
        assert_eq!(offset_of!(Sqe, cdw3), 12);
        assert_eq!(offset_of!(Sqe, mptr), 16);
        assert_eq!(offset_of!(Sqe, sgl1), 24);
        assert_eq!(offset_of!(Sqe, cdw10), 40);
        assert_eq!(offset_of!(Sqe, cdw15), 60);
    }

    #[test]
    fn golden_read() {
        #[rustfmt::skip]
        let bytes: [u8; 64] = [
            0x02, 0x41, 0x34, 0x12,                         // Read, SGL and first of a pair, CID 1234h
            0x01, 0, 0, 0,                                  // NSID 1
            0, 0, 0, 0,  0, 0, 0, 0,                        // CDW2, CDW3
            0, 0, 0, 0, 0, 0, 0, 0,                         // MPTR
            0, 0, 0, 0, 0, 0, 0, 0,                         // SGL1 address
            0x00, 0x10, 0, 0,  0, 0, 0, 0x5a,               // SGL1 length 4096, transport data block
            0x88, 0x77, 0x66, 0x55,  0x44, 0x33, 0x22, 0x11, // CDW10, CDW11: SLBA
            0x07, 0, 0, 0x40,                               // CDW12: NLB 7, FUA
            0, 0, 0, 0,  0, 0, 0, 0,  0, 0, 0, 0,           // CDW13 to CDW15
        ];
        let sqe = Sqe::read_from_bytes(&bytes).unwrap();
        assert_eq!((sqe.opcode, sqe.cid.get(), sqe.nsid.get()), (0x02, 0x1234, 1));
        assert_eq!((sqe.fuse(), sqe.psdt()), (Fuse::First, Sqe::PSDT_SGL));
        assert_eq!(sqe.sgl1, Sgl::transport(4096));
        assert_eq!((sqe.sgl1.kind(), sqe.sgl1.subtype()), (5, 0xa));
        assert_eq!((sqe.cdw10.get(), sqe.cdw11.get()), (0x5566_7788, 0x1122_3344));
        assert_eq!(sqe.cdw12.get(), 0x4000_0007);
        assert_eq!(sqe.as_bytes(), bytes);
    }

    #[test]
    fn golden_connect() {
        #[rustfmt::skip]
        let bytes: [u8; 64] = [
            0x7f, 0x40, 0x05, 0x00,                         // Fabrics, SGL, CID 5
            0x01,                                           // Connect
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 0, 0, 0, 0, 0, 0,                         // SGL1 offset 0
            0x00, 0x04, 0, 0,  0, 0, 0, 0x01,               // SGL1 length 1024, in the capsule
            0, 0,  0x02, 0x00,                              // RECFMT 0, QID 2
            0x7f, 0x00,  0x04,  0,                          // SQSIZE 127, flow control off
            0x88, 0x13, 0, 0,                               // KATO 5000
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ];
        let sqe = Sqe::read_from_bytes(&bytes).unwrap();
        let connect = ConnectCmd::view(&sqe);
        assert_eq!((connect.fctype, sqe.fctype()), (1, 1));
        assert_eq!(connect.sgl1, Sgl::in_capsule(0, 1024));
        assert_eq!((connect.recfmt.get(), connect.qid.get()), (0, 2));
        assert_eq!((connect.sqsize.get(), connect.cattr), (127, 4));
        assert_eq!(connect.kato.get(), 5000);
        assert_eq!(Sqe::from(*connect), sqe);
    }

    #[test]
    fn golden_property_set() {
        let mut bytes = [0; 64];
        bytes[..5].copy_from_slice(&[0x7f, 0x40, 0x09, 0x00, 0x00]); // Fabrics, SGL, CID 9, set
        bytes[40] = 1; // 8 bytes
        bytes[44] = 0x14; // CC
        bytes[48..56].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]); // value
        let sqe = Sqe::read_from_bytes(&bytes).unwrap();
        let set = PropertySetCmd::view(&sqe);
        assert_eq!((set.attrib, set.ofst.get()), (1, 0x14));
        assert_eq!(set.value.get(), 0x0807_0605_0403_0201);
        let get = PropertyGetCmd::view(&sqe);
        assert_eq!((get.attrib, get.ofst.get(), get.cid.get()), (1, 0x14, 9));
    }

    #[test]
    fn golden_authentication_send() {
        let mut bytes = [0; 64];
        bytes[..5].copy_from_slice(&[0x7f, 0x40, 0x02, 0x00, 0x05]); // Fabrics, SGL, CID 2, send
        bytes[40..48].copy_from_slice(&[0, 0x01, 0x02, 0xe9, 0x08, 0x01, 0, 0]);
        let sqe = Sqe::read_from_bytes(&bytes).unwrap();
        let send = AuthCmd::view(&sqe);
        assert_eq!((send.spsp0, send.spsp1, send.secp), (1, 2, 0xe9));
        assert_eq!(send.length.get(), 0x108);
        assert_eq!(offset_of!(AuthCmd, sgl1), 24);
    }

    #[test]
    fn fuse_round_trips() {
        for fuse in [Fuse::Normal, Fuse::First, Fuse::Second, Fuse::Reserved] {
            let sqe = Sqe { flags: 0x43, ..Sqe::new_zeroed() }.with_fuse(fuse);
            assert_eq!((sqe.fuse(), sqe.psdt()), (fuse, Sqe::PSDT_SGL));
        }
    }
}
