//! Counts tests that passed, failed or were skipped, and prints each.

/// The results of a run, by name.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    passed: usize,
    failed: Vec<String>,
    skipped: Vec<(String, String)>,
}

impl Tally {
    /// Prints and counts a passed test.
    pub(crate) fn pass(&mut self, name: &str) {
        println!("ok {name}");
        self.passed += 1;
    }

    /// Prints and counts a failed test, with the reason.
    pub(crate) fn fail(&mut self, name: &str, reason: &str) {
        println!("not ok {name}");
        for line in reason.lines() {
            println!("# {line}");
        }
        self.failed.push(name.to_owned());
    }

    /// Prints and counts a skipped test, with the reason.
    pub(crate) fn skip(&mut self, name: &str, reason: &str) {
        let reason = reason.trim().replace('\n', " ");
        println!("skip {name}: {reason}");
        self.skipped.push((name.to_owned(), reason));
    }

    /// Prints and counts the outcome of a check.
    pub(crate) fn check(&mut self, name: &str, outcome: anyhow::Result<()>) {
        match outcome {
            Ok(()) => self.pass(name),
            Err(error) => self.fail(name, &format!("{error:#}")),
        }
    }

    /// Counts tests that another program has printed.
    pub(crate) fn count(&mut self, passed: usize, failed: Vec<String>) {
        self.passed += passed;
        self.failed.extend(failed);
    }

    /// Adds the results of another run.
    pub(crate) fn absorb(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed.extend(other.failed);
        self.skipped.extend(other.skipped);
    }

    /// Returns whether nothing failed and something ran.
    pub(crate) fn all_passed(&self) -> bool {
        self.failed.is_empty() && (self.passed > 0 || !self.skipped.is_empty())
    }

    /// Returns the names of the failed tests.
    pub(crate) fn failures(&self) -> &[String] {
        &self.failed
    }

    /// Returns the skipped tests, each with its reason.
    pub(crate) fn skips(&self) -> &[(String, String)] {
        &self.skipped
    }

    /// Returns the last line.
    pub(crate) fn summary(&self) -> String {
        let (failed, skipped) = (self.failed.len(), self.skipped.len());
        format!("{} passed, {failed} failed, {skipped} skipped", self.passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_fails_the_run() {
        let mut tally = Tally::default();
        tally.pass("a");
        // Not by `skip`: the printed line would count as a skip of this test.
        tally.skipped.push(("b".to_owned(), "no such tool".to_owned()));
        let mut other = Tally::default();
        other.check("c", Err(anyhow::anyhow!("broken")));
        tally.absorb(other);
        assert_eq!(tally.summary(), "1 passed, 1 failed, 1 skipped");
        assert_eq!(tally.failures(), ["c"]);
        assert!(!tally.all_passed());
    }

    #[test]
    fn empty_run_is_not_a_success() {
        assert!(!Tally::default().all_passed());
    }
}
