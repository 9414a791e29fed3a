//! The initiator connected to the target in memory, and to hostile targets.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod chap;
mod commands;
mod hostile;
mod rogue;
mod world;
