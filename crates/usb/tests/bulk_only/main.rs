//! The bulk-only transport in memory: a host at the endpoints of a session.
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod cases;
mod firmware;
mod hostile;
mod life;
mod world;
