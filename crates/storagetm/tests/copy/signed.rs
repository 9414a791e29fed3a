//! Signed lists of hashes, as Ubuntu, Debian and Fedora publish them, and by minisign. The signatures are made by gpg and
//! minisign.

use std::fs;
use std::process::{Command, Stdio};

use programs::command;
use sha2::{Digest as _, Sha512};
use testkit::web::{Server, send};

use crate::scene::{Folder, MIB, assert_equal, copy, has, run_expecting};
use crate::web::sha256_of;

/// A publisher with a key of its own.
struct Publisher<'a>(&'a Folder, &'static str);

impl Publisher<'_> {
    fn gpg(&self) -> Command {
        let mut gpg = command("gpg");
        let home = self.0.path(self.1);
        fs::create_dir_all(&home).unwrap();
        gpg.args([
            "--homedir",
            &home,
            "--batch",
            "--quiet",
            "--yes",
            "--pinentry-mode",
            "loopback",
        ]);
        gpg.args(["--passphrase", ""]).stdin(Stdio::null());
        gpg
    }

    fn run(&self, args: &[&str]) {
        let output = self.gpg().args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
    }

    /// Makes a key, and returns the path of the keyring with it.
    fn keyring(&self) -> String {
        self.run(&["--quick-generate-key", self.1, "ed25519", "sign", "never"]);
        let path = self.0.path(&format!("{}.gpg", self.1));
        self.run(&["--output", &path, "--export"]);
        path
    }

    /// Signs a file in a way that is an option of gpg, and returns the path of the signature.
    fn sign(&self, how: &str, path: &str, ending: &str) -> String {
        let signature = format!("{path}.{ending}");
        self.run(&["--output", &signature, how, path]);
        signature
    }
}

impl Drop for Publisher<'_> {
    fn drop(&mut self) {
        // The agent that gpg has started ends with its directory.
        let home = self.0.path(self.1);
        let _ = command("gpgconf").args(["--homedir", &home, "--kill", "gpg-agent"]).output();
    }
}

/// Copies with a signed list, which must end so.
#[track_caller]
fn copy_signed(status: i32, folder: &Folder, signed: &[&str]) -> String {
    let (image, copied) = (folder.path("disk.raw"), folder.path("copy.img"));
    let _ = fs::remove_file(&copied);
    let message = run_expecting(status, &[signed, &[&image, &copied]].concat());
    match status {
        0 => assert_equal(&image, &copied),
        _ => assert!(fs::metadata(&copied).is_err(), "{message}"),
    }
    message
}

#[test]
fn interop_lists_that_gpg_signed_are_trusted() {
    if !has("gpg") || !has("gpgv") {
        return;
    }
    let folder = Folder::new();
    let image = fs::read(folder.image("disk.raw", 3 * MIB)).unwrap();
    let (publisher, other) = (Publisher(&folder, "publisher"), Publisher(&folder, "other"));
    let (keyring, others) = (publisher.keyring(), other.keyring());
    // Ubuntu: SHA256SUMS and SHA256SUMS.gpg. Debian: SHA512SUMS and SHA512SUMS.sign.
    let sums = folder.path("SHA256SUMS");
    fs::write(&sums, format!("{} *disk.raw\n", sha256_of(&image))).unwrap();
    let sums512 = folder.path("SHA512SUMS");
    let hash512: String = Sha512::digest(&image).iter().map(|it| format!("{it:02x}")).collect();
    fs::write(&sums512, format!("{hash512}  disk.raw\n")).unwrap();
    let signature = publisher.sign("--detach-sign", &sums, "gpg");
    publisher.run(&[
        "--armor",
        "--output",
        &folder.path("SHA512SUMS.sign"),
        "--detach-sign",
        &sums512,
    ]);
    let signature512 = folder.path("SHA512SUMS.sign");
    for (list, signature) in [(&sums, &signature), (&sums512, &signature512)] {
        let signed =
            |keyring| ["--hash-file", list, "--signature", signature, "--keyring", keyring];
        copy_signed(0, &folder, &signed(&keyring));
        let message = copy_signed(5, &folder, &signed(&others));
        assert!(message.contains("is not valid"), "{message}");
    }
    // The signature of another list, of no list, and a list that was changed.
    for wrong in [&signature512, &sums] {
        copy_signed(
            5,
            &folder,
            &["--hash-file", &sums, "--signature", wrong, "--keyring", &keyring],
        );
    }
    let text = fs::read_to_string(&sums).unwrap();
    fs::write(&sums, format!("{text}\n")).unwrap();
    let signed = ["--hash-file", &sums, "--signature", &signature, "--keyring", &keyring];
    let message = copy_signed(5, &folder, &signed);
    assert!(message.contains("nothing was written"), "{message}");
    // Without the program.
    let (image, copied) = (folder.path("disk.raw"), folder.path("copy.img"));
    let mut without = copy(&[&signed[..], &[&image, &copied]].concat());
    let output = without.env("PATH", "/nonexistent").output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(5) && message.contains("package gpgv"), "{message}");
}

