//! GET and HEAD of disks: bytes, ranges, order, memory, faults.

use export::{Access, Fault, Reason};
use testkit::Chunks;

use crate::world::{DISK, Response, SIZE, World, disk, get, named};

#[test]
fn whole_disk_is_sent_with_its_exact_length() {
    let mut world = World::new();
    let response = world.get("/sda.raw", "");
    assert_eq!(response.code, 200);
    assert_eq!(response.field("Content-Length"), Some(SIZE.to_string().as_str()));
    assert_eq!(response.field("Content-Type"), Some("application/octet-stream"));
    assert_eq!(response.field("Content-Disposition"), Some("attachment; filename=\"sda.raw\""));
    assert_eq!(response.field("Accept-Ranges"), Some("bytes"));
    assert!(response.content == world.disk[..SIZE]);
    world.end_all();
}

#[test]
fn any_range_has_the_bytes_of_the_disk() {
    for block in [512, 4096] {
        let mut world = World::bare();
        world.catalogue.publish(disk(Access::ReadOnly, block, SIZE as u64));
        for (first, last) in [
            (0, 0),
            (1, 1),
            (511, 512),
            (0, 511),
            (4095, 300_000),
            (262_143, 262_144),
            (262_144, 524_287),
            (100, 1_500_003),
            (SIZE - 1, SIZE - 1),
            (SIZE - 1000, SIZE + 5),
        ] {
            let response = world.get("/sda.raw", &format!("Range: bytes={first}-{last}\r\n"));
            let end = SIZE.min(last + 1);
            let place = format!("bytes {first}-{}/{SIZE}", end - 1);
            assert_eq!(
                (response.code, response.field("Content-Range")),
                (206, Some(place.as_str()))
            );
            assert!(response.content == world.disk[first..end], "{first}-{last}");
        }
        world.end_all();
    }
}

#[test]
fn range_beyond_the_end_is_refused_with_the_length() {
    let mut world = World::new();
    let response = world.get("/sda.raw", &format!("Range: bytes={SIZE}-\r\n"));
    let place = format!("bytes */{SIZE}");
    assert_eq!((response.code, response.field("Content-Range")), (416, Some(place.as_str())));
    world.end_all();
}

#[test]
fn head_has_the_fields_of_get_and_no_content() {
    let mut world = World::new();
    let id = world.open();
    let request = get("/sda.raw", "Range: bytes=0-9\r\n").replacen("GET", "HEAD", 1);
    let received = world.exchange(id, request.as_bytes());
    let (response, rest) = Response::parse(&received, true);
    assert!(rest.is_empty());
    assert_eq!(response.code, 200, "a range has a meaning for GET only");
    assert_eq!(response.field("Content-Length"), Some(SIZE.to_string().as_str()));
    assert_eq!(world.conn(id).submitted, 0);
    assert!(world.conn(id).reported().is_empty());
    world.end_all();
}

#[test]
fn pieces_are_sent_in_order_whatever_completes_first() {
    let mut world = World::new();
    let id = world.open();
    world.conn(id).hold = true;
    world.send(id, get("/sda.raw", "").as_bytes());
    assert_eq!(world.jobs(id).len(), 4, "pieces at once");
    while !world.jobs(id).is_empty() {
        let last = world.jobs(id).len() - 1;
        world.finish(id, last, Ok(()));
    }
    let received = world.received(id);
    assert!(Response::parse(&received, false).0.content == world.disk[..SIZE]);
    world.end_all();
}

#[test]
fn requests_split_anywhere_are_answered_in_order() {
    for seed in 0..30 {
        let mut world = World::new();
        world.random = testkit::Xorshift64::from_seed(seed);
        world.chunks = if seed == 0 { Chunks::Fixed(1) } else { Chunks::Random };
        let id = world.open();
        let ranges = [(5, 700_000), (0, 0), (1_000_000, 1_000_511)];
        let requests: Vec<_> =
            ranges.map(|(a, b)| get("/sda.raw", &format!("Range: bytes={a}-{b}\r\n"))).into();
        let received =
            world.exchange(id, format!("{}{}", requests.concat(), get("/", "")).as_bytes());
        let mut rest = &received[..];
        for (first, last) in ranges {
            let (response, more) = Response::parse(rest, false);
            assert!(response.content == world.disk[first..=last], "{first}");
            rest = more;
        }
        assert_eq!(
            Response::parse(rest, false).0.field("Content-Type"),
            Some("text/html; charset=utf-8")
        );
        let read = 699_996 + 1 + 512;
        assert_eq!(world.conn(id).reported(), ["attached "]);
        world.disconnect(id);
        let ended = format!("detached (disconnected) {read} 0");
        assert_eq!(world.conn(id).reported(), ["attached ".to_owned(), ended]);
        world.end_all();
    }
}

