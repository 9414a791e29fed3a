//! `cargo xtask vm`: boots distribution kernels and attaches disks that storagetm serves.

mod activation;
mod apt;
mod attach;
mod attaching;
mod blktests;
mod boot;
mod cache;
mod case;
mod clones;
mod console;
mod copying;
mod emulator;
mod events;
mod guest;
mod homes;
mod hotplug;
mod image;
mod initramfs;
mod ipxe;
mod iscsi;
mod iscsi_atomic;
mod iscsi_boot;
mod keys;
mod lender;
pub(crate) mod mirror;
mod modules;
mod narrow;
mod overlay;
mod overlay_boot;
mod provider;
mod qmp;
mod stock;
mod system;
mod target;
mod tree;
mod usb;
mod usbip;

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::cargo;
use crate::tally::Tally;
pub(crate) use boot::Pieces;
use cache::{Cache, KERNELS, Kernel, NEXT};
use case::{Case, Scenario};

/// The scenarios in which disks are attached.
const SCENARIOS: [fn() -> Scenario; 16] = [
    activation::scenario,
    attach::scenario,
    attaching::scenario,
    clones::scenario,
    copying::scenario,
    homes::scenario,
    hotplug::scenario,
    iscsi::scenario,
    iscsi_atomic::scenario,
    iscsi_boot::scenario,
    keys::scenario,
    overlay::scenario,
    overlay_boot::scenario,
    provider::scenario,
    usb::scenario,
    usbip::scenario,
];

/// Scenarios that run only if `--only` names them: they boot a systemd with a whole system, or one of a
/// release that changes every week.
const NAMED: [&str; 2] = ["homes", "provider"];

/// Options of `cargo xtask vm`.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    part: Option<Part>,
    /// Kernel to boot: 6.1, 6.12, both of them (all), or that of the next Debian release (next)
    #[arg(long, default_value = "all", value_parser = ["6.1", "6.12", "all", "next"])]
    kernel: String,
    /// Run only the tests whose name contains this
    #[arg(long, value_name = "NAME", global = true)]
    only: Option<String>,
    /// Test this program instead of building storagetm; it must be static
    #[arg(long, value_name = "PATH", global = true)]
    program: Option<PathBuf>,
    /// List the tests and stop
    #[arg(long, global = true)]
    list: bool,
}

/// A part of the tests.
#[derive(Debug, clap::Subcommand)]
enum Part {
    /// Only the machines that are booted into target mode, with the table of times
    Boot(boot::Options),
    /// Only blktests' NVMe tests, with a copy of blktests; compared with tests/vm/blktests/results.txt
    Blktests(blktests::Options),
    /// Only a Debian without changes that boots from a lent disk; as root, installs it first
    Stock(stock::Options),
    /// Stand between a host and its target in a test machine, and take groups out of what the host offers
    #[command(hide = true)]
    Narrow(narrow::Options),
}

impl Options {
    /// Every kernel, every test, with a program that is built already.
    pub(crate) fn everything(program: PathBuf) -> Self {
        Self { kernel: "all".to_owned(), program: Some(program), ..Self::default() }
    }

    /// Returns the kernels for the scenarios.
    fn kernels(&self) -> impl Iterator<Item = &'static Kernel> {
        let named = |kernel: &&Kernel| self.kernel == "all" || self.kernel == kernel.name;
        let next = (self.kernel == NEXT.name).then_some(&NEXT);
        let kernels = KERNELS.iter().filter(move |kernel| named(kernel)).chain(next);
        kernels.filter(|_| self.part.is_none())
    }

    /// Returns the options for the machines that are booted into target mode, unless a kernel was
    /// selected.
    fn boot(&self) -> Option<boot::Options> {
        match &self.part {
            Some(Part::Boot(options)) => Some(options.clone()),
            Some(Part::Blktests(_) | Part::Stock(_) | Part::Narrow(_)) => None,
            None => (self.kernel == "all").then(boot::Options::default),
        }
    }

    /// Whether a scenario is run without being named, or is named.
    fn runs(&self, scenario: &Scenario) -> bool {
        let is_named = self.only.as_deref().is_some_and(|part| part.contains(scenario.name));
        is_named || !NAMED.contains(&scenario.name)
    }

    fn wants(&self, name: &str) -> bool {
        self.only.as_deref().is_none_or(|part| name.contains(part))
    }
}

