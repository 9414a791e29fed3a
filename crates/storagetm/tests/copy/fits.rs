//! Block sizes, lengths and partition tables between all kinds of endpoints.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use linux::gpt::{Gpt, Partition};
use linux::partition;
use testkit::web::{Server, send_part};

use crate::scene::{Attached, Folder, MIB, assert_equal, copy, random_bytes, run_expecting};
use crate::target::Target;
use crate::web::sha256_of;

const BYTES: u64 = 8 * MIB;
const BLOCKS: [u32; 2] = [512, 4096];
/// Offsets of the partitions of the image, in bytes.
const PLACES: [(u64, u64); 2] = [(MIB, 3 * MIB), (4 * MIB, 6 * MIB)];

/// An image with two partitions, of which the first has a FAT of 512-byte sectors.
fn partitioned(path: &str, block: u32) {
    let size = u64::from(block);
    let partitions = [1_u8, 2].map(|number| {
        let (start, end) = PLACES[usize::from(number - 1)];
        let (kind, guid) = ([9; 16], [number; 16]);
        Partition { kind, guid, first: start / size, last: end / size - 1, name: "data" }
    });
    let gpt = Gpt::new(block, BYTES / size, [block.to_le_bytes()[1]; 16], &partitions);
    let file = File::create(path).unwrap();
    file.set_len(BYTES).unwrap();
    file.write_all_at(&gpt.start(), 0).unwrap();
    let end = gpt.end();
    file.write_all_at(&end, BYTES - end.len() as u64).unwrap();
    for (number, (start, end)) in (1..).zip(PLACES) {
        file.write_all_at(&random_bytes(number, usize::try_from(end - start).unwrap()), start)
            .unwrap();
    }
    let mut boot = vec![0; 512];
    boot[11..13].copy_from_slice(&512_u16.to_le_bytes());
    boot[71..82].copy_from_slice(b"SYSTEM     ");
    boot[82..90].copy_from_slice(b"FAT32   ");
    boot[510..].copy_from_slice(&[0x55, 0xaa]);
    file.write_all_at(&boot, MIB).unwrap();
}

/// Returns the block size of the table; checks the offsets and contents of all partitions.
#[track_caller]
fn readable(path: &str, source: &str) -> u32 {
    let (copy, source) = (fs::read(path).unwrap(), fs::read(source).unwrap());
    let table = partition::read(&copy[..]).unwrap().expect("there is a table");
    let places: Vec<_> =
        table.entries.iter().map(|entry| (entry.start, entry.start + entry.bytes)).collect();
    assert_eq!(places, PLACES);
    let index = |at: u64| usize::try_from(at).unwrap();
    for (start, end) in PLACES.map(|(start, end)| (index(start), index(end))) {
        assert!(copy[start..end] == source[start..end], "a partition is another one");
    }
    let backup = linux::gpt::backup_end(&copy[..], table.block_size).unwrap();
    assert_eq!(backup, Some(copy.len() as u64), "the backup is at the end");
    let at = copy.len() - table.block_size as usize;
    assert!(copy[at..].starts_with(b"EFI PART"));
    table.block_size
}

