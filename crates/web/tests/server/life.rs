//! Timeouts, the end of connections, changed exports.

use std::time::Duration;

use export::{Access, Budget, Buffer, Network, Notice, Pool, Reason, Tenant};

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

/// The driver sends what is in its queue for a short time only after [`export::Step::Close`].
#[test]
fn slow_peer_gets_the_whole_response_before_the_close() {
    let old = "GET /sda.raw HTTP/1.0\r\n\r\n".to_owned();
    for request in [get("/sda.raw", "Connection: close\r\n"), old] {
        let mut world = World::bare();
        world.disk.resize(64 << 20, 1);
        world.catalogue.publish(disk(Access::ReadOnly, 512, 64 << 20));
        let id = world.open();
        world.conn(id).not_receiving = true;
        world.send(id, request.as_bytes());
        let mut received = world.received(id);
        while received.len() < 64 << 20 {
            world.advance(59 * SECOND);
            assert!(world.conn(id).is_open(), "{} bytes", received.len());
            world.receive_sent(id);
            received.extend(world.received(id));
        }
        assert!(world.conn(id).account.held() > 0 && world.conn(id).is_open());
        world.receive_all(id);
        assert_eq!(world.conn(id).closed, Some(Reason::Peer));
        assert_eq!(Response::parse(&received, false).0.content.len(), 64 << 20);
        world.end_all();
    }
}

#[test]
fn peer_that_does_not_receive_the_end_is_cut_off() {
    let mut world = World::new();
    let id = world.open();
    world.conn(id).not_receiving = true;
    world.send(id, get("/sda.raw", "Connection: close\r\n").as_bytes());
    world.advance(59 * SECOND);
    assert!(world.conn(id).is_open());
    (0..3).for_each(|_| world.advance(61 * SECOND));
    assert_eq!(world.conn(id).closed, Some(Reason::Timeout));
    world.end_all();
}

/// Else a browser that has downloaded the disk would keep it from being removed.
#[test]
fn finished_reader_does_not_keep_the_disk_in_use() {
    let mut world = World::new();
    let id = world.open();
    world.exchange(id, get("/sda.raw", "").as_bytes());
    (0..2).for_each(|_| world.advance(6 * SECOND));
    let mut wanted = vec!["attached ".to_owned()];
    wanted.push(format!("detached (association ended) {SIZE} 0"));
    assert_eq!(world.conn(id).reported(), wanted);
    assert!(world.conn(id).is_open());
    world.exchange(id, get("/sda.raw", "Range: bytes=0-9\r\n").as_bytes());
    assert_eq!(world.conn(id).reported().len(), 3, "it is attached again");
    // While the peer receives, it is in use.
    world.conn(id).not_receiving = true;
    world.send(id, get("/sda.raw", "Range: bytes=0-9\r\n").as_bytes());
    (0..3).for_each(|_| world.advance(6 * SECOND));
    assert_eq!(world.conn(id).reported().len(), 3);
    world.receive_all(id);
    (0..3).for_each(|_| world.advance(61 * SECOND));
    assert_eq!(world.conn(id).closed, Some(Reason::Timeout));
    world.end_all();
}

/// Takes all memory that hosts can take.
fn all_of(pool: &Pool) -> Vec<Buffer> {
    let mut taken = Vec::new();
    for host in 0..=u8::MAX {
        let network = Network::of(([10, host, 0, 1], 1024).into());
        let account = pool.open_for(Tenant::Network(network));
        for len in [Pool::MAX_BUFFER, 64 << 10, 4096] {
            taken.extend(std::iter::from_fn(|| account.take(len)));
        }
    }
    taken
}

#[test]
fn want_of_memory_does_not_end_the_connection() {
    for path in ["/sda.raw", "/"] {
        let budget = Budget::new(Budget::MIN);
        let mut world = World::with_pool(Pool::with_budget(64 << 20, budget.clone()));
        world.catalogue.publish(disk(Access::ReadOnly, 512, SIZE as u64));
        let taken = all_of(&Pool::with_budget(64 << 20, budget));
        let id = world.open();
        world.send(id, get(path, "").as_bytes());
        assert!(world.received(id).is_empty() && world.conn(id).account.held() == 0);
        (0..3).for_each(|_| world.advance(61 * SECOND));
        assert!(world.conn(id).is_open());
        drop(taken);
        world.run();
        let received = world.received(id);
        assert_eq!(Response::parse(&received, false).0.code, 200);
        world.end_all();
    }
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
