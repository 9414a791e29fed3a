//! Properties: concurrent random requests behave like a `Vec<u8>`, however bytes are split and in
//! whatever order requests complete.

use nbd::client::{Options, Request};
use proptest::prelude::*;
use testkit::Chunks;

use crate::world::{SIZE, World};

/// A random request: operation, area, offset in it, length.
type Draw = (u8, usize, usize, usize);

/// Size of the area of one request.
const AREA: usize = 64 << 10;

fn play(form: u8, piece: usize, direct: bool, seed: u64, rounds: &[Vec<Draw>]) {
    let options = Options::new("sda");
    let mut world = World::new(Options { extended: form == 0, structured: form < 2, ..options });
    (world.chunks, world.direct) = (Chunks::UpTo(piece), direct);
    world.seed(seed);
    let mut model = world.disk.clone();
    for round in rounds {
        let mut reads = Vec::new();
        let mut taken = [false; SIZE / AREA];
        for (tag, &(what, area, at, len)) in (0..).zip(round) {
            // Requests in flight at the same time use disjoint areas.
            if std::mem::replace(&mut taken[area % taken.len()], true) {
                continue;
            }
            let start = area % taken.len() * AREA + at % 64 * 512;
            let place = start..start + (len % 64 + 1) * 512;
            let (offset, len) = (start as u64, place.len() as u64);
            let request = match what % 5 {
                0 => {
                    let bytes: Vec<u8> =
                        (0..place.len()).map(|n| (n + at).to_le_bytes()[0]).collect();
                    model[place].copy_from_slice(&bytes);
                    world.write_request(offset, &bytes)
                }
                1 => {
                    model[place].fill(0);
                    Request::Zero { offset, len, no_hole: false, fast: false, durable: false }
                }
                2 => Request::Cache { offset, len },
                _ => {
                    let buffer = world.memory.take(place.len()).unwrap();
                    reads.push((tag, place));
                    Request::Read { offset, buffer }
                }
            };
            world.submit(request, tag);
        }
        world.run();
        assert_eq!(world.client.in_flight(), 0);
        for done in std::mem::take(&mut world.events.done) {
            assert_eq!(done.result, Ok(()));
            if let Some((_, place)) = reads.iter().find(|(tag, _)| *tag == done.tag) {
                assert!(done.buffer.unwrap().bytes() == &model[place.clone()]);
            }
        }
        assert!(world.disk == model);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn r04_random_requests_equal_a_vec(
        form in 0..3_u8,
        piece in prop_oneof![1..64_usize, 1..100_000_usize],
        direct: bool,
        seed: u64,
        rounds in prop::collection::vec(
            prop::collection::vec((any::<u8>(), 0..32_usize, 0..64_usize, 0..64_usize), 1..20),
            1..4,
        ),
    ) {
        play(form, piece, direct, seed, &rounds);
    }
}
