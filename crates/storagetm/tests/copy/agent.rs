//! `storagetm agent`, with the environments of other installers.

use std::fs;
use std::process::{Command, Output};

use sha2::{Digest as _, Sha256};
use testkit::web::{Server, reply, send};

use crate::scene::{Folder, MIB, PROGRAM, assert_equal, events};

/// Runs the agent with this environment and nothing else.
fn agent(orders: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(PROGRAM);
    command.arg("agent").args(orders).env_clear();
    command.envs(variables.iter().copied()).output().unwrap()
}

fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

/// Serves a file by HTTP as `/disk.raw`, and as the image `lab/disk:v1` of a registry.
fn serve(file: Vec<u8>) -> String {
    let layer = digest(&file);
    let manifest = format!(
        r#"{{"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{layer}","size":{}}}]}}"#,
        file.len()
    );
    let server = Server::start(move |_, request, stream| match request.path.as_str() {
        "/v2/lab/disk/manifests/v1" => reply(stream, "200 OK", "", manifest.as_bytes()),
        path if path == "/disk.raw" || path.ends_with(&layer) => {
            send(stream, (&file, request.first()), "ETag: \"1\"\r\n", 700_000);
        }
        _ => reply(stream, "404 Not Found", "", b""),
    });
    server.authority
}

#[test]
fn environment_of_image2disk_is_enough() {
    let folder = Folder::new();
    let (image, copied) = (folder.image("disk.raw", 3 * MIB), folder.path("copy.img"));
    let url = format!("http://{}/disk.raw", serve(fs::read(&image).unwrap()));
    let variables = [("IMG_URL", url.as_str()), ("DEST_DISK", &copied), ("COMPRESSED", "false")];
    let output = agent(&[], &variables);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(events(&output).last().unwrap()["outcome"], "success");
    assert_equal(&image, &copied);
    // An existing file is nobody's disk: it is not overwritten without a word.
    assert_eq!(agent(&[], &variables).status.code(), Some(5));
}

#[test]
fn environment_of_oci2disk_is_enough() {
    let folder = Folder::new();
    let (image, copied) = (folder.image("disk.raw", 3 * MIB), folder.path("copy.img"));
    let name = format!("{}/lab/disk:v1", serve(fs::read(&image).unwrap()));
    let output = agent(&[], &[("IMG_URL", &name), ("DEST_DISK", &copied)]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_equal(&image, &copied);
}

/// What a shell makes of `STORAGETM_SHA256="$(curl -f ...)"` if that fails.
#[test]
fn empty_hash_or_refused_consent_writes_nothing() {
    let folder = Folder::new();
    let (image, copied) = (folder.image("disk.raw", 2 * MIB), folder.image("copy.img", 3 * MIB));
    let url = format!("http://{}/disk.raw", serve(fs::read(&image).unwrap()));
    let before = fs::read(&copied).unwrap();
    for wrong in [
        ("STORAGETM_SHA256", ""),
        ("STORAGETM_HASH_FILE", ""),
        ("STORAGETM_YES", "false"),
        ("STORAGETM_JSON", "0"),
    ] {
        let ends = [("IMG_URL", url.as_str()), ("DEST_DISK", &copied), ("STORAGETM_FORCE", "1")];
        let output = agent(&[], &[&ends[..], &[wrong]].concat());
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {output:?}");
        assert!(fs::read(&copied).unwrap() == before, "{wrong:?}");
    }
}

#[test]
fn r53_blob_without_its_digest_is_not_used() {
    let folder = Folder::new();
    let copied = folder.image("copy.img", 3 * MIB);
    let image = fs::read(folder.image("disk.raw", 3 * MIB)).unwrap();
    let layer = digest(b"another");
    let manifest = format!(r#"{{"layers":[{{"digest":"{layer}","size":{}}}]}}"#, image.len());
    let server = Server::start(move |_, request, stream| {
        let body = if request.path.contains("blobs") { &image } else { manifest.as_bytes() };
        reply(stream, "200 OK", "", body);
    });
    let name = format!("{}/a:v1", server.authority);
    let variables = [("IMG_URL", name.as_str()), ("DEST_DISK", &copied), ("STORAGETM_FORCE", "1")];
    let output = agent(&[], &variables);
    assert_eq!(output.status.code(), Some(8), "{output:?}");
    let copied = fs::read(&copied).unwrap();
    assert!(copied.iter().take(1 << 20).all(|byte| *byte == 0));
}

#[test]
fn orders_are_a_file_and_the_environment_prevails() {
    let folder = Folder::new();
    let image = folder.image("disk.raw", 3 * MIB);
    let orders = folder.path("orders.json");
    let other = folder.path("other.img");
    fs::write(&orders, format!(r#"{{"source": "{image}", "destination": "{other}"}}"#)).unwrap();
    let copied = folder.path("copy.img");
    let output = agent(&[&orders], &[("STORAGETM_DESTINATION", &copied)]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_equal(&image, &copied);
    assert!(fs::metadata(&other).is_err());
    let url = format!("http://{}/disk.raw", serve(fs::read(&orders).unwrap()));
    assert_eq!(agent(&[&url], &[]).status.code(), Some(0));
    assert_equal(&image, &other);
    fs::write(&orders, "{").unwrap();
    assert_eq!(agent(&[&orders], &[]).status.code(), Some(2));
    assert_eq!(agent(&[], &[("DEST_DISK", &copied)]).status.code(), Some(2));
}
