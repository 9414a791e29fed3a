//! Requests and their results.

use export::{Extent, Fault, Notice};
use nbd::client::{Options, Request, SubmitError};
use nbd::wire::errno;

use crate::world::{SIZE, World};

fn forms() -> [Options; 3] {
    let all = Options::new("sda");
    let structured = Options { extended: false, ..all.clone() };
    let simple = Options { structured: false, ..structured.clone() };
    [all, structured, simple]
}

#[test]
fn written_data_is_read_back() {
    for options in forms() {
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
            assert_eq!(world.complete(request).result, Ok(()));
        }
        assert!(world.disk[4096..8192 + 65536].iter().all(|&byte| byte == 0));
        assert!(world.disk[1 << 20..(1 << 20) + 65536].iter().all(|&byte| byte == 0));
    }
}

#[test]
fn extents_match_the_disk() {
    for options in forms().into_iter().take(2) {
        let mut world = World::new(options);
        world.disk.fill(1);
        world.disk[4096..65536].fill(0);
        let done = world.complete(Request::Extents { offset: 512, len: 131_072 });
        let expected =
            [Extent::data(3584), Extent::hole(65536 - 4096), Extent::data(131_072 + 512 - 65536)];
        assert_eq!(done.extents, expected);
    }
}

#[test]
fn faults_fail_the_request_and_not_the_connection() {
    let table = [
        (Fault::Io, errno::EIO),
        (Fault::NoSpace, errno::ENOSPC),
        (Fault::ReadOnly, errno::EPERM),
        (Fault::Unsupported, errno::ENOTSUP),
        (Fault::Gone, errno::ESHUTDOWN),
    ];
    for options in forms() {
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

/// After a failed flush no later flush succeeds.
#[test]
fn r17_failed_flush_is_sticky() {
    let mut world = World::new(Options::new("sda"));
    world.faults.push_back(Err(Fault::Io));
    for _ in 0..3 {
        assert_eq!(world.complete(Request::Flush).result.unwrap_err().errno, errno::EIO);
    }
}

#[test]
fn writes_to_a_read_only_export_are_not_sent() {
    let mut world = World::read_only();
    let request = world.write_request(0, &[1; 512]);
    assert!(matches!(world.client.submit(request, 1), Err(SubmitError::Unsupported(_))));
    assert_eq!(world.read(0, 512).unwrap().len(), 512);
}

/// R31: requests in flight complete, later ones fail with ESHUTDOWN.
#[test]
fn r31_stopping_server_completes_requests_in_flight() {
    let mut world = World::new(Options::new("sda"));
    world.hold_disk = true;
    let buffer = world.memory.take(4096).unwrap();
    world.submit(Request::Read { offset: 0, buffer }, 1);
    world.run();
    world.notify(Notice::Stopping);
    let buffer = world.memory.take(4096).unwrap();
    world.submit(Request::Read { offset: 0, buffer }, 2);
    world.run();
    world.hold_disk = false;
    world.run();
    let mut done: Vec<_> =
        world.events.done.iter().map(|done| (done.tag, done.result.map_err(|e| e.errno))).collect();
    done.sort_unstable_by_key(|(tag, _)| *tag);
    assert_eq!(done, [(1, Ok(())), (2, Err(errno::ESHUTDOWN))]);
    assert!(world.events.closed.is_some());
}

#[test]
fn shrunk_disk_fails_only_requests_beyond_its_end() {
    let mut world = World::new(Options::new("sda"));
    world.catalogue.find(&"nqn.x:sda".into()).unwrap().resize(SIZE as u64 / 2);
    world.notify(Notice::StateChanged);
    assert_eq!(world.read(SIZE as u64 / 2, 4096), Err(errno::EINVAL));
    assert_eq!(world.write(SIZE as u64 / 2, &[1; 512]), Err(errno::ENOSPC));
    assert_eq!(world.read(0, 4096).unwrap().len(), 4096);
}

#[test]
fn withdrawn_disk_fails_requests() {
    let mut world = World::new(Options::new("sda"));
    world.catalogue.withdraw(&"nqn.x:sda".into());
    assert_eq!(world.read(0, 512), Err(errno::ESHUTDOWN));
}
