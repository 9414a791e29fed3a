//! The opener and the worker are killed in the middle of writes: what was flushed stays.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use testkit::Scratch;

use crate::process::{find, worker_of};
use crate::remote::{Lent, RemoteDisk, WAYS, Way};
use crate::{image, path, serve};

const BLOCK: usize = 4096;
/// Blocks of each writer.
const BLOCKS: u64 = 256;
/// Writes by all writers between two kills.
const WRITES: usize = 300;
const ROUNDS: u8 = 8;

/// The offset of a block of a writer.
fn offset(writer: usize, block: u64) -> u64 {
    (writer as u64 * BLOCKS + block % BLOCKS) * BLOCK as u64
}

/// The contents that the n-th write of a round has.
fn contents(round: u8, writer: usize, block: u64) -> [u8; BLOCK] {
    let mut bytes = [round; BLOCK];
    bytes[..8].copy_from_slice(&block.to_le_bytes());
    bytes[8] = u8::try_from(writer).unwrap();
    bytes
}

/// Writes blocks, and flushes them from time to time, until the connection is lost. Returns how many were flushed.
fn write_until_lost(
    (lent, way): (&Lent, Way),
    writer: usize,
    round: u8,
    (opened, written): (&Barrier, &AtomicUsize),
) -> u64 {
    let open = || lent.open(way).ok();
    let mut disk: RemoteDisk = find(open).expect("the disk is lent");
    opened.wait();
    let mut flushed = 0;
    for block in 0.. {
        let done = disk.write(offset(writer, block), &contents(round, writer, block));
        let Ok(done) = done else { break };
        done.unwrap();
        written.fetch_add(1, Ordering::Relaxed);
        if block % 4 == 3 {
            let Ok(done) = disk.flush() else { break };
            done.unwrap();
            flushed = block + 1;
        }
    }
    flushed
}

/// Checks that each block of a writer has what it was flushed with, or what was written to it later.
fn check(file: &File, writer: usize, round: u8, flushed: u64) {
    for block in flushed.saturating_sub(BLOCKS)..flushed {
        let mut found = [0; BLOCK];
        file.read_exact_at(&mut found, offset(writer, block)).unwrap();
        let number = u64::from_le_bytes(found[..8].try_into().unwrap());
        let newer = number >= block && number % BLOCKS == block % BLOCKS;
        assert!(newer, "round {round}: block {block} of writer {writer} has {number}");
        assert!(found == contents(round, writer, number), "round {round}: {block} of {writer}");
    }
}

#[test]
fn kills_of_any_process_lose_no_flushed_write() {
    for driver in ["uring", "blocking"] {
        let folder = Scratch::new();
        let disk = path(&folder, "disk.img");
        image(&disk, WAYS.len() as u64 * BLOCKS * BLOCK as u64);
        let file = File::open(&disk).unwrap();
        let start = || {
            let running = serve(&["--io", driver, "--writable", &disk]);
            let lent = Lent::all(&running.until("ready")).remove(0);
            (running, lent)
        };
        let (mut running, mut lent) = start();
        let mut flushed_in_all = 0;
        for round in 1..=ROUNDS {
            let (opened, written) = (Barrier::new(WAYS.len()), AtomicUsize::new(0));
            let kills_worker = round % 2 == 0;
            let opener = Pid::from_child(&running.child);
            let flushed: Vec<u64> = thread::scope(|scope| {
                let (lent, opened, written) = (&lent, &opened, &written);
                let write = |(writer, way)| {
                    let shared = (opened, written);
                    scope.spawn(move || write_until_lost((lent, way), writer, round, shared))
                };
                let writers: Vec<_> = WAYS.into_iter().enumerate().map(write).collect();
                find(|| (written.load(Ordering::Relaxed) >= WRITES).then_some(())).unwrap();
                let victim = if kills_worker { worker_of(opener).unwrap() } else { opener };
                kill_process(victim, Signal::KILL).unwrap();
                writers.into_iter().map(|writer| writer.join().unwrap()).collect()
            });
            for (writer, flushed) in flushed.iter().enumerate() {
                check(&file, writer, round, *flushed);
            }
            flushed_in_all += flushed.iter().sum::<u64>();
            if !kills_worker {
                running.child.wait().unwrap();
                (running, lent) = start();
            }
        }
        println!("{driver}: {flushed_in_all} writes were flushed before {ROUNDS} kills");
        assert!(flushed_in_all > u64::from(ROUNDS) * 100);
    }
}
