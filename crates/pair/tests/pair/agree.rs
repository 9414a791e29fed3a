//! Successful pairings, and verdicts.

use std::time::Duration;

use export::{Access, Reason, Session};
use pair::client::{Failure, Step};
use pair::{MAX_DISKS, RefusalReason, Verdict, keys};

use crate::world::{HOST, World, disk};

#[test]
fn right_code_pairs_with_any_chunking() {
    for (step, long) in [(1, false), (2, true), (3, false), (7, true), (100, false), (9999, true)] {
        let mut world = World::new();
        let code = if long { world.long() } else { world.digits() };
        let (mut conn, mut client) = (world.open(), world.client_with(&code, [5; 32], true));
        let found = world.run(&mut conn, &mut client, step);
        assert_eq!(found, [Step::Authenticated { target: "laptop".to_owned() }]);
        assert!(conn.session.is_established());
        let request = conn.request().unwrap();
        assert_eq!((request.host.as_str(), request.name.as_str()), (HOST, "server in the hall"));
        assert!(request.writable);
        assert!(world.server.is_waiting(request.number));
        let disks = vec![disk(1, Access::Writable), disk(2, Access::ReadOnly)];
        let verdict = Verdict::Granted { access: Access::Writable, disks: disks.clone() };
        assert!(world.answer(&mut conn, verdict));
        let found = world.run(&mut conn, &mut client, step);
        let [Step::Paired(paired)] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((paired.target.as_str(), paired.access), ("laptop", Access::Writable));
        assert_eq!(paired.disks, disks);
        assert_eq!(paired.secret, request.secret);
        assert_eq!(paired.secret.bytes().len(), 32);
        assert_eq!(keys::nvme_tls(&paired.secret), keys::nvme_tls(&request.secret));
        assert_eq!(conn.closed, Some(Reason::Ended));
        assert_ne!(world.digits(), code);
        assert_ne!(world.long(), code);
    }
}

/// X11: each pairing has a different secret.
#[test]
fn x11_every_pairing_has_a_different_secret() {
    let mut world = World::new();
    let mut secrets = Vec::new();
    for _ in 0..6 {
        let code = world.digits();
        let (mut conn, ..) = world.attempt(&code);
        secrets.push(conn.request().unwrap().secret.bytes().to_vec());
        world.answer(&mut conn, Verdict::Denied);
    }
    secrets.sort();
    secrets.dedup();
    assert_eq!(secrets.len(), 6);
}

/// X18: only the verdict grants access, whatever the host requests.
#[test]
fn x18_only_the_verdict_grants_write_access() {
    let mut world = World::new();
    let code = world.digits();
    let (mut conn, mut client) = (world.open(), world.client_with(&code, [5; 32], true));
    world.run(&mut conn, &mut client, 9999);
    let verdict =
        Verdict::Granted { access: Access::ReadOnly, disks: vec![disk(1, Access::ReadOnly)] };
    world.answer(&mut conn, verdict);
    let found = world.run(&mut conn, &mut client, 9999);
    let [Step::Paired(paired)] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(paired.access, Access::ReadOnly);

    // No frame from a host that had the code acts as a verdict.
    for kind in 0..=255 {
        let code = world.digits();
        let (mut conn, _, _) = world.attempt(&code);
        let number = conn.request().unwrap().number;
        conn.receive(world.now, &[1, kind, 1, 0, 1]);
        assert_eq!(conn.closed, Some(Reason::Violation), "{kind}");
        assert!(conn.sent.is_empty());
        let verdict = Verdict::Granted { access: Access::Writable, disks: Vec::new() };
        assert!(!world.server.answer(number, verdict), "no longer waiting");
    }
}

/// X18: the owner of the target has given that host access for a time that is over.
#[test]
fn x18_expired_host_is_told_what_gives_it_access_again() {
    let mut world = World::new();
    let code = world.digits();
    let (mut conn, mut client, _) = world.attempt(&code);
    world.answer(&mut conn, Verdict::Expired);
    let found = world.run(&mut conn, &mut client, 9999);
    let [Step::Failed(failure)] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(*failure, Failure::Refused(RefusalReason::Expired, 0));
    assert!(failure.to_string().contains("storagetm host add"), "{failure}");
    assert_eq!(conn.reasons(), ["the access of the host has expired"]);
}

