//! Exhausted descriptors: nothing is accepted, nothing spins, and accepting continues when some are
//! free again. A test program of its own, because the limit applies to the process.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod toy;

use std::os::fd::AsRawFd;
use std::time::Duration;

use engine::{Config, Driver};
use rustix::net::{AddressFamily, SocketType, connect, socket};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use toy::{BLOCK, Client, SessionOptions, at_best, memory_export, serve, wait_for};

fn limit(descriptors: u64) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(descriptors), maximum }).unwrap();
}

fn used() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap(), time.tv_nsec.try_into().unwrap())
}

/// Returns the number of the third descriptor that would be opened now: with that limit there is
/// room for two. Counting open ones is not sufficient, because inherited ones may have any number.
fn third_free() -> u64 {
    let next = || std::fs::File::open("/dev/null").unwrap();
    let (_first, _second, third) = (next(), next(), next());
    third.as_raw_fd().try_into().unwrap()
}

#[test]
fn r35_accept_pauses_while_descriptors_are_exhausted() {
    for driver in [Driver::Uring, Driver::Blocking] {
        limit(1024);
        let config = Config { driver, ..Config::default() };
        let Some(served) = serve(config, memory_export(1 << 20), SessionOptions::default()) else {
            continue;
        };
        let mut first = Client::connect(served.address);
        assert_eq!(first.ask(b'E', 1), 0);
        let waiting: Vec<_> = (0..20).map(|_| Client::connect(served.address)).collect();
        wait_for("all to be accepted", || served.engine.connections() == 21);
        let socket = |_| socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        let late: Vec<_> = (0..8).map(socket).collect();
        // Of these eight connections, the last find no descriptor at the server.
        limit(third_free());
        late.iter().for_each(|socket| connect(socket, &served.address).unwrap());
        let waits = || {
            let before = used();
            std::thread::sleep(Duration::from_millis(500));
            used() - before
        };
        let spent = at_best(waits, |spent| *spent < Duration::from_millis(50));
        assert!(served.engine.connections() < 29, "the limit was never met");
        assert!(spent < Duration::from_millis(50), "{driver}: it spins");
        assert_eq!(first.read(0, BLOCK).unwrap().len(), BLOCK);
        drop(waiting);
        for socket in late {
            let mut client = Client(socket.into());
            assert_eq!(client.ask(b'E', 1), 0);
        }
        limit(1024);
        assert!(served.engine.stop(Duration::from_secs(30)));
    }
}
