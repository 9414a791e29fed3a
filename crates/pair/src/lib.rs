//! Pairing: two machines without a common key get one, because a person reads a code off one screen and types it on the
//! other. Both ends, as pure state machines. It knows no socket, no TLS, no clock and no disk.
//!
//! | word | is |
//! |---|---|
//! | [`Code`] | what the person carries from screen to keyboard: eight digits, or the long form of a QR code |
//! | [`Invite`] | the text of the QR code: where the target is, and the long code |
//! | [`PairingServer`] | the target's: shows codes, counts tries, holds who waits for the owner's [`Verdict`] |
//! | [`PairingSession`] | one connection to the server: an [`export::Session`] |
//! | [`Client`] | the other end of it |
//! | [`keys::Derived`] | the keys that both ends make of the secret that they then have |
//!
//! It runs in a TLS channel made with [`PSK`], which everybody knows: the channel keeps listeners out, not impostors.
//! These are found out because the exchange is bound to the channel's exporter value.

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
pub use code::{BadCode, Code, Kind};
pub use invite::Invite;
pub use message::{Disk, MOST_DISKS, Why};
pub use server::{PairingServer, Random, Shown, Tries, Verdict, View};
pub use session::PairingSession;

/// The PSK identity under which a client asks for a channel to pair in.
pub const IDENTITY: &str = "storagetm-pair-1";

/// The key of that channel. It is no secret: it makes a channel with whoever is there, and protects from nobody but
/// those who only listen.
pub const PSK: [u8; 32] = *b"storagetm: everybody knows this.";

/// What this version of the protocol calls itself, in what both ends hash.
const PROTOCOL: &[u8] = b"storagetm-pair-1";
