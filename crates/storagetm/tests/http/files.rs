//! Single files of the file systems on a disk, by curl.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::process::Stdio;

use crate::foreign::{Folder, MIB, lacks, program, same, stdout_of};
use crate::server::{DRIVERS, Server};

/// Makes a disk with a FAT32 and an ext4, both with this file in a folder.
fn disk(folder: &Folder, file: &str) -> String {
    let image = folder.hole("disk.img", 200 * MIB);
    let mut table = program("sfdisk");
    let mut table = table.args(["-q", &image]).stdin(Stdio::piped()).spawn().unwrap();
    let script = "label: gpt\nstart=2048, size=131072\nstart=133120, size=131072\n";
    table.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(table.wait().unwrap().success());
    let (fat, ext, tree) =
        (folder.hole("fat", 64 * MIB), folder.hole("ext", 64 * MIB), folder.path("tree"));
    fs::create_dir_all(format!("{tree}/my photos")).unwrap();
    fs::copy(file, format!("{tree}/my photos/a b.jpg")).unwrap();
    stdout_of("mkfs.vfat", &["-F", "32", &fat]);
    stdout_of("mcopy", &["-s", "-i", &fat, &format!("{tree}/my photos"), "::"]);
    stdout_of("mke2fs", &["-q", "-F", "-t", "ext4", "-d", &tree, &ext]);
    let whole = fs::File::options().write(true).open(&image).unwrap();
    for (part, at) in [(fat, 1), (ext, 65)] {
        whole.write_all_at(&fs::read(part).unwrap(), (at * MIB) as u64).unwrap();
    }
    image
}

#[test]
fn interop_curl_reads_files_of_a_disk() {
    let programs = ["curl", "sfdisk", "mkfs.vfat", "mcopy", "mke2fs"];
    if lacks("curl reads files of a disk", &programs) {
        return;
    }
    let folder = Folder::new();
    let file = folder.random_bytes("file", 7 * MIB + 321);
    let image = disk(&folder, &file);
    for io in DRIVERS {
        let server = Server::start(&["--io", io, &image]);
        let (url, copy) = (format!("{}disk/", server.url), folder.path("copy"));
        let curl = |args: &[&str]| stdout_of("curl", &[&["-sSf"], args].concat());
        let page = curl(&[&url]);
        assert!(page.contains("/disk/1/") && page.contains("/disk/2/"), "{page}");
        for number in 1..=2 {
            // Without the slash at the end it is redirected.
            let page = curl(&["-L", &format!("{url}{number}/my%20photos")]);
            assert!(page.contains("href=\"a%20b.jpg\"") && page.contains("href=\"../\""), "{page}");
            let url = format!("{url}{number}/my%20photos/a%20b.jpg");
            curl(&["-o", &copy, &url]);
            same(&file, &copy);
            // A download that was interrupted.
            fs::File::options().write(true).open(&copy).unwrap().set_len(MIB as u64 + 7).unwrap();
            curl(&["-C", "-", "-o", &copy, &url]);
            same(&file, &copy);
            curl(&["-r", "1000-2000000", "-o", &copy, &url]);
            assert!(fs::read(&copy).unwrap() == fs::read(&file).unwrap()[1000..=2_000_000]);
            let code = |path: &str| {
                let url = format!("{}{path}", server.url);
                stdout_of(
                    "curl",
                    &["-s", "--path-as-is", "-o", "/dev/null", "-w", "%{http_code}", &url],
                )
            };
            assert_eq!(code(&format!("disk/{number}/../../etc/passwd")), "404");
            assert_eq!(code(&format!("disk/{number}/none")), "404");
            assert_eq!(code(&format!("disk/{number}/my%20photos/a%20b.jpg/none")), "404");
            assert_eq!(code(&format!("disk/{number}")), "301");
        }
    }
}

/// A search takes many turns of the server, in which it serves others.
#[test]
fn interop_curl_reads_folders_of_100000_files() {
    if lacks("curl reads folders of 100,000 files", &["curl"]) {
        return;
    }
    let folder = Folder::new();
    let image = folder.path("disk.img");
    let mut bytes = testkit::exfat::large_folder(100_000);
    bytes.resize(bytes.len().next_multiple_of(4096), 0);
    fs::write(&image, bytes).unwrap();
    for io in DRIVERS {
        let server = Server::start(&["--io", io, &image]);
        let url = format!("{}disk/0/", server.url);
        let curl = |url: &str| stdout_of("curl", &["-sSf", url]);
        let page = curl(&format!("{url}?from=99500"));
        assert!(page.contains("\"file%2099500\"") && page.contains("\"file%2099999\""), "{io}");
        assert_eq!(curl(&format!("{url}file%2099999")), "file 99999");
        assert_eq!(curl(&format!("{url}FILE%2070000")), "file 70000");
    }
}
