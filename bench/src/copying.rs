//! Copies a whole disk with storagetm and other programs: the same source, alternately in one run,
//! as ratios to the fastest of the others.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::compare::Compare;
use crate::load::shuffle;
use crate::median::median;
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
    NbdCopy,
    QemuImg,
    Dd,
}

/// Measures and prints everything selected.
pub(crate) fn compare(options: &Compare) -> Result<()> {
    let program = options.program.as_deref().context("name the program: --program PATH")?;
    let names: String = Copier::ALL.iter().map(|copier| format!("{:>20}", copier.name())).collect();
    println!("{:<44}{names}{:>10}{:>10}", "MiB a second", "ratio", "verified");
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
    const ALL: [Self; 5] =
        [Self::Storagetm, Self::StoragetmVerifies, Self::NbdCopy, Self::QemuImg, Self::Dd];

    fn name(self) -> &'static str {
        match self {
            Self::Storagetm => "storagetm",
            Self::StoragetmVerifies => "storagetm, verifying",
            Self::NbdCopy => "nbdcopy",
            Self::QemuImg => "qemu-img convert",
            Self::Dd => "dd",
        }
    }

    /// Returns whether it is installed and supports the source.
    fn can(self, source: Source) -> bool {
        match self {
            Self::Storagetm | Self::StoragetmVerifies => true,
            Self::NbdCopy => is_installed("nbdcopy"),
            Self::QemuImg => is_installed("qemu-img"),
            Self::Dd => source == Source::File,
        }
    }

    fn command(self, program: &Path, from: &str, to: &str) -> Command {
        let mut command = match self {
            Self::Storagetm | Self::StoragetmVerifies => Command::new(program),
            Self::NbdCopy => Command::new("nbdcopy"),
            Self::QemuImg => Command::new("qemu-img"),
            Self::Dd => Command::new("dd"),
        };
        match self {
            Self::Storagetm => command.args(["copy", "--no-verify", from, to]),
            Self::StoragetmVerifies => command.args(["copy", from, to]),
            Self::NbdCopy => command.args(["--flush", from, to]),
            Self::QemuImg => command.args(["convert", "-f", "raw", "-O", "raw", from, to]),
            Self::Dd => command
                .args([&format!("if={from}"), &format!("of={to}")])
                .args(["bs=1M", "conv=fdatasync"]),
        };
        command
    }
}

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
        let mut rates = [const { Vec::new() }; Copier::ALL.len()];
        for _ in 0..self.options.rounds {
            for (copier, rates) in Copier::ALL.into_iter().zip(&mut rates) {
                if !copier.can(self.source) {
                    continue;
                }
                match self.measure(copier, &source.0) {
                    Ok(time) => rates.push(SIZE as f64 / f64::from(1 << 20) / time.as_secs_f64()),
                    Err(error) => eprintln!("{self}, {}: not measured: {error:#}", copier.name()),
                }
            }
        }
        self.print(&rates.map(median));
        Ok(())
    }

    fn print(&self, medians: &[Option<f64>]) {
        let cell =
            |rate: &Option<f64>| rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.0}"));
        let cells: String = medians.iter().map(|rate| format!("{:>20}", cell(rate))).collect();
        let best = medians.iter().skip(2).flatten().copied().fold(0.0, f64::max);
        let ratio = |at: usize| {
            let own = medians.get(at).copied().flatten().filter(|_| best > 0.0);
            own.map_or_else(|| "-".to_owned(), |own| format!("{:.2}", own / best))
        };
        println!("{self:<44}{cells}{:>10}{:>10}", ratio(0), ratio(1));
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
        let time = run(&mut copier.command(self.program, &from, &to))?;
        same(source, &destination.0)?;
        Ok(time)
    }
}

fn run(command: &mut Command) -> Result<Duration> {
    let start = Instant::now();
    let output = command.stdin(Stdio::null()).output().context("it cannot be started")?;
    let time = start.elapsed();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{command:?}: {}", said.trim());
    Ok(time)
}

/// A wrong copy would be the fastest.
fn same(source: &Path, copied: &Path) -> Result<()> {
    let status = Command::new("cmp").arg(source).arg(copied).status()?;
    ensure!(status.success(), "the copy differs");
    Ok(())
}

/// A file in its own directory, which is removed on drop.
struct Image(PathBuf);

impl Image {
    fn new(folder: &Path, name: &str) -> Result<Self> {
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
