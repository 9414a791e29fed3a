//! The bulk-only transport in memory: a host at the endpoints of a session.
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod cases;
mod corpus;
mod hostile;
#[path = "../../../../fuzz/src/input.rs"]
#[allow(unreachable_pub, dead_code, reason = "public where the fuzzer is")]
mod input;
mod life;
mod sequences;
mod world;

use world as usb_world;
