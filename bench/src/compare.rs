//! The whole comparison: each workload on each disk, and the limits of the loopback and, for the
//! file, of local fio; all in one run, as ratios.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::client::{self, fio_rw};
use crate::load::{Figures, Work};
use crate::loopback;
use crate::median::{Ratios, median};
use crate::socket::Cipher;
use crate::target::{Attachable, Target};
use crate::{How, measure, serve};

#[derive(Debug, clap::Args)]
pub(crate) struct Compare {
    /// Measure NBD beside other servers of it, by their clients.
    #[arg(long, conflicts_with = "copy")]
    pub(crate) nbd: bool,
    /// Measure iSCSI, by another client.
    #[arg(long, conflicts_with_all = ["nbd", "copy", "program"], requires = "client")]
    iscsi: bool,
    /// Measure copying beside other programs that copy.
    #[arg(long)]
    pub(crate) copy: bool,
    /// Measure copying from a web server (nginx) beside a pipe of curl, zstd and dd.
    #[arg(long, conflicts_with_all = ["nbd", "copy", "iscsi"])]
    pub(crate) web: bool,
    /// With --web, measure a network of so many MiB a second, too.
    #[arg(long, value_name = "MIB", requires = "web")]
    pub(crate) network: Option<u64>,
    /// Measure this program with images in memory and on disk, instead of the engine alone.
    #[arg(long)]
    pub(crate) program: Option<PathBuf>,
    /// Folder for the file that is measured with O_DIRECT.
    #[arg(long, default_value = "target")]
    pub(crate) folder: PathBuf,
    /// Only workloads whose description contains this.
    #[arg(long, default_value = "")]
    pub(crate) only: String,
    /// Only this disk: null, memory, file, or over-memory and over-file, which are these with an overlay
    /// in memory, compared with them without one.
    #[arg(long)]
    disk: Option<String>,
    /// Processor of the target.
    #[arg(long, default_value_t = 0)]
    pub(crate) target_processor: usize,
    /// Number of rounds: 1 by default, 3 with --nbd and --copy. What is compared takes turns, in
    /// reverse order in every other round. Medians are printed, and of the ratios within each round
    /// the median and the range.
    #[arg(long)]
    rounds: Option<usize>,
    /// Shell command of a client that is run instead of our own load. The first number of the last
    /// line that it prints is its operations per second. {address}, {port}, {name} (NQN, NBD
    /// export name, or IQN/LUN), {size} (bytes), {depth}, {rw} (read, write, randread, randwrite), {seconds} and
    /// {processor} are replaced.
    #[arg(long, value_name = "COMMAND", conflicts_with_all = ["copy", "tls"])]
    pub(crate) client: Option<String>,
    /// Another NVMe/TCP or iSCSI target that is running, instead of the limit of the machine: its
    /// address, its NQN or IQN/LUN, and its process, which is stopped while others are measured. Writes
    /// destroy what is on its disk.
    #[arg(long, value_name = "ADDRESS:PORT,NAME,PID", conflicts_with_all = ["nbd", "copy"])]
    beside: Option<Attachable>,
    #[command(flatten)]
    pub(crate) how: How,
}

impl Compare {
    /// Returns the number of rounds, `default` if it is not named.
    pub(crate) fn rounds(&self, default: usize) -> usize {
        self.rounds.unwrap_or(default)
    }
}

/// What is measured in each round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    /// The loopback.
    Limit,
    /// Our target without the overlay.
    Bare,
    /// The other target.
    Beside,
    /// Our target, in TLS with a cipher.
    Own(Option<Cipher>),
    /// fio on the file.
    Fio,
}

/// The result of one side in one round: operations per second, CPU times per operation and
/// percentiles of the latency in microseconds, 0 if unknown.
#[derive(Debug, Clone, Copy, Default)]
struct Sample {
    rate: f64,
    target: f64,
    client: f64,
    p50: f64,
    p99: f64,
}

impl From<Figures> for Sample {
    fn from(figures: Figures) -> Self {
        Self {
            rate: figures.rate(),
            target: figures.each(figures.used),
            client: figures.each(figures.client),
            p50: figures.latency(50),
            p99: figures.latency(99),
        }
    }
}

/// Measures `sides` in rounds, in turn, every other round in reverse order. Returns the results of
/// each round in the order of `sides`.
pub(crate) fn rounds<S, T: Clone>(
    rounds: usize,
    sides: &[S],
    measure: impl Fn(&S) -> Option<T>,
) -> Vec<Vec<Option<T>>> {
    (0..rounds)
        .map(|round| {
            let mut results = vec![None; sides.len()];
            for at in 0..sides.len() {
                let at = if round % 2 == 0 { at } else { sides.len() - 1 - at };
                results[at] = measure(&sides[at]);
            }
            results
        })
        .collect()
}

/// Measures and prints everything.
pub(crate) fn compare(options: &Compare) -> Result<()> {
    println!(
        "{:<8} {:<36} {:>9} {:>9} {:>7} {:>9} {:>9} {:>9} {:>9} {:>17}",
        "disk",
        "workload",
        "ops/s",
        "MiB/s",
        "p50 us",
        "p99 us",
        "target us",
        "client us",
        "limit/s",
        "ratio"
    );
    for work in Work::ALL.into_iter().filter(|work| work.to_string().contains(&options.only)) {
        for disk in ["null", "memory", "file", "over-memory", "over-file"] {
            if options.disk.as_deref().is_none_or(|only| only == disk) {
                compare_one(options, disk, work)?;
            }
        }
    }
    Ok(())
}

