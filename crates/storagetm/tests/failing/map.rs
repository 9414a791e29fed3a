//! Failing disks that are lent by a map (`serve --map`), with maps of GNU ddrescue.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use serde_json::Value;

use crate::device::{Device, skip_without_loop_devices};
use crate::foreign::{Folder, LONG, MIB, lacks, program, run, same, stdout_of, wait_for};
use crate::raw::{READ, WRITE, reply, request, transmitting};
use crate::serve::{PROGRAM, Serve};

const EIO: u32 = 5;
const SIZE: usize = 16 * MIB;

/// What cannot be read: pages, as the loop device reads them. The first is in what ddrescue reads before.
const BAD: [Range<usize>; 3] =
    [MIB..MIB + 4096, 5 * MIB + 8192..5 * MIB + 16384, 9 * MIB..9 * MIB + 4096];

/// A disk that fails, its contents, a map of the first 4 MiB and the image that belongs to it.
struct Scene {
    folder: Folder,
    device: Device,
    contents: Vec<u8>,
    map: String,
    image: String,
}

impl Scene {
    /// Returns `None` if there is no free loop device.
    fn new() -> Option<Self> {
        let folder = Folder::new();
        let original = folder.random_bytes("original.img", SIZE);
        let device = Device::with_bad(&folder, "device", &original, &BAD)?;
        let (map, image) = (folder.path("rescue.map"), folder.path("rescued.img"));
        // Past the page cache, where a page that cannot be read takes others with it.
        let arguments = ["--quiet", "--idirect", "--size=4Mi", &device.path, &image, &map];
        stdout_of("ddrescue", &arguments);
        assert!(
            fs::read_to_string(&map).unwrap().contains('-'),
            "the first bad page is in the map"
        );
        let contents = fs::read(original).unwrap();
        Some(Self { folder, device, contents, map, image })
    }

    fn serve(&self, io: &str, more: &[&str]) -> (Serve, Client) {
        let own = ["--io", io, "--protocol", "nbd", "--map", &self.map, "--image", &self.image];
        let serve = Serve::start(&[&own[..], more].concat());
        let client = Client::of(&serve.until_named("ready"));
        (serve, client)
    }

    /// Returns how often the server of the device was asked for a part of these bytes.
    fn reads_of(&self, range: &Range<usize>) -> usize {
        let log = fs::read_to_string(self.folder.path("device.log")).unwrap();
        let number = |line: &str, name: &str| {
            let rest = line.split_once(name).unwrap().1;
            let word = rest.split_whitespace().next().unwrap();
            usize::from_str_radix(word.trim_start_matches("0x"), 16).unwrap()
        };
        let reads = log.lines().filter(|line| line.contains(" Read ") && line.contains("offset="));
        let spans = reads.map(|line| (number(line, "offset="), number(line, "count=")));
        spans.filter(|(at, len)| *at < range.end && range.start < at + len).count()
    }
}

fn lent(events: &[Value]) -> &Value {
    events.iter().find(|event| event["event"] == "lent").unwrap()
}

/// An NBD client.
struct Client(TcpStream);

impl Client {
    fn of(events: &[Value]) -> Self {
        let uri = lent(events)["nbd"][0].as_str().unwrap();
        let (port, name) = uri.strip_prefix("nbd://127.0.0.1:").unwrap().split_once('/').unwrap();
        Self(transmitting(port.parse().unwrap(), name))
    }

    fn read(&mut self, at: usize, len: usize) -> Result<Vec<u8>, u32> {
        let header = request(0, READ, 1, at as u64, u32::try_from(len).unwrap());
        self.0.write_all(&header).unwrap();
        self.0.set_read_timeout(Some(LONG)).unwrap();
        match reply(&mut self.0) {
            0 => {
                let mut data = vec![0; len];
                self.0.read_exact(&mut data).unwrap();
                Ok(data)
            }
            error => Err(error),
        }
    }

    fn write(&mut self, at: usize, data: &[u8]) -> u32 {
        let header = request(0, WRITE, 2, at as u64, u32::try_from(data.len()).unwrap());
        self.0.write_all(&[header, data.to_vec()].concat()).unwrap();
        reply(&mut self.0)
    }
}

