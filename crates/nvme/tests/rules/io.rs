//! Commands of the NVM command set (NVM 1.0 §3).

use export::{Access, Fault};
use nvme::command::{AdminCommand, IoCommand};
use nvme::status::Status;
use nvme::wire::{Sgl, Sqe};

use crate::raw_host::{PLAIN, capsule, h2c, read, write, write_in_capsule};
use crate::world::{BLOCKS, DISK, Id, Reply, World, disk};

const OUT_OF_RANGE: Status = Status::LBA_OUT_OF_RANGE.dnr();

/// Commands on blocks without data.
fn verify(slba: u64, nlb: u32) -> Sqe {
    IoCommand::Verify { nsid: 1, slba, nlb, fua: false, limited_retry: false }.emit()
}

fn zeroes(slba: u64, nlb: u32) -> Sqe {
    IoCommand::WriteZeroes { nsid: 1, slba, nlb, fua: false, deallocate: true }.emit()
}

fn compare(slba: u64, nlb: u32) -> Sqe {
    let command = IoCommand::Compare { nsid: 1, slba, nlb, fua: false, limited_retry: false };
    command.emit().with_data(Sgl::transport(nlb.wrapping_mul(512)))
}

#[test]
fn blocks_out_of_range_are_refused_without_overflow() {
    let mut world = World::new();
    let (_, io) = world.attached();
    let before = world.disk.clone();
    let places = [
        (BLOCKS, 1),
        (BLOCKS - 1, 2),
        (1 << 55, 1),
        (u64::MAX, 1),
        (u64::MAX - 1, 2),
        (u64::MAX - 65535, 65536),
        (1 << 63, 65536),
    ];
    for (slba, nlb) in places {
        for sqe in [
            read(slba, nlb),
            write(slba, nlb),
            compare(slba, nlb),
            verify(slba, nlb),
            zeroes(slba, nlb),
        ] {
            assert_eq!(world.status(io, &sqe), OUT_OF_RANGE, "{sqe:02x?}");
        }
    }
    assert!(world.disk == before && world.conn(io).submitted == 0);
    assert_eq!(world.status(io, &zeroes(BLOCKS - 1, 1)), Status::SUCCESS);
    world.end_all();
}

#[test]
fn transfer_above_mdts_is_refused() {
    let mut world = World::new();
    let (_, io) = world.attached();
    let blocks = (1 << 20) / 512;
    assert_eq!(world.fetch(io, &read(0, blocks)).len(), 1 << 20);
    for sqe in [read(0, blocks + 1), write(0, blocks + 1), compare(0, blocks + 1)] {
        assert_eq!(world.status(io, &sqe), Status::INVALID_FIELD.dnr());
    }
    world.end_all();
}

#[test]
fn invalid_namespaces_are_refused() {
    let mut world = World::new();
    let (_, io) = world.attached();
    let none = Status::INVALID_NAMESPACE.dnr();
    for nsid in [0, 2, 0xffff_fffe, u32::MAX] {
        let sqes = [read(0, 1), write(0, 1), compare(0, 1), verify(0, 1), zeroes(0, 1)];
        for sqe in sqes {
            assert_eq!(world.status(io, &Sqe { nsid: nsid.into(), ..sqe }), none, "{nsid:#x}");
        }
        let flush = world.status(io, &IoCommand::Flush { nsid }.emit());
        assert_eq!(flush, if nsid == u32::MAX { Status::SUCCESS } else { none });
    }
    world.end_all();
}

#[test]
fn withdrawn_disk_is_an_invalid_namespace() {
    let mut world = World::new();
    let (_, io) = world.attached();
    world.conn(io).hold = true;
    world.send(io, &capsule(PLAIN, &read(0, 1).with_cid(1), &[]));
    world.send(io, &capsule(PLAIN, &write(0, 8).with_cid(2), &[]));
    let [Reply::R2t { ttag, .. }] = world.replies(io)[..] else { panic!() };
    world.catalogue.withdraw(&DISK.into());
    // Before and after the queue is notified.
    let not_ready = world.status(io, &read(0, 1).with_cid(3));
    assert_eq!(not_ready.code(), Status::NAMESPACE_NOT_READY);
    world.notify(export::Notice::StateChanged);
    assert_eq!(world.status(io, &read(0, 1).with_cid(4)), Status::INVALID_NAMESPACE.dnr());
    world.send(io, &h2c(PLAIN, 2, ttag, 0, &[1; 4096], true));
    world.finish(io, 0, Err(Fault::Gone));
    let statuses: Vec<Status> = world
        .replies(io)
        .iter()
        .map(|reply| match reply {
            Reply::Done(cqe) => cqe.outcome().code(),
            other => panic!("{other:02x?}"),
        })
        .collect();
    assert_eq!(statuses, [Status::INVALID_NAMESPACE, Status::NAMESPACE_NOT_READY]);
    assert_eq!(world.conn(io).closed, None);
    world.end_all();
}

