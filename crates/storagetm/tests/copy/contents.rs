//! `--allocated` and `--files`, on file systems made by mkfs programs.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::process::{Child, Stdio};

use crate::scene::{
    Folder, MIB, PROGRAM, assert_equal, events, random_bytes, run, run_expecting, until_listens,
};
use crate::target::Target;

fn tool(program: &str, args: &[&str]) -> String {
    let output = programs::command(program).args(args).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {message}");
    String::from_utf8(output.stdout).unwrap()
}

/// Creates an ext4 image with two files, whose free blocks contain deleted data.
fn disk(folder: &Folder) -> String {
    let (image, tree) = (folder.path("disk.img"), folder.path("tree"));
    let file = File::create(&image).unwrap();
    (0..64).for_each(|at| file.write_all_at(&random_bytes(at + 1, 1 << 20), at * MIB).unwrap());
    fs::create_dir_all(format!("{tree}/photos")).unwrap();
    fs::write(format!("{tree}/photos/one.raw"), random_bytes(7, 3 << 20)).unwrap();
    fs::write(format!("{tree}/letter"), "dear all").unwrap();
    let nodiscard = ["-q", "-F", "-t", "ext4", "-E", "nodiscard", "-d", &tree, &image];
    tool("mke2fs", &nodiscard);
    image
}

/// R45: only allocated blocks are read, and the tree of files is the same.
#[test]
fn r45_allocated_copy_contains_every_file() {
    if programs::lacks("copies of file systems", &["mke2fs", "debugfs", "e2fsck"]) {
        return;
    }
    let folder = Folder::new();
    let (disk, copy, back) = (disk(&folder), folder.path("copy.img"), folder.path("back"));
    let output = run(&["--json", "--allocated", &disk, &copy]);
    assert_eq!(output.status.code(), Some(0));
    let events = events(&output);
    let end = events.last().unwrap();
    let (copied, zeroes) = (end["copied"].as_u64().unwrap(), end["zeroes"].as_u64().unwrap());
    assert!((3 * MIB..32 * MIB).contains(&copied), "{copied} bytes");
    assert_eq!(copied + zeroes, 64 * MIB);
    let message = events.iter().any(|event| {
        event["event"] == "note" && event["message"].as_str().unwrap().contains("are used")
    });
    assert!(message, "{events:?}");
    tool("e2fsck", &["-fn", &copy]);
    fs::create_dir(&back).unwrap();
    tool("debugfs", &["-R", &format!("rdump / {back}"), &copy]);
    tool("diff", &["-r", "-x", "lost+found", &folder.path("tree"), &back]);
    let whole = folder.path("whole.img");
    run_expecting(0, &[&disk, &whole]);
    assert_equal(&disk, &whole);
}

/// R42: ranges that were left out are zeros in the map as well; a map of an allocated copy does not
/// apply to the whole disk.
#[test]
fn allocated_copy_is_resumed_only_with_allocated() {
    if programs::lacks("copies of file systems", &["mke2fs"]) {
        return;
    }
    let folder = Folder::new();
    let (disk, copy, map) = (disk(&folder), folder.path("copy.img"), folder.path("map"));
    run_expecting(0, &["--allocated", "--map", &map, &disk, &copy]);
    // Without hashes both ends are read and compared.
    let text = fs::read_to_string(&map).unwrap();
    let bare = text.lines().filter(|line| !line.starts_with("# storagetm hash"));
    fs::write(&map, bare.fold(String::new(), |all, line| all + line + "\n")).unwrap();
    run_expecting(0, &["--allocated", "--map", &map, &disk, &copy]);
    let message = run_expecting(5, &["--map", &map, &disk, &copy]);
    assert!(message.contains("--allocated"), "{message}");
}

/// A file that is written to the source meanwhile is missing in the copy, which is no success.
#[test]
fn r45_file_system_that_changes_meanwhile_fails_the_copy() {
    if programs::lacks("copies of file systems", &["mke2fs", "debugfs"]) {
        return;
    }
    let folder = Folder::new();
    let (disk, copy, map) = (disk(&folder), folder.path("copy.img"), folder.path("map"));
    let mut copying = std::process::Command::new(PROGRAM)
        .args(["copy", "--json", "--allocated", "--rate", "4M", "--map", &map, &disk, &copy])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(copying.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("\"copying\"")), "it has begun");
    tool("debugfs", &["-w", "-R", &format!("write {PROGRAM} later"), &disk]);
    let last = lines.last().unwrap();
    assert_eq!(copying.wait().unwrap().code(), Some(1), "{last}");
    assert!(last.contains("have changed while it was copied"), "{last}");
    // What is allocated is another view of the disk.
    let message = run_expecting(5, &["--allocated", "--map", &map, &disk, &copy]);
    assert!(message.contains("map"), "{message}");
}

/// System calls that mount a file system, load a module or start a program, and opens of files by
/// which a device is assembled.
const CALLS: &str = "trace=execve,execveat,mount,fsopen,fsmount,open_tree,move_mount,init_module,finit_module,open,openat";
/// Files by which devices are assembled.
const ASSEMBLERS: [&str; 4] = ["/dev/loop", "/dev/mapper", "/dev/md", "/dev/btrfs-control"];

