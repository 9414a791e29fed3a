//! CPUs: pinning, and CPU time of processes.

use std::fs;
use std::ops::Range;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

/// Pins the calling thread, and threads that it starts, to a CPU.
pub(crate) fn pin(processor: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(processor);
    sched_setaffinity(None, &set).with_context(|| {
        format!("this machine has no processor {processor} to pin a thread to; name another")
    })
}

/// A process that is stopped; it goes on when this is dropped.
#[derive(Debug)]
pub(crate) struct Paused(Pid);

impl Paused {
    /// Stops a process: one that polls would take part of the CPU of what is measured.
    pub(crate) fn new(pid: u32) -> Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("not a process")?;
        kill_process(pid, Signal::STOP).context("the process cannot be stopped")?;
        Ok(Self(pid))
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        // Fails only if it has exited already.
        let _ = kill_process(self.0, Signal::CONT);
    }
}

/// Returns the CPU time of the running threads of a process.
pub(crate) fn time_of(pid: u32) -> Result<Duration> {
    let threads = fs::read_dir(format!("/proc/{pid}/task"))
        .with_context(|| format!("process {pid} is not there any more"))?;
    let nanos = threads.filter_map(|thread| {
        let line = fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        line.split(' ').next()?.parse::<u64>().ok()
    });
    Ok(Duration::from_nanos(nanos.sum()))
}

/// Returns the CPU time of a process and its descendants, including those that have ended.
pub(crate) fn time_of_family(pid: u32) -> Result<Duration> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("process {pid} is not there any more"))?;
    let mut ticks = own_ticks(&line).context("/proc tells no processor time")?;
    for child in children(pid) {
        // One that has just ended is counted by its parent.
        ticks += time_of_family(child).unwrap_or_default();
    }
    Ok(ticks)
}

/// Returns the CPU time of the processes that this one has started and reaped, to a hundredth of a
/// second.
pub(crate) fn time_of_reaped() -> Result<Duration> {
    ticks(&fs::read_to_string("/proc/self/stat")?, 13..15).context("/proc tells no processor time")
}

/// Returns the CPU time of the calling thread.
pub(crate) fn time_of_thread() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Returns user and system time of a process and the children that it has reaped.
fn own_ticks(line: &str) -> Option<Duration> {
    ticks(line, 11..15)
}

/// Returns the sum of fields of proc_pid_stat(5), counted from that after the name.
fn ticks(line: &str, fields: Range<usize>) -> Option<Duration> {
    let (_, rest) = line.rsplit_once(')')?;
    let ticks = rest.split_whitespace().skip(fields.start).take(fields.len());
    let ticks = ticks.map(|text| text.parse::<u64>().ok());
    let per_second = rustix::param::clock_ticks_per_second();
    Some(Duration::from_millis(ticks.sum::<Option<u64>>()? * 1000 / per_second))
}

fn children(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists =
        threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| {
            list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()
        })
        .collect()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn paused_process_is_stopped_and_goes_on() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let state = || {
            let line = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
            line.rsplit_once(") ").unwrap().1.chars().next()
        };
        let paused = Paused::new(child.id()).unwrap();
        let until = std::time::Instant::now() + Duration::from_secs(10);
        while state() != Some('T') {
            assert!(std::time::Instant::now() < until, "{:?}", state());
        }
        drop(paused);
        while state() == Some('T') {
            assert!(std::time::Instant::now() < until);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(Paused::new(0).is_err());
    }

    #[test]
    fn name_with_spaces_is_skipped() {
        let line = "7 (a b) c) S 1 2 3 4 5 6 7 8 9 10 100 50 20 30 20 0 1 0";
        let per_second = rustix::param::clock_ticks_per_second();
        assert_eq!(own_ticks(line), Some(Duration::from_millis(200 * 1000 / per_second)));
        assert_eq!(ticks(line, 13..15), Some(Duration::from_millis(50 * 1000 / per_second)));
        assert!(time_of_family(std::process::id()).is_ok());
    }
}
