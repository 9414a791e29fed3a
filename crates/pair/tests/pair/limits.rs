//! Rate limits, lockouts, timeouts and expiry.

use std::time::{Duration, Instant};

use export::{Notice, Reason, Session};
use pair::client::{Failure, Step};
use pair::{Code, IDENTITY, RefusalReason, Verdict};

use crate::world::{Conn, World, peer};

fn refused(found: &[Step]) -> Option<(RefusalReason, u16)> {
    match found {
        [Step::Failed(Failure::Refused(reason, seconds))] => Some((*reason, *seconds)),
        _ => None,
    }
}

fn hello(share: &[u8]) -> Vec<u8> {
    let mut body = vec![1, 0, u8::try_from(share.len()).unwrap()];
    body.extend(share);
    body.extend(b"\x05nqn.x\x01n");
    let mut frame = vec![1, 1, u8::try_from(body.len()).unwrap(), 0];
    frame.extend(body);
    frame
}

/// Tries wrong codes until the server is locked. Returns their number, and the duration of the
/// lockout.
fn lock_by_guessing(world: &mut World) -> (u32, Duration) {
    let mut wrong_code = 0;
    loop {
        let code = world.wrong_code();
        let (_, _, found) = world.attempt(&code);
        match refused(&found) {
            Some((RefusalReason::WrongCode, 0)) => wrong_code += 1,
            Some((RefusalReason::Locked, seconds)) => {
                let view = world.server.status(world.now);
                let left = view.wait_until.unwrap().duration_since(world.now);
                assert!(view.locked && view.codes.is_none());
                assert!(seconds == u16::MAX || u64::from(seconds) == left.as_secs() + 1);
                assert_shown(&Failure::Refused(RefusalReason::Locked, seconds), left);
                return (wrong_code, left);
            }
            other => panic!("{other:?}"),
        }
        if !world.server.status(world.now).locked {
            world.wait_for_retry();
        }
    }
}

/// Asserts that the client says how long the lockout lasts.
fn assert_shown(failure: &Failure, left: Duration) {
    let shown = match left.as_secs().div_ceil(3600) {
        1 => "press c at the target, or send SIGUSR1 to its storagetm serve, and type the new code; or wait: try \
              again in 61 min"
            .to_owned(),
        hours @ 2..=16 => format!("try again in {} h", hours + 1),
        _ => "try again in more than 18 hours".to_owned(),
    };
    assert!(failure.to_string().ends_with(&shown), "{left:?}: {failure}");
}

/// X62: lockouts after ten wrong codes end by themselves and double: an attacker has 140 attempts a
/// year.
#[test]
fn x62_lockouts_expire_and_double() {
    let mut world = World::new();
    let begun = world.now;
    let (mut guesses, mut hours) = (0, 1);
    while world.now.duration_since(begun) < Duration::from_hours(365 * 24) {
        let (wrong_code, left) = lock_by_guessing(&mut world);
        guesses += wrong_code;
        assert_eq!((wrong_code, left), (10, Duration::from_hours(hours)));
        world.advance(left - Duration::from_secs(1));
        assert!(world.server.status(world.now).locked);
        world.advance(Duration::from_secs(1));
        hours *= 2;
    }
    assert_eq!(guesses, 140);
    // A right code then succeeds and resets the next lockout.
    let right = world.digits();
    let (conn, _, _) = world.attempt(&right);
    assert!(conn.request().is_some());
    drop(conn);
    assert_eq!(lock_by_guessing(&mut world), (10, Duration::from_hours(1)));
}

/// X62: crashing the process does not reset the failed attempts.
#[test]
fn x62_failed_attempts_survive_a_new_server() {
    let mut world = World::new();
    for _ in 0..9 {
        let wrong_code = world.wrong_code();
        world.attempt(&wrong_code);
        world.wait_for_retry();
    }
    let attempts = world.server.status(world.now).failed_attempts();
    assert_eq!((attempts.failures, attempts.lockouts), (9, 0));
    world.replace_server(attempts);
    assert_eq!(lock_by_guessing(&mut world), (1, Duration::from_hours(1)));
    let attempts = world.server.status(world.now).failed_attempts();
    world.replace_server(attempts);
    assert_eq!(lock_by_guessing(&mut world), (0, Duration::from_hours(1)));
    world.advance(Duration::from_hours(1));
    assert_eq!(lock_by_guessing(&mut world), (10, Duration::from_hours(2)));
}