#[test]
fn shrunk_disk_fails_requests_beyond_its_end() {
    let mut world = World::new();
    let (_, io) = world.attached();
    let [Reply::R2t { ttag, .. }] = world.command(io, &write(BLOCKS - 8, 8), &[])[..] else {
        panic!()
    };
    world.catalogue.find(&DISK.into()).unwrap().resize((BLOCKS - 1) * 512);
    world.notify(export::Notice::StateChanged);
    world.send(io, &h2c(PLAIN, 0, ttag, 0, &[1; 4096], true));
    let [Reply::Done(cqe)] = world.replies(io)[..] else { panic!() };
    assert_eq!(cqe.outcome(), OUT_OF_RANGE);
    world.end_all();
}

#[test]
fn disk_replaced_with_larger_blocks_fails_cleanly() {
    let mut world = World::new();
    let (_, io) = world.attached();
    world.conn(io).hold = true;
    world.send(io, &capsule(PLAIN, &verify(0, 4096).with_cid(1), &[]));
    world.catalogue.publish(disk(Access::Writable, 65536));
    world.notify(export::Notice::StateChanged);
    world.finish(io, 0, Ok(()));
    let [Reply::Done(cqe)] = world.replies(io)[..] else { panic!() };
    assert_eq!(cqe.outcome().code(), Status::NAMESPACE_NOT_READY);
    world.conn(io).hold = false;
    let sqe = read(1, 1).with_data(Sgl::transport(65536)).with_cid(2);
    assert_eq!(world.fetch(io, &sqe), world.disk[65536..131_072]);
    world.end_all();
}

#[test]
fn r48_read_only_disk_refuses_all_writes() {
    let mut world = World::new();
    world.catalogue.publish(disk(Access::ReadOnly, 512));
    let (_, io) = world.attached();
    let ranges = IoCommand::DatasetManagement { nsid: 1, ranges: 1, deallocate: true };
    let copy = IoCommand::Copy { nsid: 1, sdlba: 0, ranges: 1, format: 0, fua: false };
    let cases = [
        (write_in_capsule(0, 1), 512),
        (write(0, 1), 0),
        (zeroes(0, 1), 0),
        (ranges.emit().with_data(Sgl::in_capsule(0, 16)), 16),
        (copy.emit().with_data(Sgl::in_capsule(0, 32)), 32),
    ];
    for (sqe, len) in cases {
        let cqe = world.ask(io, &sqe, &vec![0; len]);
        assert_eq!(cqe.outcome(), Status::NAMESPACE_WRITE_PROTECTED.dnr(), "{sqe:02x?}");
    }
    assert_eq!(world.conn(io).submitted, 0);
    world.end_all();
}

// ---- ranges

fn dataset(io: Id, world: &mut World, ranges: &[(u64, u32)], deallocate: bool) -> Status {
    let count = u16::try_from(ranges.len()).unwrap();
    let data: Vec<u8> = ranges
        .iter()
        .flat_map(|&(slba, nlb)| [&[0xff; 4][..], &nlb.to_le_bytes(), &slba.to_le_bytes()].concat())
        .collect();
    let sqe = IoCommand::DatasetManagement { nsid: 1, ranges: count, deallocate }.emit();
    let sqe = sqe.with_data(Sgl::in_capsule(0, u32::try_from(data.len()).unwrap()));
    world.ask(io, &sqe, &data).outcome()
}

#[test]
fn dataset_management_accepts_256_overlapping_ranges() {
    let mut world = World::new();
    let (_, io) = world.attached();
    let ranges: Vec<_> = (0..256).map(|at| (at % 16, 8)).collect();
    assert_eq!(dataset(io, &mut world, &ranges, true), Status::SUCCESS);
    assert!(world.disk[..23 * 512].iter().all(|&byte| byte == 0));
    assert_eq!(world.disk[23 * 512], 23);
    world.end_all();
}

