//! Scarce memory: commands wait for buffers, and all of them complete.

use std::sync::Arc;

use export::{Budget, Buffer, KeyId, Notice, PAGE, Pool, Purpose, Tenant};
use nvme::host::Payload;
use nvme::status::Status;
use nvme::wire::command::Fuse;

use crate::client::{AttachParams, compare, pattern, read, write};
use crate::world::{BYTES, Chunks, Order, World};

#[test]
fn all_commands_complete_in_minimal_memory() {
    for seed in 1..12 {
        let mut world = World::with_memory(4096);
        world.seed(seed);
        (world.order, world.chunks) = (Order::Random, Chunks::Random);
        let client = world.attach(&AttachParams { queues: 2, ..AttachParams::default() });
        for &io in &client.io {
            for tag in 0..100_u32 {
                let len = [512, 4096, 16_384, 131_072, 1 << 20][world.random.below(5)];
                let (nlb, lba) =
                    ((len / 512) as u32, world.random.below(BYTES / 512 - 2048) as u64);
                match world.random.below(4) {
                    0 => {
                        let buffer = world.buffer(len);
                        world.submit(io, read(lba, nlb), Payload::Receive(buffer), tag);
                    }
                    1 => {
                        let data = world.host_buffer(&pattern(tag.into(), len));
                        world.submit(io, write(lba, nlb), Payload::Send(data), tag);
                    }
                    2 => {
                        let data = world.host_buffer(&pattern(tag.into(), len));
                        world.submit(io, write(lba, nlb), Payload::SendByR2t(data), tag);
                    }
                    _ => {
                        let data = world.host_buffer(&pattern(tag.into(), len));
                        world.submit(io, compare(lba, nlb), Payload::Send(data), tag);
                    }
                }
            }
        }
        world.run();
        for &io in &client.io {
            for tag in 0..100 {
                let status = world.status(io, tag).code();
                assert!(matches!(status, Status::SUCCESS | Status::COMPARE_FAILURE), "{status}");
            }
            assert_eq!(world.unconsumed(io), 0);
        }
    }
}

#[test]
fn pairs_complete_in_minimal_memory() {
    for seed in 1..12 {
        let mut world = World::with_memory(4096);
        world.seed(seed);
        (world.order, world.chunks) = (Order::Random, Chunks::Random);
        let (_, io) = world.attach_default();
        for pair in 0..20_u32 {
            let len = 65_536;
            let (first, second) =
                (world.host_buffer(&vec![0; len]), world.host_buffer(&vec![1; len]));
            let (first, second) = (Payload::SendByR2t(first), Payload::SendByR2t(second));
            world.submit(io, compare(0, 128).with_fuse(Fuse::First), first, pair * 3);
            world.submit(io, write(0, 128).with_fuse(Fuse::Second), second, pair * 3 + 1);
            let data = world.host_buffer(&pattern(pair.into(), 1 << 20));
            world.submit(io, write(2048, 2048), Payload::SendByR2t(data), pair * 3 + 2);
        }
        world.run();
        for tag in 0..60 {
            assert!(world.completion(io, tag).is_some(), "{tag} never ended");
        }
    }
}

#[test]
fn stream_pauses_without_a_capsule_buffer() {
    let mut world = World::with_memory(4096);
    let (_, io) = world.attach_default();
    world.disk().held = true;
    for tag in 0..120_u32 {
        let data = world.host_buffer(&pattern(tag.into(), 16_384));
        world.submit(io, write(u64::from(tag) * 32, 32), Payload::Send(data), tag);
    }
    world.run();
    assert!(world.disk().requests.len() < 120 && world.unconsumed(io) != 0);
    world.notify(&Notice::StateChanged);
    world.disk().held = false;
    world.run();
    for tag in 0..120 {
        assert_eq!(world.status(io, tag), Status::SUCCESS);
        let start = tag as usize * 16_384;
        assert_eq!(world.disk().bytes[start..start + 16_384], pattern(tag.into(), 16_384));
    }
}

