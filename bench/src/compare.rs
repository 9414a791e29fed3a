//! The whole comparison: each workload on each disk, and the limits of the loopback and, for the
//! file, of local fio; all in one run, as ratios.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::load::{Figures, Work};
use crate::loopback::{self, Limit};
use crate::target::Target;
use crate::{How, measure, serve};

#[derive(Debug, clap::Args)]
pub(crate) struct Compare {
    /// Measure NBD beside other servers of it, by their clients.
    #[arg(long, conflicts_with = "copy")]
    pub(crate) nbd: bool,
    /// Measure copying beside other programs that copy.
    #[arg(long)]
    pub(crate) copy: bool,
    /// Measure this program with images in memory and on disk, instead of the engine alone.
    #[arg(long)]
    pub(crate) program: Option<PathBuf>,
    /// Folder for the file that is measured with O_DIRECT.
    #[arg(long, default_value = "target")]
    pub(crate) folder: PathBuf,
    /// Only workloads whose description contains this.
    #[arg(long, default_value = "")]
    pub(crate) only: String,
    /// Only this disk: null, memory or file.
    #[arg(long)]
    disk: Option<String>,
    /// Processor of the target.
    #[arg(long, default_value_t = 0)]
    pub(crate) target_processor: usize,
    /// Number of rounds, with --nbd and --copy; medians are printed
    #[arg(long, default_value_t = 3)]
    pub(crate) rounds: usize,
    #[command(flatten)]
    pub(crate) how: How,
}

/// Measures and prints everything.
pub(crate) fn compare(options: &Compare) -> Result<()> {
    let processors = [options.target_processor, options.how.processor];
    println!(
        "{:<8} {:<36} {:>9} {:>9} {:>7} {:>9} {:>9} {:>9} {:>9}",
        "disk", "workload", "ops/s", "MiB/s", "p50 us", "p99 us", "target us", "limit/s", "ratio"
    );
    for work in Work::ALL.into_iter().filter(|work| work.to_string().contains(&options.only)) {
        let limit = loopback::run(work, options.how.time(), processors, options.how.sleep)?;
        for disk in ["null", "memory", "file"] {
            if options.disk.as_deref().is_none_or(|only| only == disk) {
                compare_one(options, disk, work, limit)?;
            }
        }
    }
    Ok(())
}

fn compare_one(options: &Compare, disk: &str, work: Work, limit: Limit) -> Result<()> {
    let Some(place) = place(options, disk)? else { return Ok(()) };
    let target = match &options.program {
        Some(program) => Target::start_program(program, &place, options.target_processor)?,
        None => Target::start(&place, options.target_processor)?,
    };
    let figure =
        |cipher| measure(target.address, &target.nqn, work, options.how, cipher, || target.used());
    let figures = figure(None)?;
    print(disk, work, &figures, limit.rate);
    if let Some(cipher) = options.how.tls {
        // Compared with the figure without TLS, which is its limit.
        print("in TLS", work, &figure(Some(cipher))?, figures.rate());
    }
    drop(target);
    if disk == "file" {
        compare_with_fio(options, &place, work, figures.rate());
    }
    Ok(())
}

fn print(disk: &str, work: Work, figures: &Figures, limit: f64) {
    let micros = |percent| figures.latency.percentile(percent).as_secs_f64() * 1e6;
    println!(
        "{disk:<8} {work:<36} {:>9.0} {:>9.0} {:>7.0} {:>9.0} {:>9.2} {:>9.0} {:>9.2}",
        figures.rate(),
        figures.bandwidth(),
        micros(50),
        micros(99),
        figures.target_time(),
        limit,
        figures.rate() / limit
    );
}

/// Returns the target's argument for the disk; `None` if it is not available.
fn place(options: &Compare, disk: &str) -> Result<Option<String>> {
    let name = format!("storagetm-bench-{}.img", std::process::id());
    Ok(match (disk, &options.program) {
        ("file", _) => Some(image(&options.folder.join(name), options.program.is_some())?),
        ("memory", Some(_)) => Some(image(&Path::new("/dev/shm").join(name), true)?),
        ("null", Some(_)) => None,
        (other, None) => Some(other.to_owned()),
        _ => None,
    })
}

fn image(path: &Path, filled: bool) -> Result<String> {
    if filled {
        let file = File::create(path);
        serve::fill(&file.with_context(|| format!("cannot make {}", path.display()))?)?;
    }
    Ok(path.to_str().context("the path of the image is not UTF-8")?.to_owned())
}

fn compare_with_fio(options: &Compare, file: &str, work: Work, rate: f64) {
    match fio(options, file, work) {
        Ok(local) => println!("{:<8} {work:<36} {local:>9.0} {:>59.2}", "fio", rate / local),
        Err(error) => println!("{:<8} {work:<36} not measured: {error:#}", "fio"),
    }
}

/// Returns the operations per second of local fio on the file, at the same queue depth.
fn fio(options: &Compare, file: &str, work: Work) -> Result<f64> {
    let way = match (work.random, work.write) {
        (true, false) => "randread",
        (true, true) => "randwrite",
        (false, false) => "read",
        (false, true) => "write",
    };
    let output = Command::new("fio")
        .args(["--name=local", "--direct=1", "--ioengine=io_uring", "--output-format=json"])
        .args(["--time_based", &format!("--runtime={}", options.how.seconds)])
        .args([format!("--filename={file}"), format!("--rw={way}")])
        .args([format!("--bs={}", work.size), format!("--iodepth={}", work.depth)])
        .output()
        .context("fio is not installed")?;
    let answer: Value = serde_json::from_slice(&output.stdout).context("fio said no JSON")?;
    let side = if work.write { "write" } else { "read" };
    answer["jobs"][0][side]["iops"].as_f64().context("fio said no figure")
}

/// Removes the images.
pub(crate) fn clean(options: &Compare) {
    let name = format!("storagetm-bench-{}.img", std::process::id());
    for folder in [options.folder.as_path(), Path::new("/dev/shm")] {
        // Most runs create only one of them.
        let _ = std::fs::remove_file(folder.join(&name));
    }
}
