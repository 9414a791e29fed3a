//! Fused Compare and Write: atomic, whichever data arrives first, and with concurrent writers.

use export::{Fault, Op};
use nvme::host::Payload;
use nvme::status::Status;
use nvme::wire::command::Fuse;

use crate::client::{AttachParams, compare, pattern, write};
use crate::world::{Order, World};

/// How the data of both commands is transferred.
#[derive(Debug, Clone, Copy)]
enum Transfer {
    InCapsule,
    R2t,
    /// As VMware hosts do.
    CompareInCapsule,
    WriteInCapsule,
}

const TRANSFERS: [Transfer; 4] =
    [Transfer::InCapsule, Transfer::R2t, Transfer::CompareInCapsule, Transfer::WriteInCapsule];

/// Submits a pair as commands `tag` and `tag + 1`.
fn pair(
    world: &mut World,
    io: usize,
    lba: u64,
    expected: &[u8],
    new: &[u8],
    tag: u32,
    transfer: Transfer,
) {
    let nlb = (expected.len() / 512) as u32;
    let (expected, new) = (world.host_buffer(expected), world.host_buffer(new));
    let (first, second) = match transfer {
        Transfer::InCapsule => (Payload::Send(expected), Payload::Send(new)),
        Transfer::R2t => (Payload::SendByR2t(expected), Payload::SendByR2t(new)),
        Transfer::CompareInCapsule => (Payload::Send(expected), Payload::SendByR2t(new)),
        Transfer::WriteInCapsule => (Payload::SendByR2t(expected), Payload::Send(new)),
    };
    world.submit(io, compare(lba, nlb).with_fuse(Fuse::First), first, tag);
    world.submit(io, write(lba, nlb).with_fuse(Fuse::Second), second, tag + 1);
}

fn block(world: &World, lba: usize) -> Vec<u8> {
    world.disks[0].bytes[lba * 512..][..512].to_vec()
}

#[test]
fn pair_writes_only_if_the_blocks_are_equal() {
    for transfer in TRANSFERS {
        for order in [Order::First, Order::Last] {
            let mut world = World::new();
            world.order = order;
            let (_, io) = world.attach_default();
            let (old, new) = (block(&world, 5), pattern(1, 512));
            pair(&mut world, io, 5, &old, &new, 0, transfer);
            world.run();
            assert_eq!(
                (world.status(io, 0), world.status(io, 1)),
                (Status::SUCCESS, Status::SUCCESS)
            );
            assert_eq!(block(&world, 5), new);
            pair(&mut world, io, 5, &old, &pattern(2, 512), 0, transfer);
            world.run();
            assert_eq!(world.status(io, 0), Status::COMPARE_FAILURE.dnr(), "{transfer:?}");
            assert_eq!(world.status(io, 1), Status::ABORTED_FAILED_FUSED.dnr(), "{transfer:?}");
            assert_eq!(block(&world, 5), new);
        }
    }
}

#[test]
fn concurrent_pairs_are_independent() {
    let mut world = World::new();
    world.order = Order::Random;
    let (_, io) = world.attach_default();
    for number in 0..16_u64 {
        let old = block(&world, number as usize);
        let transfer = TRANSFERS[number as usize % 4];
        pair(&mut world, io, number, &old, &pattern(number, 512), number as u32 * 2, transfer);
    }
    world.run();
    for number in 0..16 {
        assert_eq!(world.status(io, number * 2), Status::SUCCESS);
        assert_eq!(world.status(io, number * 2 + 1), Status::SUCCESS);
        assert_eq!(block(&world, number as usize), pattern(number.into(), 512));
    }
}

#[test]
fn one_of_two_competing_pairs_succeeds() {
    for seed in 1..20 {
        let mut world = World::new();
        world.seed(seed);
        world.order = Order::Random;
        world.chunks = crate::world::Chunks::Random;
        let first = world.attach(&AttachParams::default()).io[0];
        let other = AttachParams { host: "nqn.x:other", ..AttachParams::default() };
        let second = world.attach(&other).io[0];
        let old = block(&world, 9);
        pair(&mut world, first, 9, &old, &pattern(1, 512), 0, TRANSFERS[seed as usize % 4]);
        pair(&mut world, second, 9, &old, &pattern(2, 512), 0, Transfer::CompareInCapsule);
        for tag in 10..14 {
            let data = world.host_buffer(&pattern(3, 512));
            world.submit(second, write(100 + u64::from(tag), 1), Payload::Send(data), tag);
        }
        world.run();
        let won = [first, second].map(|io| {
            let both = (world.status(io, 0), world.status(io, 1));
            match both.0 {
                Status::SUCCESS => assert_eq!(both.1, Status::SUCCESS),
                _ => assert_eq!(
                    both,
                    (Status::COMPARE_FAILURE.dnr(), Status::ABORTED_FAILED_FUSED.dnr())
                ),
            }
            both.0.is_success()
        });
        assert_ne!(won[0], won[1], "seed {seed}");
        assert_eq!(block(&world, 9), pattern(if won[0] { 1 } else { 2 }, 512));
        for tag in 10..14 {
            assert_eq!(world.status(second, tag), Status::SUCCESS, "a plain write starved");
        }
    }
}

#[test]
fn pair_excludes_other_writes() {
    let mut world = World::new();
    let first = world.attach(&AttachParams::default()).io[0];
    let second =
        world.attach(&AttachParams { host: "nqn.x:other", ..AttachParams::default() }).io[0];
    world.disk().held = true;
    let old = block(&world, 9);
    pair(&mut world, first, 9, &old, &pattern(1, 512), 0, Transfer::InCapsule);
    world.run();
    assert_eq!(world.disk().requests.len(), 1);
    let data = world.host_buffer(&pattern(2, 512));
    world.submit(second, write(9, 1), Payload::Send(data), 7);
    world.run();
    assert_eq!(world.disk().requests.len(), 1, "the write did not wait");
    world.complete_one(0);
    world.run();
    let only = world.disk().requests.iter().map(|(_, admitted)| admitted.op()).collect::<Vec<_>>();
    assert_eq!(only, [Op::Write { durable: false }]);
    world.disk().held = false;
    world.run();
    assert_eq!(world.status(second, 7), Status::SUCCESS);
    assert_eq!(block(&world, 9), pattern(2, 512));
}

