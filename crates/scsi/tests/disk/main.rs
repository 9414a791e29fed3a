//! A disk in memory, and initiators that send it commands.
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod capacity;
mod copy;
mod corpus;
#[path = "../../../../fuzz/src/input.rs"]
#[allow(unreachable_pub, dead_code, reason = "public where the fuzzer is")]
mod input;
mod inquiry;
mod jobs;
mod laws;
mod mode;
mod nexus;
mod report;
mod reservation;
mod transfer;
mod world;
mod write_atomic;

use world as scsi_world;
