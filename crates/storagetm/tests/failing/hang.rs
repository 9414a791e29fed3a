//! Disks that do not answer.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::device::{Device, skip_without_loop_devices};
use crate::foreign::{Background, Folder, MIB, lacks, program, run, same, wait_for};
use crate::raw::{READ, reply, request, transmitting};
use crate::serve::{PROGRAM, Serve};

/// Maximum time for the end of the program if a disk hangs, and an allowance for a busy machine.
const END: Duration = Duration::from_secs(10 + 10);

/// Two devices; the first can be made to hang.
pub(crate) fn two(folder: &Folder) -> Option<[Device; 2]> {
    let device = |name: &str| {
        let image = folder.random_bytes(&format!("{name}.img"), 16 * MIB);
        Device::pausing(folder, name, &image)
    };
    Some([device("hanging")?, device("healthy")?])
}

pub(crate) fn name(device: &Device) -> &str {
    device.path.strip_prefix("/dev/").unwrap()
}

pub(crate) fn is_lent(event: &Value, device: &Device) -> bool {
    event["event"] == "lent" && event["disk"] == *device.path
}

pub(crate) fn uri(events: &[Value], device: &Device) -> String {
    let lent = events.iter().find(|event| is_lent(event, device)).unwrap();
    lent["nbd"][0].as_str().unwrap().to_owned()
}

/// Starts a process that writes to an export until it is killed.
fn write_to(folder: &Folder, uri: &str) -> Background {
    let image = folder.random_bytes("written.img", 8 * MIB);
    let line = ["copy", "--yes", "--no-verify", "--patience", "1", &image, uri];
    Background::start(program(PROGRAM).args(line))
}

/// Returns the number of writes in flight to a disk (`/sys/block/*/inflight`).
pub(crate) fn writes_in_flight(device: &Device) -> u64 {
    let text = fs::read_to_string(format!("/sys/block/{}/inflight", name(device))).unwrap();
    text.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn r60_a_list_is_not_held_up_by_a_disk_that_hangs() {
    if skip_without_loop_devices("a list is not held up by a disk that hangs") {
        return;
    }
    let folder = Folder::new();
    let Some([mut hanging, healthy]) = two(&folder) else { return };
    hanging.pause();
    let output = run(program(PROGRAM).args(["list", "--json"]));
    let rows: Value = serde_json::from_slice(&output.stdout).unwrap();
    let reasons = |device: &Device| {
        let row = rows.as_array().unwrap().iter().find(|row| row["path"] == *device.path);
        row.unwrap()["reasons"].to_string()
    };
    assert!(reasons(&hanging).contains("it does not answer"), "{}", reasons(&hanging));
    assert!(reasons(&hanging).contains("no-answer"), "{}", reasons(&hanging));
    assert!(!reasons(&healthy).contains("no-answer"), "{}", reasons(&healthy));
    let output = run(program(PROGRAM).args(["serve", &hanging.path]));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("is not lent: it does not answer"), "{message}");
}

#[test]
fn r60_others_are_lent_at_once_and_a_late_disk_by_itself() {
    if skip_without_loop_devices("others are lent at once and a late disk by itself") {
        return;
    }
    let folder = Folder::new();
    let Some([mut hanging, healthy]) = two(&folder) else { return };
    // Loop devices are exported only by name.
    let settings = folder.path("credentials");
    fs::create_dir(&settings).unwrap();
    let names = format!("{}\n{}\n", name(&hanging), name(&healthy));
    fs::write(format!("{settings}/storagetm.disk"), names).unwrap();
    hanging.pause();
    let mut serve = Serve::start_with(&["--all", "--boot-settings"], |command| {
        command.env("CREDENTIALS_DIRECTORY", &settings)
    });
    let mut events = serve.until_named("ready");
    let wanted = format!("{} is not lent: it does not answer", hanging.path);
    let is_healthy = |event: &Value| is_lent(event, &healthy);
    let is_wanted =
        |event: &Value| event["message"].as_str().is_some_and(|note| note.starts_with(&wanted));
    // On a busy machine the healthy disk may be late, or open in another program that lists disks.
    for is_it in [&is_healthy as &dyn Fn(&Value) -> bool, &is_wanted] {
        if !events.iter().any(is_it) {
            events.extend(serve.until(is_it));
        }
    }
    assert!(!events.iter().any(|event| is_lent(event, &hanging)), "{events:?}");
    hanging.resume();
    serve.until(|event| is_lent(event, &hanging));
    let (status, _) = serve.terminate();
    assert!(status.success());
}

