//! Commands that are ended before their time: by an Abort on the Admin queue (NVMe Base 2.0 §5.1), or because the other
//! half of a fused pair failed.

use std::sync::atomic::Ordering;

use export::Step;

use super::controller::Abort;
use super::io::Work;
use super::queue::Queue;
use super::slots::{Filling, Stage};
use crate::status::Status;
use crate::wire::completion::Cqe;

impl Queue {
    /// Commands of this queue that an Abort on the Admin queue names (NVMe Base 2.0 §5.1).
    pub(super) fn look_for_aborts(&mut self) {
        let Some(link) = &self.link else { return };
        if !link.controller.has_aborts.load(Ordering::Acquire) {
            return;
        }
        let (controller, qid) = (link.controller.clone(), link.qid);
        let named = |abort: &Abort| abort.sqid == qid && abort.aborted.is_none();
        let cids: Vec<u16> = controller
            .shared()
            .aborts
            .iter()
            .filter(|abort| named(abort))
            .map(|abort| abort.cid)
            .collect();
        for cid in cids {
            let aborted = self.abort(cid);
            let mut shared = controller.shared();
            if let Some(abort) =
                shared.aborts.iter_mut().find(|abort| named(abort) && abort.cid == cid)
            {
                abort.aborted = Some(aborted);
            }
            self.out.push_back(Step::Notify);
        }
    }

    /// Aborts a command that is not on the disk yet. Tells whether it did.
    pub(super) fn abort(&mut self, cid: u16) -> bool {
        let Some(at) = self.slots.find(cid) else { return false };
        let Some(slot) = self.slots.get(at) else { return false };
        let busy = matches!(slot.stage, Stage::OnDisk)
            || matches!(slot.work, Work::Pair(_) | Work::Half(_))
            || slot.work.is_abort()
            || slot.work.is_shutdown();
        if !busy {
            self.cut_off(at, Status::ABORT_REQUESTED);
        }
        !busy
    }

    /// Ends a command that is not on the disk, wherever it is. If the host was asked for data that is still to come, the
    /// slot is kept until it has.
    pub(super) fn cut_off(&mut self, at: u16, status: Status) {
        let coming = self.incoming == Some(at);
        let left = if coming { self.deframer.payload_left() } else { 0 };
        let Some(slot) = self.slots.get(at) else { return };
        match slot.stage {
            Stage::OnDisk => return,
            Stage::Filling(Filling { got, want, solicited: true, .. }) if got + left < want => {
                let cid = slot.cid;
                slot.stage = Stage::Discarding { got: got + left, want };
                slot.work = Work::None;
                self.slots.forget_cid(at);
                self.respond(Cqe::new(cid, status));
            }
            _ => self.answer(at, status),
        }
        self.starved.retain(|&other| other != at);
        self.late.retain(|&other| other != at);
        self.contending.retain(|&other| other != at);
        if coming {
            self.incoming = None;
        }
    }
}
