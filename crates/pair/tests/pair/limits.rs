//! How often, how long and how many at once: the server's limits.

use std::time::{Duration, Instant};

use export::{Notice, Reason, Session};
use pair::client::{Failure, Step};
use pair::{Code, IDENTITY, Verdict, Why};

use crate::world::{Conn, World, peer};

fn refused(found: &[Step]) -> Option<(Why, u16)> {
    match found {
        [Step::Failed(Failure::Refused(why, seconds))] => Some((*why, *seconds)),
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

/// Tries wrong codes until it is stopped. Returns how many were wrong, and for how long it is stopped.
fn guess(world: &mut World) -> (u32, Duration) {
    let mut wrong = 0;
    loop {
        let code = world.wrong();
        let (_, _, found) = world.attempt(&code);
        match refused(&found) {
            Some((Why::WrongCode, 0)) => wrong += 1,
            Some((Why::Stopped, seconds)) => {
                let view = world.server.view(world.now);
                let left = view.wait_until.unwrap().duration_since(world.now);
                assert!(view.stopped && view.shown.is_none());
                assert!(seconds == u16::MAX || u64::from(seconds) == left.as_secs() + 1);
                return (wrong, left);
            }
            other => panic!("{other:?}"),
        }
        if !world.server.view(world.now).stopped {
            world.wait();
        }
    }
}

/// X62: after ten wrong codes pairing goes on by itself, ever later: a guesser has 140 guesses a year.
#[test]
fn x62_stopped_pairing_goes_on_after_a_time_that_doubles() {
    let mut world = World::new();
    let begun = world.now;
    let (mut guesses, mut hours) = (0, 1);
    while world.now.duration_since(begun) < Duration::from_hours(365 * 24) {
        let (wrong, left) = guess(&mut world);
        guesses += wrong;
        assert_eq!((wrong, left), (10, Duration::from_hours(hours)));
        world.pass(left - Duration::from_secs(1));
        assert!(world.server.view(world.now).stopped);
        world.pass(Duration::from_secs(1));
        hours *= 2;
    }
    assert_eq!(guesses, 140);
    // Whoever has the code is let in then, and the next stop is short again.
    let right = world.digits();
    let (conn, _, _) = world.attempt(&right);
    assert!(conn.knock().is_some());
    drop(conn);
    assert_eq!(guess(&mut world), (10, Duration::from_hours(1)));
}

/// X62: a guesser who ends the process that counts the guesses has none of them back.
#[test]
fn x62_wrong_codes_are_counted_on_by_another_desk() {
    let mut world = World::new();
    for _ in 0..9 {
        let wrong = world.wrong();
        world.attempt(&wrong);
        world.wait();
    }
    let tries = world.server.view(world.now).tries();
    assert_eq!((tries.failures, tries.stops), (9, 0));
    world.replace_desk(tries);
    assert_eq!(guess(&mut world), (1, Duration::from_hours(1)));
    let tries = world.server.view(world.now).tries();
    world.replace_desk(tries);
    assert_eq!(guess(&mut world), (0, Duration::from_hours(1)));
    world.pass(Duration::from_hours(1));
    assert_eq!(guess(&mut world), (10, Duration::from_hours(2)));
}

/// X06: ten wrong codes stop it, the right one does not help then, and a key at the machine does.
#[test]
fn x06_ten_wrong_codes_stop_it_until_somebody_there_lets_it_go_on() {
    let mut world = World::new();
    let mut delays = Vec::new();
    let mut shown = Vec::new();
    let mut last_right = world.digits();
    for n in 0..25 {
        let wrong = world.wrong();
        if let Some(right) = world.server.view(world.now).shown {
            last_right = right.digits;
            shown.push(last_right.text().to_owned());
        }
        let (_, _, found) = world.attempt(&wrong);
        let expected = if n < 10 { (Why::WrongCode, 0) } else { (Why::Stopped, 3601) };
        assert_eq!(refused(&found), Some(expected), "{n}");
        let before = world.now;
        if !world.server.view(world.now).stopped {
            world.wait();
        }
        delays.push(world.now.duration_since(before).as_secs());
    }
    assert_eq!(delays[..11], [1, 2, 4, 8, 16, 32, 64, 64, 64, 0, 0]);
    let count = shown.len();
    shown.sort();
    shown.dedup();
    assert_eq!((shown.len(), count), (10, 10), "a new code after each failure");
    let view = world.server.view(world.now);
    assert!(view.stopped && view.shown.is_none() && view.failures == 10);

    let (_, _, found) = world.attempt(&last_right);
    assert_eq!(refused(&found), Some((Why::Stopped, 3601)));

    world.server.unlock(world.now);
    let (_, _, found) = world.attempt(&last_right);
    assert_eq!(refused(&found), Some((Why::WrongCode, 0)), "the old code is no code");
    world.wait();
    let right = world.digits();
    let (conn, _, _) = world.attempt(&right);
    assert!(conn.knock().is_some());
    assert_eq!(world.server.view(world.now).failures, 0);
}

#[test]
fn after_a_wrong_code_nobody_may_try_for_a_while() {
    let mut world = World::new();
    let wrong = world.wrong();
    world.attempt(&wrong);
    let right = world.digits();
    let (_, _, found) = world.attempt(&right);
    assert_eq!(refused(&found), Some((Why::Later, 2)));
    assert_eq!(world.digits(), right, "who was told to wait has had no try");
    assert_eq!(world.server.deadline(world.now), world.server.view(world.now).wait_until);
    world.wait();
    let (conn, _, _) = world.attempt(&right);
    assert!(conn.knock().is_some());
}

/// X07: a code is good once, and for ten minutes.
#[test]
fn x07_an_old_code_is_no_code() {
    let mut world = World::new();
    // After success.
    let code = world.digits();
    let long = world.long();
    let (conn, _, _) = world.attempt(&code);
    assert!(conn.knock().is_some());
    for used in [code, long] {
        let (conn, _, found) = world.attempt(&used);
        assert!(conn.knock().is_none());
        assert_eq!(refused(&found), Some((Why::WrongCode, 0)));
        world.wait();
    }
    // After failure.
    let code = world.digits();
    let wrong = world.wrong();
    world.attempt(&wrong);
    world.wait();
    let (_, _, found) = world.attempt(&code);
    assert_eq!(refused(&found), Some((Why::WrongCode, 0)));
    world.wait();
    // After its time, whether or not anybody has looked at the screen meanwhile.
    let code = world.digits();
    let expires = world.server.view(world.now).shown.unwrap().expires;
    assert!(expires <= world.now + Duration::from_mins(10));
    assert_eq!(world.server.deadline(world.now), Some(expires));
    world.now = expires;
    let generation = world.server.generation();
    let (_, _, found) = world.attempt(&code);
    assert_eq!(refused(&found), Some((Why::WrongCode, 0)));
    assert!(world.server.generation() > generation);
    world.wait();
    let code = world.digits();
    world.now = world.server.view(world.now).shown.unwrap().expires - Duration::from_millis(1);
    let (conn, _, _) = world.attempt(&code);
    assert!(conn.knock().is_some());
}

#[test]
fn one_at_a_time_tries() {
    let mut world = World::new();
    let code = world.digits();
    let (mut first, mut client) = (world.open(), world.client(&code));
    let Some(Step::Send(bytes)) = client.poll() else { panic!() };
    first.receive(world.now, &bytes);
    let (second, _, found) = world.attempt(&code);
    assert_eq!(refused(&found), Some((Why::Busy, 5)));
    assert_eq!(second.whys(), ["another host is pairing"]);
    // The first goes on as if nothing had been.
    world.talk(&mut first, &mut client, 9999);
    assert!(first.knock().is_some());
}

/// Who has the target's share has had a guess, however the connection ends.
#[test]
fn a_try_that_is_given_up_counts() {
    type End = fn(&mut World, Conn);
    let ends: [(End, &str); 5] = [
        (
            |world, mut conn| {
                conn.session.notify(world.now, &Notice::Disconnected);
                conn.drain();
                assert_eq!(conn.whys(), ["went away before it was let in"]);
            },
            "gone",
        ),
        (
            |world, mut conn| {
                world.pass(Duration::from_secs(10));
                conn.session.tick(world.now);
                conn.drain();
                assert_eq!(conn.closed, Some(Reason::Timeout));
            },
            "silent",
        ),
        (
            |world, mut conn| {
                conn.receive(world.now, b"\x02");
                conn.receive(world.now, b"\x03\0\0");
                assert_eq!(conn.closed, Some(Reason::Violation));
            },
            "broke a rule",
        ),
        (|world, mut conn| conn.receive(world.now, &hello(&[1; 32])), "begins again"),
        (|_, conn| drop(conn), "lost by a mistake of ours"),
    ];
    for (end, how) in ends {
        let mut world = World::new();
        let code = world.digits();
        let (mut conn, mut client) = (world.open(), world.client(&code));
        let Some(Step::Send(bytes)) = client.poll() else { panic!() };
        conn.receive(world.now, &bytes);
        assert_eq!(world.server.view(world.now).failures, 0);
        end(&mut world, conn);
        assert_eq!(world.server.view(world.now).failures, 1, "{how}");
        assert_ne!(world.digits(), code, "{how}");
    }
}

#[test]
fn who_never_says_anything_is_closed_after_ten_seconds_and_has_had_no_try() {
    let mut world = World::new();
    let mut conn = world.open();
    conn.receive(world.now, &[1, 1]);
    assert_eq!(conn.session.deadline(), Some(world.now + Duration::from_secs(10)));
    assert!(!conn.session.is_established());
    world.pass(Duration::from_secs(10));
    conn.session.tick(world.now);
    conn.drain();
    assert_eq!(conn.closed, Some(Reason::Timeout));
    assert_eq!(world.server.view(world.now).failures, 0);
}

/// X09: what is no share at all is a try that failed.
#[test]
fn x09_a_share_that_is_no_element_is_refused_and_counted() {
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
        assert_eq!(conn.whys(), ["wrong code"]);
        assert_eq!(world.server.view(world.now).failures, 1);
        assert_ne!(world.digits(), code);
        world.wait();
    }
}

/// X54: who may not try costs nothing: its share is not even looked at, and a flood is reported now and then.
#[test]
fn x54_a_flood_of_tries_costs_no_arithmetic_and_little_journal() {
    let mut world = World::new();
    let wrong = world.wrong();
    world.attempt(&wrong);
    let begun = Instant::now();
    let mut reports = 0;
    for _ in 0..5000 {
        let mut conn = world.open();
        conn.receive(world.now, &hello(&[0; 32]));
        assert_eq!(conn.sent[..5], [1, 8, 3, 0, 2], "told to come later");
        reports += conn.whys().len();
    }
    let flood = begun.elapsed();
    assert_eq!((reports, world.server.view(world.now).failures), (1, 1));
    let begun = Instant::now();
    for _ in 0..20 {
        world.server.unlock(world.now);
        let wrong = world.wrong();
        world.attempt(&wrong);
    }
    let tries = begun.elapsed();
    // One that is told to wait costs a small part of a try: 5000 of them less than 2500 tries, by far.
    assert!(flood < tries * 125, "{flood:?} {tries:?}");
    world.pass(Duration::from_secs(1));
    let code = world.digits();
    let (conn, _, _) = world.attempt(&code);
    assert!(conn.knock().is_some());
}

#[test]
fn few_may_wait_for_the_owner_and_those_who_go_are_forgotten() {
    let mut world = World::new();
    let mut waiting = Vec::new();
    for _ in 0..8 {
        let code = world.digits();
        waiting.push(world.attempt(&code).0);
    }
    let code = world.digits();
    let (_, _, found) = world.attempt(&code);
    assert_eq!(refused(&found), Some((Why::Busy, 5)));
    assert_eq!(world.server.view(world.now).waiting.len(), 8);
    let generation = world.server.generation();
    drop(waiting.pop());
    waiting[0].session.notify(world.now, &Notice::Disconnected);
    assert!(world.server.generation() > generation);
    assert_eq!(world.server.view(world.now).waiting.len(), 6);
    assert!(world.answer(&mut waiting[1], Verdict::Denied));
    let (conn, _, _) = world.attempt(&code);
    assert!(conn.knock().is_some());
}

#[test]
fn a_closed_desk_shows_no_code_and_takes_none() {
    let mut world = World::new();
    let code = world.digits();
    let (mut conn, mut client) = (world.open(), world.client(&code));
    let Some(Step::Send(bytes)) = client.poll() else { panic!() };
    conn.receive(world.now, &bytes);
    world.server.close();
    assert_eq!(world.server.view(world.now).shown, None);
    assert_eq!(world.server.deadline(world.now), None);
    // Not even from who began before.
    let found = world.talk(&mut conn, &mut client, 9999);
    assert_eq!(refused(&found), Some((Why::Closed, 0)));
    assert!(conn.knock().is_none());
    let (_, _, found) = world.attempt(&code);
    assert_eq!(refused(&found), Some((Why::Closed, 0)));
    world.pass(Duration::from_hours(1));
    assert_eq!(world.server.view(world.now).shown, None);
    world.server.unlock(world.now);
    let code = world.digits();
    assert!(world.attempt(&code).0.knock().is_some());
}

#[test]
fn without_the_channel_for_pairing_nothing_is_said() {
    let world = World::new();
    let clear = export::Peer { channel: None, ..peer(IDENTITY, [0; 32]) };
    for peer in [clear, peer("NVMe1R01 host subsystem", [5; 32])] {
        let mut conn = world.open_from(peer);
        assert_eq!(conn.closed, Some(Reason::Refused));
        conn.receive(world.now, &hello(&[1; 32]));
        assert!(conn.sent.is_empty());
        assert_eq!(world.server.view(world.now).failures, 0);
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
    let debug = format!("{:?}", world.server.view(world.now));
    assert!(!debug.contains(world.digits().text()), "{debug}");
    assert!(!debug.contains(world.long().text()), "{debug}");
}
