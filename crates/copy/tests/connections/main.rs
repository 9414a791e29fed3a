//! The connections to other machines: against our own target in this process, and against other people's servers.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod driver;
mod faulty_server;
mod foreign_nbd;
mod machine;
mod nbd;
mod nvme;
mod protocol_violation;
mod whole_copy;
