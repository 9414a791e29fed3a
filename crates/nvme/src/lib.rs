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
pub mod status;
pub mod target;
pub mod tcp;
pub mod wire;
