//! The load generator: one I/O queue, kept at a queue depth, pinned to a CPU.

use std::fmt;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use export::{Account, Buffer};
use nvme::command::IoCommand;
use nvme::host::{Completion, Payload, Step};

use crate::latency::Latency;
use crate::processor;
use crate::wire::{Attached, reason};

/// A workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) write: bool,
    /// Bytes of each request.
    pub(crate) size: usize,
    pub(crate) random: bool,
    /// The queue depth.
    pub(crate) depth: u16,
}

impl Work {
    /// The workloads: 4 KiB random at queue depth 1, 32 and 128; 128 KiB sequential at 32.
    pub(crate) const ALL: [Self; 8] = [
        Self::small(false, 1),
        Self::small(false, 32),
        Self::small(false, 128),
        Self::small(true, 1),
        Self::small(true, 32),
        Self::small(true, 128),
        Self::large(false),
        Self::large(true),
    ];

    const fn small(write: bool, depth: u16) -> Self {
        Self { write, size: 4096, random: true, depth }
    }

    const fn large(write: bool) -> Self {
        Self { write, size: 128 << 10, random: false, depth: 32 }
    }

    /// Returns the MiB per second of `rate` operations per second.
    pub(crate) fn bandwidth(self, rate: f64) -> f64 {
        rate * self.size as f64 / f64::from(1 << 20)
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let order = if self.random { "random" } else { "sequential" };
        let way = if self.write { "write" } else { "read" };
        let text = format!("{} KiB {order} {way}, depth {}", self.size / 1024, self.depth);
        f.pad(&text)
    }
}

/// The result of a measurement.
#[derive(Debug, Clone)]
pub(crate) struct Figures {
    pub(crate) operations: f64,
    pub(crate) seconds: f64,
    /// `None` for an external client.
    pub(crate) latency: Option<Latency>,
    /// CPU time of the target.
    pub(crate) used: Duration,
    /// CPU time of the client.
    pub(crate) client: Duration,
}

impl Figures {
    /// Returns operations per second.
    pub(crate) fn rate(&self) -> f64 {
        self.operations / self.seconds
    }

    /// Returns a CPU time per operation, in microseconds.
    pub(crate) fn each(&self, time: Duration) -> f64 {
        time.as_secs_f64() * 1e6 / self.operations.max(1.0)
    }

    /// Returns a percentile of the latency in microseconds, 0 if it is not known.
    pub(crate) fn latency(&self, percent: u64) -> f64 {
        let latency = self.latency.as_ref().map(|latency| latency.percentile(percent));
        latency.unwrap_or_default().as_secs_f64() * 1e6
    }
}

/// Runs `work` for `time`, after a warm-up of a tenth of it. `meter` returns the CPU time of the
/// target.
pub(crate) fn run(
    attached: &mut Attached,
    account: &Account,
    work: Work,
    time: Duration,
    sleeps: bool,
    meter: impl Fn() -> Result<Duration>,
) -> Result<Figures> {
    let mut generator = Generator::new(attached, account, work, sleeps)?;
    generator.go(Instant::now() + time / 10)?;
    generator.reset();
    let (start, before, own) = (Instant::now(), meter()?, processor::time_of_thread());
    generator.go(start + time)?;
    let (operations, seconds) = (generator.operations as f64, start.elapsed().as_secs_f64());
    let used = meter()?.saturating_sub(before);
    let client = processor::time_of_thread().saturating_sub(own);
    let latency = Some(generator.latency.clone());
    generator.drain()?;
    Ok(Figures { operations, seconds, latency, used, client })
}

struct Generator<'a> {
    attached: &'a mut Attached,
    work: Work,
    sleeps: bool,
    places: Places,
    slots: Vec<Slot>,
    idle: Vec<u32>,
    now: Instant,
    operations: u64,
    latency: Latency,
}

struct Slot {
    began: Instant,
    read: Option<Buffer>,
    written: Option<Rc<Buffer>>,
}

impl<'a> Generator<'a> {
    fn new(
        attached: &'a mut Attached,
        account: &Account,
        work: Work,
        sleeps: bool,
    ) -> Result<Self> {
        let nlb = work.size as u64 >> attached.shift;
        let places = Places::new(attached.blocks, nlb, work.random)?;
        let now = Instant::now();
        let slots =
            (0..work.depth).map(|_| Slot::new(account, work, now)).collect::<Result<_>>()?;
        let idle = (0..work.depth.into()).collect();
        let latency = Latency::default();
        Ok(Self { attached, work, sleeps, places, slots, idle, now, operations: 0, latency })
    }

