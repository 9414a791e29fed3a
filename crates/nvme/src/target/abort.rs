//! Commands that end early: by an Abort on the Admin queue (NVMe Base 2.0 §5.1), or because the
//! other half of a fused pair failed.

use std::sync::atomic::Ordering;

use export::Step;

use super::controller::Abort;
use super::io::Work;
use super::queue::Queue;
use super::slots::{Receiving, SlotState};
use crate::status::Status;
use crate::wire::completion::Cqe;

impl Queue {
    /// Aborts the commands of this queue that pending Aborts on the Admin queue name (NVMe Base 2.0
    /// §5.1).
    pub(super) fn process_aborts(&mut self) {
        let Some(binding) = &self.binding else { return };
        if !binding.controller.has_aborts.load(Ordering::Acquire) {
            return;
        }
        let (controller, qid) = (binding.controller.clone(), binding.qid);
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
            self.steps.push_back(Step::Notify);
        }
    }

    /// Aborts a command that has not been submitted to the disk. Returns whether it was aborted.
    pub(super) fn abort(&mut self, cid: u16) -> bool {
        let Some(tag) = self.slots.find(cid) else { return false };
        let Some(slot) = self.slots.get(tag) else { return false };
        let busy = matches!(slot.state, SlotState::Submitted)
            || matches!(slot.work, Work::FusedPair(_) | Work::FusedHalf(_))
            || slot.work.is_abort()
            || slot.work.is_shutdown();
        if !busy {
            self.complete_early(tag, Status::ABORT_REQUESTED);
        }
        !busy
    }

    /// Completes a command that has not been submitted to the disk with `status`. If an R2T is
    /// outstanding, the slot is kept until the host has sent the data, which is discarded.
    pub(super) fn complete_early(&mut self, tag: u16, status: Status) {
        let coming = self.incoming == Some(tag);
        let left = if coming { self.deframer.payload_left() } else { 0 };
        let Some(slot) = self.slots.get(tag) else { return };
        match slot.state {
            SlotState::Submitted => return,
            SlotState::Receiving(Receiving { got, want, solicited: true, .. })
                if got + left < want =>
            {
                let cid = slot.cid;
                slot.state = SlotState::Discarding { got: got + left, want };
                slot.work = Work::None;
                self.slots.release_cid(tag);
                self.respond(Cqe::new(cid, status));
            }
            _ => self.finish(tag, status),
        }
        self.awaiting_buffer.retain(|&other| other != tag);
        self.awaiting_second_phase.retain(|&other| other != tag);
        self.awaiting_exclusive.retain(|&other| other != tag);
        if coming {
            self.incoming = None;
        }
    }
}
