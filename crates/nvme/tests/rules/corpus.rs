//! Replays the fuzz corpora.

use std::path::{Path, PathBuf};

#[path = "../../../../fuzz/src/auth.rs"]
#[allow(unreachable_pub, reason = "public where the fuzzer is")]
mod auth;
#[path = "../../../../fuzz/src/deframe.rs"]
#[allow(unreachable_pub, reason = "public where the fuzzer is")]
mod deframe;
#[path = "../../../../fuzz/src/host.rs"]
#[allow(unreachable_pub, reason = "public where the fuzzer is")]
mod host;
#[path = "../../../../fuzz/src/target.rs"]
#[allow(unreachable_pub, reason = "public where the fuzzer is")]
mod target;
#[path = "../../../../fuzz/src/wire.rs"]
#[allow(unreachable_pub, reason = "public where the fuzzer is")]
mod wire;

/// Returns the corpus of a fuzz target, sorted.
fn inputs(name: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(name);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let mut inputs: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    inputs
}

fn replay(name: &str, run: fn(&[u8])) {
    let inputs = inputs(name);
    assert!(inputs.len() >= 10, "the corpus of {name} is there");
    for input in inputs {
        println!("{}", input.display());
        run(&std::fs::read(&input).unwrap());
    }
}

#[test]
fn x21_corpus_of_auth_is_replayed() {
    replay("auth", auth::run);
}

#[test]
fn x21_corpus_of_deframe_is_replayed() {
    replay("deframe", deframe::run);
}

#[test]
fn x21_corpus_of_wire_is_replayed() {
    replay("wire", wire::run);
}

#[test]
fn x21_corpus_of_target_is_replayed() {
    replay("target", target::run);
}

#[test]
fn x21_corpus_of_host_is_replayed() {
    replay("host", host::run);
}
