//! Loss of connections at any moment, and reconnects (NVMe Base 2.0 §3.6, §3.9).

use std::time::Duration;

use export::{Event, Fault, Reason};
use nvme::command::{AdminCommand, FabricsCommand, IoCommand};
use nvme::status::Status;
use nvme::wire::feature::fid;
use nvme::wire::{Fuse, Sgl};
use zerocopy::IntoBytes;

use crate::raw_host::{
    ENABLE, PLAIN, capsule, configure, connect_data, connect_sqe, h2c, ic_req, read, write,
    write_in_capsule,
};
use crate::world::{Id, Reply, World};

/// Returns the bytes of a session on an I/O queue.
fn io_session_bytes() -> Vec<u8> {
    let compare =
        IoCommand::Compare { nsid: 1, slba: 3, nlb: 1, fua: false, limited_retry: false }.emit();
    let ranges = IoCommand::DatasetManagement { nsid: 1, ranges: 1, deallocate: true }.emit();
    let commands = [
        (read(0, 8), vec![]),
        (write_in_capsule(8, 1), vec![1; 512]),
        (write(16, 8), vec![]),
        (compare.with_data(Sgl::in_capsule(0, 512)).with_fuse(Fuse::First), vec![3; 512]),
        (write_in_capsule(3, 1).with_fuse(Fuse::Second), vec![4; 512]),
        (ranges.with_data(Sgl::in_capsule(0, 16)), vec![0; 16]),
        (IoCommand::Flush { nsid: 1 }.emit(), vec![]),
        (
            IoCommand::Verify { nsid: 1, slba: 0, nlb: 1024, fua: false, limited_retry: false }
                .emit(),
            vec![],
        ),
    ];
    let numbered = commands.iter().zip(0..);
    numbered.flat_map(|((sqe, data), cid)| capsule(PLAIN, &sqe.with_cid(cid), data)).collect()
}

/// Ends the session after `cut` bytes by `how`, with requests in flight.
fn cut_at(cut: usize, how: impl Fn(&mut World, Id, Id)) {
    let mut world = World::new();
    let (admin, io) = world.attached();
    world.conn(io).hold = true;
    world.send(io, &io_session_bytes()[..cut]);
    how(&mut world, admin, io);
    let count = world.jobs(io).len();
    for at in 0..count {
        let result = if at % 2 == 0 { Ok(()) } else { Err(Fault::Io) };
        world.finish(io, 0, result);
    }
    assert!(world.jobs(io).is_empty(), "a queue that is closed asks for nothing more");
    world.end_all();
}

#[test]
fn connection_can_be_lost_at_any_byte() {
    let len = io_session_bytes().len();
    for cut in (0..len).step_by(37).chain([len]) {
        cut_at(cut, |world, _, io| world.disconnect(io));
    }
}

#[test]
fn association_can_be_lost_at_any_byte() {
    let len = io_session_bytes().len();
    for cut in (0..len).step_by(173).chain([len]) {
        cut_at(cut, |world, admin, io| {
            world.disconnect(admin);
            assert_eq!(world.conn(io).closed, Some(Reason::Ended));
        });
        cut_at(cut, |world, admin, io| {
            world.send(admin, &capsule(PLAIN, &configure(0), &[]));
            assert_eq!(world.conn(io).closed, Some(Reason::Ended));
        });
    }
}

#[test]
fn requests_in_flight_complete_after_a_violation() {
    cut_at(io_session_bytes().len(), |world, _, io| {
        world.send(io, &[0xff; 8]);
        assert_eq!(world.conn(io).closed, Some(Reason::Violation));
    });
}

#[test]
fn handshake_can_be_lost_at_any_byte() {
    let connect = capsule(PLAIN, &connect_sqe(0, 32), connect_data(0xffff).as_bytes());
    let bytes = [ic_req(PLAIN), connect, capsule(PLAIN, &configure(ENABLE), &[])].concat();
    let mut world = World::new();
    let other_host = world.other_host();
    for cut in 0..=bytes.len() {
        let id = world.open();
        world.send(id, &bytes[..cut]);
        world.disconnect(id);
    }
    world.assert_still_served(other_host);
    world.end_all();
}