#[test]
fn denied_and_unanswered_requests_are_refused() {
    let mut world = World::new();
    let code = world.digits();
    let (mut conn, mut client, _) = world.attempt(&code);
    world.answer(&mut conn, Verdict::Denied);
    let found = world.run(&mut conn, &mut client, 9999);
    assert_eq!(found, [Step::Failed(Failure::Refused(RefusalReason::DeniedByAdministrator, 0))]);
    assert_eq!(conn.reasons(), ["denied by the administrator"]);

    let code = world.digits();
    let (mut conn, mut client, _) = world.attempt(&code);
    let number = conn.request().unwrap().number;
    assert_eq!(conn.session.deadline(), Some(world.now + Duration::from_mins(2)));
    world.advance(Duration::from_mins(2));
    conn.session.tick(world.now);
    conn.drain();
    let found = world.run(&mut conn, &mut client, 9999);
    assert_eq!(found, [Step::Failed(Failure::Refused(RefusalReason::NoAnswer, 0))]);
    assert_eq!(conn.closed, Some(Reason::Refused));
    assert!(!world.server.answer(number, Verdict::Denied));
}

#[test]
fn verdict_at_the_deadline_counts() {
    let mut world = World::new();
    let code = world.digits();
    let (mut conn, mut client, _) = world.attempt(&code);
    let verdict = Verdict::Granted { access: Access::ReadOnly, disks: Vec::new() };
    assert!(world.server.answer(conn.request().unwrap().number, verdict));
    world.advance(Duration::from_mins(3));
    conn.session.tick(world.now);
    conn.drain();
    let found = world.run(&mut conn, &mut client, 9999);
    assert!(matches!(found.as_slice(), [Step::Paired(_)]), "{found:?}");
}

#[test]
fn disk_list_and_names_are_bounded() {
    let mut world = World::new();
    let code = world.digits();
    let (mut conn, mut client, _) = world.attempt(&code);
    let mut disks: Vec<_> = (0..1500).map(|n| disk(n, Access::ReadOnly)).collect();
    disks[3].name = "ä".repeat(500);
    disks[4].model = format!("\x1b[31m{}", "m".repeat(500));
    disks[5].nqn = "two words".to_owned();
    world.answer(&mut conn, Verdict::Granted { access: Access::ReadOnly, disks });
    let found = world.run(&mut conn, &mut client, 1000);
    let [Step::Paired(paired)] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(paired.disks.len(), MAX_DISKS);
    assert_eq!(paired.disks[3].name, "ä".repeat(100));
    assert_eq!(paired.disks[4].model, format!("[31m{}", "m".repeat(60)));
    assert_eq!(paired.disks[5], disk(6, Access::ReadOnly));
}

/// X01: a host without the code learns nothing about this machine.
#[test]
fn x01_nothing_is_revealed_before_confirmation() {
    let mut world = World::new();
    let wrong_code = world.wrong_code();
    let (mut conn, mut client) = (world.open(), world.client(&wrong_code));
    let mut seen = Vec::new();
    while let Some(Step::Send(bytes)) = client.poll() {
        conn.receive(world.now, &bytes);
        client.receive(&conn.sent);
        seen.append(&mut conn.sent);
    }
    // A share, and "wrong code".
    assert_eq!(seen.len(), 4 + 33 + 4 + 3);
    assert!(!seen.windows(6).any(|window| window == b"laptop"));
    assert!(conn.request().is_none());
}

#[test]
fn shutdown_closes_sessions() {
    let mut world = World::new();
    let code = world.digits();
    let (mut conn, mut client, _) = world.attempt(&code);
    conn.session.notify(world.now, &export::Notice::Stopping);
    conn.drain();
    assert_eq!(conn.closed, Some(Reason::Stopping));
    assert!(world.server.status(world.now).waiting.is_empty());
    client.disconnected();
    assert_eq!(client.poll(), Some(Step::Failed(Failure::Disconnected)));
    assert_eq!(client.poll(), None);
}
