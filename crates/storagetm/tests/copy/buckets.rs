//! Objects of buckets: with a server of our own, and with moto, which verifies signatures.

use std::fs;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::thread::sleep;
use std::time::{Duration, Instant};

use programs::command;
use testkit::bucket::{Shared, answer, error};
use testkit::web::{Request, Server, reply};

use crate::scene::{Folder, MIB, PROGRAM, assert_equal, copy, has, run_expecting};
use crate::servers::{free_port, start};

const SECRET: &str = "s3cret-of-the-account";

/// A server that answers by `fault`, and rightly where that returns `false`.
fn serve(
    fault: impl Fn(&Request) -> Option<(&'static str, Vec<u8>)> + Send + 'static,
) -> (Shared, Server) {
    let store = Shared::default();
    let theirs = store.clone();
    let server = Server::start(move |_, request, stream| match fault(request) {
        Some((status, body)) => reply(stream, status, "", &body),
        None => answer(&theirs, request, stream),
    });
    (store, server)
}

/// Returns the command with the server as the only one that it knows of.
fn copy_with(server: &str, args: &[&str]) -> Command {
    let mut command = copy(args);
    let names = ["AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_ENDPOINT_URL_S3"];
    names.iter().for_each(|name| {
        command.env_remove(name);
    });
    command.env("AWS_ENDPOINT_URL", format!("http://{server}"));
    command.env("AWS_ACCESS_KEY_ID", "AKIA").env("AWS_SECRET_ACCESS_KEY", SECRET);
    command
}

/// Runs the command, which must exit with `status`. Returns its standard error.
#[track_caller]
fn run(status: i32, command: &mut Command) -> String {
    let Output { status: code, stderr, .. } = command.output().unwrap();
    let message = String::from_utf8(stderr).unwrap();
    assert_eq!(code.code(), Some(status), "{message}");
    assert!(!message.contains(SECRET) && !message.contains("Signature="), "{message}");
    message
}

#[test]
fn disk_is_copied_to_a_bucket_and_back() {
    let folder = Folder::new();
    let (store, server) = serve(|_| None);
    let image = folder.image("disk.img", 17 * MIB + 512);
    let at = &server.authority;
    let message = run(0, &mut copy_with(at, &[&image, "s3://bucket/a b.raw"]));
    assert!(message.contains("in 3 parts") && message.contains("MD5 hashes"), "{message}");
    assert!(message.contains("17.8 MB verified"), "{message}");
    assert!(store.lock().unwrap().object.as_deref() == Some(&*fs::read(&image).unwrap()));
    let copied = folder.path("copy.img");
    run(0, &mut copy_with(at, &["s3://bucket/a b.raw", &copied]));
    assert_equal(&image, &copied);
    let continued = folder.path("continued.img");
    let map = folder.path("map");
    run(0, &mut copy_with(at, &["--map", &map, "s3://bucket/a b.raw", &continued]));
    assert_equal(&image, &continued);
    // Not verified, and without its hash.
    let message =
        run(0, &mut copy_with(at, &["--force", "--no-verify", &image, "s3://bucket/a b.raw"]));
    assert!(!message.contains("verified") && message.contains("not compared"), "{message}");
}

#[test]
fn object_that_ends_with_zst_is_compressed() {
    let folder = Folder::new();
    let (store, server) = serve(|_| None);
    let image = folder.image("disk.img", 5 * MIB + 512);
    let (at, url) = (&server.authority, "s3://bucket/disk.raw.zst");
    let message = run(0, &mut copy_with(at, &[&image, url]));
    assert!(message.contains("is compressed") && message.contains("verified"), "{message}");
    let object = store.lock().unwrap().object.clone().unwrap();
    assert!(object.len() < 4 << 20, "{}", object.len());
    assert!(zstd::decode_all(&*object).unwrap() == fs::read(&image).unwrap());
    let copied = folder.path("copy.img");
    run(0, &mut copy_with(at, &[url, &copied]));
    assert_equal(&image, &copied);
    run(0, &mut copy_with(at, &["--force", "--format", "raw", &image, url]));
    assert!(store.lock().unwrap().object.as_deref() == Some(&*fs::read(&image).unwrap()));
}

#[test]
fn object_that_exists_is_overwritten_with_force_only() {
    let folder = Folder::new();
    let (store, server) = serve(|_| None);
    store.lock().unwrap().object = Some(b"of another".to_vec());
    let image = folder.image("disk.img", MIB);
    let (at, url) = (&server.authority, "s3://bucket/disk.raw");
    let message = run(5, &mut copy_with(at, &[&image, url]));
    assert!(message.contains("an object of 10 bytes") && message.contains("--force"), "{message}");
    assert_eq!(store.lock().unwrap().object.as_deref(), Some(&b"of another"[..]));
    run(0, &mut copy_with(at, &["--force", &image, url]));
    assert!(store.lock().unwrap().object.as_deref() == Some(&*fs::read(&image).unwrap()));
}

#[test]
fn what_cannot_be_copied_to_a_bucket_is_refused() {
    let folder = Folder::new();
    let (_, server) = serve(|request| {
        let is_denied = request.path.ends_with("/denied");
        is_denied.then(|| ("403 Forbidden", Vec::new()))
    });
    let (at, image, url) = (&server.authority, folder.image("disk.img", MIB), "s3://bucket/a.raw");
    let map = folder.path("map");
    for option in [&["--map", &*map][..], &["--files"], &["--expand"], &["--new-ids"]] {
        let message = run(2, &mut copy_with(at, &[option, &[&image, url]].concat()));
        assert!(message.contains("is an object, which cannot be"), "{message}");
    }
    run(2, &mut copy_with(at, &[&image, "s3://bucket/a.raw.xz"]));
    run(2, &mut copy_with(at, &[&image, "s3://bucket"]));
    run(2, copy_with(at, &[&image, url]).env("AWS_SECRET_ACCESS_KEY", ""));
    let message =
        run(5, copy_with(at, &["-", url]).stdin(Stdio::from(fs::File::open(&image).unwrap())));
    assert!(message.contains("comes as a stream"), "{message}");
    // Without the permission to list, a server answers so about what does not exist.
    let message = run(5, &mut copy_with(at, &[&image, "s3://bucket/denied"]));
    assert!(
        message.contains("whether s3://bucket/denied exists") && message.contains("--force"),
        "{message}"
    );
    let message = run(5, &mut copy_with(at, &["s3://bucket/denied", &folder.path("copy")]));
    assert!(message.contains("cannot be read"), "{message}");
}

#[test]
fn failed_upload_is_aborted_and_no_success() {
    let folder = Folder::new();
    let image = folder.image("disk.img", 9 * MIB);
    for (query, answer, document, status) in [
        ("partNumber=2", "400 Bad Request", error("EntityTooLarge"), 1),
        ("partNumber=2", "200 OK", Vec::new(), 7),
        ("uploadId", "200 OK", error("AccessDenied"), 1),
        ("uploadId", "200 OK", b"<Other/>".to_vec(), 7),
    ] {
        let (store, server) = serve(move |request| {
            let is_it = request.path.contains(query) && request.method != "DELETE";
            let is_it = is_it && (request.method == "POST" || query.contains("partNumber"));
            is_it.then(|| (answer, document.clone()))
        });
        let at = &server.authority;
        let message =
            run(status, &mut copy_with(at, &["--patience", "0", &image, "s3://bucket/a"]));
        assert!(!message.contains("verified"), "{message}");
        let store = store.lock().unwrap();
        assert!(store.object.is_none() && store.aborted == 1, "{message}");
    }
}

#[test]
fn interrupted_upload_is_aborted() {
    let folder = Folder::new();
    let image = folder.image("disk.img", 64 * MIB);
    let (store, server) = serve(|request| {
        let is_part = request.method == "PUT";
        is_part.then(|| ("503 Slow Down", error("SlowDown")))
    });
    let mut command = copy_with(&server.authority, &[&image, "s3://bucket/a"]);
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    interrupt_at(&server, &child, "PUT");
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(6));
    let store = store.lock().unwrap();
    assert!(store.object.is_none() && store.aborted == 1);
}

