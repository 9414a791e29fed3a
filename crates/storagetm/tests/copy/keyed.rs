//! Copies from targets that let in by keys only: in a network of the test's own, where a key is needed.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::alone::{ELSEWHERE, is_alone};
use crate::scene::{Folder, MIB, PROGRAM, assert_equal, ends_with};
use crate::target::Target;

const HOST: &str = "nqn.2024-01.test:copier";

/// A target that lends the image at an address where a key is needed.
fn target(keys: &str, image: &str, more: &[&str]) -> Target {
    let (nvme, nbd) = (format!("nvme:{ELSEWHERE}:0"), format!("nbd:{ELSEWHERE}:0"));
    Target::serve(&[&["--keys", keys, "--listen", &nvme, "--listen", &nbd, image], more].concat())
}

fn owner(keys: &str, words: &[&str]) {
    let run =
        Command::new(PROGRAM).args(words).args(["--keys", keys]).stdin(Stdio::null()).output();
    let run = run.unwrap();
    assert!(run.status.success(), "{words:?}: {}", String::from_utf8_lossy(&run.stderr));
}

/// X20: who has the key gets the disk by either protocol; with another key, or in the clear, there is no copy.
#[test]
fn x20_a_key_secures_the_copy_and_a_wrong_one_ends_it() {
    if !is_alone("keyed::x20_a_key_secures_the_copy_and_a_wrong_one_ends_it") {
        return;
    }
    let folder = Folder::new();
    let image = folder.image("disk.img", 2 * MIB);
    let (keys, key, wrong) = (folder.path("keys"), folder.path("key"), folder.path("wrong"));
    for (name, path) in [("copier", &key), ("stranger", &wrong)] {
        owner(&keys, &["key", "generate", "--name", name]);
        owner(&keys, &["key", "export", name, "--to", path]);
    }
    owner(&keys, &["host", "add", HOST, "--name", "copier", "--tls-key", "copier"]);
    let target = target(&keys, &image, &[]);
    let nvme = format!("nvme://{ELSEWHERE}:{}/", target.port("nvme"));
    let nbd = format!("{ELSEWHERE}:{}/disk", target.port("nbd"));
    let never = folder.path("never.img");
    for from in [&nvme, &format!("nbds://{nbd}")] {
        let to = folder.path("copy.img");
        ends_with(0, &["--force", "--hostnqn", HOST, "--key", &key, from, &to]);
        assert_equal(&image, &to);
        let said = ends_with(5, &["--hostnqn", HOST, "--key", &wrong, from, &never]);
        assert!(said.contains("securely"), "{said}");
    }
    ends_with(5, &[&nvme, &never]);
    let said = ends_with(5, &[&format!("nbd://{nbd}"), &never]);
    assert!(said.contains("nbds://"), "{said}");
    assert!(!Path::new(&never).exists());
}

/// What pairing leaves is enough: the machine's address, and the disk's name there.
#[test]
fn a_machine_that_was_paired_with_is_copied_from_by_its_name_for_the_disk() {
    if !is_alone("keyed::a_machine_that_was_paired_with_is_copied_from_by_its_name_for_the_disk") {
        return;
    }
    let folder = Folder::new();
    let image = folder.image("disk.img", 2 * MIB);
    let (there, here) = (folder.path("there"), folder.path("here"));
    let target = target(&there, &image, &["--pair"]);
    let port = target.port("nvme");
    let mut pair = Command::new(PROGRAM)
        .args(["pair", &format!("{ELSEWHERE}:{port}"), "--code-file", "-", "--keys", &here])
        .args(["--hostnqn", HOST])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    writeln!(pair.stdin.take().unwrap(), "{}", target.code()).unwrap();
    assert!(pair.wait().unwrap().success());
    let froms = [
        format!("nvme://{ELSEWHERE}:{port}/disk"),
        format!("nvme://{ELSEWHERE}:{port}/disk.img"),
        format!("nbds://{ELSEWHERE}:{}/disk", target.port("nbd")),
    ];
    for (number, from) in froms.iter().enumerate() {
        let to = folder.path(&format!("copy{number}.img"));
        ends_with(0, &["--keys", &here, from, &to]);
        assert_equal(&image, &to);
    }
    // Who has what others can read has no secret.
    let kept = Path::new(&here).join("targets");
    let file = fs::read_dir(kept).unwrap().map(|entry| entry.unwrap().path());
    let file = file.into_iter().find(|path| path.extension().is_some_and(|it| it == "json"));
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    fs::set_permissions(file.unwrap(), open).unwrap();
    let said = ends_with(5, &["--keys", &here, &froms[0], &folder.path("never.img")]);
    assert!(said.contains("can be read by others"), "{said}");
}
