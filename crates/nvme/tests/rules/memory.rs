//! Memory is bounded, and every connection makes progress.

use crate::raw_host::{PLAIN, capsule, read};
use crate::world::{Id, World};

/// Case R33: sixteen connections with 127 reads of 1 MiB each, against 64 MiB.
#[test]
fn r33_reads_of_many_connections_share_memory_and_progress() {
    let limit = 64 << 20;
    let mut world = World::with_pool(limit);
    let controllers = [world.admin().1, world.admin().1];
    let queues: Vec<Id> = controllers
        .into_iter()
        .flat_map(|cntlid| (1..=8).map(move |qid| (cntlid, qid)))
        .map(|(cntlid, qid)| world.io(cntlid, qid))
        .collect();
    for &io in &queues {
        world.conn(io).hold = true;
        let reads: Vec<u8> =
            (0..127).flat_map(|cid| capsule(PLAIN, &read(0, 2048).with_cid(cid), &[])).collect();
        world.send(io, &reads);
    }
    let mut answered = vec![0; queues.len()];
    while answered.iter().any(|count| *count < 127) {
        assert!(world.held() <= limit + queues.len() * (1 << 20), "{} bytes", world.held());
        for (at, &io) in queues.iter().enumerate() {
            if answered[at] == 127 {
                continue;
            }
            assert!(!world.jobs(io).is_empty(), "connection {at} waits: {answered:?}");
            world.finish(io, 0, Ok(()));
            assert!(world.received(io).len() > 1 << 20);
            answered[at] += 1;
        }
    }
    world.end_all();
}
