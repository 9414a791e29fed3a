//! Disk faults: each becomes a status, is reported, and fails one command only.

use std::cell::Cell;
use std::rc::Rc;

use export::{Event, Fault, Op};
use nvme::command::AdminCommand;
use nvme::host::Payload;
use nvme::status::{Direction, Status};
use nvme::wire::log::{ErrorEntry, lid};
use zerocopy::FromBytes;

use crate::client::{flush, pattern, read, write};
use crate::world::World;

/// Fails the next request only.
fn fail_next(world: &mut World, fault: Fault) {
    let left = Rc::new(Cell::new(Some(fault)));
    world.disk().faults = Box::new(move |_, _, _| left.take());
}

#[test]
fn fault_fails_one_command_with_its_status() {
    let mut world = World::new();
    let (_, io) = world.attach_default();
    for fault in Fault::ALL {
        fail_next(&mut world, fault);
        let read = world.read(io, 0, 1).unwrap_err();
        assert_eq!(read, Status::from_fault(fault, Direction::Read), "{fault:?}");
        fail_next(&mut world, fault);
        let written = world.write(io, 0, &[1; 512]);
        assert_eq!(written, Status::from_fault(fault, Direction::Write), "{fault:?}");
        assert_eq!(world.write(io, 0, &[1; 512]), Status::SUCCESS);
    }
}

#[test]
fn fault_is_reported_and_logged_with_its_lba() {
    let mut world = World::new();
    let (client, io) = world.attach_default();
    fail_next(&mut world, Fault::Io);
    world.read(io, 77, 4).unwrap_err();
    let Some(Event::Fault { op: "read", offset, len: 2048, fault: Fault::Io, .. }) =
        world.events.last()
    else {
        panic!("{:?}", world.events.last())
    };
    assert_eq!(*offset, 77 * 512);
    let page = world.page(client.admin, AdminCommand::log_page(lid::ERROR_INFORMATION, 0, 64));
    let entry = ErrorEntry::read_from_bytes(&page.unwrap()).unwrap();
    assert_eq!((entry.error_count.get(), entry.sqid.get(), entry.lba.get()), (1, 1, 77));
    assert_eq!(Status::from_field(entry.status.get()).code(), Status::UNRECOVERED_READ_ERROR);
}

#[test]
fn faults_fail_only_their_own_commands() {
    let mut world = World::new();
    let (_, io) = world.attach_default();
    world.disk().faults =
        Box::new(|op, offset, _| (op == Op::Read && offset % 3 == 0).then_some(Fault::Io));
    for tag in 0..60_u32 {
        let buffer = world.buffer(512);
        world.submit(io, read(tag.into(), 1), Payload::Receive(buffer), tag);
    }
    world.run();
    for tag in 0..60 {
        assert_eq!(world.status(io, tag).is_success(), tag % 3 != 0, "{tag}");
    }
}

#[test]
fn health_log_counts_operations() {
    let mut world = World::new();
    let (client, io) = world.attach_default();
    world.read(io, 0, 2000).unwrap();
    world.write(io, 0, &pattern(1, 4096));
    fail_next(&mut world, Fault::Io);
    world.send_dataless(io, flush());
    let page = world.page(client.admin, AdminCommand::log_page(lid::SMART, 0, 512)).unwrap();
    let log = nvme::wire::log::SmartLog::read_from_bytes(&page).unwrap();
    assert_eq!((log.hrc.get(), log.dur.get()), (1, 2), "2000 blocks are two thousands of units");
    assert_eq!((log.hwc.get(), log.duw.get()), (1, 1));
    assert_eq!(log.mdie.get(), 1);
    assert_ne!(log.critical_warning, 0, "a failed flush lost data");
}

#[test]
fn disk_with_failing_writes_is_readable() {
    let mut world = World::new();
    let (_, io) = world.attach_default();
    world.disk().faults = Box::new(|op, _, _| op.mutates().then_some(Fault::NoSpace));
    for len in [512, 65_536] {
        let data = world.host_buffer(&vec![1; len]);
        let done = world.command(io, write(0, (len / 512) as u32), Payload::Send(data));
        assert_eq!(done.status, Status::CAPACITY_EXCEEDED.dnr());
    }
    assert!(world.read(io, 0, 8).is_ok());
}
