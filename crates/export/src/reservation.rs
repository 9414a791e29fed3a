//! Reservations of a disk: which registrants there are, which of them holds a reservation, and
//! what that permits. One state machine for the reservations of NVMe (NVMe Base 2.0 §8.19), the
//! persistent reservations of SCSI (SPC-4 §5.13) and its RESERVE(6) and RELEASE(6).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Op;

/// Identity of a registrant. A registration belongs to a host, not to one of its connections.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Registrant {
    /// The name of the host: an NVMe host NQN, an iSCSI initiator name.
    pub host: String,
    /// What tells the registrants of one host apart: an NVMe host identifier (16 bytes), an iSCSI
    /// ISID (6 bytes).
    pub id: Vec<u8>,
    /// The relative identifier of the target port; zero where registrations do not depend on it.
    pub port: u16,
}

/// The type of a reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ReservationType {
    /// Only the holder may write.
    WriteExclusive,
    /// Only the holder may read and write.
    ExclusiveAccess,
    /// Only registrants may write.
    WriteExclusiveRegistrantsOnly,
    /// Only registrants may read and write.
    ExclusiveAccessRegistrantsOnly,
    /// Only registrants may write; every registrant is a holder.
    WriteExclusiveAllRegistrants,
    /// Only registrants may read and write; every registrant is a holder.
    ExclusiveAccessAllRegistrants,
}

impl ReservationType {
    /// Every type.
    pub const ALL: [Self; 6] = [
        Self::WriteExclusive,
        Self::ExclusiveAccess,
        Self::WriteExclusiveRegistrantsOnly,
        Self::ExclusiveAccessRegistrantsOnly,
        Self::WriteExclusiveAllRegistrants,
        Self::ExclusiveAccessAllRegistrants,
    ];

    /// Returns whether those who may not write may not read either.
    pub fn excludes_reads(self) -> bool {
        matches!(
            self,
            Self::ExclusiveAccess
                | Self::ExclusiveAccessRegistrantsOnly
                | Self::ExclusiveAccessAllRegistrants
        )
    }

    /// Returns whether every registrant has the access of the holder.
    pub fn admits_registrants(self) -> bool {
        !matches!(self, Self::WriteExclusive | Self::ExclusiveAccess)
    }

    /// Returns whether every registrant is a holder.
    pub fn is_held_by_all(self) -> bool {
        matches!(self, Self::WriteExclusiveAllRegistrants | Self::ExclusiveAccessAllRegistrants)
    }
}

/// A command that changes reservations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReservationCommand {
    /// Registers with `key`. Succeeds without effect if registered with the same key.
    Register {
        /// The key, not zero.
        key: u64,
    },
    /// Replaces the key of a registrant.
    Replace {
        /// The key now; `None` to replace any, and to register if there is no registration.
        current: Option<u64>,
        /// The new key, not zero.
        key: u64,
    },
    /// Removes the registration, and with it a reservation that the registrant holds.
    Unregister {
        /// The key now; `None` for any.
        current: Option<u64>,
    },
    /// Takes a reservation. Succeeds without effect if the registrant holds it already.
    Reserve {
        /// The key of the registrant.
        key: u64,
        /// The type.
        kind: ReservationType,
    },
    /// Ends the reservation. Succeeds without effect if the registrant holds none.
    Release {
        /// The key of the registrant.
        key: u64,
        /// The type that the reservation has.
        kind: ReservationType,
    },
    /// Removes all registrations and the reservation.
    Clear {
        /// The key of the registrant.
        key: u64,
    },
    /// Removes the registrations with the key `victim`. If it is the key of the holder, takes the
    /// reservation. Zero stands for all other registrants, of a reservation that all hold.
    Preempt {
        /// The key of the registrant.
        key: u64,
        /// The key of those to be removed.
        victim: u64,
        /// The type, if the reservation is taken.
        kind: ReservationType,
    },
    /// Sets whether registrations and the reservation are restored after a restart.
    SetPersistence(bool),
    /// Reserves the disk for this registrant alone: RESERVE(6).
    ReserveUnit,
    /// Ends that: RELEASE(6).
    ReleaseUnit,
    /// Ends that for whichever registrant: a reset of the logical unit.
    ResetUnit,
}

impl ReservationCommand {
    /// Returns whether it can shut out others, which a host with read-only access may not.
    pub(crate) fn requires_write_access(self) -> bool {
        matches!(
            self,
            Self::Reserve { .. }
                | Self::Clear { .. }
                | Self::Preempt { .. }
                | Self::SetPersistence(_)
                | Self::ReserveUnit
        )
    }
}

/// Why a reservation command failed. It had no effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReservationError {
    /// The key does not match, the host is not registered, or another host holds a reservation.
    Conflict,
    /// The key, or the key of those to be preempted, is zero.
    InvalidKey,
    /// The reservation to be released has another type.
    WrongType,
    /// The host has read-only access.
    ReadOnly,
    /// Registrations cannot be restored after a restart here.
    NoPersistence,
    /// There are [`MAX_REGISTRANTS`] already.
    TooManyRegistrants,
    /// The disk was removed or withdrawn, or the connection may no longer write.
    Gone,
}

