//! R46: GNU ddrescue resumes from our map, and we from its map, without reading rescued data again.
//! R15: exactly the sectors made unreadable are bad.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use crate::foreign::{Folder, MIB, lacks, program, run, same, stdout_of};
use crate::peer::{Peer, run_expecting};

const SECTOR: usize = 512;
/// Where sectors are made unreadable: first sector and how many.
const BAD: [(usize, usize); 6] = [(0, 1), (100, 3), (4000, 64), (9000, 1), (9002, 1), (32767, 1)];
const SIZE: usize = 16 * MIB;

/// Returns a map in which everything except `bad` is rescued, for nbdkit's ddrescue filter.
fn map_of(bad: &[(usize, usize)]) -> String {
    let mut text = "# Mapfile.\n0x00000000     +               1\n".to_owned();
    let mut at = 0;
    for &(first, count) in bad {
        let (start, end) = (first * SECTOR, (first + count) * SECTOR);
        if start > at {
            text.push_str(&format!("{at:#x} {:#x} +\n", start - at));
        }
        text.push_str(&format!("{start:#x} {:#x} -\n", end - start));
        at = end;
    }
    if at < SIZE {
        text.push_str(&format!("{at:#x} {:#x} +\n", SIZE - at));
    }
    text
}

/// Returns the bad sectors of a map: lines of position, size and status after the current position.
fn bad_of(map: &str) -> Vec<(usize, usize)> {
    let number = |word: &str| usize::from_str_radix(word.trim_start_matches("0x"), 16).unwrap();
    let lines = map.lines().filter(|line| !line.starts_with('#')).skip(1);
    let fields = lines.map(|line| line.split_whitespace().collect::<Vec<_>>());
    let bad = fields.filter(|it| it[2] != "+");
    bad.map(|it| (number(it[0]) / SECTOR, number(it[1]) / SECTOR)).collect()
}

/// A disk with unreadable sectors, its server, and a copy of it with the map.
struct Scene {
    folder: Folder,
    image: String,
    peer: Peer,
    copied: String,
    map: String,
}

impl Scene {
    fn new() -> Self {
        let folder = Folder::new();
        let image = folder.random_bytes("disk.img", SIZE);
        let filter = folder.path("filter.map");
        fs::write(&filter, map_of(&BAD)).unwrap();
        let filter = format!("ddrescue-mapfile={filter}");
        let peer = Peer::nbdkit(&folder, &["--filter=ddrescue", "file", &image, &filter]);
        let (copied, map) = (folder.path("copied.img"), folder.path("copied.map"));
        Self { folder, image, peer, copied, map }
    }

    /// Copies what can be read.
    fn copy(&self) {
        run_expecting(3, &["--map", &self.map, &self.peer.uri, &self.copied]);
    }
}

#[test]
fn r15_interop_the_bad_sectors_are_those_that_were_made_bad() {
    if lacks("the bad sectors are those that were made bad", &["nbdkit"]) {
        return;
    }
    let scene = Scene::new();
    scene.copy();
    assert_eq!(bad_of(&fs::read_to_string(&scene.map).unwrap()), BAD);
    let (image, copied) = (fs::read(&scene.image).unwrap(), fs::read(&scene.copied).unwrap());
    let is_bad =
        |sector| BAD.iter().any(|&(first, count)| (first..first + count).contains(&sector));
    for (sector, (was, is)) in image.chunks(SECTOR).zip(copied.chunks(SECTOR)).enumerate() {
        assert!(is == was || is_bad(sector), "sector {sector}");
    }
}

/// A qcow2 image is written in one go, so a bad sector ends it, and leaves no file that looks like an image.
#[test]
fn bad_sectors_leave_no_qcow2_image() {
    if lacks("bad sectors leave no qcow2 image", &["nbdkit"]) {
        return;
    }
    let scene = Scene::new();
    let copied = scene.folder.path("copied.qcow2");
    run_expecting(1, &[&scene.peer.uri, &copied]);
    assert!(!std::path::Path::new(&copied).exists());
}

#[test]
fn r46_interop_ddrescue_goes_on_from_our_map() {
    if lacks("ddrescue goes on from our map", &["nbdkit", "ddrescue"]) {
        return;
    }
    let scene = Scene::new();
    scene.copy();
    // Another disk of that size, so that it shows what ddrescue reads from it.
    let other = scene.folder.path("other.img");
    fs::write(&other, vec![0xbb; SIZE]).unwrap();
    stdout_of("ddrescue", &["--quiet", "--retry-passes=1", &other, &scene.copied, &scene.map]);
    let expected = File::options().write(true).open(&scene.image).unwrap();
    for (first, count) in BAD {
        expected.write_all_at(&vec![0xbb; count * SECTOR], (first * SECTOR) as u64).unwrap();
    }
    same(&scene.image, &scene.copied);
    assert_eq!(bad_of(&fs::read_to_string(&scene.map).unwrap()), []);
    let logged = stdout_of("ddrescuelog", &["--done-status", &scene.map]);
    assert!(logged.is_empty(), "{logged}");
}