/// X06: ten wrong codes lock the server, even for the right code, until it is unlocked at the
/// machine.
#[test]
fn x06_ten_wrong_codes_lock_until_unlocked() {
    let mut world = World::new();
    let mut delays = Vec::new();
    let mut shown = Vec::new();
    let mut last_right = world.digits();
    for n in 0..25 {
        let wrong_code = world.wrong_code();
        if let Some(right) = world.server.status(world.now).codes {
            last_right = right.digits;
            shown.push(last_right.text().to_owned());
        }
        let (_, _, found) = world.attempt(&wrong_code);
        let expected =
            if n < 10 { (RefusalReason::WrongCode, 0) } else { (RefusalReason::Locked, 3601) };
        assert_eq!(refused(&found), Some(expected), "{n}");
        let before = world.now;
        if !world.server.status(world.now).locked {
            world.wait_for_retry();
        }
        delays.push(world.now.duration_since(before).as_secs());
    }
    assert_eq!(delays[..11], [1, 2, 4, 8, 16, 32, 64, 64, 64, 0, 0]);
    let count = shown.len();
    shown.sort();
    shown.dedup();
    assert_eq!((shown.len(), count), (10, 10), "a new code after each failure");
    let view = world.server.status(world.now);
    assert!(view.locked && view.codes.is_none() && view.failures == 10);

    let (_, _, found) = world.attempt(&last_right);
    assert_eq!(refused(&found), Some((RefusalReason::Locked, 3601)));

    world.server.unlock(world.now);
    let (_, _, found) = world.attempt(&last_right);
    assert_eq!(refused(&found), Some((RefusalReason::WrongCode, 0)), "the old code is invalid");
    world.wait_for_retry();
    let right = world.digits();
    let (conn, _, _) = world.attempt(&right);
    assert!(conn.request().is_some());
    assert_eq!(world.server.status(world.now).failures, 0);
}

#[test]
fn wrong_code_delays_the_next_attempt() {
    let mut world = World::new();
    let wrong_code = world.wrong_code();
    world.attempt(&wrong_code);
    let right = world.digits();
    let (_, _, found) = world.attempt(&right);
    assert_eq!(refused(&found), Some((RefusalReason::RateLimited, 2)));
    assert_eq!(world.digits(), right, "a rejected attempt does not count");
    assert_eq!(world.server.deadline(world.now), world.server.status(world.now).wait_until);
    world.wait_for_retry();
    let (conn, _, _) = world.attempt(&right);
    assert!(conn.request().is_some());
}

/// X07: a code is valid once, for ten minutes.
#[test]
fn x07_used_and_expired_codes_are_wrong() {
    let mut world = World::new();
    // After success.
    let code = world.digits();
    let long = world.long();
    let (conn, _, _) = world.attempt(&code);
    assert!(conn.request().is_some());
    for used in [code, long] {
        let (conn, _, found) = world.attempt(&used);
        assert!(conn.request().is_none());
        assert_eq!(refused(&found), Some((RefusalReason::WrongCode, 0)));
        world.wait_for_retry();
    }
    // After failure.
    let code = world.digits();
    let wrong_code = world.wrong_code();
    world.attempt(&wrong_code);
    world.wait_for_retry();
    let (_, _, found) = world.attempt(&code);
    assert_eq!(refused(&found), Some((RefusalReason::WrongCode, 0)));
    world.wait_for_retry();
    // After its expiry, even if `status` was not called meanwhile.
    let code = world.digits();
    let expires = world.server.status(world.now).codes.unwrap().expires;
    assert!(expires <= world.now + Duration::from_mins(10));
    assert_eq!(world.server.deadline(world.now), Some(expires));
    world.now = expires;
    let generation = world.server.generation();
    let (_, _, found) = world.attempt(&code);
    assert_eq!(refused(&found), Some((RefusalReason::WrongCode, 0)));
    assert!(world.server.generation() > generation);
    world.wait_for_retry();
    let code = world.digits();
    world.now = world.server.status(world.now).codes.unwrap().expires - Duration::from_millis(1);
    let (conn, _, _) = world.attempt(&code);
    assert!(conn.request().is_some());
}

