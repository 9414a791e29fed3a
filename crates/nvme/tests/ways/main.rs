//! Cases R25 and R55: reconnects after a loss of connection, by both protocols, to one disk in
//! memory. The newest data always survive.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod world;

use proptest::prelude::*;

use world::{Conn, Host, World};

/// How a connection is lost.
#[derive(Debug, Clone, Copy)]
enum Loss {
    /// One connection.
    Connection,
    /// All connections of the association.
    Association,
    /// Reset of the controller.
    Reset,
}

/// How a host reconnects.
#[derive(Debug, Clone, Copy)]
enum Reconnect {
    /// New association.
    Association(Host),
    /// The same I/O queue of the same controller, if that exists.
    Queue,
    /// NBD.
    Nbd,
    /// Another connection that stayed open.
    Open,
}

#[derive(Debug, Clone)]
struct Round {
    nbd: bool,
    loss: Loss,
    reconnect: Reconnect,
    block: u8,
    /// Number of disk requests that complete before the newer write is sent.
    ended: u8,
    /// Number of disk requests that complete before sessions of the lost association are notified.
    late: bool,
}

fn round() -> impl Strategy<Value = Round> {
    let host = prop_oneof![Just(Host::First), Just(Host::Second)];
    let loss = prop_oneof![2 => Just(Loss::Connection), 1 => Just(Loss::Association), 1 => Just(Loss::Reset)];
    let reconnect = prop_oneof![
        2 => host.prop_map(Reconnect::Association),
        2 => Just(Reconnect::Queue),
        1 => Just(Reconnect::Nbd),
        1 => Just(Reconnect::Open),
    ];
    (any::<bool>(), loss, reconnect, 0..4_u8, 0..3_u8, any::<bool>()).prop_map(
        |(nbd, loss, reconnect, block, ended, late)| Round {
            nbd,
            loss,
            reconnect,
            block,
            ended,
            late,
        },
    )
}

/// Loses a connection with writes in flight, reconnects, and writes newer data.
fn run_round(world: &mut World, round: &Round, version: u8) {
    let open = world.attach(Host::Second, 1);
    let lost = if round.nbd { world.nbd() } else { world.attach(Host::First, 2) };
    let block = u64::from(round.block);
    for seen in [lost.io, lost.last] {
        world.write(seen, block, version);
    }
    world.run();
    if round.late {
        world.set_late(&[lost.io, lost.last]);
    }
    match round.loss {
        Loss::Reset if !round.nbd => world.reset(&lost),
        Loss::Connection => [lost.io, lost.last].into_iter().for_each(|conn| world.cut(conn)),
        _ => {
            [Some(lost.io), Some(lost.last), lost.admin]
                .into_iter()
                .flatten()
                .for_each(|conn| world.cut(conn));
        }
    }
    for _ in 0..round.ended {
        world.complete_one();
    }
    world.run();
    let back = reconnect(world, round, &lost, open);
    world.write(back, block, version + 1);
    world.set_late(&[]);
    world.run();
    while world.complete_one() {
        world.run();
    }
    assert_eq!(world.done(back), Some(true), "the newer write never ended: {round:?}");
    assert_eq!(world.block(block), version + 1, "{round:?}");
    world.forget();
}

fn reconnect(world: &mut World, round: &Round, lost: &Conn, open: Conn) -> usize {
    match (round.reconnect, round.loss, lost.admin) {
        (Reconnect::Association(host), ..) => world.attach(host, 1).io,
        (Reconnect::Queue, Loss::Connection, Some(admin)) => world.queue(admin, lost.cntlid, 1),
        (Reconnect::Queue, Loss::Reset, Some(admin)) => world.enable_again(admin, lost.cntlid),
        (Reconnect::Nbd, ..) => world.nbd().io,
        (Reconnect::Queue | Reconnect::Open, ..) => open.io,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, failure_persistence: None, ..ProptestConfig::default() })]

    /// A thousand rounds, four per case.
    #[test]
    fn r25_newest_data_survive_any_reconnect(
        seed: u64,
        rounds in prop::collection::vec(round(), 4),
    ) {
        let mut world = World::new(seed);
        for (number, round) in (1_u8..).zip(&rounds) {
            run_round(&mut world, round, 2 * number);
        }
        prop_assert!(world.is_quiet());
    }
}

/// A write is lost by one protocol; the other connection must not open before it has ended.
fn waits(lose: impl Fn(&mut World) -> Conn, come: impl Fn(&mut World) -> usize) {
    let mut world = World::new(1);
    let lost = lose(&mut world);
    world.write(lost.io, 0, 1);
    world.run();
    world.cut(lost.io);
    lost.admin.into_iter().for_each(|admin| world.cut(admin));
    world.run();
    let back = come(&mut world);
    world.run();
    assert!(!world.is_open(back), "open while a lost write is in flight");
    assert!(world.complete_one());
    world.run();
    assert!(world.is_open(back), "kept out for ever");
    assert!(world.is_quiet());
}

#[test]
fn r55_nvme_waits_for_a_write_lost_by_nbd() {
    waits(World::nbd, |world| world.begin_association(Host::First));
}

#[test]
fn r55_nbd_waits_for_a_write_lost_by_nvme() {
    waits(|world| world.attach(Host::First, 1), World::begin_nbd);
}

#[test]
fn r55_nbd_waits_for_a_write_lost_by_nbd() {
    waits(World::nbd, World::begin_nbd);
}

#[test]
fn r55_other_host_waits_for_a_write_lost_by_the_first() {
    waits(|world| world.attach(Host::First, 1), |world| world.begin_association(Host::Second));
}

/// The writes of a session that is dropped, as after a panic, are waited for as well.
#[test]
fn r55_write_of_a_dropped_session_is_waited_for() {
    for nbd in [false, true] {
        let mut world = World::new(1);
        let lost = if nbd { world.nbd() } else { world.attach(Host::First, 1) };
        world.write(lost.io, 0, 1);
        world.run();
        world.drop_session(lost.io);
        let back = world.begin_nbd();
        world.run();
        assert!(!world.is_open(back));
        assert!(world.complete_one());
        world.run();
        assert!(world.is_open(back), "kept out for ever");
    }
}
