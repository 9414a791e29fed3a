//! `cargo xtask vm blktests`: the NVMe tests of blktests against storagetm, both in one machine, by the
//! hook that blktests has for targets that are not the kernel's.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::Bench;
use super::attach::network;
use super::cache::{KERNELS, Kernel};
use super::case::{Case, script_folder};
use super::console::{Console, Message};
use super::emulator;
use super::guest::{Guest, virtio_disk};
use super::image::{self, MIB};
use super::initramfs::{self, Job};
use crate::tally::Tally;

/// Limits a machine that hangs; a test takes 14 to 50 s on a busy machine.
const PATIENCE: Duration = Duration::from_secs(3600);
/// What blktests asks for: the smallest disk with XFS.
const DISK: u64 = 352 * MIB;

/// Options of `cargo xtask vm blktests`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Options {
    /// The source of blktests: the folder with its program `check`
    #[arg(long, value_name = "FOLDER")]
    suite: PathBuf,
}

/// A line of the table of expected results.
#[derive(Debug, PartialEq, Eq)]
struct Expected {
    /// The test's number.
    name: String,
    /// Its result in the words of blktests, with hyphens.
    result: String,
}

/// Runs the selected tests, and compares each with the committed table.
pub(super) fn run(
    options: &Options,
    bench: &Bench,
    wants: &dyn Fn(&str) -> bool,
    tally: &mut Tally,
) -> Result<()> {
    let kernel = KERNELS.last().context("there is no kernel")?;
    bench.cache.fetch(kernel)?;
    let table = table()?;
    let cases: Vec<Case> = table.iter().map(case).filter(|case| wants(&case.title)).collect();
    if cases.is_empty() {
        return Ok(());
    }
    let folder = bench.cache.run_folder("blktests")?;
    emulator::attempt(&[&folder], &cases, tally, |results| {
        let folder = bench.cache.run_folder("blktests")?;
        let guest = boot(options, bench, kernel, &folder, &results.names())?;
        let found = found(&guest.console, |name, result| {
            let expected = table.iter().find(|line| line.name == name);
            let expected = expected.map(|line| line.result.as_str());
            results.decide(name, same(expected, result));
        });
        found.with_context(|| format!("the serial log is in {}", folder.display()))
    });
    Ok(())
}

/// Counts every test as skipped.
pub(super) fn skip(reason: &str, wants: &dyn Fn(&str) -> bool, tally: &mut Tally) -> Result<()> {
    let table = table()?;
    let cases = table.iter().map(case).filter(|case| wants(&case.title));
    cases.for_each(|case| tally.skip(&case.title, reason));
    Ok(())
}

fn case(line: &Expected) -> Case {
    Case { title: format!("vm blktests nvme/{}", line.name), name: line.name.clone() }
}

fn same(expected: Option<&str>, found: &str) -> Result<()> {
    ensure!(expected == Some(found), "expected {expected:?}, found {found}");
    Ok(())
}

fn table() -> Result<Vec<Expected>> {
    let path = script_folder().join("blktests/results.txt");
    parse(&fs::read_to_string(&path).with_context(|| path.display().to_string())?)
}

/// Parses lines `NUMBER RESULT REASON`; `pass` needs no reason.
fn parse(text: &str) -> Result<Vec<Expected>> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let mut words = line.splitn(3, ' ');
            let (Some(name), Some(result)) = (words.next(), words.next()) else {
                bail!("no result: {line}")
            };
            ensure!(result == "pass" || words.next().is_some(), "no reason: {line}");
            Ok(Expected { name: name.to_owned(), result: result.to_owned() })
        })
        .collect()
}

fn boot(
    options: &Options,
    bench: &Bench,
    kernel: &'static Kernel,
    folder: &Path,
    tests: &str,
) -> Result<Guest> {
    let disk = folder.join("disk.img");
    image::empty(&disk, DISK)?;
    let suite = suite(&options.suite)?;
    let config = bench.cache.configuration(kernel)?;
    let mut files: Vec<(&str, PathBuf)> =
        suite.iter().map(|(to, from)| (to.as_str(), from.clone())).collect();
    files.push(("usr/bin/storagetm", bench.program.clone()));
    files.push((&config.0, config.1.clone()));
    let job = Job {
        scenario: "blktests",
        role: "blktests",
        variables: vec![("tests", tests.to_owned()), ("interface", "192.0.2.1/24".to_owned())],
        files,
        extra: Some(&initramfs::BLKTESTS),
    };
    let mut devices = network();
    devices.extend(virtio_disk(&disk, "BLKTESTS", false));
    Guest::boot(bench, kernel, folder, &job, &devices)
}

/// Returns the files of the suite that its NVMe tests need: path in the guest, path here.
fn suite(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut files = vec![("blktests/check".to_owned(), folder.join("check"))];
    for part in ["common", "tests/nvme"] {
        let entries = folder.join(part).read_dir();
        let entries = entries.with_context(|| format!("{} is not blktests", folder.display()))?;
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_file() {
                files.push((format!("blktests/{part}/{name}"), path));
            }
        }
    }
    Ok(files)
}

/// Reports each result that the machine prints, until it ends.
fn found(console: &Console, mut report: impl FnMut(&str, &str)) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match console.next(deadline)? {
            Message::Value(name, result) => report(&name, &result.replace(' ', "-")),
            Message::End => return Ok(()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_result_but_a_pass_has_a_reason() {
        let line = Expected { name: "003".to_owned(), result: "pass".to_owned() };
        assert_eq!(parse("# A table.\n003 pass\n").unwrap(), [line]);
        parse("002 not-run\n").unwrap_err();
        parse("002 not-run only of the kernel's own target\n").unwrap();
        parse("002\n").unwrap_err();
    }

    #[test]
    fn committed_table_is_in_order() {
        let table = table().unwrap();
        assert!(table.is_sorted_by(|one, next| one.name < next.name));
        assert!(table.iter().any(|line| line.name == "054"));
    }
}
