//! Copies a compressed disk image from a web server to a file: storagetm, and a pipe of other programs,
//! turn by turn. The ratios are those to the pipe in the same round.

use std::fmt::{self, Write as _};
use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::compare::Compare;
use crate::copying::{Image, run, same};
use crate::load::shuffle;
use crate::median::{Ratios, median};

/// The size of the disk in bytes.
const SIZE: u64 = 2 << 30;

/// What copies. The pipe reads back with `sha256sum`, past the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Copier {
    Unverified,
    Verified,
    VerifiedDuring,
    Pipe,
    PipeReadsBack,
}

impl Copier {
    const ALL: [Self; 5] =
        [Self::Unverified, Self::Verified, Self::VerifiedDuring, Self::Pipe, Self::PipeReadsBack];

    fn name(self) -> &'static str {
        match self {
            Self::Unverified => "--no-verify",
            Self::Verified => "storagetm",
            Self::VerifiedDuring => "--verify=during",
            Self::Pipe => "pipe",
            Self::PipeReadsBack => "pipe, reading back",
        }
    }
}

/// How the image is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packing {
    Raw,
    Zstd,
}

/// The seconds of one round, in the order of [`Copier::ALL`].
type Round = [f64; Copier::ALL.len()];

/// Measures and prints everything selected.
pub(crate) fn compare(options: &Compare) -> Result<()> {
    let program = options.program.as_deref().context("name the program: --program PATH")?;
    let names: String = Copier::ALL.iter().map(|copier| format!("{:>20}", copier.name())).collect();
    let ratios = ["--no-verify", "verified", "during", "verified, read back", "during, read back"];
    let ratios: String = ratios.map(|name| format!("{name:>20}")).concat();
    println!("{:<36}{names}{ratios}", "seconds");
    let image = Image::new(&options.folder, "image")?;
    fill(&image.0)?;
    let packed = image.0.with_extension("img.zst");
    let zstd = Command::new("zstd").args(["-q", "-T0", "-o"]).arg(&packed).arg(&image.0).status();
    ensure!(zstd.context("zstd")?.success(), "zstd has failed");
    let folder = image.0.parent().context("no folder")?;
    for limit in std::iter::once(None).chain(options.network.map(Some)) {
        let server = Server::start(folder, limit)?;
        for packing in [Packing::Zstd, Packing::Raw] {
            for to in [&*options.folder, Path::new("/dev/shm")] {
                let from = if packing == Packing::Raw { &image.0 } else { &packed };
                let scene = Scene { options, program, image: &image.0, from, server: &server, to };
                if scene.to_string().contains(&options.only) {
                    scene.report()?;
                }
            }
        }
    }
    Ok(())
}

/// One line of the table.
struct Scene<'a> {
    options: &'a Compare,
    program: &'a Path,
    image: &'a Path,
    /// The file that the server gives.
    from: &'a Path,
    server: &'a Server,
    to: &'a Path,
}

impl fmt::Display for Scene<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let packed = if self.from == self.image { "raw" } else { "zstd" };
        let place = if self.in_memory() { "memory" } else { "disk" };
        let mut text = format!("{packed} to {place}");
        if let Some(limit) = self.server.limit {
            write!(text, ", network {limit} MiB/s")?;
        }
        f.pad(&text)
    }
}

