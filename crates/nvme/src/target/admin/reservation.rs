//! Notifications of reservations: their log page and mask (NVMe Base 2.0 §5.16.1.24, §8.19.13).

use std::collections::VecDeque;

use export::{Grant, ReservationNotice};
use zerocopy::FromZeros;

use crate::target::NSID;
use crate::wire::feature::RESERVATION_MASK;
use crate::wire::log::ReservationNotification;

/// The notifications that the host has not read yet.
#[derive(Debug, Default)]
pub(super) struct Notifications {
    /// Number and type of each, oldest first.
    unread: VecDeque<(u64, u8)>,
    /// Number of the last one.
    count: u64,
    mask: u32,
}

/// The most unread notifications. Later ones are lost, and counted.
const MAX_UNREAD: usize = 64;

impl Notifications {
    /// Returns the Reservation Notification Mask.
    pub(super) fn mask(&self) -> u32 {
        self.mask
    }

    pub(super) fn set_mask(&mut self, mask: u32) {
        self.mask = mask & RESERVATION_MASK;
    }

    /// Takes the notices for the host. Returns whether there were any.
    pub(super) fn collect(&mut self, grant: Option<&Grant>) -> bool {
        let before = self.count;
        while let Some(notice) = grant.and_then(Grant::take_reservation_notice) {
            let kind = match notice {
                ReservationNotice::RegistrationPreempted => {
                    ReservationNotification::REGISTRATION_PREEMPTED
                }
                ReservationNotice::ReservationReleased => {
                    ReservationNotification::RESERVATION_RELEASED
                }
                ReservationNotice::ReservationPreempted => {
                    ReservationNotification::RESERVATION_PREEMPTED
                }
            };
            self.add(kind);
        }
        self.count != before
    }

    fn add(&mut self, kind: u8) {
        if self.mask >> kind & 1 != 0 {
            return;
        }
        self.count += 1;
        if self.unread.len() < MAX_UNREAD {
            self.unread.push_back((self.count, kind));
        }
    }

    /// Returns the log page: the oldest notification, which counts as read unless it is retained.
    pub(super) fn page(&mut self, retain: bool) -> ReservationNotification {
        let Some(&(count, kind)) = self.unread.front() else {
            return ReservationNotification::new_zeroed();
        };
        let further = u8::try_from(self.unread.len() - 1).unwrap_or(u8::MAX);
        if !retain {
            self.unread.pop_front();
        }
        ReservationNotification::emit(count, kind, further, NSID)
    }

    /// Returns whether there are unread notifications.
    pub(super) fn is_empty(&self) -> bool {
        self.unread.is_empty()
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn page(count: u64, kind: u8, further: u8) -> ReservationNotification {
        ReservationNotification::emit(count, kind, further, 1)
    }

    #[test]
    fn notifications_are_read_one_by_one() {
        let mut log = Notifications::default();
        [1, 3].into_iter().for_each(|kind| log.add(kind));
        assert_eq!(log.page(true), page(1, 1, 1));
        assert_eq!(log.page(false), page(1, 1, 1));
        assert_eq!(log.page(false), page(2, 3, 0));
        assert_eq!(log.page(false), ReservationNotification::new_zeroed());
    }

    #[test]
    fn masked_notifications_are_not_logged() {
        let mut log = Notifications::default();
        log.set_mask(u32::MAX - 0b100);
        assert_eq!(log.mask(), 0b1010);
        [1, 2, 3].into_iter().for_each(|kind| log.add(kind));
        assert_eq!(log.page(false), page(1, 2, 0));
        assert!(log.is_empty());
    }

    #[test]
    fn lost_notifications_are_counted() {
        let mut log = Notifications::default();
        (0..MAX_UNREAD + 5).for_each(|_| log.add(1));
        (0..MAX_UNREAD).for_each(|_| assert_ne!(log.page(false).kind, 0));
        log.add(2);
        assert_eq!(log.page(false).count.get(), MAX_UNREAD as u64 + 6);
    }
}
