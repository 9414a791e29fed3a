//! Copies that are read back while they are written, to simulated disks that lose what was written.

use super::*;

fn settings() -> Settings {
    Settings { read_behind: true, ..super::settings() }
}

/// Copies noise to this disk, and returns the report.
fn copy_noise(len: usize, destination: &Sim) -> Report {
    run_job(&Sim::new("source", noise(len, 71)), destination, &settings())
}

fn assert_differs(report: &Report) -> u64 {
    let Outcome::VerifyFailed(ranges) = &report.outcome else { panic!("{report:?}") };
    ranges.iter().map(|range| range.end - range.start).sum()
}

#[test]
fn disk_is_read_back_while_copying() {
    let data = noise(64 * MIB, 71);
    let source = Sim::new("source", data.clone());
    let destination = Sim::new("destination", vec![0; 64 * MIB]);
    destination.core().slow_write = Duration::from_micros(500);
    let report = run_job(&source, &destination, &settings());
    assert!(matches!(report.outcome, Outcome::Success), "{report:?}");
    assert_eq!(report.hash, Some(*blake3::hash(&data).as_bytes()));
    assert_eq!(report.verified, 64 << 20);
    assert!(destination.data() == data);
    assert!(report.read_behind > 16 << 20, "{report:?}");
    let read: u64 = destination.core().reads.iter().map(|range| range.end - range.start).sum();
    let again = read - (64 << 20);
    assert!((1 << 20..32 << 20).contains(&again), "a sample is read again: {again}");
    let last = 64 * MIB as u64 - (2 << 20);
    let core = destination.core();
    let early = core.reads[..core.reads_before_last_write].iter();
    assert!(early.clone().count() > 0 && early.clone().all(|range| range.end <= last + (1 << 20)));
}

#[test]
fn r44_flip_that_is_read_behind_is_located() {
    for at in [5, 7 * MIB + 777, 31 * MIB, 32 * MIB - 1] {
        let destination = Sim::new("destination", vec![0; 32 * MIB]);
        destination.core().flip = Some(at);
        destination.core().slow_write = Duration::from_micros(500);
        let report = copy_noise(32 * MIB, &destination);
        assert_eq!(assert_differs(&report), 4096, "{at}");
    }
}

/// A disk of less than it announces, whose addresses wrap around at any length: what was read back
/// right is destroyed later.
#[test]
fn wrapped_disk_that_is_read_behind_fails_verification() {
    for capacity in [31 * MIB + MIB / 2, 24 * MIB, 17 * MIB + 512, 16 * MIB, 5 * MIB + 4096] {
        let destination = Sim::new("destination", vec![0; 32 * MIB]);
        destination.core().slow_write = Duration::from_micros(500);
        destination.core().wrap = Some(capacity);
        let report = copy_noise(32 * MIB, &destination);
        assert!(assert_differs(&report) > 0, "{capacity}");
    }
}

#[test]
fn dropped_writes_that_are_read_behind_are_found() {
    let destination = Sim::new("destination", vec![0; 32 * MIB]);
    destination.core().hook = Some(Box::new(|core, _| core.data[20 * MIB..].fill(0)));
    let report = copy_noise(32 * MIB, &destination);
    assert!(assert_differs(&report) > 11 << 20);
}

/// A disk that keeps nothing, and returns the last writes from a cache. What it still has in there after
/// the last write is not found by any order of reading.
#[test]
fn cache_of_a_disk_is_not_taken_for_the_disk() {
    for cached in [MIB, 4 * MIB, 16 * MIB] {
        let destination = Sim::new("destination", vec![0; 32 * MIB]);
        destination.core().slow_write = Duration::from_micros(500);
        destination.core().cached = Some(cached);
        let report = copy_noise(32 * MIB, &destination);
        assert!(assert_differs(&report) > 0, "{cached}");
    }
}

#[test]
fn r17_failed_flush_of_reading_behind_fails_copy() {
    let destination = Sim::new("destination", vec![0; 32 * MIB]);
    destination.core().slow_write = Duration::from_micros(500);
    destination.core().fail_flushes = 1;
    let report = copy_noise(32 * MIB, &destination);
    let failed = matches!(report.outcome, Outcome::Failed(CopyError::Flush { .. }));
    assert!(failed, "{report:?}");
}

/// What a copy has read back before it was interrupted is read back again.
#[test]
fn resumed_copy_reads_back_all_that_is_in_its_map() {
    let map = path("behind.map");
    let source = Sim::new("source", noise(32 * MIB, 72));
    let destination = Sim::new("destination", vec![0; 32 * MIB]);
    destination.core().slow_write = Duration::from_micros(500);
    let stop = Arc::new(AtomicBool::new(false));
    let theirs = stop.clone();
    destination.core().hook =
        Some(Box::new(move |_, number| theirs.store(number > 300, Ordering::Release)));
    let settings = Settings { map: Some(map), ..settings() };
    let report = run_until(&source, &destination, &settings, &stop);
    assert!(matches!(report.outcome, Outcome::Interrupted), "{report:?}");
    destination.core().hook = None;
    destination.core().data[3 * MIB + 100] ^= 1;
    let again = run_job(&source, &destination, &settings);
    assert_eq!(assert_differs(&again), 4096);
    assert!(again.earlier > 4 << 20, "{again:?}");
}

#[test]
fn other_machines_and_memory_are_not_read_behind() {
    for (remote, in_memory) in [(true, false), (false, true)] {
        let destination = Sim::new("destination", vec![0; 16 * MIB]);
        (destination.core().disk.remote, destination.core().disk.in_memory) = (remote, in_memory);
        let report = copy_noise(16 * MIB, &destination);
        assert!(matches!(report.outcome, Outcome::Success), "{report:?}");
        assert_eq!((report.read_behind, report.verified), (0, 16 << 20));
    }
}
