//! Copies a whole disk with storagetm and other programs: the same source, turn by turn. The ratios
//! are those to the fastest of the others in the same round, and of the verified copy also to an
//! unverified one that is read back at the speed of the disk.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::compare::Compare;
use crate::load::shuffle;
use crate::median::{Ratios, median};
use crate::nbd::peer::{NAME, Peer, Server, is_installed};

/// The size of the disk in bytes.
const SIZE: u64 = 1 << 30;

/// The source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// A file in the directory of the destination.
    File,
    /// An NBD server.
    Served(Peer),
}

/// The contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    /// Random bytes.
    Full,
    /// The same, three quarters holes.
    Sparse,
}

/// A program that copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Copier {
    Storagetm,
    StoragetmVerifies,
    /// Verifies, and does not compute the hash of the disk.
    StoragetmCompares,
    /// Reads the source past the page cache, and copies nothing.
    Reader,
    NbdCopy,
    QemuImg,
    Dd,
}

/// Measures and prints everything selected.
pub(crate) fn compare(options: &Compare) -> Result<()> {
    let program = options.program.as_deref().context("name the program: --program PATH")?;
    let names: String = Copier::ALL.iter().map(|copier| format!("{:>21}", copier.name())).collect();
    println!(
        "{:<44}{names}{:>21}{:>21}{:>21}{:>21}",
        "MiB a second", "ratio", "verified", "without a hash", "to copy and read"
    );
    for content in [Content::Full, Content::Sparse] {
        for folder in [Path::new("/dev/shm"), &options.folder] {
            for source in
                [Source::File, Source::Served(Peer::Nbdkit), Source::Served(Peer::Storagetm)]
            {
                let scene = Scene { options, program, content, folder, source };
                if scene.to_string().contains(&options.only) {
                    scene.report()?;
                }
            }
        }
    }
    Ok(())
}

impl Copier {
    const ALL: [Self; 7] = [
        Self::Storagetm,
        Self::StoragetmVerifies,
        Self::StoragetmCompares,
        Self::Reader,
        Self::NbdCopy,
        Self::QemuImg,
        Self::Dd,
    ];
    /// The number of those that come before the other programs.
    const OWN: usize = 4;

    fn name(self) -> &'static str {
        match self {
            Self::Storagetm => "storagetm",
            Self::StoragetmVerifies => "storagetm, verifying",
            Self::StoragetmCompares => "without a hash",
            Self::Reader => "dd, reading",
            Self::NbdCopy => "nbdcopy",
            Self::QemuImg => "qemu-img convert",
            Self::Dd => "dd",
        }
    }

    /// Returns whether it is installed and supports the source.
    fn can(self, source: Source) -> bool {
        match self {
            Self::Storagetm | Self::StoragetmVerifies | Self::StoragetmCompares | Self::Reader => {
                true
            }
            Self::NbdCopy => is_installed("nbdcopy"),
            Self::QemuImg => is_installed("qemu-img"),
            Self::Dd => source == Source::File,
        }
    }

    fn command(self, program: &Path, source: &Path, from: &str, to: &str) -> Command {
        let mut command = match self {
            Self::Storagetm | Self::StoragetmVerifies | Self::StoragetmCompares => {
                Command::new(program)
            }
            Self::NbdCopy => Command::new("nbdcopy"),
            Self::QemuImg => Command::new("qemu-img"),
            Self::Dd | Self::Reader => Command::new("dd"),
        };
        match self {
            Self::Storagetm => command.args(["copy", "--no-verify", from, to]),
            Self::StoragetmVerifies => command.args(["copy", from, to]),
            Self::StoragetmCompares => command.args(["copy", "--no-hash", from, to]),
            Self::NbdCopy => command.args(["--flush", from, to]),
            // By default it does not flush.
            Self::QemuImg => command
                .args(["convert", "-t", "writeback", "-f", "raw", "-O", "raw"])
                .args([from, to]),
            Self::Reader => command.arg(format!("if={}", source.display())).args([
                "of=/dev/null",
                "bs=1M",
                "iflag=direct",
            ]),
            Self::Dd => command
                .args([&format!("if={from}"), &format!("of={to}")])
                .args(["bs=1M", "conv=fdatasync"]),
        };
        command
    }
}

/// The rates of all programs in MiB a second, in the order of [`Copier::ALL`]; `None` if not
/// measured.
type Round = [Option<f64>; Copier::ALL.len()];

/// One line of the table.
struct Scene<'a> {
    options: &'a Compare,
    program: &'a Path,
    content: Content,
    folder: &'a Path,
    source: Source,
}