#[test]
fn small_requests_do_not_starve_a_large_one() {
    let mut world = World::with_memory(1 << 18);
    let (_, io) = world.attach_default();
    world.disk().held = true;
    for (tag, nlb) in [(0, 256), (1, 512), (2, 8)] {
        let buffer = world.buffer(nlb as usize * 512);
        world.submit(io, read(0, nlb), Payload::Receive(buffer), tag);
    }
    world.run();
    let under_way = |world: &World| {
        world.disks[0].requests.iter().map(|(_, admitted)| admitted.len()).collect::<Vec<_>>()
    };
    assert_eq!(under_way(&world), [256 * 512], "the small one went first");
    world.complete_one(0);
    world.run();
    assert_eq!(under_way(&world), [512 * 512]);
    world.disk().held = false;
    world.run();
    for tag in 0..3 {
        assert_eq!(world.status(io, tag), Status::SUCCESS);
    }
}

/// Other hosts that hold all the memory, until they are dropped.
struct MemoryHog(#[allow(dead_code, reason = "what is held")] Vec<Buffer>);

impl MemoryHog {
    fn new(budget: &Arc<Budget>) -> Self {
        let pool = Pool::with_budget(usize::MAX, budget.clone());
        let mut held = Vec::new();
        for host in 1..20 {
            let one = pool.open_for(Tenant::Host(KeyId::new(host)));
            let [stream, second] =
                [Purpose::Stream, Purpose::SecondPhase].map(|it| one.sibling(it));
            for account in [one, stream, second] {
                for len in [1 << 20, 1 << 16, PAGE] {
                    held.extend(std::iter::from_fn(|| account.take(len)));
                }
            }
        }
        Self(held)
    }
}

/// Case R34: allocations fail now and then. Commands wait, and no data is lost or mixed up.
#[test]
fn r34_failing_allocations_lose_no_data() {
    const AREA: usize = 1 << 17;
    let budget = Budget::new(0);
    let pool = Pool::with_budget(8 << 20, budget.clone());
    let mut world = World::with_pool(pool.clone());
    (world.order, world.chunks) = (Order::Random, Chunks::Random);
    let (_, io) = world.attach_default();
    let mut model = world.disk().bytes.clone();
    let mut refused = 0;
    for round in 0..90_u64 {
        world.seed(round);
        // As an idle thread does: what is charged in advance would serve small requests.
        pool.trim();
        let mut hog = (round % 3 == 0).then(|| MemoryHog::new(&budget));
        // Each in an area of its own: reads and writes, in-capsule and by R2T.
        let mut reads = Vec::new();
        for tag in 0..32_u32 {
            let start = tag as usize * AREA + 512 * world.random.below(16);
            let len = 512 * (1 + world.random.below([2, 32, 200][round as usize % 3]));
            let (lba, nlb) = ((start / 512) as u64, (len / 512) as u32);
            let bytes = pattern(round * 100 + u64::from(tag), len);
            let place = start..start + len;
            match world.random.below(3) {
                0 => {
                    let buffer = world.buffer(len);
                    world.submit(io, read(lba, nlb), Payload::Receive(buffer), tag);
                    reads.push((tag, place));
                    continue;
                }
                1 => {
                    let data = world.host_buffer(&bytes);
                    world.submit(io, write(lba, nlb), Payload::Send(data), tag);
                }
                _ => {
                    let data = world.host_buffer(&bytes);
                    world.submit(io, write(lba, nlb), Payload::SendByR2t(data), tag);
                }
            }
            model[place].copy_from_slice(&bytes);
        }
        world.run();
        refused += world.connections[io].host.in_flight();
        hog.take();
        // A command that waits with in-capsule data consumes more of the stream in the next turn
        // only.
        (0..3).for_each(|_| world.run());
        for tag in 0..32 {
            let done =
                world.completion(io, tag).unwrap_or_else(|| panic!("{tag} of {round} never ended"));
            assert_eq!(done.status, Status::SUCCESS);
            if let Some((_, place)) = reads.iter().find(|(read, _)| *read == tag) {
                assert!(done.buffer.unwrap().bytes() == &model[place.clone()], "{round}");
            }
        }
        assert!(world.disk().bytes == model, "{round}");
    }
    assert!(refused > 200, "{refused}");
}
