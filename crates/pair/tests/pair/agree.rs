//! Pairings that go as they should.

use std::time::Duration;

use export::{Access, Reason, Session};
use pair::client::{Failure, Step};
use pair::{MOST_DISKS, Verdict, Why, keys};

use crate::world::{HOST, World, disk};

#[test]
fn who_types_the_code_is_let_in_with_any_chunking() {
    for (step, long) in [(1, false), (2, true), (3, false), (7, true), (100, false), (9999, true)] {
        let mut world = World::new();
        let code = if long { world.long() } else { world.digits() };
        let (mut conn, mut client) = (world.open(), world.client_with(&code, [5; 32], true));
        let found = world.talk(&mut conn, &mut client, step);
        assert_eq!(found, [Step::Welcomed { target: "laptop".to_owned() }]);
        assert!(conn.session.is_established());
        let knock = conn.knock().unwrap();
        assert_eq!((knock.host.as_str(), knock.name.as_str()), (HOST, "server in the hall"));
        assert!(knock.writable);
        assert!(world.server.is_waiting(knock.number));
        let disks = vec![disk(1, Access::Writable), disk(2, Access::ReadOnly)];
        let verdict = Verdict::Granted { access: Access::Writable, disks: disks.clone() };
        assert!(world.answer(&mut conn, verdict));
        let found = world.talk(&mut conn, &mut client, step);
        let [Step::Paired(paired)] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((paired.target.as_str(), paired.access), ("laptop", Access::Writable));
        assert_eq!(paired.disks, disks);
        assert_eq!(paired.secret, knock.secret);
        assert_eq!(paired.secret.bytes().len(), 32);
        assert_eq!(
            keys::Derived::of(&paired.secret).nvme_tls(),
            keys::Derived::of(&knock.secret).nvme_tls()
        );
        assert_eq!(conn.closed, Some(Reason::Ended));
        assert_ne!(world.digits(), code);
        assert_ne!(world.long(), code);
    }
}

/// X11: each pairing has a secret of its own.
#[test]
fn x11_no_two_pairings_have_the_same_secret() {
    let mut world = World::new();
    let mut secrets = Vec::new();
    for _ in 0..6 {
        let code = world.digits();
        let (mut conn, ..) = world.attempt(&code);
        secrets.push(conn.knock().unwrap().secret.bytes().to_vec());
        world.answer(&mut conn, Verdict::Denied);
    }
    secrets.sort();
    secrets.dedup();
    assert_eq!(secrets.len(), 6);
}

/// X18: what the host asks for is a question; only the owner's answer gives anything.
#[test]
fn x18_only_the_owner_grants_write_access() {
    let mut world = World::new();
    let code = world.digits();
    let (mut conn, mut client) = (world.open(), world.client_with(&code, [5; 32], true));
    world.talk(&mut conn, &mut client, 9999);
    let verdict =
        Verdict::Granted { access: Access::ReadOnly, disks: vec![disk(1, Access::ReadOnly)] };
    world.answer(&mut conn, verdict);
    let found = world.talk(&mut conn, &mut client, 9999);
    let [Step::Paired(paired)] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(paired.access, Access::ReadOnly);

    // Whatever a host that has shown the code says besides: no kind of frame is an answer.
    for kind in 0..=255 {
        let code = world.digits();
        let (mut conn, _, _) = world.attempt(&code);
        let number = conn.knock().unwrap().number;
        conn.receive(world.now, &[1, kind, 1, 0, 1]);
        assert_eq!(conn.closed, Some(Reason::Violation), "{kind}");
        assert!(conn.sent.is_empty());
        let verdict = Verdict::Granted { access: Access::Writable, disks: Vec::new() };
        assert!(!world.server.answer(number, verdict), "nobody waits for it any more");
    }
}

