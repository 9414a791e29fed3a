//! PERSISTENT RESERVE IN and OUT (SPC-4): encodes and decodes what
//! [`export::Reservations`] holds.

use export::{
    Export, Grant, Registrant, ReservationCommand, ReservationError, ReservationType, Reservations,
};
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::cdb::PersistentOut;
use crate::response::{Response, Status};
use crate::wire::reservation as wire;
use crate::wire::sense::Sense;

/// Length of the name in a TransportID, at least.
const MIN_NAME: usize = 20;

/// Returns the code of a type (SPC-4).
fn code(kind: ReservationType) -> u8 {
    match kind {
        ReservationType::WriteExclusive => 1,
        ReservationType::ExclusiveAccess => 3,
        ReservationType::WriteExclusiveRegistrantsOnly => 5,
        ReservationType::ExclusiveAccessRegistrantsOnly => 6,
        ReservationType::WriteExclusiveAllRegistrants => 7,
        ReservationType::ExclusiveAccessAllRegistrants => 8,
    }
}

/// Returns the data of a service action of PERSISTENT RESERVE IN.
pub(crate) fn report(export: &Export, action: u8) -> Result<Vec<u8>, Sense> {
    let state = export.reservations();
    let body = match action {
        wire::READ_KEYS => keys(&state),
        wire::READ_RESERVATION => reservation(&state),
        wire::READ_FULL_STATUS => full_status(&state),
        wire::REPORT_CAPABILITIES => return Ok(capabilities(export, &state)),
        _ => return Err(Sense::INVALID_FIELD_IN_CDB),
    };
    let length = U32::new(u32::try_from(body.len()).unwrap_or(u32::MAX));
    let header = wire::Header { generation: U32::new(state.generation()), length };
    Ok([header.as_bytes(), &body].concat())
}

fn keys(state: &Reservations) -> Vec<u8> {
    state.registrations().iter().flat_map(|one| one.key.to_be_bytes()).collect()
}

fn reservation(state: &Reservations) -> Vec<u8> {
    let Some(reservation) = state.reservation() else { return Vec::new() };
    let all = reservation.kind.is_held_by_all();
    let holder = if all { None } else { state.key_of(&reservation.holder) };
    let mut descriptor = wire::ReservationDescriptor::new_zeroed();
    descriptor.key = U64::new(holder.unwrap_or(0));
    descriptor.scope_and_type = wire::SCOPE_UNIT << 4 | code(reservation.kind);
    descriptor.as_bytes().to_vec()
}

fn full_status(state: &Reservations) -> Vec<u8> {
    let mut list = Vec::new();
    for one in state.registrations() {
        let id = transport_id(&one.registrant);
        let mut descriptor = wire::StatusDescriptor::new_zeroed();
        descriptor.key = U64::new(one.key);
        if let Some(held) = state.reservation().filter(|_| state.is_holder(&one.registrant)) {
            descriptor.flags = wire::R_HOLDER;
            descriptor.scope_and_type = wire::SCOPE_UNIT << 4 | code(held.kind);
        }
        descriptor.port = U16::new(one.registrant.port);
        descriptor.length = U32::new(u32::try_from(id.len()).unwrap_or(u32::MAX));
        list.extend_from_slice(descriptor.as_bytes());
        list.extend_from_slice(&id);
    }
    list
}

/// Returns the TransportID of a registrant: that of an iSCSI initiator port if its id is an ISID,
/// else of a device of that name.
fn transport_id(registrant: &Registrant) -> Vec<u8> {
    let mut name = registrant.host.clone().into_bytes();
    let format = match <[u8; 6]>::try_from(&*registrant.id) {
        Ok(isid) => {
            name.extend_from_slice(b",i,0x");
            name.extend(isid.iter().flat_map(|byte| format!("{byte:02x}").into_bytes()));
            wire::ISCSI_PORT
        }
        Err(_) => wire::ISCSI_DEVICE,
    };
    // Terminated by NUL and padded to a multiple of four.
    name.resize(((name.len() + 4) & !3).max(MIN_NAME), 0);
    let length = U16::new(u16::try_from(name.len()).unwrap_or(u16::MAX));
    [wire::TransportIdHeader { format, reserved: 0, length }.as_bytes(), &name].concat()
}

