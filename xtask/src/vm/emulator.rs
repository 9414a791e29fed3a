//! Failures of the emulator itself, recognized by the last messages of the guest's kernel. Tests
//! that failed in such a machine are run once more.

use std::fs;
use std::path::Path;

use anyhow::Result;

use super::case::{Case, Results};
use crate::tally::Tally;

/// A failure of the emulator.
struct Signature {
    /// The text in the machine's log.
    log: &'static str,
    /// A description.
    fault: &'static str,
}

/// Failures of qemu without hardware support (TCG), with kernels that work elsewhere.
const SIGNATURES: &[Signature] = &[
    // Once in some thirty boots (qemu 10.0): an instruction runs as it was before the kernel rewrote it (text_poke, for
    // static keys), an `int3` that is no longer there.
    Signature {
        log: "Oops: int3: 0000",
        fault: "it ran an instruction that the kernel had replaced",
    },
    // Not seen with our machines, but often by others: the kernel counts timer interrupts in a busy loop at boot, and on a
    // loaded machine none comes in time.
    Signature { log: "IO-APIC + timer doesn't work!", fault: "its timer stood still at boot" },
];

/// Runs the tests of a scenario, whose machines log to these directories; again if the emulator
/// failed in one of them.
pub(super) fn attempt(
    folders: &[&Path],
    cases: &[Case],
    tally: &mut Tally,
    mut run: impl FnMut(&mut Results<'_>) -> Result<()>,
) {
    let first = once(cases, &mut run);
    let broken = || folders.iter().find_map(|folder| signature(folder));
    let Some(signature) = (!first.failures().is_empty()).then(broken).flatten() else {
        return tally.absorb(first);
    };
    println!("# the emulator failed, {}: these tests are run once more", signature.fault);
    folders.iter().for_each(|folder| forget(folder));
    tally.absorb(once(cases, &mut run));
}

fn once(cases: &[Case], run: &mut impl FnMut(&mut Results<'_>) -> Result<()>) -> Tally {
    let mut tally = Tally::default();
    let mut results = Results::new(cases.to_vec(), &mut tally);
    let outcome = run(&mut results);
    results.finish(outcome);
    tally
}

/// Returns the failure of the emulator that a log in this directory shows.
fn signature(folder: &Path) -> Option<&'static Signature> {
    logs(folder).iter().find_map(|log| {
        let said = fs::read(log).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        SIGNATURES.iter().find(|signature| said.contains(signature.log))
    })
}

/// A second run must not find the logs of the first.
fn forget(folder: &Path) {
    for log in logs(folder) {
        let _ = fs::remove_file(log);
    }
}

fn logs(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = folder.read_dir().into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    paths.filter(|path| path.extension().is_some_and(|ending| ending == "log")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;

    fn case() -> Case {
        Case { title: "vm 1 a/x".to_owned(), name: "x".to_owned() }
    }

    /// Runs a test that fails the first time, with that in the log; how often it ran, and the failures.
    fn run(name: &str, said: &str) -> (usize, usize) {
        let folder = std::env::temp_dir().join(format!("xtask-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let mut tally = Tally::default();
        let mut runs = 0;
        attempt(&[&folder], &[case()], &mut tally, |results| {
            runs += 1;
            if runs == 1 {
                fs::write(folder.join("machine.log"), said)?;
                bail!("the machine ended");
            }
            results.decide("x", Ok(()));
            Ok(())
        });
        fs::remove_dir_all(&folder).unwrap();
        (runs, tally.failures().len())
    }

    #[test]
    fn tests_are_repeated_only_after_emulator_failures() {
        assert_eq!(run("stale", "[1.8] Oops: int3: 0000 [#1] PREEMPT SMP"), (2, 0));
        assert_eq!(
            run("timer", "Kernel panic - not syncing: IO-APIC + timer doesn't work!"),
            (2, 0)
        );
        assert_eq!(run("panic", "Kernel panic - not syncing: Attempted to kill init!"), (1, 1));
    }
}
