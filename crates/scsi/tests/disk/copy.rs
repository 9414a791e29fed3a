//! EXTENDED COPY and RECEIVE COPY RESULTS (SPC-4).

use export::{Fault, Op};
use scsi::{Command, Response, Sense};

use crate::world::{World, code, sixteen};

/// The CSCD descriptor of the disk.
fn disk() -> Vec<u8> {
    let mut descriptor = vec![0xe4, 0, 0, 0, 1, 3, 0, 8, 0x31, 2, 3, 4, 5, 6, 8, 0x0a];
    descriptor.resize(32, 0);
    descriptor[30] = 2;
    descriptor
}

/// A segment descriptor, with the index of the destination.
fn segment(index: u8, blocks: u16, source: u64, destination: u64) -> Vec<u8> {
    let mut descriptor = vec![0x02, 0, 0, 24, 0, 0, 0, index, 0, 0];
    descriptor.extend(blocks.to_be_bytes());
    descriptor.extend(source.to_be_bytes());
    descriptor.extend(destination.to_be_bytes());
    descriptor
}

fn list(disks: &[u8], segments: &[u8]) -> Vec<u8> {
    let mut list = vec![5, 0];
    list.extend(u16::try_from(disks.len()).unwrap().to_be_bytes());
    list.extend([0; 4]);
    list.extend(u32::try_from(segments.len()).unwrap().to_be_bytes());
    list.extend([0; 4]);
    [&list, disks, segments].concat()
}

fn copy(world: &mut World, list: &[u8]) -> Response {
    let mut cdb = sixteen(0x83, 0, 0, 0);
    cdb[10..14].copy_from_slice(&u32::try_from(list.len()).unwrap().to_be_bytes());
    world.run_out(&cdb, list)
}

fn status(world: &mut World) -> Response {
    let mut cdb = sixteen(0x84, 0, 0, 1024);
    cdb[2] = 5;
    world.run(&cdb)
}

#[test]
fn golden_operating_parameters() {
    let mut expected = vec![0, 0, 0, 42, 1, 0, 0, 0, 0, 8, 0, 64, 0, 0, 0x10, 0, 1, 0xff, 0xfe, 0];
    expected.resize(34, 0);
    expected.extend([0, 255, 255, 9, 0, 0, 0, 0, 0, 2, 2, 0xe4]);
    assert_eq!(World::new().run(&sixteen(0x84, 3, 0, 1024)).data, expected);
}

#[test]
fn segments_are_copied_in_pieces() {
    let mut world = World::of((4096, 4096), |_| {});
    let expected = [world.blocks(0, 100), world.blocks(200, 1)].concat();
    let segments = [segment(0, 100, 0, 300), segment(0, 0, 7, 7), segment(0, 1, 200, 400)].concat();
    assert!(copy(&mut world, &list(&disk(), &segments)).is_good());
    assert_eq!([world.blocks(300, 100), world.blocks(400, 1)].concat(), expected);
    let write = Op::Write { durable: false };
    let (first, second) =
        ([(Op::Read, 0, 64), (write, 300, 64)], [(Op::Read, 64, 36), (write, 364, 36)]);
    assert_eq!(world.ops, [first, second, [(Op::Read, 200, 1), (write, 400, 1)]].concat());
    assert_eq!(status(&mut world).data, [0, 0, 0, 8, 1, 0, 3, 1, 0, 0, 1, 0x94]);
}

#[test]
fn copy_that_fails_has_a_status() {
    let mut world = World::new();
    assert_eq!(code(&status(&mut world)), (0x24, 0));
    world.faults.extend([Ok(()), Ok(()), Ok(()), Err(Fault::NoSpace)]);
    let segments = [segment(0, 2, 0, 300), segment(0, 2, 0, 400)].concat();
    let response = copy(&mut world, &list(&disk(), &segments));
    assert_eq!(response.sense, Some(Sense::NO_SPACE));
    assert_eq!(status(&mut world).data, [0, 0, 0, 8, 2, 0, 1, 1, 0, 0, 0, 1]);
}

#[test]
fn other_disks_and_ranges_beyond_the_end_are_refused() {
    let mut world = World::new();
    let good = segment(0, 8, 0, 8);
    let mut other = disk();
    other[15] ^= 1;
    for (disks, index) in [(other, 0), (disk(), 1), (Vec::new(), 0)] {
        let segments = [good.clone(), segment(index, 8, 0, 8)].concat();
        let response = copy(&mut world, &list(&disks, &segments));
        assert_eq!(response.sense, Some(Sense::UNREACHABLE_COPY_TARGET));
    }
    for (source, destination) in [(0, 505), (505, 0), (u64::MAX, 0), (0, u64::MAX)] {
        let segments = [good.clone(), segment(0, 8, source, destination)].concat();
        let response = copy(&mut world, &list(&disk(), &segments));
        assert_eq!(response.sense, Some(Sense::COPY_ABORTED));
    }
    assert_eq!(world.ops, []);
    let mut protected = World::read_only();
    let response = copy(&mut protected, &list(&disk(), &good));
    assert_eq!(response.sense, Some(Sense::WRITE_PROTECTED));
}

#[test]
fn list_longer_than_any_copy_is_refused_before_it_is_sent() {
    let mut world = World::new();
    for length in [16 + 4096 + 1, 1 << 20, u32::MAX] {
        let command = world.begin(0, [0; 8], &sixteen(0x83, 0, 0, length));
        assert_eq!(command.data_out(&world.initiators[0].grant), 0);
        assert!(matches!(command, Command::Done(response) if code(&response) == (0x1a, 0)));
    }
}

#[test]
fn malformed_copy_lists_are_refused() {
    let mut world = World::new();
    let (disk, segment) = (disk(), segment(0, 8, 0, 8));
    let whole = list(&disk, &segment);
    for len in [1, 15, 16, 47, 48, whole.len() - 1] {
        assert_eq!(code(&copy(&mut world, &whole[..len])), (0x1a, 0), "{len}");
    }
    assert_eq!(code(&copy(&mut world, &list(&disk.repeat(9), &segment))), (0x26, 6));
    assert_eq!(code(&copy(&mut world, &list(&disk, &segment.repeat(65)))), (0x26, 8));
    assert_eq!(code(&copy(&mut world, &list(&disk, &segment.repeat(150)))), (0x1a, 0));
    let other = |bytes: &[u8], kind| [&[kind], &bytes[1..]].concat();
    assert_eq!(code(&copy(&mut world, &list(&other(&disk, 0xe0), &segment))), (0x26, 7));
    assert_eq!(code(&copy(&mut world, &list(&disk, &other(&segment, 0x03)))), (0x26, 9));
    let mut inline = whole.clone();
    inline[15] = 1;
    assert_eq!(code(&copy(&mut world, &inline)), (0x26, 0));
    assert!(copy(&mut world, &[]).is_good());
    assert_eq!(world.ops, []);
    assert!(copy(&mut world, &list(&disk.repeat(8), &segment.repeat(64))).is_good());
}
