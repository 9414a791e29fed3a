//! Drives one NBD client over its connection.

use std::io;
use std::time::Instant;

use export::DirectRecv;
use nbd::client::{Client, Options, Step};

use crate::transport::{BufferedTransport, Protocol, Transport};

/// A client and its connection.
pub(super) struct ClientIo {
    pub(super) transport: BufferedTransport,
    pub(super) client: Client,
}

impl Protocol for Client {
    fn receive(&mut self, bytes: &[u8]) -> usize {
        self.receive(bytes)
    }

    fn direct_recv(&mut self) -> Option<DirectRecv> {
        self.direct_recv()
    }

    fn direct_received(&mut self, direct_recv: DirectRecv, len: usize) {
        self.direct_received(direct_recv, len);
    }
}

impl ClientIo {
    pub(super) fn new(transport: Box<dyn Transport>, options: Options) -> io::Result<Self> {
        Ok(Self { transport: BufferedTransport::new(transport)?, client: Client::new(options) })
    }

    /// Queues what the client sends. Returns its next other step, or `None` if it needs more input.
    pub(super) fn poll(&mut self) -> Option<Step> {
        loop {
            match self.client.poll()? {
                Step::Send(segment) => self.transport.push(segment),
                step => return Some(step),
            }
        }
    }

    /// Blocks until the client has a step other than `Send`.
    ///
    /// # Errors
    /// Fails if the connection fails or `deadline` passes.
    pub(super) fn wait_for_step(&mut self, deadline: Instant) -> io::Result<Step> {
        loop {
            if let Some(step) = self.poll() {
                return Ok(step);
            }
            if !self.transport.exchange(&mut self.client)? {
                self.transport.wait(deadline)?;
            }
        }
    }
}

impl Drop for ClientIo {
    /// Sends `NBD_CMD_DISC` if that does not block.
    fn drop(&mut self) {
        self.client.disconnect();
        while self.poll().is_some() {}
        let _ = self.transport.flush();
    }
}
