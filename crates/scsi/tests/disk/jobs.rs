//! Commands that are jobs: several disk requests, exclusive access, faults in between.

use export::{Fault, Op};
use scsi::{Command, Sense, Status};

use crate::world::{Progress, SECTOR, World, code, sixteen, ten};

const WRITE: Op = Op::Write { durable: false };

fn compare_and_write(flags: u8, lba: u64, blocks: u8) -> Vec<u8> {
    let mut cdb = sixteen(0x89, flags, lba, 0);
    cdb[13] = blocks;
    cdb
}

/// Returns data for COMPARE AND WRITE that matches two blocks of the disk.
fn matching(world: &World, lba: usize) -> Vec<u8> {
    [world.blocks(lba, 2), &[0xbb; 2 * SECTOR]].concat()
}

#[test]
fn compare_and_write_writes_if_the_blocks_match() {
    let mut world = World::new();
    let data = matching(&world, 8);
    assert!(world.run_out(&compare_and_write(0x08, 8, 2), &data).is_good());
    assert_eq!(world.blocks(8, 2), [0xbb; 2 * SECTOR]);
    assert_eq!(world.ops, [(Op::Read, 8, 2), (Op::Write { durable: true }, 8, 2)]);
    assert_eq!(world.notifications, 1);
    assert!(!world.export.is_being_written());
}

#[test]
fn miscompare_has_the_offset_of_the_first_difference() {
    let mut world = World::new();
    let before = world.disk.clone();
    for offset in [0, 27, 512, 1023] {
        let mut data = matching(&world, 8);
        data[offset] ^= 1;
        let response = world.run_out(&compare_and_write(0, 8, 2), &data);
        assert_eq!(response.sense, Some(Sense::MISCOMPARE.with_information(offset as u64)));
    }
    assert_eq!(world.disk, before);
    assert_eq!(world.notifications, 4);
}

#[test]
fn compare_and_write_is_limited_and_may_be_empty() {
    let mut world = World::new();
    assert!(world.run(&compare_and_write(0, 8, 0)).is_good());
    assert_eq!(code(&world.run(&compare_and_write(0, 0, 129))), (0x24, 0));
    assert_eq!(code(&world.run(&compare_and_write(0, 511, 2))), (0x21, 0));
    assert_eq!(code(&world.run(&compare_and_write(0, 0, 255))), (0x24, 0));
    let data = [&world.disk[..64 << 10], &vec![7; 64 << 10]].concat();
    assert!(world.run_out(&compare_and_write(0, 0, 128), &data).is_good());
}

#[test]
fn compare_and_write_waits_for_writes_and_blocks_new_ones() {
    let mut world = World::new();
    let other = world.add();
    // A write of the other initiator is in flight.
    let write = world.job(other, &ten(0x2e, 0, 0, 1));
    let Progress::Submitted(write, admitted) = world.advance(other, write, &mut &[1; SECTOR][..])
    else {
        panic!("no write");
    };
    let data = matching(&world, 8);
    let data = &mut &data[..];
    let job = world.job(0, &compare_and_write(0, 8, 2));
    let Progress::Waiting(job) = world.advance(0, job, data) else { panic!("does not wait") };
    assert!(job.is_exclusive());
    // While it waits, no other write begins.
    let response = world.send(other, &ten(0x2a, 0, 9, 1), &[9; SECTOR]);
    assert_eq!(response.status, Status::Busy);
    let late = world.job(other, &ten(0x41, 0, 9, 1));
    let late_data = &mut &[9; SECTOR][..];
    let Progress::Waiting(late) = world.advance(other, late, late_data) else {
        panic!("does not wait");
    };
    // The write ends; the one that follows its read-back needs nothing of that.
    let Progress::Submitted(_, read) = world.finish(other, write, admitted, &mut &[][..]) else {
        panic!("no read");
    };
    drop(read);
    let Progress::Submitted(job, admitted) = world.advance(0, job, data) else {
        panic!("no read");
    };
    let Progress::Submitted(job, admitted) = world.finish(0, job, admitted, data) else {
        panic!("no write");
    };
    assert!(matches!(world.finish(0, job, admitted, data), Progress::Done(it) if it.is_good()));
    let Progress::Submitted(late, admitted) = world.advance(other, late, late_data) else {
        panic!("no write");
    };
    assert!(matches!(
        world.finish(other, late, admitted, late_data),
        Progress::Done(response) if response.is_good()
    ));
    assert_eq!(world.blocks(9, 1), [9; SECTOR]);
}