#[test]
fn slow_reader_holds_bounded_memory() {
    let mut world = World::bare();
    world.disk.resize(64 << 20, 1);
    world.catalogue.publish(disk(Access::ReadOnly, 512, 64 << 20));
    let id = world.open();
    world.conn(id).not_receiving = true;
    // Many requests wait behind the first one.
    world.send(id, get("/sda.raw", "").repeat(100).as_bytes());
    assert!(world.conn(id).account.held() <= 3 << 20);
    assert!(world.received(id).len() < 4 << 20);
    for _ in 0..1000 {
        world.receive_all(id);
        world.conn(id).not_receiving = true;
    }
    assert!(world.received(id).len() > 64 << 20);
    world.end_all();
}

/// Pages take memory of the connection as well.
#[test]
fn pipelined_pages_hold_bounded_memory() {
    let mut world = World::new();
    let id = world.open();
    world.conn(id).not_receiving = true;
    world.send(id, get("/", "").repeat(100_000).as_bytes());
    let share = world.conn(id).account.share();
    assert!(world.received(id).len() <= share);
    world.end_all();
}

#[test]
fn failed_first_read_has_a_status() {
    for (fault, code) in [(Fault::Io, 500), (Fault::Gone, 404), (Fault::Reserved, 403)] {
        let mut world = World::new();
        match fault {
            Fault::Io => world.unreadable.push(0..1),
            _ => world.faults.push_back(Err(fault)),
        }
        let id = world.open();
        let received = world.exchange(id, get("/sda.raw", "").as_bytes());
        let (response, rest) = Response::parse(&received, false);
        assert_eq!((response.code, response.field("Connection")), (code, Some("close")));
        assert!(rest.is_empty() && world.conn(id).closed.is_some());
        let faults = world.conn(id).reported().iter().any(|it| it.starts_with("fault read 0 512"));
        assert_eq!(faults, fault == Fault::Io);
        world.end_all();
    }
}

#[test]
fn failed_later_read_ends_the_connection_before_the_length() {
    let mut world = World::new();
    world.unreadable.push(512 << 10..513 << 10);
    let id = world.open();
    let received = world.exchange(id, get("/sda.raw", "").as_bytes());
    let end = received.windows(4).position(|at| at == b"\r\n\r\n").unwrap() + 4;
    assert!(received[end..] == world.disk[..512 << 10]);
    assert_eq!(world.conn(id).closed, Some(Reason::Ended));
    world.end_all();
}

/// Pieces are read at once: the one that fails may complete first.
#[test]
fn data_before_an_unreadable_sector_is_sent() {
    let mut world = World::new();
    let id = world.open();
    world.conn(id).hold = true;
    world.unreadable.push(256 << 10..257 << 10);
    world.send(id, get("/sda.raw", "").as_bytes());
    world.finish(id, 1, Ok(()));
    assert!(world.conn(id).is_open());
    world.finish(id, 1, Ok(()));
    world.finish(id, 0, Ok(()));
    world.finish_all(id);
    let received = world.received(id);
    let end = received.windows(4).position(|at| at == b"\r\n\r\n").unwrap() + 4;
    assert!(received.starts_with(b"HTTP/1.1 200"));
    assert!(received[end..] == world.disk[..256 << 10]);
    let reported = world.conn(id).reported();
    assert!(reported.contains(&"fault read 262144 512".to_owned()), "{reported:?}");
    assert_eq!(world.conn(id).closed, Some(Reason::Ended));
    world.end_all();
}

#[test]
fn disk_without_bytes_is_sent() {
    let mut world = World::bare();
    world.catalogue.publish(disk(Access::ReadOnly, 512, 0));
    let response = world.get("/sda.raw", "");
    assert_eq!((response.code, response.field("Content-Length")), (200, Some("0")));
    assert_eq!(world.get("/sda.raw", "Range: bytes=0-\r\n").code, 416);
    world.end_all();
}

#[test]
fn disk_is_found_by_its_exact_name_only() {
    let mut world = World::new();
    world.catalogue.publish(named("/srv/a b%é.img", "other", Access::ReadOnly, 512, 512));
    let response = world.get("/a%20b%25%C3%A9.raw", "");
    let name = "attachment; filename=\"a_b__.raw\"; filename*=UTF-8''a%20b%25%C3%A9.raw";
    assert_eq!((response.code, response.field("Content-Disposition")), (200, Some(name)));
    for path in [
        "/SDA",
        "/SDA.raw",
        "/sda.raw/",
        "//sda.raw",
        "/./sda.raw",
        "/../dev/sda.raw",
        "/%2e%2e/sda.raw",
        "/sda.raw%00",
        "/.raw",
        "/dev/sda.raw",
        "/%",
        "*",
    ] {
        let response = world.get(path, "");
        assert_eq!(response.code, 404, "{path}");
        assert!(!String::from_utf8(response.content).unwrap().contains("sda"), "{path}");
    }
    assert!(world.catalogue.find(&DISK.into()).is_some());
    world.end_all();
}
