//! Files on disks: lists of partitions and folders, downloads, and what hostile file systems have in them.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use export::{Access, Fault};

use crate::world::{DISK, Response, World, disk, get, secure};

/// A directory that is removed when dropped.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn lacks() -> bool {
    programs::lacks("files by HTTP", &["mke2fs"])
}

/// Returns an ext4 of 8 MiB with these files.
pub(crate) fn image(name: &str, files: &[(&[u8], &[u8])]) -> Vec<u8> {
    let folder = std::env::temp_dir().join(format!("web-files-{}-{name}", std::process::id()));
    let folder = Folder(folder);
    let (tree, image) = (folder.0.join("tree"), folder.0.join("image"));
    fs::create_dir_all(&tree).unwrap();
    for (path, content) in files {
        let path = tree.join(OsString::from_vec(path.to_vec()));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
    let mut command = programs::command("mke2fs");
    command.args(["-q", "-F", "-t", "ext4", "-b", "1024", "-d"]);
    assert!(command.arg(&tree).arg(&image).status().unwrap().success());
    fs::read(image).unwrap()
}

/// Returns a server that lends the image as `sda`.
pub(crate) fn world(image: &[u8], access: Access, block: u32) -> World {
    let mut world = World::bare();
    world.disk = image.to_vec();
    world.catalogue.publish(disk(access, block, image.len() as u64));
    world
}

pub(crate) fn text(response: &Response) -> String {
    String::from_utf8(response.content.clone()).unwrap()
}

/// Returns the addresses of the links on the page with this path, which ends with a slash.
pub(crate) fn links(page: &str, path: &str) -> Vec<String> {
    let absolute = |link: &str| match link {
        link if link.starts_with('/') => link.to_owned(),
        link if link.starts_with('?') => format!("{path}{link}"),
        link => {
            let ups = link.matches("../").count();
            let mut parts: Vec<_> = path.trim_end_matches('/').split('/').collect();
            parts.truncate(parts.len() - ups);
            format!("{}/{}", parts.join("/"), link.replace("../", "").replace("./", ""))
        }
    };
    let links = page.split("href=\"").skip(1);
    links.map(|rest| absolute(rest.split('"').next().unwrap())).collect()
}

/// Returns whether a response is shorter than announced.
pub(crate) fn is_cut(bytes: &[u8]) -> bool {
    let end = bytes.windows(4).position(|at| at == b"\r\n\r\n").unwrap() + 4;
    let head = std::str::from_utf8(&bytes[..end]).unwrap();
    let len = head.split("Content-Length: ").nth(1).unwrap().split('\r').next().unwrap();
    bytes.len() - end < len.parse::<usize>().unwrap()
}

fn big() -> Vec<u8> {
    (0..700_000_u32).map(|at| u8::try_from(at / 3 % 251).unwrap()).collect()
}

#[test]
fn folders_are_listed_and_files_are_downloaded() {
    if lacks() {
        return;
    }
    let big = big();
    let image =
        image("download", &[(b"photos/one.jpg", &big), (b"empty", b""), (b"small.txt", b"hi")]);
    for block in [512, 4096] {
        let mut world = world(&image, Access::ReadOnly, block);
        assert!(text(&world.get("/", "")).contains("href=\"/sda/\""));
        let page = text(&world.get("/sda/", ""));
        assert!(page.contains("The whole disk") && page.contains("ext4, 8.3 MB"), "{page}");
        assert!(links(&page, "/sda/").iter().any(|link| link == "/sda/0/"), "{page}");
        let response = world.get("/sda/0/", "");
        assert_eq!(response.field("Content-Type"), Some("text/html; charset=utf-8"));
        assert_eq!(response.field("Cache-Control"), Some("no-store"));
        let page = text(&response);
        assert!(page.contains("small.txt") && page.contains("2 bytes, 20"), "{page}");
        assert!(page.find("photos").unwrap() < page.find("empty").unwrap(), "folders are first");
        let page = text(&world.get("/sda/0/photos/", ""));
        let links = links(&page, "/sda/0/photos/");
        assert_eq!(links[1..4], ["/", "/sda/", "/sda/0/"]);
        let file = links.last().unwrap();
        assert_eq!(file, "/sda/0/photos/one.jpg");
        let response = world.get(file, "");
        assert_eq!((response.code, response.content == big), (200, true));
        assert_eq!(response.field("Content-Type"), Some("application/octet-stream"));
        assert_eq!(response.field("X-Content-Type-Options"), Some("nosniff"));
        let disposition = response.field("Content-Disposition");
        assert_eq!(disposition, Some("attachment; filename=\"one.jpg\""));
        let tag = response.field("ETag").unwrap().to_owned();
        for (first, last) in [(0, 0), (1023, 1024), (5, 300_000), (699_000, 699_999)] {
            let fields = format!("Range: bytes={first}-{last}\r\nIf-Range: {tag}\r\n");
            let response = world.get(file, &fields);
            assert_eq!((response.code, response.content == big[first..=last]), (206, true));
        }
        assert_eq!(world.get(file, "Range: bytes=700000-\r\n").code, 416);
        assert_eq!(world.get(file, &format!("If-None-Match: {tag}\r\n")).code, 304);
        let response = world.get("/sda/0/empty", "");
        assert_eq!((response.code, response.field("Content-Length")), (200, Some("0")));
        let id = world.open();
        let head = get(file, "").replacen("GET", "HEAD", 1);
        let (response, _) = Response::parse(&world.exchange(id, head.as_bytes()), true);
        assert_eq!(response.field("Content-Length"), Some("700000"));
        world.end_all();
    }
}

/// Case X66.
#[test]
fn x66_hostile_names_and_paths_stay_in_their_folder() {
    if lacks() {
        return;
    }
    let names: [&[u8]; 7] = [
        b"<script>alert(1)<",
        b"quote\" onclick='x'",
        b"line\r\nSet-Cookie: a=b",
        "bidi \u{202e}gpj.exe".as_bytes(),
        b"latin \xe9",
        b"100%2e%2e%2f?from=1#x&amp;",
        b" ..",
    ];
    let files: Vec<(Vec<u8>, Vec<u8>)> =
        names.iter().map(|name| (name.to_vec(), name.to_vec())).collect();
    let files: Vec<(&[u8], &[u8])> = files.iter().map(|(name, it)| (&name[..], &it[..])).collect();
    let mut world = world(&image("hostile", &files), Access::ReadOnly, 512);
    let page = text(&world.get("/sda/0/", ""));
    for bad in ["<script", "onclick='", "\r\nSet", "\u{202e}", "\" onclick"] {
        assert!(!page.contains(bad), "{bad}: {page}");
    }
    let mut found = Vec::new();
    for link in links(&page, "/sda/0/").into_iter().filter(|link| !link.ends_with('/')) {
        if !link.starts_with("/sda/0/") {
            continue;
        }
        let response = world.get(&link, "");
        assert_eq!(response.code, 200, "{link}");
        assert_eq!(response.field("Set-Cookie"), None);
        assert!(
            response.field("Content-Disposition").unwrap().starts_with("attachment; filename=\"")
        );
        found.push(response.content);
    }
    found.sort();
    let mut wanted = names.map(<[u8]>::to_vec).to_vec();
    wanted.sort();
    assert_eq!(found, wanted);
    for path in [
        "/sda/0/../../etc/passwd",
        "/sda/0/%2e%2e/%2e%2e/etc/passwd",
        "/sda/0/..",
        "/sda/0/.",
        "/sda/0//lost+found",
        "/sda/0/lost+found/../%20..",
        "/sda/0/none",
        "/sda/1/",
        "/sda/00000000000000000000001/",
        "/sda/+0/",
        "/sda/0x0/",
        "/sda/%",
        "/sda/0/%zz",
        "/none/0/",
        "//0/",
    ] {
        assert_eq!(world.get(path, "").code, 404, "{path}");
    }
    world.end_all();
}

#[test]
fn long_folders_are_on_several_pages() {
    if lacks() {
        return;
    }
    let names: Vec<Vec<u8>> = (0..1100).map(|at| format!("file {at}").into_bytes()).collect();
    let files: Vec<(&[u8], &[u8])> = names.iter().map(|name| (&name[..], &b""[..])).collect();
    let mut world = world(&image("many", &files), Access::ReadOnly, 512);
    let (mut path, mut found, mut pages) = ("/sda/0/".to_owned(), Vec::new(), 0);
    loop {
        let page = text(&world.get(&path, ""));
        let links = links(&page, "/sda/0/");
        found.extend(links.iter().filter(|link| link.contains("/file%20")).cloned());
        pages += 1;
        match links.last().filter(|link| link.contains('?')) {
            Some(next) => path.clone_from(next),
            None => break,
        }
    }
    found.sort_unstable();
    found.dedup();
    assert_eq!((found.len(), pages), (1100, 3));
    world.end_all();
}

#[test]
fn files_need_the_code_where_disks_do() {
    if lacks() {
        return;
    }
    let mut world = world(&image("code", &[(b"secret.txt", b"x")]), Access::ReadOnly, 512);
    for path in ["/sda/", "/sda/0/", "/sda/0/secret.txt", "/sda/0/none"] {
        let id = world.open_as(secure("10.0.0.9:1024"));
        let (response, _) = Response::parse(&world.exchange(id, get(path, "").as_bytes()), false);
        assert_eq!((response.code, text(&response).contains("secret")), (401, false), "{path}");
        assert_eq!(world.conn(id).submitted, 0);
        let id = world.open();
        let request = format!("GET {path} HTTP/1.1\r\nHost: evil.example\r\n\r\n");
        let (response, _) = Response::parse(&world.exchange(id, request.as_bytes()), false);
        assert_eq!((response.code, world.conn(id).submitted), (421, 0), "{path}");
    }
    world.end_all();
}

#[test]
fn disk_that_hosts_may_change_says_so() {
    if lacks() {
        return;
    }
    let mut world = world(&image("writable", &[(b"a", b"x")]), Access::Writable, 512);
    for path in ["/sda/", "/sda/0/"] {
        assert!(text(&world.get(path, "")).contains("Other machines may write"), "{path}");
    }
    let response = world.get("/sda/0/a", "");
    assert_eq!((response.code, response.field("ETag")), (200, None));
    world.end_all();
}

#[test]
fn searches_of_one_host_are_bounded() {
    if lacks() {
        return;
    }
    let mut world = world(&image("bound", &[(b"a", b"x")]), Access::ReadOnly, 512);
    let ids: Vec<_> = (0..9).map(|_| world.open()).collect();
    for id in &ids {
        world.conn(*id).hold = true;
        world.send(*id, get("/sda/0/a", "").as_bytes());
    }
    let (response, _) = Response::parse(&world.received(ids[8]), false);
    assert_eq!((response.code, response.field("Retry-After")), (503, Some("60")));
    for id in &ids[..8] {
        world.conn(*id).hold = false;
        world.finish_all(*id);
        world.run();
        let (response, _) = Response::parse(&world.received(*id), false);
        assert_eq!((response.code, &response.content[..]), (200, &b"x"[..]));
    }
    assert_eq!(world.get("/sda/0/a", "").code, 200);
    world.end_all();
}

/// What cannot be read and is not needed hides nothing; what is needed is told from what is not there.
#[test]
fn unreadable_sectors_end_a_search_with_a_status() {
    if lacks() {
        return;
    }
    let mut world = world(&image("unreadable", &[(b"a", b"x")]), Access::ReadOnly, 512);
    let request = get("/sda/0/a", "");
    let first = world.open();
    world.exchange(first, request.as_bytes());
    let total = world.conn(first).submitted;
    let mut codes = std::collections::BTreeSet::new();
    // Each of its reads fails, also when it is made again.
    for which in 0..total {
        for fault in [Fault::Io, Fault::Gone, Fault::OutOfRange] {
            // Another export: of this one the layout is known now.
            world.catalogue.withdraw(&DISK.into());
            let len = world.disk.len() as u64;
            world.catalogue.publish(disk(Access::ReadOnly, 512, len));
            let id = world.open();
            world.conn(id).hold = true;
            world.send(id, request.as_bytes());
            let (mut at, mut bad) = (0, 0..0);
            while let Some(job) = world.jobs(id).first() {
                let place = job.offset()..job.offset() + job.len();
                if at == which {
                    bad = place.clone();
                }
                let is_bad = place.start < bad.end && bad.start < place.end;
                let is_bad = if fault == Fault::Io { is_bad } else { at == which };
                world.finish(id, 0, if is_bad { Err(fault) } else { Ok(()) });
                at += 1;
                assert!(at < 200, "{which}");
            }
            let (response, _) = Response::parse(&world.received(id), false);
            match (fault, response.code) {
                (Fault::Io, 200) => assert_eq!(response.content, b"x", "{which}"),
                (Fault::Io, code) => assert_eq!(code, 500, "{which}: {}", text(&response)),
                (Fault::Gone, code) => assert_eq!(code, 404, "{which}"),
                (_, code) => assert_eq!(code, 503, "{which}"),
            }
            codes.insert((format!("{fault:?}"), response.code));
            world.disconnect(id);
        }
    }
    // Of the places of signatures, and of the file itself.
    assert!(codes.contains(&("Io".into(), 200)) && codes.contains(&("Io".into(), 500)));
    world.end_all();
}

/// Requests on one connection, after each of which it is as before or closed.
#[test]
fn x44_damaged_file_systems_end_with_a_response() {
    if lacks() {
        return;
    }
    let big = big();
    let sound = image("damaged", &[(b"a/b/c", &big), (b"d", b"small")]);
    let places: Vec<usize> = (0..sound.len())
        .step_by(512)
        .filter(|at| sound[*at..at + 512].iter().any(|byte| *byte != 0))
        .take(60)
        .collect();
    let mut random = testkit::Xorshift64::from_seed(5);
    let mut world = world(&sound, Access::Writable, 512);
    let (mut codes, mut cut) = (std::collections::BTreeMap::new(), 0);
    for round in 0..300 {
        world.disk = sound.clone();
        for _ in 0..=round % 40 {
            let at = places[random.below(places.len())] + random.below(512);
            world.disk[at] = u8::try_from(random.below(256)).unwrap();
        }
        let mut id = world.open();
        for path in ["/sda/", "/sda/0/", "/sda/0/a/b/", "/sda/0/a/b/c", "/disks.json"] {
            let before = world.conn(id).submitted;
            // Its length may be wrong, too.
            let fields = if path.ends_with('c') { "Range: bytes=0-999999\r\n" } else { "" };
            let bytes = world.exchange(id, get(path, fields).as_bytes());
            assert!(world.conn(id).submitted - before < 300, "{path}");
            if world.conn(id).closed.is_some() {
                // A file that goes on where nothing can be read ends before its length.
                assert!(is_cut(&bytes) || bytes.starts_with(b"HTTP/1.1 5"), "{path}");
                (cut, id) = (cut + 1, world.open());
                continue;
            }
            let (response, rest) = Response::parse(&bytes, false);
            assert!(rest.is_empty(), "{path}");
            assert!([200, 206, 403, 404, 416, 500, 501].contains(&response.code), "{path}");
            *codes.entry(response.code).or_insert(0) += 1;
        }
        assert_eq!(world.get("/disks.json", "").code, 200);
        world.disconnect(id);
    }
    let count = |code| codes.get(&code).copied().unwrap_or(0);
    println!("{codes:?}, {cut} cut");
    assert!(count(200) > 600 && count(404) + count(500) > 20, "{codes:?}, {cut} cut");
    world.end_all();
}