fn is_bad(block: &Range<usize>) -> bool {
    BAD.iter().any(|bad| bad.start < block.end && block.start < bad.end)
}

/// Reads the whole disk block by block; those that are bad fail, and no other.
fn read_all(client: &mut Client, contents: &[u8], io: &str) {
    for at in (0..SIZE).step_by(512) {
        let wanted = if is_bad(&(at..at + 512)) { Err(EIO) } else { Ok(&contents[at..at + 512]) };
        assert!(client.read(at, 512).as_deref().map_err(|error| *error) == wanted, "{io} {at}");
    }
}

/// Returns the states of a map, by ddrescuelog.
fn logged(map: &str, kinds: &str) -> usize {
    let listed = stdout_of("ddrescuelog", &[&format!("--list-blocks={kinds}"), map]);
    listed.lines().count() * 512
}

#[test]
fn interop_rescue_goes_on_by_what_hosts_read() {
    if lacks("rescue goes on by what hosts read", &["ddrescue", "ddrescuelog"])
        || skip_without_loop_devices("rescue goes on by what hosts read")
    {
        return;
    }
    for io in ["uring", "blocking"] {
        let Some(scene) = Scene::new() else { return };
        let (mut serve, mut client) = scene.serve(io, &[&scene.device.path]);
        let known_bad = scene.reads_of(&BAD[0]);
        // Over the border of a piece, and more than one.
        let range = 7 * MIB + 512..8 * MIB + 512;
        assert!(client.read(range.start, range.len()).unwrap() == scene.contents[range]);
        read_all(&mut client, &scene.contents, io);
        let found_bad = scene.reads_of(&BAD[1]);
        read_all(&mut client, &scene.contents, io);
        assert_eq!(scene.reads_of(&BAD[0]), known_bad, "{io}: the map says that it is bad");
        assert_eq!(scene.reads_of(&BAD[1]), found_bad, "{io}: it was recorded");
        drop(client);
        assert!(serve.terminate().0.success());
        // All but what is bad was found.
        let bad: usize = BAD.iter().map(Range::len).sum();
        assert_eq!((logged(&scene.map, "+"), logged(&scene.map, "?")), (SIZE - bad, 0));
        assert_eq!(logged(&scene.map, "-"), bad, "{io}");
        let image = fs::read(&scene.image).unwrap();
        for at in (0..SIZE).step_by(4096).filter(|at| !is_bad(&(*at..at + 4096))) {
            assert!(image[at..at + 4096] == scene.contents[at..at + 4096], "{io} {at}");
        }
        // Without the disk there is nothing left to find, and ddrescue agrees.
        let other = scene.folder.random_bytes("other.img", SIZE);
        stdout_of("ddrescue", &["--quiet", "--retry-passes=0", &other, &scene.image, &scene.map]);
        assert!(fs::read(&scene.image).unwrap() == image);
        let (serve, mut client) = scene.serve(io, &["--retry-bad", &scene.device.path]);
        let before = scene.reads_of(&BAD[0]);
        assert_eq!(client.read(BAD[0].start, 4096), Err(EIO));
        assert!(scene.reads_of(&BAD[0]) > before, "{io}: it is tried again");
        drop((client, serve));
    }
}

