//! Tests of both sides of DH-HMAC-CHAP together, and of invalid messages.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use export::{KeyId, Secret};

use super::chap::{Key, Names};
use super::{
    AuthConfig, ControllerAuth, Credentials, DhExchange, Group, Hash, HostAction, HostAuth, Keys,
    Progress, QueueContext,
};
use crate::wire::auth::{Challenge, Explanation, FromController, FromHost, Negotiate, Reply, sc_c};

/// Deterministic bytes that differ from call to call.
fn deterministic(bytes: &mut [u8]) -> bool {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed).to_le_bytes();
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte =
            number[at % 8].wrapping_mul(73).wrapping_add(u8::try_from(at * 31 % 256).unwrap() | 1);
    }
    true
}

fn names() -> Names {
    Names { host: "nqn.host".to_owned(), subsystem: "nqn.disk".to_owned() }
}

fn key(byte: u8) -> Key {
    Key { hash: Some(Hash::Sha256), key: Secret::new(vec![byte; 32]) }
}

fn keys(controller: Option<u8>) -> Keys {
    let controller = controller.map(key);
    Keys { id: KeyId::new(5), host: key(1), controller, compat: false }
}

const ADMIN: QueueContext = QueueContext { admin: true, secured: false };

fn config() -> AuthConfig {
    AuthConfig { random: deterministic, ..AuthConfig::default() }
}

fn controller() -> ControllerAuth {
    ControllerAuth::new(names(), config(), ADMIN)
}

fn credentials() -> Credentials {
    Credentials { random: deterministic, ..Credentials::new(key(1)) }
}

/// Outcome of an exchange on both sides.
#[derive(Debug, Default)]
struct Outcome {
    authenticated: Option<KeyId>,
    failed: Option<Explanation>,
    aborted: bool,
    done: bool,
    psks: [Vec<super::psk::Psk>; 2],
}

fn run(controller: &mut ControllerAuth, keys: &Keys, credentials: Credentials) -> Outcome {
    let mut outcome = Outcome::default();
    let (mut host, message) = HostAuth::open(names(), Arc::new(credentials), 7);
    let mut next = Some(message);
    while let Some(message) = next.take() {
        match controller.send(&message, Some(keys)) {
            Progress::Continue => {}
            Progress::Authenticated(authentication) => {
                (outcome.authenticated, outcome.psks[0]) =
                    (Some(authentication.key), authentication.psks)
            }
            Progress::Failed(reason) => outcome.failed = Some(reason),
            Progress::AbortedByHost => outcome.aborted = true,
        }
        if outcome.done
            || outcome.aborted
            || (outcome.authenticated.is_some() && outcome.failed.is_some())
        {
            break;
        }
        match host.receive(&controller.receive(4096).unwrap()) {
            HostAction::Send(message) => next = Some(message),
            HostAction::Done(message, psks) => {
                (outcome.done, outcome.psks[1], next) = (true, psks, message);
            }
            HostAction::Failed(message, reason) => {
                (outcome.failed, next) = (Some(outcome.failed.unwrap_or(reason)), message);
            }
        }
    }
    outcome
}

#[test]
fn all_groups_and_hashes_in_both_directions() {
    for group in Group::ALL {
        for hash in Hash::ALL {
            for both in [false, true] {
                let config = AuthConfig { hashes: vec![hash], groups: vec![group], ..config() };
                let mut controller = ControllerAuth::new(names(), config, ADMIN);
                let mut credentials = credentials();
                credentials.groups = Group::ALL.to_vec();
                credentials.controller = both.then(|| key(2));
                let outcome = run(&mut controller, &keys(Some(2)), credentials);
                let authenticated = (outcome.authenticated, outcome.done, outcome.failed);
                assert_eq!(
                    authenticated,
                    (Some(KeyId::new(5)), true, None),
                    "{group:?} {hash:?} {both}"
                );
            }
        }
    }
}

/// X13: wrong secrets on either side, and a controller without a secret.
#[test]
fn x13_a_wrong_key_does_not_authenticate() {
    let wrong = Credentials { key: key(9), ..credentials() };
    let outcome = run(&mut controller(), &keys(None), wrong);
    assert_eq!((outcome.authenticated, outcome.failed), (None, Some(Explanation::Failed)));
    let demanding = |byte| Credentials { controller: Some(key(byte)), ..credentials() };
    let outcome = run(&mut controller(), &keys(Some(2)), demanding(3));
    assert_eq!((outcome.authenticated, outcome.aborted, outcome.done), (None, true, false));
    let outcome = run(&mut controller(), &keys(None), demanding(2));
    assert_eq!((outcome.authenticated, outcome.failed), (None, Some(Explanation::Failed)));
    // No secrets configured.
    let mut controller = controller();
    let offer = FromHost::Negotiate(Negotiate { sc_c: 0, hashes: &[1], groups: &[1] }).emit(1);
    assert!(matches!(controller.send(&offer, None), Progress::Failed(Explanation::Failed)));
}

