//! The host side of NVMe/TCP.
//!
//! One [`Queue`] is one connection. [`Controller`] is the initialization sequence of a controller.

mod auth;
mod connect;
mod controller;
mod queue;
mod slots;
mod submission;

use std::rc::Rc;

use export::{Buffer, Segment};

pub use connect::Options;
pub use controller::{Controller, InitCommand, InitError, Namespace};
pub use queue::Queue;

pub use crate::auth::Credentials;
use crate::status::Status;
use crate::tcp::Violation;
use crate::wire::fabrics::ConnectResponse;

/// The data of a command.
#[derive(Debug)]
pub enum Payload {
    /// No data.
    None,
    /// Data from the controller. The buffer is as long as the data, and is returned in
    /// [`Completion`].
    Receive(Buffer),
    /// Data to the controller: in-capsule if it fits, otherwise by R2T.
    Send(Rc<Buffer>),
    /// Data to the controller, always by R2T.
    SendByR2t(Rc<Buffer>),
}

/// Output of a [`Queue`].
#[derive(Debug)]
pub enum Step {
    /// Send this segment, in order.
    Send(Segment),
    /// Connected: commands may be submitted.
    Connected(ConnectResponse),
    /// Connect failed: status, and dword 0, which may name the invalid field. Authentication
    /// Required if authentication failed.
    Refused(Status, u32),
    /// A command completed.
    Completed(Completion),
    /// Send the segments before, then close the connection. Commands in flight get no completion.
    Close(CloseReason),
}

/// Completion of a command.
#[derive(Debug)]
pub struct Completion {
    /// Tag of [`Queue::submit`].
    pub tag: u32,
    /// Status.
    pub status: Status,
    /// Dwords 0 and 1.
    pub result: u64,
    /// The buffer of [`Payload::Receive`]. After success it is filled.
    pub buffer: Option<Buffer>,
}

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// The controller violated the protocol. H2CTermReq was sent.
    Violation(Violation),
    /// The controller sent C2HTermReq (NVMe/TCP 1.0 §3.6.2.5).
    Terminated {
        /// Fatal error status.
        fes: u16,
        /// Fatal error information.
        fei: u32,
    },
}

/// A command that cannot be submitted; returns its payload.
#[derive(Debug)]
pub enum SubmitError {
    /// The queue is full.
    Full(Payload),
    /// The queue is not connected.
    NotConnected(Payload),
}
