//! Authentication commands and messages, valid and invalid (NVMe Base 2.0 §6.1, §6.2, §8.13).

use std::time::Duration;

use export::{Access, Event, Host, KeyId, Reason, Rule, Secret};
use nvme::auth::chap::Key;
use nvme::auth::credential::{chap_controller, chap_host};
use nvme::auth::{AuthConfig, Group, Hash};
use nvme::command::FabricsCommand;
use nvme::status::Status;
use nvme::wire::auth::{
    Explanation, FromController, FromHost, Negotiate, Reply as Answer, SECP, SPSP,
};
use nvme::wire::fabrics::ConnectResponse;
use nvme::wire::{Sgl, Sqe};
use zerocopy::IntoBytes;

use crate::raw_host::{HOST, PLAIN, connect_data, connect_sqe, data_of, read};
use crate::world::{Id, World};

/// The default host, whose secret consists of ones.
pub(crate) fn host() -> Host {
    let key = |byte| Key { hash: Some(Hash::Sha256), key: Secret::new(vec![byte; 32]) }.emit();
    Host {
        id: HOST.to_owned(),
        name: "laptop".to_owned(),
        key: KeyId::new(1),
        credentials: vec![chap_host(key(1), false), chap_controller(key(2))],
        rules: vec![Rule { disk: None, access: Access::Writable }],
    }
}

fn world() -> World {
    World::with_keys(host(), AuthConfig::default())
}

/// Returns a connection of the host before authentication.
fn unauthenticated(world: &mut World) -> Id {
    let id = world.initialized(PLAIN);
    let cqe = world.ask(id, &connect_sqe(0, 32), connect_data(0xffff).as_bytes());
    assert_eq!(cqe.outcome(), Status::SUCCESS);
    assert!(ConnectResponse::parse(cqe.dw0.get()).authentication_required);
    id
}

fn send_sqe(len: usize) -> Sqe {
    let tl = u32::try_from(len).unwrap();
    FabricsCommand::AuthSend { secp: SECP, spsp: SPSP, tl }.emit().with_cid(1)
}

fn receive_sqe(al: u32) -> Sqe {
    FabricsCommand::AuthReceive { secp: SECP, spsp: SPSP, al }.emit().with_cid(2)
}

fn send(world: &mut World, id: Id, message: &[u8]) -> Status {
    world.ask(id, &send_sqe(message.len()), message).outcome()
}

/// Returns the failure in the next message, after which the connection closes.
fn failure(world: &mut World, id: Id) -> Explanation {
    let bytes = world.fetch(id, &receive_sqe(4096));
    let Ok((_, FromController::Failure1(reason))) = FromController::parse(&bytes) else {
        panic!("{bytes:02x?}")
    };
    assert_eq!(world.conn(id).closed, Some(Reason::Refused));
    reason
}

fn offer() -> Vec<u8> {
    FromHost::Negotiate(Negotiate { sc_c: 0, hashes: &[1, 2, 3], groups: &[0, 1] }).emit(9)
}

fn answer() -> Vec<u8> {
    let mut public = [0; 256];
    public[255] = 2;
    let response = &[0; 64];
    let answer = Answer { sequence: 0, response, challenge: None, public: &public };
    FromHost::Reply(answer).emit(9)
}

#[test]
fn auth_commands_require_secp_spsp_and_a_length() {
    let mut world = world();
    let id = unauthenticated(&mut world);
    let invalid = Status::INVALID_FIELD.dnr();
    for (secp, spsp, len) in
        [(0, SPSP, 72), (SECP, 0x0100, 72), (SECP, 0x0001, 72), (SECP, SPSP, 0), (SECP, SPSP, 4097)]
    {
        let send = FabricsCommand::AuthSend { secp, spsp, tl: len }.emit();
        let data = vec![0; len as usize];
        assert_eq!(world.ask(id, &send, &data).outcome(), invalid, "{secp} {spsp} {len}");
        let receive = FabricsCommand::AuthReceive { secp, spsp, al: len }.emit();
        assert_eq!(world.status(id, &receive), invalid, "{secp} {spsp} {len}");
    }
    // A data pointer with another length.
    let other = send_sqe(72).with_data(Sgl::in_capsule(0, 80));
    let length = Status::DATA_SGL_LENGTH_INVALID.dnr();
    assert_eq!(world.ask(id, &other, &[0; 80]).outcome(), length);
    assert_eq!(world.status(id, &receive_sqe(64).with_data(Sgl::transport(16))), length);
    assert_eq!(world.conn(id).closed, None);
    world.end_all();
}

#[test]
fn unexpected_messages_end_the_connection() {
    for message in [
        FromHost::Success2.emit(9),
        answer(),
        FromHost::Failure2(Explanation::Failed).emit(9),
        vec![9; 6],
        vec![7],
    ] {
        let mut world = world();
        let id = unauthenticated(&mut world);
        assert_eq!(send(&mut world, id, &message), Status::SUCCESS);
        let wrong = [Explanation::IncorrectMessage, Explanation::IncorrectPayload];
        assert!(wrong.contains(&failure(&mut world, id)));
        assert!(matches!(world.conn(id).events[..], [Event::Refused { .. }]));
        world.end_all();
    }
    // No message to read.
    let mut world = world();
    let id = unauthenticated(&mut world);
    assert_eq!(failure(&mut world, id), Explanation::IncorrectMessage);
    world.end_all();
}

