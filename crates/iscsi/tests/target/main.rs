//! The target against scripted initiators: raw bytes to its sessions, split anywhere, with disk
//! requests completed in any order.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod corpus;
mod data;
mod discovery;
mod hostile;
mod initiator;
#[path = "../../../../fuzz/src/input.rs"]
#[allow(unreachable_pub, dead_code, reason = "public where the fuzzer is")]
mod input;
mod keys;
mod laws;
mod login;
mod memory;
mod tasks;
mod world;

use initiator as iscsi_initiator;
use world as iscsi_world;
