//! The initiator connected to the target in memory, and to hostile targets.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod chap;
mod commands;
mod corpus;
mod hostile;
#[path = "../../../../fuzz/src/input.rs"]
#[allow(unreachable_pub, dead_code, reason = "public where the fuzzer is")]
mod input;
mod rogue;
mod world;
