//! Copies from web servers behind a redirector, from busy servers, and from those that come late.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use ::copy::map;
use testkit::web::{Server, reply, send_part};

use crate::scene::{Folder, copy, random_bytes, run_expecting};
use crate::web::sha256_of;

/// A node with the file, whose entity tag is its own. It answers until it has sent this many pieces of the copy.
fn node(file: &[u8], tag: &'static str, pieces: usize) -> Server {
    let (file, sent) = (file.to_vec(), AtomicUsize::new(0));
    Server::start(move |_, request, stream| {
        let is_piece = request.part().is_some_and(|(first, end)| end.unwrap() - first > 1 << 19);
        let sent = sent.fetch_add(usize::from(is_piece), Ordering::Relaxed);
        if sent < pieces {
            let is_same = request.header("if-range").is_none_or(|wanted| wanted == tag);
            let part = request.part().filter(|_| is_same);
            send_part(stream, (&file, part), &format!("ETag: {tag}\r\n"), usize::MAX);
        }
    })
}

/// Redirects the first request to the first node, and the next ones to the second. Returns the URL, too.
fn redirector([one, two]: [&Server; 2]) -> (String, Server) {
    let nodes = [one.authority.clone(), two.authority.clone()];
    let server = Server::start(move |number, _, stream| {
        let node = &nodes[number.min(1)];
        reply(stream, "302 Found", &format!("Location: http://{node}/disk.raw\r\n"), b"");
    });
    (format!("http://{}/disk.raw", server.authority), server)
}

#[test]
fn r52_nodes_with_other_tags_do_not_end_the_copy() {
    let folder = Folder::new();
    let image = random_bytes(52, 12 << 20);
    let (one, two) = (node(&image, "\"1\"", usize::MAX), node(&image, "\"2\"", usize::MAX));
    let (url, redirector) = redirector([&one, &two]);
    let (map, copied) = (folder.path("map"), folder.path("copy.img"));
    run_expecting(0, &["--map", &map, &url, &copied]);
    assert!(fs::read(&copied).unwrap() == image);
    assert_eq!((redirector.requests().len(), two.requests().len()), (1, 0));
}

#[test]
fn r51_hash_decides_between_nodes_with_other_tags() {
    let folder = Folder::new();
    let image = random_bytes(51, 12 << 20);
    let mut other = image.clone();
    other[7 << 20] ^= 1;
    let hash = sha256_of(&image);
    for (second, has_hash, status) in [(&image, false, 1), (&image, true, 0), (&other, true, 8)] {
        let (one, two) = (node(&image, "\"1\"", 3), node(second, "\"2\"", usize::MAX));
        let (url, _redirector) = redirector([&one, &two]);
        let (map, copied) = (folder.path("map"), folder.path("copy.img"));
        let _ = (fs::remove_file(&map), fs::remove_file(&copied));
        let mut args = vec!["--patience", "4", "--connections", "1", "--map", &*map];
        if has_hash {
            args.extend(["--sha256", &*hash]);
        }
        args.extend([&*url, &*copied]);
        let message = run_expecting(status, &args);
        assert!(status != 1 || message.contains("the file is of another version"), "{message}");
        if status == 0 {
            assert!(fs::read(&copied).unwrap() == image);
            // The map names the version of the first node.
            let message = run_expecting(0, &args);
            assert!(message.contains("had been copied before"), "{message}");
        }
    }
}

#[test]
fn r51_hash_check_waits_for_a_busy_server() {
    let folder = Folder::new();
    let image = random_bytes(51, 6 << 20);
    let file = image.clone();
    let busy = Arc::new(AtomicUsize::new(0));
    let seen = busy.clone();
    let server = Server::start(move |_, request, stream| {
        // A part of the first MiB that nothing else than the check asks for.
        let is_check = request.part() == Some((256 << 10, Some(512 << 10)));
        match is_check && seen.fetch_add(1, Ordering::Relaxed) < 2 {
            true => reply(stream, "503 Busy", "Retry-After: 1\r\n", b""),
            false => send_part(stream, (&file, request.part()), "ETag: \"1\"\r\n", usize::MAX),
        }
    });
    let url = format!("http://{}/disk.raw", server.authority);
    let (map, copied) = (folder.path("map"), folder.path("copy.img"));
    let args = ["--map", &map, "--sha256", &sha256_of(&image), &url, &copied];
    run_expecting(0, &args);
    assert!(fs::read(&copied).unwrap() == image);
    assert!(busy.load(Ordering::Relaxed) > 2);
}

