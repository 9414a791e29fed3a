//! Overlays in files, and the commands for them.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{address, disk_of, lent, nbd, serve_within};
use crate::host::NvmeClient;
use crate::process;
use crate::scene::{self, DESK, Folder, LAPTOP, PROGRAM, Running};

/// As [`serve`], with changes in files.
pub(crate) fn serve_files(driver: &str, image: &str, folder: &Folder) -> (Running, Vec<Value>) {
    serve_within("unlimited", driver, &[image, "--overlay-dir", &folder.path("overlays")])
}

pub(crate) fn number(process: &Path) -> Pid {
    Pid::from_raw(process.file_name().unwrap().to_str().unwrap().parse().unwrap()).unwrap()
}

/// Kills the opener and the worker.
fn kill(running: Running) {
    let processes = [running.process(), running.worker()].map(|process| number(&process));
    // The second one may have ended with the first.
    let _ = processes.map(|process| kill_process(process, Signal::KILL));
    drop(running);
}

/// Ends the program as the user does.
pub(crate) fn end(running: Running) {
    kill_process(number(&running.process()), Signal::TERM).unwrap();
    running.until("stopped");
    let stat = running.process().join("stat");
    process::find(|| fs::read_to_string(&stat).unwrap().contains(") Z ").then_some(()));
    drop(running);
}

#[test]
fn changes_in_files_survive_a_restart() {
    for driver in ["uring", "blocking"] {
        let folder = Folder::new();
        let image = folder.image("disk.img", 7);
        let (running, events) = serve_files(driver, &image, &folder);
        let disk = lent(&events).clone();
        assert_eq!(disk["overlay"]["kept_in"], "files");
        let attach = |events: &[Value], host| {
            let client = NvmeClient::new(host, disk["nqn"].as_str().unwrap());
            client.attach_plain(address(events, "nvme-tcp")).unwrap()
        };
        attach(&events, LAPTOP).write_blocks(1, &[1; 512], false).unwrap();
        attach(&events, DESK).write_blocks(2, &[2; 512], true).unwrap();
        end(running);
        // The same disk to hosts, with their changes.
        let (running, events) = serve_files(driver, &image, &folder);
        assert_eq!(lent(&events)["nqn"], disk["nqn"]);
        for (host, block, byte) in [(LAPTOP, 1, 1), (DESK, 2, 2)] {
            let mut wanted = vec![7; 4096];
            wanted[512 * block..512 * (block + 1)].fill(byte);
            assert!(attach(&events, host).read(0).unwrap() == wanted, "{driver}");
        }
        let modes = fs::read_dir(folder.path("overlays")).unwrap().flatten().flat_map(|disk| {
            let files = fs::read_dir(disk.path()).unwrap().flatten().map(|file| file.path());
            files.chain([disk.path()]).collect::<Vec<_>>()
        });
        let modes: Vec<_> = modes.map(|path| fs::metadata(path).unwrap().mode()).collect();
        assert!(modes.len() > 4 && modes.iter().all(|mode| mode & 0o077 == 0), "{modes:?}");
        end(running);
        assert!(fs::read(&image).unwrap() == disk_of(7), "{driver}");
        // The disk is changed under its overlay.
        File::options().write(true).open(&image).unwrap().write_all_at(&[8], 700_000).unwrap();
        let serve = ["serve", "--json", "--no-announce", "--overlay", &image, "--overlay-dir"];
        let refused = scene::run(&[&serve[..], &[&folder.path("overlays")]].concat(), "");
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(said.contains("has changed since its overlay was made"), "{said}");
    }
}

