//! Life cycle of an association: keep alive, reset, shutdown, and reconnect after a loss.

use std::time::Duration;

use export::{Event, Notice, Op, Reason};
use nvme::command::{AdminCommand, FabricsCommand, PropertySize};
use nvme::host::{Options, Payload};
use nvme::status::Status;
use nvme::wire::fabrics::{CNTLID_DYNAMIC, Cc, Csts, DISCOVERY_NQN, property};

use crate::client::{AttachParams, enabled, pattern, write};
use crate::world::{DISK, Order, World};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn r26_silent_host_is_disconnected() {
    let mut world = World::new();
    let client =
        world.attach(&AttachParams { keep_alive: 5000, queues: 2, ..AttachParams::default() });
    world.advance(4 * SECOND);
    assert!(world.connections[client.admin].target_end.is_none());
    world.advance(3 * SECOND);
    assert_eq!(world.connections[client.admin].target_end, Some(Reason::Timeout));
    for io in client.io {
        assert_eq!(world.connections[io].target_end, Some(Reason::Ended));
    }
    assert!(matches!(world.events.last(), Some(Event::Detached { reason: Reason::Timeout, .. })));
}

#[test]
fn keep_alive_and_traffic_restart_the_timer() {
    let mut world = World::new();
    let client = world.attach(&AttachParams { keep_alive: 5000, ..AttachParams::default() });
    for round in 0..10 {
        world.advance(4 * SECOND);
        if round % 2 == 0 {
            assert_eq!(
                world.send_dataless(client.admin, AdminCommand::KeepAlive.emit()).status,
                Status::SUCCESS
            );
        } else {
            assert!(world.read(client.io[0], 0, 1).is_ok());
        }
    }
    assert!(world.connections[client.admin].target_end.is_none());
}

#[test]
fn no_timeout_without_a_keep_alive_time() {
    let mut world = World::new();
    let (client, io) = world.attach_default();
    world.advance(100_000 * SECOND);
    assert!(world.connections[client.admin].target_end.is_none());
    assert!(world.read(io, 0, 1).is_ok());
}

/// X61: a host that attaches repeatedly does not exhaust the controllers of others.
#[test]
fn x61_controllers_are_limited_per_host() {
    let mut world = World::new();
    let connect = |world: &mut World| {
        let conn = world.connect(Options::admin(), AttachParams::default().data(CNTLID_DYNAMIC));
        world.run();
        conn
    };
    let held: Vec<_> = (0..128).map(|_| connect(&mut world)).collect();
    assert!(held.iter().all(|&conn| world.connections[conn].connected.is_some()));
    let refused = connect(&mut world);
    let status = world.connections[refused].refused.unwrap();
    assert_eq!(status, (Status::CONNECT_CONTROLLER_BUSY, 0), "to be tried again");
    world.remote = "192.0.2.10:50000".parse().unwrap();
    let other = connect(&mut world);
    assert!(world.connections[other].connected.is_some());
    // A closed association frees a controller.
    world.remote = "192.0.2.9:50001".parse().unwrap();
    world.cut(held[0]);
    world.run();
    let next = connect(&mut world);
    assert!(world.connections[next].connected.is_some());
}

#[test]
fn connect_times_out() {
    let mut world = World::new();
    let data = AttachParams::default().data(CNTLID_DYNAMIC);
    let conn = world.connect(Options::admin(), data);
    world.advance(9 * SECOND);
    assert!(world.connections[conn].connected.is_some());
    let refused =
        AttachParams { subsystem: "nqn.x:none", ..AttachParams::default() }.data(CNTLID_DYNAMIC);
    let conn = world.connect(Options::admin(), refused);
    world.run();
    assert!(world.connections[conn].refused.is_some());
    world.advance(11 * SECOND);
    assert_eq!(world.connections[conn].target_end, Some(Reason::Timeout));
}

#[test]
fn controller_can_be_enabled_after_a_reset() {
    let mut world = World::new();
    let client = world.attach(&AttachParams { queues: 2, ..AttachParams::default() });
    assert_eq!(world.configure(client.admin, enabled().with_en(0)), Status::SUCCESS);
    assert_eq!(world.property(client.admin, PropertySize::Four, property::CSTS), 0);
    for &io in &client.io {
        assert_eq!(world.connections[io].target_end, Some(Reason::Ended));
    }
    let mut again = nvme::host::Controller::new(client.cntlid, 2);
    world.initialize(client.admin, &mut again).unwrap();
    let io = world.open_io(&AttachParams::default(), client.cntlid, 1, again.capsule_data());
    assert!(world.read(io, 0, 1).is_ok());
}

