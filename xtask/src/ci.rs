//! `cargo xtask ci`: the test command, and a limit on what may be skipped.
//! Does not know what is tested.

use anyhow::Result;

use crate::tally::Tally;
use crate::test;

/// How many tests are known to be skipped on a machine that `.ci/run` has prepared. A run that skips
/// more has lost a tool that it should have: it fails.
const KNOWN_SKIPS: usize = 0;

/// Runs everything; too many skips are a failure of their own.
pub(crate) fn run() -> Result<Tally> {
    let mut tally = test::run(&test::Options::default())?;
    let skipped = tally.skips().len();
    if skipped > KNOWN_SKIPS {
        tally.fail("skips", &format!("{skipped} tests were skipped, {KNOWN_SKIPS} are known"));
    } else {
        tally.pass("skips");
    }
    Ok(tally)
}
