//! Tests of the host against the target in memory, with any chunking, any completion order, and
//! injected faults.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]
#![allow(clippy::cast_possible_truncation, clippy::cast_lossless, reason = "small test values")]

mod abort;
mod ana;
mod client;
mod discovery;
mod durability;
mod events;
mod faults;
mod fused;
mod hostile;
mod initialization;
mod keys;
mod laws;
mod lifetime;
mod memory;
mod ranges;
mod reservations;
mod transfer;
mod world;
