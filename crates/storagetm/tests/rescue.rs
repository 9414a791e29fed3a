//! `storagetm copy` with other programs: NBD servers with injected faults, and GNU ddrescue, whose
//! maps it resumes. Skipped with a note where a program is not installed.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "rescue/faults.rs"]
mod faults;
#[path = "nbd/foreign.rs"]
#[allow(dead_code, reason = "shared with the tests of the target, which need all of it")]
mod foreign;
#[path = "rescue/maps.rs"]
mod maps;
#[path = "rescue/peer.rs"]
mod peer;
#[path = "copy/port.rs"]
mod port;
#[path = "rescue/servers.rs"]
mod servers;
