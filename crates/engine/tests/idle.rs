//! A server that has nothing to do uses no processor. A test program of its own, as it measures the whole process.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod toy;

use std::time::Duration;

use engine::{Config, Driver};
use rustix::time::{ClockId, clock_gettime};
use toy::{BLOCK, Client, Manner, lend, serve};

/// Processor time of this process so far.
fn used() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap(), time.tv_nsec.try_into().unwrap())
}

#[test]
fn an_idle_server_uses_no_processor() {
    for driver in [Driver::Uring, Driver::Blocking] {
        let config = Config { driver, threads: 2, ..Config::default() };
        let Some(served) = serve(config, lend(1 << 20), Manner::default()) else { continue };
        let mut clients: Vec<_> = (0..8).map(|_| Client::connect(served.address)).collect();
        for client in &mut clients {
            (0..100).for_each(|_| drop(client.read(0, BLOCK).unwrap()));
        }
        std::thread::sleep(Duration::from_millis(20));
        let before = used();
        std::thread::sleep(Duration::from_secs(1));
        let spent = used() - before;
        assert!(spent < Duration::from_millis(5), "{driver}: {spent:?} in an idle second");
        drop(clients);
        assert!(served.engine.stop(Duration::from_secs(5)));
    }
}
