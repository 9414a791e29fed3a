//! Disks that fail or hang: block devices of this machine whose requests end with an error, or do not end. They are loop
//! devices over files of nbdfuse, which asks nbdkit. Each test is skipped by name where that cannot be had.

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
#[path = "nbd/raw.rs"]
mod raw;
#[path = "failing/reader.rs"]
mod reader;
#[path = "failing/sectors.rs"]
mod sectors;
#[path = "failing/serve.rs"]
mod serve;
