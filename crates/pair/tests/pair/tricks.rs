//! Active attackers without the code: replay, reflection, relay, modification (X08).

use export::{Access, Event, Reason};
use pair::client::{Failure, Step};
use pair::{RefusalReason, Verdict};

use crate::world::{BINDING, World, disk};

fn sent(client: &mut pair::Client) -> Vec<u8> {
    match client.poll() {
        Some(Step::Send(bytes)) => bytes,
        other => panic!("{other:?}"),
    }
}

fn failure(client: &mut pair::Client) -> Failure {
    match client.poll() {
        Some(Step::Failed(failure)) => failure,
        other => panic!("{other:?}"),
    }
}

/// Changes the type of a frame.
fn as_kind(frame: &[u8], kind: u8) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[1] = kind;
    frame
}

/// Makes an Answer from the share of a Hello.
fn as_answer(hello: &[u8]) -> Vec<u8> {
    let mut answer = vec![1, 2, 33, 0, 32];
    answer.extend(&hello[7..39]);
    answer
}

/// Makes a Welcome from the tag of a Confirm.
fn as_welcome(confirm: &[u8]) -> Vec<u8> {
    let mut welcome = vec![1, 4, 65 + 6, 0];
    welcome.extend(&confirm[4..]);
    welcome.extend(b"\x06laptop");
    welcome
}

/// X08: recorded messages are refused, even with the same code.
#[test]
fn x08_replay_is_refused() {
    let mut world = World::new();
    let code = world.digits();
    let (mut conn, mut client) = (world.open(), world.client(&code));
    let hello = sent(&mut client);
    conn.receive(world.now, &hello);
    client.receive(&std::mem::take(&mut conn.sent));
    let confirm = sent(&mut client);
    conn.receive(world.now, &confirm);
    assert!(conn.request().is_some());

    // To the same server.
    let mut again = world.open();
    again.receive(world.now, &hello);
    again.receive(world.now, &confirm);
    assert_eq!((again.closed, again.reasons()), (Some(Reason::Refused), vec!["wrong code"]));

    // To a server with the same code and different randomness.
    let mut other = World::new();
    assert_eq!(other.digits(), code);
    let mut burnt = other.open();
    burnt.receive(other.now, &sent(&mut world.client(&code)));
    drop(burnt);
    other.server = {
        let mut draws = 0;
        let mut same = crate::world::random(1);
        let random_bytes: pair::Random = Box::new(move |bytes| {
            draws += 1;
            same(bytes);
            if draws > 2 {
                bytes[0] ^= 1;
            }
        });
        pair::PairingServer::new("laptop", other.now, random_bytes)
    };
    assert_eq!(other.digits(), code);
    let mut again = other.open();
    again.receive(other.now, &hello);
    again.receive(other.now, &confirm);
    assert_eq!((again.closed, again.reasons()), (Some(Reason::Refused), vec!["wrong code"]));

    // The target's messages to a client.
    let mut client = world.client(&code);
    sent(&mut client);
    let recorded = conn.sent.clone();
    client.receive(&recorded);
    assert!(matches!(client.poll(), Some(Step::Failed(Failure::Violation(_)))));
}

/// X08: messages reflected to their sender are refused.
#[test]
fn x08_reflection_is_refused() {
    let mut world = World::new();
    let code = world.digits();
    let mut client = world.client(&code);
    let hello = sent(&mut client);
    client.receive(&as_answer(&hello));
    let confirm = sent(&mut client);
    client.receive(&as_welcome(&confirm));
    assert_eq!(failure(&mut client), Failure::WrongPeer);

    // The same for a target.
    let (mut conn, mut client) = (world.open(), world.client(&code));
    conn.receive(world.now, &sent(&mut client));
    let mut hello = vec![1, 1, 43, 0, 1, 0];
    hello.extend(&conn.sent[4..]);
    hello.extend(b"\x05nqn.x\x01n\0");
    conn.receive(world.now, &hello);
    assert_eq!(conn.closed, Some(Reason::Violation));
    world.wait_for_retry();
    let mut conn2 = world.open();
    conn2.receive(world.now, &as_kind(&conn.sent, 1));
    assert_eq!(conn2.closed, Some(Reason::Violation));
}

/// X08: two clients with the code do not pair with each other, even if an attacker swaps the roles.
#[test]
fn x08_swapped_roles_are_refused() {
    let mut world = World::new();
    let code = world.digits();
    let (mut one, mut two) = (world.client(&code), world.client(&code));
    let (hello_one, hello_two) = (sent(&mut one), sent(&mut two));
    one.receive(&as_answer(&hello_two));
    two.receive(&as_answer(&hello_one));
    let (confirm_one, confirm_two) = (sent(&mut one), sent(&mut two));
    one.receive(&as_welcome(&confirm_two));
    two.receive(&as_welcome(&confirm_one));
    assert_eq!(failure(&mut one), Failure::WrongPeer);
    assert_eq!(failure(&mut two), Failure::WrongPeer);
}