#[test]
fn one_attempt_at_a_time() {
    let mut world = World::new();
    let code = world.digits();
    let (mut first, mut client) = (world.open(), world.client(&code));
    let Some(Step::Send(bytes)) = client.poll() else { panic!() };
    first.receive(world.now, &bytes);
    let (second, _, found) = world.attempt(&code);
    assert_eq!(refused(&found), Some((RefusalReason::Busy, 5)));
    assert_eq!(second.reasons(), ["another host is pairing"]);
    // The first attempt is not affected.
    world.run(&mut first, &mut client, 9999);
    assert!(first.request().is_some());
}

/// A client that received the target's share has used up one attempt, however the connection ends.
#[test]
fn abandoned_attempt_counts() {
    type End = fn(&mut World, Conn);
    let ends: [(End, &str); 5] = [
        (
            |world, mut conn| {
                conn.session.notify(world.now, &Notice::Disconnected);
                conn.drain();
                assert_eq!(conn.reasons(), ["disconnected before it was paired"]);
            },
            "disconnected",
        ),
        (
            |world, mut conn| {
                world.advance(Duration::from_secs(10));
                conn.session.tick(world.now);
                conn.drain();
                assert_eq!(conn.closed, Some(Reason::Timeout));
            },
            "timed out",
        ),
        (
            |world, mut conn| {
                conn.receive(world.now, b"\x02");
                conn.receive(world.now, b"\x03\0\0");
                assert_eq!(conn.closed, Some(Reason::Violation));
            },
            "violation",
        ),
        (|world, mut conn| conn.receive(world.now, &hello(&[1; 32])), "second hello"),
        (|_, conn| drop(conn), "dropped"),
    ];
    for (end, how) in ends {
        let mut world = World::new();
        let code = world.digits();
        let (mut conn, mut client) = (world.open(), world.client(&code));
        let Some(Step::Send(bytes)) = client.poll() else { panic!() };
        conn.receive(world.now, &bytes);
        assert_eq!(world.server.status(world.now).failures, 0);
        end(&mut world, conn);
        assert_eq!(world.server.status(world.now).failures, 1, "{how}");
        assert_ne!(world.digits(), code, "{how}");
    }
}

#[test]
fn silent_connection_times_out_without_an_attempt() {
    let mut world = World::new();
    let mut conn = world.open();
    conn.receive(world.now, &[1, 1]);
    assert_eq!(conn.session.deadline(), Some(world.now + Duration::from_secs(10)));
    assert!(!conn.session.is_established());
    world.advance(Duration::from_secs(10));
    conn.session.tick(world.now);
    conn.drain();
    assert_eq!(conn.closed, Some(Reason::Timeout));
    assert_eq!(world.server.status(world.now).failures, 0);
}

/// X09: an invalid share is a failed attempt.
#[test]
fn x09_invalid_share_is_refused_and_counted() {
    let minus_one = {
        let mut bytes = [0xff; 32];
        (bytes[0], bytes[31]) = (0xec, 0x7f);
        bytes
    };
    for share in [&[0; 32][..], &[0xff; 32], &minus_one, &[1; 31], &[], &[2; 64]] {
        let mut world = World::new();
        let code = world.digits();
        let mut conn = world.open();
        conn.receive(world.now, &hello(share));
        assert_eq!(conn.closed, Some(Reason::Refused), "{share:02x?}");
        assert_eq!(conn.reasons(), ["wrong code"]);
        assert_eq!(world.server.status(world.now).failures, 1);
        assert_ne!(world.digits(), code);
        world.wait_for_retry();
    }
}

