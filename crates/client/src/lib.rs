//! Client side of all protocols: [`Transport`], a byte stream to a peer, and [`Driver`], which runs a
//! client session over it. The caller connects.

#![forbid(unsafe_code)]

mod buffered;
pub mod discovery;
mod driver;
mod iscsi_session;
mod nbd_session;
mod nvme_session;
mod pairing_session;
mod send_queue;
mod session;
mod transport;

pub use driver::{Deadline, Driver};
pub use nbd_session::start_tls;
pub use nvme_session::QueueError;
pub use send_queue::SendQueue;
pub use session::{ClientSession, Output};
pub use transport::{
    ConnectError, Dial, DialAddress, DialSubsystem, Transport, ignoring_subsystem,
};
