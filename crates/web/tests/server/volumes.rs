//! Searches in volumes that are large, made to take long, or failing: how much each may take, and what it answers.

use export::{Access, Geometry, Pool, Reason};
use testkit::exfat::{self, Exfat};
use testkit::ntfs::{self, DIRECTORY, FILE, FIRST, I30, Ntfs, ROOT, kind, resident, runs};

use crate::files::{image, is_cut, links, text, world};
use crate::world::{DISK, Response, World, disk, get};

/// An exFAT whose root directory has one file, with these bytes.
fn with_file(content: &[u8]) -> Vec<u8> {
    let mut made = Exfat::new(content.len() / exfat::CLUSTER + 300);
    let root = [exfat::file("file", 3, content.len() as u64), vec![0; 416]].concat();
    made.store(&root);
    made.store(content);
    made.disk
}

/// Returns the status and the text of the answer, how many disk requests it took, and how often others were served.
fn ask(disk: &[u8], path: &str) -> (u16, String, usize, usize) {
    let mut world = world(disk, Access::ReadOnly, 512);
    let id = world.open();
    let bytes = world.exchange(id, get(path, "").as_bytes());
    let (response, _) = Response::parse(&bytes, false);
    let (submitted, ticks) = (world.conn(id).submitted, world.conn(id).ticks);
    world.end_all();
    (response.code, text(&response), submitted, ticks)
}

/// A directory of 256 MiB that is one cluster again and again, so none of it is read twice.
#[test]
fn endless_folder_is_searched_while_others_are_served() {
    let mut made = Exfat::new(100);
    // Entries that are not in use.
    made.store(&[5; exfat::CLUSTER]);
    made.link(2, 2);
    for path in ["/sda/0/", "/sda/0/file"] {
        let (code, text, submitted, ticks) = ask(&made.disk, path);
        assert_eq!((code, text.contains("more reads than are made here")), (500, true), "{text}");
        assert!(submitted < 100 && ticks > 1000, "{submitted} {ticks}");
    }
}

/// A directory of index blocks, each in eight parts, each of which is in a list of 256 KiB.
fn costly() -> Vec<u8> {
    const LIST: usize = 256 << 10;
    let mut made = Ntfs::new(4000);
    let (list_at, blocks_at) = (Ntfs::free(), Ntfs::free() + 512);
    let mut list: Vec<u8> = Vec::new();
    while list.len() < LIST - 64 * 40 {
        list.extend(ntfs::list_entry(0x100, "", 0, FIRST));
    }
    for part in 0..64_u32 {
        let (vcn, number) = (u64::from(part), FIRST + 1 + u64::from(part));
        list.extend(ntfs::list_entry(kind::INDEX_ALLOCATION, I30, vcn, number));
        let runs = runs(&[(1, Some(blocks_at + part))]);
        let part =
            ntfs::non_resident(kind::INDEX_ALLOCATION, I30, vcn, 64 * ntfs::CLUSTER as u64, &runs);
        made.record(number, FILE, ROOT, &[part]);
    }
    let len = list.len() as u64;
    made.write(list_at, &list);
    for block in 0..8 {
        let name = format!("file {block}");
        let block_at = blocks_at + block * 8;
        made.write(block_at, &ntfs::index_block(&[ntfs::index_entry(FIRST, &name, 1, 0)]));
    }
    let list = ntfs::non_resident(kind::ATTRIBUTE_LIST, "", 0, len, &runs(&[(512, Some(list_at))]));
    let root = resident(kind::INDEX_ROOT, I30, &ntfs::index_root(&[]));
    made.record(ROOT, DIRECTORY, 0, &[list, root, resident(kind::BITMAP, I30, &[0xff; 8])]);
    made.record(FIRST, FILE, 0, &[resident(kind::DATA, "", b"x")]);
    made.disk
}

#[test]
fn calls_that_take_too_long_end_with_a_true_message() {
    let (code, text, submitted, _) = ask(&costly(), "/sda/0/");
    assert_eq!((code, text.contains("more reads than are made here")), (500, true), "{text}");
    assert!(submitted < 300, "{submitted}");
}

/// A search in 100,000 entries.
#[test]
fn folder_with_100000_files_is_listed_and_searched() {
    let image = exfat::large_folder(100_000);
    let mut world = world(&image, Access::ReadOnly, 512);
    for from in [0, 500, 50_000, 99_700] {
        let path = format!("/sda/0/?from={from}");
        let page = text(&world.get(&path, ""));
        let links = links(&page, "/sda/0/");
        let files: Vec<_> = links.iter().filter(|link| link.contains("/file%20")).collect();
        assert_eq!(files.len(), 500.min(100_000 - from), "{path}");
        assert!(files.contains(&&format!("/sda/0/file%20{from}")), "{path}");
        let next = format!("/sda/0/?from={}", from + 500);
        assert_eq!(links.contains(&next), from < 99_500, "{path}");
    }
    for number in [0, 4000, 99_999] {
        let response = world.get(&format!("/sda/0/FILE%20{number}"), "");
        assert_eq!((response.code, text(&response)), (200, format!("file {number}")));
    }
    assert_eq!(world.get("/sda/0/file%20100000", "").code, 404);
    world.end_all();
}