#[test]
fn reset_clears_event_requests_and_features() {
    let mut world = World::new();
    let (client, _) = world.attach_default();
    world.submit(client.admin, AdminCommand::AsyncEventRequest.emit(), Payload::None, 1);
    let off = AdminCommand::set_features(nvme::wire::feature::fid::VOLATILE_WRITE_CACHE, 0).emit();
    world.send_dataless(client.admin, off);
    world.configure(client.admin, enabled().with_en(0));
    world.configure(client.admin, enabled());
    world.disk().export.resize(512);
    world.notify(&Notice::StateChanged);
    world.run();
    assert!(world.completion(client.admin, 1).is_none());
    let get = AdminCommand::get_features(nvme::wire::feature::fid::VOLATILE_WRITE_CACHE).emit();
    assert_eq!(world.send_dataless(client.admin, get).result, 1);
}

#[test]
fn shutdown_flushes_the_disk() {
    let mut world = World::new();
    let (client, io) = world.attach_default();
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
fn lost_admin_queue_closes_the_io_queues() {
    let mut world = World::new();
    let client = world.attach(&AttachParams { queues: 3, ..AttachParams::default() });
    world.cut(client.admin);
    world.run();
    for io in client.io {
        assert_eq!(world.connections[io].target_end, Some(Reason::Ended));
    }
}

#[test]
fn lost_io_queue_can_be_reconnected() {
    let mut world = World::new();
    let client = world.attach(&AttachParams { queues: 2, ..AttachParams::default() });
    world.cut(client.io[0]);
    world.run();
    let io = world.open_io(&AttachParams::default(), client.cntlid, 1, 0);
    assert!(world.read(io, 0, 1).is_ok());
    let bye = FabricsCommand::Disconnect { recfmt: 0 }.emit();
    assert_eq!(world.send_dataless(io, bye).status, Status::SUCCESS);
    assert!(world.connections[io].target_end.is_some());
    assert!(world.connections[client.admin].target_end.is_none());
    let io = world.open_io(&AttachParams::default(), client.cntlid, 1, 0);
    assert!(world.read(io, 0, 1).is_ok());
}

/// W4: a write of an earlier association must never overwrite newer data.
#[test]
fn new_association_waits_for_writes_of_the_old_one() {
    let mut world = World::new();
    let (client, io) = world.attach_default();
    world.disk().held = true;
    let data = world.host_buffer(&pattern(1, 512));
    world.submit(io, write(0, 1), Payload::Send(data), 1);
    world.run();
    assert_eq!(world.disk().requests.len(), 1);
    world.cut(io);
    world.cut(client.admin);
    world.run();

    let params = AttachParams::default();
    let admin = world.connect(Options::admin(), params.data(CNTLID_DYNAMIC));
    world.run();
    assert!(world.connections[admin].connected.is_none(), "let in while an old write is under way");
    // Another host waits, too, because it could write newer data. Discovery does not wait.
    let other = AttachParams { host: "nqn.x:other", ..AttachParams::default() };
    let conn = world.connect(Options::admin(), other.data(CNTLID_DYNAMIC));
    world.run();
    assert!(world.connections[conn].connected.is_none(), "another host is let in");
    world.open_admin(&AttachParams { subsystem: DISCOVERY_NQN, ..AttachParams::default() });
    world.disk().held = false;
    world.run();
    assert!(world.connections[admin].connected.is_some(), "kept out for ever");
    assert!(world.connections[conn].connected.is_some(), "another host is kept out for ever");
}

/// Submits a write of block 0 that stays in flight.
fn hold_write(world: &mut World, io: usize, seed: u64) {
    world.disk().held = true;
    let data = world.host_buffer(&pattern(seed, 512));
    world.submit(io, write(0, 1), Payload::Send(data), u32::try_from(seed).unwrap());
    world.run();
}

/// Completes all disk requests, the latest first.
fn release(world: &mut World) {
    world.order = Order::Last;
    while world.complete_one(0) {}
    world.disk().held = false;
    world.run();
}

fn csts(world: &mut World, admin: usize) -> Csts {
    Csts(world.property(admin, PropertySize::Four, property::CSTS) as u32)
}

#[test]
fn r55_reopened_queue_waits_for_its_lost_write() {
    let mut world = World::new();
    let client = world.attach(&AttachParams { queues: 2, ..AttachParams::default() });
    hold_write(&mut world, client.io[0], 1);
    world.cut(client.io[0]);
    world.run();
    // The same queue again, while the Admin queue is connected.
    let options = Options::io(1, 128, 0);
    let io = world.connect(options, AttachParams::default().data(client.cntlid));
    world.run();
    assert!(world.connections[io].connected.is_none(), "the old write is still in flight");
    // Reads and Admin commands complete meanwhile.
    assert_eq!(csts(&mut world, client.admin).rdy(), 1);
    world.disk().held = false;
    world.run();
    assert!(world.connections[io].connected.is_some(), "kept out for ever");
    assert_eq!(world.write(io, 0, &pattern(2, 512)), Status::SUCCESS);
    assert_eq!(world.disk().bytes[..512], pattern(2, 512));
}

#[test]
fn r55_other_open_queue_waits_for_a_lost_write() {
    let mut world = World::new();
    let client = world.attach(&AttachParams { queues: 2, ..AttachParams::default() });
    hold_write(&mut world, client.io[0], 1);
    world.cut(client.io[0]);
    world.run();
    // A multipath host retries lost writes on the other path at once.
    let data = world.host_buffer(&pattern(2, 512));
    world.submit(client.io[1], write(0, 1), Payload::Send(data), 2);
    world.run();
    assert_eq!(world.disk().requests.len(), 1, "the newer write is on the disk beside the old one");
    release(&mut world);
    assert_eq!(world.status(client.io[1], 2), Status::SUCCESS);
    assert_eq!(world.disk().bytes[..512], pattern(2, 512));
}

#[test]
fn r55_rdy_stays_until_writes_before_a_reset_ended() {
    let mut world = World::new();
    let client = world.attach(&AttachParams { queues: 2, ..AttachParams::default() });
    hold_write(&mut world, client.io[0], 1);
    assert_eq!(world.configure(client.admin, enabled().with_en(0)), Status::SUCCESS);
    assert_eq!(csts(&mut world, client.admin).rdy(), 1);
    for &io in &client.io {
        assert_eq!(world.connections[io].target_end, Some(Reason::Ended));
    }
    release(&mut world);
    assert_eq!(csts(&mut world, client.admin).rdy(), 0);
    let mut again = nvme::host::Controller::new(client.cntlid, 2);
    world.initialize(client.admin, &mut again).unwrap();
    let io = world.open_io(&AttachParams::default(), client.cntlid, 1, again.capsule_data());
    assert_eq!(world.write(io, 0, &pattern(2, 512)), Status::SUCCESS);
    assert_eq!(world.disk().bytes[..512], pattern(2, 512));
}

#[test]
fn r55_enable_before_rdy_fell_waits_as_well() {
    let mut world = World::new();
    let client = world.attach_default().0;
    hold_write(&mut world, client.io[0], 1);
    assert_eq!(world.configure(client.admin, enabled().with_en(0)), Status::SUCCESS);
    assert_eq!(world.configure(client.admin, enabled()), Status::SUCCESS);
    assert_eq!(csts(&mut world, client.admin).rdy(), 0);
    let io = world.connect(Options::io(1, 128, 0), AttachParams::default().data(client.cntlid));
    world.run();
    assert_eq!(
        world.connections[io].refused.map(|it| it.0.code()),
        Some(Status::COMMAND_SEQUENCE_ERROR)
    );
    release(&mut world);
    assert_eq!(csts(&mut world, client.admin).rdy(), 1);
}

#[test]
fn r55_shutdown_flushes_writes_that_were_in_flight() {
    let mut world = World::new();
    let (client, io) = world.attach_default();
    hold_write(&mut world, io, 1);
    let (attrib, offset) = (PropertySize::Four, property::CC);
    let value = enabled().with_shn(Cc::SHN_NORMAL).0.into();
    let set = FabricsCommand::PropertySet { attrib, offset, value }.emit();
    let cid = world.submit(client.admin, set, Payload::None, 1);
    world.run();
    assert_eq!(world.disk().requests.len(), 1, "the flush is to come after the write");
    // It cannot be aborted, and the queue accepts no more commands.
    let abort = AdminCommand::Abort { sqid: 0, cid }.emit();
    world.submit(client.admin, abort, Payload::None, 2);
    let buffer = world.buffer(512);
    world.submit(io, crate::client::read(0, 1), Payload::Receive(buffer), 3);
    world.run();
    assert_eq!(world.status(io, 3).code(), Status::COMMAND_SEQUENCE_ERROR);
    assert_eq!(csts(&mut world, client.admin).shst(), Csts::SHST_OCCURRING);
    release(&mut world);
    assert_eq!(world.status(client.admin, 1), Status::SUCCESS);
    assert_eq!(csts(&mut world, client.admin).shst(), Csts::SHST_COMPLETE);
    assert_eq!(world.disk().changes().last(), Some(&(Op::Flush, 0, 0)));
    assert_eq!(world.status(io, 1), Status::SUCCESS);
}

#[test]
fn r20_r55_hung_disk_delays_neither_keep_alive_nor_others() {
    let mut world = World::new();
    world.publish("nqn.x:second", |_| {});
    let params = AttachParams { keep_alive: 5000, queues: 2, ..AttachParams::default() };
    let client = world.attach(&params);
    let second =
        world.attach(&AttachParams { subsystem: "nqn.x:second", ..AttachParams::default() });
    hold_write(&mut world, client.io[0], 1);
    world.cut(client.io[0]);
    world.run();
    let io = world.connect(Options::io(1, 128, 0), AttachParams::default().data(client.cntlid));
    let admin = world.connect(Options::admin(), AttachParams::default().data(CNTLID_DYNAMIC));
    let data = world.host_buffer(&pattern(2, 512));
    world.submit(client.io[1], write(0, 1), Payload::Send(data), 2);
    for _ in 0..4 {
        world.advance(3 * SECOND);
        assert_eq!(
            world.send_dataless(client.admin, AdminCommand::KeepAlive.emit()).status,
            Status::SUCCESS
        );
        assert_eq!(world.write(second.io[0], 0, &pattern(3, 512)), Status::SUCCESS);
    }
    for conn in [io, admin] {
        assert_eq!(world.connections[conn].target_end, Some(Reason::Timeout));
    }
    let waited = |event: &&Event| matches!(event, Event::Refused { .. });
    assert_eq!(world.events.iter().filter(waited).count(), 2);
    release(&mut world);
    assert_eq!(world.status(client.io[1], 2), Status::SUCCESS);
    assert_eq!(world.disk().bytes[..512], pattern(2, 512));
}

#[test]
fn r55_republished_disk_waits_for_earlier_writes() {
    let mut world = World::new();
    let client = world.attach_default().0;
    hold_write(&mut world, client.io[0], 1);
    world.catalogue.withdraw(&DISK.into());
    world.publish(DISK, |_| {});
    world.cut(client.admin);
    world.run();
    let admin = world.connect(Options::admin(), AttachParams::default().data(CNTLID_DYNAMIC));
    world.run();
    assert!(world.connections[admin].connected.is_none(), "the old write is still in flight");
    world.disk().held = false;
    world.run();
    assert!(world.connections[admin].connected.is_some(), "kept out for ever");
}

/// Case R30: nothing hangs or leaks.
#[test]
fn r30_resets_and_disconnects_during_io_leak_nothing() {
    let mut world = World::new();
    world.order = Order::Random;
    for round in 0..100_u64 {
        world.seed(round);
        let client = world.attach(&AttachParams { queues: 2, ..AttachParams::default() });
        world.disk().held = true;
        for (tag, &io) in (0..).zip(client.io.iter().cycle().take(16)) {
            let data = world.host_buffer(&pattern(round, 4096));
            world.submit(io, write(8 * u64::from(tag), 8), Payload::SendByR2t(data), tag);
            let turns = world.random.below(4);
            world.run_turns(turns);
        }
        match round % 4 {
            0 => world.cut(client.admin),
            1 => client.io.iter().for_each(|&io| world.cut(io)),
            _ => {
                let (attrib, offset) = (PropertySize::Four, property::CC);
                let value = enabled().with_en(0).0.into();
                let set = FabricsCommand::PropertySet { attrib, offset, value };
                world.submit(client.admin, set.emit(), Payload::None, 99);
            }
        }
        let turns = world.random.below(8);
        world.run_turns(turns);
        release(&mut world);
        if round % 4 >= 2 {
            assert_eq!(world.status(client.admin, 99), Status::SUCCESS);
            let mut again = nvme::host::Controller::new(client.cntlid, 2);
            world.initialize(client.admin, &mut again).unwrap();
            let io = world.open_io(&AttachParams::default(), client.cntlid, 2, 0);
            assert_eq!(world.write(io, 0, &pattern(round, 512)), Status::SUCCESS);
        }
        world.cut(client.admin);
        world.run();
        assert!(world.connections.iter().all(|conn| conn.submitted == conn.completed), "{round}");
    }
    assert!(world.has_no_sessions(), "a session is left");
    let attached = |event: &&Event| matches!(event, Event::Attached { .. });
    let detached = |event: &&Event| matches!(event, Event::Detached { .. });
    let count = |kind: fn(&&Event) -> bool| world.events.iter().filter(kind).count();
    assert_eq!((count(attached), count(detached)), (100, 100));
    assert!(!world.disk().export.has_orphans() && !world.disk().export.is_being_written());
}

/// Case R32: ten thousand hot-plugs.
#[test]
fn r32_ten_thousand_namespaces_come_and_go() {
    let mut world = World::new();
    let client = world.attach_default().0;
    let mut export = world.disk().export.clone();
    for round in 0..10_000_u64 {
        match round % 4 {
            0 => drop(world.catalogue.withdraw(&DISK.into())),
            1 => {
                export = World::another(&export);
                world.disk().export = export.clone();
                world.catalogue.publish(export.clone());
            }
            2 => world.catalogue.publish(export.clone()),
            _ => {}
        }
        if round % 3 == 0 {
            world.notify(&Notice::StateChanged);
        }
        if round % 97 != 0 {
            continue;
        }
        world.notify(&Notice::StateChanged);
        world.run();
        let status = match world.read(client.io[0], 0, 1) {
            Ok(_) => Status::SUCCESS,
            Err(status) => status.code(),
        };
        let there = world.catalogue.find(&DISK.into()).is_some();
        let due = if there { Status::SUCCESS } else { Status::INVALID_NAMESPACE };
        assert_eq!(status, due, "{round}");
    }
    assert!(world.connections[client.admin].target_end.is_none());
}

#[test]
fn stopping_completes_requests_and_closes() {
    let mut world = World::new();
    let (client, io) = world.attach_default();
    world.disk().held = true;
    let data = world.host_buffer(&pattern(1, 512));
    world.submit(io, write(0, 1), Payload::Send(data), 1);
    world.run();
    world.notify(&Notice::Stopping);
    world.run();
    assert_eq!(world.connections[client.admin].target_end, Some(Reason::Stopping));
    assert!(world.connections[io].target_end.is_none());
    world.disk().held = false;
    world.run();
    assert_eq!(world.status(io, 1), Status::SUCCESS);
    assert_eq!(world.connections[io].target_end, Some(Reason::Stopping));
    assert_eq!(world.disk().bytes[..512], pattern(1, 512));
}

#[test]
fn r28_connection_storm_leaks_nothing() {
    let mut world = World::new();
    for round in 0..60 {
        let client = world.attach(&AttachParams { queues: 2, ..AttachParams::default() });
        assert!(world.read(client.io[0], 0, 1).is_ok());
        match round % 3 {
            0 => world.cut(client.admin),
            1 => client.io.iter().chain([&client.admin]).for_each(|&conn| world.cut(conn)),
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

/// Submits Property Set of CC with that Shutdown Notification.
fn shut_down(world: &mut World, admin: usize, cc: Cc, tag: u32) {
    let (attrib, offset) = (PropertySize::Four, property::CC);
    let set = FabricsCommand::PropertySet { attrib, offset, value: cc.0.into() };
    world.submit(admin, set.emit(), Payload::None, tag);
    world.run();
}

#[test]
fn shutdown_in_flight_does_not_outlive_a_reset() {
    let mut world = World::new();
    let (client, io) = world.attach_default();
    hold_write(&mut world, io, 1);
    shut_down(&mut world, client.admin, enabled().with_shn(Cc::SHN_NORMAL), 1);
    assert_eq!(world.configure(client.admin, enabled().with_en(0)), Status::SUCCESS);
    assert_eq!(world.status(client.admin, 1), Status::SUCCESS, "never answered");
    assert_eq!(world.configure(client.admin, enabled()), Status::SUCCESS);
    release(&mut world);
    let csts = csts(&mut world, client.admin);
    assert_eq!((csts.rdy(), csts.shst()), (1, 0));
}

#[test]
fn flush_of_a_shutdown_before_a_reset_completes_no_other() {
    let mut world = World::new();
    let (client, _) = world.attach_default();
    world.disk().held = true;
    shut_down(&mut world, client.admin, enabled().with_shn(Cc::SHN_NORMAL), 1);
    assert_eq!(world.configure(client.admin, enabled().with_en(0)), Status::SUCCESS);
    assert_eq!(world.configure(client.admin, enabled()), Status::SUCCESS);
    shut_down(&mut world, client.admin, enabled().with_shn(Cc::SHN_NORMAL), 2);
    assert!(world.complete_one(0));
    world.run();
    assert_eq!(world.status(client.admin, 1), Status::SUCCESS);
    assert_eq!(csts(&mut world, client.admin).shst(), Csts::SHST_OCCURRING);
    release(&mut world);
    assert_eq!(world.status(client.admin, 2), Status::SUCCESS);
    assert_eq!(csts(&mut world, client.admin).shst(), Csts::SHST_COMPLETE);
}

#[test]
fn second_shutdown_leaves_the_first_answered() {
    let mut world = World::new();
    let (client, io) = world.attach_default();
    hold_write(&mut world, io, 1);
    shut_down(&mut world, client.admin, enabled().with_shn(Cc::SHN_NORMAL), 1);
    shut_down(&mut world, client.admin, enabled(), 2);
    shut_down(&mut world, client.admin, enabled().with_shn(Cc::SHN_NORMAL), 3);
    assert_eq!(world.status(client.admin, 1), Status::SUCCESS, "never answered");
    release(&mut world);
    assert_eq!(world.status(client.admin, 3), Status::SUCCESS);
    assert_eq!(csts(&mut world, client.admin).shst(), Csts::SHST_COMPLETE);
}

#[test]
fn controller_that_is_shut_down_does_not_become_ready() {
    let mut world = World::new();
    let (client, io) = world.attach_default();
    hold_write(&mut world, io, 1);
    assert_eq!(world.configure(client.admin, enabled().with_en(0)), Status::SUCCESS);
    assert_eq!(world.configure(client.admin, enabled()), Status::SUCCESS);
    shut_down(&mut world, client.admin, enabled().with_shn(Cc::SHN_NORMAL), 1);
    release(&mut world);
    assert_eq!(csts(&mut world, client.admin).rdy(), 0);
    let io = world.connect(Options::io(1, 128, 0), AttachParams::default().data(client.cntlid));
    world.run();
    assert_eq!(
        world.connections[io].refused.map(|it| it.0.code()),
        Some(Status::COMMAND_SEQUENCE_ERROR)
    );
}

#[test]
fn shut_down_queue_does_not_release_waiters() {
    let mut world = World::new();
    let (client, _) = world.attach_default();
    shut_down(&mut world, client.admin, enabled().with_shn(Cc::SHN_NORMAL), 1);
    world.notify(&Notice::StateChanged);
    world.run();
    assert!(!world.disk().export.is_contended());
}

#[test]
fn lost_queue_notifies_others_once() {
    let mut world = World::new();
    let (_, io) = world.attach_default();
    world.disk().held = true;
    for tag in 0..4 {
        let buffer = world.buffer(512);
        world.submit(io, crate::client::read(0, 1), Payload::Receive(buffer), tag);
    }
    world.run();
    world.cut(io);
    world.run();
    world.notifications = 0;
    assert!((0..4).all(|_| world.complete_one(0)));
    assert_eq!(world.notifications, 1, "with the last of them");
}
