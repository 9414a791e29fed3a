//! Asymmetric namespace access: a host learns that the target stops before its queues close.

use std::time::Duration;

use export::{Notice, Reason};
use nvme::command::AdminCommand;
use nvme::host::Payload;
use nvme::wire::feature::{AsyncEvent, fid};
use nvme::wire::identify::{IdentifyController, IdentifyNamespace, cns};
use nvme::wire::log::{AnaLog, ana, lid};
use zerocopy::{FromBytes, IntoBytes};

use crate::client::{Client, write};
use crate::world::World;

fn log(world: &mut World, admin: usize) -> AnaLog {
    let page = world.page(admin, AdminCommand::log_page(lid::ANA, 0, 52)).unwrap();
    AnaLog::read_from_bytes(&page).unwrap()
}

/// Attaches a disk, and waits for events as Linux does. Returns its I/O queue, too.
fn attach(world: &mut World) -> (Client, usize) {
    let (client, io) = world.attach_default();
    let events = world.send_dataless(
        client.admin,
        AdminCommand::get_features(fid::ASYNC_EVENT_CONFIGURATION).emit(),
    );
    assert_eq!(events.result, 1 << 11 | 1 << 8);
    world.submit(client.admin, AdminCommand::AsyncEventRequest.emit(), Payload::None, 1);
    world.run();
    (client, io)
}

fn ends(world: &World, client: &Client) -> [Option<Reason>; 2] {
    [client.admin, client.io[0]].map(|conn| world.connections[conn].target_end)
}

#[test]
fn one_group_is_announced() {
    let mut world = World::new();
    let (client, _) = world.attach_default();
    let page = world.page(client.admin, AdminCommand::identify(cns::CONTROLLER, 0)).unwrap();
    let controller = IdentifyController::read_from_bytes(&page).unwrap();
    assert_eq!((controller.cmic, controller.anacap, controller.anatt), (0x0b, 0x45, 10));
    assert_eq!((controller.anagrpmax.get(), controller.nanagrpid.get()), (1, 1));
    let page = world.page(client.admin, AdminCommand::identify(cns::NAMESPACE, 1)).unwrap();
    assert_eq!(IdentifyNamespace::read_from_bytes(&page).unwrap().anagrpid.get(), 1);
    let mut golden = [0; 52];
    (golden[8], golden[16], golden[20], golden[32], golden[48]) = (1, 1, 1, ana::OPTIMIZED, 1);
    assert_eq!(log(&mut world, client.admin).as_bytes(), golden);
    let only = AdminCommand::GetLogPage {
        nsid: u32::MAX,
        lid: lid::ANA,
        lsp: 1,
        rae: false,
        lsi: 0,
        numd: 52,
        offset: 0,
        ot: false,
        uuid: 0,
        csi: 0,
    };
    (golden[20], golden[48]) = (0, 0);
    assert_eq!(world.page(client.admin, only).unwrap(), golden);
}

#[test]
fn stop_is_announced_before_queues_close() {
    let mut world = World::new();
    let (client, io) = attach(&mut world);
    world.disk().held = true;
    world.submit(io, write(0, 1), Payload::Send(world.host_buffer(&[1; 512])), 2);
    world.run();
    world.notify(&Notice::Stopping);
    world.run();
    let event = world.completion(client.admin, 1).expect("an event").result as u32;
    assert_eq!((event, AsyncEvent::parse(event)), (0x000c_0302, AsyncEvent::ANA_CHANGED));
    assert_eq!(ends(&world, &client), [None, None]);
    let state = log(&mut world, client.admin);
    assert_eq!((state.state, state.change_count.get()), (ana::INACCESSIBLE, 1));
    // The write in flight is still answered.
    world.run();
    assert_eq!(ends(&world, &client)[1], None);
    world.disk().held = false;
    world.run();
    assert!(world.status(io, 2).is_success());
    assert_eq!(ends(&world, &client), [Some(Reason::Stopping); 2]);
    assert!(world.has_no_sessions());
}

#[test]
fn stop_waits_half_a_second_for_the_host() {
    let mut world = World::new();
    let (client, _) = attach(&mut world);
    world.notify(&Notice::Stopping);
    world.run();
    world.advance(Duration::from_millis(499));
    assert_eq!(ends(&world, &client), [None, None]);
    world.advance(Duration::from_millis(1));
    assert_eq!(ends(&world, &client), [Some(Reason::Stopping); 2]);
}

#[test]
fn stop_is_not_announced_without_an_event_request() {
    let mut world = World::new();
    let (client, _) = world.attach_default();
    world.notify(&Notice::Stopping);
    world.run();
    assert_eq!(ends(&world, &client), [Some(Reason::Stopping); 2]);
}