    fn reset(&mut self) {
        (self.operations, self.latency) = (0, Latency::default());
    }

    fn go(&mut self, until: Instant) -> Result<()> {
        while self.now < until {
            while let Some(tag) = self.idle.pop() {
                self.submit(tag)?;
            }
            self.turn()?;
        }
        Ok(())
    }

    fn drain(&mut self) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(10);
        while self.attached.io.queue.in_flight() != 0 {
            self.turn()?;
            if self.now > until {
                bail!("the target does not answer any more");
            }
        }
        Ok(())
    }

    fn turn(&mut self) -> Result<()> {
        self.take_steps()?;
        self.attached.io.flush()?;
        let came = self.attached.io.receive()?;
        if !came && self.sleeps {
            self.attached.io.sleep()?;
        }
        self.now = Instant::now();
        self.take_steps()
    }

    fn take_steps(&mut self) -> Result<()> {
        while let Some(step) = self.attached.io.poll() {
            match step {
                Step::Completed(done) => self.done(done)?,
                Step::Close(end) => bail!("{}", reason(end)),
                step => bail!("unexpected: {step:?}"),
            }
        }
        Ok(())
    }

    fn done(&mut self, done: Completion) -> Result<()> {
        if !done.status.is_success() {
            bail!("the target failed a request: {}", done.status);
        }
        let slot = self.slots.get_mut(done.tag as usize).context("an answer to nothing")?;
        slot.read = done.buffer;
        self.latency.add(self.now - slot.began);
        self.operations += 1;
        self.idle.push(done.tag);
        Ok(())
    }

    fn submit(&mut self, tag: u32) -> Result<()> {
        let slot = &mut self.slots[tag as usize];
        slot.began = self.now;
        let (slba, nlb) = self.places.next();
        let (command, payload) = match (&slot.written, slot.read.take()) {
            (Some(buffer), _) => (
                IoCommand::Write { nsid: 1, slba, nlb, fua: false, limited_retry: false },
                Payload::Send(buffer.clone()),
            ),
            (None, Some(buffer)) => (
                IoCommand::Read { nsid: 1, slba, nlb, fua: false, limited_retry: false },
                Payload::Receive(buffer),
            ),
            (None, None) => bail!("a request of {} has no memory", self.work),
        };
        if self.attached.io.queue.submit(command.emit(), payload, tag).is_err() {
            bail!("the queue is smaller than the depth of {}", self.work);
        }
        Ok(())
    }
}

impl Slot {
    fn new(account: &Account, work: Work, now: Instant) -> Result<Self> {
        let mut buffer = account.take(work.size).context("no memory for a request")?;
        let mut seed = 0x9e37_79b9_7f4a_7c15;
        for chunk in buffer.bytes_mut().chunks_exact_mut(8) {
            chunk.copy_from_slice(&shuffle(&mut seed).to_le_bytes());
        }
        let (read, written) =
            if work.write { (None, Some(Rc::new(buffer))) } else { (Some(buffer), None) };
        Ok(Self { began: now, read, written })
    }
}

/// The sequence of block addresses.
pub(crate) struct Places {
    seed: u64,
    requests: u64,
    nlb: u32,
    at: u64,
    random: bool,
}

impl Places {
    /// For requests of `nlb` blocks on a disk of `blocks` blocks.
    pub(crate) fn new(blocks: u64, nlb: u64, random: bool) -> Result<Self> {
        let requests = blocks.checked_div(nlb).filter(|&n| n != 0);
        let requests = requests.context("the disk is smaller than a request")?;
        Ok(Self { seed: 0x2545_f491_4f6c_dd1d, requests, nlb: u32::try_from(nlb)?, at: 0, random })
    }

    /// Returns the first block and the number of blocks.
    pub(crate) fn next(&mut self) -> (u64, u32) {
        self.at = if self.random { shuffle(&mut self.seed) } else { self.at + 1 } % self.requests;
        (self.at * u64::from(self.nlb), self.nlb)
    }
}

/// Returns the next pseudo-random number.
pub(crate) fn shuffle(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}
