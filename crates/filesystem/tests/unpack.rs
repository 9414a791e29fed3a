//! Compressed streams that are damaged or made up.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

#[path = "../../../fuzz/src/unpack.rs"]
#[allow(unreachable_pub, reason = "public where the fuzzer is")]
mod fuzz;

/// Streams of each format, and what the fuzzer has found.
fn corpus() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/unpack");
    let mut paths: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| fs::read(path).unwrap()).collect()
}

#[test]
fn x21_corpus_of_unpack_is_replayed() {
    let inputs = corpus();
    assert!(inputs.len() >= 11);
    inputs.iter().for_each(|input| fuzz::run(input));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn x55_damaged_streams_do_not_panic_or_run_on(
        number in 0_usize..100,
        changes in prop::collection::vec((any::<usize>(), any::<u8>()), 1..6),
        cut in 0_usize..2000,
    ) {
        let inputs = corpus();
        let mut bytes = inputs[number % inputs.len()].clone();
        for (at, byte) in changes {
            let len = bytes.len();
            bytes[at % len] = byte;
        }
        // Half of them are whole.
        bytes.truncate(if cut < 1000 { cut } else { bytes.len() });
        fuzz::run(&bytes);
    }

    #[test]
    fn x55_random_bytes_behind_a_magic_do_not_panic(
        magic in prop::sample::select(vec![
            &b"\x1f\x8b\x08"[..], b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18",
        ]),
        rest in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        fuzz::run(&[magic, &rest].concat());
    }
}
