//! What storagetm knows of the Linux machine it runs on: its disks and their use, addresses, signals, the service manager.
//!
//! Knows no protocol and no other crate of the workspace. Everything that reads `/sys`, `/proc`, `/dev`, `/run` or
//! `/etc` does so through a [`tree::Tree`], whose root is a parameter, so that a test can stand in for a machine.
#![deny(unsafe_code)]

pub mod activation;
pub mod battery;
pub mod block;
pub mod boot;
pub mod button;
pub mod disk;
pub mod fabrics;
pub mod gpt;
pub mod hardware;
pub mod identity;
pub mod in_use;
pub mod inhibit;
pub mod journal;
pub mod keyring;
pub mod machine;
pub mod medium;
mod member;
pub mod memory;
pub mod module;
pub mod mount;
pub mod net;
mod netlink;
pub mod network;
pub mod notify;
pub mod partition;
pub mod pid1;
pub mod plymouth;
pub mod range_lock;
pub mod reason;
pub mod sandbox;
pub mod shortfall;
pub mod signal;
pub mod signature;
mod syscall;
pub mod transport;
pub mod tree;
pub mod tty;
pub mod uevent;
pub mod watch;
