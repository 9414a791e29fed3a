//! What a host may do wrong, and what the target then says: raw bytes against the target's session, class by class. It
//! knows nothing of what is inside the target.
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
mod says;
mod states;
mod world;