/// X13: the NULL group is refused unless it is allowed, and avoided if the host offers another.
#[test]
fn x13_the_null_group_is_refused_unless_allowed() {
    let null = || Credentials { groups: vec![Group::Null], ..credentials() };
    let outcome = run(&mut controller(), &keys(None), null());
    assert_eq!(outcome.failed, Some(Explanation::GroupUnusable));
    let mut permissive = ControllerAuth::new(names(), config().allow_null_group(), ADMIN);
    assert!(run(&mut permissive, &keys(None), null()).done);
    let offers = |sc_c, groups: &'static [u8]| Negotiate { sc_c, hashes: &[1, 2, 3], groups };
    let permissive = config().allow_null_group();
    assert_eq!(permissive.group(&offers(0, &[0, 1, 2, 3, 4, 5])), Some(Group::Ffdhe2048));
    assert_eq!(permissive.group(&offers(0, &[5, 4])), Some(Group::Ffdhe6144));
    assert_eq!(permissive.group(&offers(0, &[0, 77])), Some(Group::Null));
    assert_eq!(permissive.group(&offers(2, &[0, 1, 2, 3])), Some(Group::Ffdhe3072));
    assert_eq!(permissive.group(&offers(2, &[0, 1])), Some(Group::Ffdhe2048));
    assert_eq!(permissive.group(&offers(2, &[0])), None);
    assert_eq!(permissive.hash(&offers(0, &[1])), Some(Hash::Sha512));
    assert_eq!(permissive.hash(&offers(2, &[1])), Some(Hash::Sha256));
}

#[test]
fn authentication_can_be_repeated_on_a_queue() {
    let mut controller = controller();
    for _ in 0..3 {
        assert!(run(&mut controller, &keys(None), credentials()).done);
    }
    assert!(!controller.is_closed());
}

#[test]
fn both_sides_generate_the_same_psks() {
    let ask = || Credentials { concatenate: true, ..credentials() };
    let outcome = run(&mut controller(), &keys(None), ask());
    assert!(outcome.done);
    let [ours, theirs] = &outcome.psks;
    assert_eq!(ours, theirs);
    assert_eq!(ours[0].hash, Hash::Sha256);
    assert!(ours[0].identity.starts_with("NVMe1G01 nqn.host nqn.disk "));
    // Bidirectional authentication together with concatenation.
    let demanding = |byte| Credentials { controller: Some(key(byte)), ..ask() };
    let outcome = run(&mut controller(), &keys(Some(2)), demanding(2));
    assert!(outcome.done && outcome.psks[0] == outcome.psks[1] && !outcome.psks[0].is_empty());
    let outcome = run(&mut controller(), &keys(Some(2)), demanding(3));
    assert!(outcome.aborted && outcome.psks == [vec![], vec![]]);
    // Each exchange generates others.
    let again = run(&mut controller(), &keys(None), ask());
    assert_ne!(again.psks[0], outcome.psks[0]);
    for (context, tls) in [
        (QueueContext { admin: false, secured: false }, true),
        (QueueContext { admin: true, secured: true }, true),
        (ADMIN, false),
    ] {
        let config = AuthConfig { tls, ..config() };
        let mut controller = ControllerAuth::new(names(), config, context);
        let outcome = run(&mut controller, &keys(None), ask());
        assert_eq!(outcome.failed, Some(Explanation::ConcatenationMismatch), "{context:?}");
    }
}

fn offer(sc_c: u8) -> Vec<u8> {
    FromHost::Negotiate(Negotiate { sc_c, hashes: &[1], groups: &[1] }).emit(7)
}

/// Returns a controller that expects a reply, and its challenge.
fn challenge_sent() -> (ControllerAuth, Vec<u8>) {
    let mut controller = controller();
    assert!(matches!(controller.send(&offer(0), Some(&keys(None))), Progress::Continue));
    let challenge = controller.receive(4096).unwrap();
    (controller, challenge)
}

fn failure(controller: &mut ControllerAuth, message: &[u8]) -> Option<Explanation> {
    let Progress::Failed(reason) = controller.send(message, Some(&keys(None))) else { return None };
    let reply = controller.receive(4096).unwrap();
    assert_eq!(FromController::parse(&reply).unwrap().1, FromController::Failure1(reason));
    assert!(controller.is_closed());
    Some(reason)
}

