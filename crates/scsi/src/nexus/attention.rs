//! Unit attention conditions (SAM-5 §5.14).

use std::collections::VecDeque;

use export::ReservationNotice;

use crate::wire::sense::{Sense, key};

/// What an initiator has to know before its next command is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attention {
    /// Power on, or a new nexus.
    PowerOn,
    /// A logical unit reset.
    Reset,
    /// Commands were aborted by another initiator.
    CommandsCleared,
    /// The reservation was preempted.
    ReservationsPreempted,
    /// A reservation was released.
    ReservationsReleased,
    /// The registration was preempted.
    RegistrationsPreempted,
    /// The capacity has changed.
    CapacityChanged,
    /// The list of LUNs has changed.
    LunsChanged,
}

impl Attention {
    /// Returns its sense data.
    #[must_use]
    pub fn sense(self) -> Sense {
        let (asc, ascq) = match self {
            Self::PowerOn => (0x29, 0x00),
            Self::Reset => (0x29, 0x03),
            Self::CommandsCleared => (0x2f, 0x00),
            Self::ReservationsPreempted => (0x2a, 0x03),
            Self::ReservationsReleased => (0x2a, 0x04),
            Self::RegistrationsPreempted => (0x2a, 0x05),
            Self::CapacityChanged => (0x2a, 0x09),
            Self::LunsChanged => (0x3f, 0x0e),
        };
        Sense::new(key::UNIT_ATTENTION, asc, ascq)
    }
}

impl From<ReservationNotice> for Attention {
    fn from(notice: ReservationNotice) -> Self {
        match notice {
            ReservationNotice::RegistrationPreempted => Self::RegistrationsPreempted,
            ReservationNotice::ReservationReleased => Self::ReservationsReleased,
            ReservationNotice::ReservationPreempted => Self::ReservationsPreempted,
        }
    }
}

/// The pending unit attention conditions of a nexus, each once.
#[derive(Debug, Default)]
pub(super) struct Attentions(VecDeque<Attention>);

impl Attentions {
    /// Adds a condition. A reset clears the earlier ones.
    pub(super) fn push(&mut self, attention: Attention) {
        if matches!(attention, Attention::PowerOn | Attention::Reset) {
            self.0.clear();
        }
        if !self.0.contains(&attention) {
            self.0.push_back(attention);
        }
    }

    /// Removes the oldest condition.
    pub(super) fn pop(&mut self) -> Option<Attention> {
        self.0.pop_front()
    }

    /// Removes a condition that the initiator has learnt otherwise.
    pub(super) fn clear(&mut self, attention: Attention) {
        self.0.retain(|pending| *pending != attention);
    }
}
