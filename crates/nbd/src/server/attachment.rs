//! The export that a client has chosen: its access, what was negotiated for it, and the checks of
//! requests against both.

use std::sync::Arc;

use export::{
    Access, Admitted, Denied, Event, Fault, Fence, Grant, Op, Peer, Pool, Reason, Refusal, Request,
};

use super::MAX_PAYLOAD;
use super::authorizer::Authorizer;
use super::command::{Command, Header};
use super::fault::error_value;
use super::offer;
use super::outbox::Outbox;
use super::reply::Mode;
use crate::wire::errno::{EINVAL, EOVERFLOW, ESHUTDOWN};

/// The chosen export.
#[derive(Debug)]
pub(super) struct Attachment {
    /// The client's access to it.
    grant: Grant,
    /// The transmission flags sent to the client.
    flags: u16,
    mode: Mode,
    /// Whether `base:allocation` is selected.
    status: bool,
    /// Name of the host for events; its TLS identity if it is not a configured host.
    host: String,
    /// Attached was reported and Detached was not.
    attached: bool,
    /// Generation of the catalogue at the last access check.
    generation: u64,
    /// Bytes read.
    read: u64,
    /// Bytes written.
    written: u64,
}

impl Attachment {
    /// Creates the attachment by `grant`, which was checked at that `generation` of the catalogue.
    /// `status` is set if `base:allocation` is selected.
    pub(super) fn new(
        grant: Grant,
        mode: Mode,
        status: bool,
        host: String,
        generation: u64,
    ) -> Self {
        let flags = offer::flags(&grant, mode);
        let (attached, read, written) = (true, 0, 0);
        Self { grant, flags, mode, status, host, attached, generation, read, written }
    }

    pub(super) fn mode(&self) -> Mode {
        self.mode
    }

    /// Returns the binary logarithm of the block size.
    pub(super) fn shift(&self) -> u8 {
        self.grant.export().geometry.shift()
    }

    pub(super) fn fence(&self) -> &Arc<Fence> {
        self.grant.fence()
    }

    /// Records that the client is done with the export.
    pub(super) fn leave(&self) {
        self.grant.leave();
    }

    /// Checks a request. Returns the command and the affected blocks in bytes.
    ///
    /// # Errors
    /// Returns the error value of the reply.
    pub(super) fn check(
        &self,
        header: &Header,
        stopping: bool,
    ) -> Result<(Command, (u64, u64)), u32> {
        let command = Command::parse(header, self.mode, self.flags, self.status)?;
        if stopping && command != Command::Disc {
            return Err(ESHUTDOWN);
        }
        let (offset, len) = header.range();
        let blocks = match command {
            Command::Disc => (0, 0),
            Command::Flush if (offset, len) != (0, 0) => return Err(EINVAL),
            _ => self.blocks(command.op(), offset, len)?,
        };
        if !command.is_offered(self.flags) {
            return Err(EINVAL);
        }
        self.shape(command, (offset, len), blocks).map(|blocks| (command, blocks))
    }

    /// Returns the affected blocks of a range in bytes, if the gate would admit the request.
    fn blocks(&self, op: Op, offset: u64, len: u64) -> Result<(u64, u64), u32> {
        let shift = self.shift();
        // A saturated sum is beyond the end of every disk.
        let past = offset.saturating_add(len);
        let (lba, rest) = (offset >> shift, past & self.mask());
        let end = (past >> shift) + u64::from(rest != 0);
        let count = if len == 0 { 0 } else { end - lba };
        let (first, bytes) =
            self.grant.permits(op, lba, count).map_err(|fault| error_value(fault, op))?;
        // The last block may be incomplete.
        if past > self.grant.export().bytes() {
            return Err(error_value(Fault::OutOfRange, op));
        }
        Ok((first, first.saturating_add(bytes)))
    }

    fn mask(&self) -> u64 {
        u64::from(self.grant.export().geometry.block()) - 1
    }

