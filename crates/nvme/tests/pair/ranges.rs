//! Commands of several disk requests: Write Zeroes, Dataset Management, Compare, Verify and Copy.

use export::{Fault, Op};
use nvme::command::IoCommand;
use nvme::host::Payload;
use nvme::status::Status;
use nvme::wire::Sqe;
use nvme::wire::dataset::DsmRange;
use zerocopy::IntoBytes;

use crate::client::{compare, pattern};
use crate::world::{BYTES, World};

fn discard(ranges: u16) -> Sqe {
    IoCommand::DatasetManagement { nsid: 1, ranges, deallocate: true }.emit()
}

fn list(ranges: &[(u64, u32)]) -> Vec<u8> {
    let of = |&(slba, nlb): &(u64, u32)| DsmRange {
        cattr: 0.into(),
        nlb: nlb.into(),
        slba: slba.into(),
    };
    ranges.iter().map(of).collect::<Vec<_>>().as_bytes().to_vec()
}

fn verify(slba: u64, nlb: u32) -> Sqe {
    IoCommand::Verify { nsid: 1, slba, nlb, fua: false, limited_retry: false }.emit()
}

fn zeroes(slba: u64, nlb: u32) -> Sqe {
    IoCommand::WriteZeroes { nsid: 1, slba, nlb, fua: false, deallocate: false }.emit()
}

fn copy(world: &mut World, io: usize, sdlba: u64, format: u8, sources: &[(u64, u16)]) -> Status {
    let len = [32, 40][usize::from(format)];
    let mut data = vec![0; sources.len() * len];
    for (at, &(slba, nlb)) in sources.iter().enumerate() {
        data[at * len + 8..at * len + 16].copy_from_slice(&slba.to_le_bytes());
        data[at * len + 16..at * len + 18].copy_from_slice(&(nlb - 1).to_le_bytes());
    }
    let ranges = sources.len() as u16;
    let sqe = IoCommand::Copy { nsid: 1, sdlba, ranges, format, fua: false }.emit();
    let data = world.host_buffer(&data);
    world.command(io, sqe, Payload::Send(data)).status
}

#[test]
fn write_zeroes_of_any_length() {
    let mut world = World::new();
    let (_, io) = world.attach_default();
    assert_eq!(world.send_dataless(io, zeroes(8, 4096)).status, Status::SUCCESS);
    assert!(world.disk().bytes[4096..4096 + 4096 * 512].iter().all(|&byte| byte == 0));
    assert_eq!(world.disk().bytes[4096 + 4096 * 512], (4104 % 251) as u8);
    let beyond = (BYTES / 512) as u64 - 1;
    assert_eq!(world.send_dataless(io, zeroes(beyond, 2)).status, Status::LBA_OUT_OF_RANGE.dnr());
}

#[test]
fn ranges_are_checked_before_the_first_discard() {
    let mut world = World::new();
    let (_, io) = world.attach_default();
    let data = world.host_buffer(&list(&[(0, 8), (100, 0), (200, 16)]));
    assert_eq!(world.command(io, discard(3), Payload::Send(data)).status, Status::SUCCESS);
    assert_eq!(world.disk().changes(), [(Op::Discard, 0, 4096), (Op::Discard, 102_400, 8192)]);
    let data = world.host_buffer(&list(&[(0, 8), ((BYTES / 512) as u64, 1)]));
    let done = world.command(io, discard(2), Payload::Send(data));
    assert_eq!(done.status, Status::LBA_OUT_OF_RANGE.dnr());
    assert_eq!(world.disk().changes().len(), 2);
}

#[test]
fn oversized_range_lists_are_accepted() {
    let mut world = World::new();
    let (_, io) = world.attach_default();
    let mut page = list(&[(16, 8)]);
    page.resize(4096, 0xff);
    for payload in
        [Payload::Send(world.host_buffer(&page)), Payload::SendByR2t(world.host_buffer(&page))]
    {
        assert_eq!(world.command(io, discard(1), payload).status, Status::SUCCESS);
    }
    let many: Vec<_> = (0..256).map(|at| (at * 8, 4)).collect();
    let data = world.host_buffer(&list(&many));
    assert_eq!(world.command(io, discard(256), Payload::Send(data)).status, Status::SUCCESS);
    assert_eq!(world.disk().changes().len(), 258);
}

