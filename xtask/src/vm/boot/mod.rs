//! `cargo xtask vm boot`: boots machines into target mode; a second machine attaches their disks.

mod client;
mod disks;
mod ending;
mod figures;
mod hardware;
mod hotplug;
mod initrds;
mod lent;
mod lines;
mod machine;
mod machines;
mod overlay;
mod pairing;
mod pieces;
mod screen;
mod server;
mod settings;
pub(super) mod systemd;
mod trial;
mod usb;
mod ways;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Bench;
use super::cache::{KERNELS, Kernel};
use super::case::Case;
use super::emulator;
use crate::tally::Tally;
use client::Client;
use figures::Figures;
use machine::Machine;
pub(crate) use pieces::Pieces;
use trial::{TRIALS, Trial};
use ways::{Maker, Way};

/// Options of `cargo xtask vm boot`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Options {
    /// How often each way is booted for the table of times; from 3 on, the times must keep their promise
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=50))]
    rounds: u32,
    /// Save what the machines' graphics cards show to this folder, as PNG
    #[arg(long, value_name = "FOLDER")]
    screenshots: Option<PathBuf>,
    /// Boot only the initrds that `cargo xtask initrds` has built, in the directory that it prints
    #[arg(long, value_name = "FOLDER")]
    initrds: Option<PathBuf>,
    /// Boot only sticks and CDs, on machines with each kind of firmware, and print the matrix of them
    #[arg(long, conflicts_with = "initrds")]
    machines: bool,
    /// Boot this program on the ARM64 machines instead of building storagetm for them
    #[arg(long, value_name = "PATH", requires = "machines")]
    arm64_program: Option<PathBuf>,
    /// Boot only a server that is restarted into target mode: by kexec, and by an entry of its boot loader
    #[arg(long, conflicts_with_all = ["initrds", "machines"])]
    server: bool,
    /// Boot only machines that start a system from a disk which a machine in target mode lends
    #[arg(long, conflicts_with_all = ["initrds", "machines", "server"])]
    lent: bool,
    /// Boot only a machine with every disk controller and network card of qemu
    #[arg(long, conflicts_with_all = ["initrds", "machines", "server", "lent"])]
    hardware: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            rounds: 1,
            screenshots: None,
            initrds: None,
            machines: false,
            arm64_program: None,
            server: false,
            lent: false,
            hardware: false,
        }
    }
}

impl Options {
    fn trials(&self) -> &'static [Trial] {
        match self {
            Self { initrds: Some(_), .. } => initrds::TRIALS,
            Self { machines: true, .. } => machines::TRIALS,
            Self { server: true, .. } => server::TRIALS,
            Self { lent: true, .. } => lent::TRIALS,
            Self { hardware: true, .. } => hardware::TRIALS,
            _ => TRIALS,
        }
    }
}

/// State shared by all trials.
#[derive(Debug)]
struct Lab<'a> {
    maker: Maker<'a>,
    client: Option<Client>,
    figures: Figures,
    screenshots: Option<PathBuf>,
    /// The directory of initrds built by other tools.
    initrds: Option<PathBuf>,
    /// The program for ARM64, if it is built already.
    arm_program: Option<PathBuf>,
    /// Whether only the table of times needs this boot.
    only_times: bool,
}

impl Lab<'_> {
    /// The second machine, started when first needed.
    fn client(&mut self) -> Result<&mut Client> {
        if self.client.is_none() {
            let Maker { bench, kernel, folder, .. } = self.maker;
            self.client = Some(Client::power_on(bench, kernel, folder)?);
        }
        self.client.as_mut().context("there is no second machine")
    }

    /// A graphics card, if screenshots are wanted.
    fn graphics_card(&self) -> Vec<String> {
        let card = ["-device".to_owned(), "VGA".to_owned()];
        if self.screenshots.is_some() { card.to_vec() } else { Vec::new() }
    }

    /// Saves a screenshot, if wanted.
    fn picture(&self, machine: &Machine, name: &str) -> Result<()> {
        let Some(folder) = &self.screenshots else { return Ok(()) };
        machine.control()?.screenshot(&folder.canonicalize()?.join(format!("{name}.png")))
    }
}

/// The kernel of both machines: that of the newest release.
fn kernel() -> Result<&'static Kernel> {
    KERNELS.last().context("no kernel is known")
}