#[test]
fn busy_server_is_asked_again_when_it_says() {
    let folder = Folder::new();
    let image = random_bytes(52, 6 << 20);
    let file = image.clone();
    let last = Arc::new(std::sync::Mutex::new(None));
    let early = Arc::new(AtomicUsize::new(0));
    let (refused, seen) = (last.clone(), early.clone());
    let server = Server::start(move |_, request, stream| {
        let is_it = request.part().is_some_and(|(first, _)| first == 4 << 20);
        let mut at = refused.lock().unwrap();
        match *at {
            None if is_it => {
                *at = Some(Instant::now());
                reply(stream, "429 Too Many Requests", "Retry-After: 3\r\n", b"");
            }
            Some(since) if since.elapsed() < Duration::from_millis(2900) => {
                seen.fetch_add(1, Ordering::Relaxed);
                reply(stream, "500 Too Early", "", b"");
            }
            _ => send_part(stream, (&file, request.part()), "ETag: \"1\"\r\n", usize::MAX),
        }
    });
    let url = format!("http://{}/disk.raw", server.authority);
    let (map, copied) = (folder.path("map"), folder.path("copy.img"));
    run_expecting(0, &["--connections", "1", "--map", &map, &url, &copied]);
    assert!(fs::read(&copied).unwrap() == image);
    assert!(last.lock().unwrap().unwrap().elapsed() >= Duration::from_secs(3));
    assert_eq!(early.load(Ordering::Relaxed), 0);
}

#[test]
fn other_query_or_server_is_another_source_of_a_map() {
    let folder = Folder::new();
    let image = random_bytes(3, 3 << 20);
    let server = node(&image, "\"1\"", usize::MAX);
    let url = |query: &str| format!("http://{}/disk.raw?{query}", server.authority);
    let (map, copied) = (folder.path("map"), folder.path("copy.img"));
    let args = |query: &str, status| run_expecting(status, &["--map", &map, &url(query), &copied]);
    args("file=s3cret&X-Amz-Date=1&X-Amz-Signature=hidden", 0);
    let text = fs::read_to_string(&map).unwrap();
    assert!(!text.contains("s3cret") && !text.contains("hidden"), "{text}");
    let message = args("X-Amz-Date=2&X-Amz-Signature=3&file=s3cret", 0);
    assert!(message.contains("had been copied before"), "{message}");
    let message = args("file=other&X-Amz-Date=1&X-Amz-Signature=hidden", 5);
    assert!(message.contains("belongs to another disk"), "{message}");
    assert!(map::load(map.as_ref()).unwrap().is_some());
}

#[test]
fn server_that_is_waited_for_is_named_once() {
    let folder = Folder::new();
    let image = random_bytes(3, 3 << 20);
    let list = format!("{}  disk.raw\n", sha256_of(&image));
    for with_map in [false, true] {
        let (file, list) = (image.clone(), list.clone());
        let lists = AtomicUsize::new(0);
        let files = AtomicUsize::new(0);
        let server = Server::start(move |_, request, stream| {
            let (count, file) = match request.path.as_str() {
                "/SHA256SUMS" => (&lists, list.as_bytes()),
                _ => (&files, &*file),
            };
            match count.fetch_add(1, Ordering::Relaxed) {
                // The first byte comes, and then the server is busy once more.
                0 | 1 | 3 => reply(stream, "503 Busy", "", b""),
                _ => send_part(stream, (file, request.part()), "ETag: \"1\"\r\n", usize::MAX),
            }
        });
        let at = format!("http://{}", server.authority);
        let (map, copied) = (folder.path("map"), folder.path(&format!("copy{with_map}")));
        let (hashes, url) = (format!("{at}/SHA256SUMS"), format!("{at}/disk.raw"));
        let mut args = vec!["--wait", "--hash-file", &*hashes];
        if with_map {
            args.extend(["--map", &*map]);
        }
        args.extend([&*url, &*copied]);
        let message = run_expecting(0, &args);
        for name in [&hashes, &url] {
            let waits = format!("waiting up to 300 seconds for {name}: ");
            assert_eq!(message.matches(&waits).count(), 1, "{message}");
        }
        assert!(fs::read(&copied).unwrap() == image);
        // It is not waited for without the option.
        let busy = Server::start(|_, _, stream| reply(stream, "503 Busy", "", b""));
        let url = format!("http://{}/disk.raw", busy.authority);
        run_expecting(5, &["--force", &url, &copied]);
        assert_eq!(busy.requests().len(), 1);
    }
}

#[test]
fn wait_for_a_server_is_told_while_it_lasts() {
    let folder = Folder::new();
    let busy = Server::start(|_, _, stream| reply(stream, "503 Busy", "", b""));
    let url = format!("http://{}/disk.raw", busy.authority);
    let errors = fs::File::create(folder.path("stderr")).unwrap();
    let mut command = copy(&["--wait", &url, &folder.path("copy.img")]);
    let mut child = command.stderr(errors).spawn().unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    let text = || fs::read_to_string(folder.path("stderr")).unwrap();
    while !text().contains("waiting up to 300 seconds") {
        assert!(Instant::now() < end && child.try_wait().unwrap().is_none(), "{}", text());
        sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(fs::metadata(folder.path("copy.img")).is_err());
}
