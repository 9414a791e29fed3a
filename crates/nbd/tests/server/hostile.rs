//! Malicious clients: each message in each state, and false lengths.

use export::Reason;
use nbd::wire::handshake::IHAVEOPT;
use nbd::wire::option::{self, OptionHeader};
use nbd::wire::request::{self, Request};
use zerocopy::IntoBytes;

use crate::messages::{
    MODES, Mode, RequestHeader, attach, data_of, flags, go, option, read, write,
};
use crate::world::{Id, World};

type Setup = fn(&mut World) -> Id;

/// Connections in each state, by name.
fn states() -> [(&'static str, Setup); 7] {
    [
        ("flags", World::open),
        ("options", |world| {
            let id = world.open();
            world.exchange(id, &flags());
            id
        }),
        ("simple", |world| attach(world, Mode::Simple)),
        ("structured", |world| attach(world, Mode::Structured)),
        ("extended", |world| attach(world, Mode::Extended)),
        ("payload", |world| {
            let id = attach(world, Mode::Simple);
            let whole = write(Mode::Simple, 1, 0, &[1; 8192]);
            world.send(id, &whole[..100]);
            id
        }),
        ("leaving", |world| {
            let id = attach(world, Mode::Simple);
            world.conn(id).hold = true;
            world.send(id, &read(1, 0, 512).bytes(Mode::Simple));
            world.send(id, &RequestHeader::new(request::DISC, 1, 0, 0).bytes(Mode::Simple));
            id
        }),
    ]
}

/// Every message of the protocol, and some invalid ones.
fn messages() -> Vec<Vec<u8>> {
    let mut all = vec![flags().to_vec(), vec![0xff; 40], vec![0; 40], b"GET / HTTP/1.1".to_vec()];
    for which in 0..14 {
        all.push(option(which, &[]));
        all.push(option(which, b"\0\0\0\x03sda\0\0\0\x01\0\0\0\0"));
        all.push(OptionHeader::new(which, u32::MAX).as_bytes().to_vec());
    }
    for (command, mode) in (0..10).flat_map(|command| MODES.map(|mode| (command, mode))) {
        for len in [0, 1, 512, 0xffff_ffff] {
            all.push(RequestHeader::new(command, 7, 512, len).bytes(mode));
            all.push(RequestHeader::new(command, 7, 512, len).flags(0xffff).bytes(mode));
        }
    }
    all
}

/// Case X25.
#[test]
fn x25_any_message_in_any_state_leaks_nothing() {
    for (name, setup) in states() {
        for message in messages() {
            for again in [1, 3] {
                let mut world = World::small(1 << 20, 512);
                let id = setup(&mut world);
                world.send(id, &message.repeat(again));
                if let Some(reason) = world.conn(id).closed {
                    let known = matches!(
                        reason,
                        Reason::Violation | Reason::Peer | Reason::Refused | Reason::Ended
                    );
                    assert!(known, "{name}: {reason}");
                }
                world.end_all();
            }
        }
    }
}

/// Case X22.
#[test]
fn x22_length_fields_at_their_limits() {
    let edges = [0, 1, 2, 3, 4, 5, 27, 28, 511, 4096, 16383, 16384, 16385, 1 << 31, u32::MAX];
    for (which, len) in (1..12).flat_map(|which| edges.map(|len| (which, len))) {
        for inner in edges {
            let mut world = World::small(1 << 20, 512);
            let id = world.open();
            let mut sent = flags().to_vec();
            sent.extend(option(option::STRUCTURED_REPLY, &[]));
            sent.extend(OptionHeader::new(which, len).as_bytes());
            sent.extend(inner.to_be_bytes());
            sent.extend(vec![0; 64]);
            world.send(id, &sent);
            assert!(world.waiting(id) <= sent.len());
            world.end_all();
        }
    }
}

#[test]
fn wrong_magics_close_with_their_violation() {
    let mut world = World::new();
    let id = world.open();
    world.exchange(id, &flags());
    let wrong = OptionHeader { magic: (IHAVEOPT + 1).into(), ..OptionHeader::new(3, 0) };
    world.send(id, wrong.as_bytes());
    assert_eq!(world.conn(id).reported(), ["violation OptionMagicWrong"]);
    for mode in MODES {
        let id = attach(&mut world, mode);
        let other = if mode == Mode::Extended { Mode::Simple } else { Mode::Extended };
        world.send(id, &[read(1, 0, 1).bytes(other), vec![0; 8]].concat());
        assert_eq!(world.conn(id).reported()[1], "violation RequestMagicWrong");
        assert_eq!(world.conn(id).closed, Some(Reason::Violation));
    }
    world.end_all();
}

/// The client disconnects while replies are being sent. This crashed another server.
#[test]
fn disconnect_during_replies_affects_no_other_connection() {
    for mode in MODES {
        let mut world = World::new();
        let (id, other) = (attach(&mut world, mode), attach(&mut world, mode));
        world.conn(id).hold = true;
        for cookie in 0..40 {
            world.send(id, &read(cookie, 0, 300 << 10).bytes(mode));
        }
        world.finish(id, 0, Ok(()));
        world.disconnect(id);
        let received = world.exchange(other, &read(1, 512, 2).bytes(mode));
        assert_eq!(data_of(&received, 512, 2).unwrap(), [1, 1]);
        world.end_all();
    }
}

#[test]
fn requests_in_flight_are_bounded() {
    let mut world = World::new();
    let id = attach(&mut world, Mode::Simple);
    world.conn(id).hold = true;
    let one = read(1, 0, 512).bytes(Mode::Simple);
    world.send(id, &one.repeat(300));
    assert_eq!(world.jobs(id).len(), 128);
    assert_eq!(world.waiting(id), (300 - 128) * size_of::<Request>());
    world.finish_all(id);
    assert_eq!(world.received(id).len(), 300 * (16 + 512));
    world.end_all();
}

#[test]
fn options_after_go_and_requests_before_it_close() {
    let mut world = World::new();
    let id = attach(&mut world, Mode::Simple);
    world.send(id, &[go("sda"), go("sda")].concat());
    assert_eq!(world.conn(id).closed, Some(Reason::Violation));
    let id = world.open();
    world.send(id, &[&flags()[..], &read(1, 0, 512).bytes(Mode::Simple)].concat());
    assert_eq!(world.conn(id).closed, Some(Reason::Violation));
}
