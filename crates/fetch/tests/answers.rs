//! Replays the fuzz corpus of what servers answer, whole and damaged.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::fs;
use std::path::Path;

#[path = "../../../fuzz/src/answers.rs"]
#[allow(unreachable_pub, reason = "public where the fuzzer is")]
mod fuzz;

/// Answers of each kind, and what the fuzzer has found.
fn corpus() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/answers");
    fs::read_dir(folder).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect()
}

#[test]
fn x21_corpus_of_answers_is_replayed() {
    let inputs = corpus();
    assert!(inputs.len() >= 16);
    inputs.iter().for_each(|input| fuzz::run(input));
}

#[test]
fn x57_damaged_answers_do_not_panic() {
    for input in corpus() {
        for at in 0..input.len() {
            fuzz::run(&input[..at]);
            for byte in [0, b'"', b'<', b'&', b'/', b'}', 0x7f, 0xff, input[at] ^ 1] {
                let mut damaged = input.clone();
                damaged[at] = byte;
                fuzz::run(&damaged);
            }
        }
    }
}
