//! What somebody on the wire might try who does not know the code: X08.

use export::{Access, Event, Reason};
use pair::client::{Failure, Step};
use pair::{Verdict, Why};

use crate::world::{BINDING, World, disk};

fn said(client: &mut pair::Client) -> Vec<u8> {
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

/// A frame with another kind.
fn as_kind(frame: &[u8], kind: u8) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[1] = kind;
    frame
}

/// The share in a Hello, as an Answer has it.
fn as_answer(hello: &[u8]) -> Vec<u8> {
    let mut answer = vec![1, 2, 33, 0, 32];
    answer.extend(&hello[7..39]);
    answer
}

/// A proof, as a Welcome has it.
fn as_welcome(confirm: &[u8]) -> Vec<u8> {
    let mut welcome = vec![1, 4, 65 + 6, 0];
    welcome.extend(&confirm[4..]);
    welcome.extend(b"\x06laptop");
    welcome
}

/// X08: what was recorded is of no use, even if the code were the same once more.
#[test]
fn x08_a_replay_is_refused() {
    let mut world = World::new();
    let code = world.digits();
    let (mut conn, mut client) = (world.open(), world.client(&code));
    let hello = said(&mut client);
    conn.receive(world.now, &hello);
    client.receive(&std::mem::take(&mut conn.sent));
    let confirm = said(&mut client);
    conn.receive(world.now, &confirm);
    assert!(conn.knock().is_some());

    // At the same server.
    let mut again = world.open();
    again.receive(world.now, &hello);
    again.receive(world.now, &confirm);
    assert_eq!((again.closed, again.whys()), (Some(Reason::Refused), vec!["wrong code"]));

    // At a server that shows the same code, with other randomness for the exchange.
    let mut other = World::new();
    assert_eq!(other.digits(), code);
    let mut burnt = other.open();
    burnt.receive(other.now, &said(&mut world.client(&code)));
    drop(burnt);
    other.server = {
        let mut draws = 0;
        let mut same = crate::world::random(1);
        let draw: pair::Random = Box::new(move |bytes| {
            draws += 1;
            same(bytes);
            if draws > 2 {
                bytes[0] ^= 1;
            }
        });
        pair::PairingServer::new("laptop", other.now, draw)
    };
    assert_eq!(other.digits(), code);
    let mut again = other.open();
    again.receive(other.now, &hello);
    again.receive(other.now, &confirm);
    assert_eq!((again.closed, again.whys()), (Some(Reason::Refused), vec!["wrong code"]));

    // The target's part, to a client.
    let mut client = world.client(&code);
    said(&mut client);
    let recorded = conn.sent.clone();
    client.receive(&recorded);
    assert!(matches!(client.poll(), Some(Step::Failed(Failure::Violation(_)))));
}

/// X08: a client's own words are no proof to it.
#[test]
fn x08_a_reflection_is_refused() {
    let mut world = World::new();
    let code = world.digits();
    let mut client = world.client(&code);
    let hello = said(&mut client);
    client.receive(&as_answer(&hello));
    let confirm = said(&mut client);
    client.receive(&as_welcome(&confirm));
    assert_eq!(failure(&mut client), Failure::Impostor);

    // And a target's own words are none to it.
    let (mut conn, mut client) = (world.open(), world.client(&code));
    conn.receive(world.now, &said(&mut client));
    let mut hello = vec![1, 1, 43, 0, 1, 0];
    hello.extend(&conn.sent[4..]);
    hello.extend(b"\x05nqn.x\x01n\0");
    conn.receive(world.now, &hello);
    assert_eq!(conn.closed, Some(Reason::Violation));
    world.wait();
    let mut conn2 = world.open();
    conn2.receive(world.now, &as_kind(&conn.sent, 1));
    assert_eq!(conn2.closed, Some(Reason::Violation));
}