#[test]
fn dropped_job_ends_exclusive_access() {
    let mut world = World::new();
    let data = matching(&world, 8);
    let job = world.job(0, &compare_and_write(0, 8, 2));
    let Progress::Submitted(job, read) = world.advance(0, job, &mut &data[..]) else {
        panic!("no read");
    };
    assert!(job.is_exclusive() && world.export.is_being_written());
    drop((job, read));
    assert!(!world.export.is_being_written());
}

#[test]
fn job_does_not_continue_on_a_replaced_disk() {
    let mut world = World::new();
    let data = matching(&world, 8);
    let data = &mut &data[..];
    let job = world.job(0, &compare_and_write(0, 8, 2));
    let Progress::Submitted(job, read) = world.advance(0, job, data) else { panic!("no read") };
    world.replace();
    let Progress::Done(response) = world.finish(0, job, read, data) else { panic!("no end") };
    assert_eq!(response.sense, Some(Sense::MEDIUM_NOT_PRESENT));
    assert_eq!(world.notifications, 1);
}

#[test]
fn fault_of_a_job_ends_it_and_its_exclusive_access() {
    let mut world = World::new();
    for faults in [vec![Err(Fault::Io)], vec![Ok(()), Err(Fault::Io)]] {
        world.faults.extend(faults);
        let data = matching(&world, 8);
        let response = world.run_out(&compare_and_write(0, 8, 2), &data);
        assert_eq!(response.sense.unwrap().information(), Some(8));
        assert!(!world.export.is_being_written());
    }
    assert_eq!(world.notifications, 2);
}

#[test]
fn verify_reads_and_compares_in_pieces() {
    let mut world = World::of((4096, 4096), |_| {});
    assert!(world.run(&ten(0x2f, 0, 0, 200)).is_good());
    assert_eq!(
        world.ops,
        [(Op::Read, 0, 64), (Op::Read, 64, 64), (Op::Read, 128, 64), (Op::Read, 192, 8)]
    );
    let mut data = world.blocks(3, 100).to_vec();
    assert!(world.run_out(&ten(0x2f, 2, 3, 100), &data).is_good());
    *data.last_mut().unwrap() ^= 1;
    assert_eq!(world.run_out(&ten(0x2f, 2, 3, 100), &data).sense, Some(Sense::MISCOMPARE));
    assert!(world.run(&ten(0x2f, 0x12, 3, 0)).is_good());
    assert_eq!(code(&world.run(&ten(0x2f, 4, 0, 1))), (0x24, 0));
    assert_eq!(code(&world.run(&ten(0x2f, 2, 512, 1))), (0x21, 0));
}

#[test]
fn verify_compares_each_block_with_one() {
    let mut world = World::new();
    let one = [7; SECTOR];
    assert!(world.run_out(&ten(0x41, 0, 0, 300), &one).is_good());
    let verify = |world: &mut World, lba, blocks| {
        world.run_out(&ten(0x2f, 6, lba, blocks), if blocks == 0 { &[] } else { &one }).sense
    };
    assert_eq!(verify(&mut world, 0, 300), None);
    assert_eq!(verify(&mut world, 0, 301), Some(Sense::MISCOMPARE));
    assert_eq!(verify(&mut world, 400, 1), Some(Sense::MISCOMPARE));
    assert_eq!(verify(&mut world, 400, 0), None);
    // WRITE AND VERIFY has no such check.
    for byte_check in [4, 6] {
        assert_eq!(code(&world.run(&ten(0x2e, byte_check, 0, 1))), (0x24, 0));
    }
}

