//! Arbitrary bytes to every wire parser: none may panic, and parsed values must round-trip.

use nvme::auth::chap::Key;
use nvme::auth::psk::{ConfiguredPsk, Identity};
use nvme::command::{Command, DataPointer};
use nvme::status::Status;
use nvme::wire::auth::{FromController, FromHost};
use nvme::wire::fabrics::{ConnectData, ConnectResponse};
use nvme::wire::feature::{AsyncEvent, NumberOfQueues, data_len};
use nvme::wire::identify::NamespaceIds;
use nvme::wire::text::{emit_ascii, parse_ascii, parse_nqn};
use nvme::wire::{Cqe, Sqe};
use zerocopy::FromBytes;

/// Runs every parser on `data`.
pub fn run(data: &[u8]) {
    command(data);
    connect(data);
    numbers(data);
    identifiers(data);
    text(data);
    messages(data);
    keys(data);
}

fn command(data: &[u8]) {
    let Ok((sqe, _)) = Sqe::read_from_prefix(data) else { return };
    let _ = DataPointer::parse(&sqe.sgl1).map(DataPointer::length);
    for qid in [0, 1] {
        let Ok(command) = Command::parse(&sqe, qid) else { continue };
        for shift in [0, 9, 12, 63, 64, 255] {
            let _ = command.data_len(shift).len();
            let _ = command.check_sgl_length(sqe.sgl1.length.get(), shift);
        }
        let emitted = match command {
            Command::Admin(command) => command.emit(),
            Command::Fabrics(command) => command.emit(),
            Command::Io(command) => command.emit(),
        };
        assert_eq!(Command::parse(&emitted, qid), Ok(command));
    }
}

fn connect(data: &[u8]) {
    let Ok((figure, _)) = ConnectData::read_from_prefix(data) else { return };
    if let (Ok(subnqn), Ok(hostnqn)) = (figure.subnqn(), figure.hostnqn()) {
        let again = ConnectData::emit(figure.hostid, figure.cntlid.get(), subnqn, hostnqn);
        let again = again.expect("parsed names are encodable");
        assert_eq!((again.subnqn(), again.hostnqn()), (Ok(subnqn), Ok(hostnqn)));
    }
}

fn numbers(data: &[u8]) {
    let Ok((cqe, _)) = Cqe::read_from_prefix(data) else { return };
    let status = cqe.outcome();
    assert_eq!(Status::from_field(status.to_field()), status);
    let _ = (status.to_string(), format!("{status:?}"), cqe.result());
    let dword = cqe.dw0.get();
    let response = ConnectResponse::parse(dword);
    assert_eq!(ConnectResponse::parse(response.emit()), response);
    let event = AsyncEvent::parse(dword);
    assert_eq!(AsyncEvent::parse(event.emit()), event);
    if let Some(queues) = NumberOfQueues::parse(dword) {
        assert_eq!(NumberOfQueues::parse(queues.emit()), Some(queues));
    }
    let _ = data_len(data[0], dword);
}

fn identifiers(data: &[u8]) {
    let ids = NamespaceIds::parse(data);
    assert_eq!(NamespaceIds::parse(&ids.emit()), ids);
}

fn text(data: &[u8]) {
    if let Some(field) = data.first_chunk() {
        let _ = parse_nqn(field);
    }
    let text = parse_ascii(data);
    let field: [u8; 40] = emit_ascii(&text);
    assert!(field.iter().all(|byte| (b' '..=b'~').contains(byte)));
}

fn messages(data: &[u8]) {
    if let Ok((t_id, message)) = FromHost::parse(data) {
        assert_eq!(FromHost::parse(&message.emit(t_id)), Ok((t_id, message)));
    }
    if let Ok((t_id, message)) = FromController::parse(data) {
        let hash_len = match message {
            FromController::Success1(Some(response)) => response.len(),
            _ => 0,
        };
        assert_eq!(FromController::parse(&message.emit(t_id, hash_len)), Ok((t_id, message)));
    }
}

fn keys(data: &[u8]) {
    if let Ok(key) = Key::parse(data) {
        assert_eq!(Key::parse(key.emit().bytes()), Ok(key));
    }
    if let Ok(key) = ConfiguredPsk::parse(data) {
        assert_eq!(ConfiguredPsk::parse(key.emit().bytes()), Ok(key));
    }
    if let Ok(identity) = std::str::from_utf8(data)
        && let Some(parts) = Identity::parse(identity)
    {
        assert!(parts.is_for(parts.host, parts.subsystem));
    }
}
