//! Compressed images and image formats: unpacked or refused, never treated as the disk itself.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::scene::{
    Attached, Folder, MIB, PROGRAM, assert_equal, copy, has, random_bytes, run_expecting,
};
use crate::target::Target;

fn tool(program: &str, args: &[&str]) -> Vec<u8> {
    let output = programs::command(program).args(args).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {message}");
    output.stdout
}

/// Returns the image in each format for which a program is installed.
fn packed(folder: &Folder) -> (String, Vec<String>) {
    let image = folder.image("disk.img", 5 * MIB + 512);
    let mut all = Vec::new();
    for (program, ending) in [("gzip", "gz"), ("xz", "xz"), ("zstd", "zst")] {
        // gzip is an essential package of Debian.
        if program == "gzip" || has(program) {
            let path = folder.path(&format!("disk.img.{ending}"));
            fs::write(&path, tool(program, &["-c", &image])).unwrap();
            all.push(path);
        }
    }
    if has("qemu-img") {
        let path = folder.path("disk.qcow2");
        tool("qemu-img", &["convert", "-c", "-O", "qcow2", &image, &path]);
        all.push(path);
    }
    (image, all)
}

#[test]
fn r50_packed_images_are_unpacked_and_verified() {
    let folder = Folder::new();
    let (image, all) = packed(&folder);
    let copied = folder.path("copy.img");
    for path in &all {
        let message = run_expecting(0, &["--force", path, &copied]);
        assert!(message.contains("is unpacked") && message.contains("verified"), "{message}");
        assert_equal(&image, &copied);
        run_expecting(0, &["--force", "--format", "raw", path, &copied]);
        assert_equal(path, &copied);
        let message =
            run_expecting(5, &["--map", &folder.path("map"), path, &folder.path("new.img")]);
        assert!(message.contains("map"), "{message}");
        assert!(!Path::new(&folder.path("new.img")).exists());
    }
}

#[test]
fn r50_packed_pipe_is_unpacked() {
    let folder = Folder::new();
    let (image, all) = packed(&folder);
    let copied = folder.path("copy.img");
    for path in all.iter().filter(|path| !path.ends_with("qcow2")) {
        let mut child = copy(&["--force", "-", &copied]);
        let child = child.stdin(File::open(path).unwrap()).stderr(Stdio::piped()).output().unwrap();
        let message = String::from_utf8_lossy(&child.stderr);
        assert!(child.status.success(), "{message}");
        assert_equal(&image, &copied);
    }
}

#[test]
fn r50_truncated_packed_image_is_no_success() {
    let folder = Folder::new();
    let (_, all) = packed(&folder);
    for path in &all {
        let bytes = fs::read(path).unwrap();
        for cut in [100, bytes.len() / 2, bytes.len() - 1] {
            let short = folder.path("short");
            fs::write(&short, &bytes[..cut]).unwrap();
            let output = copy(&["--force", &short, &folder.path("copy.img")]).output().unwrap();
            let message = String::from_utf8_lossy(&output.stderr);
            let status = output.status.code();
            let slack = path.ends_with("qcow2") && cut == bytes.len() - 1;
            assert!(status == Some(1) || status == Some(5) || slack, "{path} at {cut}: {message}");
            assert!(slack || message.contains("cannot be unpacked"), "{message}");
        }
    }
}

/// R50: a format that cannot be unpacked is refused with advice; `serve` refuses all of them.
#[test]
fn r50_containers_are_refused_with_the_way_out() {
    let folder = Folder::new();
    let marks: [(&str, usize, &[u8], &str); 6] = [
        ("disk.bz2", 0, b"BZh91AY&SY", "bzip2 -dc"),
        ("disk.lz4", 0, b"\x04\x22\x4d\x18", "lz4 -dc"),
        // Nothing of these but their signature is right.
        ("disk.vmdk", 0, b"KDMV", "cannot be unpacked"),
        ("disk.vdi", 64, b"\x7f\x10\xda\xbe", "cannot be unpacked"),
        ("disk.vhd", (1 << 20) - 512, b"conectix", "cannot be unpacked"),
        ("disk.vhdx", 0, b"vhdxfile", "cannot be unpacked"),
    ];
    let copied = folder.path("copy.img");
    for (name, at, mark, way) in marks {
        let path = folder.path(name);
        let mut bytes = vec![0; 1 << 20];
        bytes[at..at + mark.len()].copy_from_slice(mark);
        fs::write(&path, &bytes).unwrap();
        let message = run_expecting(5, &[&path, &copied]);
        assert!(message.contains(way) && message.contains("--format raw"), "{message}");
        assert!(!Path::new(&copied).exists());
        run_expecting(0, &["--format", "raw", &path, &copied]);
        assert_equal(&path, &copied);
        fs::remove_file(&copied).unwrap();
        let args = ["serve", "--listen", "127.0.0.1:0", "--no-announce", &path];
        let served = Command::new(PROGRAM).args(args).stdin(Stdio::null()).output().unwrap();
        let message = String::from_utf8_lossy(&served.stderr);
        assert!(!served.status.success() && message.contains("--format raw"), "{message}");
    }
}