/// Runs a copy under strace; returns the system calls of all its processes, or `None` if tracing is
/// not permitted.
fn traced(folder: &Folder, args: &[&str]) -> Option<String> {
    let trace = folder.path("trace");
    let mut strace = programs::command("strace");
    strace.args(["-f", "-qq", "-s", "4096", "-e", "signal=none", "-e", CALLS, "-o", &trace]);
    let output = strace.arg(PROGRAM).arg("copy").args(args).stdin(Stdio::null()).output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    if message.contains("PTRACE") || message.contains("ptrace") {
        return None;
    }
    assert!(output.status.success(), "{args:?}: {message}");
    Some(fs::read_to_string(trace).unwrap())
}

/// X42: for no contents of a disk does a copy start a program, mount a file system, load a module
/// or assemble a device.
#[test]
fn x42_copy_probes_mounts_and_assembles_nothing() {
    let test = "contents::x42_copy_probes_mounts_and_assembles_nothing";
    if programs::lacks(test, &["mke2fs", "strace"]) {
        return;
    }
    let folder = Folder::new();
    let (disk, copy) = (disk(&folder), folder.path("copy.img"));
    let target = Target::serve(&["--open", "--listen", "nvme:127.0.0.1:0", &disk]);
    let remote = format!("nvme://127.0.0.1:{}/disk", target.port("nvme"));
    for args in [&[&*disk][..], &["--allocated", &disk], &[&*remote], &["--allocated", &remote]] {
        let Some(calls) = traced(&folder, &[args, &["--force", &copy]].concat()) else {
            return println!("skip {test}: processes may not be traced here");
        };
        let first = |call: &str| -> Vec<String> {
            let quoted =
                calls.lines().filter_map(|line| line.split_once(call)?.1.split('"').nth(1));
            quoted.map(str::to_owned).collect()
        };
        let started = first(" execve(");
        assert!(started.contains(&PROGRAM.to_owned()), "{calls}");
        // The other two processes are sleep inhibitors.
        let may_start = |path: &String| {
            [PROGRAM, "/proc/self/exe"].contains(&path.as_str())
                || path.ends_with("bin/systemd-inhibit")
                || path.ends_with("/cat")
        };
        assert!(started.iter().all(may_start), "{started:?}");
        let opened = [first(" openat("), first(" open(")].concat();
        assert!(opened.contains(&copy), "{opened:?}");
        let assembles = |path: &String| ASSEMBLERS.iter().any(|device| path.starts_with(device));
        assert!(!opened.iter().any(assembles), "{opened:?}");
        for call in ["execveat(", "mount(", "fsopen(", "open_tree(", "init_module("] {
            assert!(!calls.contains(call), "{args:?}: {calls}");
        }
    }
}

/// R45: an unknown or dirty file system is copied as a whole.
#[test]
fn unsupported_file_system_is_copied_whole() {
    if programs::lacks("copies of file systems", &["mke2fs", "debugfs"]) {
        return;
    }
    let folder = Folder::new();
    let (disk, copy) = (disk(&folder), folder.path("copy.img"));
    tool("debugfs", &["-w", "-R", "ssv state 0", &disk]);
    let message = run_expecting(0, &["--allocated", &disk, &copy]);
    assert!(message.contains("the disk is copied whole: not cleanly unmounted"), "{message}");
    assert_equal(&disk, &copy);
}

/// Starts nbdkit with some unreadable sectors.
struct Faulty(Child);

impl Drop for Faulty {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn faulty(folder: &Folder, image: &str, bad: u64) -> (Faulty, String) {
    let (map, socket) = (folder.path("bad.map"), folder.path("nbd.sock"));
    let text = format!(
        "0x00000000 + 1\n0x00000000 0x{bad:X} +\n0x{bad:X} 0x00000400 -\n0x{:X} 0x{:X} +\n",
        bad + 1024,
        64 * MIB - bad - 1024
    );
    fs::write(&map, text).unwrap();
    let args = ["-f", "-r", "-U", &socket, "--filter=ddrescue", "file", image];
    let child = programs::command("nbdkit")
        .args(args)
        .arg(format!("ddrescue-mapfile={map}"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until_listens(&socket);
    (Faulty(child), format!("nbd+unix:///?socket={socket}"))
}

#[test]
fn the_files_with_bad_sectors_are_named() {
    if programs::lacks("copies of file systems", &["mke2fs", "debugfs", "nbdkit"]) {
        return;
    }
    let folder = Folder::new();
    let (disk, copy) = (disk(&folder), folder.path("copy.img"));
    let blocks = tool("debugfs", &["-R", "blocks /photos/one.raw", &disk]);
    let block: u64 = blocks.split_whitespace().nth(100).unwrap().parse().unwrap();
    let size = if blocks.split_whitespace().count() > 2000 { 1024 } else { 4096 };
    let (_server, source) = faulty(&folder, &disk, block * size);
    let message = run_expecting(3, &["--files", &source, &copy]);
    assert!(message.contains("bad sectors in /photos/one.raw"), "{message}");
    assert!(!message.contains("/letter"), "{message}");
}

/// X44: files are examined by another process; if it fails, the copy continues without it.
#[test]
fn crafted_file_system_disables_only_the_option() {
    if programs::lacks("copies of file systems", &["mke2fs"]) {
        return;
    }
    let folder = Folder::new();
    let disk = disk(&folder);
    let file = File::options().write(true).open(&disk).unwrap();
    // Invalid group descriptors with a valid superblock.
    file.write_all_at(&random_bytes(3, 6144), 2048).unwrap();
    let message = run_expecting(0, &["--allocated", &disk, &folder.path("copy.img")]);
    assert!(message.contains("copied whole: damaged"), "{message}");
    assert_equal(&disk, folder.path("copy.img"));
}
