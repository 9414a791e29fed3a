//! Keys, the hosts that hold them, and what each host may access.
//!
//! | module | is |
//! |---|---|
//! | [`store`] | the folder in which keys and hosts are kept, and its watch |
//! | [`key`], [`record`], [`target`] | a key; a host that may connect here; a machine that this one may connect to |
//! | [`policy`] | from records to an [`export::Policy`] |
//! | [`certificate`] | the certificate that this machine shows to browsers |
//! | [`reservations`] | reservations of disks that are restored after a restart |
//! | [`keyring`] | keys in the forms that the Linux kernel and nvme-cli need |
#![forbid(unsafe_code)]

pub mod certificate;
pub mod date;
pub mod key;
pub mod keyring;
pub mod name;
pub mod policy;
mod private;
pub mod record;
pub mod reservations;
pub mod store;
pub mod target;
mod watch;
