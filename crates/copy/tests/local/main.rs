//! Copies between local files and pipes, and interchange of maps with GNU ddrescue and nbdkit.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use client::{Dial, Transport};
use copy::map::State;
use copy::{
    CopyError, End, Endpoint, EndpointError, FileEndpoint, Job, Map, NbdEndpoint, OpenMode,
    Outcome, Refusal, Report, Settings,
};

const MIB: usize = 1 << 20;

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let word = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..len.div_ceil(8)).flat_map(word).take(len).collect()
}

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let dir =
            std::env::temp_dir().join(format!("storagetm-local-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn source(path: &Path) -> End {
    End::Disk(Box::new(FileEndpoint::source(path, "")))
}

fn destination(path: &Path, mode: OpenMode) -> End {
    End::Disk(Box::new(FileEndpoint::destination(path, mode, "")))
}

fn run(source: End, destination: End, settings: &Settings) -> Report {
    let job = Job { source, destination, settings: settings.clone(), check: None };
    job.run(&AtomicBool::new(false), &mut |_| {})
}

fn assert_success(report: &Report) {
    assert!(matches!(report.outcome, Outcome::Success), "{report:?}");
}

/// A sparse file of a bit more than 8 MiB.
fn image(path: &Path) -> Vec<u8> {
    let mut data = noise(8 * MIB + 777, 3);
    data[2 * MIB..5 * MIB].fill(0);
    let file = fs::File::create(path).unwrap();
    file.set_len(data.len() as u64).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &data[..2 * MIB], 0).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &data[5 * MIB..], 5 << 20).unwrap();
    data
}

#[test]
fn file_is_copied_sparse() {
    let dir = Dir::new("file");
    let data = image(&dir.path("from"));
    for verify in [true, false] {
        let to = dir.path("to");
        let _ = fs::remove_file(&to);
        let settings = Settings { verify, ..Settings::default() };
        let report =
            run(source(&dir.path("from")), destination(&to, OpenMode::CreateNew), &settings);
        assert_success(&report);
        assert!(fs::read(&to).unwrap() == data);
        assert!(fs::metadata(&to).unwrap().blocks() * 512 < 6 * MIB as u64, "holes stay holes");
        assert_eq!(report.hash, verify.then(|| *blake3::hash(&data).as_bytes()));
        assert_eq!(report.verified, if verify { data.len() as u64 } else { 0 });
    }
    let again = run(
        source(&dir.path("from")),
        destination(&dir.path("to"), OpenMode::CreateNew),
        &Settings::default(),
    );
    assert!(matches!(again.outcome, Outcome::Refused(Refusal::Destination(_))), "{again:?}");
}

#[test]
fn overwritten_file_keeps_no_old_data() {
    let dir = Dir::new("over");
    let data = image(&dir.path("from"));
    fs::write(dir.path("to"), noise(9 * MIB, 9)).unwrap();
    let to = destination(&dir.path("to"), OpenMode::Replace);
    assert_success(&run(source(&dir.path("from")), to, &Settings::default()));
    assert!(fs::read(dir.path("to")).unwrap() == data);
}

#[test]
fn r43_file_is_unchanged_if_map_cannot_be_written() {
    let dir = Dir::new("unmapped");
    image(&dir.path("from"));
    fs::write(dir.path("to"), "precious").unwrap();
    let to = destination(&dir.path("to"), OpenMode::Replace);
    let settings = Settings { map: Some(dir.path("absent/map")), ..Settings::default() };
    let report = run(source(&dir.path("from")), to, &settings);
    assert!(matches!(report.outcome, Outcome::Refused(Refusal::Map { .. })), "{report:?}");
    assert_eq!(fs::read(dir.path("to")).unwrap(), b"precious");
}

