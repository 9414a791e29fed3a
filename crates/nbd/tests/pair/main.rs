//! The client connected to the server in memory.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod laws;
mod opening;
mod using;
mod world;