#[test]
fn write_and_verify_reads_back_from_stable_storage() {
    let mut world = World::new();
    let data = vec![0x5a; 3 * SECTOR];
    assert!(world.run_out(&ten(0x2e, 0x12, 7, 3), &data).is_good());
    assert_eq!(world.blocks(7, 3), data);
    assert_eq!(world.ops, [(Op::Write { durable: true }, 7, 3), (Op::Read, 7, 3)]);
    world.faults.extend([Ok(()), Err(Fault::Io)]);
    let response = world.run_out(&ten(0x2e, 0, 7, 3), &data);
    assert_eq!(response.sense, Some(Sense::READ_ERROR.with_information(7)));
}

#[test]
fn write_that_is_read_back_wrong_is_a_miscompare() {
    let mut world = World::new();
    let data = &mut &[0x5a; SECTOR][..];
    let job = world.job(0, &ten(0x2e, 2, 7, 1));
    let Progress::Submitted(job, write) = world.advance(0, job, data) else { panic!("no write") };
    let Progress::Submitted(job, read) = world.finish(0, job, write, data) else {
        panic!("no read");
    };
    world.disk[7 * SECTOR + 5] = 0;
    let Progress::Done(response) = world.finish(0, job, read, data) else { panic!("no end") };
    assert_eq!(response.sense, Some(Sense::MISCOMPARE));
}

#[test]
fn or_write_merges_each_piece_with_exclusive_access() {
    let mut world = World::of((4096, 4096), |_| {});
    let blocks = 65;
    let expected: Vec<u8> = world.blocks(1, blocks).iter().map(|byte| byte | 0x41).collect();
    let data = vec![0x41; blocks * 4096];
    assert!(world.run_out(&sixteen(0x8b, 0, 1, 65), &data).is_good());
    assert_eq!(world.blocks(1, blocks), expected);
    assert_eq!(world.ops, [(Op::Read, 1, 64), (WRITE, 1, 64), (Op::Read, 65, 1), (WRITE, 65, 1)]);
    assert_eq!(world.notifications, 2);
    assert!(world.run(&sixteen(0x8b, 0, 1, 0)).is_good());
}

#[test]
fn write_same_repeats_the_block() {
    let mut world = World::new();
    let block: Vec<u8> = (1..=7).cycle().take(SECTOR).collect();
    assert!(world.run_out(&ten(0x41, 0, 2, 510), &block).is_good());
    assert!(world.blocks(2, 510).chunks(SECTOR).all(|one| one == block));
    assert_eq!(world.ops, [(WRITE, 2, 510)]);
    let mut large = World::of((4096, 4096), |_| {});
    let block = [&[7; 4095][..], &[8]].concat();
    assert!(large.run_out(&sixteen(0x93, 8, 0, 130), &block).is_good());
    assert!(large.blocks(0, 130).chunks(4096).all(|one| one == block));
    assert_eq!(large.ops, [(WRITE, 0, 64), (WRITE, 64, 64), (WRITE, 128, 2)]);
}

#[test]
fn write_same_of_zeros_is_one_request() {
    let mut world = World::new();
    let zero = |unmap| Op::Zero { unmap, durable: false, fast: false };
    assert!(world.run_out(&ten(0x41, 0, 2, 5), &[0; SECTOR]).is_good());
    assert!(world.run_out(&ten(0x41, 8, 8, 4), &[0; SECTOR]).is_good());
    assert!(world.run(&sixteen(0x93, 0x09, 16, 4)).is_good());
    assert_eq!(world.ops, [(zero(false), 2, 5), (zero(true), 8, 4), (zero(true), 16, 4)]);
    assert_eq!(world.blocks(16, 4), [0; 4 * SECTOR]);
}