/// X43: contents of a disk or a remote source that look like an image are not unpacked.
#[test]
fn x43_an_image_within_a_disk_is_copied_as_it_is() {
    let folder = Folder::new();
    let image = folder.path("disk");
    let mut bytes = random_bytes(1, 1 << 20);
    bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    // The position of the backing file name in qcow2.
    bytes[8..16].copy_from_slice(&1024_u64.to_be_bytes());
    bytes[1024..1035].copy_from_slice(b"/etc/shadow");
    fs::write(&image, &bytes).unwrap();
    let (copied, listen) = (folder.path("copy.img"), ["nvme:127.0.0.1:0", "nbd:127.0.0.1:0"]);
    let target =
        Target::serve(&["--format", "raw", "--listen", listen[0], "--listen", listen[1], &image]);
    for protocol in ["nvme", "nbd"] {
        let from = format!("{protocol}://127.0.0.1:{}/disk", target.port(protocol));
        run_expecting(0, &["--force", &from, &copied]);
        assert_equal(&image, &copied);
    }
    let Some(device) = Attached::new(&image, 512) else { return };
    let message = run_expecting(0, &["--force", "--allow-in-use", &device.0, &copied]);
    assert!(message.contains("begins like qcow2"), "{message}");
    assert_equal(&image, &copied);
}

/// X58: no file that an image names is ever opened.
#[test]
fn x58_backing_files_are_never_opened() {
    if !has("qemu-img") {
        return;
    }
    let folder = Folder::new();
    let (base, top) = (folder.image("base.img", MIB), folder.path("top.qcow2"));
    tool("qemu-img", &["create", "-q", "-f", "qcow2", "-b", &base, "-F", "raw", &top]);
    let (data, apart) = (folder.path("data"), folder.path("apart.qcow2"));
    let file = format!("data_file={data}");
    tool("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &file, &apart, "1M"]);
    for image in [&top, &apart] {
        let message = run_expecting(5, &[image, &folder.path("copy.img")]);
        assert!(message.contains("other files are never opened"), "{message}");
        assert!(!Path::new(&folder.path("copy.img")).exists());
    }
}

/// X55: an image that unpacks to more than the free space ends with an error, without using memory.
#[test]
fn x55_bomb_ends_at_the_end_of_the_destination() {
    if !has("zstd") {
        return;
    }
    let folder = Folder::new();
    let (bomb, backing) = (folder.path("bomb.zst"), folder.path("backing"));
    let mut child =
        programs::command("zstd").args(["-q", "-o", &bomb]).stdin(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    (0..256).for_each(|_| input.write_all(&[1; 1 << 20]).unwrap());
    drop(input);
    assert!(child.wait().unwrap().success());
    File::create(&backing).unwrap().set_len(4 * MIB).unwrap();
    let Some(device) = Attached::new(&backing, 512) else { return };
    let message = run_expecting(1, &["--yes", &bomb, &device.0]);
    assert!(message.contains("no space left"), "{message}");
}

/// As in a container that is entered from outside: the leader of the process group is not in the PID namespace.
#[test]
fn format_is_recognized_in_another_pid_namespace() {
    let test = "a program in a PID namespace of its own";
    if programs::lacks(test, &["unshare"]) {
        return;
    }
    let folder = Folder::new();
    let path = folder.path("disk.vmdk");
    fs::write(&path, [b"KDMV".as_slice(), &vec![0; 1 << 20]].concat()).unwrap();
    let mut command = programs::command("unshare");
    command.args(["--map-root-user", "--pid", "--fork", PROGRAM, "serve", "--no-announce"]);
    command.args(["--listen", "127.0.0.1:0", &path]).stdin(Stdio::null());
    let message = String::from_utf8(command.output().unwrap().stderr).unwrap();
    if message.contains("unshare failed") {
        println!("skip {test}: namespaces cannot be made here");
        return;
    }
    assert!(message.contains("--format raw"), "{message}");
}
