//! Whole jobs over simulated disks with faults.

mod behind;
mod checks;
mod sim;
mod streams;

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::*;
use sim::Sim;

const MIB: usize = 1 << 20;

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let word = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..len / 8).flat_map(word).collect()
}

/// Data with holes of many sizes.
fn sparse(len: usize, seed: u64) -> Vec<u8> {
    let mut data = noise(len, seed);
    let mut at = 4096;
    let mut hole = 4096;
    while at + hole < len {
        data[at..at + hole].fill(0);
        at += hole + 3 * 4096;
        hole = hole * 3 / 2 / 4096 * 4096 + 4096;
    }
    data
}

fn settings() -> Settings {
    Settings {
        connections: 3,
        chunk: 1 << 16,
        reconnect_timeout: Duration::from_secs(5),
        ..Settings::default()
    }
}

/// Runs a job and checks its progress against R47.
fn run_job(source: &Sim, destination: &Sim, settings: &Settings) -> Report {
    run_until(source, destination, settings, &AtomicBool::new(false))
}

fn run_until(source: &Sim, destination: &Sim, settings: &Settings, stop: &AtomicBool) -> Report {
    run_counting_reports(source, destination, settings, stop, &AtomicUsize::new(0))
}

/// The same; also counts the progress reports.
fn run_counting_reports(
    source: &Sim,
    destination: &Sim,
    settings: &Settings,
    stop: &AtomicBool,
    heard: &AtomicUsize,
) -> Report {
    let (source, destination) = (Box::new(source.clone()), Box::new(destination.clone()));
    let ends = (End::Disk(source), End::Disk(destination));
    let job = Job { source: ends.0, destination: ends.1, settings: settings.clone(), check: None };
    let mut last_report: Option<(Progress, Instant)> = None;
    job.run(stop, &mut |progress| {
        heard.fetch_add(1, Ordering::Relaxed);
        assert!(progress.total.is_none_or(|total| progress.done <= total));
        if let Some((last, then)) = &last_report {
            let verifying = |progress: &Progress| progress.phase == Phase::Verifying;
            assert!(progress.done >= last.done || verifying(progress) != verifying(last));
            // Four times per second on an idle machine.
            assert!(then.elapsed() < Duration::from_secs(8), "a silence of {:?}", then.elapsed());
        }
        last_report = Some((progress.clone(), Instant::now()));
    })
}