#[test]
fn bad_blocks_are_errors_of_the_medium_by_every_protocol() {
    if lacks("bad blocks over every protocol", &["ddrescue"])
        || skip_without_loop_devices("bad blocks over every protocol")
    {
        return;
    }
    let Some(scene) = Scene::new() else { return };
    for io in ["uring", "blocking"] {
        // Beside NVMe/TCP.
        let protocols =
            ["--io", io, "--listen", "nbd:127.0.0.1:0", "--listen", "iscsi:127.0.0.1:0"];
        let rescue = ["--map", &scene.map, "--image", &scene.image, &scene.device.path];
        let own = [&protocols[..], &rescue].concat();
        let mut serve = Serve::start(&own);
        let events = serve.until_named("ready");
        let lent = lent(&events);
        let name = lent["name"].as_str().unwrap();
        let port = |protocol: &str| {
            let listens = |event: &&Value| event["protocol"] == protocol && event["port"].is_u64();
            events.iter().find(listens).unwrap()["port"].as_u64().unwrap()
        };
        let uris = [
            format!("nvme://127.0.0.1:{}/{name}", port("nvme-tcp")),
            lent["nbd"][0].as_str().unwrap().to_owned(),
            lent["iscsi"][0].as_str().unwrap().to_owned(),
        ];
        for uri in uris {
            let copied = scene.folder.path("copied.img");
            let _ = fs::remove_file(&copied);
            let copy = run(program(PROGRAM).args(["copy", "--retries", "0", &uri, &copied]));
            let said = String::from_utf8_lossy(&copy.stderr).into_owned();
            assert_eq!(copy.status.code(), Some(3), "{io} {uri}: {said}");
            assert!(said.contains("16.4 kB could not be read, in 3 places"), "{io} {uri}: {said}");
        }
        assert!(serve.terminate().0.success());
    }
}

#[test]
fn interop_disk_without_an_image_is_read_each_time() {
    if lacks("a map without an image", &["ddrescue", "ddrescuelog", "nbdcopy", "qemu-img"])
        || skip_without_loop_devices("a map without an image")
    {
        return;
    }
    for io in ["uring", "blocking"] {
        let Some(scene) = Scene::new() else { return };
        let finished = logged(&scene.map, "+");
        let own = ["--io", io, "--protocol", "nbd", "--map", &scene.map, &scene.device.path];
        let mut serve = Serve::start(&own);
        let mut client = Client::of(&serve.until_named("ready"));
        read_all(&mut client, &scene.contents, io);
        let before = scene.reads_of(&BAD[1]);
        assert_eq!(client.read(BAD[1].start, 512), Err(EIO));
        assert_eq!(scene.reads_of(&BAD[1]), before, "{io}: it was recorded");
        drop(client);
        assert!(serve.terminate().0.success());
        assert_eq!(logged(&scene.map, "+"), finished, "{io}: nothing was written to an image");
        let bad: usize = BAD.iter().map(Range::len).sum();
        assert_eq!(logged(&scene.map, "-"), bad, "{io}");
    }
}

/// A file as a disk, of which an image has the first part.
struct Plain {
    folder: Folder,
    disk: String,
    map: String,
    image: String,
}

impl Plain {
    fn new() -> Self {
        let folder = Folder::new();
        let disk = folder.random_bytes("disk.img", SIZE);
        let (map, image) = (folder.path("rescue.map"), folder.path("rescued.img"));
        let part = fs::read(&disk).unwrap()[..4 * MIB].to_vec();
        fs::write(&image, part).unwrap();
        fs::write(&map, "0x00000000 ? 1\n0x00000000 0x00400000 +\n0x00400000 0x00C00000 ?\n")
            .unwrap();
        Self { folder, disk, map, image }
    }

    fn options(&self) -> [&str; 5] {
        ["--map", &self.map, "--image", &self.image, &self.disk]
    }