/// Runs the selected trials; the table of times comes last.
pub(super) fn run(
    options: &Options,
    bench: &Bench,
    wanted: &dyn Fn(&str) -> bool,
    tally: &mut Tally,
) -> Result<()> {
    if !options.trials().iter().any(|trial| !chosen(trial, wanted).is_empty()) {
        return Ok(());
    }
    let kernel = kernel()?;
    bench.cache.fetch(kernel)?;
    let folder = bench.cache.run_folder("boot")?;
    if let Some(folder) = &options.screenshots {
        std::fs::create_dir_all(folder)?;
    }
    let line = if options.screenshots.is_some() { "console=tty0" } else { "" };
    let maker = Maker { bench, kernel, folder: &folder, line };
    let screenshots = options.screenshots.clone();
    let figures = Figures::default();
    let initrds = options.initrds.clone();
    let arm_program = options.arm64_program.clone();
    let mut lab =
        Lab { maker, client: None, figures, screenshots, initrds, arm_program, only_times: false };
    for trial in options.trials() {
        run_trial(trial, 0, &mut lab, chosen(trial, wanted), tally);
    }
    lab.only_times = true;
    for round in 1..options.rounds {
        for trial in options.trials().iter().filter(|trial| trial.is_timed()) {
            // A test counts once, and fails if it fails in any round.
            let mut further = Tally::default();
            let mut cases = chosen(trial, wanted);
            cases.truncate(1);
            run_trial(trial, round, &mut lab, cases, &mut further);
            fail_again(round, &further, tally);
        }
    }
    conclude(options, &lab.figures, wanted, tally);
    Ok(())
}

fn run_trial(trial: &Trial, round: u32, lab: &mut Lab<'_>, cases: Vec<Case>, tally: &mut Tally) {
    if cases.is_empty() {
        return;
    }
    let shared = lab.maker.folder;
    let own = folder_of(shared, trial, round);
    let mut runs = 0;
    emulator::attempt(&[&own, shared], &cases, tally, |results| {
        runs += 1;
        if runs > 1 {
            // The second machine may be broken.
            lab.client = None;
        }
        std::fs::create_dir_all(&own)?;
        (trial.run)(lab, &own, results).with_context(|| logs(&own))
    });
    // The next trial must start with nothing attached.
    let _ = lab.client.as_mut().map(Client::detach);
}

/// A test that fails in a further round has failed.
fn fail_again(round: u32, further: &Tally, tally: &mut Tally) {
    for name in further.failures() {
        tally.fail(name, &format!("in round {}", round + 1));
    }
}

fn folder_of(folder: &Path, trial: &Trial, round: u32) -> PathBuf {
    let first = trial.tests.first().unwrap_or(&"");
    folder.join(format!("{}-{first}-{}", trial.name, round + 1))
}

fn logs(folder: &Path) -> String {
    format!("serial logs are in {}", folder.display())
}

fn chosen(trial: &Trial, wanted: &dyn Fn(&str) -> bool) -> Vec<Case> {
    let case = |name: &&str| Case { title: title(trial.name, name), name: (*name).to_owned() };
    trial.tests.iter().map(case).filter(|case| wanted(&case.title)).collect()
}

fn title(trial: &str, test: &str) -> String {
    format!("vm boot {trial}/{test}")
}

const BAR: &str = "vm boot times/a-third-of-upstream";
/// A single pair of boots is not significant: a busy machine would fail it.
const ROUNDS_FOR_BAR: u32 = 3;

fn conclude(
    options: &Options,
    figures: &Figures,
    wanted: &dyn Fn(&str) -> bool,
    tally: &mut Tally,
) {
    if !figures.is_empty() {
        println!("\n{}", figures.table());
    }
    let is_timed = options.trials().iter().any(Trial::is_timed);
    if options.rounds >= ROUNDS_FOR_BAR && options.initrds.is_none() && is_timed && wanted(BAR) {
        tally.check(BAR, figures.bar());
    }
}

/// Skips every selected test, with a reason.
pub(super) fn skip(
    options: &Options,
    reason: &str,
    wanted: &dyn Fn(&str) -> bool,
    tally: &mut Tally,
) {
    for case in options.trials().iter().flat_map(|trial| chosen(trial, wanted)) {
        tally.skip(&case.title, reason);
    }
}

impl Trial {
    /// Whether it is one of those that are compared.
    fn is_timed(&self) -> bool {
        Way::ALL.iter().any(|way| way.name() == self.name)
    }
}