/// X08: two who both know the code and both ask agree on nothing, even if somebody turns their roles round.
#[test]
fn x08_swapped_roles_are_refused() {
    let mut world = World::new();
    let code = world.digits();
    let (mut one, mut two) = (world.client(&code), world.client(&code));
    let (hello_one, hello_two) = (said(&mut one), said(&mut two));
    one.receive(&as_answer(&hello_two));
    two.receive(&as_answer(&hello_one));
    let (confirm_one, confirm_two) = (said(&mut one), said(&mut two));
    one.receive(&as_welcome(&confirm_two));
    two.receive(&as_welcome(&confirm_one));
    assert_eq!(failure(&mut one), Failure::Impostor);
    assert_eq!(failure(&mut two), Failure::Impostor);
}

/// X08: somebody between two TLS channels, one to each side, who hands on every byte.
#[test]
fn x08_a_relay_between_two_channels_is_refused() {
    let mut world = World::new();
    for long in [false, true] {
        let code = if long { world.long() } else { world.digits() };
        let mut binding = BINDING;
        binding[31] ^= 1;
        let (mut conn, mut client) = (world.open(), world.client_with(&code, binding, false));
        let found = world.talk(&mut conn, &mut client, 9999);
        assert_eq!(found, [Step::Failed(Failure::Refused(Why::WrongCode, 0))]);
        assert!(conn.knock().is_none());
        world.wait();
    }
}

/// Whatever is changed on the way in whatever frame is found out before anything is given.
#[test]
fn x08_every_changed_byte_is_found_out() {
    let mut seed = 1;
    let mut tries = |from_host: bool, frame: usize, byte: usize, bit: u8| -> Option<bool> {
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
                    Step::Welcomed { .. } | Step::Failed(_) => {}
                }
            }
            if conn.knock().is_some() && target_frames == 2 {
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
                let Some(paired) = tries(from_host, frame, byte, 1 << (byte % 8)) else { break };
                assert!(!paired, "host {from_host}, frame {frame}, byte {byte}");
                count += 1;
            }
        }
    }
    assert!(count > 100, "{count}");
    // The same without a change does pair.
    assert_eq!(tries(true, 99, 0, 0), None);
}

/// What the host claims of itself is part of what is proven: nobody puts another name in.
#[test]
fn the_hosts_name_and_wish_are_bound_to_the_proof() {
    let mut world = World::new();
    for change in 0..2 {
        let code = world.digits();
        let (mut conn, mut client) = (world.open(), world.client(&code));
        let mut hello = said(&mut client);
        if change == 0 {
            hello[5] = 1; // asks for write access
        } else {
            let last = hello.len() - 1;
            hello[last] ^= 1;
        }
        conn.receive(world.now, &hello);
        client.receive(&std::mem::take(&mut conn.sent));
        conn.receive(world.now, &said(&mut client));
        assert_eq!(conn.whys(), ["wrong code"]);
        assert!(!conn.events.iter().any(|event| matches!(event, Event::PairingRequested { .. })));
        world.wait();
    }
}

/// A target that does not know the code gets one guess a connection, and nothing to keep.
#[test]
fn a_target_that_does_not_know_the_code_is_found_out() {
    let mut world = World::new();
    let mut impostor = World::seeded(77);
    let code = world.digits();
    let (mut conn, mut client) = (impostor.open(), world.client(&code));
    let hello = said(&mut client);
    conn.receive(impostor.now, &hello);
    client.receive(&std::mem::take(&mut conn.sent));
    let confirm = said(&mut client);
    // It goes on as if all were well.
    client.receive(&as_welcome(&confirm));
    assert_eq!(failure(&mut client), Failure::Impostor);
    impostor.wait();
    for share in [[0; 32], [0xff; 32]] {
        let mut client = world.client(&code);
        said(&mut client);
        let mut answer = vec![1, 2, 33, 0, 32];
        answer.extend(share);
        client.receive(&answer);
        assert_eq!(failure(&mut client), Failure::Impostor);
    }
}
