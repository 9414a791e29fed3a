//! `cargo xtask ci`: like `cargo xtask test`, but limits what may be skipped.

use anyhow::Result;

use crate::tally::Tally;
use crate::test;

/// The reasons for which a test may be skipped on a machine prepared by `.ci/run`: properties of
/// the machine that no package changes. Any other reason is a missing tool and fails the run.
const KNOWN: [&str; 4] = [
    "no /dev/fuse here",
    "no loop devices here",
    "only root makes loop devices",
    "processes may not be traced here",
];

/// Runs everything. A skipped test fails the run unless its reason is in [`KNOWN`].
pub(crate) fn run(options: &test::Options) -> Result<Tally> {
    let mut tally = test::run(options)?;
    match lost(tally.skips()) {
        lost if lost.is_empty() => tally.pass("skips"),
        lost => tally.fail("skips", &lost.join("\n")),
    }
    Ok(tally)
}

/// Returns the skips for other reasons.
fn lost(skips: &[(String, String)]) -> Vec<String> {
    let known = |reason: &str| reason.split("; ").all(|part| KNOWN.contains(&part));
    let unknown = skips.iter().filter(|(_, reason)| !known(reason));
    unknown.map(|(name, reason)| format!("{name}: {reason}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skip_because_of_a_missing_tool_fails() {
        let skip = |name: &str, reason: &str| (name.to_owned(), reason.to_owned());
        let two = "no /dev/fuse here; no loop devices here";
        let skips = [skip("a", two), skip("b", "not installed: nbdkit")];
        assert_eq!(lost(&skips), ["b: not installed: nbdkit"]);
    }
}
