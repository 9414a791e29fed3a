//! Interfaces to Linux: block devices and their use, addresses and links, kernel modules, signals, the service manager.
//!
//! Everything that reads `/sys`, `/proc`, `/dev`, `/run` or `/etc` takes a [`tree::Tree`], whose root is a parameter, so
//! that tests can use a directory instead of the machine.
#![allow(
    missing_docs,
    reason = "only this workspace uses the crate; docs where the name is not enough"
)]
#![deny(unsafe_code)]

pub mod activation;
pub mod battery;
pub mod block;
pub mod boot;
pub mod button;
pub mod disk;
pub mod fabrics;
pub mod gadget;
pub mod glob;
pub mod gpt;
pub mod handshake;
pub mod hardware;
pub mod home;
pub mod homed;
pub mod host_port;
pub mod identity;
pub mod in_use;
pub mod inhibit;
pub mod journal;
pub mod kexec;
pub mod keyring;
pub mod machine;
pub mod medium;
pub mod memory;
pub mod module;
pub mod mount;
pub mod net;
mod netlink;
pub mod network;
pub mod notify;
pub mod partition;
pub mod peer;
pub mod pid1;
pub mod plymouth;
pub mod range_lock;
pub mod reason;
pub mod root;
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
