//! Replays the fuzz corpus as regression test.

use std::path::Path;

#[path = "../../../../fuzz/src/nbd_client.rs"]
#[allow(unreachable_pub, reason = "public where the fuzzer is")]
mod nbd_client;

#[test]
fn x21_corpus_of_nbd_client_is_replayed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/nbd_client");
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let mut inputs: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    assert!(inputs.len() >= 10, "the corpus is missing");
    for input in inputs {
        println!("{}", input.display());
        nbd_client::run(&std::fs::read(&input).unwrap());
    }
}

/// Runs the fuzz target on pseudo-random inputs.
#[test]
fn random_inputs_do_not_panic() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..2000 {
        let mut next = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed.to_le_bytes()[2]
        };
        let settings = next() & 0xe3;
        let bytes: Vec<u8> = std::iter::once(settings).chain((0..400).map(|_| next())).collect();
        nbd_client::run(&bytes);
    }
}
