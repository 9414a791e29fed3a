//! `cargo xtask ci`: like `cargo xtask test`, but limits what may be skipped.

use anyhow::Result;

use crate::tally::Tally;
use crate::test;

/// The reasons for which a test may be skipped on a machine prepared by `.ci/run`: properties of
/// the machine that no package of Debian changes. Any other reason is a missing tool and fails the run.
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
    let known =
        |reason: &str| reason.split("; ").all(|part| KNOWN.contains(&part) || is_of_pypi(part));
    let unknown = skips.iter().filter(|(_, reason)| !known(reason));
    unknown.map(|(name, reason)| format!("{name}: {reason}")).collect()
}

/// Whether only programs are missing that are no packages of Debian.
fn is_of_pypi(reason: &str) -> bool {
    let is_one = |name: &str| {
        let row = programs::PROGRAMS.iter().find(|program| program.name == name);
        row.is_some_and(|program| program.package.starts_with(programs::PIPX))
    };
    reason.strip_prefix("not installed: ").is_some_and(|names| names.split(", ").all(is_one))
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
        let both = [
            skip("c", "not installed: moto_server"),
            skip("d", "not installed: moto_server, nbdkit"),
        ];
        assert_eq!(lost(&both), ["d: not installed: moto_server, nbdkit"]);
    }
}