#[test]
fn stopping_completes_requests_in_flight() {
    let mut world = World::new();
    let (admin, io) = world.attached();
    world.conn(io).hold = true;
    world.send(io, &io_session_bytes());
    world.replies(io);
    world.notify(export::Notice::Stopping);
    assert_eq!(world.conn(admin).closed, Some(Reason::Stopping));
    for _ in 0..100 {
        if !world.jobs(io).is_empty() {
            world.finish(io, 0, Ok(()));
        }
    }
    assert!(matches!(world.conn(io).closed, Some(Reason::Stopping | Reason::Ended)));
    world.end_all();
}

#[test]
fn connect_waits_for_writes_of_the_old_association() {
    let mut world = World::new();
    let other_host = world.other_host();
    let (admin, io) = world.attached();
    world.conn(io).hold = true;
    world.send(io, &capsule(PLAIN, &write_in_capsule(5, 1), &[1; 512]));
    world.disconnect(admin);
    let id = world.initialized(PLAIN);
    let connect = capsule(PLAIN, &connect_sqe(0, 32), connect_data(0xffff).as_bytes());
    world.send(id, &connect);
    assert!(world.replies(id).is_empty(), "the old write is still on the disk");
    world.assert_still_served(other_host);
    world.finish(io, 0, Ok(()));
    let [Reply::Done(cqe)] = world.replies(id)[..] else { panic!() };
    assert_eq!(cqe.outcome(), Status::SUCCESS);
    world.end_all();
}

#[test]
fn connect_waiting_for_orphaned_writes_times_out() {
    let mut world = World::new();
    let (admin, io) = world.attached();
    world.conn(io).hold = true;
    world.send(io, &capsule(PLAIN, &write_in_capsule(5, 1), &[1; 512]));
    world.disconnect(admin);
    let id = world.initialized(PLAIN);
    world.send(id, &capsule(PLAIN, &connect_sqe(0, 32), connect_data(0xffff).as_bytes()));
    world.advance(Duration::from_secs(10));
    assert_eq!(world.conn(id).closed, Some(Reason::Timeout));
    world.finish(io, 0, Ok(()));
    world.admin();
    world.end_all();
}

#[test]
fn stale_controller_identifier_is_refused() {
    let mut world = World::new();
    let (admin, cntlid) = world.admin();
    world.disconnect(admin);
    let io = world.initialized(PLAIN);
    let cqe = world.ask(io, &connect_sqe(1, 32), connect_data(cntlid).as_bytes());
    assert_eq!(cqe.outcome(), Status::CONNECT_INVALID_PARAMETERS.dnr());
    assert_eq!(cqe.dw0.get(), 1 << 16 | 16);
    let (_, next) = world.admin();
    assert_ne!(next, cntlid, "identifiers are not used again at once");
    world.end_all();
}

#[test]
fn x30_hundred_thousand_short_connections_leak_nothing() {
    let mut world = World::new();
    let other_host = world.other_host();
    for turn in 0..100_000 {
        let id = world.open();
        world.send(id, &ic_req(PLAIN)[..if turn % 4 == 0 { 64 } else { 128 }]);
        world.disconnect(id);
        world.forget(id);
    }
    world.assert_still_served(other_host);
    world.end_all();
}

#[test]
fn thousand_hosts_leak_nothing() {
    let mut world = World::new();
    let other_host = world.other_host();
    for _ in 0..1000 {
        let (admin, _) = world.admin();
        world.disconnect(admin);
    }
    let list = world.fetch(other_host.0, &AdminCommand::identify(0x13, 0).emit());
    assert_eq!(list[..2], [1, 0], "one controller is left");
    world.assert_still_served(other_host);
    world.end_all();
}

#[test]
fn detached_disk_is_reported_once() {
    let mut world = World::new();
    let (admin, io) = world.attached();
    world.send(admin, &[0xff; 8]);
    world.disconnect(admin);
    world.disconnect(io);
    let count = |wanted: fn(&Event) -> bool, events: &[Event]| {
        events.iter().filter(|event| wanted(event)).count()
    };
    let events = &world.conn(admin).events;
    assert_eq!(count(|event| matches!(event, Event::Attached { .. }), events), 1);
    assert_eq!(count(|event| matches!(event, Event::Detached { .. }), events), 1);
    world.end_all();
}