fn capabilities(export: &Export, state: &Reservations) -> Vec<u8> {
    let mut data = wire::Capabilities::new_zeroed();
    data.length = U16::new(8);
    data.flags = wire::CRH | if export.stores_reservations() { wire::PTPL_C } else { 0 };
    data.flags_2 = wire::TMV | if state.is_persistent() { wire::PTPL_A } else { 0 };
    data.types = U16::new(wire::ALL_TYPES);
    data.as_bytes().to_vec()
}

/// A reservation command, and whether reservations persist from then on.
pub(crate) type Change = (ReservationCommand, Option<bool>);

/// Checks the CDB of PERSISTENT RESERVE OUT.
pub(crate) fn check(out: PersistentOut) -> Result<(), Sense> {
    if usize::try_from(out.length) != Ok(size_of::<wire::OutParameters>()) {
        return Err(Sense::PARAMETER_LIST_LENGTH);
    }
    match out.action {
        wire::RESERVE | wire::RELEASE => kind(out).map(|_| ()),
        _ => Ok(()),
    }
}

fn kind(out: PersistentOut) -> Result<ReservationType, Sense> {
    let kind = ReservationType::ALL.into_iter().find(|&kind| code(kind) == out.kind);
    kind.filter(|_| out.scope == wire::SCOPE_UNIT).ok_or(Sense::INVALID_FIELD_IN_CDB)
}

/// Decodes PERSISTENT RESERVE OUT. Returns `None` if there is nothing to do.
pub(crate) fn change(
    grant: &Grant,
    out: PersistentOut,
    list: &[u8],
) -> Result<Option<Change>, Response> {
    let Ok(list) = wire::OutParameters::ref_from_bytes(list) else {
        return Err(Sense::PARAMETER_LIST_LENGTH.into());
    };
    let (key, action_key) = (list.key.get(), list.action_key.get());
    let command = match out.action {
        wire::REGISTER | wire::REGISTER_AND_IGNORE => return registration(grant, out, list),
        wire::RESERVE => ReservationCommand::Reserve { key, kind: kind(out)? },
        wire::RELEASE => ReservationCommand::Release { key, kind: kind(out)? },
        wire::CLEAR => ReservationCommand::Clear { key },
        // SCOPE and TYPE are ignored if only registrations are removed.
        _ => ReservationCommand::Preempt { key, victim: action_key, kind: kind(out).ok() },
    };
    Ok(Some((command, None)))
}

/// Decodes REGISTER and REGISTER AND IGNORE EXISTING KEY (SPC-4): the latter ignores the key
/// of the registrant.
fn registration(
    grant: &Grant,
    out: PersistentOut,
    list: &wire::OutParameters,
) -> Result<Option<Change>, Response> {
    if list.flags & !wire::APTPL != 0 {
        return Err(Sense::INVALID_FIELD_IN_PARAMETERS.into());
    }
    let (own, new) = (grant.reservation_key(), list.action_key.get());
    let current = (out.action == wire::REGISTER).then(|| list.key.get());
    if current.is_some_and(|current| current != own.unwrap_or(0)) {
        return Err(Response::status(Status::ReservationConflict));
    }
    let command = match (own, new) {
        (None, 0) => return Ok(None),
        (None, key) => ReservationCommand::Register { key },
        (Some(_), 0) => ReservationCommand::Unregister { current },
        (Some(_), key) => ReservationCommand::Replace { current, key },
    };
    Ok(Some((command, Some(list.flags & wire::APTPL != 0))))
}

/// Returns the response of a reservation command that failed.
pub(crate) fn failed(error: ReservationError) -> Response {
    Response::check(match error {
        ReservationError::Conflict => return Response::status(Status::ReservationConflict),
        ReservationError::InvalidKey | ReservationError::NoPersistence => {
            Sense::INVALID_FIELD_IN_PARAMETERS
        }
        ReservationError::WrongType => Sense::INVALID_RELEASE,
        ReservationError::InvalidType => Sense::INVALID_FIELD_IN_CDB,
        ReservationError::ReadOnly => Sense::WRITE_PROTECTED,
        ReservationError::TooManyRegistrants => Sense::TOO_MANY_REGISTRATIONS,
        ReservationError::Gone => Sense::MEDIUM_NOT_PRESENT,
        ReservationError::Unsupported => Sense::INVALID_OPCODE,
    })
}