#[test]
fn x43_virtual_machine_image_is_copied_raw() {
    let dir = Dir::new("x43");
    let mut data = noise(MIB, 4);
    data[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    data[8..32].copy_from_slice(b"\0\0\0\0\0\0\x02\0\0\0\0\x0b\0\0\0\x10\0\0\0\0\x40\0\0\0");
    fs::write(dir.path("from"), &data).unwrap();
    let to = destination(&dir.path("to"), OpenMode::CreateNew);
    assert_success(&run(source(&dir.path("from")), to, &Settings::default()));
    assert!(fs::read(dir.path("to")).unwrap() == data);
}

#[test]
fn empty_and_small_files_are_copied() {
    let dir = Dir::new("small");
    for len in [0, 1, 511, 512, 1024, 1025, 65_536, 70_001] {
        let data = noise(len, 5);
        fs::write(dir.path("from"), &data).unwrap();
        let to = destination(&dir.path("to"), OpenMode::Replace);
        let report = run(source(&dir.path("from")), to, &Settings::default());
        assert_success(&report);
        assert!(fs::read(dir.path("to")).unwrap() == data, "{len}");
        assert_eq!(report.hash, Some(*blake3::hash(&data).as_bytes()), "{len}");
    }
}

/// What was copied before a kill ends within a BLAKE3 chunk, and has no hash.
#[test]
fn disk_copied_in_two_runs_has_a_hash() {
    let dir = Dir::new("runs");
    let data = noise(5 * MIB + 512, 8);
    for edge in [512, 70_144, 2 * MIB, 3 * MIB + 512, 5 * MIB] {
        let mut map = Map::new(data.len() as u64);
        map.set(0..edge as u64, State::Finished);
        fs::write(dir.path("map"), map.emit()).unwrap();
        fs::write(dir.path("from"), &data).unwrap();
        let mut half = vec![0; data.len()];
        half[..edge].copy_from_slice(&data[..edge]);
        fs::write(dir.path("to"), half).unwrap();
        let settings = Settings { map: Some(dir.path("map")), ..Settings::default() };
        let to = destination(&dir.path("to"), OpenMode::Resume);
        let report = run(source(&dir.path("from")), to, &settings);
        assert_success(&report);
        assert_eq!((report.earlier, report.verified), (edge as u64, data.len() as u64));
        assert_eq!(report.hash, Some(*blake3::hash(&data).as_bytes()), "{edge}");
    }
}

#[test]
fn pipe_and_file_are_copied_both_ways() {
    let dir = Dir::new("pipe");
    for (len, hole) in
        [(777, 0), (MIB, 0), (2 * MIB, MIB), (5 * MIB + 3, 3 * MIB), (4 * MIB, 4 * MIB)]
    {
        let mut data = noise(len, 6);
        data[len.saturating_sub(hole)..].fill(0);
        fs::write(dir.path("from"), &data).unwrap();
        let mut cat =
            Command::new("cat").arg(dir.path("from")).stdout(Stdio::piped()).spawn().unwrap();
        let pipe = End::Pipe(OwnedFd::from(cat.stdout.take().unwrap()).into());
        let to = destination(&dir.path("to"), OpenMode::Replace);
        let report = run(pipe, to, &Settings::default());
        cat.wait().unwrap();
        assert_success(&report);
        assert!(fs::read(dir.path("to")).unwrap() == data, "{len}");
        assert_eq!(report.hash, Some(*blake3::hash(&data).as_bytes()), "{len}");
        assert_eq!((report.bytes, report.verified), (len as u64, len as u64));

        let out = fs::File::create(dir.path("out")).unwrap();
        let mut cat = Command::new("cat").stdin(Stdio::piped()).stdout(out).spawn().unwrap();
        let pipe = End::Pipe(OwnedFd::from(cat.stdin.take().unwrap()).into());
        let report = run(source(&dir.path("from")), pipe, &Settings::default());
        cat.wait().unwrap();
        assert_success(&report);
        assert!(fs::read(dir.path("out")).unwrap() == data, "{len}");
        assert_eq!(report.hash, Some(*blake3::hash(&data).as_bytes()), "{len}");
    }
}

#[test]
fn length_other_than_announced_fails() {
    let dir = Dir::new("announced");
    for (announced, success) in [(1000, true), (999, false), (1001, false)] {
        let (output, mut input) = std::io::pipe().unwrap();
        std::io::Write::write_all(&mut input, &[7; 1000]).unwrap();
        drop(input);
        let pipe = copy::Pipe { bytes: Some(announced), ..OwnedFd::from(output).into() };
        let to = destination(&dir.path("to"), OpenMode::Replace);
        let report = run(End::Pipe(pipe), to, &Settings::default());
        match (&report.outcome, success) {
            (Outcome::Success, true) | (Outcome::Failed(CopyError::Incomplete(_)), false) => {}
            _ => panic!("{announced}: {report:?}"),
        }
    }
}

#[test]
fn file_of_another_copy_is_not_extended() {
    let dir = Dir::new("longer");
    let data = noise(MIB, 9);
    let [from, to, map] = ["from", "to", "map"].map(|name| dir.path(name));
    fs::write(&from, &data).unwrap();
    let mut finished = Map::new(1 << 20);
    finished.set(0..1 << 20, State::Finished);
    let settings = Settings { map: Some(map.clone()), ..Settings::default() };
    for there in [noise(MIB / 2, 10), Vec::new(), data[..4096].to_vec()] {
        fs::write(&map, finished.emit()).unwrap();
        fs::write(&to, &there).unwrap();
        let report = run(source(&from), destination(&to, OpenMode::Resume), &settings);
        let refused = matches!(report.outcome, Outcome::Refused(Refusal::AnotherDisk { .. }));
        assert!(refused, "{report:?}");
        assert!(fs::read(&to).unwrap() == there);
    }
}

/// An empty pipe of a failed program is an error.
#[test]
fn empty_pipe_fails() {
    let dir = Dir::new("empty-pipe");
    let mut no = Command::new("true").stdout(Stdio::piped()).spawn().unwrap();
    let pipe = End::Pipe(OwnedFd::from(no.stdout.take().unwrap()).into());
    let to = destination(&dir.path("to"), OpenMode::Replace);
    let report = run(pipe, to, &Settings::default());
    no.wait().unwrap();
    assert!(matches!(report.outcome, Outcome::Failed(CopyError::EmptyPipe)), "{report:?}");
}

#[test]
fn file_of_the_right_length_is_not_truncated() {
    use std::os::unix::fs::MetadataExt;
    let dir = Dir::new("same-length");
    let data = noise(MIB, 6);
    fs::write(dir.path("from"), &data).unwrap();
    fs::write(dir.path("to"), noise(MIB, 7)).unwrap();
    let blocks = fs::metadata(dir.path("to")).unwrap().blocks();
    let endpoint = FileEndpoint::destination(&dir.path("to"), OpenMode::Replace, "");
    endpoint.prepare(MIB as u64).unwrap();
    assert_eq!(fs::metadata(dir.path("to")).unwrap().blocks(), blocks);
    assert!(!endpoint.open().unwrap().0.blank);
    let report = run(
        source(&dir.path("from")),
        destination(&dir.path("to"), OpenMode::Replace),
        &Settings::default(),
    );
    assert_success(&report);
    assert!(fs::read(dir.path("to")).unwrap() == data);
}

/// A piece of 1 MiB is charged after it was moved: the 9th waits for 8.
#[test]
fn rate_limit_holds_for_pipes() {
    let dir = Dir::new("pipe-rate");
    let data = image(&dir.path("from"));
    let settings = Settings { rate: Some(16 << 20), ..Settings::default() };
    let file = |name: &str| fs::File::create(dir.path(name)).unwrap();
    let into_pipe =
        run(source(&dir.path("from")), End::Pipe(OwnedFd::from(file("out")).into()), &settings);
    assert_success(&into_pipe);
    assert!(into_pipe.elapsed >= Duration::from_millis(500), "{:?}", into_pipe.elapsed);
    assert!(fs::read(dir.path("out")).unwrap() == data);
    let pipe = End::Pipe(OwnedFd::from(fs::File::open(dir.path("from")).unwrap()).into());
    let to = destination(&dir.path("to"), OpenMode::CreateNew);
    let settings = Settings { verify: false, ..settings };
    let out_of_pipe = run(pipe, to, &settings);
    assert_success(&out_of_pipe);
    assert!(out_of_pipe.elapsed >= Duration::from_millis(500), "{:?}", out_of_pipe.elapsed);
    assert!(fs::read(dir.path("to")).unwrap() == data);
}

#[test]
fn broken_pipe_fails() {
    let dir = Dir::new("broken");
    fs::write(dir.path("from"), noise(8 * MIB, 6)).unwrap();
    let mut head = Command::new("head")
        .args(["-c", "100"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let pipe = End::Pipe(OwnedFd::from(head.stdin.take().unwrap()).into());
    let report = run(source(&dir.path("from")), pipe, &Settings::default());
    head.wait().unwrap();
    assert!(matches!(report.outcome, Outcome::Failed(_)), "{report:?}");
}

fn ddrescue(arguments: &[&Path]) -> bool {
    if programs::lacks("maps of ddrescue", &["ddrescue"]) {
        return false;
    }
    let run = programs::command("ddrescue").arg("--quiet").args(arguments).status();
    assert!(run.unwrap().success());
    true
}

#[test]
fn r46_ddrescue_resumes_from_our_map() {
    let dir = Dir::new("ours");
    let data = noise(4 * MIB, 7);
    let [from, to, map] = ["from", "to", "map"].map(|name| dir.path(name));
    fs::write(&from, &data).unwrap();
    let settings = Settings { map: Some(map.clone()), ..Settings::default() };
    assert_success(&run(source(&from), destination(&to, OpenMode::CreateNew), &settings));
    let text = fs::read_to_string(&map).unwrap();
    let mut ours = Map::parse(&text).unwrap();
    assert_eq!(ours.sum(State::Finished), 4 << 20);
    // Some is left to do; what is finished is marked in the destination, to show that it is not
    // copied again.
    ours.set(1 << 20..2 << 20, State::Untried);
    ours.set(3 << 20..(3 << 20) + 65_536, State::Untrimmed);
    fs::write(&map, ours.emit()).unwrap();
    fs::write(&to, vec![0xaa; 4 * MIB]).unwrap();
    if !ddrescue(&[&from, &to, &map]) {
        return;
    }
    let mut expected = vec![0xaa; 4 * MIB];
    for range in [MIB..2 * MIB, 3 * MIB..3 * MIB + 65_536] {
        expected[range.clone()].copy_from_slice(&data[range]);
    }
    assert!(fs::read(&to).unwrap() == expected);
    assert_eq!(
        Map::parse(&fs::read_to_string(&map).unwrap()).unwrap().sum(State::Finished),
        4 << 20
    );
}

#[test]
fn r46_copy_resumes_from_ddrescue_map() {
    let dir = Dir::new("theirs");
    let data = noise(4 * MIB, 8);
    let [from, to, map] = ["from", "to", "map"].map(|name| dir.path(name));
    fs::write(&from, &data).unwrap();
    if !ddrescue(&[Path::new("--size=3145728"), &from, &to, &map]) {
        return;
    }
    fs::File::options().write(true).open(&to).unwrap().set_len(4 << 20).unwrap();
    let settings = Settings { map: Some(map.clone()), ..Settings::default() };
    let report = run(source(&from), destination(&to, OpenMode::Resume), &settings);
    assert_success(&report);
    assert_eq!((report.earlier, report.copied, report.verified), (3 << 20, 1 << 20, 4 << 20));
    assert!(fs::read(&to).unwrap() == data);
}

/// nbdkit with a file whose bad sectors are those of a ddrescue map.
struct Nbdkit(Child);

impl Nbdkit {
    fn start(dir: &Dir, file: &Path, map: &Path) -> Option<(Self, NbdEndpoint)> {
        if programs::lacks("a source with bad sectors", &["nbdkit"]) {
            return None;
        }
        let socket = dir.path("socket");
        let _ = fs::remove_file(&socket);
        let setting = |name: &str, path: &Path| format!("{name}={}", path.display());
        let server = programs::command("nbdkit")
            .args(["--foreground", "--filter=ddrescue", "--unix"])
            .arg(&socket)
            .args(["file", &setting("file", file), &setting("ddrescue-mapfile", map)])
            .spawn()
            .unwrap();
        // The socket exists before nbdkit listens.
        for _ in 0..6000 {
            if UnixStream::connect(&socket).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let dial: Dial = Arc::new(move || match UnixStream::connect(&socket) {
            Ok(stream) => Ok(Box::new(stream) as Box<dyn Transport>),
            Err(error) => Err(EndpointError::Temporary(error.to_string())),
        });
        Some((Self(server), NbdEndpoint::new("nbdkit", "", dial)))
    }
}

impl Drop for Nbdkit {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Copies a disk of nbdkit with bad sectors, and returns the report and the map.
fn rescue(dir: &Dir, from: &Path, bad: &Path, name: &str) -> Option<(Report, PathBuf)> {
    let (_server, endpoint) = Nbdkit::start(dir, from, bad)?;
    let (to, map) = (dir.path(name), dir.path(&format!("{name}.map")));
    let settings = Settings { map: Some(map.clone()), ..Settings::default() };
    let report =
        run(End::Disk(Box::new(endpoint)), destination(&to, OpenMode::CreateNew), &settings);
    Some((report, map))
}

#[test]
fn r15_r46_nbdkit_serves_the_bad_sectors_of_our_map() {
    let dir = Dir::new("rescue");
    let data = noise(16 * MIB, 9);
    fs::write(dir.path("from"), &data).unwrap();
    let mut bad = Map::new(16 << 20);
    bad.set(0..16 << 20, State::Finished);
    for n in 0..100u64 {
        let sector = n * n * 29 % (32 * 1024);
        bad.set(sector * 512..(sector + 1 + n % 3) * 512, State::Bad);
    }
    fs::write(dir.path("bad"), bad.emit()).unwrap();
    let Some((report, map)) = rescue(&dir, &dir.path("from"), &dir.path("bad"), "one") else {
        return;
    };
    assert!(matches!(report.outcome, Outcome::BadSectors), "{report:?}");
    assert!(bad.all(State::Bad).eq(report.bad.iter().cloned()), "{:?}", report.bad);
    let arrived = fs::read(dir.path("one")).unwrap();
    for range in bad.all(State::Finished) {
        let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        assert!(arrived[range.clone()] == data[range.clone()], "{range:?}");
    }
    let Some((again, _)) = rescue(&dir, &dir.path("from"), &map, "two") else { return };
    assert_eq!(again.bad, report.bad);
}
