//! Protocol errors of a host, and the target's reactions, class by class. Sends raw bytes to the
//! target's session.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod admin;
mod auth;
mod capsule;
mod connection;
mod corpus;
mod data;
mod fabrics;
mod header;
#[path = "../../../../fuzz/src/input.rs"]
#[allow(unreachable_pub, reason = "public where the fuzzer is")]
mod input;
mod io;
mod life;
mod memory;
mod raw_host;
mod states;
mod world;
