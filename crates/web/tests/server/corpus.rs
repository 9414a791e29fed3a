//! Replays the fuzz corpus as regression test.

use std::path::Path;

#[path = "../../../../fuzz/src/web.rs"]
#[allow(unreachable_pub, reason = "public where the fuzzer is")]
mod web;

#[test]
fn x21_corpus_of_web_is_replayed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/web");
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let mut inputs: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    assert!(inputs.len() >= 10, "the corpus is missing");
    for input in inputs {
        println!("{}", input.display());
        web::run(&std::fs::read(&input).unwrap());
    }
}
