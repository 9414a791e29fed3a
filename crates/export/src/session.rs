//! The interface between protocols and drivers.
//!
//! A [`Session`] is the protocol of one connection as a sans-I/O state machine. The driver owns the
//! socket, the disk and the clock.
//!
//! Contract of the driver: **after any call that takes `&mut self`, call [`Session::poll`] until it
//! returns `None`, before waiting for anything.** Also call it after segments have been sent,
//! because that frees memory which the session may be waiting for.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::{Admitted, Buffer, Event, Fence, Outcome, Segment, Ticket};

/// The protocol of one connection: received bytes and completed requests in, [`Step`]s out.
pub trait Session {
    /// Processes received bytes, and returns how many it has consumed. It may leave an incomplete
    /// header. The driver offers the rest again, followed by newer bytes, once
    /// [`Session::can_receive`] returns true.
    fn receive(&mut self, now: Instant, bytes: &[u8]) -> usize;

    /// Processes a completed disk request. Called exactly once for each [`Step::Submit`], even
    /// after the connection was lost.
    fn complete(&mut self, now: Instant, ticket: Ticket, outcome: Outcome);

    /// Processes an event from outside this connection.
    fn notify(&mut self, now: Instant, notice: &Notice);

    /// Processes the expiry of the [deadline](Session::deadline).
    fn tick(&mut self, now: Instant);

    /// Returns the next action for the driver, or `None` if there is none for now.
    fn poll(&mut self) -> Option<Step>;

    /// Returns when to call [`Session::tick`], if at all.
    fn deadline(&self) -> Option<Instant>;

    /// Returns whether the session accepts more bytes now. While it returns false, the driver does
    /// not read from the socket (back-pressure).
    fn can_receive(&self) -> bool;

    /// Returns whether the peer has completed the protocol's handshake and was granted access. The
    /// driver limits the number and the lifetime of connections that have not.
    fn is_established(&self) -> bool;

    /// Returns the fence of the writes of this connection, if it has one. The driver closes it as
    /// soon as the peer has closed its sending side: the peer may be gone, and its host may send newer
    /// data over another connection. Called once [`Session::is_established`] returns true, and after
    /// each [`Notice`]. From then on the session is notified of changes that concern this export or
    /// all, and not of those of other exports; a later fence must be of an export with the same id.
    fn fence(&self) -> Option<&Arc<Fence>> {
        None
    }

    /// Lends the driver memory for the next bytes of the stream, if they are payload, to be
    /// received without a copy. The driver returns it by [`Session::direct_received`], and does not
    /// call [`Session::receive`] before that.
    fn direct_recv(&mut self) -> Option<DirectRecv> {
        None
    }

    /// Takes the memory back, with `len` bytes received into it.
    fn direct_received(&mut self, _now: Instant, _window: DirectRecv, _len: usize) {}
}

/// The part of a buffer that payload is to be received into.
#[derive(Debug)]
pub struct DirectRecv {
    /// The whole buffer.
    pub buffer: Buffer,
    /// Index for the next byte.
    pub start: usize,
    /// Index of the end of the expected payload.
    pub end: usize,
    /// Identifies the transfer to the session; not for the driver.
    pub token: u32,
}

/// An action for the driver.
#[derive(Debug)]
pub enum Step {
    /// Append this to the send queue. On a transport of messages, each is one message.
    Send(Segment),
    /// Append a halt of the pipe to the peer to the send queue. Only on transports that have it
    /// (USB); elsewhere the connection is cut.
    Halt,
    /// Execute this disk request, and call [`Session::complete`].
    Submit(Admitted),
    /// Pass this event to the program.
    Report(Box<Event>),
    /// State that this session shares with others has changed: pass [`Notice::StateChanged`] to
    /// every session with a [fence](Session::fence) of the same export, and to every session
    /// without one. If this session has none, pass it to every session.
    Notify,
    /// Send what is in the send queue, then close the connection. Only [`Step::Report`] and
    /// [`Step::Notify`] may follow.
    Close(Reason),
}

/// An event from outside a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// Shared state has changed: the catalogue, the size of an export, or what another session has
    /// announced by [`Step::Notify`].
    StateChanged,
    /// The program is about to stop: shut the connection down in an orderly way.
    Stopping,
    /// The connection is lost. Nothing can be sent any more; requests in flight still complete.
    Disconnected,
}

/// Why a connection was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// The peer closed the connection, or it was lost.
    Peer,
    /// The peer violated the protocol.
    Violation,
    /// The peer did not send in time what the protocol requires.
    Timeout,
    /// The peer was refused access.
    Refused,
    /// The association that the connection belonged to has ended.
    Ended,
    /// The program is stopping.
    Stopping,
    /// The user of the host has ejected the disk.
    Ejected,
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
            Self::Ejected => "ejected there: safe to unplug",
        })
    }
}
