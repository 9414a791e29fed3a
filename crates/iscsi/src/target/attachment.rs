//! The disk of a session: its access, and the reports of its use.

use std::sync::Arc;

use export::{Access, Event, Fault, Fence, Grant, Op, Reason, Refusal};

use super::authorizer::{Authorizer, LoginRefusal};
use super::outbox::Outbox;

/// The use of an export by one session.
#[derive(Debug)]
pub(super) struct Attachment {
    pub(super) grant: Grant,
    /// Attached was reported and Detached was not.
    attached: bool,
    /// Generation of the catalogue at the last access check.
    generation: u64,
    /// Bytes read.
    pub(super) read: u64,
    /// Bytes written.
    pub(super) written: u64,
}

impl Attachment {
    /// Creates the attachment by `grant`, and reports it.
    pub(super) fn new(grant: Grant, authorizer: &Authorizer, out: &mut Outbox) -> Self {
        out.report(Event::Attached {
            export: grant.export().clone(),
            peer: authorizer.peer().clone(),
            host: authorizer.initiator.clone(),
            proven: authorizer.proven,
            no_room: grant.has_no_room(),
        });
        let (generation, read, written) = (authorizer.generation(), 0, 0);
        Self { grant, attached: true, generation, read, written }
    }

    pub(super) fn fence(&self) -> &Arc<Fence> {
        self.grant.fence()
    }

    /// Records that the initiator is done with the disk.
    pub(super) fn leave(&self) {
        self.grant.leave();
    }

    /// Reports that the initiator no longer uses the export, unless this was reported before.
    pub(super) fn report_detached(
        &mut self,
        authorizer: &Authorizer,
        reason: Reason,
        out: &mut Outbox,
    ) {
        if std::mem::replace(&mut self.attached, false) {
            out.report(Event::Detached {
                export: self.grant.export().clone(),
                peer: authorizer.peer().clone(),
                host: authorizer.initiator.clone(),
                reason,
                read: self.read,
                written: self.written,
            });
        }
    }

    /// Reports a failed disk request.
    pub(super) fn report_fault(
        &self,
        op: Op,
        (offset, len): (u64, u64),
        fault: Fault,
        out: &mut Outbox,
    ) {
        if !matches!(fault, Fault::Gone | Fault::Unsupported | Fault::Busy | Fault::Reserved) {
            let (export, op) = (self.grant.export().clone(), op.name());
            out.report(Event::Fault { export, op, offset, len, fault });
        }
    }

    /// Repeats the access check if the catalogue has changed. Returns the reason to end the session,
    /// if there is one.
    pub(super) fn recheck(&mut self, authorizer: &Authorizer, out: &mut Outbox) -> Option<Reason> {
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
            // Another disk, or the same with other parameters: the initiator has to log in again.
            Ok(_) => Some(Reason::Ended),
            // Commands fail from now on.
            Err(Refusal::Unknown) => {
                self.report_detached(authorizer, Reason::Ended, out);
                None
            }
            Err(refusal) => {
                let refusal = LoginRefusal::from(refusal);
                authorizer.report_refused(&export.short, refusal.reason, out);
                Some(Reason::Refused)
            }
        }
    }

    /// Applies changed access. Access is never raised above what the initiator has seen: it has to
    /// log in again for that.
    fn update_grant(&mut self, grant: Grant) {
        let before = self.grant.access();
        let grant = grant.with_fence_of(&self.grant);
        self.grant = if before == Access::ReadOnly { grant.read_only() } else { grant };
    }
}
