//! The life of an association: keep alive, reset, shutdown, and the next one after a host was lost.

use std::time::Duration;

use export::{Event, News, Op, Reason};
use nvme::command::{AdminCommand, FabricsCommand, PropertySize};
use nvme::host::{Options, Payload};
use nvme::status::Status;
use nvme::wire::fabrics::{CNTLID_DYNAMIC, Cc, Csts, property};

use crate::client::{Manner, enabled, pattern, write};
use crate::world::World;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_host_that_falls_silent_is_given_up_with_all_its_queues() {
    let mut world = World::new();
    let client = world.attach(&Manner { keep_alive: 5000, queues: 2, ..Manner::default() });
    world.advance(4 * SECOND);
    assert!(world.lines[client.admin].target_end.is_none());
    world.advance(3 * SECOND);
    assert_eq!(world.lines[client.admin].target_end, Some(Reason::Timeout));
    for io in client.io {
        assert_eq!(world.lines[io].target_end, Some(Reason::Ended));
    }
    assert!(matches!(world.events.last(), Some(Event::Detached { reason: Reason::Timeout, .. })));
}

#[test]
fn keep_alive_and_traffic_keep_a_host() {
    let mut world = World::new();
    let client = world.attach(&Manner { keep_alive: 5000, ..Manner::default() });
    for round in 0..10 {
        world.advance(4 * SECOND);
        if round % 2 == 0 {
            assert_eq!(
                world.say(client.admin, AdminCommand::KeepAlive.emit()).status,
                Status::SUCCESS
            );
        } else {
            assert!(world.read(client.io[0], 0, 1).is_ok());
        }
    }
    assert!(world.lines[client.admin].target_end.is_none());
}

#[test]
fn without_a_keep_alive_time_a_host_may_be_silent_for_ever() {
    let mut world = World::new();
    let (client, io) = world.attach_plainly();
    world.advance(100_000 * SECOND);
    assert!(world.lines[client.admin].target_end.is_none());
    assert!(world.read(io, 0, 1).is_ok());
}

#[test]
fn who_does_not_connect_in_time_is_cut_off() {
    let mut world = World::new();
    let data = Manner::default().data(CNTLID_DYNAMIC);
    let line = world.connect(Options::admin(), data);
    world.advance(9 * SECOND);
    assert!(world.lines[line].connected.is_some());
    let refused = Manner { subsystem: "nqn.x:none", ..Manner::default() }.data(CNTLID_DYNAMIC);
    let line = world.connect(Options::admin(), refused);
    world.run();
    assert!(world.lines[line].refused.is_some());
    world.advance(11 * SECOND);
    assert_eq!(world.lines[line].target_end, Some(Reason::Timeout));
}

#[test]
fn a_reset_takes_the_io_queues_and_the_controller_can_be_enabled_again() {
    let mut world = World::new();
    let client = world.attach(&Manner { queues: 2, ..Manner::default() });
    assert_eq!(world.configure(client.admin, enabled().with_en(0)), Status::SUCCESS);
    assert_eq!(world.property(client.admin, PropertySize::Four, property::CSTS), 0);
    for &io in &client.io {
        assert_eq!(world.lines[io].target_end, Some(Reason::Ended));
    }
    let mut again = nvme::host::Controller::new(client.cntlid, 2);
    world.initialize(client.admin, &mut again).unwrap();
    let io = world.open_io(&Manner::default(), client.cntlid, 1, again.capsule_data());
    assert!(world.read(io, 0, 1).is_ok());
}

#[test]
fn a_reset_forgets_event_requests_and_features() {
    let mut world = World::new();
    let (client, _) = world.attach_plainly();
    world.submit(client.admin, AdminCommand::AsyncEventRequest.emit(), Payload::None, 1);
    let off = AdminCommand::set_features(nvme::wire::feature::fid::VOLATILE_WRITE_CACHE, 0).emit();
    world.say(client.admin, off);
    world.configure(client.admin, enabled().with_en(0));
    world.configure(client.admin, enabled());
    world.disk().export.resize(512);
    world.tell(&News::Changed);
    world.run();
    assert!(world.taken(client.admin, 1).is_none());
    let get = AdminCommand::get_features(nvme::wire::feature::fid::VOLATILE_WRITE_CACHE).emit();
    assert_eq!(world.say(client.admin, get).result, 1);
}