#[test]
fn unexpected_messages_fail_the_exchange() {
    let reply = Reply { sequence: 0, response: &[0; 32], challenge: None, public: &[] };
    let messages = [
        FromHost::Reply(reply).emit(0),
        FromHost::Success2.emit(0),
        FromHost::Failure2(Explanation::Failed).emit(0),
        vec![1, 0, 0, 0, 0, 0],
        vec![0, 9, 0, 0, 0, 0],
    ];
    for message in &messages {
        assert_eq!(failure(&mut controller(), message), Some(Explanation::IncorrectMessage));
    }
    // The challenge was not read yet.
    let mut early = controller();
    early.send(&offer(0), Some(&keys(None)));
    let reply = FromHost::Reply(reply).emit(7);
    assert_eq!(failure(&mut early, &reply), Some(Explanation::IncorrectMessage));
    // No message to read.
    let mut idle = controller();
    let reply = idle.receive(4096).unwrap();
    let reason = FromController::Failure1(Explanation::IncorrectMessage);
    assert_eq!(FromController::parse(&reply), Ok((0, reason)));
    assert!(idle.is_closed());
}

#[test]
fn replies_with_invalid_fields_fail_the_exchange() {
    let public = DhExchange::generate(Group::Ffdhe2048, &[3; super::PRIVATE_KEY_LEN])
        .unwrap()
        .public()
        .to_vec();
    let good = Reply { sequence: 0, response: &[0; 32], challenge: None, public: &public };
    let zero = vec![0; 256];
    let mut last = vec![0xff; 256];
    last[255] = 0xfe;
    let long = vec![2; 300];
    for (reply, t_id, reason) in [
        (good, 7, Explanation::Failed),
        (good, 8, Explanation::IncorrectPayload),
        (Reply { response: &[0; 48], ..good }, 7, Explanation::IncorrectPayload),
        (Reply { response: &[], ..good }, 7, Explanation::IncorrectPayload),
        (Reply { public: &[], ..good }, 7, Explanation::GroupUnusable),
        (Reply { public: &zero, ..good }, 7, Explanation::GroupUnusable),
        (Reply { public: &last, ..good }, 7, Explanation::GroupUnusable),
        (Reply { public: &long, ..good }, 7, Explanation::GroupUnusable),
    ] {
        let (mut controller, _) = challenge_sent();
        let message = FromHost::Reply(reply).emit(t_id);
        assert_eq!(failure(&mut controller, &message), Some(reason), "{reply:?}");
    }
    // No message is accepted after a failure.
    let (mut controller, _) = challenge_sent();
    assert!(failure(&mut controller, &[]).is_some());
    assert!(matches!(controller.send(&offer(0), Some(&keys(None))), Progress::Failed(_)));
}

/// X14: a host that reflects the controller's challenge or public value gains nothing.
#[test]
fn x14_reflected_values_are_refused() {
    let (mut controller, bytes) = challenge_sent();
    let (_, FromController::Challenge(challenge)) = FromController::parse(&bytes).unwrap() else {
        panic!("a challenge")
    };
    let reply = Reply {
        sequence: 1,
        response: &[0; 32],
        challenge: Some(challenge.challenge),
        public: challenge.public,
    };
    let message = FromHost::Reply(reply).emit(7);
    assert_eq!(failure(&mut controller, &message), Some(Explanation::GroupUnusable));
    // A host with the right secret that reflects the challenge.
    let config = AuthConfig {
        groups: vec![Group::Null],
        random: |bytes| {
            bytes.fill(0x33);
            true
        },
        ..config()
    };
    let mut controller = ControllerAuth::new(names(), config, ADMIN);
    let reflecting = Credentials {
        controller: Some(key(2)),
        groups: vec![Group::Null],
        random: |bytes| {
            bytes.fill(0x33);
            true
        },
        ..credentials()
    };
    let outcome = run(&mut controller, &keys(Some(2)), reflecting);
    assert_eq!((outcome.authenticated, outcome.failed), (None, Some(Explanation::Failed)));
}

/// X13: replayed messages do not authenticate.
#[test]
fn x13_a_replay_does_not_authenticate() {
    let mut first = controller();
    let (mut host, negotiate) = HostAuth::open(names(), Arc::new(credentials()), 7);
    first.send(&negotiate, Some(&keys(None)));
    let HostAction::Send(reply) = host.receive(&first.receive(4096).unwrap()) else {
        panic!("a reply")
    };
    assert!(matches!(first.send(&reply, Some(&keys(None))), Progress::Authenticated(_)));
    let mut second = controller();
    second.send(&negotiate, Some(&keys(None)));
    second.receive(4096).unwrap();
    assert_eq!(failure(&mut second, &reply), Some(Explanation::Failed));
}

