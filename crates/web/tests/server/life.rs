//! Timeouts, the end of connections, changed exports.

use std::time::Duration;

use export::{Access, Notice, Reason};

use crate::world::{DISK, Response, SIZE, World, disk, get, named};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn connection_without_a_request_is_closed() {
    let mut world = World::new();
    let id = world.open();
    world.advance(9 * SECOND);
    assert!(world.conn(id).is_open() && !world.conn(id).is_established());
    world.advance(2 * SECOND);
    assert_eq!(world.conn(id).closed, Some(Reason::Timeout));
    world.end_all();
}

/// A peer that sends a byte now and then.
#[test]
fn slow_head_is_cut_off() {
    let mut world = World::new();
    let id = world.open();
    assert_eq!(world.exchange(id, get("/disks.json", "").as_bytes()).get(9..12), Some(&b"200"[..]));
    world.advance(59 * SECOND);
    assert!(world.conn(id).is_open());
    for byte in get("/sda.raw", "").bytes().take(12) {
        world.send(id, &[byte]);
        world.advance(SECOND);
    }
    assert_eq!(world.conn(id).closed, Some(Reason::Timeout));
    world.end_all();
}

#[test]
fn idle_connection_is_closed_after_a_minute() {
    let mut world = World::new();
    let id = world.open();
    for _ in 0..5 {
        world.exchange(id, get("/sda.raw", "Range: bytes=0-0\r\n").as_bytes());
        world.advance(50 * SECOND);
    }
    assert!(world.conn(id).is_open());
    world.advance(61 * SECOND);
    world.advance(61 * SECOND);
    assert_eq!(world.conn(id).closed, Some(Reason::Timeout));
    assert_eq!(world.conn(id).reported(), ["attached ", "detached (timed out) 5 0"]);
    world.end_all();
}

#[test]
fn reader_is_kept_as_long_as_it_receives_anything() {
    let mut world = World::bare();
    world.disk.resize(64 << 20, 1);
    world.catalogue.publish(disk(Access::ReadOnly, 512, 64 << 20));
    let id = world.open();
    (world.conn(id).not_receiving, world.conn(id).hold) = (true, true);
    world.send(id, get("/sda.raw", "").as_bytes());
    for _ in 0..5 {
        world.finish_all(id);
        world.advance(59 * SECOND);
        world.receive_all(id);
        world.conn(id).not_receiving = true;
    }
    world.finish_all(id);
    assert!(world.conn(id).is_open());
    for _ in 0..3 {
        world.advance(61 * SECOND);
    }
    assert_eq!(world.conn(id).closed, Some(Reason::Timeout));
    world.end_all();
}

#[test]
fn hung_disk_does_not_end_the_connection() {
    let mut world = World::new();
    let id = world.open();
    world.conn(id).hold = true;
    world.send(id, get("/sda.raw", "").as_bytes());
    (0..10).for_each(|_| world.advance(61 * SECOND));
    world.finish_all(id);
    let received = world.received(id);
    assert!(Response::parse(&received, false).0.content == world.disk[..SIZE]);
    world.end_all();
}

#[test]
fn withdrawn_disk_ends_its_transfer_and_no_other() {
    let mut world = World::new();
    world.catalogue.publish(named("/dev/sdb", "b", Access::ReadOnly, 512, 1 << 20));
    let (reading, idle, other) = (world.open(), world.open(), world.open());
    for (id, path) in [(reading, "/sda.raw"), (other, "/sdb.raw")] {
        world.conn(id).hold = true;
        world.send(id, get(path, "").as_bytes());
    }
    world.exchange(idle, get("/sda.raw", "Range: bytes=0-0\r\n").as_bytes());
    let export = world.catalogue.withdraw(&DISK.into()).unwrap();
    world.notify(Notice::StateChanged);
    assert_eq!(world.conn(reading).closed, Some(Reason::Ended));
    assert!(world.conn(idle).is_open() && world.conn(other).is_open());
    world.finish_all(reading);
    assert_eq!(
        std::sync::Arc::strong_count(&export) - held(&world, idle) - held(&world, reading),
        1
    );
    drop(export);
    world.finish_all(other);
    let received = world.received(other);
    assert_eq!(Response::parse(&received, false).0.content.len(), 1 << 20);
    world.end_all();
}

/// Returns how many events of a connection refer to the disk, which the driver keeps.
fn held(world: &World, id: usize) -> usize {
    world.conns[id].events.len()
}

#[test]
fn shutdown_ends_transfers() {
    let mut world = World::new();
    let (reading, idle) = (world.open(), world.open());
    world.conn(reading).hold = true;
    world.send(reading, get("/sda.raw", "").as_bytes());
    world.notify(Notice::Stopping);
    for id in [reading, idle] {
        assert_eq!(world.conn(id).closed, Some(Reason::Stopping));
    }
    world.end_all();
}

#[test]
fn connection_is_closed_if_the_peer_asks_for_it() {
    let mut world = World::new();
    let id = world.open();
    let received = world.exchange(id, get("/sda.raw", "Connection: close\r\n").as_bytes());
    assert_eq!(Response::parse(&received, false).0.content.len(), SIZE);
    assert_eq!(world.conn(id).closed, Some(Reason::Peer));
    let id = world.open();
    world.send(id, b"GET /sda.raw HTTP/1.0\r\n\r\n");
    assert_eq!(world.conn(id).closed, Some(Reason::Peer));
    world.end_all();
}

#[test]
fn another_disk_on_a_connection_is_reported() {
    let mut world = World::new();
    world.catalogue.publish(named("/dev/sdb", "b", Access::ReadOnly, 512, 1 << 20));
    let id = world.open();
    for path in ["/sda.raw", "/sda.raw", "/sdb.raw"] {
        world.exchange(id, get(path, "Range: bytes=0-9\r\n").as_bytes());
    }
    let wanted = ["attached ", "detached (association ended) 20 0", "attached "];
    assert_eq!(world.conn(id).reported(), wanted);
    world.end_all();
}
