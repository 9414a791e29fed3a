//! Task management: tasks are aborted, and the function is answered when they are off the disk
//! (RFC 7143 §4.2.3.3, §11.5).

use std::sync::Weak;

use export::{Access, ReservationCommand};
use scsi::Attention;

use super::{Cx, Disk};
use crate::target::link::Data;
use crate::target::registry::Registration;
use crate::target::slots::Work;
use crate::wire::NO_TAG;
use crate::wire::bhs::{Bhs, NopIn, TaskRequest, TaskResponse, of_target};
use crate::wire::opcode::{self, function, function_response};

/// Maximum number of functions that wait for tasks.
const MAX_PENDING: usize = 16;

/// A function that waits until its tasks are off the disk.
#[derive(Debug)]
pub(super) struct Pending {
    /// Its tag; `None` for a reset by another session.
    itt: Option<u32>,
    /// The slots of tasks that have not ended.
    waiting: Vec<u8>,
    /// The other sessions whose tasks a reset aborts, too; `None` for another function.
    others: Option<Vec<Weak<Registration>>>,
    /// Whether the session ends then: a cold reset.
    ends: bool,
}

impl Pending {
    fn of_tasks(itt: u32, waiting: Vec<u8>) -> Self {
        Self { itt: Some(itt), waiting, others: None, ends: false }
    }

    /// Returns whether the session ends with it.
    pub(super) fn ends_session(&self) -> bool {
        self.ends
    }

    /// Notes that a slot was freed.
    pub(super) fn freed(&mut self, at: u8) {
        self.waiting.retain(|other| *other != at);
    }

    /// Returns whether all tasks are off the disk. `has_orphans`: writes of sessions that have ended
    /// are not.
    fn is_done(&mut self, has_orphans: bool) -> bool {
        let is_resetting =
            |it: &Weak<Registration>| it.upgrade().is_some_and(|it| it.is_resetting());
        let others_done = self.others.as_mut().is_none_or(|others| {
            others.retain(is_resetting);
            others.is_empty() && !has_orphans
        });
        self.waiting.is_empty() && others_done
    }
}

impl Disk {
    /// Executes a task management function.
    pub(in crate::target) fn manage(&mut self, header: &Bhs, cx: &mut Cx<'_>) {
        let request = TaskRequest::of(header);
        let itt = request.itt.get();
        let is_disk = request.lun.get() == 0;
        match request.flags & 0x7f {
            _ if self.pending.len() >= MAX_PENDING => {
                self.answer(itt, function_response::REJECTED, cx)
            }
            function::ABORT_TASK => match self.slots.find(request.ref_tag.get()) {
                Some(at) => self.abort(Pending::of_tasks(itt, vec![at]), cx),
                None => self.answer(itt, function_response::NO_TASK, cx),
            },
            function::ABORT_TASK_SET | function::LOGICAL_UNIT_RESET | function::CLEAR_TASK_SET
                if !is_disk =>
            {
                self.answer(itt, function_response::NO_LUN, cx);
            }
            function::ABORT_TASK_SET => {
                let all = self.all_tasks();
                self.abort(Pending::of_tasks(itt, all), cx);
            }
            function::LOGICAL_UNIT_RESET | function::TARGET_WARM_RESET => {
                self.reset_unit(itt, false, cx);
            }
            // It ends all sessions: those of others are not ended.
            function::TARGET_COLD_RESET if self.registry.has_others(&self.registration) => {
                self.answer(itt, function_response::NOT_AUTHORIZED, cx);
            }
            function::TARGET_COLD_RESET => self.reset_unit(itt, true, cx),
            _ => self.answer(itt, function_response::NOT_SUPPORTED, cx),
        }
    }

    fn all_tasks(&self) -> Vec<u8> {
        self.slots.busy().map(|(at, _)| at).collect()
    }

