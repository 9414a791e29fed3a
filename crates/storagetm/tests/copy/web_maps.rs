//! Copies from web servers that are continued from a map.

use std::fs;
use std::net::TcpStream;
use std::ops::Range;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use ::copy::map::{self, State};
use testkit::web::{Request, Server, reply, send, send_part};

use crate::scene::{Folder, MIB, copy, random_bytes, run_expecting};
use crate::web::sha256_of;

/// What a server sends: a file, and its entity tag.
type Version = Arc<Mutex<(Vec<u8>, &'static str)>>;

fn version(file: Vec<u8>) -> Version {
    Arc::new(Mutex::new((file, "\"one\"")))
}

/// Answers as RFC 9110 says.
fn answer(version: &Version, request: &Request, stream: &mut TcpStream) {
    let (file, tag) = version.lock().unwrap().clone();
    let is_same = request.header("if-range").is_none_or(|wanted| wanted == tag);
    let part = request.part().filter(|_| is_same);
    send_part(stream, (&file, part), &format!("ETag: {tag}\r\n"), usize::MAX);
}

/// Serves a version by `answer`, which is given the number of the request, from 0. Returns the URL, too.
fn serve(answer: impl Fn(usize, &Request, &mut TcpStream) + Send + 'static) -> (String, Server) {
    let server = Server::start(answer);
    (format!("http://{}/disk.raw", server.authority), server)
}

fn good(version: &Version) -> (String, Server) {
    let version = version.clone();
    serve(move |_, request, stream| answer(&version, request, stream))
}

fn finished(map: &str) -> Vec<Range<u64>> {
    let map = map::load(map.as_ref()).ok().flatten();
    map.iter().flat_map(|map| map.all(State::Finished)).collect()
}

fn sum(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// Kills a copy when its map lists `bytes` bytes.
fn kill_after(bytes: u64, map: &str, args: &[&str]) {
    let mut child = copy(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let end = Instant::now() + Duration::from_secs(120);
    while sum(&finished(map)) < bytes {
        assert!(Instant::now() < end && child.try_wait().unwrap().is_none(), "not copied slowly");
        sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

/// The parts of a file that were asked for, from a request on.
fn parts(server: &Server, from: usize) -> Vec<Range<u64>> {
    let requests = server.requests();
    let parts = requests[from..].iter().filter_map(Request::part);
    parts.map(|(first, end)| first as u64..end.unwrap() as u64).collect()
}

#[test]
fn r52_killed_copy_goes_on_where_its_map_ends() {
    let folder = Folder::new();
    let image = random_bytes(52, 24 << 20);
    let (url, server) = good(&version(image.clone()));
    let (map, copied) = (folder.path("map"), folder.path("copy.img"));
    kill_after(6 * MIB, &map, &["--rate", "3M", "--map", &map, &url, &copied]);
    let (before, from) = (finished(&map), server.requests().len());
    let message = run_expecting(0, &["--map", &map, &url, &copied]);
    assert!(message.contains("had been copied before"), "{message}");
    assert!(fs::read(&copied).unwrap() == image);
    let parts = parts(&server, from);
    let is_known = |part: &Range<u64>| {
        before.iter().any(|range| range.start <= part.start && part.end <= range.end)
    };
    // Samples prove that the map is of this file.
    let twice: Vec<_> = parts.iter().filter(|part| is_known(part)).cloned().collect();
    assert!(sum(&twice) <= MIB, "{twice:?}");
    let missing = image.len() as u64 - sum(&before);
    assert!(missing > 0 && sum(&parts) <= missing + 2 * MIB, "{missing} {}", sum(&parts));
}

#[test]
fn r51_killed_copy_is_checked_as_a_whole() {
    let folder = Folder::new();
    let image = random_bytes(51, 16 << 20);
    let (url, _server) = good(&version(image.clone()));
    let (map, copied) = (folder.path("map"), folder.image("copy.img", 16 * MIB));
    let hash = sha256_of(&image);
    let list = folder.path("SHA256SUMS");
    fs::write(&list, format!("{hash}  disk.raw\n")).unwrap();
    let args = ["--force", "--map", &map, "--hash-file", &list, &url, &copied];
    kill_after(4 * MIB, &map, &[&["--rate", "3M"][..], &args].concat());
    let there = fs::read(&copied).unwrap();
    assert!(there[..1 << 20].iter().all(|byte| *byte == 0), "there is no partition table");
    let message = run_expecting(0, &args);
    assert!(message.contains("verified"), "{message}");
    assert!(fs::read(&copied).unwrap() == image);
    // Once more, nothing but the ends is copied.
    let message = run_expecting(0, &args);
    assert!(message.contains("had been copied before"), "{message}");
    assert!(fs::read(&copied).unwrap() == image);
}

#[test]
fn r51_unexpected_hash_after_a_map_leaves_no_table() {
    let folder = Folder::new();
    let image = random_bytes(51, (5 << 20) + 512);
    let (url, _server) = good(&version(image.clone()));
    let (map, copied) = (folder.path("map"), folder.image("copy.img", 5 * MIB));
    let zeros = "0".repeat(64);
    for verify in ["--verify", "--no-verify"] {
        let args = ["--force", "--map", &map, verify, "--sha256", &zeros, &url, &copied];
        let message = run_expecting(8, &args);
        let hash = sha256_of(&image);
        assert!(message.contains(&hash) && message.contains("was expected"), "{message}");
        assert!(message.contains("to copy all of it again"), "{message}");
        let there = fs::read(&copied).unwrap();
        assert!(there[..1 << 20].iter().all(|byte| *byte == 0));
        assert!(there[1 << 20..4 << 20] == image[1 << 20..4 << 20]);
        assert_eq!(finished(&map), []);
    }
    run_expecting(0, &["--force", "--map", &map, "--sha256", &sha256_of(&image), &url, &copied]);
    assert!(fs::read(&copied).unwrap() == image);
}

#[test]
fn r52_map_of_another_version_is_refused() {
    let folder = Folder::new();
    let (old, new) = (random_bytes(1, 5 << 20), random_bytes(2, 5 << 20));
    let version = version(old.clone());
    let (url, server) = good(&version);
    let (map, copied) = (folder.path("map"), folder.path("copy.img"));
    run_expecting(0, &["--map", &map, &url, &copied]);
    // The same tag on bytes that are others: samples tell.
    *version.lock().unwrap() = (new.clone(), "\"one\"");
    let message = run_expecting(5, &["--map", &map, &url, &copied]);
    assert!(message.contains("differs"), "{message}");
    *version.lock().unwrap() = (new, "\"two\"");
    let from = server.requests().len();
    let message = run_expecting(5, &["--map", &map, &url, &copied]);
    assert!(message.contains("is of another version of"), "{message}");
    assert!(message.contains("\"one\"") && message.contains("\"two\""), "{message}");
    assert!(sum(&parts(&server, from)) < 4096);
    assert!(fs::read(&copied).unwrap() == old);
    // So does a server that has no parts any more.
    let (url, _server) = serve(move |_, _, stream| {
        send(stream, (&old, None), "ETag: \"one\"\r\n", usize::MAX);
    });
    let message = run_expecting(5, &["--map", &map, &url, &copied]);
    assert!(message.contains("does not send parts"), "{message}");
}

#[test]
fn r52_file_that_changes_meanwhile_is_not_spliced() {
    // A server that follows `If-Range`, and one that does not.
    for follows in [true, false] {
        let folder = Folder::new();
        let (old, new) = (random_bytes(1, 12 << 20), vec![0xee; 12 << 20]);
        let (url, _server) = serve(move |number, request, stream| {
            let (file, tag) = if number < 20 { (&old, "\"one\"") } else { (&new, "\"two\"") };
            let is_same = request.header("if-range").is_none_or(|wanted| wanted == tag);
            let part = request.part().filter(|_| is_same || !follows);
            send_part(stream, (file, part), &format!("ETag: {tag}\r\n"), usize::MAX);
        });
        let (map, copied) = (folder.path("map"), folder.path("copy.img"));
        let args = ["--patience", "5", "--map", &map, &url, &copied];
        let message = run_expecting(1, &args);
        assert!(message.contains("was changed on the server"), "{message}");
        let there = fs::read(&copied).unwrap();
        assert!(!there.windows(16).step_by(16).any(|bytes| bytes == [0xee; 16]));
        let message = run_expecting(5, &args);
        assert!(message.contains("is of another version of"), "{message}");
    }
}

#[test]
fn r52_lost_and_cut_parts_are_asked_for_again() {
    let folder = Folder::new();
    let image = random_bytes(3, 8 << 20);
    let file = image.clone();
    let faults = Arc::new(AtomicUsize::new(0));
    let seen = faults.clone();
    let (url, _server) = serve(move |number, request, stream| {
        let is_large = request.part().is_some_and(|(first, end)| end.unwrap() - first > 1 << 19);
        let tag = "ETag: \"one\"\r\n";
        match number % 5 {
            1 if is_large => {
                seen.fetch_add(1, Ordering::Relaxed);
                send_part(stream, (&file, request.part()), tag, 300_000);
            }
            3 if is_large => reply(stream, "503 Busy", "", b""),
            _ => send_part(stream, (&file, request.part()), tag, usize::MAX),
        }
    });
    let (map, copied) = (folder.path("map"), folder.path("copy.img"));
    run_expecting(0, &["--map", &map, &url, &copied]);
    assert!(fs::read(&copied).unwrap() == image);
    assert!(faults.load(Ordering::Relaxed) > 0);
}

#[test]
fn r52_other_part_than_asked_for_ends_the_copy() {
    let folder = Folder::new();
    let file = random_bytes(3, 8 << 20);
    let (url, _server) = serve(move |_, request, stream| {
        let part = request.part().map(|(first, end)| match end.unwrap() - first {
            len if len > 1 << 19 => (first + 512, end),
            _ => (first, end),
        });
        send_part(stream, (&file, part), "ETag: \"one\"\r\n", usize::MAX);
    });
    let (map, copied) = (folder.path("map"), folder.path("copy.img"));
    let message = run_expecting(7, &["--map", &map, &url, &copied]);
    assert!(message.contains("sent another part"), "{message}");
}

#[test]
fn r52_map_without_parts_or_version_is_refused() {
    let folder = Folder::new();
    let image = random_bytes(3, 3 << 20);
    let (map, copied) = (folder.path("map"), folder.path("copy.img"));
    for (headers, has_parts, reason) in [
        ("ETag: \"one\"\r\n", false, "does not send parts of it"),
        ("ETag: W/\"one\"\r\n", true, "names no version of it"),
        ("ETag: \"one\"\r\nContent-Encoding: gzip\r\n", true, "compresses it on the way"),
    ] {
        let image = image.clone();
        let (url, _server) = serve(move |_, request, stream| {
            let part = request.part().filter(|_| has_parts);
            send_part(stream, (&image, part), headers, usize::MAX);
        });
        let message = run_expecting(5, &["--map", &map, &url, &copied]);
        assert!(message.contains(reason) && message.contains("leave --map out"), "{message}");
    }
    let mut packed = image.clone();
    packed[..4].copy_from_slice(b"\x28\xb5\x2f\xfd");
    let (url, _server) = good(&version(packed.clone()));
    let message = run_expecting(5, &["--map", &map, &url, &copied]);
    assert!(message.contains("is unpacked from its start to its end"), "{message}");
    assert!(fs::metadata(&copied).is_err() && fs::metadata(&map).is_err());
    run_expecting(0, &["--format", "raw", "--map", &map, &url, &copied]);
    assert!(fs::read(&copied).unwrap() == packed);
    fs::write(&map, "PNG, or something else").unwrap();
    let message = run_expecting(5, &["--force", "--map", &map, &url, &copied]);
    assert!(message.contains("is not a map"), "{message}");
}

#[test]
fn x56_resumed_copy_sends_no_password_to_another_host() {
    let folder = Folder::new();
    let image = random_bytes(56, 6 << 20);
    let version = version(image.clone());
    let (other, elsewhere) = good(&version);
    let other = other.replace("127.0.0.1", "[::ffff:127.0.0.1]");
    let has_moved = Arc::new(AtomicUsize::new(0));
    let moved = has_moved.clone();
    let (url, server) = serve(move |_, request, stream| match moved.load(Ordering::Relaxed) {
        0 => answer(&version, request, stream),
        _ => reply(stream, "302 Found", &format!("Location: {other}\r\n"), b""),
    });
    let url = url.replace("http://", "http://anna:secret@");
    let (map, copied) = (folder.path("map"), folder.path("copy.img"));
    kill_after(2 * MIB, &map, &["--rate", "1M", "--map", &map, &url, &copied]);
    assert!(server.requests().iter().all(|request| request.header("authorization").is_some()));
    has_moved.store(1, Ordering::Relaxed);
    let message = run_expecting(0, &["--map", &map, &url, &copied]);
    assert!(!message.contains("secret"), "{message}");
    assert!(fs::read(&copied).unwrap() == image);
    let requests = elsewhere.requests();
    assert!(!requests.is_empty());
    assert!(requests.iter().all(|request| request.header("authorization").is_none()));
    assert!(!fs::read_to_string(&map).unwrap().contains("secret"));
}

#[test]
fn r53_map_of_a_registry_is_checked_by_the_digest() {
    let folder = Folder::new();
    let image = random_bytes(53, 5 << 20);
    for is_right in [true, false] {
        let file = image.clone();
        let digest = format!("sha256:{}", sha256_of(if is_right { &image } else { b"other" }));
        let manifest = format!(r#"{{"layers":[{{"digest":"{digest}","size":{}}}]}}"#, image.len());
        let server =
            Server::start(move |_, request, stream| match request.path.contains("blobs") {
                true => send_part(stream, (&file, request.part()), "", usize::MAX),
                false => reply(stream, "200 OK", "", manifest.as_bytes()),
            });
        let url = format!("oci://{}/lab/disk:v1", server.authority);
        let map = folder.path(&format!("map{is_right}"));
        let copied = folder.path(&format!("copy{is_right}"));
        let message = run_expecting(if is_right { 0 } else { 8 }, &["--map", &map, &url, &copied]);
        let there = fs::read(&copied).unwrap();
        match is_right {
            true => assert!(there == image && message.contains("verified"), "{message}"),
            false => assert!(there[..1 << 20].iter().all(|byte| *byte == 0)),
        }
        assert!(fs::read_to_string(&map).unwrap().contains(&digest));
    }
}

/// R51: what is written is what was checked, also where a server sends something else the second time.
#[test]
fn r51_ends_are_written_as_they_were_checked() {
    let folder = Folder::new();
    let image = random_bytes(51, 6 << 20);
    let (there, place) = (version(image.clone()), 600 << 10);
    let reads = AtomicUsize::new(0);
    let (url, _server) = serve(move |_, request, stream| {
        let is_there = request
            .part()
            .is_some_and(|(first, end)| first <= place && end.is_some_and(|end| end > place));
        if is_there && reads.fetch_add(1, Ordering::Relaxed) > 0 {
            let mut hostile = there.lock().unwrap().0.clone();
            hostile[place] ^= 1;
            return answer(&version(hostile), request, stream);
        }
        answer(&there, request, stream);
    });
    let (map, copied) = (folder.path("map"), folder.path("copy.img"));
    run_expecting(0, &["--map", &map, "--sha256", &sha256_of(&image), &url, &copied]);
    assert!(fs::read(&copied).unwrap() == image);
}
