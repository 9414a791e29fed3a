//! What the tests of several crates share. Only tests depend on this crate.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

pub mod bucket;
mod disk;
mod driver;
pub mod exfat;
pub mod ntfs;
mod partitions;
mod random;
mod scratch;
mod stream;
pub mod web;

pub use disk::{POISON, execute, export, poison};
pub use driver::{Conn, Driver, Id};
pub use partitions::logical_partitions;
pub use random::Xorshift64;
pub use scratch::Scratch;
pub use stream::{Chunks, Stream};
