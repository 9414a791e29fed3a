//! Keys and authentication: TLS pre-shared keys and DH-HMAC-CHAP (NVMe Base 2.0 §8.13, NVMe/TCP 1.0
//! §3.6.1).

pub mod chap;
mod controller;
mod group;
mod hash;
mod host;
mod interchange;
pub mod psk;

pub use controller::Rules;
pub(crate) use controller::{Controller, Keys, Progress, Setting, Shown};
pub use group::{Exchange, Group, PRIVATE};
pub use hash::Hash;
pub use host::Credentials;
pub(crate) use host::{Host, Next};
pub use interchange::KeyError;
#[cfg(test)]
mod test;
