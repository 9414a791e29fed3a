//! The state machine of reservations: which registrants there are, which of them holds a
//! reservation, and what that permits.

use super::{
    MAX_REGISTRANTS, MAX_REGISTRANTS_OF_HOST, MAX_UNPROVEN_REGISTRANTS, Registrant, Registration,
    Reservation, ReservationCommand, ReservationError, ReservationNotice, ReservationType,
    SavedReservations,
};
use crate::Op;

/// What a reservation permits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Permission {
    pub(crate) reads: bool,
    pub(crate) writes: bool,
}

impl Permission {
    const ALL: Self = Self { reads: true, writes: true };
}

/// Returns whether a reservation treats `op` as a write. A flush is one: it is refused to hosts
/// that may not write.
pub(crate) fn is_write(op: Op) -> bool {
    op.mutates() || op == Op::Flush
}

/// The registrations and the reservation of a disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reservations {
    registrations: Vec<Registration>,
    reservation: Option<Reservation>,
    generation: u32,
    persistent: bool,
    /// The host that has reserved the disk by RESERVE(6). There is no reservation then, and no
    /// registration of a host with write access.
    unit: Option<Registrant>,
}

/// A notice, and the host that gets it.
pub(crate) type Notices = Vec<(Registrant, ReservationNotice)>;

impl Reservations {
    /// Returns the registrations, in the order in which they were made.
    pub fn registrations(&self) -> &[Registration] {
        &self.registrations
    }

    /// Returns the reservation.
    pub fn reservation(&self) -> Option<&Reservation> {
        self.reservation.as_ref()
    }

    /// Returns the generation: how many commands have changed registrations since the start.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Returns whether the state is restored after a restart.
    pub fn is_persistent(&self) -> bool {
        self.persistent
    }

    pub(crate) fn set_persistent(&mut self, persistent: bool) {
        self.persistent = persistent;
    }

    /// Returns the host that has reserved the disk by [`ReservationCommand::ReserveUnit`].
    pub fn unit_holder(&self) -> Option<&Registrant> {
        self.unit.as_ref()
    }

    /// Returns the key of a registrant.
    pub fn key_of(&self, who: &Registrant) -> Option<u64> {
        let mut all = self.registrations.iter();
        all.find(|one| one.registrant == *who).map(|one| one.key)
    }

    /// Returns whether a registrant holds the reservation.
    pub fn is_holder(&self, who: &Registrant) -> bool {
        self.reservation.as_ref().is_some_and(|reservation| match reservation.kind {
            kind if kind.is_held_by_all() => self.key_of(who).is_some(),
            _ => reservation.holder == *who,
        })
    }

    /// Returns whether a registrant has the access of the holder.
    fn is_admitted(&self, who: &Registrant) -> bool {
        let admits = |it: &Reservation| it.kind.admits_registrants() && self.key_of(who).is_some();
        self.is_holder(who) || self.reservation.as_ref().is_some_and(admits)
    }

    /// Returns what `who` may do; `None` is a host that cannot register.
    pub(crate) fn permission(&self, who: Option<&Registrant>) -> Permission {
        if let Some(holder) = &self.unit {
            let own = who == Some(holder);
            return Permission { reads: own, writes: own };
        }
        match &self.reservation {
            Some(reservation) if !who.is_some_and(|who| self.is_admitted(who)) => {
                Permission { reads: !reservation.kind.excludes_reads(), writes: false }
            }
            _ => Permission::ALL,
        }
    }

    /// Returns what is to be stored; `None` if nothing is to be restored.
    pub(crate) fn saved(&self) -> Option<SavedReservations> {
        self.persistent.then(|| SavedReservations {
            registrations: self.registrations.clone(),
            reservation: self.reservation.clone(),
        })
    }

    /// Returns the state after a restart. Ignores what no command could have led to.
    pub(crate) fn restored(saved: SavedReservations) -> Self {
        let mut state = Self { persistent: true, ..Self::default() };
        for one in saved.registrations.into_iter().take(MAX_REGISTRANTS) {
            if one.key != 0 && state.key_of(&one.registrant).is_none() {
                state.registrations.push(one);
            }
        }
        state.reservation = saved.reservation;
        state.end_without_holder();
        state
    }