#[test]
fn dataset_management_checks_all_ranges_first() {
    let mut world = World::new();
    let (_, io) = world.attached();
    let before = world.disk.clone();
    for bad in [(BLOCKS, 1), (0, u32::MAX), (u64::MAX, u32::MAX), (BLOCKS - 1, 2), (u64::MAX, 0)] {
        let mut ranges = vec![(0, 8); 255];
        ranges.push(bad);
        for deallocate in [true, false] {
            assert_eq!(dataset(io, &mut world, &ranges, deallocate), OUT_OF_RANGE, "{bad:x?}");
        }
    }
    assert!(world.disk == before && world.conn(io).submitted == 0);
    assert_eq!(dataset(io, &mut world, &[(0, 0), (BLOCKS, 0)], true), Status::SUCCESS);
    assert_eq!(dataset(io, &mut world, &[(0, 8)], false), Status::SUCCESS);
    assert!(world.disk == before);
    world.end_all();
}

#[test]
fn range_list_shorter_than_its_count_is_refused() {
    let mut world = World::new();
    let (_, io) = world.attached();
    let short = Status::DATA_SGL_LENGTH_INVALID.dnr();
    let ranges = IoCommand::DatasetManagement { nsid: 1, ranges: 256, deallocate: true }.emit();
    let sqe = ranges.with_data(Sgl::in_capsule(0, 16));
    assert_eq!(world.ask(io, &sqe, &[0; 16]).outcome(), short);
    for (format, len) in [(0, 32 * 128), (1, 40 * 128)] {
        let copy = IoCommand::Copy { nsid: 1, sdlba: 0, ranges: 128, format, fua: false }.emit();
        let sqe = copy.with_data(Sgl::transport(len - 4));
        assert_eq!(world.status(io, &sqe), short);
    }
    let huge = ranges.with_data(Sgl::transport(u32::MAX));
    assert_eq!(world.status(io, &huge), Status::INVALID_FIELD.dnr(), "no memory is taken for it");
    world.end_all();
}

/// Copies `sources` (first block and count) to `sdlba`.
fn copy(io: Id, world: &mut World, sources: &[(u64, u32)], format: u8, sdlba: u64) -> Status {
    let pad = if format == 0 { 14 } else { 22 };
    let data: Vec<u8> = sources
        .iter()
        .flat_map(|&(slba, blocks)| {
            let nlb = u16::try_from(blocks - 1).unwrap().to_le_bytes();
            [&[0; 8][..], &slba.to_le_bytes(), &nlb, &vec![0; pad]].concat()
        })
        .collect();
    let ranges = u16::try_from(sources.len()).unwrap();
    let sqe = IoCommand::Copy { nsid: 1, sdlba, ranges, format, fua: false }.emit();
    let sqe = sqe.with_data(Sgl::in_capsule(0, u32::try_from(data.len()).unwrap()));
    world.ask(io, &sqe, &data).outcome()
}

#[test]
fn copy_is_checked_as_a_whole() {
    let mut world = World::new();
    let (_, io) = world.attached();
    let before = world.disk.clone();
    for (sources, sdlba, status) in [
        (vec![(0, 8), (BLOCKS - 7, 8)], 100, OUT_OF_RANGE),
        (vec![(u64::MAX, 65536)], 100, OUT_OF_RANGE),
        (vec![(0, 8)], BLOCKS - 7, OUT_OF_RANGE),
        (vec![(0, 8)], u64::MAX, OUT_OF_RANGE),
        (vec![(0, 1); 129], 1000, Status::COMMAND_SIZE_LIMIT_EXCEEDED.dnr()),
    ] {
        for format in [0, 1] {
            assert_eq!(copy(io, &mut world, &sources, format, sdlba), status, "{sources:x?}");
        }
    }
    assert!(world.disk == before && world.conn(io).submitted == 0);
    for format in [0, 1] {
        let sources = [(5, 1), (600, 700), (1, 2)];
        assert_eq!(copy(io, &mut world, &sources, format, 2000), Status::SUCCESS);
        let expected =
            [&before[5 * 512..6 * 512], &before[600 * 512..1300 * 512], &before[512..3 * 512]]
                .concat();
        assert!(world.disk[2000 * 512..2703 * 512] == expected);
    }
    world.end_all();
}

/// Formats 2h and 3h contain a source namespace.
#[test]
fn x36_copy_formats_with_a_source_namespace_are_refused() {
    let mut world = World::new();
    let (_, io) = world.attached();
    for format in 2..16_u32 {
        let sqe = Sqe { cdw12: (format << 8).into(), opcode: 0x19, ..read(0, 1) };
        assert_eq!(world.status(io, &sqe), Status::INVALID_FIELD.dnr());
    }
    world.end_all();
}

