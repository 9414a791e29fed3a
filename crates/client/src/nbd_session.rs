//! Drives `nbd::client::Client` as a [`ClientSession`], and negotiates TLS.

use std::io;
use std::time::Instant;

use export::DirectRecv;
use nbd::client::{Client, End, Options, Start, Step};

use crate::buffered::read_before;
use crate::session::{ClientSession, Output};
use crate::transport::{ConnectError, Transport};

impl ClientSession for Client {
    type Step = Step;

    fn receive(&mut self, bytes: &[u8]) -> usize {
        self.receive(bytes)
    }

    fn poll(&mut self) -> Option<Output<Step>> {
        self.poll().map(|step| match step {
            Step::Send(segment) => Output::Send(segment),
            step => Output::Step(step),
        })
    }

    fn direct_recv(&mut self) -> Option<DirectRecv> {
        self.direct_recv()
    }

    fn direct_received(&mut self, direct_recv: DirectRecv, len: usize) {
        self.direct_received(direct_recv, len);
    }

    /// Sends NBD_CMD_DISC.
    fn disconnect(&mut self) -> bool {
        self.disconnect();
        true
    }
}

/// Negotiates TLS on a new connection to an NBD server. The caller then performs the TLS handshake
/// and passes the connection to a session that starts with [`Start::InTls`]. `name` is the name of the
/// server in errors.
///
/// # Errors
/// Fails if the server does not answer by `deadline`, does not support TLS, or violates the
/// protocol.
pub fn start_tls(
    transport: &mut dyn Transport,
    name: &str,
    deadline: Instant,
) -> Result<(), ConnectError> {
    let mut client = Client::new(Options { start: Start::StartTls, ..Options::new("") });
    let temporary_error = |error: io::Error| ConnectError::Temporary(format!("{name}: {error}"));
    let (mut bytes, mut kept) = ([0; Client::MAX_UNCONSUMED], 0);
    loop {
        while let Some(step) = client.poll() {
            let reason = match step {
                Step::Send(segment) => {
                    let whole = segment.parts().concat();
                    transport.write_all(&whole).map_err(temporary_error)?;
                    continue;
                }
                Step::StartTls => return Ok(()),
                Step::Refused(refusal) => refusal.to_string(),
                Step::Close(End::Violation(violation)) => {
                    return Err(ConnectError::Violation(format!("{name}: {violation}")));
                }
                _ => continue,
            };
            return Err(ConnectError::Permanent(format!("{name}: {reason}")));
        }
        let free = bytes.get_mut(kept..).unwrap_or_default();
        kept += read_before(transport, free, deadline).map_err(temporary_error)?;
        let taken = client.receive(bytes.get(..kept).unwrap_or_default());
        bytes.copy_within(taken..kept, 0);
        kept -= taken;
    }
}