    /// Runs `serve`, which must fail. Returns its message.
    fn refused(&self, arguments: &[&str]) -> String {
        let own = ["60", PROGRAM, "serve", "--no-announce", "--listen", "nbd:127.0.0.1:0"];
        let output = run(program("timeout").args(own).args(arguments));
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

#[test]
fn interop_other_clients_read_the_disk_by_its_map() {
    if lacks("other clients read a disk by its map", &["nbdcopy", "qemu-img"]) {
        return;
    }
    for io in ["uring", "blocking"] {
        let scene = Plain::new();
        let own = [&["--io", io, "--protocol", "nbd"][..], &scene.options()].concat();
        let mut serve = Serve::start(&own);
        let events = serve.until_named("ready");
        let uri = lent(&events)["nbd"][0].as_str().unwrap();
        let copied = scene.folder.path("copied.img");
        stdout_of("nbdcopy", &[uri, &copied]);
        same(&scene.disk, &copied);
        stdout_of("qemu-img", &["compare", "-f", "raw", "-F", "raw", &scene.disk, uri]);
        assert!(serve.terminate().0.success());
        same(&scene.disk, &scene.image);
        assert!(fs::read_to_string(&scene.map).unwrap().contains("0x00000000  0x01000000  +"));
    }
}

#[test]
fn hosts_write_to_an_overlay_over_a_failing_disk() {
    if lacks("an overlay over a failing disk", &["ddrescue"])
        || skip_without_loop_devices("an overlay over a failing disk")
    {
        return;
    }
    for io in ["uring", "blocking"] {
        let Some(scene) = Scene::new() else { return };
        let (mut serve, mut client) = scene.serve(io, &["--overlay", &scene.device.path]);
        for bad in &BAD {
            assert_eq!(client.read(bad.start, 4096), Err(EIO), "{io}");
            assert_eq!(client.write(bad.start, &vec![7; bad.len()]), 0);
            let wanted =
                [&scene.contents[bad.start - 4096..bad.start], &vec![7; bad.len()]].concat();
            assert!(client.read(bad.start - 4096, bad.len() + 4096).unwrap() == wanted, "{io}");
        }
        drop(client);
        assert!(serve.terminate().0.success());
        assert_eq!(fs::read(&scene.image).unwrap()[BAD[0].clone()], [0; 4096], "not in the image");
    }
}

/// The map is replaced as a whole, and calls nothing finished that the image does not have.
#[test]
fn kills_leave_a_map_that_fits_the_image() {
    let scene = Plain::new();
    let contents = fs::read(&scene.disk).unwrap();
    let mut finished = 4 * MIB;
    for (round, io) in ["uring", "blocking", "uring"].into_iter().enumerate() {
        let own = [&["--io", io, "--protocol", "nbd"][..], &scene.options()].concat();
        let serve = Serve::start(&own);
        let mut client = Client::of(&serve.until_named("ready"));
        for at in (0..SIZE).step_by(512 * 1024 * (4 - round)) {
            assert!(client.read(at, 4096).unwrap() == contents[at..at + 4096]);
        }
        // Saved after some seconds, at the latest.
        let map = wait_for("a map with more", || {
            let map = fs::read_to_string(&scene.map).unwrap();
            (finished_of(&map).map(|range| range.len()).sum::<usize>() > finished).then_some(map)
        });
        rustix::process::kill_process(serve.pid(), rustix::process::Signal::KILL).unwrap();
        drop((client, serve));
        let image = fs::read(&scene.image).unwrap();
        for range in finished_of(&map) {
            assert!(image[range.clone()] == contents[range.clone()], "{round} {range:?}");
        }
        finished = finished_of(&map).map(|range| range.len()).sum();
        // Until the worker has ended, and with it its locks.
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Returns the finished ranges of a map.
fn finished_of(map: &str) -> impl Iterator<Item = Range<usize>> {
    map.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [at, len, "+"] = words[..] else { return None };
        let number = |word: &str| usize::from_str_radix(word.strip_prefix("0x")?, 16).ok();
        let at = number(at)?;
        Some(at..at + number(len)?)
    })
}

#[test]
fn map_that_does_not_fit_is_refused() {
    let scene = Plain::new();
    let [_, map, _, image, disk] = scene.options();
    let before = fs::read(image).unwrap();
    let check = |arguments: &[&str], reason: &str| {
        let said = scene.refused(arguments);
        assert!(said.contains(reason), "{said}");
        assert!(fs::read(image).unwrap() == before, "{reason}");
    };
    let small = scene.folder.random_bytes("small.img", MIB);
    check(
        &["--map", map, "--image", image, &small],
        "it is for 4194304 bytes, and the disk has 1048576",
    );
    let missing = scene.folder.path("missing.img");
    check(&["--map", map, "--image", &missing, disk], "there is no");
    check(&["--map", map, "--image", &small, disk], "is not the image of");
    check(
        &["--map", &scene.folder.path("new.map"), "--image", image, disk],
        "would be overwritten",
    );
    check(&["--map", disk, "--image", image, disk], "the map");
    check(&["--map", map, "--image", disk, disk], "is the disk itself");
    let folder = scene.folder.path("nowhere/rescue.map");
    check(&["--map", &folder, disk], "cannot be saved");
    fs::write(map, "# storagetm bytes 1000\n0 ? 1\n0 512 +\n# storagetm end\n").unwrap();
    check(&["--map", map, "--image", image, disk], "it is for 1000 bytes");
}

#[test]
fn image_of_another_disk_is_found_before_it_is_written() {
    for io in ["uring", "blocking"] {
        let scene = Plain::new();
        let other = scene.folder.path("other.img");
        fs::write(&other, vec![7; SIZE]).unwrap();
        let own = ["--io", io, "--protocol", "nbd", "--map", &scene.map, "--image", &scene.image];
        let mut serve = Serve::start(&[&own[..], &[&other]].concat());
        let mut client = Client::of(&serve.until_named("ready"));
        assert_eq!(client.read(8 * MIB, 4096), Err(EIO), "{io}");
        assert!(client.read(0, 4096).unwrap() == fs::read(&scene.disk).unwrap()[..4096]);
        let events = serve.until(|event| {
            event["message"].as_str().is_some_and(|text| text.contains("does not belong to"))
        });
        assert!(events.last().unwrap()["message"].as_str().unwrap().contains("byte 0:"));
        drop(client);
        assert!(serve.terminate().0.success());
        assert_eq!(finished_of(&fs::read_to_string(&scene.map).unwrap()).next(), Some(0..4 * MIB));
    }
}

/// A rescue that begins with `serve`, and that `copy` goes on with.
#[test]
fn new_map_and_image_are_made_and_continued_by_copy() {
    let folder = Folder::new();
    let disk = folder.random_bytes("disk.img", SIZE);
    let (map, image) = (folder.path("rescue.map"), folder.path("rescued.img"));
    let own = ["--protocol", "nbd", "--map", &map, "--image", &image, &disk];
    let mut serve = Serve::start(&own);
    let mut client = Client::of(&serve.until_named("ready"));
    let contents = fs::read(&disk).unwrap();
    assert!(client.read(3 * MIB, MIB).unwrap() == contents[3 * MIB..4 * MIB]);
    drop(client);
    let ended = serve.terminate().0;
    assert!(ended.success());
    let events = serve.until_named("stopped");
    let summary = events.iter().filter_map(|event| event["message"].as_str());
    assert!(summary.into_iter().any(|text| text.contains("1 MB are finished")), "{events:?}");
    let text = fs::read_to_string(&map).unwrap();
    assert_eq!(finished_of(&text).collect::<Vec<_>>(), vec![3 * MIB..4 * MIB], "{text}");
    let copy = run(program(PROGRAM).args(["copy", "--map", &map, &disk, &image]));
    assert!(copy.status.success(), "{}", String::from_utf8_lossy(&copy.stderr));
    same(&disk, &image);
    let mut first = [0; 512];
    File::open(&image).unwrap().read_exact_at(&mut first, 0).unwrap();
    assert!(first == contents[..512]);
}

/// A disk that does not answer delays only what has to be read from it.
#[test]
fn kept_blocks_are_read_while_the_disk_hangs() {
    if skip_without_loop_devices("kept blocks are read while the disk hangs") {
        return;
    }
    for io in ["uring", "blocking"] {
        let plain = Plain::new();
        let contents = fs::read(&plain.disk).unwrap();
        let device = Device::pausing(&plain.folder, "hanging", &plain.disk);
        let Some(mut device) = device else { return };
        let own = ["--io", io, "--protocol", "nbd", "--map", &plain.map, "--image", &plain.image];
        let mut serve = Serve::start(&[&own[..], &[&device.path]].concat());
        let events = serve.until_named("ready");
        let (mut waiting, mut other) = (Client::of(&events), Client::of(&events));
        device.pause();
        let reads = std::thread::spawn(move || waiting.read(8 * MIB, 4096));
        std::thread::sleep(Duration::from_millis(300));
        assert!(other.read(MIB, 65536).unwrap() == contents[MIB..MIB + 65536], "{io}");
        assert!(!reads.is_finished(), "{io}: it waits for the disk");
        device.resume();
        assert!(reads.join().unwrap().unwrap() == contents[8 * MIB..8 * MIB + 4096], "{io}");
        drop(other);
        assert!(serve.terminate().0.success());
    }
}
