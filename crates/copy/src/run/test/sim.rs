//! Simulated disks in memory with injected faults.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use export::Extent;

use crate::{
    Completion, Connection, ConnectionLost, Disk, Endpoint, EndpointError, Interest, Request,
    RequestError,
};

/// State and faults of a disk.
pub(super) struct Core {
    pub(super) disk: Disk,
    pub(super) data: Vec<u8>,
    /// Contents after a power loss.
    pub(super) durable: Vec<u8>,
    /// Unreadable sectors of 512 bytes.
    pub(super) bad: BTreeSet<u64>,
    pub(super) reads: Vec<Range<u64>>,
    pub(super) writes: usize,
    pub(super) bytes_written: u64,
    /// The number of the write that fails, from 1.
    pub(super) fail_write: usize,
    /// Number of flushes that fail.
    pub(super) fail_flushes: usize,
    /// Requests until the connection is lost, repeatedly.
    pub(super) lose_after: Option<u64>,
    /// The byte of which a bit flips when it is written.
    pub(super) flip: Option<usize>,
    /// The capacity of the disk, if it announces more and its addresses wrap around.
    pub(super) wrap: Option<usize>,
    /// The bytes of its cache, if it keeps nothing else of what is written.
    pub(super) cached: Option<usize>,
    cache: VecDeque<Range<usize>>,
    /// Whether unflushed data is lost with a connection.
    pub(super) crash: bool,
    /// Duration of every read, and of every write.
    pub(super) slow: std::time::Duration,
    pub(super) slow_write: std::time::Duration,
    /// Writes in progress, and their maximum.
    writing: usize,
    pub(super) most_writing: usize,
    /// Number of reads before the last write.
    pub(super) reads_before_last_write: usize,
    /// Open connections, and their maximum.
    connections: usize,
    pub(super) max: usize,
    /// Whether every connection is lost, idle or not.
    pub(super) gone: bool,
    pub(super) losses: u64,
    requests: u64,
    seed: u64,
    /// Called before each write, with its number.
    pub(super) hook: Option<Hook>,
}

type Hook = Box<dyn FnMut(&mut Core, usize) + Send>;

#[derive(Clone)]
pub(super) struct Sim(Arc<Mutex<Core>>);

impl Sim {
    pub(super) fn new(name: &str, data: Vec<u8>) -> Self {
        let disk = Disk {
            name: name.to_owned(),
            bytes: data.len() as u64,
            block: 512,
            sector: None,
            writable: true,
            reports_extents: false,
            max_zero: 0,
            max_transfer: 1 << 20,
            max_connections: 8,
            remote: false,
            in_memory: false,
            blank: false,
            identity: String::new(),
        };
        Self(Arc::new(Mutex::new(Core {
            disk,
            durable: data.clone(),
            data,
            bad: BTreeSet::new(),
            reads: Vec::new(),
            writes: 0,
            bytes_written: 0,
            fail_write: 0,
            fail_flushes: 0,
            lose_after: None,
            flip: None,
            wrap: None,
            cached: None,
            cache: VecDeque::new(),
            crash: false,
            slow: std::time::Duration::ZERO,
            slow_write: std::time::Duration::ZERO,
            writing: 0,
            most_writing: 0,
            reads_before_last_write: 0,
            connections: 0,
            max: 100,
            gone: false,
            losses: 0,
            requests: 0,
            seed: 1,
            hook: None,
        })))
    }

    pub(super) fn core(&self) -> MutexGuard<'_, Core> {
        self.0.lock().unwrap()
    }

    pub(super) fn data(&self) -> Vec<u8> {
        self.core().data.clone()
    }
}

impl Endpoint for Sim {
    fn open(&self) -> Result<(Disk, Box<dyn Connection>), EndpointError> {
        let mut core = self.core();
        if core.connections >= core.max {
            return Err(EndpointError::Temporary("too many connections".to_owned()));
        }
        core.connections += 1;
        let connection =
            SimConnection { sim: self.clone(), queue: Vec::new(), completion: VecDeque::new() };
        Ok((core.disk.clone(), Box::new(connection)))
    }
}

/// Completes its requests in random order.
struct SimConnection {
    sim: Sim,
    queue: Vec<(u32, Request)>,
    completion: VecDeque<Completion>,
}

impl Drop for SimConnection {
    fn drop(&mut self) {
        self.sim.core().connections -= 1;
    }
}

impl Connection for SimConnection {
    fn submit(&mut self, tag: u32, request: Request) {
        assert!(self.free_slots() > 0);
        assert!(self.queue.iter().all(|(other, _)| *other != tag));
        self.queue.push((tag, request));
    }

    fn free_slots(&self) -> usize {
        8usize.saturating_sub(self.queue.len() + self.completion.len())
    }