    /// Checks length and alignment for each command. Shrinks a trim to whole blocks.
    fn shape(
        &self,
        command: Command,
        (offset, len): (u64, u64),
        (first, end): (u64, u64),
    ) -> Result<(u64, u64), u32> {
        let long = len > MAX_PAYLOAD.into();
        let whole = (offset | len) & self.mask() == 0;
        match command {
            Command::Read { whole: true } if long || end - first > Pool::MAX_BUFFER as u64 => {
                Err(EOVERFLOW)
            }
            Command::Read { .. } if long => Err(EINVAL),
            Command::Write { .. } if long || !whole => Err(EINVAL),
            Command::Zero { .. } if !whole => Err(EINVAL),
            Command::Status { .. } if len == 0 => Err(EINVAL),
            Command::Trim { .. } => Ok(self.shrink(offset, len)),
            _ => Ok((first, end)),
        }
    }

    /// Returns the blocks that lie completely inside a range.
    fn shrink(&self, offset: u64, len: u64) -> (u64, u64) {
        let mask = self.mask();
        let first = offset.saturating_add(mask) & !mask;
        let end = offset.saturating_add(len) & !mask;
        (first, end.max(first))
    }

    /// Passes a request through the gate.
    pub(super) fn admit(&self, request: Request) -> Result<Admitted, Box<Denied>> {
        self.grant.admit(request)
    }

    pub(super) fn count_read(&mut self, len: usize) {
        self.read = self.read.saturating_add(len as u64);
    }

    pub(super) fn count_written(&mut self, len: u64) {
        self.written = self.written.saturating_add(len);
    }

    /// Returns the report of a failed disk request.
    pub(super) fn fault(&self, op: Op, (offset, len): (u64, u64), fault: Fault) -> Event {
        Event::Fault { export: self.grant.export().clone(), op: op.name(), offset, len, fault }
    }

    /// Reports that the client uses the export.
    pub(super) fn report_attached(&self, peer: &Peer, out: &mut Outbox) {
        let (export, host) = (self.grant.export().clone(), self.host.clone());
        let (peer, no_room) = (peer.clone(), self.grant.has_no_room());
        out.report(Event::Attached { export, peer, host, proven: None, no_room });
    }

    /// Reports that the client no longer uses the export, unless this was reported before.
    pub(super) fn report_detached(&mut self, peer: &Peer, reason: Reason, out: &mut Outbox) {
        if std::mem::replace(&mut self.attached, false) {
            let (export, host) = (self.grant.export().clone(), self.host.clone());
            let (peer, read, written) = (peer.clone(), self.read, self.written);
            out.report(Event::Detached { export, peer, host, reason, read, written });
        }
    }

    /// Repeats the access check if the catalogue has changed. Returns the reason to close the
    /// connection, if there is one.
    pub(super) fn recheck(
        &mut self,
        authorizer: &mut Authorizer,
        out: &mut Outbox,
    ) -> Option<Reason> {
        let generation = authorizer.generation();
        if std::mem::replace(&mut self.generation, generation) == generation {
            return None;
        }
        let export = self.grant.export().clone();
        match authorizer.grant_again(&export.id) {
            Ok(grant) if Arc::ptr_eq(grant.export(), &export) => {
                self.update_grant(grant);
                None
            }
            // Another disk, or the same with other parameters: the client has to reconnect.
            Ok(_) => Some(Reason::Ended),
            // Requests fail with ESHUTDOWN from now on.
            Err(Refusal::Unknown) => {
                self.report_detached(authorizer.peer(), Reason::Ended, out);
                None
            }
            Err(refusal) => {
                authorizer.report_withdrawn(&export.short, refusal, out);
                Some(Reason::Refused)
            }
        }
    }

    /// Applies changed access. Access is never raised above what was advertised: the client has to
    /// reconnect for that.
    fn update_grant(&mut self, grant: Grant) {
        let before = self.grant.access();
        let grant = grant.with_fence_of(&self.grant);
        self.grant = if before == Access::ReadOnly { grant.read_only() } else { grant };
    }
}
