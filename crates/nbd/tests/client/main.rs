//! The client against scripted servers.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod chunking;
mod corpus;
mod golden;
mod hostile;
#[path = "../../../../fuzz/src/input.rs"]
#[allow(unreachable_pub, dead_code, reason = "public where the fuzzer is")]
mod input;
mod messages;
mod script;

use messages as nbd_client_messages;
