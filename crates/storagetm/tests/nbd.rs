//! The server with NBD clients of other projects: what they report about its disks, what they read
//! and write, and that no client can end it. A test whose program is not installed is skipped with
//! a note.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "nbd/device.rs"]
mod device;
#[path = "nbd/foreign.rs"]
mod foreign;
#[path = "nbd/information.rs"]
mod information;
#[path = "serve/process.rs"]
#[allow(dead_code, reason = "each program needs a part of it")]
mod process;
#[path = "nbd/raw.rs"]
mod raw;
#[path = "nbd/rude.rs"]
mod rude;
#[path = "nbd/secured.rs"]
mod secured;
#[path = "nbd/server.rs"]
mod server;
#[path = "nbd/shell.rs"]
mod shell;
#[path = "nbd/transfer.rs"]
mod transfer;
#[path = "nbd/virtual_disks.rs"]
mod virtual_disks;
