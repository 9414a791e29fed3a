//! Durability: Flush, FUA, disabled write cache, and a read-only disk.

use export::{Access, Fault, Op};
use nvme::command::{AdminCommand, IoCommand};
use nvme::host::Payload;
use nvme::status::Status;
use nvme::wire::dataset::DsmRange;
use nvme::wire::feature::fid;
use zerocopy::IntoBytes;

use crate::client::{flush, read, write, write_fua};
use crate::world::World;

fn zeroes(fua: bool, deallocate: bool) -> nvme::wire::Sqe {
    IoCommand::WriteZeroes { nsid: 1, slba: 0, nlb: 1, fua, deallocate }.emit()
}

#[test]
fn write_with_fua_is_durable() {
    let mut world = World::new();
    let (_, io) = world.attach_default();
    let data = world.host_buffer(&[1; 512]);
    world.command(io, write(0, 1), Payload::Send(data.clone()));
    world.command(io, write_fua(1, 1), Payload::Send(data));
    world.send_dataless(io, zeroes(false, false));
    world.send_dataless(io, zeroes(true, true));
    assert_eq!(
        world.disk().changes(),
        [
            (Op::Write { durable: false }, 0, 512),
            (Op::Write { durable: true }, 512, 512),
            (Op::Zero { unmap: false, durable: false, fast: false }, 0, 512),
            (Op::Zero { unmap: true, durable: true, fast: false }, 0, 512),
        ]
    );
}

#[test]
fn writes_are_durable_with_the_cache_disabled() {
    let mut world = World::new();
    let (client, io) = world.attach_default();
    let cache = AdminCommand::get_features(fid::VOLATILE_WRITE_CACHE).emit();
    assert_eq!(world.send_dataless(client.admin, cache).result, 1);
    world.send_dataless(
        client.admin,
        AdminCommand::set_features(fid::VOLATILE_WRITE_CACHE, 0).emit(),
    );
    assert_eq!(world.send_dataless(client.admin, cache).result, 0);
    world.write(io, 0, &[1; 512]);
    world.write(io, 0, &[1; 65_536]);
    let durable = |&(op, _, _): &(Op, u64, u64)| op == Op::Write { durable: true };
    assert!(world.disk().changes().iter().all(durable));
}

#[test]
fn failed_flush_stays_failed() {
    let mut world = World::new();
    let (_, io) = world.attach_default();
    assert_eq!(world.send_dataless(io, flush()).status, Status::SUCCESS);
    let all = IoCommand::Flush { nsid: 0xffff_ffff }.emit();
    assert_eq!(world.send_dataless(io, all).status, Status::SUCCESS);
    assert_eq!(world.disk().changes(), [(Op::Flush, 0, 0); 2]);
    world.disk().faults = Box::new(|op, _, _| (op == Op::Flush).then_some(Fault::Io));
    assert_eq!(world.send_dataless(io, flush()).status.code(), Status::WRITE_FAULT);
    world.disk().faults = Box::new(|_, _, _| None);
    assert_eq!(
        world.send_dataless(io, flush()).status.code(),
        Status::WRITE_FAULT,
        "success after a failure"
    );
}

#[test]
fn r48_read_only_disk_refuses_all_changes() {
    let mut world = World::with(|export| export.access = Access::ReadOnly);
    let (_, io) = world.attach_default();
    let refused = Status::NAMESPACE_WRITE_PROTECTED.dnr();
    assert_eq!(world.write(io, 0, &[1; 512]), refused);
    assert_eq!(world.write(io, 0, &[1; 65_536]), refused);
    assert_eq!(world.send_dataless(io, zeroes(false, true)).status, refused);
    let range = DsmRange { cattr: 0.into(), nlb: 8.into(), slba: 0.into() };
    let data = world.host_buffer(range.as_bytes());
    let discard = IoCommand::DatasetManagement { nsid: 1, ranges: 1, deallocate: true }.emit();
    assert_eq!(world.command(io, discard, Payload::Send(data)).status, refused);
    let mut source = [0; 32];
    source[8] = 1;
    let data = world.host_buffer(&source);
    let copy = IoCommand::Copy { nsid: 1, sdlba: 64, ranges: 1, format: 0, fua: false }.emit();
    assert_eq!(world.command(io, copy, Payload::Send(data)).status, refused);
    assert!(world.disk().changes().is_empty());
    assert!(world.read(io, 0, 1).is_ok());
    assert_eq!(world.send_dataless(io, flush()).status, Status::SUCCESS);
}

#[test]
fn flush_completes_after_earlier_writes() {
    let mut world = World::new();
    let (_, io) = world.attach_default();
    world.disk().held = true;
    let data = world.host_buffer(&[9; 512]);
    world.submit(io, write(0, 1), Payload::Send(data), 1);
    world.run();
    world.complete_one(0);
    world.run();
    assert_eq!(world.status(io, 1), Status::SUCCESS);
    world.submit(io, flush(), Payload::None, 2);
    let buffer = world.buffer(512);
    world.submit(io, read(0, 1), Payload::Receive(buffer), 3);
    world.run();
    assert!(world.completion(io, 2).is_none());
    while world.complete_one(0) {}
    world.run();
    assert_eq!(world.status(io, 2), Status::SUCCESS);
    assert_eq!(world.completion(io, 3).unwrap().buffer.unwrap().bytes(), [9; 512]);
}
