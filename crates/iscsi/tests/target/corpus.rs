//! Replays the fuzz corpus as regression test.

use std::path::Path;

#[path = "../../../../fuzz/src/iscsi.rs"]
#[allow(unreachable_pub, reason = "public where the fuzzer is")]
mod iscsi_target;

#[test]
fn x21_corpus_of_iscsi_is_replayed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/iscsi");
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let mut inputs: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    assert!(inputs.len() >= 10, "the corpus is missing");
    for input in inputs {
        println!("{}", input.display());
        iscsi_target::run(&std::fs::read(&input).unwrap());
    }
}
