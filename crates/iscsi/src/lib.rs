//! The iSCSI target (RFC 7143) as a sans-I/O state machine.
//!
//! It takes received bytes and returns steps: bytes to send, and disk requests to execute. Sockets,
//! threads and time are the driver's. [`target`] implements [`export::Session`]; the SCSI commands
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
