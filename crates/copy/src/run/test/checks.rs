//! Checks of the destination before its ends are copied.

use std::sync::Arc;

use super::*;
use crate::{Check, Unchecked};

/// Runs a copy whose check is `check`.
fn run_checked(
    source: &Sim,
    destination: &Sim,
    settings: &Settings,
    check: impl FnOnce(&Unchecked) -> Result<(), CopyError> + Send + 'static,
) -> Report {
    let (source, to) = (Box::new(source.clone()), Box::new(destination.clone()));
    let (source, destination) = (End::Disk(source), End::Disk(to));
    let check = Some(Check(Box::new(check)));
    let job = Job { source, destination, settings: settings.clone(), check };
    job.run(&AtomicBool::new(false), &mut |_| {})
}

fn unexpected() -> CopyError {
    CopyError::Unexpected("another hash".to_owned())
}

fn map_path(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("checked-{name}-{}", std::process::id()))
}

#[test]
fn r51_ends_are_copied_after_the_check() {
    let data = noise(5 * MIB, 51);
    let (source, destination) = (Sim::new("a", data.clone()), Sim::new("b", noise(5 * MIB, 52)));
    let (seen, expected) = (destination.clone(), data.clone());
    let check = move |unchecked: &Unchecked| {
        let there = seen.core().data.clone();
        assert_eq!(unchecked.held, [0..MIB as u64, 4 * MIB as u64..5 * MIB as u64]);
        assert!(there[..MIB].iter().all(|byte| *byte == 0));
        assert!(there[MIB..4 * MIB] == expected[MIB..4 * MIB]);
        Ok(())
    };
    let report = run_checked(&source, &destination, &settings(), check);
    assert!(matches!(report.outcome, Outcome::Success), "{report:?}");
    assert!(destination.core().data == data);
    assert_eq!((report.copied + report.zeroes, report.verified), (5 * MIB as u64, 5 * MIB as u64));
    assert_eq!(report.hash, Some(*blake3::hash(&data).as_bytes()));
}

#[test]
fn r51_failed_check_leaves_the_ends_out() {
    let data = noise(5 * MIB, 51);
    let (source, destination) = (Sim::new("a", data.clone()), Sim::new("b", vec![1; 5 * MIB]));
    let map = map_path("failed");
    let settings = Settings { map: Some(map.clone()), ..settings() };
    let report = run_checked(&source, &destination, &settings, |_| Err(unexpected()));
    assert!(matches!(report.outcome, Outcome::Failed(CopyError::Unexpected(_))), "{report:?}");
    let there = destination.core().data.clone();
    assert!(there[..MIB].iter().all(|byte| *byte == 0) && there[4 * MIB..] == vec![1; MIB]);
    // What is not what was expected is copied again as a whole.
    assert_eq!(map::load(&map).unwrap().unwrap().sum(State::Finished), 0);
    let report = run_checked(&source, &destination, &settings, |_| Ok(()));
    assert!(matches!(report.outcome, Outcome::Success), "{report:?}");
    assert!(destination.core().data == data);
    assert_eq!((report.earlier, report.verified), (0, 5 * MIB as u64));
    // The ends are copied once more, after another check.
    let report = run_checked(&source, &destination, &settings, |_| Ok(()));
    assert_eq!((report.earlier, report.copied), (3 * MIB as u64, 2 * MIB as u64), "{report:?}");
    for suffix in ["", ".bak"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", map.display()));
    }
}

#[test]
fn r51_map_does_not_list_what_waits_for_the_check() {
    let (source, destination) =
        (Sim::new("a", noise(5 * MIB, 51)), Sim::new("b", vec![1; 5 * MIB]));
    let map = map_path("waiting");
    let settings = Settings { map: Some(map.clone()), ..settings() };
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (theirs, path) = (seen.clone(), map.clone());
    let report = run_checked(&source, &destination, &settings, move |_| {
        let finished = map::load(&path).unwrap().unwrap();
        *theirs.lock().unwrap() = finished.all(State::Finished).collect::<Vec<_>>();
        Err(CopyError::Incomplete("the destination was removed".to_owned()))
    });
    assert!(matches!(report.outcome, Outcome::Failed(CopyError::Incomplete(_))), "{report:?}");
    assert_eq!(*seen.lock().unwrap(), vec![MIB as u64..4 * MIB as u64; 1]);
    // Not what the check is about: the copy goes on from there.
    assert_eq!(map::load(&map).unwrap().unwrap().sum(State::Finished), 3 * MIB as u64);
    for suffix in ["", ".bak"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", map.display()));
    }
}