#[test]
fn a_shutdown_flushes_the_disk_before_it_is_complete() {
    let mut world = World::new();
    let (client, io) = world.attach_plainly();
    world.write(io, 0, &[1; 512]);
    world.disk().held = true;
    let cc = enabled().with_shn(Cc::SHN_NORMAL);
    let (attrib, offset) = (PropertySize::Four, property::CC);
    let set = FabricsCommand::PropertySet { attrib, offset, value: cc.0.into() };
    world.submit(client.admin, set.emit(), Payload::None, 1);
    world.run();
    let csts = Csts(world.property(client.admin, attrib, property::CSTS) as u32);
    assert_eq!(csts.shst(), Csts::SHST_OCCURRING);
    world.disk().held = false;
    world.run();
    assert_eq!(world.status(client.admin, 1), Status::SUCCESS);
    let csts = Csts(world.property(client.admin, attrib, property::CSTS) as u32);
    assert_eq!(csts.shst(), Csts::SHST_COMPLETE);
    assert_eq!(world.disk().changes().last(), Some(&(Op::Flush, 0, 0)));
}

#[test]
fn when_the_admin_queue_is_lost_the_io_queues_go_with_it() {
    let mut world = World::new();
    let client = world.attach(&Manner { queues: 3, ..Manner::default() });
    world.cut(client.admin);
    world.run();
    for io in client.io {
        assert_eq!(world.lines[io].target_end, Some(Reason::Ended));
    }
}

#[test]
fn an_io_queue_that_is_lost_or_disconnected_can_be_opened_again() {
    let mut world = World::new();
    let client = world.attach(&Manner { queues: 2, ..Manner::default() });
    world.cut(client.io[0]);
    world.run();
    let io = world.open_io(&Manner::default(), client.cntlid, 1, 0);
    assert!(world.read(io, 0, 1).is_ok());
    let bye = FabricsCommand::Disconnect { recfmt: 0 }.emit();
    assert_eq!(world.say(io, bye).status, Status::SUCCESS);
    assert!(world.lines[io].target_end.is_some());
    assert!(world.lines[client.admin].target_end.is_none());
    let io = world.open_io(&Manner::default(), client.cntlid, 1, 0);
    assert!(world.read(io, 0, 1).is_ok());
}

/// W4: a write of the association before must never land on newer data.
#[test]
fn a_new_association_waits_for_the_writes_of_the_old_one() {
    let mut world = World::new();
    let (client, io) = world.attach_plainly();
    world.disk().held = true;
    let data = world.filled(&pattern(1, 512));
    world.submit(io, write(0, 1), Payload::Send(data), 1);
    world.run();
    assert_eq!(world.disk().requests.len(), 1);
    world.cut(io);
    world.cut(client.admin);
    world.run();

    let manner = Manner::default();
    let admin = world.connect(Options::admin(), manner.data(CNTLID_DYNAMIC));
    world.run();
    assert!(world.lines[admin].connected.is_none(), "let in while an old write is under way");
    // Another host is not kept waiting, nor is discovery.
    let other = Manner { host: "nqn.x:other", ..Manner::default() };
    world.open_admin(&other);
    world.disk().held = false;
    world.run();
    assert!(world.lines[admin].connected.is_some(), "kept out for ever");
}

#[test]
fn when_the_program_stops_requests_end_and_every_connection_closes() {
    let mut world = World::new();
    let (client, io) = world.attach_plainly();
    world.disk().held = true;
    let data = world.filled(&pattern(1, 512));
    world.submit(io, write(0, 1), Payload::Send(data), 1);
    world.run();
    world.tell(&News::Stopping);
    world.run();
    assert_eq!(world.lines[client.admin].target_end, Some(Reason::Stopping));
    assert!(world.lines[io].target_end.is_none());
    world.disk().held = false;
    world.run();
    assert_eq!(world.status(io, 1), Status::SUCCESS);
    assert_eq!(world.lines[io].target_end, Some(Reason::Stopping));
    assert_eq!(world.disk().bytes[..512], pattern(1, 512));
}

#[test]
fn a_storm_of_connections_leaves_nothing_behind() {
    let mut world = World::new();
    for round in 0..60 {
        let client = world.attach(&Manner { queues: 2, ..Manner::default() });
        assert!(world.read(client.io[0], 0, 1).is_ok());
        match round % 3 {
            0 => world.cut(client.admin),
            1 => client.io.iter().chain([&client.admin]).for_each(|&line| world.cut(line)),
            _ => world.cut(client.io[1]),
        }
        world.run();
        if round % 3 == 2 {
            world.cut(client.admin);
            world.run();
        }
    }
    let attached =
        world.events.iter().filter(|event| matches!(event, Event::Attached { .. })).count();
    let detached =
        world.events.iter().filter(|event| matches!(event, Event::Detached { .. })).count();
    assert_eq!((attached, detached), (60, 60));
}
