//! `cargo xtask test`: all checks and tests, fast ones first.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read};
use std::num::NonZero;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::tally::Tally;
use crate::{cargo, cases, install, layers, licences, man, tools, units, vm, words};

/// Options of `cargo xtask test`.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Options {
    /// Leave the test machines out
    #[arg(long)]
    no_vm: bool,
    /// Install the programs that the tests run and that are missing here, with apt-get, as root or by sudo
    #[arg(long)]
    install: bool,
}

/// The output format of a test runner. That of nextest includes that of cargo's runner for each
/// test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Runner {
    Nextest,
    Cargo,
}

/// The parsed output of a runner.
#[derive(Debug, Default)]
struct Report {
    /// The binary and the test of the current output.
    binary: String,
    current: String,
    passed: usize,
    failed: Vec<String>,
    ignored: usize,
    /// The reasons by test. A test that was skipped in part counts as skipped.
    skips: BTreeMap<String, BTreeSet<String>>,
    interop: Vec<String>,
}

/// Runs everything, also after failures.
pub(crate) fn run(options: &Options) -> Result<Tally> {
    timed("programs", || tools::provide(options.install))?;
    let mut tally = Tally::default();
    tally.check("format", cargo::run(&["fmt", "--all", "--check"]));
    tally.check("clippy", timed("clippy", clippy));
    tally.absorb(layers::run()?);
    tally.absorb(words::run()?);
    tally.absorb(licences::run()?);
    tally.check("man pages", man::check());
    tally.check("cases", cases::check());
    tally.absorb(units::run()?);
    if cargo::has("deny") {
        tally.check("cargo deny", cargo::run(&["deny", "check", "bans", "licenses", "sources"]));
    }
    let interop = run_tests(&mut tally)?;
    if options.no_vm {
        println!("# test machines left out: --no-vm");
    } else {
        tally.absorb(timed("test machines", machines)?);
    }
    conclude(&tally, &interop);
    Ok(tally)
}

/// Runs a part, and prints how long it took.
fn timed<T>(name: &str, part: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let result = part();
    println!("# {name}: {} s", begun.elapsed().as_secs());
    result
}

/// Runs the test machines with the program that the tests ran: to build a release takes as long as most of
/// the tests. `cargo xtask vm` alone runs them with a release.
fn machines() -> Result<Tally> {
    let program = install::stripped(&cargo::build_tested("storagetm")?)?;
    vm::run(&vm::Options::everything(program))
}

fn clippy() -> Result<()> {
    cargo::run(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])
}

/// Runs unit, integration and interop tests, then documentation tests. Returns the names of the
/// interop tests that ran.
fn run_tests(tally: &mut Tally) -> Result<Vec<String>> {
    let mut interop = Vec::new();
    if cargo::has("nextest") {
        let nextest =
            ["nextest", "run", "--workspace", "--no-fail-fast", "--success-output", "final"];
        interop.extend(timed("tests", || follow("tests", Runner::Nextest, &nextest, tally))?);
        let examples = ["test", "--workspace", "--doc"];
        interop.extend(follow("documentation tests", Runner::Cargo, &examples, tally)?);
    } else {
        let all = ["test", "--workspace", "--no-fail-fast", "--", "--show-output"];
        interop.extend(timed("tests", || follow("tests", Runner::Cargo, &all, tally))?);
    }
    Ok(interop)
}

/// Runs a test runner, shows and parses its output, and counts the results.
fn follow(
    name: &str,
    runner: Runner,
    arguments: &[&str],
    tally: &mut Tally,
) -> Result<Vec<String>> {
    let mut command = cargo::command(arguments);
    let (success, output) = echo(&mut command).with_context(|| name.to_owned())?;
    let report = Report::read(runner, &output);
    let explained = success || !report.failed.is_empty();
    tally.count(report.passed, report.failed);
    for (test, reasons) in report.skips {
        tally.skip(&test, &Vec::from_iter(reasons).join("; "));
    }
    if report.ignored > 0 {
        // Tests with `#[ignore]` are not missing tools.
        println!("# {} tests are marked as not to be run by default", report.ignored);
    }
    if !explained {
        tally.fail(name, "the test runner failed");
    }
    Ok(report.interop)
}

/// Runs a command and shows its output. Returns whether it succeeded and the output.
fn echo(command: &mut Command) -> Result<(bool, String)> {
    // Most of the long tests wait: for timeouts, and for programs that they start.
    let threads = 2 * std::thread::available_parallelism().map_or(1, NonZero::get);
    // One pipe for both streams preserves their order.
    let (reader, writer) = std::io::pipe()?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .env("CARGO_TERM_COLOR", "never")
        .env("RUST_TEST_THREADS", threads.to_string())
        .env("NEXTEST_TEST_THREADS", threads.to_string())
        .spawn()?;
    // The command still holds write ends of the pipe; without this there would be no end of file.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let output = copy(reader)?;
    Ok((child.wait()?.success(), output))
}

fn copy(reader: impl Read) -> Result<String> {
    let mut output = String::new();
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        let text = String::from_utf8_lossy(&line);
        print!("{text}");
        output.push_str(&text);
        line.clear();
    }
    Ok(output)
}

