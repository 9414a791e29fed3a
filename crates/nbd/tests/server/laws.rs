//! Properties: the split of received bytes and the order of completions do not matter, and the disk
//! behaves like a `Vec<u8>`.

use nbd::wire::request::{TRIM, WRITE_ZEROES};
use proptest::prelude::*;

use crate::messages::{
    MODES, Mode, RequestHeader, attach, data_of, error_of, read, replies, write,
};
use crate::world::World;

/// Size of the disk in bytes.
const DISK: usize = 1 << 20;

#[derive(Debug, Clone)]
enum Step {
    Read { offset: usize, len: usize },
    Write { block: usize, blocks: usize, byte: u8 },
    Zero { block: usize, blocks: usize },
    Trim { offset: usize, len: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let long = DISK / 512;
    prop_oneof![
        (0..DISK, 0..600_000_usize).prop_map(|(offset, len)| Step::Read { offset, len }),
        (0..DISK, 0..3000_usize).prop_map(|(offset, len)| Step::Read { offset, len }),
        (0..long, 0..1000_usize, 1..255_u8).prop_map(|(block, blocks, byte)| Step::Write {
            block,
            blocks,
            byte
        }),
        (0..long, 0..1000_usize).prop_map(|(block, blocks)| Step::Zero { block, blocks }),
        (0..DISK, 0..9000_usize).prop_map(|(offset, len)| Step::Trim { offset, len }),
    ]
}

fn mode() -> impl Strategy<Value = Mode> {
    prop::sample::select(MODES.to_vec())
}

/// Applies a step to the model. Returns the request bytes, and whether it must succeed.
fn model(vec: &mut [u8], step: &Step, mode: Mode, cookie: u64) -> (Vec<u8>, bool) {
    let range = |start: usize, len: usize| (start + len <= DISK).then(|| start..start + len);
    match *step {
        Step::Read { offset, len } => {
            let ok = range(offset, len).is_some();
            (read(cookie, offset as u64, len as u64).bytes(mode), ok)
        }
        Step::Write { block, blocks, byte } => {
            let data = vec![byte; blocks * 512];
            let range = range(block * 512, data.len());
            let ok = range.clone().map(|range| vec[range].fill(byte)).is_some();
            (write(mode, cookie, block as u64 * 512, &data), ok)
        }
        Step::Zero { block, blocks } => {
            let range = range(block * 512, blocks * 512);
            let ok = range.map(|range| vec[range].fill(0)).is_some();
            let say =
                RequestHeader::new(WRITE_ZEROES, cookie, block as u64 * 512, blocks as u64 * 512);
            (say.bytes(mode), ok)
        }
        Step::Trim { offset, len } => {
            let range = range(offset, len);
            let ok = range.is_some();
            let (first, end) = (offset.next_multiple_of(512), (offset + len) / 512 * 512);
            if ok && first < end {
                vec[first..end].fill(0);
            }
            (RequestHeader::new(TRIM, cookie, offset as u64, len as u64).bytes(mode), ok)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn random_operations_equal_a_vec(
        steps in prop::collection::vec(step(), 1..20),
        mode in mode(),
        block in prop::sample::select(vec![512_u32]),
    ) {
        let mut world = World::small(DISK, block);
        let id = attach(&mut world, mode);
        let mut vec = vec![0; DISK];
        for step in &steps {
            let (bytes, ok) = model(&mut vec, step, mode, 1);
            let received = world.exchange(id, &bytes);
            if let Step::Read { offset, len } = *step {
                let data = data_of(&received, offset as u64, len);
                prop_assert_eq!(data.is_ok(), ok);
                if let Ok(data) = data {
                    prop_assert!(data == vec[offset..offset + len]);
                }
            } else {
                prop_assert_eq!(error_of(&received) == 0, ok);
            }
        }
        prop_assert!(world.disk == vec);
        world.end_all();
    }

    #[test]
    fn split_of_received_bytes_does_not_matter(
        steps in prop::collection::vec(step(), 1..6),
        cuts in prop::collection::vec(1..70_000_usize, 1..60),
        mode in mode(),
    ) {
        let play = |cuts: &[usize]| {
            let mut world = World::small(DISK, 512);
            let id = attach(&mut world, mode);
            let mut vec = vec![0; DISK];
            let sent: Vec<u8> = (0..)
                .zip(&steps)
                .flat_map(|(cookie, step)| model(&mut vec, step, mode, cookie).0)
                .collect();
            let mut left = &sent[..];
            for &cut in cuts {
                let (now, later) = left.split_at(cut.min(left.len()));
                world.send(id, now);
                left = later;
            }
            world.send(id, left);
            let lens = |cookie| match steps[usize::try_from(cookie).unwrap()] {
                Step::Read { len, .. } => len,
                _ => 0,
            };
            let mut ends: Vec<(u64, u32)> = replies(&world.received(id), lens)
                .iter()
                .filter(|reply| reply.done)
                .map(|reply| (reply.cookie, reply.error))
                .collect();
            // Requests in flight at the same time may be answered in any order.
            ends.sort_unstable();
            let disk = world.disk.clone();
            world.end_all();
            (ends, disk)
        };
        prop_assert!(play(&cuts) == play(&[]));
    }

    #[test]
    fn requests_complete_in_any_order(
        reads in prop::collection::vec((0..DISK as u64 / 2, 1..400_000_u64), 1..12),
        order in prop::collection::vec(0..1000_usize, 80),
        cut in 1..100_usize,
        mode in mode(),
    ) {
        let mut world = World::small(DISK, 512);
        let pattern = |at: usize| u8::try_from(at * 7 % 251).unwrap();
        world.disk = (0..DISK).map(pattern).collect();
        let id = attach(&mut world, mode);
        world.conn(id).hold = true;
        let request = reads.iter().enumerate().flat_map(|(cookie, &(offset, len))| {
            read(cookie as u64, offset, len).bytes(mode)
        });
        let request: Vec<u8> = request.collect();
        request.chunks(cut).for_each(|part| world.send(id, part));
        for which in order {
            let held = world.jobs(id).len();
            if held != 0 {
                world.finish(id, which % held, Ok(()));
            }
        }
        world.finish_all(id);
        let len = |cookie: u64| usize::try_from(reads[usize::try_from(cookie).unwrap()].1).unwrap();
        let parts = replies(&world.received(id), len);
        let mut got = vec![0; reads.len()];
        for part in &parts {
            let cookie = usize::try_from(part.cookie).unwrap();
            let (start, data) = if part.kind == 0 {
                (reads[cookie].0, &part.data[..])
            } else {
                let (at, data) = part.data.split_at(8);
                (u64::from_be_bytes(at.try_into().unwrap()), data)
            };
            let start = usize::try_from(start).unwrap();
            prop_assert!(data == &world.disk[start..start + data.len()]);
            got[cookie] += data.len();
        }
        for (cookie, (_, len)) in reads.iter().enumerate() {
            prop_assert_eq!(got[cookie] as u64, *len);
        }
        prop_assert_eq!(parts.iter().filter(|part| part.done).count(), reads.len());
        world.end_all();
    }
}
