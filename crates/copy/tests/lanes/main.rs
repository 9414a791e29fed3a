//! The lanes to other machines: against our own target in this process, and against other people's servers.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod drive;
mod foreign;
mod liar;
mod machine;
mod nbd_lane;
mod nvme;
mod rude;
mod whole;
