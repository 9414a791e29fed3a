//! Plays what the fuzz target has found and kept, so that nothing comes back. It knows no fuzzer.

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
    assert!(inputs.len() >= 10, "the corpus is there");
    for input in inputs {
        println!("{}", input.display());
        play::run(&std::fs::read(&input).unwrap());
    }
}

/// Any input, not only those that were kept: a few thousand made up ones.
#[test]
fn made_up_inputs_break_no_promise() {
    let mut draw = crate::world::random(7);
    for len in 0..1500 {
        let mut input = vec![0; len % 300];
        draw(&mut input);
        play::run(&input);
    }
}