    fn advance(&mut self) -> Result<(), ConnectionLost> {
        let mut core = self.sim.core();
        if core.gone {
            return Err(ConnectionLost::new("switched off"));
        }
        if self.queue.is_empty() {
            return Ok(());
        }
        let pick = core.random() % self.queue.len() as u64;
        let (tag, request) = self.queue.swap_remove(usize::try_from(pick).unwrap());
        let (slow, writes) = match request {
            Request::Read { .. } => (core.slow, 0),
            Request::Write { .. } => (core.slow_write, 1),
            _ => Default::default(),
        };
        if core.is_lost() {
            return Err(ConnectionLost::new("cable cut"));
        }
        let completion = core.run(tag, request);
        core.writing += writes;
        core.most_writing = core.most_writing.max(core.writing);
        drop(core);
        std::thread::sleep(slow);
        self.sim.core().writing -= writes;
        self.completion.push_back(completion);
        Ok(())
    }

    fn next_completion(&mut self) -> Option<Completion> {
        self.completion.pop_front()
    }

    fn interest(&self) -> Interest<'_> {
        Interest::None
    }
}

impl Core {
    fn random(&mut self) -> u64 {
        self.seed = self
            .seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.seed >> 33
    }

    fn is_lost(&mut self) -> bool {
        self.requests += 1;
        let lost = self.lose_after.is_some_and(|after| self.requests.is_multiple_of(after));
        self.losses += u64::from(lost);
        if lost && self.crash {
            self.data = self.durable.clone();
        }
        lost
    }

    fn run(&mut self, tag: u32, request: Request) -> Completion {
        let mut completion = Completion { tag, result: Ok(()), buffer: None, extents: Vec::new() };
        match request {
            Request::Read { offset, mut buffer } => {
                let range = offset..offset + buffer.len() as u64;
                self.reads.push(range.clone());
                let sectors = range.start / 512..range.end.div_ceil(512);
                if self.bad.range(sectors).next().is_some() {
                    completion.result = Err(RequestError::Media);
                } else {
                    self.read(range.start, buffer.bytes_mut());
                }
                completion.buffer = Some(buffer);
            }
            Request::Write { offset, buffer, part } => {
                let range = offset..offset + part.len() as u64;
                completion.result = self.write(&range, &buffer.bytes()[part]);
                completion.buffer = Some(buffer);
            }
            Request::Zero { offset, len } => {
                assert!(len <= self.disk.max_zero);
                let zeros = vec![0; usize::try_from(len).unwrap()];
                completion.result = self.write(&(offset..offset + len), &zeros);
            }
            Request::Flush if self.fail_flushes > 0 => {
                self.fail_flushes -= 1;
                completion.result = Err(RequestError::Media);
            }
            Request::Flush => self.durable = self.data.clone(),
            Request::Extents { offset, len } => completion.extents = self.extents(offset, len),
        }
        completion
    }

    fn write(&mut self, range: &Range<u64>, bytes: &[u8]) -> Result<(), RequestError> {
        self.writes += 1;
        self.reads_before_last_write = self.reads.len();
        if let Some(mut hook) = self.hook.take() {
            hook(self, self.writes);
            self.hook = Some(hook);
        }
        if self.writes == self.fail_write {
            return Err(RequestError::Media);
        }
        let whole = range.start.is_multiple_of(512) && range.end.is_multiple_of(512);
        assert!(!range.is_empty() && whole, "{range:?}");
        self.bytes_written += bytes.len() as u64;
        for (at, sector) in index(range).step_by(512).zip(bytes.chunks(512)) {
            let at = self.place(at);
            self.data[at..at + 512].copy_from_slice(sector);
        }
        self.evict(index(range));
        if let Some(at) = self.flip.filter(|at| index(range).contains(at)) {
            self.data[at] ^= 1 << (at % 8);
        }
        Ok(())
    }

    /// Where the disk keeps the sector at this offset.
    fn place(&self, at: usize) -> usize {
        self.wrap.map_or(at, |capacity| at % capacity)
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) {
        let start = usize::try_from(offset).unwrap();
        for (at, sector) in (start..).step_by(512).zip(bytes.chunks_mut(512)) {
            let at = self.place(at);
            sector.copy_from_slice(&self.data[at..at + sector.len()]);
        }
    }

    /// Forgets what has left the cache.
    fn evict(&mut self, written: Range<usize>) {
        let Some(cached) = self.cached else { return };
        self.cache.push_back(written);
        while self.cache.iter().map(Range::len).sum::<usize>() > cached {
            let lost = self.cache.pop_front().unwrap();
            self.data[lost].fill(0);
        }
    }

    fn extents(&self, offset: u64, len: u64) -> Vec<Extent> {
        let pages = self.data[index(&(offset..offset + len))].chunks(4096);
        let one = |page: &[u8]| {
            let len = page.len() as u64;
            if page.iter().all(|byte| *byte == 0) { Extent::hole(len) } else { Extent::data(len) }
        };
        pages.map(one).take(100).collect()
    }
}

fn index(range: &Range<u64>) -> Range<usize> {
    usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()
}
