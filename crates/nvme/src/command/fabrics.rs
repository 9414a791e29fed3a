//! Fabrics commands (NVMe Base 2.0 §6).

use zerocopy::little_endian::{U16, U32, U64};

use super::{Transfer, check_not_fused, entry, invalid_field, word};
use crate::status::Status;
use crate::wire::command::{AuthCmd, ConnectCmd, PropertyGetCmd, PropertySetCmd};
use crate::wire::fabrics::ConnectData;
use crate::wire::opcode::fabrics as fctype;
use crate::wire::{Sgl, Sqe};

/// A Fabrics command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FabricsCommand {
    /// Connect (§6.3), with [`ConnectData`].
    Connect {
        /// Record format: 0.
        recfmt: u16,
        /// Queue identifier; 0 is the Admin queue.
        qid: u16,
        /// Queue size as a count: 1 (invalid) to 65536.
        sqsize: u32,
        /// Attributes: see [`crate::wire::fabrics::cattr`].
        cattr: u8,
        /// Keep Alive Timeout in milliseconds; 0 disables it.
        kato: u32,
    },
    /// Property Get (§6.5).
    PropertyGet {
        /// Size of the property.
        attrib: PropertySize,
        /// Offset of the property: see [`crate::wire::fabrics::property`].
        offset: u32,
    },
    /// Property Set (§6.6).
    PropertySet {
        /// Size of the property.
        attrib: PropertySize,
        /// Offset of the property: see [`crate::wire::fabrics::property`].
        offset: u32,
        /// The value; the lower 32 bits for a 4-byte property.
        value: u64,
    },
    /// Authentication Send (§6.2).
    AuthSend {
        /// Security protocol: E9h for NVMe.
        secp: u8,
        /// SP Specific 1 and 0.
        spsp: u16,
        /// Transfer Length in bytes.
        tl: u32,
    },
    /// Authentication Receive (§6.1).
    AuthReceive {
        /// Security protocol: E9h for NVMe.
        secp: u8,
        /// SP Specific 1 and 0.
        spsp: u16,
        /// Allocation Length in bytes.
        al: u32,
    },
    /// Disconnect (§6.4).
    Disconnect {
        /// Record format: 0.
        recfmt: u16,
    },
}

/// Size of a property.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PropertySize {
    /// 4 bytes.
    Four,
    /// 8 bytes.
    Eight,
}

impl PropertySize {
    fn parse(attrib: u8) -> Result<Self, Status> {
        match attrib & 0b111 {
            0 => Ok(Self::Four),
            1 => Ok(Self::Eight),
            _ => Err(invalid_field()),
        }
    }
}

impl FabricsCommand {
    /// Parses an entry with the Fabrics opcode.
    ///
    /// # Errors
    /// Fails with Invalid Command Opcode for an unknown command type; with Invalid Field for PRPs,
    /// a fused command, or an invalid property size.
    pub fn parse(sqe: &Sqe) -> Result<Self, Status> {
        check_not_fused(sqe)?;
        match sqe.fctype() {
            fctype::CONNECT => Ok(Self::parse_connect(ConnectCmd::view(sqe))),
            fctype::PROPERTY_GET => Self::parse_property_get(PropertyGetCmd::view(sqe)),
            fctype::PROPERTY_SET => Self::parse_property_set(PropertySetCmd::view(sqe)),
            fctype::AUTHENTICATION_SEND => {
                let (secp, spsp, tl) = parse_auth(AuthCmd::view(sqe));
                Ok(Self::AuthSend { secp, spsp, tl })
            }
            fctype::AUTHENTICATION_RECEIVE => {
                let (secp, spsp, al) = parse_auth(AuthCmd::view(sqe));
                Ok(Self::AuthReceive { secp, spsp, al })
            }
            fctype::DISCONNECT => Ok(Self::Disconnect { recfmt: word(sqe.cdw10, 0) }),
            _ => Err(Status::INVALID_OPCODE.dnr()),
        }
    }

