//! Sources of other projects' servers: nginx with a certificate, and the registry of Docker.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use programs::command;

use crate::scene::{Folder, MIB, assert_equal, copy, has, run_expecting};
use crate::web::sha256_of;

/// A running server; killed when dropped.
pub(crate) struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a server, and waits until it listens on the port.
pub(crate) fn start(command: &mut Command, port: u16) -> Running {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let running = Running(quiet.spawn().unwrap());
    let end = Instant::now() + Duration::from_secs(60);
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        assert!(Instant::now() < end, "the server does not listen");
        sleep(Duration::from_millis(20));
    }
    running
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// Makes a certificate of `localhost` that signs itself.
fn certificate(folder: &Folder) {
    let (key, certificate) = (folder.path("key.pem"), folder.path("cert.pem"));
    let mut openssl = command("openssl");
    openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30"]);
    openssl.args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]);
    openssl.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
    openssl.args(["-keyout", &key, "-out", &certificate]);
    assert!(openssl.output().unwrap().status.success());
}

#[test]
fn interop_nginx_sends_an_image_by_https() {
    if !has("nginx") || !has("openssl") {
        return;
    }
    let folder = Folder::new();
    let image = folder.image("disk.raw", 9 * MIB);
    certificate(&folder);
    let port = free_port();
    let (root, at) = (folder.0.0.display(), format!("127.0.0.1:{port}"));
    let text = format!(
        "daemon off;\nmaster_process off;\npid {root}/nginx.pid;\nerror_log /dev/null;\nevents {{}}\nhttp {{\n\
         access_log off;\nclient_body_temp_path {root}/t1;\nproxy_temp_path {root}/t2;\nfastcgi_temp_path {root}/t3;\n\
         uwsgi_temp_path {root}/t4;\nscgi_temp_path {root}/t5;\nserver {{\nlisten {at} ssl;\n\
         ssl_certificate cert.pem;\nssl_certificate_key key.pem;\nroot {root};\n}}\n}}\n"
    );
    let settings = folder.path("nginx.conf");
    fs::write(&settings, text).unwrap();
    let _server = start(command("nginx").args(["-c", &settings]), port);
    let (url, copied) = (format!("https://localhost:{port}/disk.raw"), folder.path("copy.img"));
    // Of an authority that this machine does not know.
    let message = run_expecting(5, &[&url, &copied]);
    assert!(message.contains("certificate"), "{message}");
    assert!(fs::metadata(&copied).is_err());
    let mut trusting = copy(&[&url, &copied]);
    let output = trusting.env("SSL_CERT_FILE", folder.path("cert.pem")).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_equal(&image, &copied);
    continued_from_a_map(&folder, &url);
}

/// A copy from nginx goes on after it was killed, and not with another version of the file.
fn continued_from_a_map(folder: &Folder, url: &str) {
    let (image, copied, map) =
        (folder.path("disk.raw"), folder.path("other.img"), folder.path("map"));
    let command = |options: &[&str]| {
        let mut command = copy(&[options, &["--map", &map, url, &copied]].concat());
        command.env("SSL_CERT_FILE", folder.path("cert.pem"));
        command
    };
    let mut killed = command(&["--rate", "2M"]).stderr(Stdio::null()).spawn().unwrap();
    while !fs::read_to_string(&map).is_ok_and(|map| map.lines().any(|line| line.ends_with("  +"))) {
        assert!(killed.try_wait().unwrap().is_none());
        sleep(Duration::from_millis(10));
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    let output = command(&[]).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && message.contains("had been copied before"), "{message}");
    assert_equal(&image, &copied);
    let list = folder.path("SHA256SUMS");
    fs::write(&list, format!("{}  disk.raw\n", sha256_of(&fs::read(&image).unwrap()))).unwrap();
    let output = command(&["--hash-file", &list]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_equal(&image, &copied);
    folder.image("disk.raw", 9 * MIB + 512);
    let output = command(&[]).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(5), "{message}");
    assert!(message.contains("is of another version of"), "{message}");
}

#[test]
fn interop_docker_registry_gives_an_image() {
    if !has("docker-registry") || !has("skopeo") {
        return;
    }
    let folder = Folder::new();
    let image = folder.image("disk.raw", 9 * MIB);
    let port = free_port();
    let settings = folder.path("registry.yml");
    let root = folder.path("registry");
    let text = format!(
        "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {root}}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n"
    );
    fs::write(&settings, text).unwrap();
    let _server = start(command("docker-registry").args(["serve", &settings]), port);
    let pushed = push(&folder, &image, &format!("localhost:{port}/lab/disk:v1"));
    for version in [":v1".to_owned(), format!("@{pushed}")] {
        let copied = folder.path("copy.img");
        let source = format!("oci://localhost:{port}/lab/disk{version}");
        run_expecting(0, &["--force", &source, &copied]);
        assert_equal(&image, &copied);
    }
    let missing = format!("oci://localhost:{port}/lab/disk:v2");
    run_expecting(5, &[&missing, &folder.path("other.img")]);
}

/// Pushes a file as the only layer of an image, by skopeo. Returns the digest of its manifest.
fn push(folder: &Folder, image: &str, to: &str) -> String {
    let layout = folder.0.0.join("layout");
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let blob = |bytes: &[u8]| {
        let hash = sha256_of(bytes);
        fs::write(blobs.join(&hash), bytes).unwrap();
        format!(r#""digest":"sha256:{hash}","size":{}"#, bytes.len())
    };
    let (config, layer) = (blob(b"{}"), blob(&fs::read(image).unwrap()));
    let kind = "application/vnd.oci.image";
    let manifest = blob(
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{kind}.manifest.v1+json","config":{{"mediaType":"{kind}.config.v1+json",{config}}},"layers":[{{"mediaType":"{kind}.layer.v1.tar",{layer}}}]}}"#
        )
        .as_bytes(),
    );
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{kind}.manifest.v1+json",{manifest}}}]}}"#
    );
    fs::write(layout.join("index.json"), index).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let mut skopeo = command("skopeo");
    skopeo.args(["--insecure-policy", "copy", "--preserve-digests", "--dest-tls-verify=false"]);
    skopeo.arg(format!("oci:{}", layout.display())).arg(format!("docker://{to}"));
    let output = skopeo.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let digest = manifest.split('"').nth(3).unwrap();
    digest.to_owned()
}