#[test]
fn direct_receive_equals_stream_receive() {
    use export::Notice;
    let mut world = World::new();
    let (_, io) = world.attached();
    let [Reply::R2t { ttag, .. }] = world.command(io, &write(0, 64), &[])[..] else { panic!() };
    let pdu = h2c(PLAIN, 0, ttag, 0, &[0x5a; 64 * 512], true);
    world.send(io, &pdu[..100]);
    for size in [1, 10_000, usize::MAX] {
        world.receive_directly(io, 0x5a, size).expect("payload is due");
    }
    assert!(matches!(world.replies(io)[..], [Reply::Done(cqe)] if cqe.outcome().is_success()));
    assert_eq!(world.disk[..64 * 512], [0x5a; 64 * 512]);
    // The queue closes during a direct receive.
    let [Reply::R2t { ttag, .. }] = world.command(io, &write(0, 64), &[])[..] else { panic!() };
    world.send(io, &h2c(PLAIN, 0, ttag, 0, &[1; 64 * 512], true)[..24]);
    let now = world.now;
    let session = world.session(io);
    let landing = session.direct_recv().unwrap();
    session.notify(now, &Notice::Disconnected);
    session.direct_received(now, landing, 512);
    assert!(session.direct_recv().is_none());
    world.disconnect(io);
    world.end_all();
}

#[test]
fn direct_receive_completes_despite_back_pressure() {
    let mut world = World::new();
    let (_, io) = world.attached();
    world.conn(io).hold = true;
    for cid in 1..=2 {
        world.send(io, &capsule(PLAIN, &read(0, 512).with_cid(cid), &[]));
    }
    let [Reply::R2t { ttag, .. }] = world.command(io, &write(0, 64), &[])[..] else { panic!() };
    world.send(io, &h2c(PLAIN, 0, ttag, 0, &[0x5a; 64 * 512], true)[..24]);
    let landing = world.session(io).direct_recv().unwrap();
    // The reads complete, and their data is not sent yet.
    world.complete_unsent(io, 0, Ok(()));
    world.complete_unsent(io, 0, Ok(()));
    assert!(!world.session(io).can_receive());
    let (now, got) = (world.now, landing.end - landing.start);
    world.session(io).direct_received(now, landing, got);
    world.run();
    assert_eq!(world.jobs(io).len(), 1, "the write is on its way");
    world.finish(io, 0, Ok(()));
    world.end_all();
}

#[test]
fn abort_during_direct_receive_keeps_framing() {
    let mut world = World::new();
    let (admin, io) = world.attached();
    let [Reply::R2t { ttag, .. }] = world.command(io, &write(0, 64).with_cid(9), &[])[..] else {
        panic!()
    };
    let pdu = h2c(PLAIN, 9, ttag, 0, &[0x5a; 64 * 512], true);
    world.send(io, &pdu[..24]);
    let landing = world.session(io).direct_recv().unwrap();
    let cqe = world.ask(admin, &AdminCommand::Abort { sqid: 1, cid: 9 }.emit(), &[]);
    assert_eq!(cqe.dw0.get(), 0);
    let now = world.now;
    world.session(io).direct_received(now, landing, 1000);
    world.send(io, &pdu[1024..]);
    assert!(matches!(world.replies(io)[..],
        [Reply::Done(cqe)] if cqe.outcome() == Status::ABORT_REQUESTED));
    assert_eq!(world.fetch(io, &read(1, 1).with_cid(9)), world.disk[512..1024]);
    assert_eq!(world.disk[511], 0);
    world.end_all();
}

#[test]
fn admin_queue_is_served_while_io_is_in_flight() {
    let mut world = World::new();
    let (admin, io) = world.attached();
    world.conn(io).hold = true;
    world.send(io, &io_session_bytes());
    let get = AdminCommand::get_features(fid::NUMBER_OF_QUEUES).emit();
    assert_eq!(world.status(admin, &get), Status::SUCCESS);
    let same = FabricsCommand::PropertySet {
        attrib: nvme::command::PropertySize::Four,
        offset: 0x14,
        value: ENABLE.into(),
    };
    assert_eq!(world.status(admin, &same.emit()), Status::SUCCESS);
    assert_eq!(world.conn(io).closed, None);
    world.end_all();
}