    fn parse_connect(cmd: &ConnectCmd) -> Self {
        Self::Connect {
            recfmt: cmd.recfmt.get(),
            qid: cmd.qid.get(),
            sqsize: u32::from(cmd.sqsize.get()).saturating_add(1),
            cattr: cmd.cattr,
            kato: cmd.kato.get(),
        }
    }

    fn parse_property_get(cmd: &PropertyGetCmd) -> Result<Self, Status> {
        Ok(Self::PropertyGet { attrib: PropertySize::parse(cmd.attrib)?, offset: cmd.ofst.get() })
    }

    fn parse_property_set(cmd: &PropertySetCmd) -> Result<Self, Status> {
        let attrib = PropertySize::parse(cmd.attrib)?;
        let value = match attrib {
            PropertySize::Four => cmd.value.get() & u64::from(u32::MAX),
            PropertySize::Eight => cmd.value.get(),
        };
        Ok(Self::PropertySet { attrib, offset: cmd.ofst.get(), value })
    }

    /// Returns the data transfer.
    #[must_use]
    pub const fn data_len(&self) -> Transfer {
        match *self {
            Self::Connect { .. } => Transfer::FromHost(size_of::<ConnectData>() as u64),
            Self::AuthSend { tl, .. } => Transfer::from_host(tl as u64),
            Self::AuthReceive { al, .. } => Transfer::to_host(al as u64),
            Self::PropertyGet { .. } | Self::PropertySet { .. } | Self::Disconnect { .. } => {
                Transfer::None
            }
        }
    }

    /// Returns the entry, with command identifier 0 and an SGL: in-capsule for data from the host,
    /// data PDUs for data to the host.
    #[must_use]
    pub fn emit(&self) -> Sqe {
        match *self {
            Self::Connect { recfmt, qid, sqsize, cattr, kato } => ConnectCmd {
                recfmt: U16::new(recfmt),
                qid: U16::new(qid),
                sqsize: U16::new(super::io::zeros_based(sqsize)),
                cattr,
                kato: U32::new(kato),
                ..*ConnectCmd::view(
                    &fabrics_entry(fctype::CONNECT).with_data(Sgl::in_capsule(0, 1024)),
                )
            }
            .into(),
            Self::PropertyGet { attrib, offset } => PropertyGetCmd {
                attrib: attrib as u8,
                ofst: U32::new(offset),
                ..*PropertyGetCmd::view(&fabrics_entry(fctype::PROPERTY_GET))
            }
            .into(),
            Self::PropertySet { attrib, offset, value } => PropertySetCmd {
                attrib: attrib as u8,
                ofst: U32::new(offset),
                value: U64::new(value),
                ..*PropertySetCmd::view(&fabrics_entry(fctype::PROPERTY_SET))
            }
            .into(),
            Self::AuthSend { secp, spsp, tl } => {
                let sqe =
                    fabrics_entry(fctype::AUTHENTICATION_SEND).with_data(Sgl::in_capsule(0, tl));
                emit_auth(&sqe, secp, spsp, tl)
            }
            Self::AuthReceive { secp, spsp, al } => {
                let sqe =
                    fabrics_entry(fctype::AUTHENTICATION_RECEIVE).with_data(Sgl::transport(al));
                emit_auth(&sqe, secp, spsp, al)
            }
            Self::Disconnect { recfmt } => {
                Sqe { cdw10: U32::new(recfmt.into()), ..fabrics_entry(fctype::DISCONNECT) }
            }
        }
    }
}

fn parse_auth(cmd: &AuthCmd) -> (u8, u16, u32) {
    (cmd.secp, u16::from_be_bytes([cmd.spsp1, cmd.spsp0]), cmd.length.get())
}

fn emit_auth(sqe: &Sqe, secp: u8, spsp: u16, length: u32) -> Sqe {
    let [spsp1, spsp0] = spsp.to_be_bytes();
    AuthCmd { spsp0, spsp1, secp, length: U32::new(length), ..*AuthCmd::view(sqe) }.into()
}

fn fabrics_entry(fctype: u8) -> Sqe {
    Sqe { nsid: U32::new(fctype.into()), ..entry(fctype::OPCODE) }
}