    /// Executes a command of `who`, with or without write access. Adds notices for other registrants
    /// to `notices`.
    ///
    /// # Errors
    /// Returns why the command failed. It had no effect.
    pub(crate) fn execute(
        &mut self,
        who: &Registrant,
        writable: bool,
        command: ReservationCommand,
        notices: &mut Notices,
    ) -> Result<(), ReservationError> {
        use ReservationCommand as Command;
        match command {
            Command::ReserveUnit => self.reserve_unit(who),
            Command::ReleaseUnit => self.release_unit(who),
            Command::ResetUnit => {
                self.unit = None;
                Ok(())
            }
            // The two kinds of reservations exclude each other (SPC-2 §5.5.1).
            _ if self.unit.is_some() => Err(ReservationError::Conflict),
            Command::Register { key } => self.register(who, writable, key),
            Command::Replace { current, key } => self.replace(who, writable, current, key),
            Command::Unregister { current } => self.unregister(who, current, notices),
            Command::Reserve { key, kind } => self.reserve(who, key, kind),
            Command::Release { key, kind } => self.release(who, key, kind, notices),
            Command::Clear { key } => self.clear(who, key, notices),
            Command::Preempt { key, victim, kind } => {
                self.check_key(who, Some(key))?;
                self.preempt(who, victim, kind, notices)
            }
            Command::SetPersistence(persistent) => {
                self.set_persistent(persistent);
                Ok(())
            }
        }
    }

    /// Checks that `who` is registered, with `key` unless that is `None`.
    fn check_key(&self, who: &Registrant, key: Option<u64>) -> Result<(), ReservationError> {
        let current = self.key_of(who).ok_or(ReservationError::Conflict)?;
        if key.is_none_or(|key| key == current) { Ok(()) } else { Err(ReservationError::Conflict) }
    }

