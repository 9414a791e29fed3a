//! The server with HTTP clients of other projects, and with `storagetm copy`. A test whose program is
//! not installed is skipped with a note.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "http/clients.rs"]
mod clients;
#[path = "http/files.rs"]
mod files;
#[path = "nbd/foreign.rs"]
#[allow(dead_code, reason = "each program needs a part of it")]
mod foreign;
#[path = "http/listeners.rs"]
mod listeners;
#[path = "serve/process.rs"]
#[allow(dead_code, reason = "each program needs a part of it")]
mod process;
#[path = "http/server.rs"]
mod server;
