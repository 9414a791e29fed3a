//! The host side of all protocols: byte streams to other machines ([`Transport`]), and the driver
//! of a client session over one of them ([`Driver`]). The caller dials.

#![forbid(unsafe_code)]

mod buffered;
pub mod discovery;
mod driver;
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
pub use transport::{ConnectError, Dial, DialSubsystem, Transport, any_subsystem};
