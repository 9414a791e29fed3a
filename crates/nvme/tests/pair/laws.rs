//! Properties: chunking does not matter, every command completes once, and random operations equal
//! those on a `Vec<u8>`.

use nvme::command::IoCommand;
use nvme::host::Payload;
use nvme::status::Status;
use nvme::wire::dataset::DsmRange;
use proptest::prelude::*;
use zerocopy::IntoBytes;

use crate::client::{AttachParams, compare, flush, pattern, read, write};
use crate::world::{BYTES, Chunks, Order, World};

/// An operation of the host.
#[derive(Debug, Clone)]
enum Operation {
    Read { lba: u64, nlb: u32 },
    Write { lba: u64, nlb: u32, asked: bool },
    Zero { lba: u64, nlb: u32 },
    Discard { lba: u64, nlb: u32 },
    Compare { lba: u64, nlb: u32 },
    Copy { from: u64, nlb: u32, to: u64 },
    Flush,
}

fn blocks() -> impl Strategy<Value = (u64, u32)> {
    let nlb = prop_oneof![4 => 1..64_u32, 1 => 64..=2048_u32];
    (0..(BYTES / 512 + 4) as u64, nlb)
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        4 => blocks().prop_map(|(lba, nlb)| Operation::Read { lba, nlb }),
        4 => (blocks(), any::<bool>())
            .prop_map(|((lba, nlb), asked)| Operation::Write { lba, nlb, asked }),
        1 => blocks().prop_map(|(lba, nlb)| Operation::Zero { lba, nlb }),
        1 => blocks().prop_map(|(lba, nlb)| Operation::Discard { lba, nlb }),
        1 => blocks().prop_map(|(lba, nlb)| Operation::Compare { lba, nlb }),
        1 => (blocks(), 0..(BYTES / 512) as u64)
            .prop_map(|((from, nlb), to)| Operation::Copy { from, nlb, to }),
        1 => Just(Operation::Flush),
    ]
}

fn params() -> impl Strategy<Value = AttachParams> {
    (any::<[bool; 3]>(), 0..32_u8).prop_map(|([header_digest, data_digest, flow_control], hpda)| {
        AttachParams { header_digest, data_digest, flow_control, hpda, ..AttachParams::default() }
    })
}

fn submit(world: &mut World, io: usize, operation: &Operation, tag: u32) {
    let data =
        |world: &World, nlb: u32| world.host_buffer(&pattern(tag.into(), nlb as usize * 512));
    let (sqe, payload) = match *operation {
        Operation::Read { lba, nlb } => {
            (read(lba, nlb), Payload::Receive(world.buffer(nlb as usize * 512)))
        }
        Operation::Write { lba, nlb, asked: true } => {
            (write(lba, nlb), Payload::SendByR2t(data(world, nlb)))
        }
        Operation::Write { lba, nlb, asked: false } => {
            (write(lba, nlb), Payload::Send(data(world, nlb)))
        }
        Operation::Compare { lba, nlb } => (compare(lba, nlb), Payload::Send(data(world, nlb))),
        Operation::Flush => (flush(), Payload::None),
        Operation::Zero { lba, nlb } => (
            IoCommand::WriteZeroes { nsid: 1, slba: lba, nlb, fua: false, deallocate: true }.emit(),
            Payload::None,
        ),
        Operation::Discard { lba, nlb } => {
            let range = DsmRange { cattr: 0.into(), nlb: nlb.into(), slba: lba.into() };
            (
                IoCommand::DatasetManagement { nsid: 1, ranges: 1, deallocate: true }.emit(),
                Payload::Send(world.host_buffer(range.as_bytes())),
            )
        }
        Operation::Copy { from, nlb, to } => {
            let mut source = [0; 32];
            source[8..16].copy_from_slice(&from.to_le_bytes());
            source[16..18].copy_from_slice(&(nlb as u16 - 1).to_le_bytes());
            (
                IoCommand::Copy { nsid: 1, sdlba: to, ranges: 1, format: 0, fua: false }.emit(),
                Payload::Send(world.host_buffer(&source)),
            )
        }
    };
    world.submit(io, sqe, payload, tag);
}

fn range(lba: u64, nlb: u32) -> Option<std::ops::Range<usize>> {
    let (start, len) = (lba as usize * 512, nlb as usize * 512);
    (start + len <= BYTES).then_some(start..start + len)
}