#[test]
fn pair_waits_for_writes_in_flight() {
    let mut world = World::new();
    let (_, io) = world.attach_default();
    world.disk().held = true;
    let data = world.host_buffer(&pattern(2, 512));
    world.submit(io, write(9, 1), Payload::Send(data), 7);
    world.run();
    pair(&mut world, io, 9, &pattern(2, 512), &pattern(3, 512), 0, Transfer::InCapsule);
    world.run();
    assert_eq!(world.disk().requests.len(), 1);
    world.disk().held = false;
    world.run();
    assert_eq!((world.status(io, 0), world.status(io, 1)), (Status::SUCCESS, Status::SUCCESS));
    assert_eq!(block(&world, 9), pattern(3, 512));
}

#[test]
fn incomplete_pair_is_aborted() {
    let mut world = World::new();
    let (_, io) = world.attach_default();
    for payload in [
        Payload::Send(world.host_buffer(&[1; 512])),
        Payload::SendByR2t(world.host_buffer(&[1; 512])),
    ] {
        world.submit(io, compare(0, 1).with_fuse(Fuse::First), payload, 0);
        world.run();
        assert!(world.completion(io, 0).is_none());
        assert!(world.read(io, 0, 1).is_ok());
        assert_eq!(world.status(io, 0), Status::ABORTED_MISSING_FUSED.dnr());
    }
    let data = world.host_buffer(&[1; 512]);
    let done = world.command(io, write(0, 1).with_fuse(Fuse::Second), Payload::Send(data));
    assert_eq!(done.status, Status::ABORTED_MISSING_FUSED.dnr());
    assert!(world.disk().changes().is_empty());
}

#[test]
fn invalid_command_of_a_pair_fails_both() {
    let mut world = World::new();
    let (_, io) = world.attach_default();
    for (first, second) in
        [(write(0, 1), write(0, 1)), (compare(0, 1), write(1, 1)), (compare(0, 1), compare(0, 1))]
    {
        let data = world.host_buffer(&[1; 512]);
        world.submit(io, first.with_fuse(Fuse::First), Payload::Send(data.clone()), 0);
        world.submit(io, second.with_fuse(Fuse::Second), Payload::Send(data), 1);
        world.run();
        assert!(!world.status(io, 0).is_success());
        assert!(!world.status(io, 1).is_success());
    }
    assert!(world.disk().changes().is_empty());
    assert!(world.read(io, 0, 1).is_ok());
}

#[test]
fn failed_pair_releases_exclusive_access() {
    let cases = [
        (Op::Read, Status::UNRECOVERED_READ_ERROR, Status::ABORTED_FAILED_FUSED),
        (Op::Write { durable: false }, Status::SUCCESS, Status::WRITE_FAULT),
    ];
    for (failing, first, second) in cases {
        let mut world = World::new();
        let (_, io) = world.attach_default();
        let old = block(&world, 0);
        world.disk().faults = Box::new(move |op, _, _| (op == failing).then_some(Fault::Io));
        pair(&mut world, io, 0, &old, &pattern(1, 512), 0, Transfer::InCapsule);
        world.run();
        assert_eq!((world.status(io, 0).code(), world.status(io, 1).code()), (first, second));
        world.disk().faults = Box::new(|_, _, _| None);
        assert_eq!(world.write(io, 0, &[5; 512]), Status::SUCCESS);
    }
}

#[test]
fn lost_pair_releases_exclusive_access() {
    for ended in 0..2 {
        let mut world = World::new();
        let first = world.attach(&AttachParams::default()).io[0];
        let second =
            world.attach(&AttachParams { host: "nqn.x:other", ..AttachParams::default() }).io[0];
        world.disk().held = true;
        let old = block(&world, 0);
        pair(&mut world, first, 0, &old, &pattern(1, 512), 0, Transfer::InCapsule);
        world.run();
        for _ in 0..ended {
            world.complete_one(0);
        }
        world.cut(first);
        let data = world.host_buffer(&[5; 512]);
        world.submit(second, write(0, 1), Payload::Send(data), 7);
        world.disk().held = false;
        world.run();
        assert_eq!(world.status(second, 7), Status::SUCCESS);
        assert_eq!(block(&world, 0), [5; 512]);
    }
}

#[test]
fn pair_restarts_if_its_disk_was_replaced() {
    let mut world = World::new();
    let (_, io) = world.attach_default();
    world.disk().held = true;
    let old = block(&world, 9);
    pair(&mut world, io, 9, &old, &pattern(1, 512), 0, Transfer::InCapsule);
    world.run();
    assert_eq!(world.disk().requests.len(), 1, "its read");
    world.publish(crate::world::DISK, |_| {});
    world.run();
    world.disk().held = false;
    world.run();
    assert_eq!((world.status(io, 0), world.status(io, 1)), (Status::SUCCESS, Status::SUCCESS));
    assert_eq!(block(&world, 9), old);
    assert_eq!(world.disks[1].bytes[9 * 512..][..512], pattern(1, 512));
    let data = world.host_buffer(&pattern(2, 512));
    world.submit(io, write(9, 1), Payload::Send(data), 7);
    world.run();
    assert_eq!(world.status(io, 7), Status::SUCCESS);
}
