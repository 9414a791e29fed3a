//! The emulator's own faults. Once in some thirty boots qemu (10.0, without hardware support) runs an instruction that the
//! kernel has just rewritten as it was before, an `int3` that is no longer there, and the kernel stops. What then
//! failed is run once more; any other end of a machine counts.
//! Does not know the tests.

use std::fs;
use std::path::Path;

use anyhow::Result;

use super::case::{Board, Case};
use crate::tally::Tally;

/// What such a kernel says last.
const STALE: &[u8] = b"Oops: int3: 0000";

/// Runs the tests of one arrangement of machines, whose logs are in these folders; once more if the emulator broke one
/// of them.
pub(super) fn attempt(
    folders: &[&Path],
    cases: &[Case],
    tally: &mut Tally,
    mut run: impl FnMut(&mut Board<'_>) -> Result<()>,
) {
    let first = once(cases, &mut run);
    if first.failures().is_empty() || !folders.iter().any(|folder| has_stale_code(folder)) {
        return tally.absorb(first);
    }
    println!("# the emulator broke the kernel of a machine (a stale int3): all of it once more");
    folders.iter().for_each(|folder| forget(folder));
    tally.absorb(once(cases, &mut run));
}

fn once(cases: &[Case], run: &mut impl FnMut(&mut Board<'_>) -> Result<()>) -> Tally {
    let mut tally = Tally::default();
    let mut board = Board::new(cases.to_vec(), &mut tally);
    let outcome = run(&mut board);
    board.finish(outcome);
    tally
}

/// Whether the log of a machine tells of it.
fn has_stale_code(folder: &Path) -> bool {
    logs(folder).iter().any(|log| {
        let said = fs::read(log).unwrap_or_default();
        said.windows(STALE.len()).any(|words| words == STALE)
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
        attempt(&[&folder], &[case()], &mut tally, |board| {
            runs += 1;
            if runs == 1 {
                fs::write(folder.join("machine.log"), said)?;
                bail!("the machine ended");
            }
            board.decide("x", Ok(()));
            Ok(())
        });
        fs::remove_dir_all(&folder).unwrap();
        (runs, tally.failures().len())
    }

    #[test]
    fn only_what_the_emulator_broke_is_run_once_more() {
        assert_eq!(run("stale", "[1.8] Oops: int3: 0000 [#1] PREEMPT SMP"), (2, 0));
        assert_eq!(run("panic", "Kernel panic - not syncing: Attempted to kill init!"), (1, 1));
    }
}
