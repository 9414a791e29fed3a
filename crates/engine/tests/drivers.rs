//! Behaviour of both drivers towards sessions and peers, over loopback TCP, with the toy protocol.
//! Each test runs with each driver, with and without TLS.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod toy;

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use engine::{Config, Driver};
use export::{Export, Extent, Fault, Notice};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::sockopt::set_socket_linger;
use toy::{
    BLOCK, Client, Log, Served, SessionOptions, Setup, UNLIMITED, file_export, lend_fd,
    memory_export, pattern, serve, wait_for,
};

macro_rules! with_both_drivers {
    ($($name:ident)*) => {
        mod uring {
            use super::{Driver, Setup};
            $(#[test] fn $name() { super::$name(Setup { driver: Driver::Uring, secured: false }) })*
        }
        mod blocking {
            use super::{Driver, Setup};
            $(#[test] fn $name() { super::$name(Setup { driver: Driver::Blocking, secured: false }) })*
        }
        mod uring_tls {
            use super::{Driver, Setup};
            $(#[test] fn $name() { super::$name(Setup { driver: Driver::Uring, secured: true }) })*
        }
        mod blocking_tls {
            use super::{Driver, Setup};
            $(#[test] fn $name() { super::$name(Setup { driver: Driver::Blocking, secured: true }) })*
        }
    };
}

with_both_drivers! {
    written_data_is_read_back
    written_data_is_read_back_in_memory
    large_payloads_are_received_directly
    many_small_requests_are_all_answered
    many_small_requests_are_all_answered_in_memory
    commands_may_arrive_byte_by_byte
    half_closed_connection_is_answered_completely
    r55_peer_lost_while_its_thread_hangs_writes_no_more
    r55_half_closed_peer_is_answered_and_writes_no_more
    peer_that_does_not_read_is_throttled
    peer_that_does_not_read_is_throttled_in_memory
    lost_peer_leaks_nothing
    lost_peer_leaks_nothing_in_memory
    stopping_closes_busy_connections
    stopping_cuts_connections_that_do_not_close
    notices_reach_every_session
    step_notify_reaches_all_sessions
    changes_of_an_export_reach_no_session_of_another
    end_of_an_exclusive_write_notifies_all
    deadlines_tick
    three_hundred_connections_are_served
    idle_unestablished_connections_are_evicted
    reads_beyond_a_truncated_disk_fail
    reads_beyond_a_truncated_disk_in_memory_fail
    blocks_are_read_as_a_whole_while_they_are_written
    partial_last_block_is_padded_with_zeros
    partial_last_block_is_padded_with_zeros_in_memory
    zeros_discards_and_flushes_work
    zeros_discards_and_flushes_work_in_memory
    extents_distinguish_holes_and_data
    extents_distinguish_holes_and_data_in_memory
    fast_zero_requests_succeed_or_are_refused
    blocking_operations_end_after_connection_loss
    closing_session_flushes_its_output
    peer_that_never_closes_is_cut
    panic_in_a_session_affects_only_its_connection
}

fn config(setup: Setup) -> Config {
    Config { driver: setup.driver, threads: 2, limits: UNLIMITED, ..Config::default() }
}

fn start(setup: Setup) -> Option<Served> {
    serve(config(setup), file_export(8 << 20), setup.options())
}

fn start_in_memory(setup: Setup) -> Option<Served> {
    serve(config(setup), memory_export(8 << 20), setup.options())
}

/// Stops the engine, and checks that the contract of sessions was kept.
fn stop(served: Served) {
    let Served { engine, log, .. } = served;
    assert!(engine.stop(Duration::from_secs(30)), "a connection did not close");
    assert_is_over(&log);
}

fn assert_is_over(log: &Log) {
    let opened = Log::read(&log.opened);
    assert_eq!(Log::read(&log.dropped), opened, "sessions dropped");
    assert_eq!(Log::read(&log.disconnected), opened, "sessions told of their end");
    assert_eq!(Log::read(&log.completed), Log::read(&log.submitted), "requests that ended");
    assert_eq!(Log::read(&log.violations), 0, "sessions treated against the rules");
}

fn written_data_is_read_back(setup: Setup) {
    start(setup).into_iter().for_each(written_data_is_read_back_by);
}

fn written_data_is_read_back_in_memory(setup: Setup) {
    start_in_memory(setup).into_iter().for_each(written_data_is_read_back_by);
}

fn written_data_is_read_back_by(served: Served) {
    let mut client = Client::connect(served.address);
    for (at, len) in [BLOCK, 4096, 5 * BLOCK, 64 << 10].into_iter().enumerate() {
        let (lba, data) = (u32::try_from(at * 512).unwrap(), pattern(at, len));
        assert_eq!(client.write(lba, &data), 0);
        assert_eq!(client.read(lba, len).unwrap(), data);
        // Another connection, possibly on another thread.
        assert_eq!(Client::connect(served.address).read(lba, len).unwrap(), data);
    }
    assert_eq!(client.read(1 << 20, BLOCK), Err(100 + Fault::OutOfRange as u32));
    stop(served);
}

fn large_payloads_are_received_directly(setup: Setup) {
    let Some(served) = start(setup) else { return };
    let mut client = Client::connect(served.address);
    let mut writer = Client(client.0.try_clone().unwrap());
    let writes = std::thread::spawn(move || {
        for at in 0..64u32 {
            writer.say_write(at, at % 8 * 2048, &pattern(at as usize, 1 << 20));
        }
    });
    let mut received: Vec<_> = (0..64).map(|_| client.receive().unwrap()).collect();
    writes.join().unwrap();
    received.sort();
    assert!(received.iter().zip(0..).all(|(answer, tag)| (answer.0, answer.1) == (tag, 0)));
    assert!(Log::read(&served.log.landed) > 32 << 20, "landed {:?}", served.log.landed);
    for at in 0..8u32 {
        let data = client.read(at * 2048, 1 << 20).unwrap();
        let last = (0..8).map(|round| pattern((round * 8 + at) as usize, 1 << 20));
        assert!(last.into_iter().any(|whole| whole == data), "a mixture at {at}");
    }
    stop(served);
}

fn many_small_requests_are_all_answered(setup: Setup) {
    start(setup).into_iter().for_each(many_small_requests_are_all_answered_by);
}

fn many_small_requests_are_all_answered_in_memory(setup: Setup) {
    start_in_memory(setup).into_iter().for_each(many_small_requests_are_all_answered_by);
}

fn many_small_requests_are_all_answered_by(served: Served) {
    let threads: Vec<_> = (0..4u32)
        .map(|who| {
            let mut client = Client::connect(served.address);
            std::thread::spawn(move || {
                for round in 0..20u32 {
                    let mut batch = Vec::new();
                    for tag in 0..128 {
                        let lba = who * 1024 + tag;
                        batch.extend(Client::command(b'W', tag, lba, BLOCK));
                        batch.extend(pattern((lba + round) as usize, BLOCK));
                    }
                    client.0.write_all(&batch).unwrap();
                    let mut tags: Vec<_> = (0..128).map(|_| client.receive().unwrap()).collect();
                    tags.sort();
                    assert!(
                        tags.iter().zip(0..).all(|(answer, tag)| (answer.0, answer.1) == (tag, 0))
                    );
                    for tag in 0..128 {
                        client.send(b'R', tag, who * 1024 + tag, BLOCK);
                    }
                    for _ in 0..128 {
                        let (tag, status, data) = client.receive().unwrap();
                        let expected = pattern((who * 1024 + tag + round) as usize, BLOCK);
                        assert_eq!((status, data), (0, expected));
                    }
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(Log::read(&served.log.completed), 4 * 20 * 256);
    stop(served);
}

fn commands_may_arrive_byte_by_byte(setup: Setup) {
    let Some(served) = start(setup) else { return };
    let mut client = Client::connect(served.address);
    let data = pattern(3, BLOCK);
    let mut bytes = Client::command(b'W', 1, 9, BLOCK).to_vec();
    bytes.extend(&data);
    for byte in bytes {
        client.0.write_all(&[byte]).unwrap();
    }
    assert_eq!(client.receive().unwrap(), (1, 0, Vec::new()));
    assert_eq!(client.read(9, BLOCK).unwrap(), data);
    stop(served);
}

fn half_closed_connection_is_answered_completely(setup: Setup) {
    let Some(served) = start(setup) else { return };
    let mut client = Client::connect(served.address);
    for tag in 0..100 {
        client.send(b'R', tag, 0, 64 << 10);
    }
    client.0.shutdown(Shutdown::Write).unwrap();
    for _ in 0..100 {
        let (_, status, data) = client.receive().unwrap();
        assert_eq!((status, data.len()), (0, 64 << 10));
    }
    assert!(client.is_closed());
    stop(served);
}

/// Returns a connection whose thread hangs, with one write in flight and another one received but
/// not processed.
fn hanging(served: &Served) -> Client {
    let mut client = Client::connect(served.address);
    client.send(b'H', 2, 0, BLOCK);
    wait_for("the thread to hang", || Log::read(&served.log.hanging) == 1);
    client.say_write(4, 0, &pattern(1, BLOCK));
    client
}

fn release(served: &Served) {
    served.log.released.store(true, Ordering::SeqCst);
}

fn r55_peer_lost_while_its_thread_hangs_writes_no_more(setup: Setup) {
    let Some(served) = start(setup) else { return };
    let client = hanging(&served);
    assert!(!served.export.has_orphans());
    drop(client);
    wait_for("its writes to count as orphaned", || served.export.has_orphans());
    let mut other = Client::connect(served.address);
    assert_eq!(other.ask(b'E', 1), 0);
    assert_eq!(other.write(0, &pattern(2, BLOCK)), 100 + Fault::Busy as u32);
    release(&served);
    wait_for("its write to end", || !served.export.has_orphans());
    assert_eq!(other.write(0, &pattern(2, BLOCK)), 0);
    wait_for("the connection to go", || served.engine.connections() == 1);
    assert_eq!(other.read(0, BLOCK).unwrap(), pattern(2, BLOCK));
    drop(other);
    stop(served);
}

fn r55_half_closed_peer_is_answered_and_writes_no_more(setup: Setup) {
    let Some(served) = start(setup) else { return };
    let mut client = hanging(&served);
    client.send(b'R', 6, 0, BLOCK);
    client.0.shutdown(Shutdown::Write).unwrap();
    wait_for("its writes to count as orphaned", || served.export.has_orphans());
    release(&served);
    let mut received: Vec<_> = (0..3).map(|_| client.receive().unwrap()).collect();
    received.sort();
    let answers: Vec<_> = received.iter().map(|answer| (answer.0, answer.1)).collect();
    assert_eq!(answers, [(2, 0), (4, 100 + Fault::Gone as u32), (6, 0)]);
    assert!(client.is_closed());
    stop(served);
}

fn peer_that_does_not_read_is_throttled(setup: Setup) {
    start(setup).into_iter().for_each(peer_that_does_not_read_is_throttled_by);
}

fn peer_that_does_not_read_is_throttled_in_memory(setup: Setup) {
    start_in_memory(setup).into_iter().for_each(peer_that_does_not_read_is_throttled_by);
}

fn peer_that_does_not_read_is_throttled_by(served: Served) {
    let mut deaf = Client::connect(served.address);
    deaf.0.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    // 256 MiB of answers.
    let batch: Vec<u8> =
        (0..4096).flat_map(|tag| Client::command(b'R', tag, 0, 64 << 10)).collect();
    let _ = deaf.0.write_all(&batch);
    std::thread::sleep(Duration::from_millis(300));
    let begun = Log::read(&served.log.submitted);
    // 4 MiB unsent, the socket buffers, and what one receive buffer of commands asks for before the
    // total is known.
    assert!(begun * (64 << 10) < 64 << 20, "{begun} requests of 64 KiB were begun");
    assert_eq!(Client::connect(served.address).read(0, BLOCK).unwrap().len(), BLOCK);
    // It continues and gets everything.
    let mut total = 0;
    while total < 4096 {
        assert_eq!(deaf.receive().unwrap().2.len(), 64 << 10);
        total += 1;
    }
    stop(served);
}

fn lost_peer_leaks_nothing(setup: Setup) {
    start(setup).into_iter().for_each(lost_peer_leaks_nothing_by);
}

fn lost_peer_leaks_nothing_in_memory(setup: Setup) {
    start_in_memory(setup).into_iter().for_each(lost_peer_leaks_nothing_by);
}

fn lost_peer_leaks_nothing_by(served: Served) {
    for round in 0..20 {
        let mut client = Client::connect(served.address);
        for tag in 0..200 {
            client.send(b'R', tag, 0, 16 << 10);
            if tag % 3 == 0 {
                client.say_write(tag, 64, &pattern(1, 4096));
            }
        }
        // In the middle of a payload.
        client.send(b'W', 1, 0, 1 << 20);
        client.0.write_all(&[1; 1000]).unwrap();
        if round % 2 == 0 {
            set_socket_linger(&client.0, Some(Duration::ZERO)).unwrap();
        }
    }
    wait_for("all connections to go", || served.engine.connections() == 0);
    assert_is_over(&served.log);
    stop(served);
}

/// A client that sends requests as fast as it can until it is disconnected.
fn hammer(served: &Served) -> std::thread::JoinHandle<usize> {
    let mut client = Client::connect(served.address);
    std::thread::spawn(move || {
        let mut batch = Vec::new();
        for tag in 0..32 {
            batch.extend(Client::command(b'R', tag, 0, 4096));
            batch.extend(Client::command(b'W', tag, 64, 4096));
            batch.extend([5; 4096]);
        }
        let mut received = 0;
        while client.0.write_all(&batch).is_ok() {
            let answers = (0..64).map_while(|_| client.receive().ok()).count();
            received += answers;
            if answers < 64 {
                break;
            }
        }
        received
    })
}

fn stopping_closes_busy_connections(setup: Setup) {
    let Some(served) = start(setup) else { return };
    let clients: Vec<_> = (0..4).map(|_| hammer(&served)).collect();
    wait_for("some traffic", || Log::read(&served.log.completed) > 2000);
    let address = served.address;
    stop(served);
    for client in clients {
        assert!(client.join().unwrap() > 0);
    }
    assert!(std::net::TcpStream::connect(address).is_err());
}

fn stopping_cuts_connections_that_do_not_close(setup: Setup) {
    let Some(served) = start(setup) else { return };
    let mut client = Client::connect(served.address);
    // Half a payload, and answers that the peer does not read: closing cannot flush them.
    for tag in 0..400 {
        client.send(b'R', tag, 0, 64 << 10);
    }
    // The most that is ever started: less might fit into the socket buffers, and then nothing would
    // block the flush.
    let (begun, since) = (Cell::new(0), Cell::new(Instant::now()));
    wait_for("nothing more to be begun", || {
        let now = Log::read(&served.log.submitted);
        if begun.replace(now) != now {
            since.set(Instant::now());
        }
        now * (64 << 10) > 4 << 20 && since.get().elapsed() > Duration::from_millis(300)
    });
    let (engine, log) = (served.engine, served.log);
    let began = Instant::now();
    assert!(!engine.stop(Duration::from_millis(100)));
    assert!(began.elapsed() < Duration::from_secs(10));
    wait_for("the session's end", || Log::read(&log.dropped) == 1);
    assert_is_over(&log);
}

fn notices_reach_every_session(setup: Setup) {
    let Some(served) = start(setup) else { return };
    let mut clients: Vec<_> = (0..50).map(|_| Client::connect(served.address)).collect();
    clients.iter_mut().for_each(|client| assert_eq!(client.ask(b'E', 1), 0));
    assert_eq!(Log::read(&served.log.changed), 0);
    served.engine.notify(Notice::StateChanged);
    wait_for("the notice", || Log::read(&served.log.changed) == 50);
    drop(clients);
    stop(served);
}

fn step_notify_reaches_all_sessions(setup: Setup) {
    let Some(served) = start(setup) else { return };
    let mut clients: Vec<_> = (0..10).map(|_| Client::connect(served.address)).collect();
    clients.iter_mut().for_each(|client| assert_eq!(client.ask(b'E', 1), 0));
    assert_eq!(clients[3].ask(b'N', 1), 0);
    wait_for("the notice", || Log::read(&served.log.changed) == 10);
    // Sent once: a notice does not cause another one.
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(Log::read(&served.log.changed), 10);
    // The end of a session is notified to the remaining ones.
    clients.pop();
    wait_for("the other notice", || Log::read(&served.log.changed) >= 19);
    drop(clients);
    stop(served);
}

fn changes_of_an_export_reach_no_session_of_another(setup: Setup) {
    let Some(served) = start(setup) else { return };
    let other = memory_export(1 << 20);
    let (address, log) = served.serve_another(&other);
    let connect = |address| {
        let mut client = Client::connect(address);
        assert_eq!(client.ask(b'E', 1), 0);
        client
    };
    let mut clients: Vec<_> = (0..5).map(|_| connect(served.address)).collect();
    let others: Vec<_> = (0..5).map(|_| connect(address)).collect();
    // A session's notice, the end of an exclusive write, a change by the program, and the end of a
    // connection.
    assert_eq!(clients[0].ask(b'N', 1), 0);
    wait_for("its notice", || Log::read(&served.log.changed) == 5);
    clients[0].send(b'A', 1, 0, BLOCK);
    clients[0].0.write_all(&[9; BLOCK]).unwrap();
    assert_eq!(clients[0].receive().unwrap(), (1, 0, Vec::new()));
    wait_for("the end of the write", || Log::read(&served.log.changed) >= 10);
    let before = Log::read(&served.log.changed);
    served.engine.export_changed(&served.export);
    wait_for("the change", || Log::read(&served.log.changed) >= before + 5);
    drop(clients.pop());
    wait_for("the end of a connection", || Log::read(&served.log.changed) >= before + 9);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(Log::read(&log.changed), 0);
    served.engine.export_changed(&other);
    wait_for("their change", || Log::read(&log.changed) == 5);
    served.engine.notify(Notice::StateChanged);
    wait_for("a change for all", || Log::read(&log.changed) == 10);
    drop((clients, others));
    wait_for("them to end", || Log::read(&log.dropped) == 5);
    stop(served);
}

fn end_of_an_exclusive_write_notifies_all(setup: Setup) {
    let Some(served) = start(setup) else { return };
    let mut other = Client::connect(served.address);
    assert_eq!(other.ask(b'E', 1), 0);
    let mut client = Client::connect(served.address);
    client.send(b'A', 1, 0, BLOCK);
    client.0.write_all(&[9; BLOCK]).unwrap();
    assert_eq!(client.receive().unwrap(), (1, 0, Vec::new()));
    wait_for("the notice", || Log::read(&served.log.changed) >= 2);
    assert_eq!(other.read(0, BLOCK).unwrap(), [9; BLOCK]);
    stop(served);
}

fn deadlines_tick(setup: Setup) {
    let options =
        SessionOptions { tick_interval: Some(Duration::from_millis(20)), ..setup.options() };
    let Some(served) = serve(config(setup), memory_export(1 << 20), options) else { return };
    let began = Instant::now();
    let mut clients: Vec<_> = (0..4).map(|_| Client::connect(served.address)).collect();
    clients.iter_mut().for_each(|client| assert_eq!(client.ask(b'E', 1), 0));
    wait_for("the ticks", || Log::read(&served.log.ticks) >= 8);
    std::thread::sleep(Duration::from_millis(300));
    let ticks = Log::read(&served.log.ticks);
    let max = 4 * usize::try_from(began.elapsed().as_millis() / 20).unwrap();
    assert!((8..=max).contains(&ticks), "{ticks} ticks, at most {max}");
    drop(clients);
    stop(served);
}

fn three_hundred_connections_are_served(setup: Setup) {
    let Some(served) = start(setup) else { return };
    let mut clients = Vec::new();
    for at in 0..300usize {
        let mut client = Client::connect(served.address);
        assert_eq!(client.write(u32::try_from(at).unwrap(), &pattern(at, BLOCK)), 0);
        clients.push(client);
    }
    assert_eq!(served.engine.connections(), 300);
    for (at, client) in clients.iter_mut().enumerate().rev() {
        let data = client.read(u32::try_from(at).unwrap(), BLOCK).unwrap();
        assert_eq!(data, pattern(at, BLOCK));
    }
    drop(clients);
    wait_for("all connections to go", || served.engine.connections() == 0);
    stop(served);
}

fn idle_unestablished_connections_are_evicted(setup: Setup) {
    let options = SessionOptions { needs_hello: true, ..setup.options() };
    let Some(served) = serve(config(setup), memory_export(1 << 20), options) else { return };
    let mut early = Client::connect(served.address);
    assert_eq!(early.ask(b'X', 1), 0);
    let mut silent: Vec<_> = (0..200).map(|_| Client::connect(served.address)).collect();
    let mut late = Client::connect(served.address);
    assert_eq!(late.ask(b'X', 1), 0);
    assert_eq!(late.read(0, BLOCK).unwrap().len(), BLOCK);
    // The established connection stays; the oldest unestablished one is evicted.
    assert_eq!(early.read(0, BLOCK).unwrap().len(), BLOCK);
    assert!(silent[..50].iter_mut().all(Client::is_closed));
    wait_for("the server to empty", || served.engine.connections() <= 130);
    assert_eq!(silent[199].ask(b'E', 1), 0);
    drop(silent);
    stop(served);
}

fn reads_beyond_a_truncated_disk_fail(setup: Setup) {
    let disk = memfd_create("short", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&disk, 10 * BLOCK as u64).unwrap();
    let export = lend_fd(disk, 1 << 20);
    let Some(served) = serve(config(setup), export, setup.options()) else { return };
    let mut client = Client::connect(served.address);
    assert_eq!(client.read(8, 2 * BLOCK).unwrap(), [0; 2 * BLOCK]);
    assert_eq!(client.read(8, 3 * BLOCK), Err(100 + Fault::Io as u32));
    assert_eq!(client.read(100, BLOCK), Err(100 + Fault::Io as u32));
    assert_eq!(client.read(0, BLOCK).unwrap().len(), BLOCK);
    stop(served);
}

/// Data that was to be sent from memory is gone, so the connection is cut; the next read fails.
fn reads_beyond_a_truncated_disk_in_memory_fail(setup: Setup) {
    let disk = memfd_create("disk", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&disk, 1 << 20).unwrap();
    let export = lend_fd(disk.try_clone().unwrap(), 1 << 20);
    let Some(served) = serve(config(setup), export, setup.options()) else { return };
    let mut client = Client::connect(served.address);
    assert_eq!(client.write(1024, &[7; BLOCK]), 0);
    assert_eq!(client.read(1024, BLOCK), Ok(vec![7; BLOCK]));
    ftruncate(&disk, 4096).unwrap();
    client.send(b'R', 7, 1024, BLOCK);
    if let Ok((_, status, _)) = client.receive() {
        assert_eq!(status, 100 + Fault::Io as u32);
    }
    let threads = config(setup).threads;
    let mut clients: Vec<_> = (0..threads).map(|_| Client::connect(served.address)).collect();
    for client in &mut clients {
        // Each thread finds out by itself.
        client.send(b'R', 7, 1024, BLOCK);
        let _ = client.receive();
    }
    let mut clients: Vec<_> = (0..threads).map(|_| Client::connect(served.address)).collect();
    for client in &mut clients {
        assert_eq!(client.read(1024, BLOCK), Err(100 + Fault::Io as u32));
        assert_eq!(client.read(0, BLOCK), Ok(vec![0; BLOCK]));
    }
    drop((client, clients));
    stop(served);
}

/// A block whose start was sent is not mixed with a later write of it.
fn blocks_are_read_as_a_whole_while_they_are_written(setup: Setup) {
    const LEN: usize = 1 << 20;
    // The connections of the blocking driver have threads of their own, and Linux does not make
    // `pread` from memory atomic with `pwrite` of another thread.
    if matches!(setup.driver, Driver::Blocking) {
        return;
    }
    let config = Config { threads: 1, ..config(setup) };
    let Some(served) = serve(config, memory_export(LEN as u64), setup.options()) else { return };
    let (mut reader, mut writer) =
        (Client::connect(served.address), Client::connect(served.address));
    let (mut torn, mut values) = (0, std::collections::BTreeSet::new());
    for round in 1..=3 {
        // More than fits into the buffers of both sockets.
        (0..16).for_each(|tag| reader.send(b'R', 2 * tag, 0, LEN));
        for value in 0..4 {
            assert_eq!(writer.write(0, &vec![round * 4 + value; LEN]), 0);
            // A part of what waits is sent between two writes.
            let (tag, status, data) = reader.receive().unwrap();
            assert_eq!((tag % 2, status), (0, 0));
            values.extend(data.iter().copied());
            torn += data.chunks(BLOCK).filter(|block| block.iter().any(|b| *b != block[0])).count();
        }
        for _ in 4..16 {
            let (_, _, data) = reader.receive().unwrap();
            values.extend(data.iter().copied());
            torn += data.chunks(BLOCK).filter(|block| block.iter().any(|b| *b != block[0])).count();
        }
    }
    assert!(values.len() >= 3, "the reads were not concurrent with the writes: {values:?}");
    assert_eq!(torn, 0);
    drop((reader, writer));
    stop(served);
}

fn partial_last_block_is_padded_with_zeros(setup: Setup) {
    partial_last_block_is_padded_with_zeros_on(setup, toy::file(1_000_001));
}

fn partial_last_block_is_padded_with_zeros_in_memory(setup: Setup) {
    let disk = memfd_create("odd", MemfdFlags::CLOEXEC).unwrap();
    partial_last_block_is_padded_with_zeros_on(setup, disk);
}

fn partial_last_block_is_padded_with_zeros_on(setup: Setup, disk: OwnedFd) {
    rustix::io::pwrite(&disk, &[7; 1_000_001], 0).unwrap();
    let export = toy::lend_for(export::Access::ReadOnly, disk, 1_000_001);
    let Some(served) = serve(config(setup), export, setup.options()) else { return };
    let mut client = Client::connect(served.address);
    for (lba, blocks) in [(1953, 1), (1900, 54), (0, 1954), (1946, 8)] {
        // The memory of these answers is reused for the next ones.
        for _ in 0..8 {
            let read = client.read(0, blocks * BLOCK).unwrap();
            assert!(read.iter().take(1_000_001).all(|&byte| byte == 7));
        }
        let read = client.read(lba, blocks * BLOCK).unwrap();
        let (data, rest) = read.split_at(blocks * BLOCK - 447);
        assert!(data.iter().all(|&byte| byte == 7) && rest == [0; 447], "{lba} {blocks}");
    }
    assert_eq!(client.read(1954, BLOCK), Err(100 + Fault::OutOfRange as u32));
    stop(served);
}

fn zeros_discards_and_flushes_work(setup: Setup) {
    start(setup).into_iter().for_each(zeros_discards_and_flushes_work_by);
}

fn zeros_discards_and_flushes_work_in_memory(setup: Setup) {
    start_in_memory(setup).into_iter().for_each(zeros_discards_and_flushes_work_by);
}

fn zeros_discards_and_flushes_work_by(served: Served) {
    let mut client = Client::connect(served.address);
    assert_eq!(client.write(0, &pattern(5, 1 << 20)), 0);
    for (tag, op, lba) in [(1, b'Z', 8), (2, b'D', 16), (3, b'Z', 24)] {
        client.send(op, tag, lba, 8 * BLOCK);
        assert_eq!(client.receive().unwrap(), (tag, 0, Vec::new()));
    }
    assert_eq!(client.ask(b'F', 4), 0);
    let mut expected = pattern(5, 1 << 20);
    expected[8 * BLOCK..32 * BLOCK].fill(0);
    assert!(client.read(0, 1 << 20).unwrap() == expected);
    stop(served);
}

fn extents_distinguish_holes_and_data(setup: Setup) {
    start(setup).into_iter().for_each(extents_distinguish_holes_and_data_by);
}

fn extents_distinguish_holes_and_data_in_memory(setup: Setup) {
    start_in_memory(setup).into_iter().for_each(extents_distinguish_holes_and_data_by);
}

fn extents_distinguish_holes_and_data_by(served: Served) {
    let mut client = Client::connect(served.address);
    let (disk, piece) = (8 << 20, 64 << 10);
    assert_eq!(client.map(0, disk), [Extent::hole(8 << 20)]);
    for lba in [0, 4096, 16384 - 128] {
        assert_eq!(client.write(lba, &pattern(1, piece)), 0);
    }
    let (data, gap) = (Extent::data(64 << 10), (2 << 20) - (64 << 10));
    let last = Extent::hole((6 << 20) - (128 << 10));
    assert_eq!(client.map(0, disk), [data, Extent::hole(gap), data, last, data]);
    // From the middle of one extent to the middle of another, and within one.
    let part = [Extent::data(32 << 10), Extent::hole(gap), Extent::data(512)];
    assert_eq!(client.map(64, (2 << 20) - (32 << 10) + 512), part);
    assert_eq!(client.map(4096, BLOCK), [Extent::data(512)]);
    assert_eq!(client.map(8192, BLOCK), [Extent::hole(512)]);
    assert_eq!(client.map(16384 - 128, piece), [data]);
    // A prefetch changes nothing.
    client.send(b'G', 3, 0, disk);
    assert_eq!(client.receive().unwrap(), (3, 0, Vec::new()));
    assert_eq!(client.read(4096, piece).unwrap(), pattern(1, piece));
    // As many as fit: sixteen.
    for at in 0..20 {
        assert_eq!(client.write(at * 256, &pattern(1, piece)), 0);
    }
    let many = client.map(0, disk);
    assert_eq!((many.len(), many[15]), (16, Extent::hole(64 << 10)));
    // Beyond the end of the truncated file there is no hole, because reads fail.
    ftruncate(served.export.backing().written(), 1 << 20).unwrap();
    assert_eq!(client.map(8192, BLOCK), [Extent::data(512)]);
    assert_eq!(client.map(1920, 128 * BLOCK), [Extent::hole(64 << 10)]);
    assert_eq!(client.map(1920, 129 * BLOCK), [Extent::hole(64 << 10), Extent::data(512)]);
    stop(served);
}

/// A memfd supports punching holes but no zero ranges: fast zeroing by the latter is refused.
fn fast_zero_requests_succeed_or_are_refused(setup: Setup) {
    let Some(served) = start_in_memory(setup) else { return };
    let mut client = Client::connect(served.address);
    assert_eq!(client.write(0, &pattern(1, 8 * BLOCK)), 0);
    client.send(b'Q', 2, 0, 8 * BLOCK);
    assert_eq!(client.receive().unwrap().1, 100 + Fault::Unsupported as u32);
    assert_eq!(client.read(0, 8 * BLOCK).unwrap(), pattern(1, 8 * BLOCK));
    client.send(b'Q', 3, 0, 8 * BLOCK);
    assert_eq!(client.receive().unwrap().1, 0);
    assert_eq!(client.read(0, 8 * BLOCK).unwrap(), vec![0; 8 * BLOCK]);
    stop(served);
}

fn blocking_operations_end_after_connection_loss(setup: Setup) {
    let Some(served) = start(setup) else { return };
    for _ in 0..10 {
        let mut client = Client::connect(served.address);
        for tag in 0..200 {
            let op = if tag % 2 == 0 { b'M' } else { b'G' };
            client.send(op, tag, 0, 8 << 20);
        }
    }
    stop(served);
}

fn closing_session_flushes_its_output(setup: Setup) {
    let Some(served) = start(setup) else { return };
    let mut client = Client::connect(served.address);
    client.send(b'R', 1, 0, 1 << 20);
    client.send(b'R', 2, 0, 1 << 20);
    client.receive().unwrap();
    client.receive().unwrap();
    client.send(b'C', 3, 0, 0);
    // What follows is not read by the session, and must not destroy the answer.
    let _ = client.0.write_all(&[0; 10_000]);
    assert_eq!(client.receive().unwrap(), (3, 0, Vec::new()));
    assert!(client.is_closed());
    drop(client);
    wait_for("the connection to go", || served.engine.connections() == 0);
    stop(served);
}

fn peer_that_never_closes_is_cut(setup: Setup) {
    let Some(served) = start(setup) else { return };
    let mut client = Client::connect(served.address);
    assert_eq!(client.ask(b'C', 1), 0);
    let mut rest = Vec::new();
    client.0.read_to_end(&mut rest).unwrap();
    wait_for("the connection to go", || served.engine.connections() == 0);
    drop(client);
    stop(served);
}

fn panic_in_a_session_affects_only_its_connection(setup: Setup) {
    let Some(served) = start(setup) else { return };
    let mut others: Vec<_> = (0..8).map(|_| Client::connect(served.address)).collect();
    others.iter_mut().for_each(|other| assert_eq!(other.ask(b'E', 1), 0));
    for _ in 0..4 {
        let mut client = Client::connect(served.address);
        client.send(b'R', 1, 0, 1 << 20);
        client.send(b'P', 2, 0, 0);
        let mut rest = Vec::new();
        let _ = client.0.read_to_end(&mut rest);
    }
    wait_for("the panicked to go", || served.engine.connections() == 8);
    others.iter_mut().for_each(|other| assert_eq!(other.read(0, BLOCK).unwrap().len(), BLOCK));
    assert!(served.engine.stop(Duration::from_secs(30)));
    assert_eq!(Log::read(&served.log.dropped), 12);
}

/// A disk that completes a read only when something is written to the other end.
fn slow_disk() -> (Arc<Export>, OwnedFd) {
    let (disk, other) = rustix::pipe::pipe().unwrap();
    (lend_fd(disk, 1 << 20), other)
}

#[test]
fn r20_slow_disk_delays_no_other() {
    let config = Config { driver: Driver::Uring, threads: 1, ..Config::default() };
    let Some(served) = serve(config, memory_export(1 << 20), SessionOptions::default()) else {
        return;
    };
    let (export, other) = slow_disk();
    let (address, log) = served.serve_another(&export);
    let mut slow = Client::connect(address);
    (0..8).for_each(|tag| slow.send(b'R', tag, 0, BLOCK));
    wait_for("the requests", || Log::read(&log.submitted) == 8);
    let mut fast = Client::connect(served.address);
    for at in 0..100 {
        assert_eq!(fast.write(at, &[1; BLOCK]), 0);
    }
    // Nor does it delay another request of the same connection that needs no disk.
    assert_eq!(slow.ask(b'E', 100), 0);
    assert_eq!(Log::read(&log.completed), 0);
    for _ in 0..8 {
        rustix::io::write(&other, &[7; BLOCK]).unwrap();
        assert_eq!(slow.receive().unwrap().2, [7; BLOCK]);
    }
    drop((slow, fast));
    stop(served);
    assert_is_over(&log);
}

/// Case R20: 240 requests hang on one disk; another one of the same thread is as fast as before.
#[test]
fn r20_hanging_requests_slow_no_other_disk() {
    const CONNECTIONS: usize = 30;
    const EACH: u32 = 8;
    const ALL: usize = CONNECTIONS * EACH as usize;
    let config = Config { driver: Driver::Uring, threads: 1, ..Config::default() };
    let Some(served) = serve(config, memory_export(1 << 20), SessionOptions::default()) else {
        return;
    };
    let (export, other) = slow_disk();
    let (address, log) = served.serve_another(&export);
    let mut slow: Vec<_> = (0..CONNECTIONS).map(|_| Client::connect(address)).collect();
    for client in &mut slow {
        (0..EACH).for_each(|tag| client.send(b'R', tag, 0, BLOCK));
    }
    wait_for("the requests", || Log::read(&log.submitted) == ALL);
    let mut fast = Client::connect(served.address);
    let mut times: Vec<Duration> = (0..300)
        .map(|at| {
            let begun = Instant::now();
            assert_eq!(fast.write(at % 100, &[1; BLOCK]), 0);
            assert_eq!(fast.read(at % 100, BLOCK).unwrap(), [1; BLOCK]);
            begun.elapsed()
        })
        .collect();
    times.sort();
    println!("p50 {:?}, p99 {:?} of a write and a read", times[150], times[297]);
    // Two orders of magnitude above what an idle machine takes.
    assert!(times[297] < Duration::from_millis(100), "{:?}", times[297]);
    assert_eq!(Log::read(&log.completed), 0, "all of them still hang");
    for _ in 0..ALL {
        rustix::io::write(&other, &[7; BLOCK]).unwrap();
    }
    for client in &mut slow {
        for _ in 0..EACH {
            assert_eq!(client.receive().unwrap().2, [7; BLOCK]);
        }
    }
    drop((slow, fast));
    stop(served);
    assert_is_over(&log);
}

#[test]
fn lost_connection_waits_for_its_disk_requests() {
    let config = Config { driver: Driver::Uring, threads: 1, ..Config::default() };
    let Some(served) = serve(config, memory_export(1 << 20), SessionOptions::default()) else {
        return;
    };
    let (export, other) = slow_disk();
    let (address, log) = served.serve_another(&export);
    let mut client = Client::connect(address);
    client.send(b'R', 1, 0, BLOCK);
    wait_for("the request", || Log::read(&log.submitted) == 1);
    set_socket_linger(&client.0, Some(Duration::ZERO)).unwrap();
    drop(client);
    wait_for("the session to be told", || Log::read(&log.disconnected) == 1);
    // The kernel may still write to the buffer: the session and its memory must stay.
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!((Log::read(&log.completed), Log::read(&log.dropped)), (0, 0));
    rustix::io::write(&other, &[7; BLOCK]).unwrap();
    wait_for("the session's end", || Log::read(&log.dropped) == 1);
    stop(served);
    assert_is_over(&log);
}

#[test]
fn uring_is_chosen_where_available() {
    let start =
        |driver| engine::Engine::start(config(Setup { driver, secured: false }), Arc::new(|_| {}));
    let auto = start(Driver::Auto).unwrap();
    let expected = if start(Driver::Uring).is_ok() { Driver::Uring } else { Driver::Blocking };
    assert_eq!(auto.driver().driver, expected);
    assert_eq!(
        start(Driver::Blocking).unwrap().driver().to_string(),
        "blocking, because it was asked for"
    );
}
