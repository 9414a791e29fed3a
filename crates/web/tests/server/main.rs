//! The server against scripted clients: raw bytes to its sessions, split anywhere, with disk requests
//! completed in any order.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod code;
mod compressed;
mod conditions;
mod corpus;
mod files;
mod hostile;
#[path = "../../../../fuzz/src/input.rs"]
#[allow(unreachable_pub, dead_code, reason = "public where the fuzzer is")]
mod input;
mod life;
mod pages;
mod reading;
mod volumes;
mod world;

use world as web_world;