/// X54: rejected attempts cost no public-key operations, and their reports are rate-limited.
#[test]
fn x54_rejected_attempts_are_cheap_and_rarely_reported() {
    let mut world = World::new();
    let wrong_code = world.wrong_code();
    world.attempt(&wrong_code);
    let begun = Instant::now();
    let mut reports = 0;
    for _ in 0..5000 {
        let mut conn = world.open();
        conn.receive(world.now, &hello(&[0; 32]));
        assert_eq!(conn.sent[..5], [1, 8, 3, 0, 2], "rejected");
        reports += conn.reasons().len();
    }
    let flood = begun.elapsed();
    assert_eq!((reports, world.server.status(world.now).failures), (1, 1));
    let begun = Instant::now();
    for _ in 0..20 {
        world.server.unlock(world.now);
        let wrong_code = world.wrong_code();
        world.attempt(&wrong_code);
    }
    let attempts = begun.elapsed();
    // A rejected attempt costs a fraction of one: 5000 must take less time than 2500 attempts.
    assert!(flood < attempts * 125, "{flood:?} {attempts:?}");
    world.advance(Duration::from_secs(1));
    let code = world.digits();
    let (conn, _, _) = world.attempt(&code);
    assert!(conn.request().is_some());
}

#[test]
fn waiting_requests_are_bounded_and_removed() {
    let mut world = World::new();
    let mut waiting = Vec::new();
    for _ in 0..8 {
        let code = world.digits();
        waiting.push(world.attempt(&code).0);
    }
    let code = world.digits();
    let (_, _, found) = world.attempt(&code);
    assert_eq!(refused(&found), Some((RefusalReason::Busy, 5)));
    assert_eq!(world.server.status(world.now).waiting.len(), 8);
    let generation = world.server.generation();
    drop(waiting.pop());
    waiting[0].session.notify(world.now, &Notice::Disconnected);
    assert!(world.server.generation() > generation);
    assert_eq!(world.server.status(world.now).waiting.len(), 6);
    assert!(world.answer(&mut waiting[1], Verdict::Denied));
    let (conn, _, _) = world.attempt(&code);
    assert!(conn.request().is_some());
}

#[test]
fn closed_server_has_no_code_and_accepts_none() {
    let mut world = World::new();
    let code = world.digits();
    let (mut conn, mut client) = (world.open(), world.client(&code));
    let Some(Step::Send(bytes)) = client.poll() else { panic!() };
    conn.receive(world.now, &bytes);
    world.server.close();
    assert_eq!(world.server.status(world.now).codes, None);
    assert_eq!(world.server.deadline(world.now), None);
    // Not even for an attempt started before.
    let found = world.run(&mut conn, &mut client, 9999);
    assert_eq!(refused(&found), Some((RefusalReason::PairingOff, 0)));
    assert!(conn.request().is_none());
    let (_, _, found) = world.attempt(&code);
    assert_eq!(refused(&found), Some((RefusalReason::PairingOff, 0)));
    world.advance(Duration::from_hours(1));
    assert_eq!(world.server.status(world.now).codes, None);
    world.server.unlock(world.now);
    let code = world.digits();
    assert!(world.attempt(&code).0.request().is_some());
}

#[test]
fn other_channels_are_refused_silently() {
    let world = World::new();
    let clear = export::Peer { channel: None, ..peer(IDENTITY, [0; 32]) };
    for peer in [clear, peer("NVMe1R01 host subsystem", [5; 32])] {
        let mut conn = world.open_from(peer);
        assert_eq!(conn.closed, Some(Reason::Refused));
        conn.receive(world.now, &hello(&[1; 32]));
        assert!(conn.sent.is_empty());
        assert_eq!(world.server.status(world.now).failures, 0);
    }
}

#[test]
fn codes_are_eight_digits_and_128_bits() {
    let world = World::new();
    assert_eq!(world.digits().text().len(), 8);
    assert_eq!(world.long().text().len(), 26);
    for code in [world.digits(), world.long()] {
        assert_eq!(Code::parse(code.text()), Ok(code.clone()));
    }
    let debug = format!("{:?}", world.server.status(world.now));
    assert!(!debug.contains(world.digits().text()), "{debug}");
    assert!(!debug.contains(world.long().text()), "{debug}");
}