/// A disk with an MBR of one primary and 100 logical partitions, the primary one an exFAT.
#[test]
fn disk_with_100_logical_partitions_is_listed() {
    let mut image = testkit::logical_partitions(100);
    let mut volume = Exfat::new(40);
    volume.store(&[0; exfat::CLUSTER]);
    // The first sector behind the table.
    image[512..512 + volume.disk.len()].copy_from_slice(&volume.disk);
    let (code, page, submitted, _) = ask(&image, "/sda/");
    assert_eq!((code, page.matches("<h2>Partition").count()), (200, 101), "{page}");
    assert!(submitted < 2000, "{submitted}");
    let (code, _, submitted, _) = ask(&image, "/sda/1/");
    assert_eq!(code, 200);
    assert!(submitted < 200, "{submitted}");
}

/// Of a disk that hosts may change it could be another one by now.
#[test]
fn layout_of_a_disk_is_looked_for_once() {
    let image = with_file(&[3; 200_000]);
    for (access, is_kept) in [(Access::ReadOnly, true), (Access::Writable, false)] {
        let mut world = world(&image, access, 512);
        let read = |world: &mut World| {
            let id = world.open();
            world.conn(id).hold = true;
            world.send(id, get("/sda/0/file", "Range: bytes=5-6\r\n").as_bytes());
            let mut read = 0;
            while let Some(job) = world.jobs(id).first().map(|job| job.len()) {
                read += job;
                world.finish(id, 0, Ok(()));
            }
            let (response, _) = Response::parse(&world.received(id), false);
            assert_eq!((response.code, &response.content[..]), (206, &[3, 3][..]));
            read
        };
        let (first, second) = (read(&mut world), read(&mut world));
        assert!(first > 150_000 && (second < 80_000) == is_kept, "{first} {second}");
        // The same disk anew is another one.
        world.catalogue.withdraw(&DISK.into());
        world.catalogue.publish(disk(access, 512, image.len() as u64));
        assert!(read(&mut world) > 150_000);
        world.end_all();
    }
}

/// The memory of a page is charged to the connection until the client has received it, as the search is over by then.
#[test]
fn page_is_in_memory_of_the_account_as_a_whole() {
    if programs::lacks("pages of files", &["mke2fs"]) {
        return;
    }
    // Each byte of the names takes five on the page, and three in the link.
    let names: Vec<Vec<u8>> =
        (0..400).map(|at| format!("{}{at}", "&".repeat(120)).into_bytes()).collect();
    let files: Vec<(&[u8], &[u8])> = names.iter().map(|name| (&name[..], &b""[..])).collect();
    let image = image("page", &files);
    let mut world = World::with_pool(Pool::new(1 << 20));
    world.disk = image.clone();
    world.catalogue.publish(disk(Access::ReadOnly, 512, image.len() as u64));
    // So that each has its least share.
    let others: Vec<_> = (0..7).map(|_| world.pool.open()).collect();
    let id = world.open();
    world.conn(id).not_receiving = true;
    world.conn(id).incoming.push(get("/sda/0/", "").as_bytes());
    let now = world.now;
    loop {
        while world.deliver(id) || world.drain(id) {}
        match world.session(id).deadline() {
            Some(deadline) if deadline <= now => world.session(id).tick(now),
            _ => break,
        }
    }
    let (held, share) = (world.conn(id).account.held(), world.conn(id).account.share());
    let (response, _) = Response::parse(&world.received(id), false);
    assert_eq!(response.code, 200);
    assert!(response.content.len() > share && held >= response.content.len(), "{held} {share}");
    drop(others);
    world.receive_all(id);
    world.end_all();
}

