//! External client programs: how they are run, and what they report.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::load::{Figures, Work};
use crate::processor;

/// A client program that has run.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) output: Vec<u8>,
    pub(crate) time: Duration,
    /// CPU time of the server.
    pub(crate) used: Duration,
    /// CPU time of the client.
    pub(crate) client: Duration,
}

/// Runs a client. `meter` returns the CPU time of the server.
pub(crate) fn run(command: &mut Command, meter: impl Fn() -> Result<Duration>) -> Result<Run> {
    let (start, before, reaped) = (Instant::now(), meter()?, processor::time_of_reaped()?);
    let output = command.stdin(Stdio::null()).output().context("a client cannot be started")?;
    let time = start.elapsed();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{command:?}: {}", stderr.trim());
    let client = processor::time_of_reaped()?.saturating_sub(reaped);
    // A server with a process per connection counts it only when that has ended.
    std::thread::sleep(Duration::from_millis(50));
    Ok(Run { output: output.stdout, time, used: meter()?.saturating_sub(before), client })
}

/// Returns the command that runs `program` on a processor.
pub(crate) fn pinned(processor: usize, program: &str) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", &processor.to_string(), program]);
    command
}

/// Returns the workload in the words of fio and SPDK.
pub(crate) fn fio_rw(work: Work) -> &'static str {
    match (work.random, work.write) {
        (true, false) => "randread",
        (true, true) => "randwrite",
        (false, false) => "read",
        (false, true) => "write",
    }
}

/// Runs the shell command `template` on a processor against the export `name` at `address`, for
/// about `time`. Its operations per second are the first number of the last line that it prints.
pub(crate) fn measure(
    template: &str,
    (address, name): (SocketAddr, &str),
    work: Work,
    time: Duration,
    processor: usize,
    meter: impl Fn() -> Result<Duration>,
) -> Result<Figures> {
    let seconds = time.as_secs_f64().ceil().max(1.0);
    let text = [
        ("{address}", address.ip().to_string()),
        ("{port}", address.port().to_string()),
        ("{name}", name.to_owned()),
        ("{size}", work.size.to_string()),
        ("{depth}", work.depth.to_string()),
        ("{rw}", fio_rw(work).to_owned()),
        ("{seconds}", seconds.to_string()),
        ("{processor}", processor.to_string()),
    ]
    .into_iter()
    .fold(template.to_owned(), |text, (name, value)| text.replace(name, &value));
    let Run { output, used, client, .. } = run(pinned(processor, "sh").args(["-c", &text]), meter)?;
    let output = String::from_utf8_lossy(&output).into_owned();
    let rate = rate(&output).with_context(|| format!("the last line has no number: {output}"))?;
    ensure!(rate > 0.0, "the client did nothing: {output}");
    Ok(Figures { operations: rate * seconds, seconds, used, client, latency: None })
}

/// Returns the first number of the last line that is not empty.
fn rate(output: &str) -> Option<f64> {
    let line = output.lines().rfind(|line| !line.trim().is_empty())?;
    line.split(|c: char| !c.is_ascii_digit() && c != '.').find_map(|word| word.parse().ok())
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn rate_is_the_first_number_of_the_last_line() {
        let perf = "Device 1: 7\nTotal        :   56123.40     219.23     17.51\n\n";
        assert_eq!(rate(perf), Some(56123.4));
        assert_eq!(rate("8123\n"), Some(8123.0));
        assert_eq!((rate(""), rate("1\nnothing.\n")), (None, None));
    }

    #[test]
    fn client_gets_the_workload_and_its_time_is_counted() {
        if programs::lacks("client", &["taskset"]) {
            return;
        }
        let work = Work { write: true, size: 4096, random: true, depth: 32 };
        let template = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; \
                        test {address}:{port}/{name} = 127.0.0.1:7/disk && \
                        test {rw},{size},{depth},{processor} = randwrite,4096,32,0 && echo 5";
        let (to, time) = (([127, 0, 0, 1], 7).into(), Duration::from_millis(10));
        let meter = || Ok(Duration::ZERO);
        let figures = measure(template, (to, "disk"), work, time, 0, meter).unwrap();
        assert_eq!(figures.rate(), 5.0);
        assert!(figures.client > Duration::ZERO);
    }
}
