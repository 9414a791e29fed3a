//! Connections to other machines: our own targets in this process, and other projects' servers.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod driver;
mod faulty_server;
mod foreign_nbd;
mod iscsi;
mod machine;
mod nbd;
mod nvme;
mod on_the_way;
mod protocol_violation;
mod scripted_iscsi;
mod whole_copy;