#[test]
fn bytes_up_to_a_bad_sector_are_delivered() {
    let len = 2_000_000_u32;
    let content: Vec<u8> = (0..len).map(|at| u8::try_from(at / 5 % 251).unwrap()).collect();
    let image = with_file(&content);
    let start = image.windows(400).position(|at| *at == content[..400]).unwrap();
    for (path, start, block) in
        [("/sda/0/file", start, 512), ("/sda.raw", 0, 512), ("/sda.raw", 0, 4096)]
    {
        let mut image = image.clone();
        image.resize(image.len().next_multiple_of(4096), 0);
        let mut world = world(&image, Access::ReadOnly, block);
        let whole = match path {
            "/sda.raw" => image.clone(),
            _ => content.clone(),
        };
        // A block of 4 KiB where no signatures are looked for.
        let bad = 1_000_000_usize.next_multiple_of(4096);
        world.unreadable.push(bad as u64..bad as u64 + 1);
        let wanted = bad - start;
        let id = world.open();
        let bytes = world.exchange(id, get(path, "").as_bytes());
        let end = bytes.windows(4).position(|at| at == b"\r\n\r\n").unwrap() + 4;
        assert!(bytes.starts_with(b"HTTP/1.1 200 OK\r\n") && is_cut(&bytes), "{path}");
        assert_eq!(bytes.len() - end, wanted, "{path}");
        assert!(bytes[end..] == whole[..wanted], "{path}");
        assert_eq!(world.conn(id).closed, Some(Reason::Ended));
        // One report, of the block.
        let faults = format!("fault read {bad} {block}");
        let reported = world.conn(id).reported();
        assert_eq!(
            reported.iter().filter(|it| it.starts_with("fault")).collect::<Vec<_>>(),
            [&faults]
        );
        // What is beside it can be read.
        let block = usize::try_from(block).unwrap();
        for (first, last) in [(0, wanted - 1), (wanted + block, whole.len() - 1)] {
            let response = world.get(path, &format!("Range: bytes={first}-{last}\r\n"));
            assert_eq!(response.code, 206);
            assert!(response.content == whole[first..=last], "{path} {first}");
        }
        let fields = format!("Range: bytes={wanted}-\r\n");
        assert_eq!(world.get(path, &fields).code, 500, "nothing of it can be read");
        world.end_all();
    }
}

/// A read that fails once is made again, and what follows it, too.
#[test]
fn passing_fault_of_a_disk_loses_nothing() {
    let mut world = World::new();
    let wanted = world.disk[..crate::world::SIZE].to_vec();
    // The ninth read is of a single block.
    for which in 0..8 {
        for held in [false, true] {
            let id = world.open();
            world.conn(id).hold = held;
            world.faults = (0..which).map(|_| Ok(())).chain([Err(export::Fault::Io)]).collect();
            world.send(id, get("/sda.raw", "").as_bytes());
            while world.complete_any() {
                world.run();
            }
            let (response, _) = Response::parse(&world.received(id), false);
            assert!(response.code == 200 && response.content == wanted, "{which} {held}");
            world.faults.clear();
        }
    }
    world.end_all();
}