/// In target mode the screen comes up beside a disk that hangs, and says so.
#[test]
fn r60_screen_of_target_mode_names_a_disk_that_hangs() {
    let test = "the screen of target mode names a disk that hangs";
    if skip_without_loop_devices(test) || lacks(test, &["script"]) {
        return;
    }
    let folder = Folder::new();
    let Some([mut hanging, healthy]) = two(&folder) else { return };
    let (settings, screen) = (folder.path("credentials"), folder.path("screen"));
    fs::create_dir(&settings).unwrap();
    let names = format!("{}\n{}\n", name(&hanging), name(&healthy));
    fs::write(format!("{settings}/storagetm.disk"), names).unwrap();
    hanging.pause();
    let line = format!(
        "stty rows 40 cols 120; exec {PROGRAM} serve --all --boot-settings --no-announce --listen 127.0.0.1:0"
    );
    let mut script = program("script");
    script.args(["--quiet", "--flush", "--command", &line, &screen]);
    script.env("CREDENTIALS_DIRECTORY", &settings).env("TERM", "xterm").env_remove("NOTIFY_SOCKET");
    // Its end is that of the terminal.
    let child = script.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let _terminal = Background(child);
    let shows = |text: &str| {
        let written = fs::read(&screen).unwrap_or_default();
        String::from_utf8_lossy(&written).contains(text).then_some(())
    };
    wait_for("the healthy disk on the screen", || shows(name(&healthy)));
    let note = format!("{} is not lent: it does not answer", hanging.path);
    wait_for("the note on the screen", || shows(&note));
}

/// A disk that hangs after its examination, in the system call that opens it, delays neither the others nor the end.
#[test]
fn r60_disk_that_hangs_in_open_delays_no_other() {
    if skip_without_loop_devices("a disk that hangs in open delays no other") {
        return;
    }
    let folder = Folder::new();
    let images = ["hanging", "healthy"].map(|name| folder.random_bytes(name, 16 * MIB));
    // Only of such a loop device partitions are scanned.
    let hanging = Device::pausing_with(&folder, "a", &images[0], &["--partscan"]);
    let healthy = Device::pausing(&folder, "b", &images[1]);
    let (Some(mut hanging), Some(healthy)) = (hanging, healthy) else { return };
    let control = folder.path("control");
    let args = ["--protocol", "nbd", "--control", &control, &healthy.path];
    let mut serve = Serve::start(&args);
    let events = serve.until_named("ready");
    // What the kernel has read when it made the device answers also while that hangs.
    let file = format!("if={}", folder.path("a"));
    run(program("dd").args([&file, "iflag=nocache", "count=0", "status=none"]));
    hanging.pause();
    let add = ["add", "--socket", &control, &hanging.path];
    let mut added = program(PROGRAM).args(add).stderr(Stdio::piped()).spawn().unwrap();
    let own = serve.child.id().to_string();
    let path = hanging.path.clone();
    let opens = || {
        let examiner = child_with(&own, "examine")?;
        let links = fs::read_dir(format!("/proc/{examiner}/fd")).ok()?.flatten();
        let mut links = links.filter_map(|link| fs::read_link(link.path()).ok());
        Some(links.any(|link| link == Path::new(&path)))
    };
    wait_for("an examination", || (opens() == Some(true)).then_some(()));
    kill_process(serve.pid(), Signal::STOP).unwrap();
    hanging.resume();
    // It has ended, and the process that is stopped does not know that.
    let mut polls = 0;
    wait_for("the end of the examination", || {
        polls = if opens() == Some(false) { polls + 1 } else { 0 };
        (polls == 50).then_some(())
    });
    hanging.pause();
    // The scan of partitions writes back what is in the page cache, and no open(2) of the disk ends meanwhile.
    let of = format!("of={path}");
    let line = ["if=/dev/zero", &of, "bs=4096", "count=1", "conv=notrunc", "status=none"];
    let writer = Background::start(program("dd").args(line));
    wait_for("a write that hangs", || waits_for_disk(&writer).then_some(()));
    let scan = || Background::start(program("blockdev").args(["--rereadpt", &path]));
    let mut scanner = scan();
    // Dropped first, it answers before the others are waited for.
    let _hanging = hanging;
    let mut polls = 0;
    wait_for("a scan of the partition table that hangs", || {
        if scanner.0.try_wait().unwrap().is_some() {
            // Another test was examining the disk.
            scanner = scan();
        }
        polls = if waits_for_disk(&scanner) { polls + 1 } else { 0 };
        (polls == 20).then_some(())
    });
    kill_process(serve.pid(), Signal::CONT).unwrap();
    let status = wait_for("an answer", || added.try_wait().unwrap());
    let message = std::io::read_to_string(added.stderr.take().unwrap()).unwrap();
    assert_eq!(status.code(), Some(1), "{message}");
    assert!(message.contains("is not lent: it does not answer"), "{message}");
    let copied = folder.path("copied");
    let output = run(program(PROGRAM).args(["copy", &uri(&events, &healthy), &copied]));
    assert!(output.status.success(), "{output:?}");
    let (status, took) = serve.terminate();
    println!("ended after {took:?}");
    assert!(status.success() && took < END, "{took:?}: {}", serve.errors());
}