/// Notifies a registrant of the effect of another one's command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReservationNotice {
    /// Its registration was removed by a preempt.
    RegistrationPreempted,
    /// The reservation that gave it access was released, or its type has changed.
    ReservationReleased,
    /// All registrations and the reservation were cleared.
    ReservationPreempted,
}

/// The most registrants of a disk.
pub const MAX_REGISTRANTS: usize = 256;

/// What a reservation permits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Permission {
    pub(crate) reads: bool,
    pub(crate) writes: bool,
}

impl Permission {
    const ALL: Self = Self { reads: true, writes: true };
}

/// Returns whether a reservation treats `op` as a write. A flush is one: it is refused to those
/// who may not write.
pub(crate) fn is_write(op: Op) -> bool {
    op.mutates() || op == Op::Flush
}

/// A registrant with its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// Who is registered.
    pub registrant: Registrant,
    /// The reservation key; not zero.
    pub key: u64,
}

/// A reservation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// Its type.
    pub kind: ReservationType,
    /// Who has taken it. If all registrants are holders, this one may have unregistered since.
    pub holder: Registrant,
}

/// The registrations and the reservation of a disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reservations {
    registrations: Vec<Registration>,
    reservation: Option<Reservation>,
    generation: u32,
    persistent: bool,
    /// Who has reserved the disk by RESERVE(6). There are no registrations then.
    unit: Option<Registrant>,
}

/// What is restored after a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedReservations {
    /// The registrations.
    pub registrations: Vec<Registration>,
    /// The reservation.
    pub reservation: Option<Reservation>,
}

/// Stores what is to be restored after a restart.
pub trait ReservationStore: fmt::Debug + Send + Sync {
    /// Begins to store `state`, in place of what was stored before; `None` if nothing is to be
    /// restored. Must not block. The result is to be passed to
    /// [`Export::reservations_saved`](crate::Export::reservations_saved), with `sequence`.
    fn save(&self, sequence: u64, state: Option<SavedReservations>);
}

/// A notice, and who gets it.
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

    /// Returns who has reserved the disk by [`ReservationCommand::ReserveUnit`].
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

    /// Executes a command of `who`. Adds notices for other registrants to `notices`.
    ///
    /// # Errors
    /// Returns why the command failed. It had no effect.
    pub(crate) fn execute(
        &mut self,
        who: &Registrant,
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
            Command::Register { key } => self.register(who, key),
            Command::Replace { current, key } => self.replace(who, current, key),
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

    fn register(&mut self, who: &Registrant, key: u64) -> Result<(), ReservationError> {
        match self.key_of(who) {
            _ if key == 0 => return Err(ReservationError::InvalidKey),
            Some(current) if current != key => return Err(ReservationError::Conflict),
            Some(_) => {}
            None if self.registrations.len() >= MAX_REGISTRANTS => {
                return Err(ReservationError::TooManyRegistrants);
            }
            None => self.registrations.push(Registration { registrant: who.clone(), key }),
        }
        self.advance_generation();
        Ok(())
    }

    fn replace(
        &mut self,
        who: &Registrant,
        current: Option<u64>,
        key: u64,
    ) -> Result<(), ReservationError> {
        if key == 0 {
            return Err(ReservationError::InvalidKey);
        }
        if current.is_none() && self.key_of(who).is_none() {
            return self.register(who, key);
        }
        self.check_key(who, current)?;
        let own = self.registrations.iter_mut().find(|one| one.registrant == *who);
        own.into_iter().for_each(|own| own.key = key);
        self.advance_generation();
        Ok(())
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
        kind: ReservationType,
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
        // One that takes the reservation keeps its own registration, even with the same key.
        let is_removed =
            |one: &mut Registration| is_victim(one) && !(takes && one.registrant == *who);
        let removed = self.registrations.extract_if(.., is_removed).map(|one| one.registrant);
        let removed = removed.filter(|other| other != who);
        notices.extend(removed.map(|other| (other, ReservationNotice::RegistrationPreempted)));
        if takes {
            self.reservation = Some(Reservation { kind, holder: who.clone() });
            if before != Some(kind) {
                self.notify_others(who, ReservationNotice::ReservationReleased, notices);
            }
        }
        self.end_without_holder();
        self.advance_generation();
        Ok(())
    }

    /// RESERVE(6) of a registrant with access by a persistent reservation succeeds without effect
    /// (SPC-4 §5.12.3); else the two kinds of reservations exclude each other (SPC-2 §5.5.1).
    fn reserve_unit(&mut self, who: &Registrant) -> Result<(), ReservationError> {
        if self.is_admitted(who) {
            return Ok(());
        }
        let is_taken = self.unit.as_ref().is_some_and(|holder| holder != who);
        if is_taken || !self.registrations.is_empty() {
            return Err(ReservationError::Conflict);
        }
        self.unit = Some(who.clone());
        Ok(())
    }

    /// RELEASE(6) of one that has not reserved the unit succeeds without effect.
    fn release_unit(&mut self, who: &Registrant) -> Result<(), ReservationError> {
        if !self.is_admitted(who) && !self.registrations.is_empty() {
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
