//! Replays the fuzz corpus as regression test.

use std::path::Path;

#[path = "../../../../fuzz/src/iscsi_host.rs"]
#[allow(unreachable_pub, reason = "public where the fuzzer is")]
mod iscsi_host;

#[test]
fn x21_corpus_of_iscsi_host_is_replayed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/iscsi_host");
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let mut inputs: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    assert!(inputs.len() >= 10, "the corpus is missing");
    for input in inputs {
        println!("{}", input.display());
        iscsi_host::run(&std::fs::read(&input).unwrap());
    }
}

/// Runs the fuzz target on pseudo-random inputs.
#[test]
fn random_inputs_do_not_panic() {
    let mut random = testkit::Xorshift64::default();
    for _ in 0..20_000 {
        let bytes: Vec<u8> = (0..300).map(|_| random.below(256).to_le_bytes()[0]).collect();
        iscsi_host::run(&bytes);
    }
}