/// A destination that does not hold what was written to it is not called a wrong source.
#[test]
fn r51_damaged_destination_is_no_unexpected_source() {
    let (source, destination) =
        (Sim::new("a", noise(5 * MIB, 51)), Sim::new("b", vec![0; 5 * MIB]));
    destination.core().flip = Some(2 * MIB + 5);
    let report = run_checked(&source, &destination, &settings(), |_| Err(unexpected()));
    assert!(matches!(report.outcome, Outcome::VerifyFailed(_)), "{report:?}");
    assert!(destination.core().data[..MIB].iter().all(|byte| *byte == 0));
}

#[test]
fn small_disk_is_copied_after_the_check() {
    for len in [512, MIB, MIB + 512, 2 * MIB] {
        let data = noise(len, 51);
        let (source, destination) = (Sim::new("a", data.clone()), Sim::new("b", vec![0; len]));
        let seen = destination.clone();
        let report = run_checked(&source, &destination, &settings(), move |_| {
            assert!(seen.core().data.iter().all(|byte| *byte == 0));
            Ok(())
        });
        assert!(matches!(report.outcome, Outcome::Success), "{len}: {report:?}");
        assert!(destination.core().data == data);
    }
}

#[test]
fn check_reads_on_after_lost_connections() {
    let data = noise(5 * MIB, 51);
    let (source, destination) = (Sim::new("a", data.clone()), Sim::new("b", vec![0; 5 * MIB]));
    destination.core().disk.remote = true;
    let (to, from) = (destination.clone(), source.clone());
    let report = run_checked(&source, &destination, &settings(), move |unchecked| {
        [&to, &from].iter().for_each(|end| end.core().lose_after = Some(3));
        let (mut there, disk) = (unchecked.destination(), from.core().disk.clone());
        let mut held = unchecked.reader(Arc::new(from.clone()), disk);
        for (number, at) in (0..5 * MIB).step_by(1 << 16).enumerate() {
            let mut bytes = vec![0; 1 << 16];
            let is_held = unchecked.held.iter().any(|range| range.contains(&(at as u64)));
            let end = if is_held { &mut held } else { &mut there };
            assert_eq!(end.read(at as u64, &mut bytes)?, bytes.len(), "{number}");
            assert!(bytes == data[at..at + bytes.len()], "{number}");
        }
        assert!(to.core().losses > 5 && from.core().losses > 5);
        [&to, &from].iter().for_each(|end| end.core().lose_after = None);
        assert_eq!(there.read(5 * MIB as u64, &mut [0; 512])?, 0);
        Ok(())
    });
    assert!(matches!(report.outcome, Outcome::Success), "{report:?}");
}

#[test]
fn hashes_of_earlier_runs_stay_without_verification() {
    let data = noise(5 * MIB, 51);
    let (source, destination) = (Sim::new("a", data.clone()), Sim::new("b", vec![0; 5 * MIB]));
    let map = map_path("hashes");
    let hashes = || map::load(&map).unwrap().unwrap().metadata.hashes;
    let with = |verify| Settings { map: Some(map.clone()), verify, ..settings() };
    run_checked(&source, &destination, &with(true), |_| {
        Err(CopyError::Incomplete("the destination was removed".to_owned()))
    });
    let before = hashes();
    assert!(!before.is_empty());
    let report = run_checked(&source, &destination, &with(false), |_| Ok(()));
    assert!(matches!(report.outcome, Outcome::Success), "{report:?}");
    assert_eq!(hashes(), before);
    for suffix in ["", ".bak"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", map.display()));
    }
}