/// What every scenario needs: the program under test, and the cache.
#[derive(Debug)]
struct Bench {
    program: PathBuf,
    cache: Cache,
}

/// Runs the selected tests; skips each if this machine cannot run them.
pub(crate) fn run(options: &Options) -> Result<Tally> {
    let mut tally = Tally::default();
    if let Some(Part::Narrow(options)) = &options.part {
        narrow::run(options)?;
    }
    match prepare(options) {
        Ok(bench) => run_all(options, &bench, &mut tally)?,
        Err(Unable::Here(reason)) => skip_all(options, &reason, &mut tally)?,
        Err(Unable::Broken(error)) => return Err(error),
    }
    Ok(tally)
}

fn run_all(options: &Options, bench: &Bench, tally: &mut Tally) -> Result<()> {
    for kernel in options.kernels() {
        run_kernel(options, bench, kernel, &SCENARIOS.map(|scenario| scenario()), tally)?;
    }
    if let Some(Part::Blktests(part)) = &options.part {
        blktests::run(part, bench, &|name| options.wants(name), tally)?;
    }
    if let Some(Part::Stock(part)) = &options.part {
        stock::run(part, bench, &|name| options.wants(name), tally)?;
    }
    if let Some(part) = options.boot() {
        boot::run(&part, bench, &|name| options.wants(name), tally)?;
    }
    Ok(())
}

fn skip_all(options: &Options, reason: &str, tally: &mut Tally) -> Result<()> {
    for kernel in options.kernels() {
        skip_kernel(options, kernel, &SCENARIOS.map(|scenario| scenario()), reason, tally)?;
    }
    if let Some(Part::Blktests(_)) = &options.part {
        blktests::skip(reason, &|name| options.wants(name), tally)?;
    }
    if let Some(Part::Stock(_)) = &options.part {
        stock::skip(reason, &|name| options.wants(name), tally);
    }
    if let Some(part) = options.boot() {
        boot::skip(&part, reason, &|name| options.wants(name), tally);
    }
    Ok(())
}

/// Why no test can be run.
enum Unable {
    /// This machine lacks something: the tests are skipped.
    Here(String),
    /// The program does not build: the run fails.
    Broken(anyhow::Error),
}

fn prepare(options: &Options) -> Result<Bench, Unable> {
    if options.list {
        return Err(Unable::Here("only listed".to_owned()));
    }
    if let Some(reason) = cache::missing_tools() {
        return Err(Unable::Here(reason));
    }
    let cache = Cache::open().map_err(Unable::Broken)?;
    let built = || cargo::build_program("storagetm");
    let program = options.program.clone().map_or_else(built, Ok).map_err(Unable::Broken)?;
    for kernel in options.kernels() {
        cache.fetch(kernel).map_err(|error| Unable::Here(format!("{error:#}")))?;
    }
    Ok(Bench { program, cache })
}

fn run_kernel(
    options: &Options,
    bench: &Bench,
    kernel: &'static Kernel,
    scenarios: &[Scenario],
    tally: &mut Tally,
) -> Result<()> {
    for scenario in scenarios {
        let cases = chosen(options, kernel, scenario)?;
        if cases.is_empty() {
            continue;
        }
        let name = format!("{}-{}", scenario.name, kernel.name);
        let folder = bench.cache.run_folder(&name)?;
        let context = || format!("serial logs are in {}", folder.display());
        emulator::attempt(&[&folder], &cases, tally, |results| {
            // Sockets and images of an earlier run would be in the way.
            let folder = bench.cache.run_folder(&name)?;
            (scenario.run)(bench, kernel, &folder, results).with_context(context)
        });
    }
    Ok(())
}

fn skip_kernel(
    options: &Options,
    kernel: &Kernel,
    scenarios: &[Scenario],
    reason: &str,
    tally: &mut Tally,
) -> Result<()> {
    for scenario in scenarios {
        for case in chosen(options, kernel, scenario)? {
            tally.skip(&case.title, reason);
        }
    }
    Ok(())
}

fn chosen(options: &Options, kernel: &Kernel, scenario: &Scenario) -> Result<Vec<Case>> {
    let mut cases = scenario.cases(kernel.name)?;
    cases.retain(|case| options.runs(scenario) && options.wants(&case.title));
    Ok(cases)
}
