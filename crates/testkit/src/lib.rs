//! What the tests of several crates share. Only tests depend on this crate.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

pub mod bucket;
mod disk;
mod driver;
mod random;
mod scratch;
mod stream;
pub mod web;

pub use disk::{POISON, execute, export, poison};
pub use driver::{Conn, Driver, Id};
pub use random::Xorshift64;
pub use scratch::Scratch;
pub use stream::{Chunks, Stream};
