//! Files of web servers, and expected hashes.

use std::fs;
use std::process::Stdio;

use programs::command;
use sha2::{Digest as _, Sha256};
use testkit::web::{Server, send};

use crate::scene::{Folder, MIB, assert_equal, copy, has, run_expecting};

/// Serves the files of a folder, and ends each connection after `max` bytes of one. Returns the URL.
fn serve(folder: &Folder, max: usize) -> String {
    let folder = folder.0.0.clone();
    let server = Server::start(move |_, request, stream| {
        let name = request.path.split('?').next().unwrap().trim_start_matches('/');
        let file = fs::read(folder.join(name)).unwrap();
        send(stream, (&file, request.first()), "ETag: \"1\"\r\n", max);
    });
    format!("http://{}", server.authority)
}

fn sha256(path: &str) -> String {
    sha256_of(&fs::read(path).unwrap())
}

pub(crate) fn sha256_of(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn r52_image_is_copied_from_a_web_server_that_fails() {
    let folder = Folder::new();
    let image = folder.image("disk.raw", 5 * MIB + 512);
    let url = serve(&folder, 700_000);
    let copied = folder.path("copy.img");
    let hash = sha256(&image);
    let message = run_expecting(0, &["--sha256", &hash, &format!("{url}/disk.raw"), &copied]);
    assert!(message.contains("verified"), "{message}");
    assert_equal(&image, &copied);
}

#[test]
fn r50_packed_image_is_unpacked_while_it_arrives() {
    let folder = Folder::new();
    let image = folder.image("disk.raw", 5 * MIB + 512);
    for (program, ending) in [("gzip", "gz"), ("zstd", "zst"), ("xz", "xz")] {
        if program != "gzip" && !has(program) {
            continue;
        }
        let path = folder.path(&format!("disk.raw.{ending}"));
        fs::write(&path, command(program).args(["-c", &image]).output().unwrap().stdout).unwrap();
        let list = folder.path("SHA256SUMS");
        fs::write(&list, format!("{} *disk.raw.{ending}\n", sha256(&path))).unwrap();
        let url = format!("{}/disk.raw.{ending}?token=secret", serve(&folder, 700_000));
        let copied = folder.path("copy.img");
        let message = run_expecting(0, &["--force", "--hash-file", &list, &url, &copied]);
        let named = format!("disk.raw.{ending}?... is ");
        assert!(message.contains(&named) && message.contains("is unpacked"), "{message}");
        assert!(!message.contains("secret"), "{message}");
        assert_equal(&image, &copied);
    }
}

#[test]
fn r51_unexpected_hash_leaves_no_partition_table() {
    let folder = Folder::new();
    let image = folder.image("disk.raw", 5 * MIB);
    let packed = folder.path("disk.raw.gz");
    fs::write(&packed, command("gzip").args(["-c", &image]).output().unwrap().stdout).unwrap();
    let url = serve(&folder, usize::MAX);
    let zeros = "0".repeat(64);
    let (web, web_packed) = (format!("{url}/disk.raw"), format!("{url}/disk.raw.gz"));
    for source in [&web, &web_packed, &image, &packed] {
        let copied = folder.image("copy.img", 5 * MIB);
        let message = run_expecting(8, &["--force", "--sha256", &zeros, source, &copied]);
        assert!(message.contains("was expected"), "{message}");
        let copied = fs::read(&copied).unwrap();
        assert!(copied.iter().take(1 << 20).all(|byte| *byte == 0), "{source}");
    }
    let copied = folder.path("copy.img");
    let output = copy(&["--force", "--sha256", &zeros, "-", &copied])
        .stdin(fs::File::open(&image).unwrap())
        .stderr(Stdio::piped())
        .output();
    assert_eq!(output.unwrap().status.code(), Some(8));
}

#[test]
fn what_a_web_server_does_not_have_is_refused() {
    let folder = Folder::new();
    folder.image("disk.raw", MIB);
    let url = format!("{}/disk.raw", serve(&folder, usize::MAX));
    let copied = folder.path("copy.img");
    let message = run_expecting(2, &[&copied, &url]);
    assert!(message.contains("has no disks"), "{message}");
    run_expecting(2, &["--sha256", "abc", &url, &copied]);
    let list = folder.path("SHA256SUMS");
    fs::write(&list, format!("{}  other.raw\n", "0".repeat(64))).unwrap();
    let message = run_expecting(5, &["--hash-file", &list, &url, &copied]);
    assert!(message.contains("no SHA-256 or SHA-512 hash of a file named disk.raw"), "{message}");
    let message = run_expecting(5, &["http://127.0.0.1:9/disk.raw", &copied]);
    assert!(message.contains("http://127.0.0.1:9/disk.raw cannot be read"), "{message}");
    assert!(fs::metadata(&copied).is_err());
}
