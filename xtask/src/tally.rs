//! Counts what passed, failed and was skipped, and says each as it happens.
//! Does not know what a test is.

/// The results of a run, by name.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    passed: usize,
    failed: Vec<String>,
    skipped: Vec<(String, String)>,
}

impl Tally {
    /// Says and counts a passed test.
    pub(crate) fn pass(&mut self, name: &str) {
        println!("ok {name}");
        self.passed += 1;
    }

    /// Says and counts a failed test, with the reason.
    pub(crate) fn fail(&mut self, name: &str, reason: &str) {
        println!("not ok {name}");
        for line in reason.lines() {
            println!("# {line}");
        }
        self.failed.push(name.to_owned());
    }

    /// Says and counts a skipped test, with the reason.
    pub(crate) fn skip(&mut self, name: &str, reason: &str) {
        let reason = reason.trim().replace('\n', " ");
        println!("skip {name}: {reason}");
        self.skipped.push((name.to_owned(), reason));
    }

    /// Says and counts a check that has either succeeded or a reason why not.
    pub(crate) fn check(&mut self, name: &str, outcome: anyhow::Result<()>) {
        match outcome {
            Ok(()) => self.pass(name),
            Err(error) => self.fail(name, &format!("{error:#}")),
        }
    }

    /// Counts tests that another program has already named on the terminal.
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

    /// Whether nothing failed and something ran.
    pub(crate) fn all_passed(&self) -> bool {
        self.failed.is_empty() && (self.passed > 0 || !self.skipped.is_empty())
    }

    /// The names of the failed tests.
    pub(crate) fn failures(&self) -> &[String] {
        &self.failed
    }

    /// The skipped tests, each with its reason.
    pub(crate) fn skips(&self) -> &[(String, String)] {
        &self.skipped
    }

    /// The closing line.
    pub(crate) fn summary(&self) -> String {
        let (failed, skipped) = (self.failed.len(), self.skipped.len());
        format!("{} passed, {failed} failed, {skipped} skipped", self.passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_fails_the_run_and_is_named() {
        let mut tally = Tally::default();
        tally.pass("a");
        // Not by `skip`, which says so: whoever reads the output of tests would take it for one.
        tally.skipped.push(("b".to_owned(), "no such tool".to_owned()));
        let mut other = Tally::default();
        other.check("c", Err(anyhow::anyhow!("broken")));
        tally.absorb(other);
        assert_eq!(tally.summary(), "1 passed, 1 failed, 1 skipped");
        assert_eq!(tally.failures(), ["c"]);
        assert!(!tally.all_passed());
    }

    #[test]
    fn a_run_of_nothing_is_no_success() {
        assert!(!Tally::default().all_passed());
    }
}
