//! Memory is bounded, and a shortage only delays requests.

use std::sync::Arc;

use export::{Budget, Buffer, KeyId, PAGE, Pool, Purpose, Tenant};

use crate::messages::{MODES, Mode, attach, data_of, error_of, read, replies, write};
use crate::world::{SIZE, World};

/// Case R33: many long requests with memory for a single piece.
#[test]
fn r33_long_requests_complete_with_little_memory() {
    for mode in MODES {
        let mut world = World::with_pool(256 << 10);
        let id = attach(&mut world, mode);
        let other = attach(&mut world, mode);
        let mut request = Vec::new();
        for cookie in 0..40 {
            request.extend(read(cookie, 0, 1 << 20).bytes(mode));
            request.extend(write(mode, 100 + cookie, 1 << 20, &vec![7; 300 << 10]));
        }
        let short = world.exchange(other, &read(1, 0, 4096).bytes(mode));
        assert_eq!(data_of(&short, 0, 4096).unwrap(), world.disk[..4096]);
        world.send(id, &request);
        let lens = |cookie| if cookie < 100 { 1 << 20 } else { 0 };
        let all = replies(&world.received(id), lens);
        assert_eq!(all.iter().filter(|reply| reply.done).count(), 80);
        assert!(all.iter().all(|reply| reply.error == 0));
        world.end_all();
    }
}

/// Case R33: sixteen connections with 128 reads of 1 MiB each, against 64 MiB.
#[test]
fn r33_reads_of_many_clients_share_memory_and_progress() {
    const READS: usize = 128;
    let limit = 64 << 20;
    let mut world = World::with_pool(limit);
    let clients: Vec<_> = (0..16).map(|_| attach(&mut world, Mode::Structured)).collect();
    for &id in &clients {
        world.conn(id).hold = true;
        let reads: Vec<u8> = (0..READS as u64)
            .flat_map(|cookie| read(cookie, 0, 1 << 20).bytes(Mode::Structured))
            .collect();
        world.send(id, &reads);
    }
    let mut answered = vec![0; clients.len()];
    while answered.iter().any(|count| *count < READS) {
        let held: usize = world.conns.iter().map(|conn| conn.account.held()).sum();
        assert!(held <= limit + clients.len() * (1 << 20), "{held} bytes");
        for (at, &id) in clients.iter().enumerate().filter(|&(at, _)| answered[at] < READS) {
            assert!(!world.jobs(id).is_empty(), "connection {at} waits: {answered:?}");
            world.finish(id, 0, Ok(()));
        }
        for (at, &id) in clients.iter().enumerate() {
            let parts = replies(&world.received(id), |_| 0);
            assert!(parts.iter().all(|part| part.error == 0));
            answered[at] += parts.iter().filter(|part| part.done).count();
        }
    }
    world.end_all();
}

/// Case R33: several long requests all make progress.
#[test]
fn r33_long_requests_take_turns() {
    let mut world = World::with_pool(1 << 20);
    let id = attach(&mut world, Mode::Structured);
    world.conn(id).hold = true;
    for cookie in 0..4 {
        world.send(id, &read(cookie, 0, 1 << 20).bytes(Mode::Structured));
    }
    for _ in 0..8 {
        world.finish(id, 0, Ok(()));
    }
    let received = world.received(id);
    let parts = replies(&received, |_| 0);
    for cookie in 0..4 {
        assert!(parts.iter().any(|part| part.cookie == cookie), "{cookie} made progress");
    }
    world.end_all();
}

/// Case R37: a client that sends requests and does not receive.
#[test]
fn r37_client_that_does_not_receive_holds_little_memory() {
    for mode in MODES {
        let mut world = World::with_pool(256 << 20);
        let id = attach(&mut world, mode);
        world.conn(id).not_receiving = true;
        for cookie in 0..200 {
            world.send(id, &read(cookie, 0, SIZE as u64).bytes(mode));
        }
        let sent = world.conn(id).wire.len();
        assert!(sent <= 5 << 20, "{sent}");
        assert!(world.waiting(id) > 0, "reception stops");
        // Its writes still complete: they do not wait for it to receive.
        let writer = attach(&mut world, mode);
        world.conn(writer).not_receiving = true;
        for cookie in 0..20 {
            world.send(writer, &read(cookie, 0, 1 << 20).bytes(mode));
        }
        world.received(writer);
        world.send(writer, &write(mode, 99, 0, &[7; 512 << 10]));
        assert_eq!(world.waiting(writer), 0);
        assert_eq!(world.disk[..512 << 10], [7; 512 << 10]);
        world.disconnect(writer);
        world.disconnect(id);
        world.end_all();
    }
}

/// Case X38: replies contain no stale memory.
#[test]
fn x38_stale_memory_is_never_sent() {
    for mode in MODES {
        let mut world = World::new();
        let id = attach(&mut world, mode);
        let mut received = Vec::new();
        for (cookie, len) in [1, 511, 512, 4096, 5000, 70_000, 300_000].into_iter().enumerate() {
            let cookie = cookie as u64;
            received.extend(world.exchange(id, &read(cookie, 3, len).bytes(mode)));
            let status = nbd::wire::request::BLOCK_STATUS;
            let status = crate::messages::RequestHeader::new(status, cookie, 3, len);
            received.extend(world.exchange(id, &status.bytes(mode)));
            received.extend(world.exchange(id, &read(cookie, SIZE as u64, 1).bytes(mode)));
        }
        // The magic of a structured chunk contains the byte once.
        let poison = received.windows(2).filter(|two| two == &[testkit::POISON; 2]).count();
        assert_eq!(poison, 0);
        world.end_all();
    }
}

