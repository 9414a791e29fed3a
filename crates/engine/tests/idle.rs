//! An idle server uses no CPU time. A test program of its own, because it measures the process.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod toy;

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use engine::{Config, Driver};
use rustix::time::{ClockId, clock_gettime};
use toy::{BLOCK, Client, SessionOptions, at_best, memory_export, serve, wait_for};

/// Returns the CPU time of this process.
fn used() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap(), time.tv_nsec.try_into().unwrap())
}

#[test]
fn idle_server_uses_no_cpu_time() {
    let ways = [Driver::Uring, Driver::Blocking].map(|driver| [(driver, false), (driver, true)]);
    for (driver, secured) in ways.into_iter().flatten() {
        let config = Config { driver, threads: 2, ..Config::default() };
        let options = SessionOptions { secured, ..SessionOptions::default() };
        let Some(served) = serve(config, memory_export(1 << 20), options) else { continue };
        let mut clients: Vec<_> = (0..8).map(|_| Client::connect(served.address)).collect();
        for client in &mut clients {
            (0..100).for_each(|_| drop(client.read(0, BLOCK).unwrap()));
        }
        // R39: malformed connections that end. Some begin with the first byte of TLS.
        for at in 0..200u8 {
            let mut junk = TcpStream::connect(served.address).unwrap();
            let _ = junk.write_all(&[if at % 2 == 0 { 0x16 } else { at }, 3, 1, at, 9, 9]);
        }
        wait_for("the junk to go", || served.engine.connections() == clients.len());
        let idle = || {
            let before = used();
            std::thread::sleep(Duration::from_secs(1));
            used() - before
        };
        let spent = at_best(idle, |spent| *spent < Duration::from_millis(5));
        assert!(
            spent < Duration::from_millis(5),
            "{driver}, secured {secured}: {spent:?} in an idle second"
        );
        drop(clients);
        assert!(served.engine.stop(Duration::from_secs(30)));
    }
}
