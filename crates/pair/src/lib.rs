//! Pairing: two machines establish a shared secret by a code that the user reads on one screen and
//! types on the other. Both sides are sans-I/O state machines.
//!
//! | word | is |
//! |---|---|
//! | [`Code`] | the pairing code: eight digits, or the long form of a QR code |
//! | [`Invite`] | the text of the QR code: addresses of the target and the long code |
//! | [`PairingServer`] | on the target: shows codes, limits attempts, holds requests until the [`Verdict`] |
//! | [`PairingSession`] | one connection to the server: an [`export::Session`] |
//! | [`Client`] | the other side of that connection |
//! | [`keys::nvme_tls`] | derives the TLS key from the shared secret |
//!
//! Pairing runs inside a TLS channel with the well-known [`PSK`]. That channel only protects
//! against eavesdroppers; a man in the middle is detected because the exchange is bound to the
//! exporter value of the channel.

#![forbid(unsafe_code)]

mod agreement;
pub mod client;
mod code;
mod cpace;
mod frame;
mod invite;
pub mod keys;
mod message;
mod server;
mod session;

pub use client::Client;
pub use code::{Code, CodeKind, InvalidCode};
pub use invite::Invite;
pub use message::{Disk, MAX_DISKS, RefusalReason};
pub use server::{
    Codes, FailedAttempts, MAX_WAITING, PairingServer, Random, ServerStatus, Verdict,
};
pub use session::PairingSession;

/// The TLS PSK identity of pairing.
pub const IDENTITY: &str = "storagetm-pair-1";

/// The well-known TLS PSK of pairing. Not secret: it authenticates neither side, and protects only
/// against passive eavesdroppers.
pub const PSK: [u8; 32] = *b"storagetm: everybody knows this.";

/// The name of the protocol version, included in all hashes.
const PROTOCOL: &[u8] = b"storagetm-pair-1";
