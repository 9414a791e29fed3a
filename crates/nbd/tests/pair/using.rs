//! Requests and how they end.

use export::{Extent, Fault, Notice};
use nbd::client::{NotNow, Options, Request};
use nbd::wire::errno;

use crate::world::{SIZE, World};

fn manners() -> [Options; 3] {
    let all = Options::new("sda");
    let structured = Options { extended: false, ..all.clone() };
    let simple = Options { structured: false, ..structured.clone() };
    [all, structured, simple]
}

#[test]
fn what_is_written_is_read() {
    for options in manners() {
        let mut world = World::new(options);
        let data: Vec<u8> = (0..=240).cycle().take(1 << 20).collect();
        world.write(4096, &data).unwrap();
        assert!(world.disk[4096..4096 + data.len()] == data);
        assert!(world.read(4096, data.len()).unwrap() == data);
        let (offset, len, durable) = (8192, 65536, true);
        for request in [
            Request::Zero { offset, len, no_hole: false, fast: true, durable },
            Request::Zero { offset: 4096, len: 4096, no_hole: true, fast: false, durable },
            Request::Trim { offset: 1 << 20, len, durable },
            Request::Cache { offset, len },
            Request::Flush,
        ] {
            assert_eq!(world.one(request).result, Ok(()));
        }
        assert!(world.disk[4096..8192 + 65536].iter().all(|&byte| byte == 0));
        assert!(world.disk[1 << 20..(1 << 20) + 65536].iter().all(|&byte| byte == 0));
    }
}

#[test]
fn extents_are_those_of_the_disk() {
    for options in manners().into_iter().take(2) {
        let mut world = World::new(options);
        world.disk.fill(1);
        world.disk[4096..65536].fill(0);
        let done = world.one(Request::Extents { offset: 512, len: 131_072 });
        let expected =
            [Extent::data(3584), Extent::hole(65536 - 4096), Extent::data(131_072 + 512 - 65536)];
        assert_eq!(done.extents, expected);
    }
}

#[test]
fn each_fault_is_told_and_the_connection_goes_on() {
    let table = [
        (Fault::Io, errno::EIO),
        (Fault::NoSpace, errno::ENOSPC),
        (Fault::ReadOnly, errno::EPERM),
        (Fault::Unsupported, errno::ENOTSUP),
        (Fault::Gone, errno::ESHUTDOWN),
    ];
    for options in manners() {
        for (fault, errno) in table {
            let mut world = World::new(options.clone());
            world.faults.push_back(Err(fault));
            assert_eq!(world.write(0, &[1; 512]), Err(errno), "{fault}");
            world.faults.push_back(Err(fault));
            assert_eq!(world.read(0, 512), Err(errno), "{fault}");
            assert_eq!(world.read(0, 512).unwrap().len(), 512);
        }
    }
}

/// A flush that failed is never followed by one that succeeds.
#[test]
fn r17_a_failed_flush_is_told_and_stays() {
    let mut world = World::new(Options::new("sda"));
    world.faults.push_back(Err(Fault::Io));
    for _ in 0..3 {
        assert_eq!(world.one(Request::Flush).result.unwrap_err().errno, errno::EIO);
    }
}

#[test]
fn a_read_only_disk_is_not_even_asked_to_write() {
    let mut world = World::read_only();
    let request = world.write_request(0, &[1; 512]);
    assert!(matches!(world.client.submit(request, 1), Err(NotNow::Impossible(_))));
    assert_eq!(world.read(0, 512).unwrap().len(), 512);
}

/// R31: what is under way is answered, what comes later is told that the server leaves.
#[test]
fn r31_a_server_that_stops_answers_what_is_under_way() {
    let mut world = World::new(Options::new("sda"));
    world.held = true;
    let buffer = world.memory.take(4096).unwrap();
    world.submit(Request::Read { offset: 0, buffer }, 1);
    world.run();
    world.notify(&Notice::Stopping);
    let buffer = world.memory.take(4096).unwrap();
    world.submit(Request::Read { offset: 0, buffer }, 2);
    world.run();
    world.held = false;
    world.run();
    let mut done: Vec<_> =
        world.heard.done.iter().map(|done| (done.tag, done.result.map_err(|e| e.errno))).collect();
    done.sort_unstable_by_key(|(tag, _)| *tag);
    assert_eq!(done, [(1, Ok(())), (2, Err(errno::ESHUTDOWN))]);
    assert!(world.heard.closed.is_some());
}

#[test]
fn a_disk_that_shrinks_fails_what_lies_beyond_and_nothing_else() {
    let mut world = World::new(Options::new("sda"));
    world.catalogue.find("nqn.x:sda").unwrap().resize(SIZE as u64 / 2);
    world.notify(&Notice::StateChanged);
    assert_eq!(world.read(SIZE as u64 / 2, 4096), Err(errno::EINVAL));
    assert_eq!(world.write(SIZE as u64 / 2, &[1; 512]), Err(errno::ENOSPC));
    assert_eq!(world.read(0, 4096).unwrap().len(), 4096);
}

#[test]
fn a_disk_that_is_taken_away_is_told() {
    let mut world = World::new(Options::new("sda"));
    world.catalogue.withdraw("nqn.x:sda");
    assert_eq!(world.read(0, 512), Err(errno::ESHUTDOWN));
}