/// X08: a man in the middle with a TLS channel to each side that relays every byte.
#[test]
fn x08_relay_between_two_channels_is_refused() {
    let mut world = World::new();
    for long in [false, true] {
        let code = if long { world.long() } else { world.digits() };
        let mut binding = BINDING;
        binding[31] ^= 1;
        let (mut conn, mut client) = (world.open(), world.client_with(&code, binding, false));
        let found = world.run(&mut conn, &mut client, 9999);
        assert_eq!(found, [Step::Failed(Failure::Refused(RefusalReason::WrongCode, 0))]);
        assert!(conn.request().is_none());
        world.wait_for_retry();
    }
}

/// Any modified byte in any frame prevents pairing.
#[test]
fn x08_every_modified_byte_is_detected() {
    let mut seed = 1;
    let mut attempts = |from_host: bool, frame: usize, byte: usize, bit: u8| -> Option<bool> {
        seed += 1;
        let mut world = World::seeded(seed);
        let code = world.digits();
        let (mut conn, mut client) = (world.open(), world.client(&code));
        let (mut host_frames, mut target_frames, mut changed) = (0, 0, false);
        let mut change = |mine: bool, count: usize, bytes: &mut Vec<u8>| {
            if mine && count == frame && byte < bytes.len() {
                bytes[byte] ^= bit;
                changed = true;
            }
        };
        let mut paired = false;
        for _ in 0..6 {
            while let Some(step) = client.poll() {
                match step {
                    Step::Send(mut bytes) => {
                        change(from_host, host_frames, &mut bytes);
                        host_frames += 1;
                        conn.receive(world.now, &bytes);
                    }
                    Step::Paired(_) => paired = true,
                    Step::Authenticated { .. } | Step::Failed(_) => {}
                }
            }
            if conn.request().is_some() && target_frames == 2 {
                let disks = vec![disk(1, Access::ReadOnly)];
                world.answer(&mut conn, Verdict::Granted { access: Access::ReadOnly, disks });
            }
            let mut sent = std::mem::take(&mut conn.sent);
            if !sent.is_empty() {
                change(!from_host, target_frames, &mut sent);
                target_frames += 1;
                client.receive(&sent);
            }
        }
        changed.then_some(paired)
    };
    let mut count = 0;
    for (from_host, frames) in [(true, 2), (false, 3)] {
        for frame in 0..frames {
            for byte in (0..).step_by(3) {
                let Some(paired) = attempts(from_host, frame, byte, 1 << (byte % 8)) else { break };
                assert!(!paired, "host {from_host}, frame {frame}, byte {byte}");
                count += 1;
            }
        }
    }
    assert!(count > 100, "{count}");
    // Without modification it pairs.
    assert_eq!(attempts(true, 99, 0, 0), None);
}

/// Name and requested access of the host are covered by key confirmation.
#[test]
fn host_name_and_requested_access_are_authenticated() {
    let mut world = World::new();
    for change in 0..2 {
        let code = world.digits();
        let (mut conn, mut client) = (world.open(), world.client(&code));
        let mut hello = sent(&mut client);
        if change == 0 {
            hello[5] = 1; // asks for write access
        } else {
            let last = hello.len() - 1;
            hello[last] ^= 1;
        }
        conn.receive(world.now, &hello);
        client.receive(&std::mem::take(&mut conn.sent));
        conn.receive(world.now, &sent(&mut client));
        assert_eq!(conn.reasons(), ["wrong code"]);
        assert!(!conn.events.iter().any(|event| matches!(event, Event::PairingRequested { .. })));
        world.wait_for_retry();
    }
}

/// A fake target without the code is detected, and gets one guess per connection.
#[test]
fn target_without_the_code_is_detected() {
    let mut world = World::new();
    let mut impostor = World::seeded(77);
    let code = world.digits();
    let (mut conn, mut client) = (impostor.open(), world.client(&code));
    let hello = sent(&mut client);
    conn.receive(impostor.now, &hello);
    client.receive(&std::mem::take(&mut conn.sent));
    let confirm = sent(&mut client);
    // It continues regardless.
    client.receive(&as_welcome(&confirm));
    assert_eq!(failure(&mut client), Failure::WrongPeer);
    impostor.wait_for_retry();
    for share in [[0; 32], [0xff; 32]] {
        let mut client = world.client(&code);
        sent(&mut client);
        let mut answer = vec![1, 2, 33, 0, 32];
        answer.extend(share);
        client.receive(&answer);
        assert_eq!(failure(&mut client), Failure::WrongPeer);
    }
}
