//! Replays the fuzz corpus as regression test.

use std::path::Path;

use proptest::prelude::*;

#[path = "../../../../fuzz/src/scsi.rs"]
#[allow(unreachable_pub, reason = "public where the fuzzer is")]
mod scsi_fuzz;

#[test]
fn x21_corpus_of_scsi_is_replayed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/scsi");
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let mut inputs: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    assert!(inputs.len() >= 10, "the corpus is missing");
    for input in inputs {
        println!("{}", input.display());
        scsi_fuzz::run(&std::fs::read(&input).unwrap());
    }
}

proptest! {
    #[test]
    fn commands_in_any_order_end(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        scsi_fuzz::run(&bytes);
    }
}
