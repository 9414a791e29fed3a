//! Laws: random requests in any number at once, in any pieces and any order of ending, equal a `Vec<u8>`.

use nbd::client::{Options, Request};
use proptest::prelude::*;

use crate::world::{SIZE, World};

/// A request by numbers: what, which area, where in it, how much.
type Draw = (u8, usize, usize, usize);

/// Bytes that one request keeps to.
const AREA: usize = 64 << 10;

fn play(manner: u8, piece: usize, in_place: bool, seed: u64, rounds: &[Vec<Draw>]) {
    let options = Options::new("sda");
    let mut world =
        World::new(Options { extended: manner == 0, structured: manner < 2, ..options });
    (world.piece, world.in_place) = (piece, in_place);
    world.seed(seed);
    let mut model = world.disk.clone();
    for round in rounds {
        let mut reads = Vec::new();
        let mut taken = [false; SIZE / AREA];
        for (tag, &(what, area, at, len)) in (0..).zip(round) {
            // Requests that are under way together keep to areas of their own.
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
        assert_eq!(world.client.under_way(), 0);
        for done in std::mem::take(&mut world.heard.done) {
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
        manner in 0..3_u8,
        piece in prop_oneof![1..64_usize, 1..100_000_usize],
        in_place: bool,
        seed: u64,
        rounds in prop::collection::vec(
            prop::collection::vec((any::<u8>(), 0..32_usize, 0..64_usize, 0..64_usize), 1..20),
            1..4,
        ),
    ) {
        play(manner, piece, in_place, seed, &rounds);
    }
}