#[test]
fn r46_interop_ddrescuelog_understands_our_map() {
    if lacks("ddrescuelog understands our map", &["nbdkit", "ddrescuelog"]) {
        return;
    }
    let scene = Scene::new();
    scene.copy();
    let listed = stdout_of("ddrescuelog", &["--list-blocks=-", &scene.map]);
    let sectors: Vec<usize> = listed.lines().map(|line| line.trim().parse().unwrap()).collect();
    let bad: Vec<usize> = BAD.iter().flat_map(|&(first, count)| first..first + count).collect();
    assert_eq!(sectors, bad);
    // ddrescue does not keep comments; the rest of the map is the same.
    let theirs = scene.folder.path("theirs.map");
    let output = run(program("ddrescuelog").args(["--change-types=?,?", &scene.map]));
    assert!(output.status.success(), "{output:?}");
    fs::write(&theirs, output.stdout).unwrap();
    assert_eq!(bad_of(&fs::read_to_string(theirs).unwrap()), BAD);
}

/// After ddrescue has read the first half, the copy reads the second half, and of the first only
/// the samples that identify the disk.
#[test]
fn r46_interop_we_go_on_from_the_map_of_ddrescue() {
    if lacks("we go on from the map of ddrescue", &["nbdkit", "ddrescue"]) {
        return;
    }
    let folder = Folder::new();
    let image = folder.random_bytes("disk.img", SIZE);
    let (copied, map) = (folder.path("copied.img"), folder.path("copied.map"));
    let half = (SIZE / 2).to_string();
    stdout_of("ddrescue", &["--quiet", &format!("--size={half}"), &image, &copied, &map]);
    let log = folder.path("log");
    let to = format!("logfile={log}");
    let peer = Peer::nbdkit(&folder, &["--filter=log", "file", &image, &to]);
    run_expecting(0, &["--no-verify", "--force", "--map", &map, &peer.uri, &copied]);
    peer.end();
    same(&image, &copied);
    let [again, anew] = read_of(&fs::read_to_string(log).unwrap());
    assert!(again <= SIZE / 8 && anew >= SIZE / 2, "{again} bytes again, {anew} anew");
    assert_eq!(bad_of(&fs::read_to_string(&map).unwrap()), []);
}

/// Returns the bytes read of each half: `... Read id=1 offset=0x0 count=0x1000 ...`.
fn read_of(log: &str) -> [usize; 2] {
    let mut halves = [0, 0];
    for line in log.lines().filter(|line| line.contains(" Read ") && !line.contains("...Read")) {
        let field = |name: &str| {
            let (_, rest) = line.split_once(name)?;
            usize::from_str_radix(rest.split_whitespace().next()?, 16).ok()
        };
        if let Some((offset, count)) = field("offset=0x").zip(field("count=0x")) {
            halves[usize::from(offset >= SIZE / 2)] += count;
        }
    }
    halves
}

/// Sectors that are bad in the map of ddrescue are retried; the copy is complete if they can be
/// read.
#[test]
fn r46_interop_bad_sectors_of_ddrescue_are_retried() {
    if lacks(
        "we try again what ddrescue could not read",
        &["nbdkit", "ddrescue", "nbdfuse", "fusermount3"],
    ) {
        return;
    }
    let scene = Scene::new();
    // ddrescue cannot read NBD: it makes the map from a file without the bad sectors.
    let before = map_of(&BAD);
    fs::write(&scene.map, &before).unwrap();
    let domain = ["--quiet", "--force", "--no-scrape", "--no-trim"];
    fs::write(&scene.copied, fs::read(&scene.image).unwrap()).unwrap();
    let file = File::options().write(true).open(&scene.copied).unwrap();
    for (first, count) in BAD {
        file.write_all_at(&vec![0; count * SECTOR], (first * SECTOR) as u64).unwrap();
    }
    stdout_of("ddrescue", &[&domain[..], &[&scene.image, &scene.copied, &scene.map]].concat());
    assert_eq!(bad_of(&fs::read_to_string(&scene.map).unwrap()), BAD);
    let healthy = Peer::nbdkit(&scene.folder, &["file", &scene.image]);
    let again = ["--force", "--retries", "2", "--map", &scene.map, &healthy.uri, &scene.copied];
    run_expecting(0, &again);
    same(&scene.image, &scene.copied);
}