    fn advance_generation(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    /// Returns whether `who` cannot be added.
    fn is_full(&self, who: &Registrant) -> bool {
        let registrants = || self.registrations.iter().map(|one| &one.registrant);
        let alike = || registrants().filter(|one| one.proven == who.proven);
        let of_host = alike().filter(|one| one.host == who.host).count();
        registrants().count() >= MAX_REGISTRANTS
            || of_host >= MAX_REGISTRANTS_OF_HOST
            || !who.proven && alike().count() >= MAX_UNPROVEN_REGISTRANTS
    }

    fn register(
        &mut self,
        who: &Registrant,
        writable: bool,
        key: u64,
    ) -> Result<(), ReservationError> {
        match self.key_of(who) {
            _ if key == 0 => return Err(ReservationError::InvalidKey),
            Some(current) if current != key => return Err(ReservationError::Conflict),
            Some(_) => {}
            None if self.is_full(who) => return Err(ReservationError::TooManyRegistrants),
            None => {
                let registrant = who.clone();
                self.registrations.push(Registration { registrant, key, writable });
            }
        }
        self.set_key(who, writable, key);
        Ok(())
    }

    fn replace(
        &mut self,
        who: &Registrant,
        writable: bool,
        current: Option<u64>,
        key: u64,
    ) -> Result<(), ReservationError> {
        if key == 0 {
            return Err(ReservationError::InvalidKey);
        }
        if current.is_none() && self.key_of(who).is_none() {
            return self.register(who, writable, key);
        }
        self.check_key(who, current)?;
        self.set_key(who, writable, key);
        Ok(())
    }

    fn set_key(&mut self, who: &Registrant, writable: bool, key: u64) {
        let own = self.registrations.iter_mut().find(|one| one.registrant == *who);
        own.into_iter().for_each(|own| (own.key, own.writable) = (key, writable));
        self.advance_generation();
    }

    fn unregister(
        &mut self,
        who: &Registrant,
        current: Option<u64>,
        notices: &mut Notices,
    ) -> Result<(), ReservationError> {
        self.check_key(who, current)?;
        self.registrations.retain(|one| one.registrant != *who);
        if let Some(kind) = self.end_without_holder() {
            self.notify_released(who, kind, notices);
        }
        self.advance_generation();
        Ok(())
    }

    /// Ends the reservation if its holder is not registered. Returns its type.
    fn end_without_holder(&mut self) -> Option<ReservationType> {
        let is_held = |it: &Reservation| match it.kind.is_held_by_all() {
            true => !self.registrations.is_empty(),
            false => self.key_of(&it.holder).is_some(),
        };
        if self.reservation.as_ref().is_some_and(is_held) {
            return None;
        }
        self.reservation.take().map(|ended| ended.kind)
    }

    /// Notifies the other registrants that a reservation which gave them access has ended.
    fn notify_released(&self, who: &Registrant, kind: ReservationType, notices: &mut Notices) {
        if kind.admits_registrants() {
            self.notify_others(who, ReservationNotice::ReservationReleased, notices);
        }
    }

    fn notify_others(&self, who: &Registrant, notice: ReservationNotice, notices: &mut Notices) {
        let others = self.registrations.iter().map(|one| &one.registrant);
        notices.extend(others.filter(|&other| other != who).map(|other| (other.clone(), notice)));
    }

    fn reserve(
        &mut self,
        who: &Registrant,
        key: u64,
        kind: ReservationType,
    ) -> Result<(), ReservationError> {
        self.check_key(who, Some(key))?;
        match &self.reservation {
            None => {
                self.reservation = Some(Reservation { kind, holder: who.clone() });
                Ok(())
            }
            Some(current) if current.kind == kind && self.is_holder(who) => Ok(()),
            Some(_) => Err(ReservationError::Conflict),
        }
    }

    fn release(
        &mut self,
        who: &Registrant,
        key: u64,
        kind: ReservationType,
        notices: &mut Notices,
    ) -> Result<(), ReservationError> {
        self.check_key(who, Some(key))?;
        if !self.is_holder(who) {
            return Ok(());
        }
        if self.reservation.as_ref().is_some_and(|current| current.kind != kind) {
            return Err(ReservationError::WrongType);
        }
        self.reservation = None;
        self.notify_released(who, kind, notices);
        Ok(())
    }

    fn clear(
        &mut self,
        who: &Registrant,
        key: u64,
        notices: &mut Notices,
    ) -> Result<(), ReservationError> {
        self.check_key(who, Some(key))?;
        self.notify_others(who, ReservationNotice::ReservationPreempted, notices);
        self.registrations.clear();
        self.reservation = None;
        self.advance_generation();
        Ok(())
    }

    fn preempt(
        &mut self,
        who: &Registrant,
        victim: u64,
        kind: Option<ReservationType>,
        notices: &mut Notices,
    ) -> Result<(), ReservationError> {
        let before = self.reservation.as_ref().map(|current| current.kind);
        let all = before.is_some_and(ReservationType::is_held_by_all);
        let takes = match &self.reservation {
            Some(_) if all => victim == 0,
            Some(current) => self.key_of(&current.holder) == Some(victim),
            None => false,
        };
        if victim == 0 && !takes {
            return Err(ReservationError::InvalidKey);
        }
        let is_victim = |one: &Registration| victim == 0 || one.key == victim;
        if !self.registrations.iter().any(is_victim) {
            return Err(ReservationError::Conflict);
        }
        let taken = takes.then(|| kind.ok_or(ReservationError::InvalidType)).transpose()?;
        // One that takes the reservation keeps its own registration, even with the same key.
        let is_removed =
            |one: &mut Registration| is_victim(one) && !(takes && one.registrant == *who);
        let removed = self.registrations.extract_if(.., is_removed).map(|one| one.registrant);
        let removed = removed.filter(|other| other != who);
        notices.extend(removed.map(|other| (other, ReservationNotice::RegistrationPreempted)));
        if let Some(kind) = taken {
            self.reservation = Some(Reservation { kind, holder: who.clone() });
            if before != Some(kind) {
                self.notify_others(who, ReservationNotice::ReservationReleased, notices);
            }
        }
        self.end_without_holder();
        self.advance_generation();
        Ok(())
    }

    /// Returns whether a reservation or registrations exclude RESERVE(6) (SPC-2 §5.5.1).
    fn excludes_unit(&self) -> bool {
        self.reservation.is_some() || self.registrations.iter().any(|one| one.writable)
    }

    /// RESERVE(6) of a registrant with access by a persistent reservation succeeds without effect
    /// (SPC-4 §5.12.3); else the two kinds of reservations exclude each other.
    fn reserve_unit(&mut self, who: &Registrant) -> Result<(), ReservationError> {
        if self.is_admitted(who) {
            return Ok(());
        }
        let is_taken = self.unit.as_ref().is_some_and(|holder| holder != who);
        if is_taken || self.excludes_unit() {
            return Err(ReservationError::Conflict);
        }
        self.unit = Some(who.clone());
        Ok(())
    }

    /// RELEASE(6) of one that has not reserved the unit succeeds without effect.
    fn release_unit(&mut self, who: &Registrant) -> Result<(), ReservationError> {
        if !self.is_admitted(who) && self.excludes_unit() {
            return Err(ReservationError::Conflict);
        }
        self.end_unit(who);
        Ok(())
    }

    /// Ends the reservation by RESERVE(6) of `who`. Returns whether there was one.
    pub(crate) fn end_unit(&mut self, who: &Registrant) -> bool {
        self.unit.take_if(|holder| holder == who).is_some()
    }
}

#[cfg(test)]
mod test;
