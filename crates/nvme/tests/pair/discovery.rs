//! The discovery log and its events.

use export::Notice;
use nvme::command::AdminCommand;
use nvme::host::Payload;
use nvme::target::Port;
use nvme::wire::fabrics::DISCOVERY_NQN;
use nvme::wire::feature::AsyncEvent;
use nvme::wire::log::{DiscoveryEntry, DiscoveryHeader, lid, subtype};
use nvme::wire::text::{parse_ascii, parse_nqn};
use zerocopy::FromBytes;

use crate::client::{AttachParams, Client};
use crate::world::{DISK, World};

pub(crate) fn attach_discovery(world: &mut World) -> Client {
    world.attach(&AttachParams { subsystem: DISCOVERY_NQN, ..AttachParams::default() })
}

pub(crate) fn log(world: &mut World, admin: usize, offset: u64, len: u64) -> Vec<u8> {
    world.page(admin, AdminCommand::log_page(lid::DISCOVERY, offset, len)).unwrap()
}

fn header(world: &mut World, admin: usize) -> DiscoveryHeader {
    DiscoveryHeader::read_from_bytes(&log(world, admin, 0, 1024)).unwrap()
}

pub(crate) fn entries(bytes: &[u8]) -> Vec<DiscoveryEntry> {
    bytes[1024..]
        .chunks(1024)
        .map(|entry| DiscoveryEntry::read_from_bytes(entry).unwrap())
        .collect()
}

#[test]
fn log_contains_the_discovery_service_and_all_disks() {
    let mut world = World::new();
    world.publish("nqn.2026-01.org.example:second", |_| {});
    let client = attach_discovery(&mut world);
    assert_eq!(header(&mut world, client.admin).numrec.get(), 3);
    let found = entries(&log(&mut world, client.admin, 0, 4096));
    let names: Vec<_> = found.iter().map(|entry| parse_nqn(&entry.subnqn).unwrap()).collect();
    assert_eq!(names, [DISCOVERY_NQN, DISK, "nqn.2026-01.org.example:second"]);
    assert_eq!(found[0].subtype, subtype::CURRENT_DISCOVERY);
    assert!(found[1..].iter().all(|entry| entry.subtype == subtype::NVM));
    assert!(found.iter().all(|entry| parse_ascii(&entry.traddr) == "192.0.2.1"));
    assert!(found.iter().all(|entry| parse_ascii(&entry.trsvcid) == "4420"));
}

#[test]
fn discovery_port_refers_to_the_disk_port() {
    let mut world = World::new();
    world.port = Port::Discovery { disks_at: 4711 };
    let client = attach_discovery(&mut world);
    let found = entries(&log(&mut world, client.admin, 0, 3072));
    assert_eq!(parse_ascii(&found[1].trsvcid), "4711");
    let conn = world.connect(nvme::host::Options::admin(), AttachParams::default().data(0xffff));
    world.run();
    assert!(world.connections[conn].refused.is_some());
}

#[test]
fn log_read_in_pieces_is_a_snapshot() {
    let mut world = World::new();
    world.publish("nqn.2026-01.org.example:second", |_| {});
    let client = attach_discovery(&mut world);
    for piece in [4, 512, 1024, 2048] {
        let whole = log(&mut world, client.admin, 0, 4096);
        let mut pieces = log(&mut world, client.admin, 0, piece);
        world.catalogue.withdraw(&"nqn.2026-01.org.example:second".into());
        while pieces.len() < 4096 {
            let offset = pieces.len() as u64;
            pieces.extend(log(&mut world, client.admin, offset, piece));
        }
        assert_eq!(pieces, whole, "pieces of {piece}");
        assert_ne!(log(&mut world, client.admin, 0, 4096), whole);
        world.publish("nqn.2026-01.org.example:second", |_| {});
    }
}

#[test]
fn reads_beyond_the_log_are_zeros_or_refused() {
    let mut world = World::new();
    let client = attach_discovery(&mut world);
    let all = log(&mut world, client.admin, 0, 8192);
    assert!(all[3072..].iter().all(|&byte| byte == 0));
    for offset in [3076, 1 << 32, u64::MAX - 3] {
        let page = world.page(client.admin, AdminCommand::log_page(lid::DISCOVERY, offset, 4));
        assert!(page.is_err(), "{offset}");
    }
}

#[test]
fn discovery_event_is_masked_until_the_log_is_read() {
    let mut world = World::new();
    let client = attach_discovery(&mut world);
    let before = header(&mut world, client.admin).genctr.get();
    for tag in 0..3 {
        world.submit(client.admin, AdminCommand::AsyncEventRequest.emit(), Payload::None, tag);
    }
    world.run();
    assert!(world.connections[client.admin].done.is_empty());
    for number in 0..2 {
        world.publish(["nqn.x:1", "nqn.x:2"][number], |_| {});
        world.run();
    }
    let notify_pending = world.completion(client.admin, 0).unwrap();
    assert_eq!(AsyncEvent::parse(notify_pending.result as u32), AsyncEvent::DISCOVERY_CHANGED);
    assert!(world.completion(client.admin, 1).is_none(), "the event was not masked");
    assert_eq!(header(&mut world, client.admin).genctr.get(), before + 2);
    // An event that occurred while the first was masked is sent now.
    assert!(world.completion(client.admin, 1).is_some());
    assert!(world.completion(client.admin, 2).is_none());
}

#[test]
fn disabled_events_are_not_sent() {
    let mut world = World::new();
    let (admin, _) =
        world.open_admin(&AttachParams { subsystem: DISCOVERY_NQN, ..AttachParams::default() });
    world.configure(admin, nvme::wire::fabrics::Cc::default().with_en(1));
    world.submit(admin, AdminCommand::AsyncEventRequest.emit(), Payload::None, 0);
    world.run();
    world.publish("nqn.x:1", |_| {});
    world.run();
    assert!(world.completion(admin, 0).is_none());
}

#[test]
fn stopping_disconnects_the_host() {
    let mut world = World::new();
    let client = attach_discovery(&mut world);
    world.notify(&Notice::Stopping);
    world.run();
    assert_eq!(world.connections[client.admin].target_end, Some(export::Reason::Stopping));
}
