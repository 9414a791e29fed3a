//! How a command ended: its status and sense data (SAM-5 §5.3, SPC-4 §4.5).

use scsi::wire::sense::key;

use super::Done;

/// SCSI statuses (SAM-5 §5.3.1).
const GOOD: u8 = 0x00;
const CHECK_CONDITION: u8 = 0x02;
const BUSY: u8 = 0x08;
const TASK_SET_FULL: u8 = 0x28;
const TASK_ABORTED: u8 = 0x40;

/// The status of a command that the target failed to execute, which is none of SCSI.
pub(super) const NOT_EXECUTED: u8 = 0xff;

/// Sense key and additional sense code of a command.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sense {
    /// Sense key; zero without sense data.
    pub key: u8,
    /// Additional sense code and its qualifier.
    pub code: (u8, u8),
    /// Whether the error is one of an earlier command; this one was not carried out (SPC-4 §4.5.7).
    pub deferred: bool,
}

/// What is to be done after the end of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// It was carried out.
    Good,
    /// It was not carried out: the target or the disk is busy, or not ready yet. It may be sent
    /// again later.
    Busy,
    /// It was aborted, or the target failed to carry it out. It may be sent again a few times.
    Aborted,
    /// It was not carried out: the logical unit was reset and may have lost what was not flushed,
    /// other commands may have been aborted without a status, or it may be another disk or none.
    Changed,
    /// It failed.
    Failed,
}

impl Sense {
    /// Parses sense data in fixed or descriptor format. What is missing is zero.
    pub(super) fn parse(bytes: &[u8]) -> Self {
        let at = |index: usize| bytes.get(index).copied().unwrap_or(0);
        match at(0) & 0x7f {
            kind @ (0x70 | 0x71) => {
                Self { key: at(2) & 15, code: (at(12), at(13)), deferred: kind == 0x71 }
            }
            kind @ (0x72 | 0x73) => {
                Self { key: at(1) & 15, code: (at(2), at(3)), deferred: kind == 0x73 }
            }
            _ => Self::default(),
        }
    }

    fn disposition(self) -> Disposition {
        match (self.key, self.code) {
            // An earlier command has failed, and which one is not known.
            _ if self.deferred => Disposition::Failed,
            (key::RECOVERED_ERROR, _) => Disposition::Good,
            // Becoming ready, an operation in progress, a transition of the target port group, or
            // a resource that is missing for now: those for which Linux waits, too.
            (key::NOT_READY, (0x04, 0x01 | 0x04..=0x0a | 0x14 | 0x1a | 0x1b | 0x1d | 0x24)) => {
                Disposition::Busy
            }
            // Without a medium: the disk was removed, or its export was withdrawn.
            (key::NOT_READY, (0x3a, _)) => Disposition::Changed,
            (key::ABORTED_COMMAND, _) => Disposition::Aborted,
            // Mode or log parameters, asymmetric access, the list of LUNs, warnings, power
            // conditions, the threshold of thin provisioning: the disk and its data are the same.
            (
                key::UNIT_ATTENTION,
                (0x2a, 0x01 | 0x02 | 0x06 | 0x07) | (0x3f, 0x0e) | (0x0b | 0x5e, _) | (0x38, 0x07),
            ) => Disposition::Busy,
            (key::UNIT_ATTENTION, _) => Disposition::Changed,
            _ => Disposition::Failed,
        }
    }
}

impl Done {
    /// Returns what the status says. Commands that may be sent again are those that Linux retries;
    /// an initiator bounds their number and time.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self.status {
            GOOD => Disposition::Good,
            BUSY | TASK_SET_FULL => Disposition::Busy,
            TASK_ABORTED | NOT_EXECUTED => Disposition::Aborted,
            CHECK_CONDITION => self.sense.disposition(),
            _ => Disposition::Failed,
        }
    }

    /// Returns whether the error is one of an earlier command, perhaps of an earlier session. This
    /// command was not carried out.
    #[must_use]
    pub fn is_deferred(&self) -> bool {
        self.status == CHECK_CONDITION && self.sense.deferred
    }

    /// Returns whether the target has accepted no further command because it has as many as it can
    /// queue.
    #[must_use]
    pub fn is_task_set_full(&self) -> bool {
        self.status == TASK_SET_FULL
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn sense_of_both_formats_says_whether_it_is_deferred() {
        for (kind, deferred) in [(0x70, false), (0x71, true), (0xf0, false), (0xf1, true)] {
            let fixed = [kind, 0, 3, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x11, 4, 0, 0, 0, 0];
            assert_eq!(Sense::parse(&fixed), Sense { key: 3, code: (0x11, 4), deferred });
        }
        for (kind, deferred) in [(0x72, false), (0x73, true)] {
            let descriptors = [kind, 1, 0x17, 0, 0, 0, 0, 0];
            assert_eq!(Sense::parse(&descriptors), Sense { key: 1, code: (0x17, 0), deferred });
        }
        assert_eq!(Sense::parse(&[]), Sense::default());
        assert_eq!(Sense::parse(&[0x71]), Sense { deferred: true, ..Sense::default() });
    }

    #[test]
    fn only_transient_errors_are_retried() {
        let of = |status, key, code| {
            let sense = Sense { key, code, deferred: false };
            let done = Done { tag: 0, status, sense, len: 0, buffer: None };
            done.disposition()
        };
        for (expected, (key, code)) in [
            (Disposition::Good, (1, (0x17, 0))),
            (Disposition::Busy, (2, (4, 1))),
            (Disposition::Busy, (2, (4, 0x0a))),
            // Needs START STOP UNIT; medium not present.
            (Disposition::Failed, (2, (4, 2))),
            (Disposition::Changed, (2, (0x3a, 0))),
            (Disposition::Failed, (3, (0x11, 0))),
            (Disposition::Failed, (4, (0x44, 0))),
            (Disposition::Failed, (5, (0x20, 0))),
            (Disposition::Aborted, (0xb, (0x47, 3))),
            (Disposition::Busy, (6, (0x2a, 1))),
            (Disposition::Busy, (6, (0x38, 7))),
            (Disposition::Busy, (6, (0x3f, 0x0e))),
            (Disposition::Changed, (6, (0x3f, 3))),
            (Disposition::Changed, (6, (0x29, 0))),
            (Disposition::Changed, (6, (0x2a, 9))),
            // Registrations preempted: commands may have been aborted.
            (Disposition::Changed, (6, (0x2a, 5))),
            (Disposition::Failed, (7, (0x27, 0))),
            // No sense data.
            (Disposition::Failed, (0, (0, 0))),
        ] {
            assert_eq!(of(CHECK_CONDITION, key, code), expected, "{key} {code:?}");
        }
        for (status, expected) in [
            (GOOD, Disposition::Good),
            (BUSY, Disposition::Busy),
            (TASK_SET_FULL, Disposition::Busy),
            (TASK_ABORTED, Disposition::Aborted),
            (NOT_EXECUTED, Disposition::Aborted),
            // RESERVATION CONFLICT, ACA ACTIVE.
            (0x18, Disposition::Failed),
            (0x30, Disposition::Failed),
        ] {
            assert_eq!(of(status, 0, (0, 0)), expected, "{status:02x}");
        }
    }

    #[test]
    fn deferred_error_is_not_retried() {
        let sense = Sense { key: key::ABORTED_COMMAND, code: (0, 0), deferred: true };
        assert_eq!(sense.disposition(), Disposition::Failed);
    }
}