impl std::fmt::Display for Scene<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let content = match self.content {
            Content::Full => "full",
            Content::Sparse => "sparse",
        };
        let place = if self.folder == self.options.folder { "disk" } else { "memory" };
        match self.source {
            Source::File => f.pad(&format!("{content}, {place}: file to file")),
            Source::Served(peer) => f.pad(&format!("{content}, {place}: {peer} to file")),
        }
    }
}

impl Scene<'_> {
    fn report(&self) -> Result<()> {
        let source = Image::new(self.folder, NAME)?;
        fill(&source.0, self.content)?;
        let rounds: Vec<Round> =
            (0..self.options.rounds(3)).map(|_| self.round(&source.0)).collect();
        self.print(&rounds);
        Ok(())
    }

    fn round(&self, source: &Path) -> Round {
        Copier::ALL.map(|copier| {
            let time = copier.can(self.source).then(|| self.measure(copier, source))?;
            let time = time.inspect_err(|error| {
                eprintln!("{self}, {}: not measured: {error:#}", copier.name())
            });
            Some(SIZE as f64 / f64::from(1 << 20) / time.ok()?.as_secs_f64())
        })
    }

    fn print(&self, rounds: &[Round]) {
        let rates = |at: usize| rounds.iter().filter_map(|round| round[at]).collect();
        let rate = |at| median(rates(at)).map_or_else(|| "-".to_owned(), |it| format!("{it:.0}"));
        let cells: String = (0..Copier::ALL.len()).map(|at| format!("{:>21}", rate(at))).collect();
        let ratios: String = [0, 1, 2]
            .map(|own| summary(rounds, |round| Some(round[own]? / fastest_other(round)?)))
            .map(|ratio| format!("{ratio:>21}"))
            .concat();
        let read = summary(rounds, |round| Some(round[1]? * (1.0 / round[0]? + 1.0 / round[3]?)));
        println!("{self:<44}{cells}{ratios}{read:>21}");
    }

    fn measure(&self, copier: Copier, source: &Path) -> Result<Duration> {
        let server = match self.source {
            Source::File => None,
            Source::Served(peer) => Some(Server::start(peer, self.program, source, false, None)?),
        };
        let destination = Image::new(self.folder, "copy")?;
        let from = match &server {
            Some(server) => server.uri(),
            None => source.display().to_string(),
        };
        let to = destination.0.display().to_string();
        let time = run(&mut copier.command(self.program, source, &from, &to))?;
        if copier != Copier::Reader {
            same(source, &destination.0)?;
        }
        Ok(time)
    }
}

/// Returns the rate of the fastest other program.
fn fastest_other(round: &Round) -> Option<f64> {
    round.iter().skip(Copier::OWN).flatten().copied().reduce(f64::max)
}

/// Returns a ratio within each round.
fn summary(rounds: &[Round], ratio: impl Fn(&Round) -> Option<f64>) -> Ratios {
    Ratios(rounds.iter().filter_map(ratio).collect())
}

pub(crate) fn run(command: &mut Command) -> Result<Duration> {
    let start = Instant::now();
    let output = command.stdin(Stdio::null()).output().context("it cannot be started")?;
    let time = start.elapsed();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{command:?}: {}", said.trim());
    Ok(time)
}

/// A wrong copy would be the fastest.
pub(crate) fn same(source: &Path, copied: &Path) -> Result<()> {
    let status = Command::new("cmp").arg(source).arg(copied).status()?;
    ensure!(status.success(), "the copy differs");
    Ok(())
}

/// A file in its own directory, which is removed on drop.
pub(crate) struct Image(pub(crate) PathBuf);

impl Image {
    pub(crate) fn new(folder: &Path, name: &str) -> Result<Self> {
        let folder = folder.join(format!("storagetm-bench-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self(folder.join(name).with_extension("img")))
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // The directory may have been removed already.
        let _ = self.0.parent().map(fs::remove_dir_all);
    }
}

fn fill(path: &Path, content: Content) -> Result<()> {
    let file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    file.set_len(SIZE)?;
    let (mut seed, mut chunk) = (0x9e37_79b9_7f4a_7c15, Vec::new());
    for at in 0..SIZE >> 20 {
        if content == Content::Sparse && at % 4 != 0 {
            continue;
        }
        chunk.clear();
        (0..1 << 17).try_for_each(|_| chunk.write_all(&shuffle(&mut seed).to_le_bytes()))?;
        file.write_all_at(&chunk, at << 20)?;
    }
    Ok(file.sync_all()?)
}
