//! Memory is bounded, and being short of it stops nothing for good.

use std::sync::Arc;

use export::{Budget, Buffer, KeyId, PAGE, Pool, Purpose, Tenant};

use crate::says::{MODES, Mode, attach, data_of, error_of, read, replies, write};
use crate::world::{POISON, SIZE, World};

/// Case R33: as many and as long requests as there may be, with memory for one piece.
#[test]
fn r33_many_long_requests_with_little_memory_all_end() {
    for mode in MODES {
        let mut world = World::with_pool(256 << 10);
        let id = attach(&mut world, mode);
        let other = attach(&mut world, mode);
        let mut asked = Vec::new();
        for cookie in 0..40 {
            asked.extend(read(cookie, 0, 1 << 20).bytes(mode));
            asked.extend(write(mode, 100 + cookie, 1 << 20, &vec![7; 300 << 10]));
        }
        let short = world.ask(other, &read(1, 0, 4096).bytes(mode));
        assert_eq!(data_of(&short, 0, 4096).unwrap(), world.disk[..4096]);
        world.send(id, &asked);
        let lens = |cookie| if cookie < 100 { 1 << 20 } else { 0 };
        let all = replies(&world.heard(id), lens);
        assert_eq!(all.iter().filter(|reply| reply.done).count(), 80);
        assert!(all.iter().all(|reply| reply.error == 0));
        world.end_all();
    }
}

/// Case R33: each of several long requests gets on.
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
    let heard = world.heard(id);
    let parts = replies(&heard, |_| 0);
    for cookie in 0..4 {
        assert!(parts.iter().any(|part| part.cookie == cookie), "{cookie} got on");
    }
    world.end_all();
}

/// Case R37: a client that asks and does not listen.
#[test]
fn r37_a_client_that_does_not_listen_holds_little_memory() {
    for mode in MODES {
        let mut world = World::with_pool(256 << 20);
        let id = attach(&mut world, mode);
        world.conn(id).deaf = true;
        for cookie in 0..200 {
            world.send(id, &read(cookie, 0, SIZE as u64).bytes(mode));
        }
        let sent = world.conn(id).wire.len();
        assert!(sent <= 5 << 20, "{sent}");
        assert!(world.waiting(id) > 0, "no more than so many requests are taken");
        // It may still write: that does not wait for it to listen.
        let writer = attach(&mut world, mode);
        world.conn(writer).deaf = true;
        for cookie in 0..20 {
            world.send(writer, &read(cookie, 0, 1 << 20).bytes(mode));
        }
        world.heard(writer);
        world.send(writer, &write(mode, 99, 0, &[7; 512 << 10]));
        assert_eq!(world.waiting(writer), 0);
        assert_eq!(world.disk[..512 << 10], [7; 512 << 10]);
        world.disconnect(writer);
        world.disconnect(id);
        world.end_all();
    }
}

/// Case X38: what a client gets was put there for it.
#[test]
fn x38_memory_that_was_not_written_to_is_never_sent() {
    for mode in MODES {
        let mut world = World::new();
        let id = attach(&mut world, mode);
        let mut heard = Vec::new();
        for (cookie, len) in [1, 511, 512, 4096, 5000, 70_000, 300_000].into_iter().enumerate() {
            let cookie = cookie as u64;
            heard.extend(world.ask(id, &read(cookie, 3, len).bytes(mode)));
            let status = nbd::wire::request::BLOCK_STATUS;
            let status = crate::says::Say::new(status, cookie, 3, len);
            heard.extend(world.ask(id, &status.bytes(mode)));
            heard.extend(world.ask(id, &read(cookie, SIZE as u64, 1).bytes(mode)));
        }
        // The magic of an extended chunk has no such byte; that of a structured one has one.
        let poison = heard.windows(2).filter(|two| two == &[POISON; 2]).count();
        assert_eq!(poison, 0);
        world.end_all();
    }
}

#[test]
fn a_payload_is_received_where_it_belongs_in_pieces_of_any_size() {
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
            match world.land(id, 5, size) {
                Some(got) => left -= got,
                None => {
                    let n = left.min(3000);
                    world.send(id, &vec![5; n]);
                    left -= n;
                }
            }
        }
        assert_eq!(error_of(&world.heard(id)), 0);
        assert_eq!(world.disk[512..512 + (700 << 10)], [5; 700 << 10]);
        assert_eq!(world.disk[512 + (700 << 10)], u8::try_from(1401 % 199).unwrap());
        world.end_all();
    }
}

/// Other hosts that take all the memory there is for every purpose, and let it go when they are dropped.
struct Greedy(#[allow(dead_code, reason = "what is held")] Vec<Buffer>);

impl Greedy {
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

/// Case R34: now and then there is no memory at all. What needs some waits for it, and nothing is lost or mixed.
#[test]
fn r34_memory_refused_now_and_then_costs_no_data() {
    for mode in MODES {
        let budget = Budget::new(0);
        let mut world = World::of(Pool::with_budget(8 << 20, budget.clone()));
        let id = attach(&mut world, mode);
        let mut refused = 0;
        for round in 0..63_u64 {
            let greedy = (round % 3 == 0).then(|| Greedy::new(&budget));
            let mut said = Vec::new();
            let len = [700, 70_000, 200_000][usize::try_from(round / 3 % 3).unwrap()];
            for cookie in 0..4 {
                said.extend(read(cookie, 300_000 * cookie + round % 100, len).bytes(mode));
                // Writes go where nobody reads.
                let bytes = [u8::try_from(round % 251).unwrap(); 66_048];
                said.extend(write(mode, 10 + cookie, (1 << 20) + 512 * 400 * cookie, &bytes));
            }
            let before = world.disk.clone();
            world.send(id, &said);
            let early = world.heard(id);
            drop(greedy);
            world.run();
            let heard = [early.clone(), world.heard(id)].concat();
            refused += usize::from(heard.len() != early.len());
            let lens = |cookie| if cookie < 10 { usize::try_from(len).unwrap() } else { 0 };
            let all = replies(&heard, lens);
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
