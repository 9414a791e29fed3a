//! Keys and authentication: TLS pre-shared keys and DH-HMAC-CHAP (NVMe Base 2.0 §8.13, NVMe/TCP 1.0
//! §3.6.1).

pub mod chap;
mod controller;
pub mod credential;
mod group;
mod hash;
mod host;
mod interchange;
pub mod psk;

pub use controller::AuthConfig;
pub(crate) use controller::{Authentication, ControllerAuth, Keys, Progress, QueueContext};
pub use group::{DhExchange, Group, PRIVATE_KEY_LEN};
pub use hash::Hash;
pub use host::Credentials;
pub(crate) use host::{HostAction, HostAuth};
pub use interchange::KeyError;
#[cfg(test)]
mod test;
