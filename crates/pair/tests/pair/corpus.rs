//! Replays the fuzz corpus as regression test.

use std::path::{Path, PathBuf};

#[path = "../../../../fuzz/src/pair.rs"]
#[allow(unreachable_pub, reason = "public where the fuzzer is")]
#[allow(clippy::cast_possible_truncation, reason = "choices, not sizes")]
mod play;

#[test]
fn x21_corpus_of_pair_is_replayed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/pair");
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let mut inputs: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    assert!(inputs.len() >= 10, "the corpus is missing");
    for input in inputs {
        println!("{}", input.display());
        play::run(&std::fs::read(&input).unwrap());
    }
}

/// Runs the fuzz target on pseudo-random inputs.
#[test]
fn random_inputs_break_no_invariant() {
    let mut random_bytes = crate::world::random(7);
    for len in 0..1500 {
        let mut input = vec![0; len % 300];
        random_bytes(&mut input);
        play::run(&input);
    }
}
