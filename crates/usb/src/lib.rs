//! USB mass storage, bulk-only transport (BOT): the device side as a sans-I/O state machine over
//! the `scsi` crate. All disks are logical units of one device.
//!
//! | module | is |
//! |---|---|
//! | [`wire`] | the command and the status wrapper |
//! | [`descriptors`] | what the device declares, in the form of `FunctionFS` |
//! | [`control`] | the class requests on endpoint 0 |
//! | [`Server`] | creates the sessions |
//! | [`Session`] | the commands from configuration to disconnection or reset |
//! | `command`, `unit` | the command in progress; a disk and its use |
//!
//! # Transport
//!
//! The driver has endpoints instead of a byte stream (see [`export::Session`]):
//! - It passes the data of one transfer of the bulk-out endpoint to [`Session::receive`], where a
//!   command wrapper is expected, or reads exactly the window of [`Session::direct_recv`]. A window
//!   that is not filled was ended by a short packet.
//! - Each [`Step::Send`](export::Step::Send) is one transfer of the bulk-in endpoint.
//! - [`Step::Halt`](export::Step::Halt) halts the bulk-in endpoint: fewer bytes follow than the host
//!   asked for. The host clears the halt.
//! - [`Step::Close`](export::Step::Close) halts both endpoints until the host resets the device.
//! - After a reset, the driver drops the session and makes another one.
//!
//! Data from the host that no command processes is received and discarded, which the standard
//! permits (BOT 6.7.3) and which needs no halt of the bulk-out endpoint.

#![forbid(unsafe_code)]

mod command;
pub mod control;
pub mod descriptors;
mod server;
mod session;
mod unit;
pub mod wire;

pub use server::{MAX_UNITS, Server};
pub use session::Session;

#[cfg(doc)]
use export::Session as _;
