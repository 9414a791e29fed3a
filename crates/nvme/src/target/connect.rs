//! Connect (NVMe Base 2.0 §6.3): makes a connection a queue of a controller.

use std::sync::Arc;

use super::QUEUE_ENTRIES;
use super::access::{ConnectRefusal, InBandKey};
use super::auth::InBandAuth;
use super::binding::{Binding, Connect};
use super::capsule::{Capsule, LengthCheck};
use super::context::Context;
use super::controller::{Controller, ControllerType, HostIdentity};
use super::queue::Queue;
use super::work::Work;
use crate::auth::chap::Names;
use crate::command::FabricsCommand;
use crate::status::Status;
use crate::wire::fabrics::{CNTLID_DYNAMIC, ConnectData, ConnectField, DISCOVERY_NQN, cattr};
use crate::wire::opcode;
use crate::wire::text::NqnError;

/// CNTLID for any controller in the static controller model (NVMe Base 2.0 §6.3).
const CNTLID_STATIC_ANY: u16 = 0xfffe;

/// The queue of a Connect, with its authentication if the host has DH-HMAC-CHAP keys.
type Connected = (Binding, Option<Box<InBandAuth>>);

/// Handles a command on a connection that is not a queue yet. Only Connect is valid.
pub(super) fn command(queue: &mut Queue, capsule: Capsule<'_>) -> Result<(), Status> {
    let (tag, sqe) = (capsule.tag(), capsule.sqe());
    if sqe.opcode != opcode::fabrics::OPCODE {
        return Err(Status::COMMAND_SEQUENCE_ERROR.dnr());
    }
    let FabricsCommand::Connect { recfmt, qid, sqsize, cattr, kato } = FabricsCommand::parse(sqe)?
    else {
        return Err(Status::COMMAND_SEQUENCE_ERROR.dnr());
    };
    if recfmt != 0 {
        return Err(Status::CONNECT_INCOMPATIBLE_FORMAT.dnr());
    }
    let Some(entries) = entries(qid, sqsize) else {
        let (status, dw0) = ConnectRefusal::from(ConnectField::Sqsize).response();
        queue.finish_with(tag, status, dw0.into());
        return Ok(());
    };
    let flow_control = cattr & cattr::DISABLE_SQ_FLOW_CONTROL == 0;
    let connect = Connect::new(qid, entries, flow_control, kato);
    queue.set_work(tag, Work::Connect(Box::new(connect)));
    queue.receive_data(capsule, size_of::<ConnectData>() as u64, LengthCheck::Exact)
}

/// Returns the queue size for SQSIZE, or `None` if it is invalid. MQES limits I/O queues only.
fn entries(qid: u16, sqsize: u32) -> Option<u16> {
    let largest = if qid == 0 { u32::from(u16::MAX) } else { QUEUE_ENTRIES.into() };
    let entries = Some(sqsize).filter(|sqsize| (2..=largest).contains(sqsize))?;
    // A larger Admin queue is accepted; no more entries than this are used at once.
    u16::try_from(entries.min(QUEUE_ENTRIES.into())).ok()
}

/// Makes the queue of a Connect. Returns `None` while orphaned writes to the disk are in flight.
pub(super) fn establish(
    cx: &Context,
    connect: &Connect,
    data: &ConnectData,
) -> Result<Option<Connected>, ConnectRefusal> {
    match connect.qid() {
        0 => establish_admin(cx, connect, data),
        _ => establish_io(cx, connect, data),
    }
}

/// Creates a controller with its Admin queue. Returns `None` while orphaned writes to the disk are
/// in flight: a late write must not overwrite newer data of any host.
fn establish_admin(
    cx: &Context,
    connect: &Connect,
    data: &ConnectData,
) -> Result<Option<Connected>, ConnectRefusal> {
    let subsystem = data.subnqn().map_err(|_| ConnectField::Subnqn)?;
    let host = host_nqn(data)?;
    if !matches!(data.cntlid.get(), CNTLID_DYNAMIC | CNTLID_STATIC_ANY) {
        return Err(ConnectField::Cntlid.into());
    }
    let keys = cx.check_host(host, subsystem)?;
    let (kind, grant) = match keys {
        Some(InBandKey { required: true, .. }) => (kind_of(subsystem), None),
        _ => cx.find_subsystem(subsystem, host).map_err(|refusal| cx.subsystem_refusal(refusal))?,
    };
    if cx.has_orphaned_writes(subsystem) {
        return Ok(None);
    }
    let identity = HostIdentity::new(host, data.hostid);
    let (peer, keep_alive, now) = (cx.peer(), connect.keep_alive(), cx.now());
    let new_controller = |id| Controller::new(id, kind, subsystem, identity, peer, keep_alive, now);
    let controller = cx.target().register(kind, peer.tenant(), new_controller);
    // Retryable: another controller may end.
    let controller = controller.ok_or_else(|| {
        let reason = "too many controllers for this host";
        ConnectRefusal::new(Status::CONNECT_CONTROLLER_BUSY, 0, Some(reason))
    })?;
    let binding = Binding::new(connect, controller, grant);
    Ok(Some((binding, keys.map(|keys| in_band_auth(cx, connect, data, keys)))))
}