/// A disk of one block size, which is lent from one file and attached from another.
struct Ends {
    block: u32,
    /// The kind, the URI or path, and the file behind it.
    ends: Vec<(&'static str, String, String)>,
    _held: (Vec<Attached>, Target),
}

impl Ends {
    fn new(folder: &Folder, name: &str, block: u32, bytes: u64) -> Option<Self> {
        let files = ["disk", "nvme", "nbd"].map(|kind| folder.path(&format!("{name}.{kind}")));
        files.iter().for_each(|file| File::create(file).unwrap().set_len(bytes).unwrap());
        let loops: Vec<_> =
            files.iter().map(|file| Attached::new(file, block)).collect::<Option<_>>()?;
        let listen = ["--listen", "nvme:127.0.0.1:0", "--listen", "nbd:127.0.0.1:0"];
        let lent = ["--writable", &loops[1].0, "--writable", &loops[2].0];
        let target = Target::serve(&[&listen[..], &lent].concat());
        let short = |at: usize| target.lent[at]["name"].as_str().unwrap().to_owned();
        let nvme = format!("nvme://127.0.0.1:{}/{}", target.port("nvme"), short(0));
        let nbd = format!("nbd://127.0.0.1:{}/{}", target.port("nbd"), short(1));
        let [disk_file, nvme_file, nbd_file] = files;
        let ends = vec![
            ("disk", loops[0].0.clone(), disk_file),
            ("nvme", nvme, nvme_file),
            ("nbd", nbd, nbd_file),
        ];
        Some(Self { block, ends, _held: (loops, target) })
    }
}

/// R49: every pair of endpoints with blocks of 512 and 4096 bytes.
#[test]
fn r49_disks_of_other_block_sizes_are_refused_or_converted() {
    let folder = Folder::new();
    let make = |name: &str| {
        BLOCKS.map(|block| Ends::new(&folder, &format!("{name}{block}"), block, BYTES))
    };
    let ([Some(a), Some(b)], [Some(c), Some(d)]) = (make("from"), make("to")) else { return };
    for from in [a, b] {
        let image = folder.path(&format!("source{}.img", from.block));
        partitioned(&image, from.block);
        for (_, _, file) in &from.ends {
            fs::write(file, fs::read(&image).unwrap()).unwrap();
        }
        let file = ("file", image.clone(), image.clone());
        for (kind, source, _) in from.ends.iter().chain([&file]) {
            let copy = folder.path("copy.img");
            run_expecting(0, &["--force", source, &copy]);
            assert_equal(&image, &copy);
            for to in [&c, &d] {
                for (other, destination, behind) in &to.ends {
                    println!("{kind} of {} to {other} of {}", from.block, to.block);
                    one_pair(source, from.block, &image, destination, to.block, behind);
                }
            }
        }
    }
}

fn one_pair(source: &str, from: u32, image: &str, destination: &str, to: u32, behind: &str) {
    let before = random_bytes(77, 1 << 20);
    let blank = File::options().write(true).open(behind).unwrap();
    blank.write_all_at(&before, 0).unwrap();
    if from == to {
        run_expecting(0, &["--yes", source, destination]);
        assert_eq!(readable(behind, image), to);
        return;
    }
    let message = run_expecting(5, &["--yes", source, destination]);
    assert!(
        message.contains(&from.to_string()) && message.contains("--convert-sectors"),
        "{message}"
    );
    assert!(fs::read(behind).unwrap()[..1 << 20] == before, "nothing was written");
    let message = run_expecting(0, &["--yes", "--convert-sectors", source, destination]);
    assert_eq!(readable(behind, image), to);
    let fat = "vfat \"SYSTEM\" on partition 1";
    assert_eq!(message.contains(fat), to == 4096, "{message}");
    run_expecting(0, &["--yes", "--keep-sectors", source, destination]);
    assert_equal(image, behind);
}

/// R54: the backup GPT is moved to the end of a larger disk.
#[test]
fn r54_backup_gpt_is_moved_or_reported() {
    let folder = Folder::new();
    let image = folder.path("source.img");
    for block in BLOCKS {
        partitioned(&image, block);
        let Some(to) = Ends::new(&folder, &format!("to{block}"), block, 12 * MIB) else { return };
        for (_, destination, behind) in &to.ends {
            let message = run_expecting(0, &["--yes", &image, destination]);
            assert!(message.contains("sgdisk -e"), "{message}");
            let message = run_expecting(0, &["--yes", "--fix-gpt", &image, destination]);
            assert!(!message.contains("sgdisk -e"), "{message}");
            assert_eq!(readable(behind, &image), block);
        }
    }
}

/// R49, R54: the same for an image from a pipe.
#[test]
fn r54_piped_image_is_checked_and_its_backup_moved() {
    let folder = Folder::new();
    let image = folder.path("source.img");
    partitioned(&image, 512);
    let (small, large) =
        (Ends::new(&folder, "a", 512, 12 * MIB), Ends::new(&folder, "b", 4096, 12 * MIB));
    let (Some(small), Some(large)) = (small, large) else { return };
    let piped = |status: i32, args: &[&str]| {
        let output = copy(&[&["--yes"], args].concat()).stdin(File::open(&image).unwrap()).output();
        let output = output.unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{args:?}: {message}");
        message
    };
    for (_, destination, _) in &large.ends {
        assert!(piped(5, &["-", destination]).contains("blocks of 4096"));
    }
    for (_, destination, behind) in &small.ends {
        assert!(piped(0, &["-", destination]).contains("sgdisk -e"));
        assert!(!piped(0, &["--fix-gpt", "-", destination]).contains("sgdisk -e"));
        assert_eq!(readable(behind, &image), 512);
    }
}

/// After a copy to a disk of 12 MiB with new identifiers and an expanded partition 2.
#[track_caller]
fn is_expanded_with_new_ids(path: &str, source: &str, message: &str) {
    assert!(message.contains("partition 2 was expanded"), "{message}");
    assert!(message.contains("PARTUUID") && !message.contains("sgdisk"), "{message}");
    let (copy, source) = (fs::read(path).unwrap(), fs::read(source).unwrap());
    let [table, before] = [&copy, &source].map(|disk| partition::read(&disk[..]).unwrap().unwrap());
    let places: Vec<_> = table.entries.iter().map(|it| (it.start, it.bytes)).collect();
    assert_eq!(places, [(MIB, 2 * MIB), (4 * MIB, 7 * MIB)]);
    for (new, old) in table.entries.iter().zip(&before.entries) {
        assert_ne!(new.guid, old.guid);
    }
    assert_ne!(table.guid, before.guid);
    let end = linux::gpt::backup_end(&copy[..], table.block_size).unwrap();
    assert_eq!(end, Some(copy.len() as u64), "the backup is at the end");
    let data = usize::try_from(MIB).unwrap()..usize::try_from(3 * MIB).unwrap();
    assert!(copy[data.clone()] == source[data]);
}

#[test]
fn last_partition_is_expanded_and_identifiers_are_new() {
    let folder = Folder::new();
    let (image, map) = (folder.path("source.img"), folder.path("map"));
    let options = ["--yes", "--expand", "--new-ids"];
    for block in BLOCKS {
        partitioned(&image, block);
        let Some(to) = Ends::new(&folder, &format!("to{block}"), block, 12 * MIB) else { return };
        for (_, destination, behind) in &to.ends {
            let message = run_expecting(0, &[&options[..], &[&image, destination]].concat());
            is_expanded_with_new_ids(behind, &image, &message);
            let piped = copy(&[&options[..], &["-", destination]].concat())
                .stdin(File::open(&image).unwrap())
                .output()
                .unwrap();
            let message = String::from_utf8(piped.stderr).unwrap();
            assert_eq!(piped.status.code(), Some(0), "{message}");
            is_expanded_with_new_ids(behind, &image, &message);
        }
        // Together with what makes the table fit. After that the map describes another disk.
        let (_, destination, behind) = &to.ends[0];
        let _ = fs::remove_file(&map);
        let with_map = [&options[..], &["--fix-gpt", "--map", &map, &image, destination]].concat();
        let message = run_expecting(0, &with_map);
        is_expanded_with_new_ids(behind, &image, &message);
        let again = copy(&with_map).output().unwrap();
        let message = String::from_utf8(again.stderr).unwrap();
        assert!(!again.status.success() && message.contains("differ"), "{message}");
    }
    // An MBR, whose sector is a part of a block there.
    partitioned(&image, 512);
    let file = File::options().write(true).open(&image).unwrap();
    let mut sector = vec![0; 512];
    sector[446 + 4] = 0x0c;
    sector[446 + 8..446 + 12].copy_from_slice(&2048_u32.to_le_bytes());
    sector[446 + 12..446 + 16].copy_from_slice(&4096_u32.to_le_bytes());
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    file.write_all_at(&sector, 0).unwrap();
    file.write_all_at(&[0; 512], 512).unwrap();
    file.write_all_at(&[0; 512], BYTES - 512).unwrap();
    let Some(to) = Ends::new(&folder, "mbr", 4096, 12 * MIB) else { return };
    for (_, destination, behind) in &to.ends {
        let more = ["--convert-sectors", &image, destination];
        let message = run_expecting(0, &[&options[..], &more].concat());
        assert!(message.contains("partition 1 was expanded"), "{message}");
        let copied = fs::read(behind).unwrap();
        let words = [446 + 8, 446 + 12].map(|at| copied[at..].first_chunk().copied().unwrap());
        assert_eq!(words.map(u32::from_le_bytes), [256, 11 * 256]);
        assert_ne!(copied[440..444], [0; 4]);
    }
    partitioned(&image, 512);
    let file = folder.path("file.img");
    let message = run_expecting(0, &["--expand", "--new-ids", &image, &file]);
    assert!(message.contains("partition 2 was expanded"), "{message}");
    let message = run_expecting(0, &["--force", "--expand", &file, &folder.path("again.img")]);
    assert!(message.contains("no partition was expanded"), "{message}");
    assert!(fs::read(&file).unwrap() != fs::read(&image).unwrap());
    let message = run_expecting(2, &["--new-ids", &image, "-"]);
    assert!(message.contains("a pipe cannot be changed"), "{message}");
    let zeros = folder.path("zeros.img");
    File::create(&zeros).unwrap().set_len(BYTES).unwrap();
    let message = run_expecting(5, &["--force", "--new-ids", &zeros, &file]);
    assert!(message.contains("there is no partition table"), "{message}");
    let piped =
        copy(&["--force", "--new-ids", "-", &file]).stdin(File::open(&zeros).unwrap()).output();
    let message = String::from_utf8(piped.unwrap().stderr).unwrap();
    assert!(message.contains("there is no partition table"), "{message}");
}

/// R54: a resumed copy that was complete is unchanged.
#[test]
fn r54_converted_copy_is_gone_on_with_by_its_map() {
    let folder = Folder::new();
    let (image, map) = (folder.path("source.img"), folder.path("map"));
    partitioned(&image, 512);
    let Some(to) = Ends::new(&folder, "to", 4096, 12 * MIB) else { return };
    let (_, disk, behind) = &to.ends[0];
    for _ in 0..3 {
        run_expecting(0, &["--yes", "--convert-sectors", "--map", &map, &image, disk]);
        assert_eq!(readable(behind, &image), 4096);
    }
    let message = run_expecting(5, &["--yes", "--keep-sectors", "--map", &map, &image, disk]);
    assert!(message.contains("another disk"), "{message}");
}

/// R59: a copy has every byte of its source, by every protocol; NVMe and iSCSI only support whole
/// blocks.
#[test]
fn r59_odd_image_is_copied_whole_by_every_protocol() {
    let folder = Folder::new();
    let (odd, copy) = (folder.path("odd.img"), folder.path("copy.img"));
    let bytes = random_bytes(5, 1_000_001);
    fs::write(&odd, &bytes).unwrap();
    let listen = ["nvme:127.0.0.1:0", "nbd:127.0.0.1:0", "iscsi:127.0.0.1:0"];
    let listen: Vec<&str> = listen.iter().flat_map(|at| ["--listen", at]).collect();
    let target = Target::serve(&[&listen[..], &[&odd]].concat());
    let from = |protocol| format!("{protocol}://127.0.0.1:{}/odd", target.port(protocol));
    run_expecting(0, &[&from("nbd"), &copy]);
    assert_equal(&odd, &copy);
    let name = target.lent[0]["iqn"].as_str().unwrap();
    let iscsi = format!("iscsi://127.0.0.1:{}/{name}", target.port("iscsi"));
    for whole_blocks in [from("nvme"), iscsi] {
        run_expecting(0, &["--force", &whole_blocks, &copy]);
        let padded = fs::read(&copy).unwrap();
        assert_eq!(padded.len(), 1_000_448);
        assert!(padded[..1_000_001] == bytes && padded[1_000_001..].iter().all(|byte| *byte == 0));
    }
    let Some(to) = Ends::new(&folder, "to", 4096, 2 * MIB) else { return };
    for (_, destination, behind) in &to.ends {
        let message = run_expecting(0, &["--yes", &from("nbd"), destination]);
        assert!(message.contains("filled up with"), "{message}");
        assert!(fs::read(behind).unwrap()[..1_000_001] == bytes);
    }
}

/// R59: a partial last block is padded with zeros, with a note.
#[test]
fn r59_odd_image_onto_a_disk_is_filled_up_with_zeros() {
    let folder = Folder::new();
    let odd = folder.path("odd.img");
    fs::write(&odd, random_bytes(5, 1_000_001)).unwrap();
    let copy = folder.path("copy.img");
    run_expecting(0, &[&odd, &copy]);
    assert_equal(&odd, &copy);
    for block in BLOCKS {
        let Some(to) = Ends::new(&folder, &format!("to{block}"), block, 2 * MIB) else { return };
        for (_, destination, behind) in &to.ends {
            fs::write(behind, vec![7; 2 << 20]).unwrap();
            let message = run_expecting(0, &["--yes", &odd, destination]);
            assert!(message.contains("filled up with"), "{message}");
            let written = fs::read(behind).unwrap();
            let end = 1_000_001_usize.next_multiple_of(block as usize);
            assert!(written[..1_000_001] == random_bytes(5, 1_000_001));
            assert!(written[1_000_001..end].iter().all(|byte| *byte == 0));
            assert!(written[end..].iter().all(|byte| *byte == 7));
        }
    }
}

/// Debian's loader is not where firmware looks for one without a boot entry.
#[test]
fn boot_entry_is_advised_where_firmware_finds_no_loader() {
    if programs::lacks("boot entries of a copy", &["mkfs.vfat", "mmd", "mcopy"]) {
        return;
    }
    let folder = Folder::new();
    let (image, loader) = (folder.path("system.img"), folder.path("loader"));
    let kind = [
        0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9,
        0x3b,
    ];
    let partition =
        |number, first, last| Partition { kind, guid: [number; 16], first, last, name: "EFI" };
    // The first one has no file system.
    let partitions = [partition(1, 10_240, 14_335), partition(2, 2048, 10_239)];
    let gpt = Gpt::new(512, BYTES / 512, [5; 16], &partitions);
    let file = File::create(&image).unwrap();
    file.set_len(BYTES).unwrap();
    file.write_all_at(&gpt.start(), 0).unwrap();
    let end = gpt.end();
    file.write_all_at(&end, BYTES - end.len() as u64).unwrap();
    fs::write(&loader, b"MZ").unwrap();
    let run = |name: &str, args: &[&str]| {
        assert!(
            programs::command(name).args(args).output().unwrap().status.success(),
            "{name} {args:?}"
        );
    };
    run("mkfs.vfat", &["--offset", "2048", &image, "4096"]);
    let inside = format!("{image}@@1M");
    run("mmd", &["-i", &inside, "::EFI", "::EFI/debian"]);
    for name in ["grubx64.efi", "shimx64.efi"] {
        run("mcopy", &["-i", &inside, &loader, &format!("::EFI/debian/{name}")]);
    }
    let blank = folder.path("blank.img");
    File::create(&blank).unwrap().set_len(BYTES).unwrap();
    let target = Target::serve(&["--listen", "nbd:127.0.0.1:0", "--writable", &blank]);
    let onto = format!("nbd://127.0.0.1:{}/blank", target.port("nbd"));
    let message = run_expecting(0, &["--yes", &image, &onto]);
    let line = r"efibootmgr --create --disk DISK --part 2 --label debian --loader '\EFI\debian\shimx64.efi'";
    assert!(message.contains(line), "{message}");
    // Now it is empty.
    run("mkfs.vfat", &["--offset", "10240", &image, "2048"]);
    let message = run_expecting(0, &["--yes", &image, &onto]);
    assert!(message.contains(line), "{message}");
    run("mmd", &["-i", &inside, "::EFI/BOOT"]);
    run("mcopy", &["-i", &inside, &loader, "::EFI/BOOT/BOOTX64.EFI"]);
    let message = run_expecting(0, &["--yes", &image, &onto]);
    assert!(!message.contains("efibootmgr"), "{message}");
    // A file is no disk of a machine.
    let message = run_expecting(0, &["--yes", &image, &folder.path("copy.img")]);
    assert!(!message.contains("efibootmgr"), "{message}");
}

/// R51, R54: the table that is changed is the one that was verified.
#[test]
fn r51_table_that_is_changed_is_that_of_the_hash() {
    let folder = Folder::new();
    let image = folder.path("source.img");
    partitioned(&image, 512);
    let file = fs::read(&image).unwrap();
    for is_hostile in [true, false] {
        let (right, has_begun) = (file.clone(), AtomicBool::new(false));
        let server = Server::start(move |_, request, stream| {
            let part = request.part();
            let is_copy = |(first, end): (usize, Option<usize>)| {
                first as u64 == 2 * MIB && end.is_some_and(|end| end - first > 1 << 18)
            };
            if part.is_some_and(is_copy) {
                has_begun.store(true, Ordering::Relaxed);
            }
            let mut sent = right.clone();
            if is_hostile && !has_begun.load(Ordering::Relaxed) {
                // Of a table without its second partition.
                let gpt = Gpt::new(512, BYTES / 512, [9; 16], &[]);
                let (start, end) = (gpt.start(), gpt.end());
                sent[..start.len()].copy_from_slice(&start);
                let at = sent.len() - end.len();
                sent[at..].copy_from_slice(&end);
            }
            send_part(stream, (&sent, part), "ETag: \"1\"\r\n", usize::MAX);
        });
        let disk = folder.path(&format!("disk{is_hostile}"));
        File::create(&disk).unwrap().set_len(12 * MIB).unwrap();
        let target = Target::serve(&["--listen", "nbd:127.0.0.1:0", "--writable", &disk]);
        let name = target.lent[0]["name"].as_str().unwrap();
        let to = format!("nbd://127.0.0.1:{}/{name}", target.port("nbd"));
        let (map, url) = (folder.path("map"), format!("http://{}/disk", server.authority));
        let _ = fs::remove_file(&map);
        let hash = sha256_of(&file);
        let args = ["--yes", "--fix-gpt", "--map", &map, "--sha256", &hash, &url, &to];
        let message = run_expecting(if is_hostile { 1 } else { 0 }, &args);
        if is_hostile {
            assert!(message.contains("the server sent another one"), "{message}");
            assert!(fs::read(&disk).unwrap()[..1 << 20].iter().all(|byte| *byte == 0));
            run_expecting(0, &args);
        }
        assert_eq!(readable(&disk, &image), 512);
    }
}