#[test]
fn r60_the_end_is_bounded_with_a_write_on_a_hung_disk() {
    if skip_without_loop_devices("the end is bounded with a write on a hung disk") {
        return;
    }
    for io in ["uring", "blocking"] {
        let folder = Folder::new();
        let Some([mut hanging, _healthy]) = two(&folder) else { return };
        let mut serve =
            Serve::start(&["--io", io, "--protocol", "nbd", "--writable", &hanging.path]);
        let events = serve.until_named("ready");
        hanging.pause();
        let _client = write_to(&folder, &uri(&events, &hanging));
        wait_for("a write", || (writes_in_flight(&hanging) > 0).then_some(()));
        let (status, took) = serve.terminate();
        println!("{io}: ended after {took:?}");
        assert!(took < END, "{io}: {took:?}");
        let message = serve.errors();
        assert_eq!(status.code(), Some(1), "{io}: {message}");
        assert!(
            message.contains(&hanging.path) && message.contains("may be lost"),
            "{io}: {message}"
        );
    }
}

#[test]
fn r60_a_worker_that_dies_beside_a_hung_disk_is_replaced() {
    if skip_without_loop_devices("a worker that dies beside a hung disk is replaced") {
        return;
    }
    for io in ["uring", "blocking"] {
        let folder = Folder::new();
        let Some([mut hanging, healthy]) = two(&folder) else { return };
        let writable = ["--writable", &hanging.path, "--writable", &healthy.path];
        let args = [&["--io", io, "--protocol", "nbd"][..], &writable].concat();
        let mut serve = Serve::start(&args);
        let events = serve.until_named("ready");
        let (slow, fast) = (uri(&events, &hanging), uri(&events, &healthy));
        hanging.pause();
        let client = write_to(&folder, &slow);
        wait_for("a write", || (writes_in_flight(&hanging) > 0).then_some(()));
        kill_worker(&serve);
        let is_note = |event: &Value, args: &str| {
            event["message"].as_str().is_some_and(|message| message.contains(args))
        };
        serve.until(|event| is_note(event, "another one takes its place"));
        let begun = Instant::now();
        let copied = folder.path("copied");
        wait_for("the healthy disk", || {
            let copy = ["copy", "--force", "--patience", "1", &fast, &copied];
            run(program(PROGRAM).args(copy)).status.success().then_some(())
        });
        println!("{io}: the healthy disk was copied after {:?}", begun.elapsed());
        same(folder.path("healthy.img"), &copied);
        let refused = run(program(PROGRAM).args(["copy", "--patience", "0", &slow, "/dev/null"]));
        assert!(!refused.status.success(), "{io}: the old write may land yet");
        assert!(writes_in_flight(&hanging) > 0, "{io}: the disk hangs");
        let wanted = format!("{} is not lent for now", hanging.path);
        serve.until(|event| is_note(event, &wanted));
        drop(client);
        hanging.resume();
        let wanted = format!("{} is lent again", hanging.path);
        serve.until(|event| is_note(event, &wanted));
        let again = folder.path("again");
        let output = run(program(PROGRAM).args(["copy", &slow, &again]));
        assert!(output.status.success(), "{io}: {output:?}");
        serve.terminate();
    }
}