#[test]
fn interop_only_the_signed_text_of_a_list_counts() {
    if !has("gpg") || !has("gpgv") {
        return;
    }
    let folder = Folder::new();
    let image = fs::read(folder.image("disk.raw", 3 * MIB)).unwrap();
    let publisher = Publisher(&folder, "publisher");
    let keyring = publisher.keyring();
    // Fedora: a CHECKSUM file with its signature in it.
    let list = folder.path("CHECKSUM");
    fs::write(&list, format!("# disk.raw: 3 bytes\nSHA256 (disk.raw) = {}\n", sha256_of(&image)))
        .unwrap();
    let signed = publisher.sign("--clear-sign", &list, "asc");
    copy_signed(0, &folder, &["--hash-file", &signed, "--keyring", &keyring]);
    let text = fs::read_to_string(&signed).unwrap();
    // A line before or behind what is signed, of which the first one would count.
    let line = format!("SHA256 (disk.raw) = {}\n", "0".repeat(64));
    fs::write(&signed, format!("{text}{line}")).unwrap();
    copy_signed(0, &folder, &["--hash-file", &signed, "--keyring", &keyring]);
    fs::write(&signed, format!("{line}{text}")).unwrap();
    copy_signed(2, &folder, &["--hash-file", &signed, "--keyring", &keyring]);
    // A line within it.
    fs::write(&signed, text.replace("# disk.raw", &format!("{line}# disk.raw"))).unwrap();
    copy_signed(5, &folder, &["--hash-file", &signed, "--keyring", &keyring]);
    // No signature at all.
    let message = copy_signed(2, &folder, &["--hash-file", &list, "--keyring", &keyring]);
    assert!(message.contains("--signature"), "{message}");
}

#[test]
fn interop_list_and_signature_come_from_a_web_server() {
    if !has("gpg") || !has("gpgv") {
        return;
    }
    let folder = Folder::new();
    let image = fs::read(folder.image("disk.raw", 3 * MIB)).unwrap();
    let publisher = Publisher(&folder, "publisher");
    let keyring = publisher.keyring();
    let list = folder.path("SHA256SUMS");
    fs::write(&list, format!("{}  disk.raw\n", sha256_of(&image))).unwrap();
    publisher.sign("--detach-sign", &list, "gpg");
    let root = folder.0.0.clone();
    let server = Server::start(move |_, request, stream| {
        let file = fs::read(root.join(request.path.trim_start_matches('/'))).unwrap();
        send(stream, (&file, request.first()), "ETag: \"1\"\r\n", usize::MAX);
    });
    let url = |name: &str| format!("http://{}/{name}", server.authority);
    let (list, signature) = (url("SHA256SUMS"), url("SHA256SUMS.gpg"));
    let signed = ["--hash-file", &list, "--signature", &signature, "--keyring", &keyring];
    copy_signed(0, &folder, &signed);
}

#[test]
fn interop_list_that_minisign_signed_is_trusted() {
    if !has("minisign") {
        return;
    }
    let folder = Folder::new();
    let image = fs::read(folder.image("disk.raw", 3 * MIB)).unwrap();
    let list = folder.path("SHA256SUMS");
    fs::write(&list, format!("{}  disk.raw\n", sha256_of(&image))).unwrap();
    let key =
        |name: &str| (folder.path(&format!("{name}.pub")), folder.path(&format!("{name}.key")));
    let minisign = |args: &[&str]| {
        let output = command("minisign").args(args).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
    };
    let ((public, secret), (others, secret_of_other)) = (key("publisher"), key("other"));
    minisign(&["-G", "-W", "-p", &public, "-s", &secret]);
    minisign(&["-G", "-W", "-p", &others, "-s", &secret_of_other]);
    minisign(&["-S", "-s", &secret, "-m", &list]);
    let signature = format!("{list}.minisig");
    let signed = |public| ["--hash-file", &list, "--signature", &signature, "--keyring", public];
    copy_signed(0, &folder, &signed(&public));
    let message = copy_signed(5, &folder, &signed(&others));
    assert!(message.contains("is not valid"), "{message}");
    fs::write(&list, format!("{}  disk.raw\n\n", sha256_of(&image))).unwrap();
    copy_signed(5, &folder, &signed(&public));
}