/// An upload to a server that answers no part.
struct SilentUpload {
    _folder: Folder,
    store: Shared,
    server: Server,
    child: Child,
}

impl SilentUpload {
    /// Interrupts it while it sends parts.
    fn interrupted() -> Self {
        let folder = Folder::new();
        let image = folder.image("disk.img", 64 * MIB);
        let store = Shared::default();
        let (theirs, held) = (store.clone(), Mutex::new(Vec::new()));
        let server = Server::start(move |_, request, stream| match request.method.as_str() {
            "PUT" => held.lock().unwrap().push(stream.try_clone().unwrap()),
            _ => answer(&theirs, request, stream),
        });
        let mut command = copy_with(&server.authority, &[&image, "s3://bucket/a"]);
        let child = command.stderr(Stdio::piped()).spawn().unwrap();
        interrupt_at(&server, &child, "PUT");
        Self { _folder: folder, store, server, child }
    }
}

#[test]
fn interrupted_upload_does_not_wait_for_a_silent_server() {
    let SilentUpload { _folder, store, server: _server, child } = SilentUpload::interrupted();
    let begin = Instant::now();
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(6));
    assert!(begin.elapsed() < Duration::from_secs(30));
    assert_eq!(store.lock().unwrap().aborted, 1);
}

#[test]
fn second_interrupt_aborts_the_upload_at_once() {
    let SilentUpload { _folder, store, server, child } = SilentUpload::interrupted();
    let begin = Instant::now();
    sleep(Duration::from_millis(200));
    interrupt_at(&server, &child, "PUT");
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(6));
    assert!(begin.elapsed() < Duration::from_secs(5), "parts are not waited for");
    assert_eq!(store.lock().unwrap().aborted, 1);
}