/// Returns the port and the name in `nbd://127.0.0.1:PORT/NAME`.
fn port_and_name(uri: &str) -> (u16, &str) {
    let (port, name) = uri.strip_prefix("nbd://127.0.0.1:").unwrap().split_once('/').unwrap();
    (port.parse().unwrap(), name)
}

/// Beside 240 reads of a disk that hangs, 99 of 100 reads of another one are fast.
#[test]
fn r20_hanging_reads_slow_no_other_disk() {
    const EACH: u64 = 8;
    if skip_without_loop_devices("hanging reads slow no other disk") {
        return;
    }
    for io in ["uring", "blocking"] {
        let folder = Folder::new();
        let Some([mut hanging, healthy]) = two(&folder) else { return };
        let args = ["--io", io, "--protocol", "nbd", &hanging.path, &healthy.path];
        let mut serve = Serve::start(&args);
        let events = serve.until_named("ready");
        let (slow, fast) = (uri(&events, &hanging), uri(&events, &healthy));
        let ((port, slow), (_, fast)) = (port_and_name(&slow), port_and_name(&fast));
        let mut clients: Vec<_> = (0..30).map(|_| transmitting(port, slow)).collect();
        let mut client = transmitting(port, fast);
        hanging.pause();
        for (at, client) in clients.iter_mut().enumerate() {
            for cookie in 0..EACH {
                let offset = (at as u64 * EACH + cookie) * 4096;
                client.write_all(&request(0, READ, cookie, offset, 4096)).unwrap();
            }
        }
        let reads = format!("/sys/block/{}/inflight", name(&hanging));
        let hang = || !fs::read_to_string(&reads).unwrap().trim_start().starts_with('0');
        wait_for("reads that hang", || hang().then_some(()));
        let mut data = [0; 4096];
        let mut times: Vec<Duration> = (0..300)
            .map(|at| {
                let begun = Instant::now();
                client.write_all(&request(0, READ, at, at * 4096, 4096)).unwrap();
                assert_eq!(reply(&mut client), 0);
                client.read_exact(&mut data).unwrap();
                begun.elapsed()
            })
            .collect();
        times.sort();
        println!("{io}: p50 {:?}, p99 {:?} beside reads that hang", times[150], times[297]);
        // What a busy machine takes; an idle one takes less than a millisecond.
        assert!(times[297] < Duration::from_millis(150), "{io}: {:?}", times[297]);
        assert!(hang(), "{io}: they still hang");
        hanging.resume();
        for client in &mut clients {
            for _ in 0..EACH {
                assert_eq!(reply(client), 0);
                client.read_exact(&mut data).unwrap();
            }
        }
        serve.terminate();
    }
}

/// Kills the worker process.
fn kill_worker(serve: &Serve) {
    let worker = child_with(&serve.child.id().to_string(), "worker").expect("a worker");
    let pid = Pid::from_raw(worker.parse().unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
}

/// Returns whether a process is in an uninterruptible sleep (proc(5)).
fn waits_for_disk(process: &Background) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.0.id())).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('D'))
}

/// Returns the child of a process that does this task.
fn child_with(parent: &str, task: &str) -> Option<String> {
    let is_it = |pid: &String| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).nth(1) == Some(task.as_bytes())
    };
    children_of(parent).into_iter().find(is_it)
}

/// Returns the children of a process.
fn children_of(parent: &str) -> Vec<String> {
    let names = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.file_name());
    let pids = names.filter_map(|name| name.to_str().map(str::to_owned));
    let is_child = |pid: &String| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line.strip_prefix("PPid:").map(str::trim) == Some(parent))
    };
    pids.filter(|pid| pid.bytes().all(|byte| byte.is_ascii_digit())).filter(is_child).collect()
}