fn path(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("storagetm-copy-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join(name);
    let _ = std::fs::remove_file(&path);
    let _ = std::fs::remove_file(path.with_extension("map.bak"));
    path
}

#[test]
fn disk_is_copied_and_hash_equals_b3sum() {
    for (extents, zeroes, fresh) in [(false, 0, false), (true, 1 << 20, false), (true, 0, true)] {
        let data = sparse(9 * MIB + 512, 7);
        let source = Sim::new("source", data.clone());
        source.core().disk.reports_extents = extents;
        let before = if fresh { vec![0; data.len()] } else { noise(10 * MIB, 3) };
        let destination = Sim::new("destination", before.clone());
        destination.core().disk.blank = fresh;
        destination.core().disk.max_zero = zeroes;
        destination.core().disk.reports_extents = extents;
        let report = run_job(&source, &destination, &settings());
        assert!(matches!(report.outcome, Outcome::Success), "{report:?}");
        assert_eq!(destination.data()[..data.len()], data);
        assert_eq!(
            destination.data()[data.len()..],
            before[data.len()..],
            "nothing beyond the end"
        );
        assert_eq!(report.hash, Some(*blake3::hash(&data).as_bytes()));
        assert_eq!((report.verified, report.bytes), (data.len() as u64, data.len() as u64));
        let arrived = destination.data();
        assert_eq!(destination.core().durable, arrived);
        assert_eq!(report.copied + report.zeroes, report.bytes);
        assert_eq!(report.zeroes > 0, fresh || zeroes > 0);
        let read: u64 = source.core().reads.iter().map(|range| range.end - range.start).sum();
        assert!(read <= report.bytes, "nothing is read twice");
    }
}

#[test]
fn zeros_are_written_if_requested() {
    let source = Sim::new("source", sparse(4 * MIB, 7));
    source.core().disk.reports_extents = true;
    let destination = Sim::new("destination", vec![0; 4 * MIB]);
    destination.core().disk.blank = true;
    destination.core().disk.max_zero = 1 << 20;
    let report = run_job(&source, &destination, &Settings { sparse: false, ..settings() });
    assert!(matches!(report.outcome, Outcome::Success), "{report:?}");
    assert_eq!((report.zeroes, destination.core().bytes_written), (0, 4 << 20));
}

#[test]
fn r15_bad_sectors_are_reported_and_others_copied() {
    let data = noise(8 * MIB, 5);
    let source = Sim::new("source", data.clone());
    source.core().bad = (0..500).map(|n: u64| n * n * 13 % (16 * 1024)).collect();
    let bad = source.core().bad.clone();
    let destination = Sim::new("destination", vec![0xee; 8 * MIB]);
    let report = run_job(&source, &destination, &settings());
    assert!(matches!(report.outcome, Outcome::BadSectors), "{report:?}");
    let found: Vec<u64> =
        report.bad.iter().flat_map(|range| range.start / 512..range.end / 512).collect();
    assert_eq!(found, bad.iter().copied().collect::<Vec<_>>());
    let arrived = destination.data();
    for sector in 0..16 * 1024usize {
        let here = sector * 512..(sector + 1) * 512;
        let expected =
            if bad.contains(&(sector as u64)) { &[0xee; 512] } else { &data[here.clone()] };
        assert_eq!(&arrived[here], expected, "sector {sector}");
    }
    assert_eq!(report.verified, (8 * MIB - bad.len() * 512) as u64);
    assert_eq!(report.hash, None);
}

#[test]
fn r16_failed_write_is_never_success() {
    let data = noise(200 << 16, 9);
    for write in 1..=200 {
        let source = Sim::new("source", data.clone());
        let destination = Sim::new("destination", vec![0; 200 << 16]);
        destination.core().fail_write = write;
        let report = run_job(&source, &destination, &settings());
        assert!(
            matches!(report.outcome, Outcome::Failed(CopyError::Write { .. })),
            "{write}: {report:?}"
        );
        assert_eq!((report.verified, report.hash), (0, None));
    }
}

#[test]
fn r17_failed_flush_is_never_success() {
    for map in [None, Some(path("r17.map"))] {
        let source = Sim::new("source", noise(4 * MIB, 9));
        let destination = Sim::new("destination", vec![0; 4 * MIB]);
        destination.core().fail_flushes = 1;
        let report = run_job(&source, &destination, &Settings { map, ..settings() });
        assert!(matches!(report.outcome, Outcome::Failed(CopyError::Flush { .. })), "{report:?}");
    }
}

#[test]
fn r24_repeatedly_lost_ends_are_reconnected() {
    for crash in [false, true] {
        let data = noise(24 * MIB, 11);
        let source = Sim::new("source", data.clone());
        source.core().lose_after = Some(197);
        let destination = Sim::new("destination", vec![0; 24 * MIB]);
        destination.core().disk.remote = true;
        destination.core().lose_after = Some(171);
        // A restart cuts every connection of a machine. Connections to a simulated disk are
        // independent, so one is used.
        destination.core().crash = crash;
        let connections = if crash { 1 } else { 3 };
        let report = run_job(&source, &destination, &Settings { connections, ..settings() });
        assert!(matches!(report.outcome, Outcome::Success), "{report:?}");
        assert_eq!(destination.data(), data);
        let losses = source.core().losses + destination.core().losses;
        assert!(report.resent > 0 && report.resent <= losses * (24 << 20), "{}", report.resent);
    }
}

#[test]
fn different_disk_after_reconnect_fails_copy() {
    let source = Sim::new("source", noise(8 * MIB, 11));
    source.core().disk.identity = "serial 1".to_owned();
    let destination = Sim::new("destination", vec![0; 8 * MIB]);
    let other = source.clone();
    destination.core().lose_after = Some(50);
    destination.core().hook = Some(Box::new(move |core, _| {
        core.disk.identity = "serial 2".to_owned();
        drop(other.core());
    }));
    let report = run_job(&source, &destination, &settings());
    assert!(
        matches!(report.outcome, Outcome::Failed(CopyError::DifferentDisk { .. })),
        "{report:?}"
    );
}

/// Another disk of the same size behind the same address, which fails each read.
#[test]
fn unreadable_disk_after_reconnect_is_not_the_same() {
    let source = Sim::new("source", noise(8 * MIB, 11));
    source.core().disk.remote = true;
    source.core().lose_after = Some(50);
    let other = source.clone();
    let destination = Sim::new("destination", vec![0; 8 * MIB]);
    destination.core().hook = Some(Box::new(move |_, _| {
        let mut source = other.core();
        if source.losses > 0 {
            source.bad = (0..8 * MIB as u64 / 512).collect();
        }
    }));
    let (reconnect_timeout, connections) = (Duration::from_secs(2), 1);
    let settings = Settings { reconnect_timeout, connections, ..settings() };
    let report = run_job(&source, &destination, &settings);
    assert!(matches!(report.outcome, Outcome::Failed(CopyError::Lost { .. })), "{report:?}");
}

#[test]
fn server_with_one_connection_is_enough() {
    let source = Sim::new("source", noise(4 * MIB, 11));
    source.core().max = 1;
    let destination = Sim::new("destination", vec![0; 4 * MIB]);
    destination.core().max = 2;
    let report = run_job(&source, &destination, &settings());
    assert!(matches!(report.outcome, Outcome::Success), "{report:?}");
    assert_eq!(destination.data(), source.data());
}

#[test]
fn end_that_stays_lost_fails_copy() {
    let source = Sim::new("source", noise(4 * MIB, 11));
    let other = source.clone();
    let destination = Sim::new("destination", vec![0; 4 * MIB]);
    destination.core().hook = Some(Box::new(move |_, _| {
        let mut source = other.core();
        (source.max, source.lose_after) = (0, Some(1));
    }));
    let settings = Settings { reconnect_timeout: Duration::from_millis(600), ..settings() };
    let report = run_job(&source, &destination, &settings);
    assert!(matches!(report.outcome, Outcome::Failed(CopyError::Lost { .. })), "{report:?}");
}

#[test]
fn source_lost_after_last_read_is_ignored() {
    let source = Sim::new("source", noise(4 * MIB, 11));
    let other = source.clone();
    let destination = Sim::new("destination", vec![0; 4 * MIB]);
    destination.core().hook = Some(Box::new(move |_, number| {
        if number == 64 {
            other.core().max = 0;
            other.core().gone = true;
        }
    }));
    let settings =
        Settings { reconnect_timeout: Duration::from_secs(1), verify: false, ..settings() };
    let report = run_job(&source, &destination, &settings);
    assert!(matches!(report.outcome, Outcome::Success), "{report:?}");
    assert_eq!(destination.data(), source.data());
}

/// State on disk at the moment of a kill.
#[derive(Default)]
struct CrashState {
    map: Vec<u8>,
    /// The previous map.
    backup: Vec<u8>,
    disk: Vec<u8>,
}

#[test]
fn r41_copy_killed_fifty_times_is_correct() {
    let map = path("r41.map");
    let len = 6 * MIB;
    let data = sparse(len, 17);
    let (mut disk, mut written, mut kills) = (vec![0x11; len], 0, 0);
    for round in 0..200usize {
        let source = Sim::new("source", data.clone());
        source.core().bad.insert(777);
        source.core().slow = Duration::from_micros(100);
        let destination = Sim::new("destination", std::mem::take(&mut disk));
        let crash_state: Arc<Mutex<CrashState>> = Arc::default();
        let (saved, theirs) = (crash_state.clone(), map.clone());
        let stop = Arc::new(AtomicBool::new(false));
        let theirs_stop = stop.clone();
        let moment = 3 + round * 7 % 30;
        if kills < 50 {
            destination.core().hook = Some(Box::new(move |core, number| {
                if number == moment {
                    // Every second time the power is lost as well.
                    let disk = if round % 2 == 0 { &core.durable } else { &core.data };
                    let [map, backup] = [&theirs, &theirs.with_extension("map.bak")]
                        .map(|path| std::fs::read(path).unwrap_or_default());
                    *saved.lock().unwrap() = CrashState { map, backup, disk: disk.clone() };
                    theirs_stop.store(true, Ordering::Release);
                }
            }));
        }
        let settings = Settings { map: Some(map.clone()), retries: 0, ..settings() };
        let report = run_until(&source, &destination, &settings, &stop);
        written += destination.core().bytes_written;
        let crash_state = std::mem::take(&mut *crash_state.lock().unwrap());
        if crash_state.disk.is_empty() {
            assert!(matches!(report.outcome, Outcome::BadSectors), "{report:?}");
            let mut expected = data.clone();
            expected[777 * 512..778 * 512].fill(0x11);
            assert_eq!(destination.data(), expected);
            if kills >= 50 {
                assert!(written <= (len + (64 << 20)) as u64 * 10);
                return;
            }
            // Finished before the last kill: start again.
            std::fs::remove_file(&map).unwrap();
            disk = vec![0x11; len];
            written = 0;
            continue;
        }
        kills += 1;
        // A third of the time the map is cut as well. Before its second save there is no backup, and a map that
        // is cut is refused.
        let CrashState { map: mut text, backup, disk: kept } = crash_state;
        let is_cut = round % 3 == 0 && !backup.is_empty();
        if is_cut {
            text.truncate(text.len() * (round % 7) / 7);
        }
        for (path, text) in [(map.clone(), text), (map.with_extension("map.bak"), backup)] {
            match is_cut || !text.is_empty() {
                true => std::fs::write(path, text).unwrap(),
                false => drop(std::fs::remove_file(path)),
            }
        }
        disk = kept;
    }
    panic!("it never ended");
}

#[test]
fn r42_map_of_another_disk_is_refused_before_writing() {
    let map = path("r42.map");
    let data = noise(4 * MIB, 21);
    let begin = |source: &Sim, destination: &Sim| {
        let settings = Settings { map: Some(map.clone()), ..settings() };
        run_job(source, destination, &settings)
    };
    let source = |data: &[u8], identity: &str| {
        let sim = Sim::new("source", data.to_vec());
        sim.core().disk.identity = identity.to_owned();
        sim
    };
    let destination = Sim::new("destination", vec![0; 4 * MIB]);
    assert!(matches!(begin(&source(&data, "A"), &destination).outcome, Outcome::Success));
    let saved = std::fs::read(&map).unwrap();
    let other = noise(4 * MIB, 22);
    let longer = noise(5 * MIB, 21);
    for (data, identity) in [(&other, "A"), (&longer, "A"), (&data, "B"), (&other, "")] {
        let fresh = Sim::new("destination", destination.data());
        let report = begin(&source(data, identity), &fresh);
        assert!(
            matches!(report.outcome, Outcome::Refused(Refusal::AnotherDisk { .. })),
            "{report:?}"
        );
        assert_eq!((fresh.core().writes, std::fs::read(&map).unwrap() == saved), (0, true));
    }
    let elsewhere = Sim::new("destination", noise(4 * MIB, 23));
    let report = begin(&source(&data, "A"), &elsewhere);
    assert!(matches!(report.outcome, Outcome::Refused(Refusal::AnotherDisk { .. })), "{report:?}");
    assert_eq!(elsewhere.core().writes, 0);
    assert!(matches!(begin(&source(&data, "A"), &destination).outcome, Outcome::Success));
}

#[test]
fn r43_unfit_destination_is_refused_before_writing() {
    let source = Sim::new("source", noise(4 * MIB, 1));
    let small = Sim::new("small", vec![0; 4 * MIB - 512]);
    let locked = Sim::new("locked", vec![0; 4 * MIB]);
    locked.core().disk.writable = false;
    let coarse = Sim::new("coarse", vec![0; 8 * MIB]);
    coarse.core().disk.block = 4096;
    let ragged = Sim::new("ragged", noise(4 * MIB + 512, 1));
    for (source, destination) in [(&source, &small), (&source, &locked), (&ragged, &coarse)] {
        let report = run_job(source, destination, &settings());
        assert!(matches!(report.outcome, Outcome::Refused(_)), "{report:?}");
        assert_eq!((destination.core().writes, source.core().reads.len()), (0, 0));
    }
}

#[test]
fn r44_flipped_bit_in_destination_is_located() {
    for round in 0..100u64 {
        let len = 3 * MIB as u64;
        let source = Sim::new("source", noise(3 * MIB, 31));
        source.core().disk.reports_extents = true;
        let destination = Sim::new("destination", vec![0; 3 * MIB]);
        let at = round * 7919 * 4099 % len;
        let settings = Settings { map: (round % 4 == 0).then(|| path("r44.map")), ..settings() };
        destination.core().flip = Some(usize::try_from(at).unwrap());
        let report = run_job(&source, &destination, &settings);
        let Outcome::VerifyFailed(ranges) = &report.outcome else { panic!("{round}: {report:?}") };
        assert_eq!(ranges.len(), 1);
        assert_eq!(ranges[0], at / 4096 * 4096..(at / 4096 + 1) * 4096);
        assert_eq!(report.hash, None);
    }
}

#[test]
fn memory_destination_is_read_back_while_copying() {
    let map = path("memory.map");
    let cases = [(None, true, true), (Some(map), false, true), (None, true, false)];
    for (map, extents, hash) in cases {
        let data = sparse(9 * MIB + 512, 7);
        let source = Sim::new("source", data.clone());
        source.core().disk.reports_extents = extents;
        source.core().disk.remote = !hash;
        let destination = Sim::new("destination", vec![0; data.len()]);
        destination.core().disk.in_memory = true;
        destination.core().disk.blank = true;
        let before = Arc::new(AtomicUsize::new(0));
        let reads = before.clone();
        let hook = move |core: &mut sim::Core, _| reads.store(core.reads.len(), Ordering::Relaxed);
        destination.core().hook = Some(Box::new(hook));
        let report = run_job(&source, &destination, &Settings { map, hash, ..settings() });
        assert!(matches!(report.outcome, Outcome::Success), "{report:?}");
        assert_eq!(report.verified, data.len() as u64);
        assert_eq!(report.hash, hash.then(|| *blake3::hash(&data).as_bytes()));
        assert!(before.load(Ordering::Relaxed) > 10, "before the last write");
        let reads = destination.core().reads.clone();
        let read: u64 = reads.iter().map(|range| range.end - range.start).sum();
        assert_eq!(read, data.len() as u64, "everything once");
    }
}

#[test]
fn r44_differing_memory_is_located_and_copied_again() {
    for round in 0..20 {
        let map = path("memory-again.map");
        let source = Sim::new("source", noise(3 * MIB, 31));
        let destination = Sim::new("destination", vec![0; 3 * MIB]);
        destination.core().disk.in_memory = true;
        let at = round * 7919 * 4099 % (3 * MIB);
        destination.core().flip = Some(at);
        let settings = Settings { map: Some(map), ..settings() };
        let report = run_job(&source, &destination, &settings);
        let Outcome::VerifyFailed(ranges) = &report.outcome else { panic!("{round}: {report:?}") };
        let block = (at / 4096 * 4096) as u64;
        assert!(ranges.iter().eq([&(block..block + 4096)]));
        destination.core().flip = None;
        let report = run_job(&source, &destination, &settings);
        assert!(matches!(report.outcome, Outcome::Success), "{report:?}");
        assert!(destination.data() == source.data());
        assert!(report.copied <= 1 << 16, "{report:?}");
    }
}

#[test]
fn unreadable_memory_counts_as_different() {
    for hash in [true, false] {
        let source = Sim::new("source", noise(3 * MIB, 31));
        let destination = Sim::new("destination", vec![0; 3 * MIB]);
        destination.core().disk.in_memory = true;
        destination.core().bad = (100..102).collect();
        let report = run_job(&source, &destination, &Settings { hash, ..settings() });
        let Outcome::VerifyFailed(ranges) = &report.outcome else { panic!("{report:?}") };
        assert!(ranges.iter().any(|range| range.contains(&(100 * 512))), "{ranges:?}");
    }
}

#[test]
fn r44_differing_memory_is_located_without_hashes() {
    for round in 0..20 {
        let source = Sim::new("source", noise(3 * MIB, 31));
        let destination = Sim::new("destination", vec![0; 3 * MIB]);
        destination.core().disk.in_memory = true;
        let at = round * 7919 * 4099 % (3 * MIB);
        destination.core().flip = Some(at);
        let settings = Settings { hash: false, ..settings() };
        let report = run_job(&source, &destination, &settings);
        let Outcome::VerifyFailed(ranges) = &report.outcome else { panic!("{round}: {report:?}") };
        let block = (at / 4096 * 4096) as u64;
        assert!(ranges.iter().eq([&(block..block + 4096)]), "{ranges:?}");
        assert_eq!(report.verified, 3 * MIB as u64 - 4096);
    }
}

#[test]
fn r44_hole_that_is_not_zero_fails_verification() {
    for hash in [true, false] {
        let mut data = noise(4 * MIB, 31);
        data[MIB..3 * MIB].fill(0);
        let source = Sim::new("source", data);
        source.core().disk.reports_extents = true;
        let destination = Sim::new("destination", vec![0; 4 * MIB]);
        destination.core().disk.in_memory = true;
        destination.core().disk.blank = true;
        let spoil = |core: &mut sim::Core, _| core.data[2 * MIB + 5] = 1;
        destination.core().hook = Some(Box::new(spoil));
        let report = run_job(&source, &destination, &Settings { hash, ..settings() });
        let Outcome::VerifyFailed(ranges) = &report.outcome else { panic!("{report:?}") };
        assert!(ranges.iter().any(|range| range.contains(&(2 * MIB as u64 + 5))), "{ranges:?}");
    }
}

/// A disk of less than it announces, whose addresses wrap around: each write succeeds, and is read
/// back as it was written until another one replaces it.
#[test]
fn disk_that_wraps_around_fails_verification() {
    let source = Sim::new("source", noise(4 * MIB, 31));
    let destination = Sim::new("destination", vec![0; 4 * MIB]);
    destination.core().disk.remote = true;
    let wrap = |core: &mut sim::Core, _| {
        let (low, high) = core.data.split_at_mut(2 * MIB);
        let wrapped = low.chunks_mut(512).zip(high.chunks(512));
        let written = wrapped.filter(|(_, high)| high.iter().any(|byte| *byte != 0));
        written.for_each(|(low, high)| low.copy_from_slice(high));
    };
    destination.core().hook = Some(Box::new(wrap));
    let report = run_job(&source, &destination, &settings());
    let Outcome::VerifyFailed(ranges) = &report.outcome else { panic!("{report:?}") };
    let differing: u64 = ranges.iter().map(|range| range.end - range.start).sum();
    assert!(differing > MIB as u64, "{differing}");
}

#[test]
fn ranges_without_hashes_are_compared_from_both_ends() {
    let map = path("foreign.map");
    let data = noise(4 * MIB, 41);
    // As ddrescue leaves it: a part is copied, without hashes.
    let mut text = Map::new(4 << 20);
    text.set(0..3 << 20, State::Finished);
    std::fs::write(&map, text.emit()).unwrap();
    for wrong in [None, Some(1_234_567)] {
        std::fs::write(&map, text.emit()).unwrap();
        let source = Sim::new("source", data.clone());
        let destination = Sim::new("destination", vec![0; 4 * MIB]);
        destination.core().data[..3 * MIB].copy_from_slice(&data[..3 * MIB]);
        if let Some(wrong) = wrong {
            destination.core().data[wrong] ^= 1;
        }
        let report =
            run_job(&source, &destination, &Settings { map: Some(map.clone()), ..settings() });
        assert_eq!((report.earlier, report.copied), (3 << 20, 1 << 20));
        match (wrong, &report.outcome) {
            (None, Outcome::Success) => {
                assert_eq!(report.verified, 4 << 20);
                assert_eq!(report.hash, Some(*blake3::hash(&data).as_bytes()));
            }
            (Some(_), Outcome::VerifyFailed(ranges)) => {
                assert!(ranges.iter().eq([&(1_232_896..1_236_992)]));
            }
            _ => panic!("{report:?}"),
        }
    }
}

#[test]
fn r47_hung_disk_delays_neither_progress_nor_stop() {
    let source = Sim::new("source", noise(MIB, 1));
    // Longer than this test may take.
    source.core().slow = Duration::from_secs(40);
    let destination = Sim::new("destination", vec![0; MIB]);
    let (stop, heard, begun) = (AtomicBool::new(false), AtomicUsize::new(0), Instant::now());
    std::thread::scope(|scope| {
        let copy =
            scope.spawn(|| run_counting_reports(&source, &destination, &settings(), &stop, &heard));
        while heard.load(Ordering::Relaxed) < 6 && !copy.is_finished() {
            assert!(begun.elapsed() < Duration::from_secs(20), "it says nothing");
            std::thread::sleep(Duration::from_millis(10));
        }
        stop.store(true, Ordering::Release);
        assert!(matches!(copy.join().unwrap().outcome, Outcome::Interrupted));
    });
    assert!(begun.elapsed() < Duration::from_secs(40), "it was waited for");
}

#[test]
fn resumed_copy_reuses_hashes_of_its_map() {
    let map = path("interrupted.map");
    let data = noise(8 * MIB, 51);
    let source = Sim::new("source", data.clone());
    let destination = Sim::new("destination", vec![0; 8 * MIB]);
    let stop = Arc::new(AtomicBool::new(false));
    let theirs = stop.clone();
    destination.core().hook =
        Some(Box::new(move |_, number| theirs.store(number > 60, Ordering::Release)));
    let settings = Settings { map: Some(map.clone()), ..settings() };
    let report = run_until(&source, &destination, &settings, &stop);
    assert!(matches!(report.outcome, Outcome::Interrupted), "{report:?}");
    let saved = map::load(&map).unwrap().unwrap();
    assert_eq!(saved.sum(State::Finished), report.copied);
    destination.core().hook = None;
    source.core().reads.clear();
    let again = run_job(&source, &destination, &settings);
    assert!(matches!(again.outcome, Outcome::Success), "{again:?}");
    assert_eq!(again.hash, Some(*blake3::hash(&data).as_bytes()));
    assert_eq!(again.earlier + again.copied, 8 << 20);
    let read: u64 = source.core().reads.iter().map(|range| range.end - range.start).sum();
    assert!(read <= again.copied + (1 << 20), "only samples are read again: {read}");
}

#[test]
fn r44_differing_range_is_copied_again_from_map() {
    let map = path("wrong.map");
    let data = noise(4 * MIB, 61);
    let source = Sim::new("source", data.clone());
    let destination = Sim::new("destination", vec![0; 4 * MIB]);
    destination.core().flip = Some(1_234_567);
    let settings = Settings { map: Some(map.clone()), ..settings() };
    let report = run_job(&source, &destination, &settings);
    assert!(matches!(report.outcome, Outcome::VerifyFailed(_)), "{report:?}");
    let saved = map::load(&map).unwrap().unwrap();
    assert_eq!(saved.state(1_234_567), Some(State::Untried));
    destination.core().flip = None;
    let again = run_job(&source, &destination, &Settings { verify: false, ..settings.clone() });
    assert!(matches!(again.outcome, Outcome::Success), "{again:?}");
    assert!(again.copied > 0 && destination.data() == data);
    assert!(matches!(run_job(&source, &destination, &settings).outcome, Outcome::Success));
}

/// A new file contains nothing of what the map of an earlier one lists.
#[test]
fn r42_new_destination_is_copied_from_the_start() {
    let map = path("fresh.map");
    // The samples are zeros, and so are the same.
    let mut data = vec![0; 4 * MIB];
    data[70_000] = 1;
    let source = Sim::new("source", data.clone());
    let settings = Settings { map: Some(map), verify: false, ..settings() };
    let run = || {
        let fresh = Sim::new("destination", vec![0; 4 * MIB]);
        fresh.core().disk.blank = true;
        let report = run_job(&source, &fresh, &settings);
        assert!(matches!(report.outcome, Outcome::Success), "{report:?}");
        assert!(fresh.data() == data);
    };
    run();
    run();
}

#[test]
fn rate_limit_holds() {
    let settings = Settings { rate: Some(8 << 20), verify: false, ..settings() };
    let took = || {
        let source = Sim::new("source", noise(4 * MIB, 1));
        let destination = Sim::new("destination", vec![0; 4 * MIB]);
        let report = run_job(&source, &destination, &settings);
        assert!(matches!(report.outcome, Outcome::Success), "{report:?}");
        assert!(report.elapsed >= Duration::from_millis(400), "{:?}", report.elapsed);
        report.elapsed
    };
    // Not much slower either, once the machine is idle.
    assert!((0..10).any(|_| took() < Duration::from_millis(900)));
}
