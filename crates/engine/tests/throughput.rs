//! Requests per second of each driver, and CPU time of its threads per request; printed, not
//! checked. Engine and client have one core each. Run by `cargo test --release -p engine --test
//! throughput -- --ignored --nocapture`.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod toy;

use std::time::{Duration, Instant};

use engine::{Config, Driver};
use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use toy::{Client, Served, SessionOptions, file_export, memory_export, serve};

fn pin(core: usize) {
    let mut cores = CpuSet::new();
    cores.set(core);
    // With one core, all share it.
    let _ = sched_setaffinity(None, &cores);
}

/// Returns the CPU time of all threads but this one.
fn used_by_others() -> f64 {
    let seconds = |clock| {
        let time = clock_gettime(clock);
        Duration::new(time.tv_sec.try_into().unwrap(), time.tv_nsec.try_into().unwrap())
    };
    (seconds(ClockId::ProcessCPUTime) - seconds(ClockId::ThreadCPUTime)).as_secs_f64()
}

/// Reads `len` bytes at queue depth `depth` for a second. Returns requests per second, and the
/// engine's CPU time per request in microseconds.
fn reads(served: &Served, depth: u32, len: usize) -> (f64, f64) {
    let mut client = Client::connect(served.address);
    let (began, used) = (Instant::now(), used_by_others());
    let mut answers = 0u32;
    (0..depth).for_each(|tag| client.send(b'R', tag, tag * 8, len));
    let mut buffer = vec![0; (16 + len) * depth as usize];
    let mut have = 0;
    while began.elapsed() < Duration::from_secs(1) {
        have += std::io::Read::read(&mut client.0, &mut buffer[have..]).unwrap();
        let whole = have / (16 + len);
        let mut batch = Vec::with_capacity(whole * 16);
        for tag in 0..u32::try_from(whole).unwrap() {
            batch.extend(Client::command(b'R', tag, tag * 8, len));
        }
        std::io::Write::write_all(&mut client.0, &batch).unwrap();
        buffer.copy_within(whole * (16 + len)..have, 0);
        have -= whole * (16 + len);
        answers += u32::try_from(whole).unwrap();
    }
    let (answers, used) = (f64::from(answers), used_by_others() - used);
    (answers / began.elapsed().as_secs_f64(), used * 1e6 / answers)
}

/// Writes `len` bytes at queue depth `depth`, measured as for [`reads`].
fn writes(served: &Served, depth: u32, len: usize) -> (f64, f64) {
    let mut client = Client::connect(served.address);
    let data = vec![7; len];
    let (began, used) = (Instant::now(), used_by_others());
    let mut answers = 0u32;
    (0..depth).for_each(|tag| client.say_write(tag * 2, 0, &data));
    while began.elapsed() < Duration::from_secs(1) {
        let (tag, status, _) = client.receive().unwrap();
        assert_eq!(status, 0);
        client.say_write(tag, tag * 64, &data);
        answers += 1;
    }
    let (answers, used) = (f64::from(answers), used_by_others() - used);
    (answers / began.elapsed().as_secs_f64(), used * 1e6 / answers)
}

#[test]
#[ignore = "a measurement"]
fn operations_per_second() {
    let disks = [("memory", memory_export as fn(u64) -> _), ("file", file_export)];
    for (driver, (kind, memory_export)) in [Driver::Uring, Driver::Blocking]
        .into_iter()
        .flat_map(|driver| disks.map(|disk| (driver, disk)))
    {
        pin(0);
        let config = Config { driver, ..Config::default() };
        let Some(served) = serve(config, memory_export(16 << 20), SessionOptions::default()) else {
            continue;
        };
        pin(1);
        for (depth, len) in [(1, 4096), (32, 4096), (128, 4096), (32, 128 << 10)] {
            let (rate, cost) = reads(&served, depth, len);
            println!("{driver} {kind} read {depth} x {len} bytes: {rate:.0}/s, {cost:.2} us each");
        }
        for (depth, len) in [(32, 4096), (32, 128 << 10)] {
            let (rate, cost) = writes(&served, depth, len);
            println!("{driver} {kind} write {depth} x {len} bytes: {rate:.0}/s, {cost:.2} us each");
        }
        assert!(served.engine.stop(Duration::from_secs(5)));
    }
}
