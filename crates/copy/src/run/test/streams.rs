//! Copies of pipes to simulated disks with faults.

use std::io::Write as _;
use std::os::fd::OwnedFd;

use super::*;
use crate::Pipe;

/// A pipe with this data, written by a thread.
fn pipe(data: &[u8]) -> Pipe {
    let (output, mut input) = std::io::pipe().unwrap();
    let data = data.to_vec();
    // The copy may fail before the end.
    std::thread::spawn(move || input.write_all(&data));
    OwnedFd::from(output).into()
}

fn run_pipe(pipe: Pipe, destination: &Sim, settings: &Settings) -> Report {
    let destination = End::Disk(Box::new(destination.clone()));
    let job = Job { source: End::Pipe(pipe), destination, settings: settings.clone(), check: None };
    job.run(&AtomicBool::new(false), &mut |_| {})
}

#[test]
fn pieces_of_a_pipe_are_written_at_the_same_time() {
    let data = noise(9 * MIB + 512, 21);
    let destination = Sim::new("destination", noise(10 * MIB, 3));
    destination.core().slow_write = Duration::from_millis(20);
    let report = run_pipe(pipe(&data), &destination, &settings());
    assert!(matches!(report.outcome, Outcome::Success), "{report:?}");
    assert_eq!(report.hash, Some(*blake3::hash(&data).as_bytes()));
    assert_eq!((report.bytes, report.verified), (data.len() as u64, data.len() as u64));
    assert!(destination.data()[..data.len()] == data);
    assert!(destination.core().most_writing > 1);
}

#[test]
fn pipe_of_any_length_is_copied() {
    for len in [512, MIB, MIB + 512, 2 * MIB, 5 * MIB] {
        for is_checked in [false, true] {
            let data = sparse(len, 22);
            let destination = Sim::new("destination", noise(5 * MIB, 4));
            let finish = is_checked.then(|| Box::new(|| Ok(())) as crate::Finish);
            let pipe = Pipe { finish, ..pipe(&data) };
            let report = run_pipe(pipe, &destination, &settings());
            assert!(matches!(report.outcome, Outcome::Success), "{len}: {report:?}");
            assert_eq!(report.hash, Some(*blake3::hash(&data).as_bytes()), "{len}");
            assert!(destination.data()[..len] == data, "{len}");
        }
    }
}

#[test]
fn r52_first_and_last_piece_wait_for_the_check() {
    let (data, before) = (noise(6 * MIB, 23), noise(6 * MIB, 5));
    let destination = Sim::new("destination", before.clone());
    let reason = || CopyError::Unexpected("not what was expected".to_owned());
    let pipe = Pipe { finish: Some(Box::new(move || Err(reason()))), ..pipe(&data) };
    let report = run_pipe(pipe, &destination, &settings());
    assert!(matches!(report.outcome, Outcome::Failed(CopyError::Unexpected(_))), "{report:?}");
    let there = destination.data();
    assert!(there[..MIB].iter().all(|byte| *byte == 0), "no partition table");
    assert!(there[5 * MIB..] == before[5 * MIB..], "no backup of it");
    assert!(there[MIB..5 * MIB] == data[MIB..5 * MIB]);
}

#[test]
fn r16_failed_write_of_any_thread_fails_the_pipe() {
    for write in 1..=8 {
        let destination = Sim::new("destination", noise(8 * MIB, 6));
        destination.core().fail_write = write;
        let report = run_pipe(pipe(&noise(8 * MIB, 24)), &destination, &settings());
        let failed = matches!(report.outcome, Outcome::Failed(CopyError::Write { .. }));
        assert!(failed, "{write}: {report:?}");
    }
}

#[test]
fn r17_failed_flush_of_any_thread_fails_the_pipe() {
    for remote in [false, true] {
        let destination = Sim::new("destination", noise(8 * MIB, 6));
        destination.core().disk.remote = remote;
        destination.core().fail_flushes = 1;
        let report = run_pipe(pipe(&noise(8 * MIB, 25)), &destination, &settings());
        let failed = matches!(report.outcome, Outcome::Failed(CopyError::Flush { .. }));
        assert!(failed, "{report:?}");
    }
}

#[test]
fn destination_with_one_connection_takes_a_pipe() {
    let data = noise(6 * MIB, 26);
    let destination = Sim::new("destination", noise(6 * MIB, 7));
    destination.core().max = 1;
    let report = run_pipe(pipe(&data), &destination, &settings());
    assert!(matches!(report.outcome, Outcome::Success), "{report:?}");
    assert!(destination.data() == data);
}

#[test]
fn pipe_into_memory_is_read_back_while_copying() {
    let data = noise(8 * MIB, 27);
    let destination = Sim::new("destination", noise(8 * MIB, 8));
    destination.core().disk.in_memory = true;
    let report = run_pipe(pipe(&data), &destination, &settings());
    assert!(matches!(report.outcome, Outcome::Success), "{report:?}");
    assert_eq!(report.verified, data.len() as u64);
    let core = destination.core();
    let read: u64 = core.reads.iter().map(|range| range.end - range.start).sum();
    assert_eq!(read, data.len() as u64, "each byte once");
    assert!(core.reads_before_last_write > 0);
}

#[test]
fn r44_flip_in_memory_written_by_a_pipe_is_found() {
    for at in [5, 3 * MIB + 7, 8 * MIB - 1] {
        for in_memory in [false, true] {
            let destination = Sim::new("destination", noise(8 * MIB, 9));
            destination.core().disk.in_memory = in_memory;
            destination.core().flip = Some(at);
            let report = run_pipe(pipe(&noise(8 * MIB, 28)), &destination, &settings());
            let Outcome::VerifyFailed(ranges) = &report.outcome else { panic!("{report:?}") };
            assert!(ranges.len() == 1 && ranges[0].contains(&(at as u64)), "{ranges:?}");
        }
    }
}
