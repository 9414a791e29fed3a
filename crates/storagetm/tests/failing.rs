//! Disks that fail or hang: block devices whose requests end with an error, or do not end. They are
//! loop devices over files of nbdfuse, whose server is nbdkit. Where these are not available, the
//! tests are skipped with a note.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "failing/device.rs"]
mod device;
#[path = "nbd/foreign.rs"]
#[allow(dead_code, reason = "shared with the tests of the target, which need all of it")]
mod foreign;
#[path = "failing/hang.rs"]
mod hang;
#[path = "failing/lost.rs"]
mod lost;
#[path = "failing/map.rs"]
mod map;
#[path = "nbd/raw.rs"]
mod raw;
#[path = "failing/reader.rs"]
mod reader;
#[path = "failing/sectors.rs"]
mod sectors;
#[path = "failing/serve.rs"]
mod serve;
#[path = "failing/web.rs"]
mod web;