/// X32: list and value lengths beyond the message.
#[test]
fn x32_messages_with_excessive_lengths_end_the_connection() {
    for (at, byte) in [(10, 31), (11, 31), (10, 255), (7, 0), (8, 9)] {
        let mut world = world();
        let id = unauthenticated(&mut world);
        let mut message = offer();
        message[at] = byte;
        assert_eq!(send(&mut world, id, &message), Status::SUCCESS);
        failure(&mut world, id);
        world.end_all();
    }
    for (at, byte) in [(6, 255), (6, 0), (10, 255), (11, 255), (4, 1)] {
        let mut world = world();
        let id = unauthenticated(&mut world);
        send(&mut world, id, &offer());
        world.fetch(id, &receive_sqe(4096));
        let mut message = answer();
        message[at] = byte;
        assert_eq!(send(&mut world, id, &message), Status::SUCCESS);
        failure(&mut world, id);
        world.end_all();
    }
    for len in [1, 5, 8, 71] {
        let mut world = world();
        let id = unauthenticated(&mut world);
        send(&mut world, id, &offer()[..len]);
        assert_eq!(failure(&mut world, id), Explanation::IncorrectPayload);
        world.end_all();
    }
}

/// X38: Authentication Receive returns the message and zeros, never uninitialized memory.
#[test]
fn x38_auth_receive_returns_the_message_and_zeros() {
    for al in [512, 4096] {
        let mut world = world();
        let id = unauthenticated(&mut world);
        send(&mut world, id, &offer());
        let bytes = world.fetch(id, &receive_sqe(al));
        assert_eq!(bytes.len(), al as usize);
        let message = 16 + Hash::Sha512.size() + Group::Ffdhe2048.size();
        assert!(bytes[message..].iter().all(|&byte| byte == 0));
        let poisoned = bytes.windows(8).any(|run| run == [testkit::POISON; 8]);
        assert!(!poisoned);
        world.end_all();
    }
    // Allocation length too small: the message stays available.
    let mut world = world();
    let id = unauthenticated(&mut world);
    send(&mut world, id, &offer());
    assert_eq!(world.status(id, &receive_sqe(16)), Status::INVALID_FIELD.dnr());
    assert_eq!(world.fetch(id, &receive_sqe(4096))[1], 1);
    world.end_all();
}

/// A failure is reported once.
#[test]
fn message_after_a_failure_closes_the_connection() {
    let mut world = world();
    let id = unauthenticated(&mut world);
    for _ in 0..2 {
        assert_eq!(send(&mut world, id, &[7]), Status::SUCCESS);
    }
    assert_eq!(world.conn(id).closed, Some(Reason::Refused));
    assert!(matches!(world.conn(id).events[..], [Event::Refused { .. }]));
    world.end_all();
}

/// A peer cannot cause unlimited calculation by repeated negotiation.
#[test]
fn negotiations_are_limited() {
    let mut world = world();
    let id = unauthenticated(&mut world);
    let mut began = 0;
    loop {
        send(&mut world, id, &offer());
        let bytes = world.fetch(id, &receive_sqe(4096));
        match FromController::parse(&bytes).unwrap().1 {
            FromController::Challenge(_) => began += 1,
            _ => break,
        }
        assert!(began < 20);
    }
    assert_eq!(began, 2);
    assert_eq!(world.conn(id).closed, Some(Reason::Refused));
    world.end_all();
}

/// A message by R2T instead of in-capsule.
#[test]
fn auth_message_can_be_sent_by_r2t() {
    let mut world = world();
    let id = unauthenticated(&mut world);
    let message = offer();
    let len = u32::try_from(message.len()).unwrap();
    let sqe = send_sqe(message.len()).with_data(Sgl::transport(len));
    let replies = world.command(id, &sqe, &[]);
    let [crate::world::Reply::R2t { ttag, .. }] = replies[..] else { panic!("{replies:?}") };
    world.send(id, &crate::raw_host::h2c(PLAIN, 1, ttag, 0, &message, true));
    assert_eq!(world.replies(id).len(), 1);
    assert_eq!(world.fetch(id, &receive_sqe(4096))[1], 1);
    world.end_all();
}

/// During and after failed authentication no other command is accepted; there is a timeout of ten
/// seconds.
#[test]
fn unauthenticated_host_is_restricted_and_times_out() {
    let mut world = world();
    let id = unauthenticated(&mut world);
    let required = Status::AUTHENTICATION_REQUIRED.dnr();
    send(&mut world, id, &offer());
    assert_eq!(world.status(id, &crate::raw_host::property_get(0x14)), required);
    assert_eq!(world.status(id, &read(0, 1)), required);
    world.advance(Duration::from_secs(10));
    assert_eq!(world.conn(id).closed, Some(Reason::Timeout));
    assert!(matches!(world.conn(id).events[..], [Event::Refused { .. }]));
    world.end_all();
}

/// Without required authentication, the commands are invalid.
#[test]
fn listener_without_auth_requires_no_authentication() {
    let mut world = World::new();
    let (admin, io) = world.attached();
    for id in [admin, io] {
        let message = offer();
        let status = send(&mut world, id, &message);
        assert!(!status.is_success() && status.is_dnr());
        assert!(!world.status(id, &receive_sqe(4096)).is_success());
    }
    let replies = world.command(io, &read(0, 1), &[]);
    assert_eq!(data_of(&replies, 0).len(), 512);
    world.end_all();
}
