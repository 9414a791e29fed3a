//! The client by itself, with a test in the server's place.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod chunking;
mod golden;
mod hostile;
mod says;
mod talk;