#[test]
fn dataset_hints_change_nothing() {
    let mut world = World::new();
    let (_, io) = world.attach_default();
    let hint = IoCommand::DatasetManagement { nsid: 1, ranges: 1, deallocate: false }.emit();
    let data = world.host_buffer(&list(&[(0, 8)]));
    assert_eq!(world.command(io, hint, Payload::Send(data)).status, Status::SUCCESS);
    assert!(world.disk().changes().is_empty());
}

#[test]
fn compare_works_in_capsule_and_by_r2t() {
    let mut world = World::new();
    let (_, io) = world.attach_default();
    for nlb in [1, 32, 64, 2048] {
        let len = nlb as usize * 512;
        let mut data = world.disk().bytes[..len].to_vec();
        let equal = world.host_buffer(&data);
        let done = world.command(io, compare(0, nlb), Payload::Send(equal));
        assert_eq!(done.status, Status::SUCCESS, "{nlb}");
        data[len - 1] ^= 1;
        let different = world.host_buffer(&data);
        let done = world.command(io, compare(0, nlb), Payload::Send(different));
        assert_eq!(done.status, Status::COMPARE_FAILURE.dnr(), "{nlb}");
    }
}

#[test]
fn verify_reports_unreadable_blocks() {
    let mut world = World::new();
    let (_, io) = world.attach_default();
    assert_eq!(world.send_dataless(io, verify(1, 8000)).status, Status::SUCCESS);
    let read: u64 = world.disk().log.iter().map(|&(_, _, len)| len).sum();
    assert_eq!(read, 8000 * 512);
    world.disk().faults = Box::new(|_, offset, len| {
        (offset..offset + len).contains(&(7777 * 512)).then_some(Fault::Io)
    });
    assert_eq!(
        world.send_dataless(io, verify(1, 8000)).status,
        Status::UNRECOVERED_READ_ERROR.dnr()
    );
    assert_eq!(world.send_dataless(io, verify(0, 7000)).status, Status::SUCCESS);
}

#[test]
fn copy_works_in_both_formats() {
    for format in [0, 1] {
        let mut world = World::new();
        let (_, io) = world.attach_default();
        let data = pattern(5, 1 << 20);
        world.write(io, 0, &data);
        let sources = [(10, 1), (700, 1000), (3, 5)];
        assert_eq!(copy(&mut world, io, 4000, format, &sources), Status::SUCCESS);
        let expected: Vec<u8> = sources
            .iter()
            .flat_map(|&(lba, nlb)| &data[lba as usize * 512..][..usize::from(nlb) * 512])
            .copied()
            .collect();
        assert_eq!(world.disk().bytes[4000 * 512..][..expected.len()], expected);
    }
}

#[test]
fn copy_checks_every_range_before_it_writes() {
    let mut world = World::new();
    let (_, io) = world.attach_default();
    let end = (BYTES / 512) as u64;
    let beyond = Status::LBA_OUT_OF_RANGE.dnr();
    assert_eq!(copy(&mut world, io, 100, 0, &[(0, 1), (end, 1)]), beyond);
    assert_eq!(copy(&mut world, io, end - 1, 0, &[(0, 2)]), beyond);
    let many: Vec<_> = (0..129).map(|at| (at, 1)).collect();
    let status = copy(&mut world, io, 1000, 0, &many);
    assert_eq!(status.code(), Status::COMMAND_SIZE_LIMIT_EXCEEDED);
    assert!(world.disk().changes().is_empty());
}

#[test]
fn copy_fails_with_the_disk_fault() {
    let mut world = World::new();
    let (_, io) = world.attach_default();
    world.disk().faults = Box::new(|op, _, _| op.mutates().then_some(Fault::NoSpace));
    assert_eq!(copy(&mut world, io, 100, 0, &[(0, 4)]), Status::CAPACITY_EXCEEDED.dnr());
    assert!(world.read(io, 0, 1).is_ok());
}
