//! WRITE ATOMIC (SBC-4): what reaches the disk is one write that it does atomically.

use export::{AtomicWrites, Fault, Op};
use scsi::{Sense, Status};

use crate::world::{Progress, SECTOR, World, code, ten};

const READ_LIMITS: [u8; 5] = [0x12, 1, 0xb0, 0, 64];
const ATOMIC: Op = Op::WriteAtomic { durable: false };

/// A disk that writes 1 KiB to 8 KiB atomically.
fn world() -> World {
    World::of((512, 512), |export| export.geometry.atomic = AtomicWrites::new(1024, 8192))
}

fn write_atomic(flags: u8, lba: u64, blocks: u16) -> Vec<u8> {
    let length = blocks.to_be_bytes();
    [&[0x9c, flags][..], &lba.to_be_bytes(), &[0, 0], &length, &[0, 0]].concat()
}

#[test]
fn aligned_power_of_two_is_one_atomic_write() {
    let mut world = world();
    for (lba, blocks) in [(0, 2), (6, 2), (8, 4), (496, 16)] {
        let data = vec![0xaa; usize::from(blocks) * SECTOR];
        world.ops.clear();
        assert!(world.run_out(&write_atomic(0, lba, blocks), &data).is_good());
        assert_eq!(world.ops, [(ATOMIC, lba, blocks.into())]);
    }
    assert_eq!(world.blocks(8, 4), [0xaa; 4 * SECTOR]);
    assert!(world.run_out(&write_atomic(0x18, 0, 2), &[1; 2 * SECTOR]).is_good());
    assert_eq!(world.ops.last(), Some(&(Op::WriteAtomic { durable: true }, 0, 2)));
}

#[test]
fn other_lengths_are_completed_with_the_blocks_around() {
    let mut world = world();
    let before = world.disk.clone();
    let data = [0xaa; 6 * SECTOR];
    assert!(world.run_out(&write_atomic(0, 10, 6), &data).is_good());
    assert_eq!(world.ops, [(Op::Read, 8, 8), (ATOMIC, 8, 8)]);
    assert_eq!(world.notifications, 1);
    assert_eq!(world.blocks(10, 6), data);
    assert_eq!(world.disk[..10 * SECTOR], before[..10 * SECTOR]);
    assert_eq!(world.disk[16 * SECTOR..], before[16 * SECTOR..]);
}

/// The initiator knows of its own blocks only.
#[test]
fn error_of_the_blocks_around_names_those_of_the_command() {
    for faults in [vec![Err(Fault::Io)], vec![Ok(()), Err(Fault::Io)]] {
        let mut world = world();
        world.faults.extend(faults);
        let response = world.run_out(&write_atomic(0, 10, 6), &[0xaa; 6 * SECTOR]);
        assert_eq!(response.sense, Some(Sense::WRITE_ERROR.with_information(10)));
    }
}

#[test]
fn completion_excludes_other_writes() {
    let mut world = world();
    let other = world.add();
    let data = &mut &[0xaa; 6 * SECTOR][..];
    let job = world.job(0, &write_atomic(0, 0, 6));
    let Progress::Submitted(job, read) = world.advance(0, job, data) else { panic!("no read") };
    assert_eq!(read.op(), Op::Read);
    assert_eq!(world.send(other, &ten(0x2a, 0, 7, 1), &[9; SECTOR]).status, Status::Busy);
    let Progress::Submitted(job, write) = world.finish(0, job, read, data) else {
        panic!("no write");
    };
    assert_eq!(world.send(other, &ten(0x2a, 0, 7, 1), &[9; SECTOR]).status, Status::Busy);
    let Progress::Done(response) = world.finish(0, job, write, data) else { panic!("no end") };
    assert!(response.is_good());
    assert!(world.send(other, &ten(0x2a, 0, 7, 1), &[9; SECTOR]).is_good());
}

#[test]
fn impossible_ranges_are_refused_without_a_write() {
    let mut world = world();
    let field = |byte| Some(Sense::INVALID_FIELD_IN_CDB.with_field(byte));
    // Longer than the disk can.
    assert_eq!(world.run(&write_atomic(0, 0, 18)).sense, field(12));
    // No multiple of the granularity.
    assert_eq!(world.run(&write_atomic(0, 0, 3)).sense, field(12));
    assert_eq!(world.run(&write_atomic(0, 3, 2)).sense, field(2));
    // Across a multiple of the longest write.
    assert_eq!(world.run(&write_atomic(0, 14, 4)).sense, field(2));
    assert_eq!(code(&world.run(&write_atomic(0, 511, 2))), (0x21, 0));
    assert_eq!(code(&world.run(&write_atomic(0, u64::MAX, 2))), (0x21, 0));
    assert_eq!(code(&world.run(&write_atomic(0, 513, 0))), (0x21, 0));
    let mut bounded = write_atomic(0, 0, 4);
    bounded[11] = 2;
    assert_eq!(world.run(&bounded).sense, field(11));
    assert!(world.run(&write_atomic(0, 0, 0)).is_good());
    assert_eq!(world.ops, []);
}

#[test]
fn completion_beyond_the_end_of_the_disk_is_refused() {
    let mut world = world();
    world.export.resize(510 * SECTOR as u64);
    world.disk.truncate(510 * SECTOR);
    assert_eq!(code(&world.run_out(&write_atomic(0, 504, 6), &[1; 6 * SECTOR])), (0x24, 0));
    assert!(world.run_out(&write_atomic(0, 504, 4), &[1; 4 * SECTOR]).is_good());
}

#[test]
fn limits_are_those_of_the_disk_and_of_the_memory() {
    let fields = |world: &mut World| {
        let page = world.run(&READ_LIMITS).data;
        let number = |at: usize| u32::from_be_bytes(page[at..at + 4].try_into().unwrap());
        [44, 48, 52, 56, 60].map(number)
    };
    assert_eq!(fields(&mut world()), [16, 2, 2, 0, 0]);
    let large = AtomicWrites::new(512, 1 << 20);
    let mut large = World::of((512, 512), |export| export.geometry.atomic = large);
    assert_eq!(fields(&mut large), [256, 1, 1, 0, 0]);
    let too_large = AtomicWrites::new(1 << 20, 1 << 20);
    let mut too_large = World::of((512, 512), |export| export.geometry.atomic = too_large);
    assert_eq!(fields(&mut too_large), [0; 5]);
}

#[test]
fn disk_without_atomic_writes_has_no_such_command() {
    let mut world = World::new();
    assert_eq!(world.run(&write_atomic(0, 0, 2)).sense, Some(Sense::INVALID_OPCODE));
    let page = world.run(&READ_LIMITS).data;
    assert_eq!(page[44..64], [0; 20]);
    let report = [0xa3, 0x0c, 1, 0x9c, 0, 0, 0, 0, 0, 255, 0, 0];
    assert_eq!(world.run(&report).data[1], 1);
}
