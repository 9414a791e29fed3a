//! The tests by name, and their results.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::Bench;
use super::cache::Kernel;
use super::console::{Console, Message};
use crate::cargo;
use crate::tally::Tally;

/// A set of machines in which several tests run in sequence.
#[derive(Debug)]
pub(super) struct Scenario {
    /// The name, which is that of the directory of its scripts in `tests/vm`.
    pub(super) name: &'static str,
    /// The kernels that support it.
    pub(super) kernels: &'static [&'static str],
    /// Scripts that require the newest kernel or its programs.
    pub(super) newest: &'static [&'static str],
    /// Tests that the host decides, after those of the guest.
    pub(super) on_host: &'static [&'static str],
    /// Boots the machines and reports the result of each test.
    pub(super) run: fn(&Bench, &'static Kernel, &Path, &mut Results<'_>) -> Result<()>,
}

impl Scenario {
    /// Returns its tests for a kernel, in order.
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
    /// The name in the report: `vm 6.12 attach/discover`.
    pub(super) title: String,
    /// Its name within the scenario: `discover`.
    pub(super) name: String,
}

/// The undecided tests of a scenario.
#[derive(Debug)]
pub(super) struct Results<'a> {
    open: Vec<Case>,
    tally: &'a mut Tally,
    notes: String,
}

impl<'a> Results<'a> {
    /// Starts with all of these tests undecided.
    pub(super) fn new(open: Vec<Case>, tally: &'a mut Tally) -> Self {
        Self { open, tally, notes: String::new() }
    }

    /// Returns the names of the undecided tests, as passed to guests.
    pub(super) fn names(&self) -> String {
        let names: Vec<&str> = self.open.iter().map(|case| case.name.as_str()).collect();
        names.join(" ")
    }

    /// Records a line for the report of the next result.
    pub(super) fn note(&mut self, line: &str) {
        self.notes.push_str(line);
        self.notes.push('\n');
    }

    /// Processes the output of a guest until it ends; `answer` handles its requests. Returns the
    /// values that it reported.
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
                Message::Passed(name) => self.decide(&name, Ok(())),
                Message::Failed(name) => self.decide(&name, Err(anyhow!("failed in the guest"))),
                Message::Note(line) => self.note(&line),
                Message::Ask(what) => answer(self, &what)?,
                Message::Value(name, value) => drop(values.insert(name, value)),
                Message::Event(_) => {}
                Message::End => return Ok(values),
            }
        }
    }

    /// Records that a test cannot be run here.
    pub(super) fn skip(&mut self, name: &str, reason: &str) {
        let Some(at) = self.open.iter().position(|case| case.name == name) else { return };
        self.tally.skip(&self.open.remove(at).title, reason);
    }

    /// Records the result of a test.
    pub(super) fn decide(&mut self, name: &str, outcome: Result<()>) {
        let notes = std::mem::take(&mut self.notes);
        let Some(at) = self.open.iter().position(|case| case.name == name) else { return };
        let case = self.open.remove(at);
        match outcome {
            Ok(()) => self.tally.pass(&case.title),
            Err(error) => self.tally.fail(&case.title, &format!("{notes}{error:#}")),
        }
    }

    /// Ends the scenario: a test without a result has failed.
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
    fn test_without_a_result_has_failed() {
        let case = |name: &str| Case { title: format!("vm 1 a/{name}"), name: name.to_owned() };
        let mut tally = Tally::default();
        let mut results = Results::new(vec![case("x"), case("y")], &mut tally);
        results.decide("x", Ok(()));
        results.decide("unknown", Ok(()));
        assert_eq!(results.names(), "y");
        results.finish(Ok(()));
        assert_eq!(tally.failures(), ["vm 1 a/y"]);
        assert_eq!(tally.summary(), "1 passed, 1 failed, 0 skipped");
    }
}