#[test]
fn payload_is_received_directly_in_pieces_of_any_size() {
    for (mode, size) in
        MODES.into_iter().flat_map(|mode| [9000, 100_000, 1 << 20].map(|n| (mode, n)))
    {
        let mut world = World::new();
        let id = attach(&mut world, mode);
        let whole = write(mode, 1, 512, &[5; 700 << 10]);
        let header = whole.len() - (700 << 10);
        world.send(id, &whole[..header + 100]);
        let mut left = (700 << 10) - 100;
        while left > 0 {
            match world.receive_directly(id, 5, size) {
                Some(got) => left -= got,
                None => {
                    let n = left.min(3000);
                    world.send(id, &vec![5; n]);
                    left -= n;
                }
            }
        }
        assert_eq!(error_of(&world.received(id)), 0);
        assert_eq!(world.disk[512..512 + (700 << 10)], [5; 700 << 10]);
        assert_eq!(world.disk[512 + (700 << 10)], u8::try_from(1401 % 199).unwrap());
        world.end_all();
    }
}

/// Other hosts that allocate all memory for every purpose. Frees it on drop.
struct MemoryHog(#[allow(dead_code, reason = "what is held")] Vec<Buffer>);

impl MemoryHog {
    fn new(budget: &Arc<Budget>) -> Self {
        let pool = Pool::with_budget(usize::MAX, budget.clone());
        let mut held = Vec::new();
        for host in 1..20 {
            let one = pool.open_for(Tenant::Host(KeyId::new(host)));
            let [stream, second] =
                [Purpose::Stream, Purpose::SecondPhase].map(|it| one.sibling(it));
            for account in [one, stream, second] {
                for len in [1 << 20, 1 << 16, PAGE] {
                    held.extend(std::iter::from_fn(|| account.take(len)));
                }
            }
        }
        Self(held)
    }
}

/// Case R34: temporarily no memory at all. Requests wait for it, and no data is lost or mixed up.
#[test]
fn r34_temporary_memory_shortage_loses_no_data() {
    for mode in MODES {
        let budget = Budget::new(0);
        let mut world = World::of(Pool::with_budget(8 << 20, budget.clone()));
        let id = attach(&mut world, mode);
        let mut refused = 0;
        for round in 0..63_u64 {
            let hog = (round % 3 == 0).then(|| MemoryHog::new(&budget));
            let mut sent = Vec::new();
            let len = [700, 70_000, 200_000][usize::try_from(round / 3 % 3).unwrap()];
            for cookie in 0..4 {
                sent.extend(read(cookie, 300_000 * cookie + round % 100, len).bytes(mode));
                // Writes go to a range that is not read.
                let bytes = [u8::try_from(round % 251).unwrap(); 66_048];
                sent.extend(write(mode, 10 + cookie, (1 << 20) + 512 * 400 * cookie, &bytes));
            }
            let before = world.disk.clone();
            world.send(id, &sent);
            let early = world.received(id);
            drop(hog);
            world.run();
            let received = [early.clone(), world.received(id)].concat();
            refused += usize::from(received.len() != early.len());
            let lens = |cookie| if cookie < 10 { usize::try_from(len).unwrap() } else { 0 };
            let all = replies(&received, lens);
            assert!(all.iter().all(|reply| reply.error == 0), "{mode:?} {round}");
            assert_eq!(all.iter().filter(|reply| reply.done).count(), 8, "{mode:?} {round}");
            for cookie in 0..4_u64 {
                let start = usize::try_from(300_000 * cookie + round % 100).unwrap();
                if mode == Mode::Simple && start < 600_000 {
                    let reply = all.iter().find(|reply| reply.cookie == cookie).unwrap();
                    assert!(reply.data == before[start..start + lens(cookie)], "{round}");
                }
                let start = usize::try_from((1 << 20) + 512 * 400 * cookie).unwrap();
                let written = &world.disk[start..start + 66_048];
                assert!(written.iter().all(|&byte| u64::from(byte) == round % 251));
            }
        }
        assert!(refused >= 20, "{mode:?}: {refused}");
        world.disconnect(id);
        world.end_all();
    }
}

/// Case R33: a waiting read that gets memory when one of its pieces completes submits no piece
/// beyond its end.
#[test]
fn r33_waiting_read_submits_each_piece_once() {
    for mode in [Mode::Structured, Mode::Extended] {
        let pool = Pool::new(2 << 20);
        let mut world = World::of(pool.clone());
        let id = attach(&mut world, mode);
        world.conn(id).hold = true;
        // While there are that many accounts, each may hold one piece.
        let others: Vec<_> = (0..8).map(|_| pool.open()).collect();
        world.send(id, &read(1, 0, 1 << 20).bytes(mode));
        assert_eq!(world.jobs(id).len(), 1, "the other pieces wait");
        drop(others);
        while !world.jobs(id).is_empty() {
            assert!(world.jobs(id).iter().all(|job| !job.is_empty()), "{mode:?}");
            world.finish(id, 0, Ok(()));
        }
        let received = world.received(id);
        assert_eq!(data_of(&received, 0, 1 << 20).unwrap(), world.disk[..1 << 20], "{mode:?}");
        world.end_all();
    }
}
