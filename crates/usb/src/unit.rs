//! A logical unit: the use of a disk by the host.

use std::sync::Arc;

use export::{Access, Caller, Catalogue, Event, ExportId, Fault, Grant, Op, Peer, Reason, Step};
use scsi::{Command, Nexus, Port, Response};

/// Returns the host at the other end of the cable, which cannot authenticate.
pub(crate) fn caller(peer: &Peer) -> Caller<'_> {
    Caller { peer, host: "", proven: None }
}

/// The place of a disk: its logical unit number.
#[derive(Debug)]
pub(crate) struct Slot {
    /// `None` if no disk has had the number.
    id: Option<ExportId>,
    port: Arc<Port>,
    /// `None` while the disk is not in the catalogue.
    pub(crate) unit: Option<Unit>,
}

impl Slot {
    pub(crate) fn new(
        id: Option<ExportId>,
        port: Arc<Port>,
        catalogue: &Catalogue,
        peer: &Peer,
    ) -> Self {
        let mut slot = Self { id, port, unit: None };
        slot.update(catalogue, peer);
        slot
    }

    /// Finds the disk if it was missing; else as [`Unit::update`].
    pub(crate) fn update(&mut self, catalogue: &Catalogue, peer: &Peer) -> Option<Step> {
        if let Some(unit) = &mut self.unit {
            let before = unit.generation;
            let detached = unit.update(catalogue, peer);
            let id = &unit.grant.export().id;
            if unit.generation != before && catalogue.grant(&caller(peer), id).is_err() {
                self.unit = None;
            }
            return detached;
        }
        let generation = catalogue.generation();
        let grant = catalogue.grant(&caller(peer), self.id.as_ref()?).ok()?;
        self.unit = Some(Unit::new(grant, self.port.clone(), generation));
        None
    }

    /// Decides what a command does. No other one may be in progress.
    pub(crate) fn command(&mut self, cdb: [u8; 16]) -> Command {
        match &mut self.unit {
            Some(unit) => unit.command(cdb),
            None => Command::Done(scsi::without_disk(&self.port, self.id.is_some(), &cdb)),
        }
    }

    /// Returns what the host sends and is sent for a command, in bytes, and the block's shift.
    pub(crate) fn lengths(&self, decided: &Command) -> (u64, u64, u8) {
        match (&self.unit, decided) {
            (Some(Unit { grant, .. }), _) => {
                let shift = grant.export().geometry.shift();
                (decided.data_in(grant), decided.data_out(grant), shift)
            }
            (None, Command::Done(response)) => (response.data.len() as u64, 0, 0),
            (None, _) => (0, 0, 0),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Unit {
    pub(crate) grant: Grant,
    pub(crate) nexus: Nexus,
    /// Generation of the catalogue at the last access check.
    generation: u64,
    /// Attached was reported and Detached was not.
    attached: bool,
    /// Bytes read and written by the host.
    pub(crate) read: u64,
    pub(crate) written: u64,
}

impl Unit {
    pub(crate) fn new(grant: Grant, port: Arc<Port>, generation: u64) -> Self {
        let nexus = Nexus::new(&grant, port);
        Self { grant, nexus, generation, attached: false, read: 0, written: 0 }
    }

    fn command(&mut self, cdb: [u8; 16]) -> Command {
        self.nexus.command(&self.grant, [0; 8], &cdb)
    }

    /// Keeps the sense data of a command that failed: the host asks for it. Without any, some hosts
    /// would take the command for a success. Drops that of an earlier command.
    pub(crate) fn keep_sense(&mut self, response: &Response) {
        let sense = || response.sense.unwrap_or(scsi::Sense::INTERNAL_TARGET_FAILURE);
        self.nexus.keep_sense((!response.is_good()).then(sense));
    }

    /// Repeats the access check if the catalogue has changed, and checks the capacity. No command
    /// may be in progress. Access is never raised while the disk is the same: the host has seen
    /// whether it is write protected.
    pub(crate) fn update(&mut self, catalogue: &Catalogue, peer: &Peer) -> Option<Step> {
        let generation = catalogue.generation();
        let mut detached = None;
        if std::mem::replace(&mut self.generation, generation) != generation {
            let id = &self.grant.export().id;
            match catalogue.grant(&caller(peer), id) {
                Ok(grant) if Arc::ptr_eq(grant.export(), self.grant.export()) => {
                    let before = self.grant.access();
                    let grant = grant.with_fence_of(&self.grant);
                    self.grant = if before == Access::ReadOnly { grant.read_only() } else { grant };
                }
                Ok(grant) => {
                    detached = self.detached(peer, Reason::Ended);
                    self.grant = grant;
                }
                Err(_) => detached = self.detached(peer, Reason::Ended),
            }
        }
        self.nexus.changed(&self.grant);
        detached
    }

    /// Returns the report that the host has attached or ejected the disk, if that is new.
    pub(crate) fn report_use(&mut self, peer: &Peer) -> Option<Step> {
        if self.nexus.is_ejected() {
            return self.detached(peer, Reason::Ejected);
        }
        if self.attached || self.grant.export().is_gone() {
            return None;
        }
        self.attached = true;
        let (export, peer) = (self.grant.export().clone(), peer.clone());
        let (host, no_room) = (String::new(), self.grant.has_no_room());
        Some(report(Event::Attached { export, peer, host, proven: None, no_room }))
    }

    /// Returns the report that the host no longer uses the disk, unless this was reported before.
    pub(crate) fn detached(&mut self, peer: &Peer, reason: Reason) -> Option<Step> {
        let (export, peer, host) = (self.grant.export().clone(), peer.clone(), String::new());
        let (read, written) = (std::mem::take(&mut self.read), std::mem::take(&mut self.written));
        let event = Event::Detached { export, peer, host, reason, read, written };
        std::mem::replace(&mut self.attached, false).then(|| report(event))
    }

    /// Returns the report of a failed disk request, if it concerns the user.
    pub(crate) fn fault(&self, op: Op, (offset, len): (u64, u64), fault: Fault) -> Option<Step> {
        let is_state = matches!(
            fault,
            Fault::Gone | Fault::Unsupported | Fault::Busy | Fault::Reserved | Fault::ReadOnly
        );
        let (export, op) = (self.grant.export().clone(), op.name());
        (!is_state).then(|| report(Event::Fault { export, op, offset, len, fault }))
    }
}

fn report(event: Event) -> Step {
    Step::Report(Box::new(event))
}
