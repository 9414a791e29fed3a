//! What a request costs with many connections and threads. And requests per second of each driver, and
//! CPU time of its threads per request; printed, not checked. Engine and client have one core each.
//! Run by `cargo test --release -p engine --test
//! throughput -- --ignored --nocapture`.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod toy;

use std::time::{Duration, Instant};

use engine::{Config, Driver};
use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use toy::{Client, Served, SessionOptions, at_best, file_export, memory_export, serve};

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

/// Requests that a client sends at once.
const BATCH: u32 = 16;

/// Bytes of each: so few that what is in the sockets fits into the processor's cache.
const LEN: usize = 512;

/// Sends `rounds` batches of reads over each connection. Returns the engine's CPU time per request
/// in microseconds.
fn cost(served: &Served, connections: u32, rounds: u32) -> f64 {
    let mut clients: Vec<_> = (0..connections).map(|_| Client::connect(served.address)).collect();
    let commands = (0..BATCH).flat_map(|tag| Client::command(b'R', tag, tag, LEN));
    let commands: Vec<_> = commands.collect();
    let mut answers = vec![0; (16 + LEN) * BATCH as usize];
    let mut round = || {
        for client in &mut clients {
            std::io::Write::write_all(&mut client.0, &commands).unwrap();
        }
        for client in &mut clients {
            std::io::Read::read_exact(&mut client.0, &mut answers).unwrap();
        }
    };
    round();
    let used = used_by_others();
    (0..rounds).for_each(|_| round());
    (used_by_others() - used) * 1e6 / f64::from(rounds * connections * BATCH)
}

#[test]
fn many_connections_cost_a_request_no_more_than_one() {
    let config = Config { driver: Driver::Uring, ..Config::default() };
    let Some(served) = serve(config, memory_export(1 << 20), SessionOptions::default()) else {
        return;
    };
    let measure = || cost(&served, 128, 20) / cost(&served, 1, 2560);
    let ratio = at_best(measure, |ratio| *ratio <= 1.15);
    println!("128 connections cost {ratio:.2} times as much");
    assert!(ratio <= 1.15, "128 connections cost {ratio:.2} times as much");
    assert!(served.engine.stop(Duration::from_secs(5)));
}

#[test]
fn requests_of_many_threads_are_counted_exactly() {
    for driver in [Driver::Uring, Driver::Blocking] {
        let config = Config { driver, threads: 4, ..Config::default() };
        let Some(served) = serve(config, memory_export(1 << 20), SessionOptions::default()) else {
            continue;
        };
        std::thread::scope(|scope| {
            (0..8).for_each(|_| drop(scope.spawn(|| cost(&served, 2, 30))));
        });
        let requests = 8 * 2 * 31 * u64::from(BATCH);
        let usage = served.export.usage();
        assert_eq!((usage.reads, usage.bytes_read), (requests, requests * LEN as u64));
        assert!(served.engine.stop(Duration::from_secs(5)));
        assert_eq!(served.export.usage(), usage);
    }
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