#[test]
fn write_same_of_no_blocks_is_one_to_the_end_of_the_disk() {
    let mut world = World::new();
    assert!(world.run_out(&ten(0x41, 0, 500, 0), &[7; SECTOR]).is_good());
    assert!(world.run(&sixteen(0x93, 0x09, 510, 0)).is_good());
    let zero = Op::Zero { unmap: true, durable: false, fast: false };
    assert_eq!(world.ops, [(WRITE, 500, 12), (zero, 510, 2)]);
    assert_eq!(code(&world.run(&ten(0x41, 0, 512, 0))), (0x21, 0));
    assert_eq!(code(&world.run(&ten(0x41, 0, 513, 0))), (0x21, 0));
    world.export.resize(1 << 30);
    let limit: u32 = (128 << 20) / 512;
    assert_eq!(code(&world.run(&ten(0x41, 0, (1 << 21) - limit - 1, 0))), (0x24, 0));
    let command = world.begin(0, [0; 8], &ten(0x41, 0, (1 << 21) - limit, 0));
    assert!(matches!(command, Command::Job(_)));
}

#[test]
fn write_same_of_too_many_blocks_is_refused() {
    let mut world = World::new();
    world.export.resize(1 << 30);
    assert_eq!(code(&world.run(&sixteen(0x93, 0, 0, (128 << 20) / 512 + 1))), (0x24, 0));
    let limit = sixteen(0x93, 1, 0, (128 << 20) / 512);
    assert!(matches!(world.begin(0, [0; 8], &limit), Command::Job(_)));
    let mut without = World::of((512, 512), |export| export.discard = false);
    assert_eq!(code(&without.run(&ten(0x41, 8, 0, 1))), (0x24, 0));
    assert!(without.run_out(&ten(0x41, 0, 0, 1), &[0; SECTOR]).is_good());
}

fn unmap_list(ranges: &[(u64, u32)]) -> Vec<u8> {
    let len = u16::try_from(ranges.len() * 16).unwrap();
    let mut list = [(len + 6).to_be_bytes(), len.to_be_bytes(), [0; 2], [0; 2]].concat();
    for (lba, blocks) in ranges {
        list.extend(lba.to_be_bytes());
        list.extend(blocks.to_be_bytes());
        list.extend([0; 4]);
    }
    list
}

fn unmap(world: &mut World, list: &[u8]) -> scsi::Response {
    let [high, low] = u16::try_from(list.len()).unwrap().to_be_bytes();
    world.run_out(&[0x42, 0, 0, 0, 0, 0, 0, high, low, 0], list)
}

#[test]
fn unmap_discards_each_range() {
    let mut world = World::new();
    let ranges = [(0, 8), (16, 0), (512, 0), (504, 8)];
    assert!(unmap(&mut world, &unmap_list(&ranges)).is_good());
    assert_eq!(world.ops, [(Op::Discard, 0, 8), (Op::Discard, 504, 8)]);
    assert!(unmap(&mut world, &unmap_list(&[])).is_good());
    assert!(unmap(&mut world, &[]).is_good());
}

#[test]
fn unmap_checks_all_ranges_before_the_first_discard() {
    let mut world = World::new();
    let response = unmap(&mut world, &unmap_list(&[(0, 8), (504, 9)]));
    assert_eq!(code(&response), (0x21, 0));
    assert_eq!(code(&unmap(&mut world, &unmap_list(&[(0, 8), (u64::MAX, 2)]))), (0x21, 0));
    assert_eq!(code(&unmap(&mut world, &unmap_list(&[(0, 1); 257]))), (0x26, 0));
    assert!(unmap(&mut world, &unmap_list(&[(513, 0)])).sense.is_some());
    assert_eq!(world.ops, []);
    assert!(unmap(&mut world, &unmap_list(&[(0, 0); 256])).is_good());
}