#[test]
fn statuses_tell_what_is_missing_from_what_is_not_supported() {
    let small = with_file(b"text");
    // A file system whose files are not read, and one that is damaged.
    let mut xfs = vec![0; 1 << 20];
    xfs[..4].copy_from_slice(b"XFSB");
    let mut damaged = small.clone();
    damaged[92..96].fill(0xff);
    // Nothing at all, and two file systems.
    let empty = vec![0; 1 << 20];
    let mut both = small.clone();
    both[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
    for (disk, path, wanted) in [
        (&small, "/sda/0/file", 200),
        (&small, "/sda/0/none", 404),
        (&small, "/sda/0/none/file", 404),
        (&small, "/sda/0/file/more", 404),
        (&small, "/sda/0/file/", 404),
        (&small, "/sda/1/", 404),
        (&xfs, "/sda/0/", 501),
        (&xfs, "/sda/0/file", 501),
        (&empty, "/sda/0/", 501),
        (&damaged, "/sda/0/", 500),
        (&both, "/sda/0/", 500),
    ] {
        assert_eq!(ask(disk, path).0, wanted, "{path} {wanted}");
    }
    let refused = |attributes: &[Vec<u8>]| {
        let mut made = Ntfs::new(1000);
        made.root(&[ntfs::index_entry(FIRST, "file", 1, 0)]);
        made.record(FIRST, FILE, 0, attributes);
        ask(&made.disk, "/sda/0/file").0
    };
    let with_flags = |flags: u16| {
        let mut data = ntfs::non_resident(kind::DATA, "", 0, 9, &runs(&[(1, Some(900))]));
        data[12..14].copy_from_slice(&flags.to_le_bytes());
        data
    };
    assert_eq!(refused(&[resident(kind::DATA, "", b"x")]), 200);
    assert_eq!(refused(&[with_flags(1)]), 501, "compressed");
    assert_eq!(refused(&[with_flags(0x4000)]), 403, "encrypted");
    let reparse = resident(kind::REPARSE, "", &0x8000_0013_u32.to_le_bytes());
    assert_eq!(refused(&[resident(kind::DATA, "", b""), reparse]), 501, "deduplicated");
}

#[test]
fn folders_without_a_slash_are_redirected() {
    if programs::lacks("redirects of folders", &["mke2fs"]) {
        return;
    }
    let image = image("slash", &[(b"my photos/a/x", b"x")]);
    let mut world = world(&image, Access::ReadOnly, 512);
    for (path, wanted) in [
        ("/sda", "/sda/"),
        ("/sda/0", "/sda/0/"),
        ("/sda/0?from=3", "/sda/0/"),
        ("/sda/0/my%20photos", "/sda/0/my%20photos/"),
        ("/%73da/0/my%20photos/%61", "/sda/0/my%20photos/a/"),
    ] {
        for method in ["GET", "HEAD"] {
            let id = world.open();
            let request = get(path, "").replacen("GET", method, 1);
            let bytes = world.exchange(id, request.as_bytes());
            let (response, rest) = Response::parse(&bytes, false);
            assert_eq!((response.code, response.field("Location")), (301, Some(wanted)), "{path}");
            assert!(rest.is_empty() && response.content.is_empty());
        }
        assert_eq!(world.get(wanted, "").code, 200);
    }
    assert_eq!(world.get("/sdb", "").code, 404);
    assert_eq!(world.get("//sda", "").code, 404);
    world.end_all();
}

#[test]
fn files_are_read_from_disks_with_large_blocks() {
    let content: Vec<u8> = (0..100_000_u32).map(|at| u8::try_from(at / 7 % 250).unwrap()).collect();
    let mut image = with_file(&content);
    image.resize(image.len().next_multiple_of(64 << 10), 0);
    for block in [4096, 16 << 10, 64 << 10] {
        assert!(Geometry::new(block, block).is_some());
        let mut world = world(&image, Access::ReadOnly, block);
        assert_eq!(world.get("/sda/0/", "").code, 200);
        let response = world.get("/sda/0/file", "");
        assert!(response.code == 200 && response.content == content, "{block}");
        world.end_all();
    }
}

#[test]
fn busy_server_answers_a_head_request_without_content() {
    let mut world = world(&with_file(b"text"), Access::ReadOnly, 512);
    let ids: Vec<_> = (0..8).map(|_| world.open()).collect();
    for id in &ids {
        world.conn(*id).hold = true;
        world.send(*id, get("/sda/0/file", "").as_bytes());
    }
    let id = world.open();
    let head = get("/sda/0/file", "").replacen("GET", "HEAD", 1);
    let bytes = world.exchange(id, [&head[..], &get("/disks.json", "")].concat().as_bytes());
    let (response, rest) = Response::parse(&bytes, true);
    assert_eq!((response.code, response.field("Retry-After")), (503, Some("60")));
    assert_eq!(Response::parse(rest, false).0.code, 200, "the next response follows");
    world.end_all();
}

/// The other files of the folder can be had.
#[test]
fn unreadable_file_record_hides_only_its_file() {
    let mut made = Ntfs::new(1000);
    made.root(&[
        ntfs::index_entry(FIRST, "one", 1, 0),
        ntfs::index_entry(FIRST + 9, "other", 1, 0),
    ]);
    for (number, content) in [(FIRST, b"1"), (FIRST + 9, b"2")] {
        made.record(number, FILE, 0, &[resident(kind::DATA, "", content)]);
    }
    let at = made.disk.windows(5).rposition(|at| at == b"FILE0").unwrap() as u64;
    let mut world = world(&made.disk, Access::ReadOnly, 512);
    world.unreadable.push(at..at + 1);
    let page = text(&world.get("/sda/0/", ""));
    let links = links(&page, "/sda/0/");
    assert!(links.contains(&"/sda/0/one".to_owned()), "{page}");
    assert!(page.contains("<bdi>other</bdi> <span class=\"note\">damaged"), "{page}");
    assert_eq!(text(&world.get("/sda/0/one", "")), "1");
    assert_eq!(world.get("/sda/0/other", "").code, 500);
    world.end_all();
}

/// A folder may contain itself.
#[test]
fn paths_deeper_than_64_folders_are_not_found() {
    let mut made = Ntfs::new(1000);
    made.root(&[ntfs::index_entry(FIRST, "d", 0, 0x1000_0000)]);
    let root = |entries: &[Vec<u8>]| resident(kind::INDEX_ROOT, I30, &ntfs::index_root(entries));
    made.record(FIRST, DIRECTORY, 0, &[root(&[ntfs::index_entry(FIRST, "d", 0, 0x1000_0000)])]);
    let path = |depth: usize| format!("/sda/0/{}", "d/".repeat(depth));
    let (code, page, ..) = ask(&made.disk, &path(64));
    assert_eq!((code, page.contains("href=\"d/\"")), (200, true));
    let (code, _, submitted, _) = ask(&made.disk, &path(65));
    assert_eq!((code, submitted), (404, 0));
}