/// Makes an I/O queue of a controller. Returns `None` while orphaned writes to the disk are in
/// flight, such as those of an earlier queue with the same identifier.
fn establish_io(
    cx: &Context,
    connect: &Connect,
    data: &ConnectData,
) -> Result<Option<Connected>, ConnectRefusal> {
    let subsystem = data.subnqn().map_err(|_| ConnectField::Subnqn)?;
    let host = host_nqn(data)?;
    let keys = cx.check_host(host, subsystem)?;
    let controller = find_controller(cx, data, subsystem, host)?;
    if controller.kind() == ControllerType::Discovery {
        return Err(ConnectField::Qid.into());
    }
    if !controller.is_ready() {
        return Err(Status::COMMAND_SEQUENCE_ERROR.into());
    }
    if !controller.accepts_channel(cx.channel()) {
        return Err(ConnectRefusal::access_denied(
            "all its connections must use TLS with the same key, or none",
        ));
    }
    let due = keys.is_some_and(|keys| keys.required);
    let grant = if due { None } else { cx.current_grant(&controller) };
    if connect.qid() > controller.granted_queues() {
        return Err(ConnectField::Qid.into());
    }
    if cx.has_orphaned_writes(subsystem) {
        return Ok(None);
    }
    let mut binding = Binding::new(connect, controller, grant);
    // An unauthenticated host must not occupy the queue identifier.
    if !due && !binding.take_qid() {
        return Err(Status::COMMAND_SEQUENCE_ERROR.into());
    }
    Ok(Some((binding, keys.map(|keys| in_band_auth(cx, connect, data, keys)))))
}

/// Returns the controller that an I/O queue joins: of the same subsystem and host.
fn find_controller(
    cx: &Context,
    data: &ConnectData,
    subsystem: &str,
    host: &str,
) -> Result<Arc<Controller>, ConnectRefusal> {
    let controller = cx.target().find(data.cntlid.get()).ok_or(ConnectField::Cntlid)?;
    let mismatches = [
        (controller.subsystem() != subsystem, ConnectField::Subnqn),
        (controller.host().nqn() != host, ConnectField::Hostnqn),
        (*controller.host().id() != data.hostid, ConnectField::Hostid),
    ];
    match mismatches.into_iter().find(|(differs, _)| *differs) {
        // With keys required, the status must not disclose controllers of other hosts.
        Some(_) if cx.requires_keys() => Err(ConnectField::Cntlid.into()),
        Some((_, field)) => Err(field.into()),
        None => Ok(controller),
    }
}

fn in_band_auth(
    cx: &Context,
    connect: &Connect,
    data: &ConnectData,
    keys: InBandKey,
) -> Box<InBandAuth> {
    let name = |nqn: Result<&str, NqnError>| nqn.unwrap_or_default().to_owned();
    let names = Names { host: name(data.hostnqn()), subsystem: name(data.subnqn()) };
    Box::new(InBandAuth::new(cx, connect.qid(), names, keys))
}

fn kind_of(subsystem: &str) -> ControllerType {
    if subsystem == DISCOVERY_NQN { ControllerType::Discovery } else { ControllerType::Io }
}

/// Returns the host NQN. It may be empty: SPDK's perf sends none by default.
fn host_nqn(data: &ConnectData) -> Result<&str, ConnectField> {
    match data.hostnqn() {
        Err(NqnError::Empty) => Ok(""),
        nqn => nqn.map_err(|_| ConnectField::Hostnqn),
    }
}
