//! Hot-plug and resize of an attached disk.

use export::Notice;
use nvme::command::AdminCommand;
use nvme::host::Payload;
use nvme::status::Status;
use nvme::wire::feature::AsyncEvent;
use nvme::wire::identify::{IdentifyNamespace, NamespaceList, cns};
use nvme::wire::log::lid;
use zerocopy::FromBytes;

use crate::client::read;
use crate::world::{BYTES, DISK, World};

fn wait_for_event(world: &mut World, admin: usize, tag: u32) {
    world.submit(admin, AdminCommand::AsyncEventRequest.emit(), Payload::None, tag);
    world.run();
}

fn changed(world: &mut World, admin: usize) -> Vec<u32> {
    let page = world.page(admin, AdminCommand::log_page(lid::CHANGED_NAMESPACE_LIST, 0, 4096));
    NamespaceList::read_from_bytes(&page.unwrap()).unwrap().iter().collect()
}

fn active(world: &mut World, admin: usize) -> Vec<u32> {
    let page = world.page(admin, AdminCommand::identify(cns::ACTIVE_NAMESPACES, 0)).unwrap();
    NamespaceList::read_from_bytes(&page).unwrap().iter().collect()
}

fn assert_event_sent(world: &mut World, admin: usize, tag: u32) {
    let done = world.completion(admin, tag).expect("no event was sent");
    assert_eq!(AsyncEvent::parse(done.result as u32), AsyncEvent::NAMESPACE_CHANGED);
}

#[test]
fn grown_disk_is_reported_and_readable() {
    let mut world = World::new();
    let (client, io) = world.attach_default();
    wait_for_event(&mut world, client.admin, 1);
    world.disk().bytes.resize(2 * BYTES, 0x77);
    let export = world.disk().export.clone();
    assert!(export.resize(2 * BYTES as u64));
    world.notify(&Notice::StateChanged);
    world.run();
    assert_event_sent(&mut world, client.admin, 1);
    assert_eq!(changed(&mut world, client.admin), [1]);
    assert_eq!(changed(&mut world, client.admin), [], "read twice");
    let page = world.page(client.admin, AdminCommand::identify(cns::NAMESPACE, 1)).unwrap();
    let figure = IdentifyNamespace::read_from_bytes(&page).unwrap();
    assert_eq!(figure.nsze.get(), 2 * BYTES as u64 / 512);
    assert_eq!(world.read(io, (BYTES / 512) as u64, 1).unwrap(), [0x77; 512]);
}

#[test]
fn r19_disk_works_again_after_removal() {
    let mut world = World::new();
    let (client, io) = world.attach_default();
    wait_for_event(&mut world, client.admin, 1);
    world.catalogue.withdraw(&DISK.into());
    world.notify(&Notice::StateChanged);
    world.run();
    assert_event_sent(&mut world, client.admin, 1);
    assert_eq!(active(&mut world, client.admin), []);
    assert_eq!(world.read(io, 0, 1).unwrap_err(), Status::INVALID_NAMESPACE.dnr());
    assert_eq!(changed(&mut world, client.admin), [1]);

    wait_for_event(&mut world, client.admin, 2);
    world.publish(DISK, |_| {});
    world.run();
    assert_event_sent(&mut world, client.admin, 2);
    assert_eq!(active(&mut world, client.admin), [1]);
    assert!(world.read(io, 0, 1).is_ok());
}

#[test]
fn r19_requests_on_a_removed_disk_complete() {
    let mut world = World::new();
    let (_, io) = world.attach_default();
    world.disk().held = true;
    let buffer = world.buffer(512);
    world.submit(io, read(0, 1), Payload::Receive(buffer), 5);
    world.run();
    world.catalogue.withdraw(&DISK.into());
    world.notify(&Notice::StateChanged);
    world.run();
    world.disk().faults = Box::new(|_, _, _| Some(export::Fault::Gone));
    world.disk().held = false;
    world.run();
    assert_eq!(world.status(io, 5).code(), Status::NAMESPACE_NOT_READY);
    assert!(world.connections[io].target_end.is_none());
}

#[test]
fn change_of_another_disk_is_not_reported() {
    let mut world = World::new();
    let (client, _) = world.attach_default();
    wait_for_event(&mut world, client.admin, 1);
    world.publish("nqn.x:other", |_| {});
    world.run();
    assert!(world.completion(client.admin, 1).is_none());
}

#[test]
fn event_requests_beyond_the_limit_are_refused() {
    let mut world = World::new();
    let (client, _) = world.attach_default();
    for tag in 0..5 {
        wait_for_event(&mut world, client.admin, tag);
    }
    assert_eq!(world.status(client.admin, 4).code(), Status::ASYNC_EVENT_LIMIT_EXCEEDED);
    assert!(world.connections[client.admin].done.is_empty());
}
