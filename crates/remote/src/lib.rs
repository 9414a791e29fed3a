//! Another machine: how it is named, found, reached and asked.
#![forbid(unsafe_code)]

pub mod address;
pub mod credentials;
pub mod dial;
pub mod disk;
pub mod handshake;
pub mod host_identity;
pub mod host_nqn;
pub mod key_selection;
pub mod machine;
pub mod query;
pub mod uri;