#[test]
fn upload_is_begun_again_if_the_server_is_busy() {
    let folder = Folder::new();
    let image = folder.image("disk.img", 9 * MIB);
    let count = std::sync::atomic::AtomicUsize::new(0);
    let (store, server) = serve(move |request| {
        let is_begin = request.method == "POST" && request.path.ends_with("?uploads=");
        let is_busy = is_begin && count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < 2;
        is_busy.then(|| ("503 Slow Down", error("SlowDown")))
    });
    run(0, &mut copy_with(&server.authority, &[&image, "s3://bucket/a"]));
    assert!(store.lock().unwrap().object.as_deref() == Some(&*fs::read(&image).unwrap()));
}

#[test]
fn object_that_is_there_and_not_verified_is_named() {
    // Without a hash of the server it is read back, which Ctrl-C ends; or a byte of it differs.
    let folder = Folder::new();
    let image = folder.image("disk.img", 9 * MIB);
    for is_interrupted in [true, false] {
        let store = Shared::default();
        let theirs = store.clone();
        let server = Server::start(move |_, request, stream| {
            if is_interrupted && request.method == "GET" {
                // The client reads no further at its next byte.
                sleep(Duration::from_secs(2));
            }
            answer(&theirs, request, stream);
            let mut store = theirs.lock().unwrap();
            if let (true, Some(object)) = (request.path.contains("uploadId"), &mut store.object) {
                object[1 << 20] ^= u8::from(!is_interrupted);
                store.tag = "opaque".to_owned();
            }
        });
        let mut command = copy_with(&server.authority, &[&image, "s3://bucket/a"]);
        let child = command.stderr(Stdio::piped()).spawn().unwrap();
        if is_interrupted {
            interrupt_at(&server, &child, "GET");
        }
        let output = child.wait_with_output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        let (status, words) = match is_interrupted {
            true => (6, "the object is there, but it is not verified"),
            false => (4, "s3://bucket/a is there, and does not hold what was sent"),
        };
        assert_eq!(output.status.code(), Some(status), "{message}");
        assert!(message.contains(words), "{message}");
        assert!(store.lock().unwrap().object.is_some());
    }
}

/// Sends SIGINT to the program after a request with this method.
fn interrupt_at(server: &Server, child: &Child, method: &str) {
    let end = Instant::now() + Duration::from_secs(60);
    while !server.requests().iter().any(|request| request.method == method) {
        assert!(Instant::now() < end, "no {method}");
        sleep(Duration::from_millis(10));
    }
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
}