impl Scene<'_> {
    fn in_memory(&self) -> bool {
        self.to != self.options.folder
    }

    fn report(&self) -> Result<()> {
        let hash = Command::new("sha256sum").arg(self.from).output()?.stdout;
        let hash = String::from_utf8(hash)?;
        let hash = hash.split_whitespace().next().context("sha256sum printed nothing")?;
        let mut rounds: Vec<Round> = Vec::new();
        for _ in 0..self.options.rounds(5) {
            let mut round = [0.0; Copier::ALL.len()];
            for (seconds, copier) in round.iter_mut().zip(Copier::ALL) {
                *seconds = self.measure(copier, hash)?.as_secs_f64();
            }
            rounds.push(round);
        }
        let column = |at: usize| median(rounds.iter().map(|round| round[at]).collect());
        let seconds: String = (0..Copier::ALL.len())
            .map(|at| format!("{:>20}", format!("{:.2}", column(at).unwrap_or(0.0))))
            .collect();
        let ratio = |own: usize, other: usize| {
            Ratios(rounds.iter().map(|round| round[other] / round[own]).collect())
        };
        let ratios = [ratio(0, 3), ratio(1, 3), ratio(2, 3), ratio(1, 4), ratio(2, 4)];
        let ratios: String = ratios.iter().map(|ratios| format!("{ratios:>20}")).collect();
        println!("{self:<36}{seconds}{ratios}");
        Ok(())
    }

    fn measure(&self, copier: Copier, hash: &str) -> Result<Duration> {
        let destination = Image::new(self.to, "copy")?;
        let time = run(&mut self.command(copier, hash, &destination.0))?;
        same(self.image, &destination.0)?;
        Ok(time)
    }

    fn command(&self, copier: Copier, hash: &str, to: &Path) -> Command {
        let name = self.from.file_name().unwrap_or_default().display();
        let url = format!("http://127.0.0.1:{}/{name}", self.server.port);
        let options: &[&str] = match copier {
            Copier::Unverified => &["--no-verify"],
            Copier::Verified => &[],
            Copier::VerifiedDuring => &["--verify=during"],
            Copier::Pipe | Copier::PipeReadsBack => {
                let mut command = Command::new("sh");
                command.args(["-c", &self.pipe(&url, to, copier == Copier::PipeReadsBack)]);
                return command;
            }
        };
        let mut command = Command::new(self.program);
        command.args(["copy", "--sha256", hash]).args(options).arg(url).arg(to);
        command
    }

    fn pipe(&self, url: &str, to: &Path, reads_back: bool) -> String {
        let (direct, to) = (if self.in_memory() { "" } else { "direct" }, to.display());
        let unpack = if self.from == self.image { "" } else { "| zstd -dcq" };
        let mut text = format!(
            "curl -fsS {url} {unpack} | dd of={to} bs=4M iflag=fullblock oflag={direct} conv=fsync"
        );
        if reads_back {
            text += &format!("; dd if={to} bs=4M iflag={direct} | sha256sum");
        }
        text.replace("oflag= ", "").replace("iflag= ", "")
    }
}

/// nginx on the loopback; stopped on drop.
struct Server {
    child: Child,
    port: u16,
    /// Maximum rate in MiB a second.
    limit: Option<u64>,
    folder: PathBuf,
}

impl Server {
    fn start(files: &Path, limit: Option<u64>) -> Result<Self> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let folder = files.join("nginx");
        fs::create_dir_all(&folder)?;
        let (files, own) = (files.canonicalize()?, folder.canonicalize()?);
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {}/{name}; ", own.display()))
            .concat();
        let rate = limit.map(|limit| format!("limit_rate {limit}m; ")).unwrap_or_default();
        let configuration = format!(
            "daemon off; master_process off; pid {own}/pid; error_log {own}/log; events {{ }} http {{ access_log off; \
             sendfile on; {rate}{temporary} server {{ listen 127.0.0.1:{port}; root {files}; }} }}",
            own = own.display(),
            files = files.display(),
        );
        let path = own.join("nginx.conf");
        fs::write(&path, configuration)?;
        let child = Command::new("nginx").arg("-c").arg(&path).stderr(Stdio::null()).spawn();
        let server = Self { child: child.context("nginx")?, port, limit, folder };
        for _ in 0..100 {
            if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return Ok(server);
            }
            thread::sleep(Duration::from_millis(50));
        }
        anyhow::bail!("nginx does not listen")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Writes an image that packs to about a third: words of a dictionary, and noise.
fn fill(path: &Path) -> Result<()> {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let mut seed = 0x9e37_79b9_7f4a_7c15;
    let words: Vec<[u8; 8]> = (0..4096).map(|_| shuffle(&mut seed).to_le_bytes()).collect();
    for _ in 0..SIZE / 8 {
        let random = shuffle(&mut seed);
        let index = usize::try_from(random >> 8 & 4095)? & usize::try_from(random >> 24 & 4095)?;
        let noise = random.to_le_bytes();
        file.write_all(if random & 7 == 0 { &noise } else { &words[index] })?;
    }
    Ok(file.into_inner()?.sync_all()?)
}
