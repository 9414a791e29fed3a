//! What nbdinfo, qemu-img and nbd-client report about exports.

use serde_json::Value;

use crate::foreign::{Folder, MIB, lacks, stderr_of_failing, stdout_of};
use crate::server::{DRIVERS, PROGRAM, Server};

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&stdout_of("nbdinfo", args)).unwrap()
}

#[test]
fn interop_nbdinfo_starts_us_by_itself() {
    if lacks("nbdinfo starts us by itself", &["nbdinfo"]) {
        return;
    }
    let folder = Folder::new();
    let image = folder.random_bytes("disk.img", 3 * MIB);
    let start = ["--", "[", PROGRAM, "serve", "--writable", &image, "]"];
    assert_eq!(
        stdout_of("nbdinfo", &[&["--size"], &start[..]].concat()).trim(),
        (3 * MIB).to_string()
    );
    let info = json(&[&["--json"], &start[..]].concat());
    let export = &info["exports"][0];
    assert_eq!(export["export-size"], 3 * MIB);
    assert_eq!(export["is_read_only"], false);
    // The earlier process and its socket are gone: it can be started again.
    stdout_of("nbdinfo", &start);
}

#[test]
fn interop_nbdinfo_shows_the_disk_features() {
    if lacks("nbdinfo is told what a disk can", &["nbdinfo"]) {
        return;
    }
    for io in DRIVERS {
        let folder = Folder::new();
        let image = folder.sparse("disk.img", 9 * MIB);
        let server = Server::tcp(&["--io", io, "--writable", &image]);
        let info = json(&["--json", &server.uri("disk")]);
        assert_eq!(info["protocol"], "newstyle-fixed", "{info}");
        assert_eq!((&info["TLS"], &info["structured"]), (&false.into(), &true.into()));
        let export = &info["exports"][0];
        for can in ["cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero"] {
            assert_eq!(export[format!("can_{can}")], true, "{can}: {info}");
        }
        assert_eq!(export["is_read_only"], false);
        assert_eq!(export["contexts"][0], "base:allocation");
        let preferred = export["block_size_preferred"].as_u64();
        assert!(preferred.is_none_or(|bytes| bytes.is_power_of_two()), "{info}");
    }
}

#[test]
fn interop_nbdinfo_maps_the_holes() {
    if lacks("nbdinfo maps the holes", &["nbdinfo"]) {
        return;
    }
    for io in DRIVERS {
        let folder = Folder::new();
        let image = folder.sparse("disk.img", 9 * MIB);
        let server = Server::unix(&folder, &["--io", io, &image]);
        let map = json(&["--map", "--json", &server.uri("")]);
        let info: Vec<(u64, u64, u64)> = map
            .as_array()
            .unwrap()
            .iter()
            .map(|it| ["offset", "length", "type"].map(|key| it[key].as_u64().unwrap()).into())
            .collect();
        let mib = MIB as u64;
        let hole_and_zero = 3;
        let expected: Vec<(u64, u64, u64)> = (0..3)
            .flat_map(|n| {
                let at = n * 3 * mib;
                [(at, mib, 0), (at + mib, 2 * mib, hole_and_zero)]
            })
            .collect();
        assert_eq!(info, expected, "{io}");
    }
}

#[test]
fn interop_nbdinfo_lists_the_disks() {
    if lacks("nbdinfo lists the disks", &["nbdinfo"]) {
        return;
    }
    let folder = Folder::new();
    let (one, other) =
        (folder.random_bytes("one.img", MIB), folder.random_bytes("other.raw", 2 * MIB));
    let server = Server::tcp(&[&one, &other]);
    let info = json(&["--list", "--json", &server.uri("")]);
    let name = |at: usize| info["exports"][at]["export-name"].as_str().unwrap().to_owned();
    let mut names = [name(0), name(1)];
    names.sort();
    assert_eq!(names, ["one", "other"], "{info}");
    assert_eq!(
        stdout_of("nbdinfo", &["--size", &server.uri("other")]).trim(),
        (2 * MIB).to_string()
    );
    stdout_of("nbdinfo", &["--is", "read-only", &server.uri("one")]);
    // With two disks the empty name is ambiguous.
    for wrong in ["", "third", "../one", "one.img", "%00"] {
        stderr_of_failing("nbdinfo", &["--size", &server.uri(wrong)]);
    }
    stdout_of("nbdinfo", &["--size", &server.uri("one")]);
}

#[test]
fn interop_qemu_lists_what_there_is() {
    if lacks("qemu lists what there is", &["qemu-nbd", "qemu-img"]) {
        return;
    }
    let folder = Folder::new();
    let image = folder.sparse("disk.img", 9 * MIB);
    let server = Server::tcp(&["--writable", &image]);
    let port = server.port().to_string();
    let listed = stdout_of("qemu-nbd", &["--list", "-b", "127.0.0.1", "-p", &port]);
    for part in ["exports available: 1", "'disk'", "size:  9437184", "base:allocation", "multi"] {
        assert!(listed.contains(part), "{part}: {listed}");
    }
    let info = stdout_of("qemu-img", &["info", "--output=json", "-f", "raw", &server.uri("disk")]);
    let info: Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["virtual-size"], 9 * MIB);
    let map = stdout_of("qemu-img", &["map", "--output=json", "-f", "raw", &server.uri("disk")]);
    let map: Value = serde_json::from_str(&map).unwrap();
    assert_eq!((&map[0]["data"], &map[1]["zero"]), (&true.into(), &true.into()), "{map}");
}

#[test]
fn interop_nbd_client_lists_the_disks() {
    if lacks("nbd-client lists the disks", &["nbd-client"]) {
        return;
    }
    let folder = Folder::new();
    let image = folder.random_bytes("disk.img", MIB);
    let server = Server::tcp(&[&image]);
    let port = server.port().to_string();
    let listed = stdout_of("nbd-client", &["-l", "127.0.0.1", &port]);
    assert!(listed.lines().any(|line| line.starts_with("disk")), "{listed}");
}
