//! Compares NBD servers: each workload by each client against each server, alternately in one run,
//! as ratios to the best of the others.

mod link;
mod load;
pub(crate) mod peer;
mod reply;
mod tool;

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::compare::{Compare, rounds};
use crate::load::Work;
use crate::median::{Ratios, median};
use crate::serve;
use peer::{Peer, Server};
use tool::Tool;

/// The size of the served file in bytes.
const SIZE: u64 = 1 << 30;

/// The result of one client with one server.
#[derive(Debug, Clone, Copy)]
struct Figure {
    /// Operations per second.
    rate: f64,
    /// CPU time of the server per operation, in microseconds.
    used: f64,
    /// CPU time of the client per operation, in microseconds.
    client: f64,
}

/// A row of the table: a client, a workload, and a file.
#[derive(Debug, Clone, Copy)]
struct Line {
    disk: Disk,
    tool: Tool,
    work: Work,
}

/// Where the served file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disk {
    /// In memory.
    Memory,
    /// On a disk; with direct I/O by the servers that support it.
    File,
}

impl Line {
    /// Requests of 4 KiB, and streams of 128 KiB.
    const WORKS: [Work; 8] = [
        Work { write: false, size: 4096, random: true, depth: 1 },
        Work { write: false, size: 4096, random: true, depth: 32 },
        Work { write: false, size: 4096, random: true, depth: 128 },
        Work { write: true, size: 4096, random: true, depth: 1 },
        Work { write: true, size: 4096, random: true, depth: 32 },
        Work { write: true, size: 4096, random: true, depth: 128 },
        Work { write: false, size: 128 << 10, random: false, depth: 16 },
        Work { write: true, size: 128 << 10, random: false, depth: 16 },
    ];

    /// Returns all rows for one file.
    fn all(disk: Disk, tools: &[Tool]) -> impl Iterator<Item = Self> {
        tools.iter().copied().flat_map(move |tool| {
            let works =
                Self::WORKS.into_iter().filter_map(move |work| tool.supported_workload(work));
            works.map(move |work| Self { disk, tool, work })
        })
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let disk = match self.disk {
            Disk::Memory => "memory",
            Disk::File => "file",
        };
        f.pad(&format!("{disk}, {}: {}", self.tool, self.work))
    }
}

/// Measures and prints everything selected.
pub(crate) fn compare(options: &Compare) -> Result<()> {
    let program = options.program.as_deref().context("name the program: --program PATH")?;
    let peers: Vec<Peer> = Peer::ALL.into_iter().filter(Peer::is_installed).collect();
    println!("{:<62} {}", "", peers.iter().map(|peer| format!("{peer:>22}")).collect::<String>());
    println!(
        "{:<62} operations a second / us of the server / us of the client for each; ratios to the best other",
        ""
    );
    let tools: &[Tool] = match options.client {
        Some(_) => &[Tool::External],
        None => &[Tool::Raw, Tool::Fio, Tool::QemuImg, Tool::NbdCopy],
    };
    for disk in [Disk::Memory, Disk::File] {
        let lines: Vec<Line> = Line::all(disk, tools)
            .filter(|line| line.to_string().contains(&options.only))
            .filter(|line| line.tool.is_installed())
            .collect();
        if lines.is_empty() {
            continue;
        }
        let image = Image::new(options, disk)?;
        for line in lines {
            let bench = Bench { options, program, image: &image.0, line };
            report(line, &peers, &bench.rounds(&peers));
        }
    }
    Ok(())
}

/// The served file; removed on drop, with its directory.
struct Image(PathBuf);

impl Image {
    fn new(options: &Compare, disk: Disk) -> Result<Self> {
        let folder = match disk {
            Disk::Memory => Path::new("/dev/shm"),
            Disk::File => &options.folder,
        };
        let folder = folder.join(format!("storagetm-bench-{}", std::process::id()));
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        let path = folder.join(peer::NAME).with_extension("img");
        let file = File::create(&path);
        serve::fill_to(&file.with_context(|| format!("cannot make {}", path.display()))?, SIZE)?;
        Ok(Self(path.canonicalize()?))
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // The directory may have been removed already.
        let _ = self.0.parent().map(std::fs::remove_dir_all);
    }
}

/// A row of the table while it is measured.
struct Bench<'a> {
    options: &'a Compare,
    program: &'a Path,
    image: &'a Path,
    line: Line,
}

impl Bench<'_> {
    /// The results of each round for each server; `None` if it could not be measured.
    fn rounds(&self, peers: &[Peer]) -> Vec<Vec<Option<Figure>>> {
        rounds(self.options.rounds(3), peers, |peer| {
            self.measure(*peer)
                .inspect_err(|error| eprintln!("{}, {peer}: not measured: {error:#}", self.line))
                .ok()
        })
    }

    /// At queue depth 1 both sides share a CPU: on two, wake-up latency would be measured.
    fn measure(&self, peer: Peer) -> Result<Figure> {
        let at = self.options.target_processor;
        let client = if self.line.work.depth == 1 { at } else { self.options.how.processor };
        let direct = self.line.disk == Disk::File;
        let server = Server::start(peer, self.program, self.image, direct, Some(at))?;
        let template = self.options.client.as_deref().unwrap_or_default();
        self.line.tool.measure(&server, self.line.work, self.options.how.time(), client, template)
    }
}

/// Prints the medians of a row, and the ratios of the first server to the best of the others in the
/// same round: of the rate, and of the CPU time, which is more significant on a busy machine.
fn report(line: Line, peers: &[Peer], rounds: &[Vec<Option<Figure>>]) {
    let cells: String = (0..peers.len()).map(|at| format!("{:>22}", cell(rounds, at))).collect();
    let ratios = |ratio: fn(Figure, &[Figure]) -> f64| {
        let of = |round: &Vec<Option<Figure>>| {
            let others: Vec<Figure> = round.iter().skip(1).copied().flatten().collect();
            Some(ratio(round.first().copied().flatten()?, &others)).filter(|it| it.is_finite())
        };
        Ratios(rounds.iter().filter_map(of).collect())
    };
    let rate = ratios(|own, others| own.rate / best(others, |it| it.rate, f64::max));
    let used = ratios(|own, others| best(others, |it| it.used, f64::min) / own.used);
    println!("{line:<62}{cells} {rate:>18} {used:>18}");
}

fn best(figures: &[Figure], of: fn(&Figure) -> f64, better: fn(f64, f64) -> f64) -> f64 {
    figures.iter().map(of).reduce(better).unwrap_or(f64::NAN)
}

/// The medians of a server.
fn cell(rounds: &[Vec<Option<Figure>>], at: usize) -> String {
    let of = |value: fn(Figure) -> f64| {
        median(rounds.iter().filter_map(|round| round[at]).map(value).collect())
    };
    match (of(|it| it.rate), of(|it| it.used), of(|it| it.client)) {
        (Some(rate), Some(used), Some(client)) => format!("{rate:.0} / {used:.1} / {client:.1}"),
        _ => "-".to_owned(),
    }
}
