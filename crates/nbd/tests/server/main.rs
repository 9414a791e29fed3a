//! The server against scripted clients: raw bytes to its sessions, split anywhere, with disk
//! requests completed in any order.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod corpus;
mod greeting;
mod hostile;
#[path = "../../../../fuzz/src/input.rs"]
#[allow(unreachable_pub, dead_code, reason = "public where the fuzzer is")]
mod input;
mod io;
mod laws;
mod life;
mod memory;
mod messages;
mod options;
mod states;
mod status;
mod streamed_read;
mod world;

use messages as nbd_messages;
use world as nbd_world;
