//! Reservation commands (NVMe Base 2.0 §7.2 to §7.5, §8.19).

use export::{Body, Buffer, Registrant, ReservationCommand, Reservations};
use zerocopy::{FromZeros, IntoBytes};

use crate::command::ReservationRequest;
use crate::status::Status;
use crate::target::MAX_TRANSFER;
use crate::target::capsule::{Capsule, LengthCheck};
use crate::target::queue::Queue;
use crate::target::work::Work;
use crate::wire::reservation::{
    RegisteredController, ReservationKeys, ReservationStatus, cptpl, racqa, rrega, rrela, rtype_of,
    type_of,
};

/// Handles a reservation command.
pub(super) fn command(
    queue: &mut Queue,
    capsule: Capsule<'_>,
    request: ReservationRequest,
) -> Result<(), Status> {
    if let ReservationRequest::Report { len, extended } = request {
        return report(queue, &capsule, len, extended);
    }
    queue.set_work(capsule.tag(), Work::Reservation(request));
    queue.receive_data(capsule, request.data_len().len(), LengthCheck::AtLeast)
}

/// Executes a command whose keys were received.
pub(super) fn data_received(
    queue: &mut Queue,
    tag: u16,
    request: ReservationRequest,
    buffer: &Buffer,
) {
    let mut keys = ReservationKeys::new_zeroed();
    let given = buffer.bytes().iter();
    keys.as_mut_bytes().iter_mut().zip(given).for_each(|(key, given)| *key = *given);
    match plan(request, &keys) {
        Ok((command, persist)) => queue.reserve(tag, command, persist),
        Err(status) => queue.finish(tag, status),
    }
}

/// Returns the command with its keys, and whether reservations are to persist, if that changes.
fn plan(
    request: ReservationRequest,
    keys: &ReservationKeys,
) -> Result<(ReservationCommand, Option<bool>), Status> {
    let invalid = Status::INVALID_FIELD.dnr();
    let (key, other) = (keys.current.get(), keys.other.get());
    let command = match request {
        ReservationRequest::Register { action, ignore_key, persistence } => {
            let current = (!ignore_key).then_some(key);
            let command = match action {
                rrega::REGISTER => ReservationCommand::Register { key: other },
                rrega::UNREGISTER => ReservationCommand::Unregister { current },
                rrega::REPLACE => ReservationCommand::Replace { current, key: other },
                _ => return Err(invalid),
            };
            return Ok((command, persist(persistence)?));
        }
        // Only Register can ignore the key (NVMe Base 2.0 §7.2, §7.4).
        ReservationRequest::Acquire { ignore_key: true, .. }
        | ReservationRequest::Release { ignore_key: true, .. }
        | ReservationRequest::Report { .. } => return Err(invalid),
        ReservationRequest::Acquire { action, rtype, .. } => {
            let kind = type_of(rtype).ok_or(invalid)?;
            match action {
                racqa::ACQUIRE => ReservationCommand::Reserve { key, kind },
                racqa::PREEMPT | racqa::PREEMPT_AND_ABORT => {
                    ReservationCommand::Preempt { key, victim: other, kind: Some(kind) }
                }
                _ => return Err(invalid),
            }
        }
        ReservationRequest::Release { action, rtype, .. } => match action {
            rrela::RELEASE => {
                ReservationCommand::Release { key, kind: type_of(rtype).ok_or(invalid)? }
            }
            rrela::CLEAR => ReservationCommand::Clear { key },
            _ => return Err(invalid),
        },
    };
    Ok((command, None))
}

fn persist(persistence: u8) -> Result<Option<bool>, Status> {
    match persistence {
        cptpl::NO_CHANGE => Ok(None),
        cptpl::CLEAR => Ok(Some(false)),
        cptpl::SET => Ok(Some(true)),
        _ => Err(Status::INVALID_FIELD.dnr()),
    }
}

/// Handles Reservation Report.
fn report(
    queue: &mut Queue,
    capsule: &Capsule<'_>,
    len: u64,
    extended: bool,
) -> Result<(), Status> {
    capsule.check_to_host(len.min(MAX_TRANSFER + 1), LengthCheck::AtLeast)?;
    let len = usize::try_from(len).ok().filter(|len| *len as u64 <= MAX_TRANSFER);
    let len = len.ok_or(Status::INVALID_FIELD.dnr())?;
    // Over fabrics host identifiers have 128 bits.
    if !extended {
        return Err(Status::HOST_ID_INCONSISTENT.dnr());
    }
    let grant = queue.grant().ok_or(Status::INVALID_NAMESPACE.dnr())?;
    let mut page = status_data(&grant.export().reservations());
    page.resize(len, 0);
    queue.finish_with_data(capsule.tag(), Body::Shared(page.into()), len);
    Ok(())
}

/// Returns the Reservation Status Extended data structure.
fn status_data(reservations: &Reservations) -> Vec<u8> {
    let registered = reservations.registrations();
    let rtype = reservations.reservation().map_or(0, |it| rtype_of(it.kind));
    let count = u16::try_from(registered.len()).unwrap_or(u16::MAX);
    let (generation, persistent) = (reservations.generation(), reservations.is_persistent());
    let mut page = ReservationStatus::new(generation, rtype, count, persistent).as_bytes().to_vec();
    for one in registered {
        let is_holder = reservations.is_holder(&one.registrant);
        let entry = RegisteredController::new(is_holder, one.key, host_id(&one.registrant));
        page.extend_from_slice(entry.as_bytes());
    }
    page
}

/// Returns the host identifier. That of a registrant of another protocol is padded with zeros.
fn host_id(registrant: &Registrant) -> [u8; 16] {
    let mut id = [0; 16];
    id.iter_mut().zip(&registrant.id).for_each(|(to, from)| *to = *from);
    id
}

#[cfg(test)]
mod test {
    use export::ReservationType;

    use super::*;

    #[test]
    fn reserved_values_are_invalid_fields() {
        let keys = ReservationKeys::new(1, 2);
        let invalid = Err(Status::INVALID_FIELD.dnr());
        for action in 0..8 {
            let register =
                ReservationRequest::Register { action, ignore_key: false, persistence: 0 };
            assert_eq!(plan(register, &keys).is_ok(), action < 3);
            for rtype in 0..=u8::MAX {
                let is_type = (1..7).contains(&rtype);
                let acquire = ReservationRequest::Acquire { action, ignore_key: false, rtype };
                assert_eq!(plan(acquire, &keys).is_ok(), action < 3 && is_type);
                let release = ReservationRequest::Release { action, ignore_key: false, rtype };
                assert_eq!(plan(release, &keys).is_ok(), action == 1 || action == 0 && is_type);
                let ignoring = ReservationRequest::Acquire { action, ignore_key: true, rtype };
                assert_eq!(plan(ignoring, &keys), invalid);
                let ignoring = ReservationRequest::Release { action, ignore_key: true, rtype };
                assert_eq!(plan(ignoring, &keys), invalid);
            }
        }
        let reserved =
            ReservationRequest::Register { action: 0, ignore_key: false, persistence: 1 };
        assert_eq!(plan(reserved, &keys), invalid);
    }

    #[test]
    fn preempt_has_both_keys() {
        let keys = ReservationKeys::new(1, 2);
        let kind = Some(ReservationType::WriteExclusive);
        for action in [racqa::PREEMPT, racqa::PREEMPT_AND_ABORT] {
            let request = ReservationRequest::Acquire { action, ignore_key: false, rtype: 1 };
            let command = ReservationCommand::Preempt { key: 1, victim: 2, kind };
            assert_eq!(plan(request, &keys), Ok((command, None)));
        }
    }
}
