//! The tests by name: which there are, and what became of each.
//! Does not know what a test does: guest scripts and scenarios decide that.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::Bench;
use super::cache::Kernel;
use super::console::{Console, Saying};
use crate::cargo;
use crate::tally::Tally;

/// One arrangement of machines in which several tests run after one another.
#[derive(Debug)]
pub(super) struct Scenario {
    /// Its name, and the folder of its scripts under `tests/vm`.
    pub(super) name: &'static str,
    /// The kernels that can do what it tests.
    pub(super) kernels: &'static [&'static str],
    /// Scripts that only the newest of the kernels, or its programs, can run.
    pub(super) newest: &'static [&'static str],
    /// Tests that the host itself decides, after the guest's.
    pub(super) on_host: &'static [&'static str],
    /// Boots the machines and reports each test to the board.
    pub(super) run: fn(&Bench, &'static Kernel, &Path, &mut Board<'_>) -> Result<()>,
}

impl Scenario {
    /// Its tests for one kernel, in the order in which they run.
    pub(super) fn cases(&self, kernel: &str) -> Result<Vec<Case>> {
        if !self.kernels.contains(&kernel) {
            return Ok(Vec::new());
        }
        let mut names: Vec<String> =
            scripts(self.name)?.iter().filter_map(|path| name_of(path)).collect();
        if self.kernels.last() != Some(&kernel) {
            names.retain(|name| !self.newest.contains(&name.as_str()));
        }
        names.extend(self.on_host.iter().map(|&name| name.to_owned()));
        let title = |name: &String| format!("vm {kernel} {}/{name}", self.name);
        Ok(names.iter().map(|name| Case { title: title(name), name: name.clone() }).collect())
    }
}

/// The folder of the guests' scripts.
pub(super) fn script_folder() -> PathBuf {
    cargo::workspace().join("tests/vm")
}

/// The scripts of one scenario, `NN-NAME.sh`, in order.
pub(super) fn scripts(scenario: &str) -> Result<Vec<PathBuf>> {
    let folder = script_folder().join(scenario);
    let entries =
        folder.read_dir().with_context(|| format!("{} cannot be read", folder.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.retain(|path| name_of(path).is_some());
    paths.sort();
    Ok(paths)
}

/// The name of a test from its script: `40-read-compare.sh` is `read-compare`.
pub(super) fn name_of(script: &Path) -> Option<String> {
    let (number, name) = script.file_name()?.to_str()?.strip_suffix(".sh")?.split_once('-')?;
    number.parse::<u8>().ok()?;
    Some(name.to_owned())
}

/// One test on one kernel.
#[derive(Debug, Clone)]
pub(super) struct Case {
    /// What the result is reported under: `vm 6.12 attach/discover`.
    pub(super) title: String,
    /// Its name within the scenario: `discover`.
    pub(super) name: String,
}

/// The tests of a scenario that are still to be decided.
#[derive(Debug)]
pub(super) struct Board<'a> {
    open: Vec<Case>,
    tally: &'a mut Tally,
    notes: String,
}

impl<'a> Board<'a> {
    /// A board with all of these tests undecided.
    pub(super) fn new(open: Vec<Case>, tally: &'a mut Tally) -> Self {
        Self { open, tally, notes: String::new() }
    }

    /// The names of the undecided tests, as the guests are told them.
    pub(super) fn names(&self) -> String {
        let names: Vec<&str> = self.open.iter().map(|case| case.name.as_str()).collect();
        names.join(" ")
    }

    /// Keeps a line that explains the next result.
    pub(super) fn note(&mut self, line: &str) {
        self.notes.push_str(line);
        self.notes.push('\n');
    }

    /// Follows a guest to its end, deciding what it reports; what it asks for is done by `answer`.
    /// Returns the values that it told.
    pub(super) fn follow(
        &mut self,
        console: &Console,
        patience: Duration,
        mut answer: impl FnMut(&mut Self, &str) -> Result<()>,
    ) -> Result<BTreeMap<String, String>> {
        let deadline = Instant::now() + patience;
        let mut values = BTreeMap::new();
        loop {
            match console.next(deadline)? {
                Saying::Passed(name) => self.decide(&name, Ok(())),
                Saying::Failed(name) => self.decide(&name, Err(anyhow!("failed in the guest"))),
                Saying::Note(line) => self.note(&line),
                Saying::Ask(what) => answer(self, &what)?,
                Saying::Value(name, value) => drop(values.insert(name, value)),
                Saying::Event(_) => {}
                Saying::End => return Ok(values),
            }
        }
    }

    /// Decides one test.
    pub(super) fn decide(&mut self, name: &str, outcome: Result<()>) {
        let notes = std::mem::take(&mut self.notes);
        let Some(at) = self.open.iter().position(|case| case.name == name) else { return };
        let case = self.open.remove(at);
        match outcome {
            Ok(()) => self.tally.pass(&case.title),
            Err(error) => self.tally.fail(&case.title, &format!("{notes}{error:#}")),
        }
    }

    /// Decides what is left: a test without a result has failed.
    pub(super) fn finish(mut self, outcome: Result<()>) {
        let reason = match outcome {
            Ok(()) => "the guest never reported it".to_owned(),
            Err(error) => format!("not reached: {error:#}"),
        };
        let notes = std::mem::take(&mut self.notes);
        for case in &self.open {
            self.tally.fail(&case.title, &format!("{notes}{reason}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_named_by_what_follows_their_number() {
        assert_eq!(name_of(Path::new("x/40-read-compare.sh")).as_deref(), Some("read-compare"));
        assert_eq!(name_of(Path::new("x/lib.sh")), None);
        assert_eq!(name_of(Path::new("x/40-notes.txt")), None);
    }

    #[test]
    fn a_test_that_nobody_decided_has_failed() {
        let case = |name: &str| Case { title: format!("vm 1 a/{name}"), name: name.to_owned() };
        let mut tally = Tally::default();
        let mut board = Board::new(vec![case("x"), case("y")], &mut tally);
        board.decide("x", Ok(()));
        board.decide("unknown", Ok(()));
        assert_eq!(board.names(), "y");
        board.finish(Ok(()));
        assert_eq!(tally.failures(), ["vm 1 a/y"]);
        assert_eq!(tally.summary(), "1 passed, 1 failed, 0 skipped");
    }
}