#[test]
fn short_allocation_length_keeps_the_message() {
    let mut controller = controller();
    controller.send(&offer(0), Some(&keys(None)));
    assert_eq!(controller.receive(16 + 32 + 255), Err(16 + 32 + 256));
    assert_eq!(controller.receive(16 + 32 + 256).unwrap().len(), 16 + 32 + 256);
    assert_eq!(controller.receive(7), Err(8));
}

/// The host accepts only what it offered, and only a valid response.
#[test]
fn host_refuses_invalid_controller_messages() {
    let message = |group: u8, hash: u8, public: &[u8], sequence: u32| {
        let challenge = &[5; 32];
        let pending = Challenge { hash, group, sequence, challenge, public };
        FromController::Challenge(pending).emit(7, 32)
    };
    let public = DhExchange::generate(Group::Ffdhe2048, &[3; super::PRIVATE_KEY_LEN])
        .unwrap()
        .public()
        .to_vec();
    for (bytes, reason) in [
        (message(0, 1, &[], 1), Explanation::GroupUnusable),
        (message(9, 1, &[], 1), Explanation::GroupUnusable),
        (message(1, 9, &public, 1), Explanation::HashUnusable),
        (message(1, 2, &public, 1), Explanation::IncorrectPayload),
        (message(1, 1, &public[1..], 1), Explanation::IncorrectPayload),
        (message(1, 1, &public, 0), Explanation::IncorrectPayload),
        (message(1, 1, &[0; 256], 1), Explanation::GroupUnusable),
        (FromController::Success1(None).emit(7, 32), Explanation::IncorrectMessage),
        (FromController::Success1(None).emit(8, 32), Explanation::IncorrectPayload),
        (vec![], Explanation::IncorrectPayload),
    ] {
        let (mut host, _) = HostAuth::open(names(), Arc::new(credentials()), 7);
        let HostAction::Failed(Some(reply), found) = host.receive(&bytes) else {
            panic!("{bytes:?}")
        };
        assert_eq!(found, reason);
        assert_eq!(FromHost::parse(&reply), Ok((7, FromHost::Failure2(reason))));
    }
}

/// Sends a host's reply with these fields for ffdhe2048 and SHA-256. Returns the controller's
/// reaction.
fn replied(asks: u8, hashes: u8, sequence: u32, own: Option<&[u8]>) -> (ControllerAuth, Progress) {
    let config =
        AuthConfig { groups: vec![Group::Ffdhe2048], hashes: vec![Hash::Sha256], ..config() };
    let mut controller = ControllerAuth::new(names(), config, ADMIN);
    controller.send(&offer(asks), Some(&keys(None)));
    let bytes = controller.receive(4096).unwrap();
    let (_, FromController::Challenge(pending)) = FromController::parse(&bytes).unwrap() else {
        panic!("a challenge")
    };
    let exchange = DhExchange::generate(Group::Ffdhe2048, &[3; super::PRIVATE_KEY_LEN]).unwrap();
    let shared_secret = exchange.shared_secret(pending.public);
    let input = super::chap::ResponseInput {
        hash: Hash::Sha256,
        t_id: 7,
        sc_c: hashes,
        sequence: pending.sequence,
        challenge: pending.challenge,
        shared_secret: shared_secret.as_ref(),
    };
    let response = input.response(&key(1), &names(), super::chap::Role::Host);
    let reply = Reply { sequence, response: &response, challenge: own, public: exchange.public() };
    let sent = controller.send(&FromHost::Reply(reply).emit(7), Some(&keys(None)));
    (controller, sent)
}

/// Some Linux versions leave SC_C out of the response.
#[test]
fn response_without_sc_c_is_accepted() {
    for hashes in [sc_c::NONE, sc_c::NEW_TLS_PSK] {
        let (_, sent) = replied(sc_c::NEW_TLS_PSK, hashes, 0, Some(&[4; 32]));
        let Progress::Authenticated(authentication) = sent else { panic!("{sent:?}") };
        assert_eq!(authentication.psks.len(), 2);
    }
    let (_, sent) = replied(sc_c::NONE, sc_c::NEW_TLS_PSK, 0, None);
    assert!(matches!(sent, Progress::Failed(Explanation::Failed)), "{sent:?}");
}

/// Linux sends a sequence number in unidirectional authentication, too.
#[test]
fn sequence_number_without_a_challenge_is_ignored() {
    let (mut controller, sent) = replied(sc_c::NONE, sc_c::NONE, 0x1234_5678, None);
    assert!(matches!(sent, Progress::Authenticated(_)), "{sent:?}");
    let bytes = controller.receive(4096).unwrap();
    assert_eq!(FromController::parse(&bytes), Ok((7, FromController::Success1(None))));
    assert_eq!((bytes[6], bytes.len()), (32, 16));
    assert!(!controller.is_closed());
}
