//! The clients that load a server: our own, which uses the least CPU, and common programs.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::link::Link;
use super::peer::{NAME, Server, is_installed};
use super::{Figure, SIZE, load};
use crate::client::{self, fio_rw, pinned, run};
use crate::load::Work;
use crate::processor;

/// A client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tool {
    /// Our own load.
    Raw,
    Fio,
    QemuImg,
    NbdCopy,
    /// The command that is named by an option.
    External,
}

impl fmt::Display for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Raw => "own load",
            Self::Fio => "fio",
            Self::QemuImg => "qemu-img bench",
            Self::NbdCopy => "nbdcopy",
            Self::External => "client",
        })
    }
}

impl Tool {
    /// Returns whether it is installed.
    pub(super) fn is_installed(self) -> bool {
        match self {
            Self::Raw | Self::External => true,
            Self::Fio => is_installed("fio"),
            Self::QemuImg => is_installed("qemu-img"),
            Self::NbdCopy => is_installed("nbdcopy"),
        }
    }

    /// Returns the workload that the client runs in place of `work`; `None` if it cannot: `qemu-img bench` is sequential at
    /// every size, and nbdcopy reads the whole disk in requests of its own size.
    pub(super) fn supported_workload(self, work: Work) -> Option<Work> {
        let can = match self {
            Self::Raw | Self::Fio | Self::External => true,
            Self::QemuImg => work.depth == 32 || !work.random,
            Self::NbdCopy => !work.random && !work.write,
        };
        can.then_some(Work { random: work.random && self != Self::QemuImg, ..work })
    }

    /// Measures `server` for about `time`, on `processor`. `template` is the external command.
    pub(super) fn measure(
        self,
        server: &Server,
        work: Work,
        time: Duration,
        processor: usize,
        template: &str,
    ) -> Result<Figure> {
        match self {
            Self::Raw => own_load(server, work, time, processor),
            Self::Fio => fio(server, work, time, processor),
            Self::QemuImg => qemu_img(server, work, processor),
            Self::NbdCopy => nbdcopy(server, work, processor),
            Self::External => {
                let (to, meter) = ((server.address, NAME), || server.used());
                let figures = client::measure(template, to, work, time, processor, meter)?;
                Ok(figure(figures.operations, figures.seconds, figures.used, figures.client))
            }
        }
    }
}

fn own_load(server: &Server, work: Work, time: Duration, processor: usize) -> Result<Figure> {
    processor::pin(processor)?;
    let payload = if work.write { 0 } else { work.size };
    let mut link = Link::open(server.address, payload)?;
    let sleeps = work.depth == 1;
    let own = processor::time_of_thread();
    let (done, seconds, used) = load::run(&mut link, work, time, sleeps, || server.used())?;
    let client = processor::time_of_thread().saturating_sub(own);
    Ok(figure(done as f64, seconds, used, client))
}

fn fio(server: &Server, work: Work, time: Duration, processor: usize) -> Result<Figure> {
    let ran = run(
        pinned(processor, "fio")
            .args(["--name=load", "--ioengine=nbd", "--output-format=json", "--time_based"])
            .args(["--randrepeat=0", "--norandommap", &format!("--size={SIZE}")])
            .arg(format!("--uri={}", server.uri()))
            .arg(format!("--runtime={}", time.as_secs_f64().ceil()))
            .arg(format!("--rw={}", fio_rw(work)))
            .args([format!("--bs={}", work.size), format!("--iodepth={}", work.depth)]),
        || server.used(),
    )?;
    let answer: Value = serde_json::from_slice(json(&ran.output)).context("fio printed no JSON")?;
    let side = &answer["jobs"][0][if work.write { "write" } else { "read" }];
    let (done, rate) = (side["total_ios"].as_f64(), side["iops"].as_f64());
    let (done, rate) = done.zip(rate).context("fio printed no result")?;
    ensure!(rate > 0.0, "fio did nothing");
    Ok(figure(done, done / rate, ran.used, ran.client))
}

/// Returns the JSON after the text at the start of the output.
fn json(output: &[u8]) -> &[u8] {
    let start = output.iter().position(|&byte| byte == b'{').unwrap_or_default();
    output.get(start..).unwrap_or_default()
}

fn qemu_img(server: &Server, work: Work, processor: usize) -> Result<Figure> {
    let count = if work.size > 4096 { 3 * SIZE / work.size as u64 } else { 100_000 };
    let mut command = pinned(processor, "qemu-img");
    command.args(["bench", "-f", "raw", "-c", &count.to_string()]);
    command.args(["-d", &work.depth.to_string(), "-s", &work.size.to_string()]);
    if work.write {
        command.arg("-w");
    }
    let ran = run(command.arg(server.uri()), || server.used())?;
    let output = String::from_utf8_lossy(&ran.output).into_owned();
    let seconds = output.split_once("completed in ").and_then(|(_, rest)| rest.split(' ').next());
    let seconds = seconds.and_then(|text| text.parse().ok()).context("qemu-img printed no time")?;
    Ok(figure(count as f64, seconds, ran.used, ran.client))
}

/// Counts operations of the size of the workload, although nbdcopy chooses its own.
fn nbdcopy(server: &Server, work: Work, processor: usize) -> Result<Figure> {
    let mut command = pinned(processor, "nbdcopy");
    command.args(["--connections=1", &server.uri(), "null:"]);
    let ran = run(&mut command, || server.used())?;
    let done = SIZE as f64 / work.size as f64;
    Ok(figure(done, ran.time.as_secs_f64(), ran.used, ran.client))
}

fn figure(done: f64, seconds: f64, used: Duration, client: Duration) -> Figure {
    let each = |time: Duration| time.as_secs_f64() * 1e6 / done.max(1.0);
    Figure { rate: done / seconds, used: each(used), client: each(client) }
}
