//! Compares storagetm with the limit of the machine, in one run.

#![forbid(unsafe_code)]

mod aead;
mod client;
mod compare;
mod copying;
mod count;
mod latency;
mod load;
mod loopback;
mod median;
mod nbd;
mod processor;
mod serve;
mod socket;
mod target;
mod web;
mod wire;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use export::Pool;

use load::{Figures, Work};
use socket::Cipher;
use wire::Manner;

/// Compares storagetm with the limit of the machine.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measures every workload on every disk, and the limit of the machine.
    Run(compare::Compare),
    /// Loads a target that is running.
    Load(Load),
    /// Measures the limit of the machine: the same messages without a protocol.
    Loopback(Loopback),
    /// Serves a disk, to be loaded, until standard input ends.
    Serve(serve::Serve),
    /// Measures the limit of the machine for TLS: the cipher alone.
    Cipher(aead::Options),
    /// Sends requests to the target in memory, to count its instructions.
    Count(count::Count),
}

#[derive(Debug, clap::Args)]
struct Loopback {
    /// Only workloads whose description contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Processor of the server.
    #[arg(long, default_value_t = 0)]
    server_processor: usize,
    #[command(flatten)]
    how: How,
}

#[derive(Debug, clap::Args)]
struct Load {
    /// Where the target listens.
    address: SocketAddr,
    /// NQN of the subsystem.
    nqn: String,
    /// Measure writes, too: they destroy what is on the disk.
    #[arg(long)]
    write: bool,
    /// Only workloads whose description contains this, such as `4 KiB random read, depth 32`.
    #[arg(long, default_value = "")]
    only: String,
    #[command(flatten)]
    how: How,
}

#[derive(Debug, Clone, Copy, clap::Args)]
struct How {
    /// Seconds for each figure.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Processor of the load generator.
    #[arg(long, default_value_t = 1)]
    processor: usize,
    /// The load generator sleeps when it has nothing to do, instead of watching for the next answer.
    #[arg(long)]
    sleep: bool,
    /// Ask for header digests.
    #[arg(long)]
    header_digest: bool,
    /// Ask for data digests.
    #[arg(long)]
    data_digest: bool,
    /// Measure each workload in TLS with AES of so many bits, too; `load` measures only that.
    #[arg(long, value_name = "BITS")]
    tls: Option<Cipher>,
}

impl How {
    fn time(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}

/// Memory of the load generator, in bytes.
const MEMORY: usize = 64 << 20;

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Run(options) if options.nbd => nbd::compare(&options),
        Command::Run(options) if options.web => web::compare(&options),
        Command::Run(options) if options.copy => copying::compare(&options),
        Command::Run(options) => {
            let done = compare::compare(&options);
            compare::clean(&options);
            done
        }
        Command::Load(load) => load_target(&load),
        Command::Loopback(options) => measure_loopback(&options),
        Command::Serve(options) => serve::serve(&options),
        Command::Cipher(options) => aead::measure(&options),
        Command::Count(options) => count::count(options),
    }
}

fn measure_loopback(options: &Loopback) -> Result<()> {
    let Loopback { server_processor, how, .. } = *options;
    for work in Work::ALL.into_iter().filter(|work| work.to_string().contains(&options.only)) {
        let processors = [server_processor, how.processor];
        let limit = loopback::run(work, how.time(), processors, how.sleep)?;
        println!(
            "{work:<36} {:>9.0} ops/s, {:.2} us of the server each",
            limit.rate, limit.server_time
        );
    }
    Ok(())
}

fn load_target(load: &Load) -> Result<()> {
    for work in Work::ALL {
        if (load.write || !work.write) && work.to_string().contains(&load.only) {
            let (how, meter) = (load.how, || Ok(Duration::ZERO));
            let figures = measure(load.address, &load.nqn, work, how, how.tls, meter)?;
            println!("{work:<36} {}", describe(work, &figures));
        }
    }
    Ok(())
}

/// Runs a workload on a connection of its own.
fn measure(
    address: SocketAddr,
    nqn: &str,
    work: Work,
    how: How,
    cipher: Option<Cipher>,
    meter: impl Fn() -> Result<Duration>,
) -> Result<Figures> {
    processor::pin(how.processor)?;
    let account = Pool::new(MEMORY).open();
    let How { header_digest, data_digest, .. } = how;
    let manner = Manner { header_digest, data_digest, cipher };
    let mut attached = wire::attach(address, nqn, work.depth, manner, |len| account.take(len))?;
    load::run(&mut attached, &account, work, how.time(), how.sleep, meter)
}

fn describe(work: Work, figures: &Figures) -> String {
    format!(
        "{:>9.0} ops/s {:>8.1} MiB/s   p50 {:>7.1} us   p99 {:>7.1} us",
        figures.rate(),
        work.bandwidth(figures.rate()),
        figures.latency(50),
        figures.latency(99)
    )
}