#[test]
fn large_verify_and_write_zeroes_are_split() {
    let mut world = World::new();
    let (_, io) = world.attached();
    let all = u32::try_from(BLOCKS).unwrap();
    assert_eq!(world.status(io, &verify(0, all)), Status::SUCCESS);
    assert_eq!(world.status(io, &zeroes(0, all)), Status::SUCCESS);
    assert!(world.disk.iter().all(|&byte| byte == 0));
    assert_eq!(world.status(io, &verify(1, all)), OUT_OF_RANGE);
    assert_eq!(world.status(io, &zeroes(1, 65536)), OUT_OF_RANGE);
    world.end_all();
}

#[test]
fn disk_faults_map_to_statuses() {
    let sqes = |cid: u16| {
        [read(0, 8), verify(0, 8), zeroes(0, 8), IoCommand::Flush { nsid: 1 }.emit()]
            .map(|sqe| sqe.with_cid(cid))
    };
    for fault in Fault::ALL {
        let mut world = World::new();
        let other_host = world.other_host();
        let (_, io) = world.attached();
        for sqe in sqes(7) {
            world.faults.push_back(Err(fault));
            let status = world.status(io, &sqe);
            assert!(!status.is_success(), "{fault:?} {sqe:02x?}");
            if sqe.opcode == 0 && fault == Fault::Io {
                assert_eq!(status, Status::WRITE_FAULT.dnr(), "a flush that fails loses writes");
            }
        }
        assert_eq!(world.fetch(io, &read(1, 1)), world.disk[512..1024]);
        let flush = world.status(io, &IoCommand::Flush { nsid: 1 }.emit());
        assert!(!flush.is_success(), "no flush succeeds after one that failed");
        world.assert_still_served(other_host);
        world.end_all();
    }
}

// ---- memory

#[test]
fn uninitialized_memory_is_never_sent() {
    let mut world = World::new();
    let (admin, io) = world.attached();
    world.received(admin);
    let faults = [None, Some(Fault::Io), Some(Fault::Gone)];
    for blocks in [1, 2, 7, 8, 9, 64, 255] {
        for fault in faults {
            world.faults.extend(fault.map(Err));
            world.send(io, &capsule(PLAIN, &read(0, blocks), &[]));
            let wire = world.received(io);
            assert!(wire.len() >= 24 && !wire.contains(&testkit::POISON), "{blocks} {fault:?}");
        }
    }
    for cns in 0..=0x1c {
        world.send(admin, &capsule(PLAIN, &AdminCommand::identify(cns, 1).emit(), &[]));
    }
    for lid in 0..=0x12 {
        let page = AdminCommand::log_page(lid, 0, 8192).emit();
        world.send(admin, &capsule(PLAIN, &page, &[]));
    }
    for fid in 0..=0xff {
        let get = AdminCommand::get_features(fid).emit().with_data(Sgl::transport(4096));
        world.send(admin, &capsule(PLAIN, &Sqe { cdw11: 1.into(), nsid: 1.into(), ..get }, &[]));
    }
    assert!(!world.received(admin).contains(&testkit::POISON));
    world.end_all();
}

#[test]
fn small_pool_delays_but_completes_commands() {
    let mut world = World::with_pool(1 << 20);
    let other_host = world.other_host();
    let (_, io) = world.attached();
    world.conn(io).hold = true;
    for cid in 0..100_u16 {
        let sqe = match cid % 4 {
            0 => read(0, 256),
            1 => compare(0, 128),
            2 => write(u64::from(cid) * 16, 16),
            _ => verify(0, 4096),
        };
        world.send(io, &capsule(PLAIN, &sqe.with_cid(cid), &[]));
    }
    let mut answered = 0;
    for _ in 0..2000 {
        for reply in world.replies(io) {
            match reply {
                Reply::R2t { cid, ttag, len, .. } => {
                    world.send(io, &h2c(PLAIN, cid, ttag, 0, &vec![0; len as usize], true));
                }
                Reply::Done(_) => answered += 1,
                _ => {}
            }
        }
        if !world.jobs(io).is_empty() {
            world.finish(io, 0, Ok(()));
        }
    }
    assert_eq!(answered, 100, "every command is answered in the end");
    world.assert_still_served(other_host);
    world.end_all();
}
