//! The target against scripted initiators: raw bytes to its sessions, split anywhere, with disk
//! requests completed in any order.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod data;
mod discovery;
mod hostile;
mod initiator;
mod keys;
mod laws;
mod login;
mod memory;
mod tasks;
mod world;
