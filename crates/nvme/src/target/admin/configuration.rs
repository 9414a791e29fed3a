//! The properties of a controller: CC and CSTS, with reset and shutdown (NVMe Base 2.0 §3.1.3, §3.5
//! to §3.7).

use export::{Op, Outcome};

use crate::command::PropertySize;
use crate::status::Status;
use crate::target::QUEUE_ENTRIES;
use crate::target::controller::ControllerType;
use crate::target::queue::Queue;
use crate::target::work::Work;
use crate::wire::fabrics::{Cap, Cc, Csts, property};

/// VS: NVMe 2.0.
pub(super) const VERSION: u32 = 0x0002_0000;

/// State of the configuration of a controller.
#[derive(Debug, Default)]
pub(super) struct Configuration {
    cc: Cc,
    csts: Csts,
    /// The shutdown in progress.
    shutdown: Option<Shutdown>,
}

/// A shutdown of the controller in progress.
#[derive(Debug, Clone, Copy)]
struct Shutdown {
    /// Slot of the Property Set that requested it.
    tag: u16,
    /// Whether the flush was submitted. Before that, writes are in flight.
    flushing: bool,
}

/// What a new value of CC requests.
#[derive(Debug, Clone, Copy)]
pub(super) struct Requested {
    /// A Controller Level Reset.
    pub(super) reset: bool,
    /// A shutdown.
    pub(super) shutdown: bool,
}

impl Configuration {
    /// Returns the value of a property.
    pub(super) fn property(&self, size: PropertySize, offset: u32) -> Result<u64, Status> {
        let value = match (offset, size) {
            (property::CAP, PropertySize::Eight) => capabilities().0,
            (property::VS, PropertySize::Four) => VERSION.into(),
            (property::CC, PropertySize::Four) => self.cc.0.into(),
            (property::CSTS, PropertySize::Four) => self.csts.0.into(),
            _ => return Err(Status::INVALID_FIELD.dnr()),
        };
        Ok(value)
    }

    /// Sets CC (NVMe Base 2.0 §3.1.3.5). Returns what it requests.
    pub(super) fn set_cc(&mut self, cc: Cc, kind: ControllerType) -> Requested {
        let before = std::mem::replace(&mut self.cc, cc);
        if (before.en(), cc.en()) == (0, 1) {
            self.csts = Csts::default().with_cfs((!is_valid_cc(cc, kind)).into());
        }
        let reset = (before.en(), cc.en()) == (1, 0);
        Requested { reset, shutdown: cc.shn() != 0 && before.shn() == 0 }
    }

    /// Sets CSTS.RDY to CC.EN once no earlier write is in flight. Clearing it ends a reset; setting
    /// it enables the controller, unless a shutdown is in progress or complete.
    pub(super) fn update_ready(&mut self, queue: &Queue) {
        let Ok(controller) = queue.controller() else { return };
        let (enable, ready) = (self.cc.en(), self.csts.rdy());
        let orphans = queue.grant().is_some_and(|grant| grant.export().has_orphans());
        let shut_down = self.cc.shn() != 0 || self.csts.shst() != 0;
        let may = self.csts.cfs() == 0 && !orphans && (enable == 0 || !shut_down);
        if enable != ready && may {
            self.csts = self.csts.with_rdy(enable);
            controller.set_ready(enable == 1);
        }
    }

    /// Performs a Controller Level Reset: deletes the I/O queues, keeps the Admin queue (NVMe Base
    /// 2.0 §3.7.2).
    pub(super) fn reset(&mut self, queue: &mut Queue) {
        self.csts = Csts::default().with_rdy(self.csts.rdy());
        if let Ok(controller) = queue.controller() {
            controller.reset();
        }
        let shutdown = self.shutdown.take();
        cancel(queue, shutdown);
        queue.out().notify();
    }

    /// Starts a shutdown by the command `tag`: fences off the I/O queues. It completes after a
    /// flush of the disk (NVMe Base 2.0 §3.6).
    pub(super) fn shut_down(&mut self, queue: &mut Queue, tag: u16) {
        self.csts = self.csts.with_shst(Csts::SHST_OCCURRING);
        let before = self.shutdown.replace(Shutdown { tag, flushing: false });
        cancel(queue, before);
        if let Ok(controller) = queue.controller() {
            controller.close_fences();
        }
        queue.set_work(tag, Work::Shutdown);
        queue.out().notify();
        self.continue_shutdown(queue);
    }

    /// Submits the flush of a shutdown once no earlier write is in flight.
    pub(super) fn continue_shutdown(&mut self, queue: &mut Queue) {
        if queue.grant().is_some_and(|grant| grant.export().has_orphans()) {
            return;
        }
        let shutdown = self.shutdown.as_mut().filter(|shutdown| !shutdown.flushing);
        let Some(shutdown) = shutdown else { return };
        shutdown.flushing = true;
        let tag = shutdown.tag;
        // A disk that is gone, or whose flush failed before, does not block the shutdown.
        if !queue.submit_own_flush(tag) {
            self.end_shutdown(queue, tag);
        }
    }

    /// Completes a shutdown after its flush. A failed flush is reported, but not to the host.
    pub(super) fn flushed(&mut self, queue: &mut Queue, tag: u16, outcome: &Outcome) {
        if let Err(fault) = outcome.result {
            queue.report_io_fault(Op::Flush, 0, 0, fault);
        }
        self.end_shutdown(queue, tag);
    }

    fn end_shutdown(&mut self, queue: &mut Queue, tag: u16) {
        if self.shutdown.take_if(|shutdown| shutdown.tag == tag).is_some() {
            self.csts = self.csts.with_shst(Csts::SHST_COMPLETE);
            if let Some(grant) = queue.grant() {
                grant.leave();
            }
        }
        queue.finish(tag, Status::SUCCESS);
    }
}

/// Completes the command of a shutdown that a reset or another shutdown replaced. If its flush was
/// submitted, the command completes with the flush.
fn cancel(queue: &mut Queue, shutdown: Option<Shutdown>) {
    if let Some(Shutdown { tag, flushing: false }) = shutdown {
        queue.finish(tag, Status::SUCCESS);
    }
}

/// Returns CAP: queues of [`QUEUE_ENTRIES`], NVM command set, ready within 7.5 s.
fn capabilities() -> Cap {
    let cap = Cap::default().with_mqes(u64::from(QUEUE_ENTRIES - 1)).with_cqr(1);
    cap.with_to(15).with_css(Cap::CSS_NVM)
}

/// Returns whether the controller can become ready with these values of CC.
fn is_valid_cc(cc: Cc, kind: ControllerType) -> bool {
    let sizes = kind == ControllerType::Discovery || (cc.iosqes() == 6 && cc.iocqes() == 4);
    cc.css() == 0 && cc.mps() == 0 && cc.ams() == 0 && sizes
}
