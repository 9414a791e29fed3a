//! The soak test (R40): copies a disk to and from a target for hours, compares all contents, and
//! kills a process in the middle of a copy each minute. Memory and descriptors of the target must
//! stay constant.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::cargo;
use crate::tally::Tally;

const MINUTE: Duration = Duration::from_mins(1);
/// The size of the disk in bytes; a copy with a fault takes two seconds.
const BYTES: u64 = 32 << 20;
const RATE: &str = "16M";
/// KiB by which memory may grow in an hour, and the tolerance.
const GROWTH: [u64; 2] = [1 << 10, 2 << 10];

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Duration
    #[arg(long, default_value_t = 120)]
    minutes: u32,
    /// The program to test, instead of a release build
    #[arg(long)]
    program: Option<PathBuf>,
}

/// Runs the soak test.
pub(crate) fn run(options: &Options) -> Result<Tally> {
    let mut tally = Tally::default();
    tally.check("soak", r40_soak(options));
    Ok(tally)
}

fn r40_soak(options: &Options) -> Result<()> {
    let built = || cargo::build_program("storagetm");
    let program = options.program.clone().map_or_else(built, Ok)?;
    let folder = cargo::target_directory()?.join("soak");
    fs::create_dir_all(&folder)?;
    let [source, lent, back] =
        ["source", "lent.img", "back"].map(|name| folder.join(name).display().to_string());
    File::create(&lent)?.set_len(BYTES)?;
    let mut serve = Command::new(&program);
    serve.args(["serve", "--json", "--no-announce", "--open", "--listen", "nvme:127.0.0.1:0"]);
    serve.args(["--listen", "nbd:127.0.0.1:0", "--writable", &lent]).stdin(Stdio::null());
    let mut target = Killed(serve.stdout(Stdio::piped()).spawn()?);
    let places = ready(&mut target.0)?;
    let (begun, all) = (Instant::now(), MINUTE * options.minutes);
    let (mut faults, mut samples) = (0, Vec::new());
    while begun.elapsed() < all {
        let mut contents = Vec::new();
        File::open("/dev/urandom")?.take(BYTES).read_to_end(&mut contents)?;
        fs::write(&source, &contents)?;
        for place in &places {
            if begun.elapsed() > MINUTE / 4 + MINUTE * faults {
                faults += 1;
                let mut copy = copy(&program, &["--rate", RATE, &source, place])?;
                thread::sleep(MINUTE / 60);
                ensure!(copy.0.try_wait()?.is_none(), "the copy ended too early");
                // A new worker hides the leaks of the old one: none is killed in the half that is
                // measured.
                if faults % 2 == 1 && begun.elapsed() < all / 2 {
                    kill_process(worker(&target)?, Signal::KILL)?;
                    ensure!(copy.0.wait()?.success(), "{place}: the copy has not gone on");
                }
            }
            for (from, to) in [(&source, place), (place, &back)] {
                let status = copy(&program, &[from, to])?.0.wait()?;
                ensure!(status.success(), "copy {from} {to}: {status}");
            }
            ensure!(fs::read(&lent)? == contents, "{place}: the disk differs from its source");
            ensure!(fs::read(&back)? == contents, "{place}: the copy differs from the disk");
            fs::write(&back, "")?;
        }
        samples.push((begun.elapsed(), sample(&target)?));
    }
    println!("# {} turns with {faults} faults", samples.len());
    is_level(&samples, all)
}

/// A process that is killed on drop.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until the target is ready; returns the URIs of its disk.
fn ready(target: &mut Child) -> Result<Vec<String>> {
    let mut lines = BufReader::new(target.stdout.take().context("no output")?).lines();
    let mut places = Vec::new();
    loop {
        let event: serde_json::Value =
            serde_json::from_str(&lines.next().context("the target has ended")??)?;
        match cargo::text(&event, "event") {
            "listening" => {
                let protocol = cargo::text(&event, "protocol").trim_end_matches("-tcp");
                places.push(format!("{protocol}://127.0.0.1:{}/lent", event["port"]));
            }
            "ready" => break,
            _ => {}
        }
    }
    // The target exits if its standard output is closed.
    thread::spawn(move || lines.map_while(io::Result::ok).for_each(drop));
    Ok(places)
}

fn copy(program: &Path, words: &[&str]) -> Result<Killed> {
    let mut copy = Command::new(program);
    copy.args(["copy", "--json", "--force", "--yes"]).args(words).env("HOME", "/nonexistent");
    copy.env_remove("XDG_STATE_HOME").stdin(Stdio::null()).stdout(Stdio::null());
    Ok(Killed(copy.spawn()?))
}

/// Returns the worker process of the target.
fn worker(target: &Killed) -> Result<Pid> {
    let parent = format!("\nPPid:\t{}\n", target.0.id());
    let mut processes = fs::read_dir("/proc")?.map_while(io::Result::ok).map(|it| it.path());
    let worker = processes.find(|process| {
        fs::read_to_string(process.join("status")).is_ok_and(|status| status.contains(&parent))
            && fs::read(process.join("cmdline")).is_ok_and(|line| line == b"storagetm\0worker\0")
    });
    let id = worker.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
    Pid::from_raw(id.context("no worker")?.parse()?).context("no worker")
}

/// Returns pages of memory in KiB, without those of files, and descriptors of the target and its worker.
fn sample(target: &Killed) -> Result<[u64; 2]> {
    let mut sum = [0; 2];
    for id in [Pid::from_child(&target.0), worker(target)?].map(Pid::as_raw_pid) {
        let status = fs::read_to_string(format!("/proc/{id}/status"))?;
        // Not those of files: the kernel drops and reads them as the machine needs.
        for name in ["RssAnon:", "RssShmem:"] {
            let memory = status.lines().find_map(|line| line.strip_prefix(name));
            let memory =
                memory.and_then(|line| line.trim().strip_suffix(" kB")).context("no RssAnon")?;
            sum[0] += memory.parse::<u64>()?;
        }
        let open =
            fs::read_dir(format!("/proc/{id}/fd")).context("only root counts descriptors")?;
        sum[1] += open.count() as u64;
    }
    Ok(sum)
}

/// Checks that the minimum of the last quarter is not above that of the third.
fn is_level(samples: &[(Duration, [u64; 2])], all: Duration) -> Result<()> {
    let min = |from: Duration, to: Duration| {
        let within = samples.iter().filter(|(at, _)| (from..to).contains(at)).map(|it| it.1);
        within.reduce(|[a, b], [c, d]| [a.min(c), b.min(d)]).context("no sample in a quarter")
    };
    let (third, last) = (min(all / 2, all / 4 * 3)?, min(all / 4 * 3, Duration::MAX)?);
    println!("# least KiB and descriptors: {third:?} in the third quarter, {last:?} in the last");
    ensure!(last[1] <= third[1], "descriptors are not given back");
    let growth = GROWTH[0] * all.as_secs() / 3600 + GROWTH[1];
    ensure!(last[0] <= third[0] + growth, "memory grows");
    Ok(())
}