#[test]
fn truncated_unmap_list_is_refused() {
    let mut world = World::new();
    let list = unmap_list(&[(0, 8)]);
    for len in 1..list.len() {
        assert_eq!(code(&unmap(&mut world, &list[..len])), (0x1a, 0), "{len}");
    }
    assert_eq!(world.ops, []);
}

fn lba_status(lba: u64, allocation: u32) -> Vec<u8> {
    sixteen(0x9e, 0x12, lba, allocation)
}

#[test]
fn golden_lba_status() {
    let mut world = World::new();
    world.disk[8 * SECTOR..16 * SECTOR].fill(0);
    #[rustfmt::skip]
    assert_eq!(world.run(&lba_status(7, 56)).data, [
        0, 0, 0, 52, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0, // mapped
        0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 8, 1, 0, 0, 0, // deallocated
        0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 1, 0xf0, 0, 0, 0, 0,
    ]);
    assert_eq!(world.run(&lba_status(7, 24)).data[3], 20, "one descriptor");
    assert_eq!(world.run(&lba_status(7, 10)).data, [0, 0, 0, 20, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn partly_unallocated_block_is_mapped() {
    let mut world = World::of((4096, 4096), |_| {});
    world.disk[4096 + 512..3 * 4096 + 512].fill(0);
    let data = world.run(&lba_status(0, 4096)).data;
    let descriptors: Vec<_> = data[8..].chunks(16).map(|it| (it[7], it[11], it[12])).collect();
    assert_eq!(descriptors[..3], [(0, 2, 0), (2, 1, 1), (3, 253, 0)]);
}

#[test]
fn disk_without_extents_is_mapped() {
    let mut world = World::new();
    world.faults.push_back(Err(Fault::Unsupported));
    let data = world.run(&lba_status(500, 24)).data;
    assert_eq!(data[8..], [0, 0, 0, 0, 0, 0, 1, 0xf4, 0, 0, 0, 12, 0, 0, 0, 0]);
    world.faults.push_back(Err(Fault::Io));
    assert_eq!(code(&world.run(&lba_status(500, 24))), (0x11, 0));
    for lba in [512, 513, 1 << 63, u64::MAX] {
        assert_eq!(code(&world.run(&lba_status(lba, 24))), (0x21, 0));
    }
}

#[test]
fn pre_fetch_advises_the_disk() {
    let mut world = World::new();
    assert!(world.run(&ten(0x34, 2, 0, 8)).is_good());
    world.faults.push_back(Err(Fault::Unsupported));
    assert!(world.run(&sixteen(0x90, 0, 8, 0)).is_good());
    assert_eq!(world.ops, [(Op::Prefetch, 0, 8), (Op::Prefetch, 8, 504)]);
    assert_eq!(code(&world.run(&ten(0x34, 0, 513, 0))), (0x21, 0));
    assert_eq!(code(&world.run(&sixteen(0x90, 0, 511, 2))), (0x21, 0));
}

#[test]
fn synchronize_cache_flushes_the_disk() {
    let mut world = World::new();
    assert!(world.run(&ten(0x35, 0, 0, 0)).is_good());
    assert!(world.run(&sixteen(0x91, 2, 511, 1)).is_good());
    assert_eq!(world.ops, [(Op::Flush, 0, 0); 2]);
    assert_eq!(code(&world.run(&ten(0x35, 0, 511, 2))), (0x21, 0));
    world.faults.push_back(Err(Fault::Io));
    assert_eq!(world.run(&ten(0x35, 0, 0, 0)).sense, Some(Sense::WRITE_ERROR));
    let again = world.run(&ten(0x35, 0, 0, 0));
    assert_eq!(again.sense, Some(Sense::WRITE_ERROR), "no later flush succeeds");
}
