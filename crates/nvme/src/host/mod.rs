//! The host side of NVMe/TCP, as pure as the target: bytes and commands in, bytes and ended commands out. It knows no
//! socket, no disk and no clock.
//!
//! One [`Queue`] is one connection. [`Controller`] is the sequence of Admin commands by which a host gets to know a
//! controller and its namespaces, in the order in which Linux sends them.

mod auth;
mod connect;
mod controller;
mod queue;
mod slots;

use std::rc::Rc;

use export::{Buffer, Segment};

pub use connect::Options;
pub use controller::{Ask, Controller, Namespace, Trouble};
pub use queue::Queue;

pub use crate::auth::Credentials;
use crate::status::Status;
use crate::tcp::Violation;
use crate::wire::fabrics::ConnectResponse;

/// The data that goes with a command.
#[derive(Debug)]
pub enum Payload {
    /// None.
    None,
    /// From the controller; the buffer is as long as the data, and comes back in [`Done`].
    Receive(Buffer),
    /// To the controller: in the capsule if it fits there, else when the controller asks for it.
    Send(Rc<Buffer>),
    /// To the controller when it asks for it, even if it would fit in the capsule.
    Offer(Rc<Buffer>),
}

/// What whoever drives a [`Queue`] is to do or to know.
#[derive(Debug)]
pub enum Step {
    /// Send this, after what was to be sent before.
    Send(Segment),
    /// The controller accepted the connection as a queue: commands may be submitted.
    Connected(ConnectResponse),
    /// The controller refused the connection: the status, and dword 0, which may name the field that is wrong. Also if
    /// one of both did not prove who it is: then with Authentication Required.
    Refused(Status, u32),
    /// A command ended.
    Done(Done),
    /// Send what is still to be sent, then close the connection. Nothing follows; commands under way have no answer.
    Close(End),
}

/// A command that ended.
#[derive(Debug)]
pub struct Done {
    /// What the submitter calls it.
    pub tag: u32,
    /// How it ended.
    pub status: Status,
    /// Dwords 0 and 1 of its answer.
    pub result: u64,
    /// The buffer of [`Payload::Receive`]; after success, filled in all its length.
    pub buffer: Option<Buffer>,
}

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The controller broke a rule, and was told which.
    Violation(Violation),
    /// The controller says that this host broke a rule: fatal error status and information (NVMe/TCP 1.0 §3.6.2.5).
    Terminated {
        /// Fatal error status.
        fes: u16,
        /// Fatal error information.
        fei: u32,
    },
}

/// A command that cannot be submitted now, with its payload.
#[derive(Debug)]
pub enum NotNow {
    /// As many commands are under way as the queue holds.
    Full(Payload),
    /// The queue is not connected, or closed.
    NotConnected(Payload),
}
