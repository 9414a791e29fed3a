//! Whole disks and parts of them, by clients of other projects.

use std::io::Read as _;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::{fs, thread};

use crate::foreign::{Folder, MIB, lacks, program, run, same, stdout_of};
use crate::process::PROGRAM;
use crate::server::{DRIVERS, Server};

/// An image that ends within a block.
const ODD: usize = 5 * MIB + 333;

#[test]
fn interop_curl_reads_ranges_and_resumes() {
    if lacks("curl reads ranges and resumes", &["curl"]) {
        return;
    }
    for io in DRIVERS {
        let folder = Folder::new();
        let image = folder.random_bytes("disk.img", ODD);
        let server = Server::start(&["--io", io, &image]);
        let (url, copy) = (server.url_of("disk"), folder.path("copy"));
        let curl = |args: &[&str]| stdout_of("curl", &[&["-sSf"], args].concat());
        curl(&["-o", &copy, &url]);
        same(&image, &copy);
        // A download that was interrupted.
        fs::File::options().write(true).open(&copy).unwrap().set_len(MIB as u64 + 7).unwrap();
        curl(&["-C", "-", "-o", &copy, &url]);
        same(&image, &copy);
        let part = folder.path("part");
        curl(&["-r", "1000-2000000", "-o", &part, &url]);
        assert!(fs::read(&part).unwrap() == fs::read(&image).unwrap()[1000..=2_000_000]);
        let head = curl(&["-I", &url]);
        assert!(head.contains(&format!("Content-Length: {ODD}")), "{head}");
        let tag = head.lines().find_map(|line| line.strip_prefix("ETag: ")).unwrap().trim();
        let condition = format!("If-None-Match: {tag}");
        assert_eq!(curl(&["-o", "/dev/null", "-w", "%{http_code}", "-H", &condition, &url]), "304");
        // Many connections at once, and many requests on one.
        let at_once =
            curl(&["-Z", "-o", &part, &url, "-o", &copy, &url, "-o", "/dev/null", &server.url]);
        assert_eq!(at_once, "");
        same(&image, &copy);
        same(&image, &part);
    }
}

/// With several reads at once, QEMU 7.2 can wait for data that it has received, also from other servers.
#[test]
fn interop_qemu_reads_a_disk() {
    if lacks("qemu reads a disk by HTTP", &["qemu-img", "qemu-io", BLOCK_CURL]) {
        return;
    }
    for io in DRIVERS {
        let folder = Folder::new();
        let image = folder.sparse("disk.img", 5 * MIB);
        let server = Server::start(&["--io", io, &image]);
        let (url, copy) = (server.url_of("disk"), folder.path("copy.qcow2"));
        stdout_of("qemu-img", &["convert", "-m", "1", "-f", "raw", "-O", "qcow2", &url, &copy]);
        stdout_of("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &image, &copy]);
        stdout_of("qemu-io", &["-r", "-f", "raw", "-c", "read -v 3145727 1025", &url]);
    }
}

const BLOCK_CURL: &str = "/usr/lib/x86_64-linux-gnu/qemu/block-curl.so";

#[test]
fn interop_nbdkit_passes_a_disk_on() {
    if lacks("nbdkit passes a disk on", &["nbdkit", "nbdcopy"]) {
        return;
    }
    for io in DRIVERS {
        let folder = Folder::new();
        let image = folder.random_bytes("disk.img", ODD);
        let server = Server::start(&["--io", io, &image]);
        let (url, copy) = (server.url_of("disk"), folder.path("copy"));
        let command = format!("nbdcopy \"$uri\" '{copy}'");
        stdout_of("nbdkit", &["-r", "-U", "-", "curl", &format!("url={url}"), "--run", &command]);
        same(&image, &copy);
    }
}

#[test]
fn interop_python_reads_a_disk_and_the_list() {
    if lacks("Python reads a disk by HTTP", &["python3"]) {
        return;
    }
    let folder = Folder::new();
    let image = folder.random_bytes("a b.img", 5 * MIB);
    let server = Server::start(&["--writable", &image]);
    let script = "import json, sys, urllib.request as r\n\
        url, image = sys.argv[1:]\n\
        disk, = json.load(r.urlopen(url + 'disks.json'))['disks']\n\
        assert disk['name'] == 'a b' and disk['writable'], disk\n\
        data = open(image, 'rb').read()\n\
        assert disk['bytes'] == len(data)\n\
        answer = r.urlopen(url + disk['path'].lstrip('/'))\n\
        assert answer.read() == data and answer.headers['ETag'] is None\n\
        part = r.Request(url + 'a%20b.raw', headers={'Range': 'bytes=-700'})\n\
        assert r.urlopen(part).read() == data[-700:]\n\
        page = r.urlopen(url).read().decode()\n\
        assert 'Other machines may write to this disk' in page and 'href=\"/a%20b.raw\"' in page\n";
    stdout_of("python3", &["-c", script, &server.url, &image]);
}

#[test]
fn interop_zstd_unpacks_a_compressed_download() {
    if lacks("zstd unpacks a compressed download", &["curl", "zstd"]) {
        return;
    }
    for io in DRIVERS {
        let folder = Folder::new();
        for image in [folder.random_bytes("random.img", ODD), folder.sparse("sparse.img", ODD)] {
            let server = Server::start(&["--io", io, &image]);
            let name = if image.contains("sparse") { "sparse" } else { "random" };
            let (url, copy) = (format!("{}.zst", server.url_of(name)), folder.path("copy"));
            let packed = folder.path("packed.zst");
            stdout_of("curl", &["-sSf", "-o", &packed, &url]);
            let len = fs::metadata(&packed).unwrap().len();
            assert!(name == "random" || len < 5 << 19, "{len}");
            stdout_of("zstd", &["-dqf", &packed, "-o", &copy]);
            same(&image, &copy);
            fs::remove_file(&copy).unwrap();
            let output = run(program(PROGRAM).args(["copy", &url, &copy]));
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            same(&image, &copy);
        }
    }
}

/// Each connection is cut after so many bytes.
fn cutting_proxy(url: &str, bytes: usize) -> String {
    let to = url.trim_start_matches("http://").trim_end_matches('/').to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = format!("http://{}/", listener.local_addr().unwrap());
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let server = TcpStream::connect(&to).unwrap();
            let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            thread::spawn(move || std::io::copy(&mut from, &mut to));
            let (mut from, mut to) = (server.take(bytes as u64), client);
            thread::spawn(move || {
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Both);
            });
        }
    });
    own
}

#[test]
fn r52_copy_continues_after_lost_connections() {
    for io in DRIVERS {
        let folder = Folder::new();
        let image = folder.random_bytes("disk.img", ODD);
        let server = Server::start(&["--io", io, &image]);
        let (url, copy) = (cutting_proxy(&server.url, MIB), folder.path("copy.img"));
        let output = run(program(PROGRAM).args(["copy", &format!("{url}disk.raw"), &copy]));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        same(&image, &copy);
        // In parts, as a copy does that goes on from its map.
        let (url, map) = (format!("{}disk.raw", server.url), folder.path("map"));
        let output = run(program(PROGRAM).args(["copy", "--force", "--map", &map, &url, &copy]));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        same(&image, &copy);
    }
}
