//! The iSCSI target and the iSCSI initiator (RFC 7143) as sans-I/O state machines.
//!
//! They take received bytes and return steps: bytes to send, and disk requests to execute or
//! completed commands. Sockets, threads and time are the driver's. [`host`] is the initiator. [`target`] implements [`export::Session`]; the SCSI commands
//! themselves are those of the [`scsi`] crate. [`wire`] has the structs and constants of the protocol,
//! [`iqn`] the names of targets, [`credential`] the schemes of CHAP secrets in a policy, and [`chap`]
//! the algorithms.
//!
//! Each export is a target of its own, with the disk as LUN 0. Supported are discovery by
//! SendTargets, CHAP in one direction or both, CRC32C digests, immediate and unsolicited data, and
//! session reinstatement; one connection for each session, and error recovery level 0: a session with
//! an error ends, and its initiator logs in again.

#![forbid(unsafe_code)]

pub mod chap;
pub mod credential;
pub mod host;
pub mod iqn;
pub mod target;
pub mod wire;
