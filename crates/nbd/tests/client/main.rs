//! The client by itself, with a test in the server's place.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod chunking;
mod corpus;
mod golden;
mod hostile;
#[path = "../../../../fuzz/src/input.rs"]
#[allow(unreachable_pub, dead_code, reason = "public where the fuzzer is")]
mod input;
mod says;
mod talk;

use says as nbd_client_says;
