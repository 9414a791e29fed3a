//! Downloads of disks with unreadable sectors, by HTTP.

use std::fs;

use crate::device::{Device, skip_without_loop_devices};
use crate::foreign::{Folder, MIB, lacks, program, run};
use crate::serve::Serve;

/// What is before the bad page is delivered, and the client learns that the rest is missing, which it can fetch.
#[test]
fn bytes_around_a_bad_sector_are_downloaded() {
    const BAD: usize = 5 * MIB + 8192;
    let test = "bytes around a bad sector are downloaded";
    if skip_without_loop_devices(test) || lacks(test, &["curl"]) {
        return;
    }
    let folder = Folder::new();
    let original = folder.random_bytes("original.img", 16 * MIB);
    let bad = std::slice::from_ref(&(BAD..BAD + 4096));
    let Some(device) = Device::with_bad(&folder, "device", &original, bad) else {
        return;
    };
    let contents = fs::read(&original).unwrap();
    for io in ["uring", "blocking"] {
        let mut serve = Serve::start(&["--io", io, "--protocol", "http", &device.path]);
        let events = serve.until_named("ready");
        let lent = events.iter().find(|event| event["event"] == "lent").unwrap();
        let url = lent["http"][0].as_str().unwrap();
        let copy = folder.path("copy");
        let curl = |args: &[&str]| {
            let output = run(program("curl").args([&["-sS", "-o", &copy, url], args].concat()));
            output.status.code()
        };
        // CURLE_PARTIAL_FILE.
        assert_eq!(curl(&[]), Some(18), "{io}");
        let got = fs::read(&copy).unwrap();
        assert!(got == contents[..BAD], "{io}: {} bytes", got.len());
        assert_eq!(curl(&["-f", "-r", &format!("{}-", BAD + 4096)]), Some(0), "{io}");
        assert!(fs::read(&copy).unwrap() == contents[BAD + 4096..], "{io}");
        assert_eq!(curl(&["-f", "-r", &format!("{}-{}", BAD - 700, BAD - 1)]), Some(0), "{io}");
        assert!(fs::read(&copy).unwrap() == contents[BAD - 700..BAD], "{io}");
        assert_eq!(curl(&["-f", "-r", &format!("{BAD}-")]), Some(22), "{io}: a status");
        serve.terminate();
    }
}
