//! NBD as pure state machines: bytes in, bytes and disk requests out.
//!
//! Knows no sockets, no threads and no clock. Sections are those of the protocol's own text (`doc/proto.md`).

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod client;
pub mod server;
pub mod wire;

/// The TCP port of NBD servers (IANA: nbd).
pub const PORT: u16 = 10809;
