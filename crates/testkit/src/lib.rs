//! What the tests of several crates share. Only tests depend on this crate.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod scratch;

pub use scratch::Scratch;
