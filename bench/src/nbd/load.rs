//! Load on one connection to an NBD server, kept at a queue depth.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::link::Link;
use crate::load::{Places, Work, shuffle};

/// Runs `work` for `time`, after a warm-up of a tenth of it. Returns the number of operations, the
/// seconds, and the increase of `meter`. If `sleeps`, it blocks while it waits.
pub(super) fn run(
    link: &mut Link,
    work: Work,
    time: Duration,
    sleeps: bool,
    meter: impl Fn() -> Result<Duration>,
) -> Result<(u64, f64, Duration)> {
    let mut load = Load::new(link, work, sleeps)?;
    load.go(Instant::now() + time / 10)?;
    let (start, before, warm) = (Instant::now(), meter()?, load.done);
    load.go(start + time)?;
    let (seconds, used) = (start.elapsed().as_secs_f64(), meter()?.saturating_sub(before));
    let done = load.done - warm;
    load.drain()?;
    Ok((done, seconds, used))
}

struct Load<'a> {
    link: &'a mut Link,
    len: u32,
    data: Option<Vec<u8>>,
    places: Places,
    sleeps: bool,
    idle: Vec<u64>,
    depth: usize,
    done: u64,
}

impl<'a> Load<'a> {
    fn new(link: &'a mut Link, work: Work, sleeps: bool) -> Result<Self> {
        let len = u32::try_from(work.size)?;
        let places = Places::new(link.size, work.size as u64, work.random)?;
        let data = work.write.then(|| noise(work.size));
        let idle: Vec<u64> = (0..work.depth.into()).collect();
        Ok(Self { link, len, data, places, sleeps, depth: idle.len(), idle, done: 0 })
    }

    fn go(&mut self, until: Instant) -> Result<()> {
        while Instant::now() < until {
            while let Some(cookie) = self.idle.pop() {
                let (offset, _) = self.places.next();
                self.link.ask(cookie, offset, self.len, self.data.as_deref());
            }
            self.turn()?;
        }
        Ok(())
    }

    fn turn(&mut self) -> Result<()> {
        self.link.flush()?;
        let before = self.idle.len();
        let idle = &mut self.idle;
        let came = self.link.receive(|cookie| idle.push(cookie))?;
        self.done += (self.idle.len() - before) as u64;
        if !came && self.sleeps {
            self.link.sleep()?;
        }
        Ok(())
    }

    fn drain(&mut self) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(10);
        while self.idle.len() != self.depth {
            self.turn()?;
            if Instant::now() > until {
                bail!("the server does not answer any more");
            }
        }
        Ok(())
    }
}

fn noise(len: usize) -> Vec<u8> {
    let mut seed = 0x9e37_79b9_7f4a_7c15;
    (0..len / 8).flat_map(|_| shuffle(&mut seed).to_le_bytes()).collect()
}
