//! Client and server in memory with virtual time.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod agree;
mod corpus;
mod limits;
mod search;
mod tricks;
mod world;

#[path = "../../../../fuzz/src/input.rs"]
#[allow(unreachable_pub, dead_code, reason = "public where the fuzzer is")]
mod input;
