//! The target by other people's NBD clients: what they say of its disks, what they read and write, and that nothing that a
//! client does ends it. Each test is skipped by name where its program is not installed.

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