/// Applies an operation to a model. Returns the expected status and data.
fn model(disk: &mut [u8], operation: &Operation, tag: u32) -> (Status, Option<Vec<u8>>) {
    let beyond = (Status::LBA_OUT_OF_RANGE, None);
    let well = (Status::SUCCESS, None);
    match *operation {
        Operation::Flush => well,
        Operation::Read { lba, nlb } => match range(lba, nlb) {
            Some(place) => (Status::SUCCESS, Some(disk[place].to_vec())),
            None => beyond,
        },
        Operation::Compare { lba, nlb } => match range(lba, nlb) {
            Some(place) if disk[place.clone()] == pattern(tag.into(), place.len()) => well,
            Some(_) => (Status::COMPARE_FAILURE, None),
            None => beyond,
        },
        Operation::Write { lba, nlb, .. } => match range(lba, nlb) {
            Some(place) => {
                let data = pattern(tag.into(), place.len());
                disk[place].copy_from_slice(&data);
                well
            }
            None => beyond,
        },
        Operation::Zero { lba, nlb } | Operation::Discard { lba, nlb } => match range(lba, nlb) {
            Some(place) => {
                disk[place].fill(0);
                well
            }
            None => beyond,
        },
        Operation::Copy { from, nlb, to } => match (range(from, nlb), range(to, nlb)) {
            (Some(source), Some(place)) => {
                // In chunks of 256 KiB, in ascending order.
                for at in (0..source.len()).step_by(1 << 18) {
                    let piece = (source.len() - at).min(1 << 18);
                    disk.copy_within(
                        source.start + at..source.start + at + piece,
                        place.start + at,
                    );
                }
                well
            }
            _ => beyond,
        },
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Sequential operations equal those on a `Vec<u8>`.
    #[test]
    fn r04_random_operations_equal_a_vector(
        params in params(),
        acts in prop::collection::vec(operation(), 1..30),
        seed: u64,
        in_place: bool,
    ) {
        let mut world = World::new();
        world.seed(seed);
        world.in_place = in_place;
        world.chunks = Chunks::Random;
        let io = world.attach(&params).io[0];
        let mut disk = world.disk().bytes.clone();
        for (tag, operation) in (0..).zip(&acts) {
            submit(&mut world, io, operation, tag);
            world.run();
            let done = world.completion(io, tag).unwrap();
            let (status, data) = model(&mut disk, operation, tag);
            prop_assert_eq!(done.status.code(), status, "{:?}", operation);
            if let Some(data) = data {
                prop_assert!(done.buffer.unwrap().bytes() == data, "{:?}", operation);
            }
        }
        prop_assert!(world.disk().bytes == disk);
    }

    /// Concurrent commands complete exactly once, on the wire and at the disk.
    #[test]
    fn every_command_completes_once(
        params in params(),
        acts in prop::collection::vec(operation(), 1..100),
        seed: u64,
        memory in prop_oneof![Just(4096_usize), Just(1 << 20), Just(16 << 20)],
    ) {
        let mut world = World::with_memory(memory);
        world.seed(seed);
        (world.chunks, world.order, world.in_place) = (Chunks::Random, Order::Random, seed % 2 == 0);
        let io = world.attach(&params).io[0];
        for (tag, operation) in (0..).zip(&acts) {
            submit(&mut world, io, operation, tag);
            let turns = world.random.below(4);
            world.run_turns(turns);
        }
        world.run();
        for tag in 0..acts.len() as u32 {
            prop_assert!(world.completion(io, tag).is_some(), "{} never ended", tag);
        }
        prop_assert!(world.connections[io].done.is_empty());
        prop_assert_eq!(world.connections[io].submitted, world.connections[io].completed);
        prop_assert_eq!(world.connections[io].host.in_flight(), 0);
    }

    /// Any chunking gives the same responses.
    #[test]
    fn chunking_does_not_change_the_output(
        params in params(),
        acts in prop::collection::vec(operation(), 1..12),
        seed: u64,
    ) {
        let run = |chunks, in_place| {
            let mut world = World::new();
            world.seed(seed);
            (world.chunks, world.in_place) = (chunks, in_place);
            let io = world.attach(&params).io[0];
            for (tag, operation) in (0..).zip(&acts) {
                submit(&mut world, io, operation, tag);
                world.run();
            }
            (world.sent_by_target(io).to_vec(), world.sent_by_host(io).to_vec())
        };
        let whole = run(Chunks::Fixed(1 << 22), false);
        prop_assert!(run(Chunks::Random, false) == whole);
        prop_assert!(run(Chunks::Random, true) == whole);
        prop_assert!(run(Chunks::Fixed(61), true) == whole);
    }

    /// After a loss of connection at any byte with requests in flight, nothing leaks and the next
    /// association works.
    #[test]
    fn connection_can_be_lost_at_any_time(
        params in params(),
        acts in prop::collection::vec(operation(), 1..20),
        turns in 0..200_usize,
        seed: u64,
    ) {
        let mut world = World::new();
        world.seed(seed);
        (world.chunks, world.order) = (Chunks::Random, Order::Random);
        let client = world.attach(&params);
        for (tag, operation) in (0..).zip(&acts) {
            submit(&mut world, client.io[0], operation, tag);
        }
        world.run_turns(turns);
        if seed % 2 == 0 {
            world.cut(client.admin);
        }
        world.cut(client.io[0]);
        world.run();
        let io = world.connections.iter().position(|conn| conn.target_end.is_none() && conn.submitted != conn.completed);
        prop_assert_eq!(io, None);
        world.cut(client.admin);
        world.run();
        let again = world.attach(&params);
        prop_assert!(world.read(again.io[0], 0, 1).is_ok());
    }
}