impl Report {
    fn read(runner: Runner, output: &str) -> Self {
        let mut report = Self::default();
        for line in output.lines().map(str::trim) {
            report.skip_line(line);
            match runner {
                Runner::Nextest => report.nextest_line(line),
                Runner::Cargo => report.cargo_line(line),
            }
        }
        report.failed.sort();
        report.failed.dedup();
        let failed = &report.failed;
        report.skips.retain(|test, _| !failed.contains(test));
        // Runners count them as passed.
        report.passed = report.passed.saturating_sub(report.skips.len());
        report
    }

    /// A test that is skipped prints `skip NAME: reason`.
    fn skip_line(&mut self, line: &str) {
        if let Some((_, reason)) = line.strip_prefix("skip ").and_then(|it| it.split_once(": ")) {
            let test = format!("{}{}", self.binary, self.current);
            self.skips.entry(test).or_default().insert(reason.to_owned());
        }
    }

    /// `PASS [   0.1s] (1/9) CRATE::BINARY TEST`, and the summary.
    fn nextest_line(&mut self, line: &str) {
        let name = || line.split_once(']').map_or(line, |(_, rest)| after_number(rest)).to_owned();
        let is_failure = ["FAIL [", "TIMEOUT [", "SIG", "ABORT ["]
            .iter()
            .any(|word| line.starts_with(word) && line.contains(" [") && line.contains("] ("));
        if is_failure {
            self.current = name();
            self.failed.push(name());
        } else if line.starts_with("PASS [") || line.starts_with("SLOW [") {
            self.current = name();
            if line.starts_with("PASS [") && line.contains("interop") {
                self.interop.push(name());
            }
        } else if line.starts_with("Summary [") {
            self.passed += number_before(line, " passed");
            self.ignored += number_before(line, " skipped");
        }
    }

    /// `test NAME ... ok`, and the result of each binary.
    fn cargo_line(&mut self, line: &str) {
        let output = line.strip_prefix("---- ").and_then(|it| it.strip_suffix(" stdout ----"));
        if let Some(name) = output {
            name.clone_into(&mut self.current);
        } else if let Some(binary) = line.strip_prefix("Running ") {
            // `unittests src/lib.rs (target/…/deps/NAME-HASH)`
            let file = binary.rsplit('/').next().unwrap_or_default();
            let name = file.rsplit_once('-').map_or(file, |(name, _)| name);
            self.binary = format!("{name} ");
        } else if let Some(name) =
            line.strip_prefix("test ").and_then(|it| it.strip_suffix(" ... FAILED"))
        {
            self.failed.push(format!("{}{name}", self.binary));
        } else if line.starts_with("test ") && line.ends_with(" ... ok") && line.contains("interop")
        {
            self.interop.push(line.to_owned());
        } else if line.starts_with("test result: ") {
            self.passed += number_before(line, " passed");
            self.ignored += number_before(line, " ignored");
        }
    }
}

/// Returns the name after nextest's `(3/9)`.
fn after_number(rest: &str) -> &str {
    rest.split_once(") ").map_or(rest, |(_, name)| name).trim()
}

fn number_before(line: &str, word: &str) -> usize {
    let before = line.split_once(word).map_or("", |(before, _)| before);
    before.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Prints the summary: interop tests that ran, skips, and failures.
fn conclude(tally: &Tally, interop: &[String]) {
    println!();
    for name in interop {
        println!("interop test ran: {name}");
    }
    for (name, reason) in tally.skips() {
        println!("skipped: {name}: {reason}");
    }
    tools::report();
    for name in tally.failures() {
        println!("failed: {name}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nextest_output_is_parsed() {
        let report = Report::read(
            Runner::Nextest,
            "        PASS [   0.010s] (1/3) tests::interop nbdinfo\n        \
             FAIL [   0.2s] (2/3) nvme wire::golden\n        FAIL [   0.2s] (2/3) nvme wire::golden\n\
             PASS [   0.1s] (3/3) tests fio\n  stdout ---\n  running 1 test\n\
             skip fio: not installed: fio\n skip fio: not installed: fio\n\
             skip fio: no loop devices here\n\
             test wire::golden ... FAILED\ntest result: FAILED. 0 passed; 1 failed; 0 ignored\n\
             Summary [   1.0s] 3 tests run: 2 passed (1 slow), 1 failed, 4 skipped\n",
        );
        assert_eq!((report.passed, report.ignored), (1, 4));
        assert_eq!(report.failed, ["nvme wire::golden"]);
        assert_eq!(report.interop, ["tests::interop nbdinfo"]);
        let reasons = ["no loop devices here", "not installed: fio"].map(str::to_owned);
        assert_eq!(report.skips, BTreeMap::from([("tests fio".to_owned(), reasons.into())]));
    }

    #[test]
    fn cargo_test_output_is_parsed() {
        let report = Report::read(
            Runner::Cargo,
            "  Running unittests src/lib.rs (target/debug/deps/nvme-0123)\n\
             test a::b ... ok\ntest c ... FAILED\n\
             ---- a::b stdout ----\nskip fio: not installed: fio\n\
             ---- c stdout ----\nskip fio: not installed: fio\n\
             test result: FAILED. 1 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out\n\
             test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n",
        );
        assert_eq!((report.passed, report.ignored), (5, 2));
        assert_eq!(report.failed, ["nvme c"]);
        assert_eq!(Vec::from_iter(report.skips.into_keys()), ["nvme a::b"]);
    }
}