#[test]
fn agent_copies_from_a_bucket() {
    let folder = Folder::new();
    let (store, server) = serve(|_| None);
    let image = folder.image("disk.img", 3 * MIB);
    {
        let mut store = store.lock().unwrap();
        (store.object, store.tag) = (Some(fs::read(&image).unwrap()), "1".to_owned());
    }
    let (endpoint, copied) = (format!("http://{}", server.authority), folder.path("copy.img"));
    let mut agent = Command::new(PROGRAM);
    agent.arg("agent").env_clear().env("AWS_ENDPOINT_URL", &endpoint);
    agent.env("IMG_URL", "s3://bucket/disk.raw").env("DEST_DISK", &copied);
    let output = agent.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_equal(&image, &copied);
    // Of a public bucket.
    assert!(server.requests().iter().all(|request| request.header("authorization").is_none()));
}

/// Asks moto for something of its accounts. Its first four answers need no signature.
fn ask(port: u16, service: &str, path: &str, args: &[&str]) -> String {
    let scope = format!("AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/{service}/aws4_request");
    let header = format!("Authorization: {scope}, SignedHeaders=host, Signature=x");
    let mut curl = command("curl");
    curl.args(["--silent", "--show-error", "--header", &header]).args(args);
    let output = curl.arg(format!("http://127.0.0.1:{port}/{path}")).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn interop_moto_stores_and_gives_an_image() {
    if !has("moto_server") || !has("curl") {
        return;
    }
    let folder = Folder::new();
    let image = folder.image("disk.img", 17 * MIB + 512);
    let port = free_port();
    let mut moto = command("moto_server");
    moto.args(["-H", "127.0.0.1", "-p", &port.to_string()])
        .env("INITIAL_NO_AUTH_ACTION_COUNT", "4");
    let _server = start(&mut moto, port);
    ask(port, "s3", "bucket", &["--request", "PUT"]);
    ask(port, "iam", "", &["--data", "Action=CreateUser&Version=2010-05-08&UserName=u"]);
    let policy = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:*","Resource":"*"}]}"#;
    let policy = format!("PolicyDocument={policy}");
    let put = "Action=PutUserPolicy&Version=2010-05-08&UserName=u&PolicyName=p";
    ask(port, "iam", "", &["--data", put, "--data-urlencode", &policy]);
    let key =
        ask(port, "iam", "", &["--data", "Action=CreateAccessKey&Version=2010-05-08&UserName=u"]);
    let field = |name: &str| {
        let rest = key.split_once(&format!("<{name}>")).unwrap_or_else(|| panic!("{key}")).1;
        rest.split('<').next().unwrap().to_owned()
    };
    let (id, secret) = (field("AccessKeyId"), field("SecretAccessKey"));
    let with = |secret: &str, args: &[&str]| {
        let mut command = copy_with(&format!("127.0.0.1:{port}"), args);
        command.env("AWS_ACCESS_KEY_ID", &id).env("AWS_SECRET_ACCESS_KEY", secret);
        command
    };
    for url in ["s3://bucket/a b/c~d.raw", "s3://bucket/disk.raw.zst"] {
        let message = run(0, &mut with(&secret, &[&image, url]));
        assert!(message.contains("MD5 hashes"), "{message}");
        let copied = folder.path("copy.img");
        run(0, &mut with(&secret, &["--force", url, &copied]));
        assert_equal(&image, &copied);
        run(5, &mut with(&secret, &[&image, url]));
        let message = run(5, &mut with("wrong", &["--force", url, &copied]));
        assert!(message.contains("SignatureDoesNotMatch"), "{message}");
    }
    let (map, continued) = (folder.path("map"), folder.path("continued.img"));
    run(0, &mut with(&secret, &["--map", &map, "s3://bucket/a b/c~d.raw", &continued]));
    assert_equal(&image, &continued);
    let message = run(5, &mut with(&secret, &[&image, "s3://other/disk.raw"]));
    assert!(message.contains("there is no such bucket"), "{message}");
}

#[test]
fn server_that_cannot_be_reached_is_named() {
    let folder = Folder::new();
    let image = folder.image("disk.img", MIB);
    let message = run(5, &mut copy_with("127.0.0.1:9", &[&image, "s3://bucket/a"]));
    assert!(message.contains("s3://bucket/a cannot be written"), "{message}");
    run_expecting(2, &["s3://b", &folder.path("copy")]);
}