fn compare_one(options: &Compare, disk: &str, work: Work) -> Result<()> {
    let Some(place) = place(options, disk)? else { return Ok(()) };
    let target = match &options.program {
        Some(program) => Target::start_program(program, &place, options.target_processor)?,
        None => Target::start(&place, options.target_processor, options.iscsi)?,
    };
    let bare = place.strip_prefix(serve::OVER);
    let bare = bare.map(|disk| Target::start(disk, options.target_processor, options.iscsi));
    let bare = bare.transpose()?;
    let base = match (&options.beside, &bare, &options.client) {
        (Some(_), ..) => Some(Side::Beside),
        (None, Some(_), _) => Some(Side::Bare),
        (None, None, None) => Some(Side::Limit),
        (None, None, Some(_)) => None,
    };
    let tls = options.how.tls.map(|cipher| Side::Own(Some(cipher)));
    let fio = (disk == "file").then_some(Side::Fio);
    let sides: Vec<Side> =
        base.into_iter().chain([Side::Own(None)]).chain(tls).chain(fio).collect();
    let results = rounds(options.rounds(1), &sides, |&side| {
        let target = if side == Side::Bare { bare.as_ref().unwrap_or(&target) } else { &target };
        measure_side(options, side, target, &place, work)
            .inspect_err(|error| eprintln!("{disk}, {work}, {side:?}: not measured: {error:#}"))
            .ok()
    });
    let of = |side: Side| -> Vec<Option<Sample>> {
        let at = sides.iter().position(|&it| it == side);
        results.iter().map(|round| round[at?]).collect()
    };
    let own = of(Side::Own(None));
    let limit = base.map(of).unwrap_or_default();
    match base {
        Some(Side::Beside) => print("beside", work, &limit, &[]),
        Some(Side::Bare) => print("bare", work, &limit, &[]),
        _ => {}
    }
    print(disk, work, &own, &limit);
    if let Some(tls) = tls {
        // Compared with the figure without TLS, which is its limit.
        print("in TLS", work, &of(tls), &own);
    }
    if let Some(fio) = fio {
        print("of fio", work, &own, &of(fio));
    }
    Ok(())
}

fn measure_side(
    options: &Compare,
    side: Side,
    target: &Target,
    file: &str,
    work: Work,
) -> Result<Sample> {
    let time = options.how.time();
    let others = options.beside.iter().filter(|_| side != Side::Beside);
    let _paused = others.map(Attachable::pause).collect::<Result<Vec<_>>>()?;
    let (disk, cipher) = match side {
        Side::Limit => {
            let processors = [options.target_processor, options.how.processor];
            let limit = loopback::run(work, time, processors, options.how.sleep)?;
            return Ok(Sample { rate: limit.rate, target: limit.server_time, ..Sample::default() });
        }
        Side::Fio => {
            let rate = fio(options, file, work)?;
            return Ok(Sample { rate, ..Sample::default() });
        }
        Side::Beside => (options.beside.as_ref().context("no other target")?, None),
        Side::Own(cipher) => (&target.disk, cipher),
        Side::Bare => (&target.disk, None),
    };
    let figures = match &options.client {
        Some(template) => {
            let to = (disk.address, &disk.name[..]);
            client::measure(template, to, work, time, options.how.processor, || disk.used())?
        }
        None => measure(disk.address, &disk.name, work, options.how, cipher, || disk.used())?,
    };
    Ok(figures.into())
}

/// Prints the medians of a side, and its rates as ratios to those of another in the same rounds.
fn print(name: &str, work: Work, rounds: &[Option<Sample>], limit: &[Option<Sample>]) {
    let median = |rounds: &[Option<Sample>], of: fn(&Sample) -> f64| {
        median(rounds.iter().flatten().map(of).collect()).unwrap_or_default()
    };
    let of = |value| median(rounds, value);
    let pairs = rounds.iter().zip(limit).filter_map(|(own, limit)| own.zip(*limit));
    let rate = of(|it| it.rate);
    println!(
        "{name:<8} {work:<36} {rate:>9.0} {:>9.0} {:>7.0} {:>9.0} {:>9.2} {:>9.2} {:>9.0} {:>17}",
        work.bandwidth(rate),
        of(|it| it.p50),
        of(|it| it.p99),
        of(|it| it.target),
        of(|it| it.client),
        median(limit, |it| it.rate),
        Ratios(pairs.map(|(own, limit)| own.rate / limit.rate).collect()),
    );
}

/// Returns the target's argument for the disk; `None` if it is not available.
fn place(options: &Compare, disk: &str) -> Result<Option<String>> {
    let name = format!("storagetm-bench-{}.img", std::process::id());
    Ok(match (disk, &options.program) {
        ("over-memory", None) => Some(format!("{}memory", serve::OVER)),
        ("over-file", None) => {
            Some(format!("{}{}", serve::OVER, image(&options.folder.join(name), false)?))
        }
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

/// Returns the operations per second of local fio on the file, at the same queue depth.
fn fio(options: &Compare, file: &str, work: Work) -> Result<f64> {
    let output = Command::new("fio")
        .args(["--name=local", "--direct=1", "--ioengine=io_uring", "--output-format=json"])
        .args(["--time_based", &format!("--runtime={}", options.how.seconds)])
        .args([format!("--filename={file}"), format!("--rw={}", fio_rw(work))])
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
