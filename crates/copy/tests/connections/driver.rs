//! Drives a connection as a worker thread does: submits, advances, polls, and takes completions.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use copy::{Completion, Connection, ConnectionLost, Interest, Request, RequestError};
use export::{Account, Buffer, Extent, Pool};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Timeout of any step.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A connection, and memory for its requests.
pub(crate) struct Driven {
    pub(crate) connection: Box<dyn Connection>,
    memory: Account,
    next: u32,
}

impl Driven {
    pub(crate) fn new(connection: Box<dyn Connection>) -> Self {
        Self { connection, memory: Pool::new(64 << 20).open(), next: 1 }
    }

    pub(crate) fn buffer(&self, len: usize) -> Buffer {
        self.memory.take(len).expect("there is memory")
    }

    pub(crate) fn filled(&self, bytes: &[u8]) -> Buffer {
        let mut buffer = self.buffer(bytes.len());
        buffer.bytes_mut().copy_from_slice(bytes);
        buffer
    }

    pub(crate) fn submit(&mut self, request: Request) -> u32 {
        assert!(self.connection.free_slots() > 0, "no room");
        let tag = self.next;
        self.next += 1;
        self.connection.submit(tag, request);
        tag
    }

    /// Waits for this number of completions.
    pub(crate) fn wait(&mut self, count: usize) -> Result<Vec<Completion>, ConnectionLost> {
        let (mut completions, until) = (Vec::new(), Instant::now() + PATIENCE);
        loop {
            self.connection.advance()?;
            completions.extend(std::iter::from_fn(|| self.connection.next_completion()));
            if completions.len() >= count {
                return Ok(completions);
            }
            assert!(Instant::now() < until, "{} of {count} requests ended", completions.len());
            match self.connection.interest() {
                Interest::None => {
                    panic!("it waits for nothing, and {} are missing", count - completions.len())
                }
                Interest::Fd(fd, flags) => sleep(fd, flags, self.connection.deadline()),
            }
        }
    }

    /// Carries out one request.
    pub(crate) fn one(&mut self, request: Request) -> Completion {
        let tag = self.submit(request);
        let completion = self.wait(1).expect("the connection is there").remove(0);
        assert_eq!(completion.tag, tag);
        completion
    }

    pub(crate) fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, RequestError> {
        let buffer = self.buffer(len);
        let Completion { result, buffer, .. } = self.one(Request::Read { offset, buffer });
        result.map(|()| buffer.expect("a read gives its buffer back").bytes().to_vec())
    }

    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), RequestError> {
        let (buffer, part) = (self.filled(bytes), 0..bytes.len());
        let Completion { result, buffer, .. } = self.one(Request::Write { offset, buffer, part });
        assert_eq!(buffer.expect("a write gives its buffer back").bytes(), bytes);
        result
    }

    pub(crate) fn zero(&mut self, offset: u64, len: u64) -> Result<(), RequestError> {
        self.one(Request::Zero { offset, len }).result
    }

    pub(crate) fn flush(&mut self) -> Result<(), RequestError> {
        self.one(Request::Flush).result
    }

    pub(crate) fn extents(&mut self, offset: u64, len: u64) -> Result<Vec<Extent>, RequestError> {
        let Completion { result, extents, .. } = self.one(Request::Extents { offset, len });
        result.map(|()| extents)
    }
}

fn sleep(fd: BorrowedFd<'_>, flags: PollFlags, deadline: Option<Instant>) {
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    let left = left.unwrap_or(PATIENCE).min(Duration::from_secs(1));
    let left = Timespec::try_from(left).expect("a second at most");
    poll(&mut [PollFd::from_borrowed_fd(fd, flags)], Some(&left)).expect("poll");
}

/// Bytes that differ from block to block and from seed to seed.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..len).map(|_| next()).collect()
}

/// Pseudorandom numbers.
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    pub(crate) fn below(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).expect("64 bits") % below
    }
}

/// Random concurrent requests to disjoint blocks; at the end the disk equals the model.
pub(crate) fn random_requests_match_model(
    connection: Box<dyn Connection>,
    mut model: Vec<u8>,
    seed: u64,
) {
    const AREA: usize = 256 << 10;
    let (mut driven, mut chance) = (Driven::new(connection), Chance(seed | 1));
    for round in 0..12 {
        let mut reads = Vec::new();
        let areas = model.len() / AREA;
        for area in 0..areas {
            let start = area * AREA + chance.below(64) * 512;
            let len = (chance.below(350) + 1) * 512;
            let (range, offset) = (start..start + len, start as u64);
            match chance.below(4) {
                0 => {
                    model[range].fill(0);
                    driven.submit(Request::Zero { offset, len: len as u64 });
                }
                1 => {
                    let bytes = pattern(seed + round, len + 4096);
                    model[range].copy_from_slice(&bytes[1024..1024 + len]);
                    let (buffer, part) = (driven.filled(&bytes), 1024..1024 + len);
                    driven.submit(Request::Write { offset, buffer, part });
                }
                _ => {
                    let buffer = driven.buffer(len);
                    let tag = driven.submit(Request::Read { offset, buffer });
                    reads.push((tag, range));
                }
            }
        }
        for completion in driven.wait(areas).expect("the connection is there") {
            assert_eq!(completion.result, Ok(()));
            if let Some((_, range)) = reads.iter().find(|(tag, _)| *tag == completion.tag) {
                let read = completion.buffer.expect("a read gives its buffer back");
                assert!(read.bytes() == &model[range.clone()], "round {round}, {range:?}");
            }
        }
    }
    driven.flush().expect("a flush");
    for offset in (0..model.len()).step_by(AREA) {
        let read = driven.read(offset as u64, AREA).expect("a read");
        assert!(read == model[offset..offset + AREA], "at {offset}");
    }
}
