//! NVMe over TCP as pure state machines: bytes in, bytes and disk requests out.
//!
//! Knows no sockets, no threads and no clock. Read on in this order: [`wire`] (the figures of the
//! specification), [`status`] (how a command ends), [`command`] (what a command asks for), [`auth`]
//! (keys).

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod auth;
pub mod command;
pub mod host;
pub mod nqn;
pub mod status;
pub mod target;
pub mod tcp;
pub mod wire;

/// The TCP port of NVM subsystems and of their discovery service (IANA: nvme).
pub const PORT: u16 = 4420;

/// The TCP port of a discovery service alone (IANA: nvme-disc).
pub const DISCOVERY_PORT: u16 = 8009;
