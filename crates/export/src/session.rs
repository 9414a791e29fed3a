//! The seam: one connection's protocol as a pure state machine. Whoever drives it owns the socket, the disk and the
//! clock; the session owns the rules.
//!
//! The law of the driver: **after any call that takes `&mut self`, call [`Session::poll`] until it returns nothing, before
//! waiting for anything.** And: call [`Session::poll`] again when segments have been sent, because memory came free.

use std::fmt;
use std::time::Instant;

use crate::{Admitted, Buffer, Event, Outcome, Segment, Ticket};

/// One connection's protocol: bytes and ended requests in, [`Step`]s out.
pub trait Session {
    /// Bytes came. Takes as many as it can now and tells how many that is; the rest is offered again, with what came
    /// after it, once the session is [hungry](Session::can_receive). It may leave a piece that is not yet a whole header.
    fn receive(&mut self, now: Instant, bytes: &[u8]) -> usize;

    /// A disk request ended. Called exactly once for each [`Step::Submit`], even after the connection has gone.
    fn complete(&mut self, now: Instant, ticket: Ticket, outcome: Outcome);

    /// Something happened outside this connection.
    fn notify(&mut self, now: Instant, news: &Notice);

    /// The [deadline](Session::deadline) passed.
    fn tick(&mut self, now: Instant);

    /// What to do next, until there is nothing.
    fn poll(&mut self) -> Option<Step>;

    /// When to call [`Session::tick`].
    fn deadline(&self) -> Option<Instant>;

    /// Whether it would take more bytes now. While it would not, the driver does not read the socket.
    fn can_receive(&self) -> bool;

    /// Whether the peer has said who it is and been let in. Connections that have not are few and short-lived.
    fn is_established(&self) -> bool;

    /// Memory that the next bytes of the connection belong in, if they are payload: the driver may receive into it and
    /// gives it back by [`Session::direct_received`]. While it is out, [`Session::receive`] is not called.
    fn direct_recv(&mut self) -> Option<DirectRecv> {
        None
    }

    /// The memory comes back, with `got` bytes received into it.
    fn direct_received(&mut self, _now: Instant, _landing: DirectRecv, _got: usize) {}
}

/// Part of a buffer that payload is to be received into.
#[derive(Debug)]
pub struct DirectRecv {
    /// The whole buffer.
    pub buffer: Buffer,
    /// Where the next byte belongs.
    pub start: usize,
    /// Where the payload that is expected now ends.
    pub end: usize,
    /// The session's own mark.
    pub mark: u32,
}

/// What the driver is to do.
#[derive(Debug)]
pub enum Step {
    /// Send this, after what was to be sent before.
    Send(Segment),
    /// Carry this out.
    Submit(Admitted),
    /// Say this.
    Report(Event),
    /// Something that this session shares with others has changed: tell every session [`Notice::StateChanged`].
    Notify,
    /// Send what is still to be sent, then close the connection. No step but [`Step::Report`] and [`Step::Notify`]
    /// follows.
    Close(Reason),
}

/// Something that happened outside a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// Something shared has changed: what is lent, its size, or something that another session said by [`Step::Notify`].
    StateChanged,
    /// The program is about to stop: say goodbye and close.
    Stopping,
    /// The connection is gone. Nothing can be sent any more; requests under way still end.
    Disconnected,
}

/// Why a connection was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The peer closed it, or the network broke.
    Peer,
    /// The peer broke a rule of the protocol.
    Violation,
    /// The peer did not say in time what it had to.
    Timeout,
    /// The peer was refused.
    Refused,
    /// The association that it belonged to has ended.
    Ended,
    /// The program stops.
    Stopping,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Peer => "disconnected",
            Self::Violation => "broke the protocol",
            Self::Timeout => "timed out",
            Self::Refused => "refused",
            Self::Ended => "association ended",
            Self::Stopping => "storagetm stops",
        })
    }
}