    /// Resets the logical unit: for all sessions, and ends RESERVE (6) of any. A host that may only
    /// read resets its own session: it must not abort the writes of others. `ends`: the session ends
    /// then.
    fn reset_unit(&mut self, itt: u32, ends: bool, cx: &mut Cx<'_>) {
        let ended = self.attachment.grant.reserve(ReservationCommand::ResetUnit, None);
        let others = match self.attachment.grant.access() {
            Access::Writable => self.registry.reset_others(&self.registration),
            Access::ReadOnly => Vec::new(),
        };
        if ended.is_ok() || !others.is_empty() {
            cx.out.notify();
        }
        self.nexus.attend(Attention::Reset);
        let waiting = self.all_tasks();
        self.abort(Pending { itt: Some(itt), waiting, others: Some(others), ends }, cx);
    }

    /// Aborts the tasks, if another session has reset the logical unit.
    pub(super) fn take_reset(&mut self, cx: &mut Cx<'_>) {
        if self.registration.begin_reset() {
            self.nexus.attend(Attention::Reset);
            let waiting = self.all_tasks();
            self.abort(Pending { itt: None, waiting, others: None, ends: false }, cx);
        }
        self.answer_pending(cx);
    }

    fn abort(&mut self, function: Pending, cx: &mut Cx<'_>) {
        let tasks = function.waiting.clone();
        self.pending.push(function);
        for at in tasks {
            self.abort_task(at, cx);
        }
        self.answer_pending(cx);
    }

    /// Aborts all tasks, for the end of the session.
    pub(in crate::target) fn abort_all(&mut self, cx: &mut Cx<'_>) {
        for at in self.all_tasks() {
            self.abort_task(at, cx);
        }
    }

    /// Returns whether other sessions may wait for the end of this one: for exclusive access of a
    /// task, or for a reset.
    pub(in crate::target) fn is_awaited(&self) -> bool {
        let is_exclusive = |work: &Work| matches!(work, Work::Job(job, _) if job.is_exclusive());
        self.registration.is_resetting()
            || self.slots.busy().any(|(_, slot)| is_exclusive(&slot.work))
    }

    /// Aborts a task. Its data that is still to come is skipped, and no status is sent.
    fn abort_task(&mut self, at: u8, cx: &mut Cx<'_>) {
        let blocked = self.unblock(at);
        let Some(slot) = self.slots.get(at) else { return };
        slot.in_flight = slot.in_flight.saturating_sub(blocked);
        slot.aborted = true;
        if slot.data_out.expects() {
            let itt = slot.itt;
            self.forget_data(itt);
        }
        self.advance(at, cx);
    }

    /// Frees the slot of an aborted task that is off the disk.
    pub(super) fn end_if_aborted(&mut self, at: u8, cx: &mut Cx<'_>) {
        if self.slots.get(at).is_none_or(|slot| slot.in_flight != 0) {
            return;
        }
        let slot = self.release(at);
        if matches!(slot.work, Work::Job(job, _) if job.is_exclusive()) {
            cx.out.notify();
        }
        self.answer_pending(cx);
    }

    /// Answers the functions whose tasks have ended.
    fn answer_pending(&mut self, cx: &mut Cx<'_>) {
        if self.pending.is_empty() {
            return;
        }
        let has_orphans = self.attachment.grant.export().has_orphans();
        let is_done = |pending: &mut Pending| pending.is_done(has_orphans);
        let done: Vec<Pending> = self.pending.extract_if(.., is_done).collect();
        for Pending { itt, ends, .. } in done {
            self.is_over |= ends;
            match itt {
                Some(itt) => self.answer(itt, function_response::COMPLETE, cx),
                None => {
                    self.registration.end_reset();
                    cx.out.notify();
                    self.announce_window(cx);
                }
            }
        }
    }

    /// Announces the slots that are free without an answer: by a NOP-In to which no answer is due.
    fn announce_window(&mut self, cx: &mut Cx<'_>) {
        let mut nop = NopIn::of(&of_target(opcode::NOP_IN));
        nop.ttt = NO_TAG.into();
        cx.link.window = self.slots.window();
        nop.numbers = cx.link.numbers();
        cx.link.send(&nop, Data::NONE, cx.out);
    }

    fn answer(&mut self, itt: u32, code: u8, cx: &mut Cx<'_>) {
        let mut response = TaskResponse::of(&of_target(opcode::TASK_RESPONSE));
        cx.link.window = self.slots.window();
        (response.response, response.itt) = (code, itt.into());
        response.numbers = cx.link.next_numbers();
        cx.link.send(&response, Data::NONE, cx.out);
    }
}
