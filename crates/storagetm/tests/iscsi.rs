//! The server with iSCSI initiators of other projects. A test whose program is not installed is
//! skipped with a note.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "iscsi/conformance.rs"]
mod conformance;
#[path = "iscsi/initiators.rs"]
mod initiators;
#[path = "serve/process.rs"]
#[allow(dead_code, reason = "each program needs a part of it")]
mod process;
#[path = "iscsi/server.rs"]
mod server;