#[test]
fn kills_never_lose_what_was_flushed() {
    const BLOCKS: usize = 8;
    let folder = Folder::new();
    let image = folder.image("disk.img", 7);
    let mut random = 1u64;
    let mut below = |end: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from((random >> 33) % end).unwrap()
    };
    // What a block may be after a kill: what was flushed, and what was written since.
    let mut allowed = [(); BLOCKS].map(|()| vec![7]);
    for round in 0..30 {
        let driver = ["uring", "blocking"][round % 2];
        let (running, events) = serve_files(driver, &image, &folder);
        let mut nbd = nbd(&events);
        for (block, values) in allowed.iter_mut().enumerate() {
            let found = nbd.read(512 * block as u64, 512).unwrap().unwrap();
            assert!(found.iter().all(|byte| *byte == found[0]), "{round} {block}");
            assert!(values.contains(&found[0]), "{round}: {block} is {} of {values:?}", found[0]);
            *values = vec![found[0]];
        }
        for _ in 0..below(40) {
            let (block, byte) = (below(BLOCKS as u64), u8::try_from(below(256)).unwrap());
            let durable = below(4) == 0;
            let (offset, data) = (512 * block as u64, [byte; 512]);
            assert_eq!(nbd.write_with(offset, &data, durable).unwrap(), 0);
            allowed[block].push(byte);
            if durable {
                allowed[block] = vec![byte];
            }
            if below(6) == 0 {
                assert_eq!(nbd.flush().unwrap(), 0);
                allowed.iter_mut().for_each(|values| *values = vec![*values.last().unwrap()]);
            }
        }
        kill(running);
    }
    assert!(fs::read(&image).unwrap() == disk_of(7));
}

/// Returns the only folder of an overlay.
pub(crate) fn overlay_folder(folder: &Folder) -> String {
    let list = scene::run_ok(&["overlay", "list", "--json", &folder.path("overlays")], "");
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 1);
    list[0]["folder"].as_str().unwrap().to_owned()
}

