//! Properties: the split of received bytes and the order of completions do not matter, and the disk
//! behaves like a `Vec<u8>`.

use iscsi::wire::bhs::{self, FINAL, R2t};
use iscsi::wire::opcode;
use proptest::prelude::*;
use testkit::Chunks;

use crate::initiator::{Initiator, NONE, Pdu, data_of, read_10, status, write_10};
use crate::world::World;

/// Size of the disk in bytes.
const DISK: usize = 1 << 20;

#[derive(Debug, Clone)]
enum Step {
    Read { lba: u32, blocks: u16 },
    Write { lba: u32, blocks: u16, byte: u8, immediate: usize, unsolicited: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let (lba, blocks) = (0..2048_u32, 0..1200_u16);
    prop_oneof![
        (lba.clone(), blocks.clone()).prop_map(|(lba, blocks)| Step::Read { lba, blocks }),
        (lba, blocks, 1..255_u8, 0..70_000_usize, 0..70_000_usize).prop_map(
            |(lba, blocks, byte, immediate, unsolicited)| Step::Write {
                lba,
                blocks,
                byte,
                immediate,
                unsolicited
            }
        ),
    ]
}

/// What was negotiated.
#[derive(Debug, Clone)]
struct Keys {
    digests: bool,
    burst: u32,
    first: u32,
    segment: u32,
}

fn keys() -> impl Strategy<Value = Keys> {
    let lengths = prop::sample::select(vec![(512, 512), (65536, 8192), (1 << 20, 65536)]);
    (any::<bool>(), lengths, prop::sample::select(vec![512_u32, 8192, 262_144]))
        .prop_map(|(digests, (burst, first), segment)| Keys { digests, burst, first, segment })
}

fn attach(world: &mut World, keys: &Keys) -> Initiator {
    let digest = if keys.digests { "CRC32C" } else { "None" };
    let (burst, first, segment) =
        (keys.burst.to_string(), keys.first.to_string(), keys.segment.to_string());
    let keys = [
        ("InitiatorName", crate::initiator::NAME),
        ("TargetName", crate::world::TARGET),
        ("HeaderDigest", digest),
        ("DataDigest", digest),
        ("InitialR2T", "No"),
        ("MaxBurstLength", &burst),
        ("FirstBurstLength", &first),
        ("MaxRecvDataSegmentLength", &segment),
    ];
    Initiator::attached_with(world, &keys)
}

/// Executes a step, and answers requests for data.
fn run(world: &mut World, initiator: &mut Initiator, step: &Step, first: usize) -> Vec<Pdu> {
    let (lba, blocks, data, immediate, unsolicited) = match *step {
        Step::Read { lba, blocks } => {
            let expected = u32::from(blocks) * 512;
            return initiator.command(world, read_10(lba, blocks), bhs::READ, expected, &[]);
        }
        Step::Write { lba, blocks, byte, immediate, unsolicited } => {
            let data = vec![byte; usize::from(blocks) * 512];
            let most = first.min(data.len());
            let immediate = immediate.min(most);
            (lba, blocks, data, immediate, unsolicited.clamp(immediate, most.max(immediate)))
        }
    };
    let last = if unsolicited > immediate { 0 } else { FINAL };
    let len = u32::try_from(data.len()).unwrap();
    let command = initiator.scsi(write_10(lba, blocks), last | bhs::WRITE, len);
    let itt = command.itt.get();
    let mut bytes = initiator.pdu(&command, &data[..immediate]);
    if unsolicited > immediate {
        let header = initiator.data_out(itt, NONE, 0, u32::try_from(immediate).unwrap(), true);
        bytes.extend(initiator.pdu(&header, &data[immediate..unsolicited]));
    }
    world.send(initiator.id, &bytes);
    loop {
        while world.complete_any() {
            world.run();
        }
        let pdus = initiator.received(world);
        let Some(pdu) = pdus.last() else { return pdus };
        if pdu.opcode() != opcode::R2T {
            return pdus;
        }
        let r2t = R2t::of(&pdu.header);
        let (mut at, mut sn) = (r2t.offset.get() as usize, 0);
        let end = at + r2t.len.get() as usize;
        while at < end {
            let next = end.min(at + 60_000);
            let offset = u32::try_from(at).unwrap();
            let header = initiator.data_out(itt, r2t.ttt.get(), sn, offset, next == end);
            world.send(initiator.id, &initiator.pdu(&header, &data[at..next]));
            (at, sn) = (next, sn + 1);
        }
    }
}

/// Applies a step to the model. Returns whether it must succeed.
fn model(disk: &mut [u8], step: &Step) -> bool {
    let (Step::Read { lba, blocks } | Step::Write { lba, blocks, .. }) = *step;
    let (start, len) = (lba as usize * 512, usize::from(blocks) * 512);
    let fits = start + len <= DISK;
    if let (true, Step::Write { byte, .. }) = (fits, step) {
        disk[start..start + len].fill(*byte);
    }
    fits
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn random_transfers_equal_a_vec(
        steps in prop::collection::vec(step(), 1..12),
        keys in keys(),
        chunk in prop::sample::select(vec![
            Chunks::Fixed(usize::MAX), Chunks::UpTo(100_000), Chunks::Random, Chunks::UpTo(5000),
        ]),
        direct in any::<bool>(),
    ) {
        let mut world = World::small(DISK, 512);
        let mut initiator = attach(&mut world, &keys);
        (world.chunks, world.direct) = (chunk, direct);
        let mut disk = vec![0; DISK];
        for step in &steps {
            let fits = model(&mut disk, step);
            let pdus = run(&mut world, &mut initiator, step, keys.first as usize);
            prop_assert_eq!(status(&pdus) == 0, fits, "{:?}", step);
            if let Step::Read { lba, blocks } = *step && fits {
                let start = lba as usize * 512;
                prop_assert!(data_of(&pdus) == disk[start..start + usize::from(blocks) * 512]);
                let most = pdus.iter().map(|pdu| pdu.data.len()).max().unwrap();
                prop_assert!(most <= keys.segment as usize);
            }
        }
        prop_assert!(world.disk == disk);
        world.end_all();
    }

    #[test]
    fn reads_complete_in_any_order(
        reads in prop::collection::vec((0..1000_u32, 1..1000_u16), 1..12),
        order in prop::collection::vec(0..1000_usize, 60),
        keys in keys(),
        cut in 1..200_usize,
    ) {
        let mut world = World::small(DISK, 512);
        let pattern = |at: usize| u8::try_from(at * 7 % 251).unwrap();
        world.disk = (0..DISK).map(pattern).collect();
        let mut initiator = attach(&mut world, &keys);
        world.conn(initiator.id).hold = true;
        let mut bytes = Vec::new();
        for &(lba, blocks) in &reads {
            let command =
                initiator.scsi(read_10(lba, blocks), FINAL | bhs::READ, u32::from(blocks) * 512);
            bytes.extend(initiator.pdu(&command, &[]));
        }
        bytes.chunks(cut).for_each(|part| world.send(initiator.id, part));
        for which in order {
            let held = world.jobs(initiator.id).len();
            if held != 0 {
                world.finish(initiator.id, which % held, Ok(()));
            }
        }
        world.finish_all(initiator.id);
        let pdus = initiator.received(&mut world);
        for (at, &(lba, blocks)) in (0x102_u32..).zip(&reads) {
            let own: Vec<Pdu> =
                pdus.iter().filter(|pdu| pdu.header.itt.get() == at).cloned().collect();
            prop_assert_eq!(status(&own), 0);
            let start = lba as usize * 512;
            prop_assert!(data_of(&own) == world.disk[start..start + usize::from(blocks) * 512]);
        }
        world.end_all();
    }
}
