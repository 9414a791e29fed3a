//! Images and disks that are in use, that have equal identities, or whose size changes while
//! exported.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Signal, geteuid};
use serde_json::Value;

use crate::nbd_client::NbdClient;
use crate::{ANY_PORT, Folder, LONG, PROGRAM, Running, run, sentence, text};

const SIZE: u64 = 16 << 20;

fn output(program: &str, arguments: &[&str]) -> Output {
    programs::command(program).args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// A paused virtual machine with an image as its disk; killed when dropped.
struct Paused(Child);

impl Paused {
    fn new(image: &str) -> Self {
        let drive = format!("file={image},format=raw,if=none,id=a");
        let child = programs::command("qemu-system-x86_64")
            .args(["-accel", "tcg", "-M", "q35", "-m", "64", "-nodefaults", "-display", "none"])
            .args(["-S", "-drive", &drive, "-device", "virtio-blk-pci,drive=a"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut paused = Self(child);
        let end = Instant::now() + LONG;
        while !paused.has_locked() {
            assert!(paused.0.try_wait().unwrap().is_none(), "qemu has ended");
            assert!(Instant::now() < end, "qemu does not lock its image");
            sleep(Duration::from_millis(50));
        }
        paused
    }

    /// Returns whether all locks are taken; those on the bytes of unshared permissions come last.
    fn has_locked(&self) -> bool {
        let folder = format!("/proc/{}/fdinfo", self.0.id());
        let files = fs::read_dir(folder).unwrap().filter_map(Result::ok);
        let infos: Vec<String> =
            files.filter_map(|file| fs::read_to_string(file.path()).ok()).collect();
        let is_lock = |line: &str| {
            line.starts_with("lock:") && line.contains("OFDLCK") && line.contains(" 201 ")
        };
        infos.iter().any(|info| info.lines().any(is_lock))
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn r57_image_of_a_paused_machine_is_neither_lent_nor_written() {
    if programs::lacks("images of virtual machines", &["qemu-system-x86_64"]) {
        return;
    }
    let folder = Folder::new();
    let (image, source) = (folder.image("q.raw", SIZE), folder.image("s.img", SIZE));
    fs::write(&source, vec![7; 1 << 20]).unwrap();
    let paused = Paused::new(&image);
    let user = format!("is in use by another program (process {}, qemu", paused.0.id());
    let message = sentence(&run(&["serve", "--listen", ANY_PORT, "--writable", &image]), 1);
    assert!(message.contains(&user) && !message.contains("--allow-in-use"), "{message}");
    let message = sentence(&run(&["serve", "--listen", ANY_PORT, &image]), 1);
    assert!(message.contains(&user) && message.contains("--allow-in-use"), "{message}");
    let copied = run(&["copy", "--force", &source, &image]);
    let message = String::from_utf8(copied.stderr).unwrap();
    assert!(copied.status.code() == Some(5) && message.contains(&user), "{message}");
    let copied = run(&["copy", &image, &text(&folder.0.0.join("new.img"))]);
    let message = String::from_utf8(copied.stderr).unwrap();
    let program = format!("by another program (process {}, qemu", paused.0.id());
    assert!(copied.status.code() == Some(5) && message.contains(&program), "{message}");
    assert!(fs::read(&image).unwrap().iter().all(|byte| *byte == 0), "nothing was written");
    // With --allow-in-use the image is exported read-only, with a note.
    let allowed = ["--json", "--listen", ANY_PORT, "--allow-in-use", &image];
    let mut running = Running::serve(&allowed);
    running.until("ready");
    let note = running.event();
    assert!(note["message"].as_str().unwrap().contains(&user), "{note}");
    assert!(paused.has_locked());
    stop(&mut running);
    drop(paused);
    let mut running = Running::serve(&["--json", "--listen", ANY_PORT, "--writable", &image]);
    running.until("ready");
    stop(&mut running);
}

/// Ends a server and waits until it has closed its disks.
fn stop(running: &mut Running) {
    running.signal(Signal::TERM);
    assert!(running.end().success());
}

#[test]
fn r57_qemu_does_not_open_what_is_lent_beside_it() {
    if programs::lacks("locks that qemu sees", &["qemu-img", "qemu-io"]) {
        return;
    }
    let folder = Folder::new();
    let image = folder.image("lent.raw", SIZE);
    let copied = text(&folder.0.0.join("copied.raw"));
    let read = || output("qemu-img", &["convert", "-f", "raw", "-O", "raw", &image, &copied]);
    let write = || output("qemu-io", &["-f", "raw", "-c", "write 0 512", &image]);
    let is_kept_out = |output: Output| {
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        !output.status.success() && message.contains("lock")
    };
    let mut running = Running::serve(&["--json", "--listen", ANY_PORT, &image]);
    running.until("ready");
    assert!(read().status.success(), "qemu may read what is only read");
    assert!(is_kept_out(write()));
    stop(&mut running);
    let mut running = Running::serve(&["--json", "--listen", ANY_PORT, "--writable", &image]);
    running.until("ready");
    assert!(is_kept_out(read()) && is_kept_out(write()));
    stop(&mut running);
    assert!(write().status.success(), "the locks do not outlive the program");
}

/// A loop device; detached when dropped.
struct Loop(String);

impl Loop {
    fn new(image: &str) -> Option<Self> {
        let run = programs::command("losetup").args(["--find", "--show", image]).output();
        let Some(run) = run.ok().filter(|run| run.status.success()) else {
            println!("skip twins and clones: no loop devices here");
            return None;
        };
        Some(Self(String::from_utf8(run.stdout).unwrap().trim().to_owned()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = programs::command("losetup").args(["--detach", &self.0]).status();
    }
}

/// Two loop devices of an image with a partition table and its clone.
fn clones(folder: &Folder) -> Option<(Loop, Loop)> {
    let (first, second) = (folder.image("g1.img", SIZE), text(&folder.0.0.join("g2.img")));
    let table = folder.0.0.join("table");
    fs::write(&table, "label: gpt\nsize=8MiB\n").unwrap();
    if programs::lacks("twins and clones", &["sfdisk", "losetup", "unshare"]) {
        return None;
    }
    let mut sfdisk = programs::command("sfdisk");
    sfdisk.args(["--quiet", &first]).stdin(fs::File::open(table).unwrap());
    assert!(sfdisk.status().unwrap().success());
    fs::copy(&first, &second).unwrap();
    Some((Loop::new(&first)?, Loop::new(&second)?))
}

/// Returns the exports of each server.
fn lent(running: &Running) -> Vec<Value> {
    let events = running.until("ready");
    events.into_iter().filter(|event| event["event"] == "lent").collect()
}

fn names(lent: &[Value]) -> Vec<(String, String)> {
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    lent.iter().map(|disk| (word(&disk["disk"]), word(&disk["nqn"]))).collect()
}

#[test]
fn r58_clones_on_two_machines_are_two_disks() {
    let folder = Folder::new();
    if !geteuid().is_root() || !Path::new("/etc/machine-id").exists() {
        return println!("skip clones on two machines: only root makes loop devices");
    }
    let Some((first, second)) = clones(&folder) else { return };
    let on_machine = |digit: &str, disk: &Loop| {
        let identifier = folder.0.0.join(format!("machine-{digit}"));
        fs::write(&identifier, digit.repeat(32) + "\n").unwrap();
        let script = "mount --bind \"$1\" /etc/machine-id && shift && exec \"$@\"";
        let mut command = programs::command("unshare");
        command.args(["--mount", "sh", "-c", script, "sh"]).arg(identifier).arg(PROGRAM);
        command.args(["serve", "--json", "--listen", "nvme:127.0.0.1:0", &disk.0]);
        Running::start(&mut command)
    };
    let (mut one, mut two) = (on_machine("1", &first), on_machine("2", &second));
    let (here, there) = (lent(&one), lent(&two));
    stop(&mut one);
    stop(&mut two);
    assert_ne!(here[0]["nqn"], there[0]["nqn"]);
    assert_ne!(here[0]["serial"], there[0]["serial"]);
    // The same disk on another machine has the same identity.
    let mut three = on_machine("2", &first);
    let moved = lent(&three);
    stop(&mut three);
    assert_ne!(moved[0]["nqn"], here[0]["nqn"]);
}

#[test]
fn r58_twins_are_both_lent_whatever_their_order() {
    let folder = Folder::new();
    let Some((first, second)) = clones(&folder) else { return };
    let serve = |disks: &[&str]| {
        let mut running = Running::serve(&[&["--json", "--listen", ANY_PORT], disks].concat());
        let mut names = names(&lent(&running));
        stop(&mut running);
        names.sort();
        names
    };
    let both = serve(&[&first.0, &second.0]);
    assert_eq!(both.len(), 2);
    assert_ne!(both[0].1, both[1].1);
    assert_eq!(serve(&[&second.0, &first.0]), both);
    let alone = [serve(&[&first.0]), serve(&[&second.0])].concat();
    assert!(both.iter().all(|disk| alone.contains(disk)), "{alone:?} {both:?}");
}

fn nbd(port: u64) -> NbdClient<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", u16::try_from(port).unwrap())).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    NbdClient::connected(stream).unwrap()
}

#[test]
fn image_size_changes_are_reported() {
    let folder = Folder::new();
    let image = folder.image("log.img", SIZE);
    let running = Running::serve(&["--json", "--listen", "nbd:127.0.0.1:0", &image]);
    let port = running.until("ready")[0]["port"].as_u64().unwrap();
    let resize = |bytes| {
        let file = fs::OpenOptions::new().write(true).open(&image).unwrap();
        file.set_len(bytes).unwrap();
    };
    let resized = |to: u64, from: u64| {
        let events = running.until("resized");
        let event = events.last().unwrap();
        assert_eq!((&event["bytes"], &event["before"]), (&to.into(), &from.into()), "{event}");
        events
    };
    resize(2 * SIZE);
    resized(2 * SIZE, SIZE);
    // The worker is notified meanwhile.
    let end = Instant::now() + LONG;
    while nbd(port).go("log").unwrap().unwrap().0 != 2 * SIZE {
        assert!(Instant::now() < end, "NBD clients do not see the new size");
        sleep(Duration::from_millis(50));
    }
    let mut client = nbd(port);
    client.go("log").unwrap().unwrap();
    resize(SIZE);
    // Neither a read nor a check of the file is reported as a fault of the disk.
    let _ = client.read(2 * SIZE - 4096, 4096);
    for event in resized(SIZE, 2 * SIZE) {
        if event["event"] == "fault" {
            let reason = format!("the file ends before that, at {SIZE} bytes");
            assert_eq!(event["reason"], reason.as_str());
        }
    }
}