/// Runs the program, which must fail, and returns its message.
pub(crate) fn refused(args: &[&str]) -> String {
    let output = scene::run(args, "");
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn commit_can_be_killed_and_repeated() {
    const SIZE: usize = 48 << 20;
    let folder = Folder::new();
    let image = folder.image("disk.img", 7);
    fs::write(&image, vec![7; SIZE]).unwrap();
    let mut model = vec![7; SIZE];
    let (running, events) = serve_files("uring", &image, &folder);
    let mut client = nbd(&events);
    for (number, at) in (0..SIZE).step_by(3 << 19).enumerate() {
        let byte = u8::try_from(number).unwrap();
        assert_eq!(client.write(at as u64, &vec![byte; 1 << 20]).unwrap(), 0);
        model[at..at + (1 << 20)].fill(byte);
    }
    client.request(0, 4, 512, 1 << 20, &[]).unwrap();
    assert_eq!(client.answer().unwrap(), 0);
    model[512..512 + (1 << 20)].fill(0);
    drop(client);
    let at = overlay_folder(&folder);
    assert!(refused(&["overlay", "commit", &at, &image, "--yes"]).contains("is in use"));
    end(running);
    assert!(refused(&["overlay", "commit", &at, &image]).contains("--yes"));
    assert!(fs::read(&image).unwrap() == vec![7; SIZE]);
    let mut was_interrupted = false;
    for round in 0.. {
        let mut commit = Command::new(PROGRAM);
        commit.args(["overlay", "commit", &at, &image, "--yes"]).stdin(Stdio::null());
        let mut commit = commit.stderr(Stdio::piped()).spawn().unwrap();
        thread::sleep(Duration::from_millis(4 * round));
        let _ = commit.kill();
        let ended = commit.wait_with_output().unwrap();
        // It may be killed when all is done.
        if ended.status.success() || !Path::new(&at).exists() {
            break;
        }
        assert_eq!(ended.status.code(), None, "{}", String::from_utf8_lossy(&ended.stderr));
        let record = fs::read_to_string(Path::new(&at).join("overlay.json")).unwrap_or_default();
        if record.contains("\"committing\": \"") && !was_interrupted {
            was_interrupted = true;
            let serve = ["serve", "--no-announce", "--overlay", &image, "--overlay-dir"];
            let said = refused(&[&serve[..], &[&folder.path("overlays")]].concat());
            assert!(said.contains("was interrupted"), "{said}");
            assert!(refused(&["overlay", "discard", &at, "--yes"]).contains("was interrupted"));
        }
    }
    assert!(was_interrupted);
    assert!(fs::read(&image).unwrap() == model);
    assert!(!Path::new(&at).exists());
    // It was killed before it could remove the folder itself.
    fs::create_dir(&at).unwrap();
    scene::run_ok(&["overlay", "commit", &at, &image, "--yes"], "");
    assert!(!Path::new(&at).exists());
    fs::create_dir(folder.path("other")).unwrap();
    refused(&["overlay", "commit", &folder.path("other"), &image, "--yes"]);
    assert!(Path::new(&folder.path("other")).exists(), "it has another name");
}

/// Exports what a host has written for QEMU, which reads the changed disk by it.
fn exports_qcow2(folder: &Folder, at: &str, image: &str) {
    if programs::lacks("images of QEMU", &["qemu-img"]) {
        return;
    }
    let (export, wanted) = (folder.path("changed.qcow2"), folder.path("wanted.img"));
    scene::run_ok(&["overlay", "export", at, &export, "--host", DESK, "--qcow2", image], "");
    let mut changed = disk_of(7);
    changed[1024..1536].fill(2);
    fs::write(&wanted, &changed).unwrap();
    for words in [
        &["check", "-f", "qcow2", &export][..],
        &["compare", "-f", "qcow2", "-F", "raw", &export, &wanted],
    ] {
        let output = programs::command("qemu-img").args(words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
    }
    // Of the disk it has what has changed.
    assert!(fs::metadata(&export).unwrap().len() < 7 * 65_536);
    assert!(fs::read(image).unwrap() == disk_of(7));
}

#[test]
fn failed_export_leaves_no_file() {
    let folder = Folder::new();
    let image = folder.image("disk.img", 7);
    let (running, events) = serve_files("uring", &image, &folder);
    assert_eq!(nbd(&events).write(512, &[1; 512]).unwrap(), 0);
    end(running);
    let at = overlay_folder(&folder);
    let (export, map) = (folder.path("changes.img"), folder.path("changes.img.map"));
    fs::write(&map, "of somebody").unwrap();
    assert!(refused(&["overlay", "export", &at, &export]).contains("exists"));
    assert!(!Path::new(&export).exists());
    assert_eq!(fs::read_to_string(&map).unwrap(), "of somebody");
    fs::remove_file(&map).unwrap();
    scene::run_ok(&["overlay", "export", &at, &export], "");
    assert!(Path::new(&export).exists() && Path::new(&map).exists());
}

#[test]
fn changes_are_listed_exported_and_discarded() {
    let folder = Folder::new();
    let image = folder.image("disk.img", 7);
    let (running, events) = serve_files("uring", &image, &folder);
    for (host, block, byte) in [(LAPTOP, 1, 1), (DESK, 2, 2)] {
        let client = NvmeClient::new(host, lent(&events)["nqn"].as_str().unwrap());
        let mut client = client.attach_plain(address(&events, "nvme-tcp")).unwrap();
        client.write_blocks(block, &[byte; 512], true).unwrap();
    }
    end(running);
    let at = overlay_folder(&folder);
    let list = scene::run_ok(&["overlay", "list", &folder.path("overlays")], "");
    assert!(list.contains(LAPTOP) && list.contains(DESK) && list.contains(&image), "{list}");
    let export = folder.path("changes.img");
    assert!(refused(&["overlay", "export", &at, &export]).contains("--host"));
    scene::run_ok(&["overlay", "export", &at, &export, "--host", DESK], "");
    let mut wanted = vec![0; scene::SIZE];
    wanted[1024..1536].fill(2);
    assert!(fs::read(&export).unwrap() == wanted);
    let map = fs::read_to_string(folder.path("changes.img.map")).unwrap();
    assert!(map.contains("0x00000400  0x00000200  +"), "{map}");
    exports_qcow2(&folder, &at, &image);
    // Changes of the other host would be lost.
    let commit = ["overlay", "commit", &at, &image, "--yes", "--host", DESK];
    assert!(refused(&commit).contains("--discard-others"));
    scene::run_ok(&["overlay", "discard", &at, "--yes", "--host", LAPTOP], "");
    File::options().write(true).open(&image).unwrap().write_all_at(&[8], 900_000).unwrap();
    assert!(refused(&commit).contains("has changed"));
    scene::run_ok(&["overlay", "discard", &at, "--yes"], "");
    assert!(!Path::new(&at).exists());
}
