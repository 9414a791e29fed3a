//! Reservations of a disk: registrants, commands, and what they lead to. For the reservations of NVMe
//! (NVMe Base 2.0 §8.19), the persistent reservations of SCSI (SPC-4 §5.13), and its RESERVE(6) and
//! RELEASE(6).

use std::fmt;

use serde::{Deserialize, Serialize};

mod state;

pub use state::Reservations;
pub(crate) use state::{Notices, Permission, is_write};

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
    /// Whether the host has proven its name by its keys. One that has not is another registrant. A
    /// stored state without this is one of hosts with keys: a claimed name must not get what they have.
    #[serde(default = "yes")]
    pub proven: bool,
}

/// What older versions did not store.
fn yes() -> bool {
    true
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
        /// The type, if the reservation is taken; else it is ignored, and may be missing.
        kind: Option<ReservationType>,
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
    /// Returns whether it can shut out others, or end what another one has set up. A host with
    /// read-only access may do neither.
    pub(crate) fn requires_write_access(self) -> bool {
        match self {
            Self::Reserve { .. }
            | Self::Clear { .. }
            | Self::Preempt { .. }
            | Self::SetPersistence(_)
            | Self::ReserveUnit
            | Self::ResetUnit => true,
            Self::Release { kind, .. } => kind.is_held_by_all(),
            _ => false,
        }
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
    /// The reservation is to be taken without a type.
    InvalidType,
    /// The host has read-only access.
    ReadOnly,
    /// Registrations cannot be restored after a restart here.
    NoPersistence,
    /// There are [`MAX_REGISTRANTS`] already, or 16 of the host, or too many of hosts that have not
    /// proven their names.
    TooManyRegistrants,
    /// The disk was removed or withdrawn, or the connection may no longer write.
    Gone,
    /// The disk cannot be reserved: [`Export::supports_reservations`](crate::Export::supports_reservations).
    Unsupported,
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

/// The most of them that have the name of one host. Those that have proven it are counted apart from
/// those that have not.
const MAX_REGISTRANTS_OF_HOST: usize = 16;

/// The most of them whose hosts have not proven their names, which can be invented.
const MAX_UNPROVEN_REGISTRANTS: usize = MAX_REGISTRANTS / 2;

/// A registrant with its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// Who is registered.
    pub registrant: Registrant,
    /// The reservation key; not zero.
    pub key: u64,
    /// Whether the host had write access when it registered. If not, its registration does not keep
    /// others from RESERVE(6). A stored state without this does.
    #[serde(default = "yes")]
    pub writable: bool,
}

/// A reservation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// Its type.
    pub kind: ReservationType,
    /// Who has taken it. If all registrants are holders, this one may have unregistered since.
    pub holder: Registrant,
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
