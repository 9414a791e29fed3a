//! `cargo xtask ci`: the test command, and a limit on what may be skipped.
//! Does not know what is tested.

use anyhow::Result;

use crate::tally::Tally;
use crate::test;

/// Reasons for which a test may be skipped on a machine that `.ci/run` has prepared: what a machine is, no package brings.
/// A run that skips for any other has lost a tool that it should have: it fails.
const KNOWN: [&str; 4] = [
    "no /dev/fuse here",
    "no loop devices here",
    "only root makes loop devices",
    "processes may not be traced here",
];

/// Runs everything; a test that is skipped for no good reason is a failure of its own.
pub(crate) fn run(options: &test::Options) -> Result<Tally> {
    let mut tally = test::run(options)?;
    match lost(tally.skips()) {
        lost if lost.is_empty() => tally.pass("skips"),
        lost => tally.fail("skips", &lost.join("\n")),
    }
    Ok(tally)
}

/// The skips for which the machine is no excuse.
fn lost(skips: &[(String, String)]) -> Vec<String> {
    let known = |reason: &str| reason.split("; ").all(|part| KNOWN.contains(&part));
    let unknown = skips.iter().filter(|(_, reason)| !known(reason));
    unknown.map(|(name, reason)| format!("{name}: {reason}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_tool_is_no_excuse_and_another_machine_is_one() {
        let skip = |name: &str, reason: &str| (name.to_owned(), reason.to_owned());
        let two = "no /dev/fuse here; no loop devices here";
        let skips = [skip("a", two), skip("b", "not installed: nbdkit")];
        assert_eq!(lost(&skips), ["b: not installed: nbdkit"]);
    }
}