#[test]
fn the_owner_may_say_no_or_nothing() {
    let mut world = World::new();
    let code = world.digits();
    let (mut conn, mut client, _) = world.attempt(&code);
    world.answer(&mut conn, Verdict::Denied);
    let found = world.talk(&mut conn, &mut client, 9999);
    assert_eq!(found, [Step::Failed(Failure::Refused(Why::Denied, 0))]);
    assert_eq!(conn.whys(), ["denied by the owner"]);

    let code = world.digits();
    let (mut conn, mut client, _) = world.attempt(&code);
    let number = conn.knock().unwrap().number;
    assert_eq!(conn.session.deadline(), Some(world.now + Duration::from_mins(2)));
    world.pass(Duration::from_mins(2));
    conn.session.tick(world.now);
    conn.drain();
    let found = world.talk(&mut conn, &mut client, 9999);
    assert_eq!(found, [Step::Failed(Failure::Refused(Why::Unanswered, 0))]);
    assert_eq!(conn.closed, Some(Reason::Refused));
    assert!(!world.server.answer(number, Verdict::Denied));
}

#[test]
fn an_answer_at_the_last_moment_counts() {
    let mut world = World::new();
    let code = world.digits();
    let (mut conn, mut client, _) = world.attempt(&code);
    let verdict = Verdict::Granted { access: Access::ReadOnly, disks: Vec::new() };
    assert!(world.server.answer(conn.knock().unwrap().number, verdict));
    world.pass(Duration::from_mins(3));
    conn.session.tick(world.now);
    conn.drain();
    let found = world.talk(&mut conn, &mut client, 9999);
    assert!(matches!(found.as_slice(), [Step::Paired(_)]), "{found:?}");
}

#[test]
fn many_disks_and_long_names_are_told_within_bounds() {
    let mut world = World::new();
    let code = world.digits();
    let (mut conn, mut client, _) = world.attempt(&code);
    let mut disks: Vec<_> = (0..1500).map(|n| disk(n, Access::ReadOnly)).collect();
    disks[3].name = "ä".repeat(500);
    disks[4].model = format!("\x1b[31m{}", "m".repeat(500));
    disks[5].nqn = "two words".to_owned();
    world.answer(&mut conn, Verdict::Granted { access: Access::ReadOnly, disks });
    let found = world.talk(&mut conn, &mut client, 1000);
    let [Step::Paired(paired)] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(paired.disks.len(), MOST_DISKS);
    assert_eq!(paired.disks[3].name, "ä".repeat(100));
    assert_eq!(paired.disks[4].model, format!("[31m{}", "m".repeat(60)));
    assert_eq!(paired.disks[5], disk(6, Access::ReadOnly));
}

/// X01: who has not shown the code learns nothing of this machine.
#[test]
fn x01_before_the_code_is_shown_nothing_is_told() {
    let mut world = World::new();
    let wrong = world.wrong();
    let (mut conn, mut client) = (world.open(), world.client(&wrong));
    let mut seen = Vec::new();
    while let Some(Step::Send(bytes)) = client.poll() {
        conn.receive(world.now, &bytes);
        client.receive(&conn.sent);
        seen.append(&mut conn.sent);
    }
    // A share, and "wrong code".
    assert_eq!(seen.len(), 4 + 33 + 4 + 3);
    assert!(!seen.windows(6).any(|window| window == b"laptop"));
    assert!(conn.knock().is_none());
}

#[test]
fn a_stop_of_the_program_ends_what_is_open() {
    let mut world = World::new();
    let code = world.digits();
    let (mut conn, mut client, _) = world.attempt(&code);
    conn.session.notify(world.now, &export::Notice::Stopping);
    conn.drain();
    assert_eq!(conn.closed, Some(Reason::Stopping));
    assert!(world.server.view(world.now).waiting.is_empty());
    client.disconnected();
    assert_eq!(client.poll(), Some(Step::Failed(Failure::Disconnected)));
    assert_eq!(client.poll(), None);
}
