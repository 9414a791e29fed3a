//! Inspects file systems made by mke2fs, mkntfs and others, and compares with their own tools.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::single_range_in_vec_init,
    reason = "a test that cannot go on ends, and contents are any bytes"
)]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use filesystem::{OpaqueReason, Owner, PartKind, Ranges, owners, usage};

/// A directory that is removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("filesystem-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn lacks(names: &[&str]) -> bool {
    programs::lacks("contents of file systems", names)
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = programs::command(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// A tree of files of many sizes, one of them fragmented.
fn tree(folder: &Folder) -> PathBuf {
    let tree = folder.path("tree");
    fs::create_dir_all(tree.join("a/deep/er")).unwrap();
    for (at, size) in [0, 1, 100, 5000, 70_000, 3_000_000].into_iter().enumerate() {
        let bytes: Vec<u8> = (0..size).map(|byte| (byte * 7 + at) as u8).collect();
        fs::write(tree.join(format!("a/deep/file-{at}")), bytes).unwrap();
    }
    let sparse = File::create(tree.join("a/sparse")).unwrap();
    (0..40).for_each(|at| sparse.write_all_at(&[at + 1; 4096], u64::from(at) * 65536).unwrap());
    for at in 0..300 {
        fs::write(tree.join(format!("a/deep/er/small-{at}")), format!("{at}")).unwrap();
    }
    tree
}

fn image(folder: &Folder, bytes: u64, options: &[&str]) -> PathBuf {
    let image = folder.path("image");
    File::create(&image).unwrap().set_len(bytes).unwrap();
    let tree = tree(folder);
    let name = image.display().to_string();
    let fixed = ["-q", "-F", "-d", tree.to_str().unwrap()];
    run("mke2fs", &[&fixed, options, &[&name]].concat());
    image
}

const EXT: [&[&str]; 7] = [
    &["-t", "ext4"],
    &["-t", "ext4", "-b", "1024"],
    &["-t", "ext4", "-O", "^64bit,^metadata_csum,^flex_bg"],
    &["-t", "ext4", "-O", "bigalloc"],
    &["-t", "ext4", "-O", "sparse_super2,^resize_inode"],
    &["-t", "ext3"],
    &["-t", "ext2", "-b", "1024"],
];

/// Overwrites all free bytes of an image. Returns their number.
fn scorched(image: &Path, used: &Ranges) -> u64 {
    let file = File::options().read(true).write(true).open(image).unwrap();
    let mut free = Ranges::of(0..file.metadata().unwrap().len());
    used.iter().for_each(|range| free.remove(range));
    for range in free.iter() {
        let noise = vec![0xa5; usize::try_from(range.end - range.start).unwrap()];
        file.write_all_at(&noise, range.start).unwrap();
    }
    free.bytes()
}

#[test]
fn r45_overwriting_free_bytes_loses_no_data() {
    if lacks(&["mke2fs", "e2fsck", "debugfs"]) {
        return;
    }
    for (at, options) in EXT.iter().enumerate() {
        let folder = Folder::new(&format!("used-{at}"));
        let image = image(&folder, 96 << 20, options);
        let file = File::open(&image).unwrap();
        let usage = usage(&file, 96 << 20).unwrap();
        assert_eq!(usage.parts[0].kind, PartKind::Ext, "{options:?}");
        let free = scorched(&image, &usage.used);
        assert!(free > 60 << 20, "{options:?}: {free} bytes are free");
        let name = image.to_str().unwrap();
        run("e2fsck", &["-fn", name]);
        let back = folder.path("back");
        fs::create_dir(&back).unwrap();
        run("debugfs", &["-R", &format!("rdump / {}", back.display()), name]);
        run(
            "diff",
            &[
                "-r",
                "-x",
                "lost+found",
                folder.path("tree").to_str().unwrap(),
                back.to_str().unwrap(),
            ],
        );
    }
}

#[test]
fn owners_equal_those_of_debugfs() {
    if lacks(&["mke2fs", "debugfs"]) {
        return;
    }
    for (at, options) in EXT.iter().enumerate() {
        let folder = Folder::new(&format!("owners-{at}"));
        let image = image(&folder, 96 << 20, options);
        let file = File::open(&image).unwrap();
        let name = image.to_str().unwrap();
        for path in ["/a/deep/file-5", "/a/sparse", "/a/deep/er", "/a/deep/er/small-7"] {
            let blocks = run("debugfs", &["-R", &format!("blocks {path}"), name]);
            let block_size = block_size(name);
            let blocks: Vec<u64> =
                blocks.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            for block in [blocks[0], blocks[blocks.len() / 2], blocks[blocks.len() - 1]] {
                let bad = Ranges::of(block * block_size + 512..block * block_size + 1024);
                let found = owners(&file, 96 << 20, &bad).unwrap();
                let found: Vec<Owner> = found.into_iter().map(|found| found.owner).collect();
                assert_eq!(found, [Owner::File(path.to_owned())], "{options:?} block {block}");
            }
        }
        let found = owners(&file, 96 << 20, &Ranges::of(1024..2048)).unwrap();
        let owners: BTreeSet<Owner> = found.into_iter().map(|found| found.owner).collect();
        assert_eq!(owners, BTreeSet::from([Owner::Structure]), "{options:?}");
    }
}

fn block_size(image: &str) -> u64 {
    let said = run("dumpe2fs", &["-h", image]);
    let line = said.lines().find(|line| line.starts_with("Block size:")).unwrap();
    line.split_whitespace().last().unwrap().parse().unwrap()
}

#[test]
fn unclean_file_system_counts_as_used() {
    if lacks(&["mke2fs", "debugfs"]) {
        return;
    }
    let folder = Folder::new("unclean");
    let image = image(&folder, 32 << 20, EXT[0]);
    run("debugfs", &["-w", "-R", "ssv state 0", image.to_str().unwrap()]);
    let usage = usage(&File::open(&image).unwrap(), 32 << 20).unwrap();
    assert_eq!(usage.parts[0].kind, PartKind::Opaque(OpaqueReason::Unclean));
    assert_eq!(usage.used, Ranges::of(0..32 << 20));
}

#[test]
fn bytes_between_partitions_count_as_used() {
    if lacks(&["mke2fs", "sfdisk"]) {
        return;
    }
    let folder = Folder::new("table");
    let inner = image(&folder, 32 << 20, EXT[0]);
    let disk = folder.path("disk");
    let whole = File::create(&disk).unwrap();
    whole.set_len(100 << 20).unwrap();
    let script = "label: gpt\nstart=2048, size=65536\nstart=131072, size=10240\n";
    let mut child = programs::command("sfdisk")
        .args(["-q", disk.to_str().unwrap()])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), script.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    whole.write_all_at(&fs::read(inner).unwrap(), 1 << 20).unwrap();
    let usage = usage(&File::open(&disk).unwrap(), 100 << 20).unwrap();
    let kinds: Vec<_> = usage.parts.iter().map(|part| (part.number, part.kind)).collect();
    assert_eq!(kinds, [(1, PartKind::Ext), (2, PartKind::Opaque(OpaqueReason::Unknown))]);
    let kept = [0..1 << 20, 33 << 20..100 << 20];
    assert!(
        kept.iter()
            .all(|range| usage.used.within(range.clone()).bytes() == range.end - range.start)
    );
    assert!(usage.used.bytes() < 90 << 20);
    // A GPT without a protective MBR is stale.
    whole.write_all_at(&[0x83], 450).unwrap();
    let usage = filesystem::usage(&File::open(&disk).unwrap(), 100 << 20).unwrap();
    assert_eq!((usage.used, usage.parts), (Ranges::of(0..100 << 20), Vec::new()));
}

#[test]
fn r45_ntfs_files_are_used_and_named() {
    if lacks(&["mkntfs", "ntfscp", "ntfscat", "ntfscluster"]) {
        return;
    }
    let folder = Folder::new("ntfs");
    let image = folder.path("image");
    File::create(&image).unwrap().set_len(64 << 20).unwrap();
    let name = image.to_str().unwrap();
    run("mkntfs", &["-q", "-F", "-Q", name]);
    let content: Vec<u8> = (0..3_000_000_u32).map(|byte| (byte >> 4) as u8).collect();
    fs::write(folder.path("content"), &content).unwrap();
    run("ntfscp", &["-q", name, folder.path("content").to_str().unwrap(), "picture.raw"]);
    let file = File::open(&image).unwrap();
    let usage = usage(&file, 64 << 20).unwrap();
    assert_eq!(usage.parts[0].kind, PartKind::Ntfs);
    // The file's own cluster belongs to it by name.
    let at = find(&fs::read(&image).unwrap(), &content[1 << 20..(1 << 20) + 4096]);
    let found = owners(&file, 64 << 20, &Ranges::of(at..at + 512)).unwrap();
    let found: Vec<Owner> = found.into_iter().map(|found| found.owner).collect();
    assert_eq!(found, [Owner::File("/picture.raw".to_owned())]);
    assert!(scorched(&image, &usage.used) > 40 << 20);
    let output = programs::command("ntfscat").args(["-q", name, "picture.raw"]).output().unwrap();
    assert_eq!(output.stdout, content);
}

/// A Windows that used fast startup has written files that only its journal contains.
#[test]
fn ntfs_with_unclean_journal_counts_as_used() {
    if lacks(&["mkntfs"]) {
        return;
    }
    let folder = Folder::new("ntfs-journal");
    let image = folder.path("image");
    File::create(&image).unwrap().set_len(64 << 20).unwrap();
    run("mkntfs", &["-q", "-F", "-Q", image.to_str().unwrap()]);
    let mut bytes = fs::read(&image).unwrap();
    assert_eq!(usage(&bytes[..], 64 << 20).unwrap().parts[0].kind, PartKind::Ntfs);
    // The empty journal is the longest run of ones.
    let at = bytes.chunks(512).position(|chunk| chunk.iter().all(|byte| *byte == 0xff)).unwrap();
    bytes[at * 512..at * 512 + 4].copy_from_slice(b"RSTR");
    let usage = usage(&bytes[..], 64 << 20).unwrap();
    assert_eq!(usage.parts[0].kind, PartKind::Opaque(OpaqueReason::Unclean));
    assert_eq!(usage.used, Ranges::of(0..64 << 20));
}

/// ZFS wipes neither the superblock nor the bitmaps of an earlier file system.
#[test]
fn partition_with_two_signatures_counts_as_used() {
    if lacks(&["mke2fs"]) {
        return;
    }
    let folder = Folder::new("marks");
    let image = image(&folder, 32 << 20, EXT[0]);
    let mut bytes = fs::read(image).unwrap();
    bytes[512..520].copy_from_slice(b"LABELONE");
    bytes[536..544].copy_from_slice(b"LVM2 001");
    let usage = usage(&bytes[..], 32 << 20).unwrap();
    assert_eq!(usage.parts[0].kind, PartKind::Opaque(OpaqueReason::Unknown));
    assert_eq!(usage.used, Ranges::of(0..32 << 20));
}

/// Returns an empty image of that size.
fn blank(folder: &Folder, bytes: u64) -> String {
    let image = folder.path("image");
    File::create(&image).unwrap().set_len(bytes).unwrap();
    image.to_str().unwrap().to_owned()
}

/// Checks that two trees of files are the same.
fn assert_same_tree(one: &Path, other: &Path) {
    run("diff", &["-r", one.to_str().unwrap(), other.to_str().unwrap()]);
}

#[test]
fn r45_fat_files_survive_overwriting_of_free_bytes() {
    if lacks(&["mkfs.vfat", "fsck.vfat", "mcopy", "mdel"]) {
        return;
    }
    let kinds: [(u64, &[&str]); 4] =
        [(8, &["-F", "12"]), (64, &["-F", "16"]), (64, &["-F", "32", "-s", "1"]), (640, &[])];
    for (at, (size, options)) in kinds.into_iter().enumerate() {
        let folder = Folder::new(&format!("fat-{at}"));
        let image = blank(&folder, size << 20);
        run("mkfs.vfat", &[options, &[&image]].concat());
        let tree = tree(&folder).join("a");
        fs::remove_file(tree.join("sparse")).unwrap();
        let from = tree.join("deep");
        run("mcopy", &["-s", "-i", &image, from.to_str().unwrap(), "::deep"]);
        // A hole among the used clusters.
        run("mdel", &["-i", &image, "::deep/file-4"]);
        fs::remove_file(from.join("file-4")).unwrap();
        let usage = usage(&File::open(&image).unwrap(), size << 20).unwrap();
        assert_eq!(usage.parts[0].kind, PartKind::Fat, "{options:?}");
        assert!(scorched(Path::new(&image), &usage.used) > 3 << 20, "{options:?}");
        run("fsck.vfat", &["-n", &image]);
        let back = folder.path("back");
        run("mcopy", &["-s", "-i", &image, "::deep", back.to_str().unwrap()]);
        assert_same_tree(&from, &back);
    }
}

#[test]
fn fat_in_use_counts_as_used() {
    if lacks(&["mkfs.vfat"]) {
        return;
    }
    // The byte that Linux sets, and the entry of the table that Windows changes.
    for (options, place, value) in
        [("16", 37, 1), ("16", 4 * 512 + 3, 0x7f), ("32", 65, 1), ("32", 32 * 512 + 7, 0x07)]
    {
        let folder = Folder::new(&format!("fat-dirty-{options}-{place}"));
        let image = blank(&folder, 64 << 20);
        run("mkfs.vfat", &["-F", options, &image]);
        let file = File::options().read(true).write(true).open(&image).unwrap();
        assert_eq!(usage(&file, 64 << 20).unwrap().parts[0].kind, PartKind::Fat);
        file.write_all_at(&[value], place).unwrap();
        let usage = usage(&file, 64 << 20).unwrap();
        assert_eq!(usage.parts[0].kind, PartKind::Opaque(OpaqueReason::Unclean), "{place}");
        assert_eq!(usage.used, Ranges::of(0..64 << 20));
    }
}

/// Writes an MBR with one partition into a sector, and leaves the rest of it.
fn write_table(file: &File, start: u64) {
    let mut table = [0; 66];
    table[4] = 0x83;
    table[8..12].copy_from_slice(&2048_u32.to_le_bytes());
    table[12..16].copy_from_slice(&2048_u32.to_le_bytes());
    table[64..].copy_from_slice(&[0x55, 0xaa]);
    file.write_all_at(&table, start + 446).unwrap();
}

/// Tools for partitions leave the first bytes of a disk as they are, with what was there before.
#[test]
fn mbr_over_a_file_system_counts_as_used() {
    let makers: [(&str, &[&str]); 4] = [
        ("mkfs.vfat", &["-F", "16"]),
        ("mkfs.exfat", &[]),
        ("mkntfs", &["-q", "-F", "-Q"]),
        ("mke2fs", &["-q", "-F"]),
    ];
    for (program, options) in makers.into_iter().filter(|(program, _)| !lacks(&[program])) {
        let folder = Folder::new(&format!("mbr-{program}"));
        let image = blank(&folder, 64 << 20);
        run(program, &[options, &[&image]].concat());
        let file = File::options().read(true).write(true).open(&image).unwrap();
        let free = |file: &File| (64 << 20) - usage(file, 64 << 20).unwrap().used.bytes();
        assert!(free(&file) > 8 << 20, "{program}");
        write_table(&file, 0);
        let whole = usage(&file, 64 << 20).unwrap();
        let in_partition = whole.used.within(1 << 20..2 << 20).bytes();
        assert_eq!((free(&file), in_partition), (0, 1 << 20), "{program}");
    }
}

/// A partition that was given to a virtual machine as a disk.
#[test]
fn file_system_under_partitions_counts_as_used() {
    if lacks(&["mkfs.vfat"]) {
        return;
    }
    let folder = Folder::new("nested");
    let image = blank(&folder, 64 << 20);
    run("mkfs.vfat", &["-F", "16", &image]);
    let inner = fs::read(&image).unwrap();
    let whole = folder.path("whole");
    let file = File::options().read(true).write(true).create_new(true).open(&whole).unwrap();
    file.set_len(66 << 20).unwrap();
    file.write_all_at(&inner, 1 << 20).unwrap();
    let mut table = [0; 66];
    table[4] = 0x0c;
    table[8..12].copy_from_slice(&2048_u32.to_le_bytes());
    table[12..16].copy_from_slice(&(64_u32 << 11).to_le_bytes());
    table[64..].copy_from_slice(&[0x55, 0xaa]);
    file.write_all_at(&table, 446).unwrap();
    let kind = || usage(&file, 66 << 20).unwrap().parts[0].kind;
    assert_eq!(kind(), PartKind::Fat);
    write_table(&file, 1 << 20);
    assert_eq!(kind(), PartKind::Opaque(OpaqueReason::Unknown));
}

/// A map that does not have what is certainly used is not that of the file system.
#[test]
fn empty_map_of_clusters_counts_as_used() {
    let makers: [(&str, &[&str], u64, u64); 3] = [
        ("mkfs.vfat", &["-F", "12"], 8 << 20, 512),
        ("mkfs.vfat", &["-F", "32", "-s", "1"], 64 << 20, 32 * 512),
        ("mkfs.exfat", &[], 96 << 20, 0),
    ];
    for (at, (program, options, size, table)) in makers.into_iter().enumerate() {
        if lacks(&[program]) {
            continue;
        }
        let folder = Folder::new(&format!("empty-map-{at}"));
        let image = blank(&folder, size);
        run(program, &[options, &[&image]].concat());
        let file = File::options().read(true).write(true).open(&image).unwrap();
        let bytes = fs::read(&image).unwrap();
        let word = |at: usize| u64::from(u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()));
        // Of exFAT the whole heap of clusters but the root directory, in which the bitmap is named.
        let (first, len) = match program {
            "mkfs.exfat" => (word(88) * 512, (word(96) - 2) * (512 << bytes[109])),
            _ => (table, 4096),
        };
        file.write_all_at(&vec![0; len as usize], first).unwrap();
        let usage = usage(&file, size).unwrap();
        assert_eq!(usage.parts[0].kind, PartKind::Opaque(OpaqueReason::Damaged), "{at}");
    }
}

#[test]
fn r45_exfat_is_sound_after_overwriting_of_free_bytes() {
    if lacks(&["mkfs.exfat", "fsck.exfat"]) {
        return;
    }
    for options in [&[][..], &["-c", "4K"], &["-c", "1M"]] {
        let folder = Folder::new(&format!("exfat-{}", options.len() + options.concat().len()));
        let image = blank(&folder, 96 << 20);
        run("mkfs.exfat", &[options, &[&image]].concat());
        let file = File::options().read(true).write(true).open(&image).unwrap();
        let usage = usage(&file, 96 << 20).unwrap();
        assert_eq!(usage.parts[0].kind, PartKind::Exfat, "{options:?}");
        assert!(scorched(Path::new(&image), &usage.used) > 80 << 20, "{options:?}");
        run("fsck.exfat", &["-n", &image]);
        file.write_all_at(&[2], 106).unwrap();
        let usage = filesystem::usage(&file, 96 << 20).unwrap();
        assert_eq!(usage.parts[0].kind, PartKind::Opaque(OpaqueReason::Unclean));
    }
}

/// Makes an XFS with the files of a tree.
fn xfs(folder: &Folder, options: &[&str]) -> String {
    let image = blank(folder, 320 << 20);
    let deep = tree(folder).join("a/deep");
    let mut prototype = "/\n0 0\nd--755 0 0\n".to_owned();
    for entry in fs::read_dir(deep).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_file() {
            let (name, path) = (entry.file_name(), entry.path());
            let line = format!("{} ---644 0 0 {}\n", name.to_str().unwrap(), path.display());
            prototype.push_str(&line);
        }
    }
    let file = folder.path("prototype");
    fs::write(&file, prototype + "$\n").unwrap();
    run("mkfs.xfs", &[&["-q", "-p", file.to_str().unwrap()], options, &[&image]].concat());
    image
}

#[test]
fn r45_xfs_files_survive_overwriting_of_free_bytes() {
    if lacks(&["mkfs.xfs", "xfs_repair"]) {
        return;
    }
    let kinds: [&[&str]; 4] =
        [&[], &["-m", "crc=0"], &["-d", "agcount=3"], &["-b", "size=1024", "-l", "su=256k"]];
    for (at, options) in kinds.into_iter().enumerate() {
        let folder = Folder::new(&format!("xfs-{at}"));
        let image = xfs(&folder, options);
        let usage = usage(&File::open(&image).unwrap(), 320 << 20).unwrap();
        assert_eq!(usage.parts[0].kind, PartKind::Xfs, "{options:?}");
        let free = scorched(Path::new(&image), &usage.used);
        assert!(free > 200 << 20, "{options:?}: {free} bytes are free");
        run("xfs_repair", &["-n", "-f", &image]);
        let bytes = fs::read(&image).unwrap();
        for name in ["file-3", "file-4", "file-5"] {
            let content = fs::read(folder.path("tree/a/deep").join(name)).unwrap();
            let at = usize::try_from(find(&bytes, &content)).unwrap();
            assert!(bytes[at..].starts_with(&content), "{options:?}: {name}");
        }
    }
}

#[test]
fn xfs_that_was_not_unmounted_counts_as_used() {
    if lacks(&["mkfs.xfs"]) {
        return;
    }
    let folder = Folder::new("xfs-dirty");
    let bytes = fs::read(xfs(&folder, &[])).unwrap();
    let kind = |bytes: &[u8]| usage(bytes, 320 << 20).unwrap().parts[0].kind;
    assert_eq!(kind(&bytes), PartKind::Xfs);
    let record = bytes.chunks(512).position(|block| block.starts_with(&[0xfe, 0xed, 0xba, 0xbe]));
    let operation = (record.unwrap() + 1) * 512;
    let changes: [(usize, u8, OpaqueReason); 4] = [
        // The flag of the unmount, one more record, a feature of tomorrow, the sum of the free blocks.
        (operation + 9, 0, OpaqueReason::Unclean),
        (operation + 512 + 3, 1, OpaqueReason::Unclean),
        (216, 0x80, OpaqueReason::Feature),
        (512 + 55, bytes[512 + 55] ^ 1, OpaqueReason::Damaged),
    ];
    for (place, value, reason) in changes {
        let mut bytes = bytes.clone();
        bytes[place] = value;
        assert_eq!(kind(&bytes), PartKind::Opaque(reason), "{place}");
    }
}

/// Makes a btrfs of at least 144 MiB with the files of a tree.
fn btrfs(folder: &Folder, options: &[&str]) -> String {
    let image = blank(folder, 144 << 20);
    let tree = tree(folder).display().to_string();
    run("mkfs.btrfs", &[&["-q", "--rootdir", &tree], options, &[&image]].concat());
    image
}

#[test]
fn r45_btrfs_files_survive_overwriting_of_free_bytes() {
    if lacks(&["mkfs.btrfs", "btrfs"]) {
        return;
    }
    let kinds: [&[&str]; 5] = [
        &[],
        &["-m", "single"],
        &["-m", "dup", "-d", "dup"],
        &["--mixed"],
        &["-n", "4096", "-O", "^no-holes"],
    ];
    for (at, options) in kinds.into_iter().enumerate() {
        let folder = Folder::new(&format!("btrfs-{at}"));
        let image = btrfs(&folder, options);
        let file = File::open(&image).unwrap();
        // With two copies of the data it is made larger.
        let usage = usage(&file, file.metadata().unwrap().len()).unwrap();
        assert_eq!(usage.parts[0].kind, PartKind::Btrfs, "{options:?}");
        let free = scorched(Path::new(&image), &usage.used);
        assert!(free > 110 << 20, "{options:?}: {free} bytes are free");
        run("btrfs", &["check", "--readonly", "--check-data-csum", &image]);
        let back = folder.path("back").display().to_string();
        fs::create_dir(&back).unwrap();
        run("btrfs", &["restore", &image, &back]);
        run("diff", &["-r", &folder.path("tree").display().to_string(), &back]);
    }
}

#[test]
fn btrfs_that_is_not_understood_counts_as_used() {
    if lacks(&["mkfs.btrfs"]) {
        return;
    }
    let folder = Folder::new("btrfs-opaque");
    let mut bytes = fs::read(btrfs(&folder, &[])).unwrap();
    let kind = |bytes: &[u8]| usage(bytes, 144 << 20).unwrap().parts[0].kind;
    assert_eq!(kind(&bytes), PartKind::Btrfs);
    let superblock = 65536;
    let changes: [(usize, u8, OpaqueReason); 8] = [
        // A log, several devices, RAID5, a feature of tomorrow, an error, another checksum, fewer bytes in use, another
        // root.
        (0x60, 1, OpaqueReason::Unclean),
        (0x88, 2, OpaqueReason::Feature),
        (0xbc, 0x80, OpaqueReason::Feature),
        (0xb4 + 3, 1, OpaqueReason::Feature),
        (0x38, 5, OpaqueReason::Damaged),
        (0xc4, 1, OpaqueReason::Feature),
        (0x78 + 1, bytes[superblock + 0x79] ^ 0x10, OpaqueReason::Damaged),
        (0x50 + 2, bytes[superblock + 0x52] ^ 1, OpaqueReason::Damaged),
    ];
    for (at, value, reason) in changes {
        let before = bytes[superblock..superblock + 4096].to_vec();
        let block = &mut bytes[superblock..superblock + 4096];
        block[at] = value;
        let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &block[32..]);
        block[..4].copy_from_slice(&(sum as u32).to_le_bytes());
        assert_eq!(kind(&bytes), PartKind::Opaque(reason), "{at:#x}");
        bytes[superblock..superblock + 4096].copy_from_slice(&before);
    }
    bytes[superblock + 300] ^= 1;
    assert_eq!(kind(&bytes), PartKind::Opaque(OpaqueReason::Damaged), "the checksum");
}

/// The first copy of a block of the extent tree is an older one, with a right checksum, as after a lost write.
#[test]
fn stale_copy_of_a_btrfs_block_is_not_used() {
    if lacks(&["mkfs.btrfs"]) {
        return;
    }
    let folder = Folder::new("btrfs-stale");
    let mut bytes = fs::read(btrfs(&folder, &["-m", "dup"])).unwrap();
    let used = usage(&bytes[..], bytes.len() as u64).unwrap().used;
    let uuid = bytes[65536 + 32..65536 + 48].to_vec();
    let is_extent = |at: &usize| bytes[at + 32..at + 48] == uuid && bytes[at + 88] == 2;
    let places = (0..bytes.len()).step_by(16384).filter(is_extent);
    // Of the blocks that were written in the last transaction, the first.
    let newest = places.max_by_key(|at| (bytes[at + 80], std::cmp::Reverse(*at))).unwrap();
    let block = &mut bytes[newest..newest + 16384];
    // The last item and the transaction before.
    block[96] -= 1;
    block[80] -= 1;
    let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &block[32..]);
    block[..4].copy_from_slice(&(sum as u32).to_le_bytes());
    let usage = usage(&bytes[..], bytes.len() as u64).unwrap();
    assert_eq!((usage.parts[0].kind, usage.used), (PartKind::Btrfs, used));
}

/// Changes bytes of the superblock and of the trees, with checksums that are right.
#[test]
fn x44_crafted_btrfs_does_not_panic_or_loop() {
    if lacks(&["mkfs.btrfs"]) {
        return;
    }
    let folder = Folder::new("btrfs-crafted");
    let mut bytes = fs::read(btrfs(&folder, &[])).unwrap();
    let uuid = bytes[65536 + 32..65536 + 48].to_vec();
    let starts = (0..bytes.len()).step_by(16384);
    // The trees of roots, of extents and of chunks.
    let nodes =
        starts.filter(|at| bytes[at + 32..at + 48] == uuid && (1..4).contains(&bytes[at + 88]));
    let blocks = nodes.filter(|at| *at != 65536).map(|at| (at, 16384)).chain([(65536, 4096)]);
    let blocks: Vec<(usize, usize)> = blocks.collect();
    let (mut random, mut refused) = (testkit::Xorshift64::from_seed(11), 0);
    for _ in 0..500 {
        let (at, length) = blocks[random.below(blocks.len())];
        let before = bytes[at..at + length].to_vec();
        let block = &mut bytes[at..at + length];
        block[32 + random.below(900)] = random.below(256) as u8;
        let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &block[32..]);
        block[..4].copy_from_slice(&(sum as u32).to_le_bytes());
        let usage = usage(&bytes[..], 144 << 20).unwrap();
        assert!(usage.used.iter().all(|range| range.end <= 144 << 20));
        refused += usize::from(usage.parts[0].kind != PartKind::Btrfs);
        bytes[at..at + length].copy_from_slice(&before);
    }
    assert!(refused > 20, "{refused}");
}

/// The beginnings of file systems, and what the fuzzer has found.
#[test]
fn x21_corpus_of_usage_is_replayed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/usage");
    let mut count = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let mut bytes = fs::read(entry.unwrap().path()).unwrap();
        bytes.resize(64 << 20, 0);
        let usage = usage(&bytes[..], 64 << 20).unwrap();
        assert!(usage.used.iter().all(|range| range.end <= 64 << 20));
        owners(&bytes[..], 64 << 20, &Ranges::of(0..1 << 20)).unwrap();
        count += 1;
    }
    assert!(count >= 6);
}

#[test]
fn x44_crafted_volumes_do_not_panic_or_loop() {
    let makers: [(&str, &[&str]); 4] = [
        ("mkfs.vfat", &["-F", "12"]),
        ("mkfs.vfat", &["-F", "32"]),
        ("mkfs.exfat", &[]),
        ("mkfs.xfs", &["-q"]),
    ];
    for (at, (program, options)) in makers.into_iter().enumerate() {
        if lacks(&[program]) {
            continue;
        }
        let folder = Folder::new(&format!("crafted-{at}"));
        let size = if program == "mkfs.xfs" { 320 << 20 } else { 8 << 20 };
        let image = blank(&folder, size);
        run(program, &[options, &[&image]].concat());
        let file = File::options().read(true).write(true).open(&image).unwrap();
        let mut random = testkit::Xorshift64::from_seed(7);
        for _ in 0..200 {
            let (place, value) = (random.below(4096) as u64, random.below(256) as u8);
            let mut before = [0];
            file.read_exact_at(&mut before, place).unwrap();
            file.write_all_at(&[value], place).unwrap();
            let usage = usage(&file, size).unwrap();
            assert!(usage.used.iter().all(|range| range.end <= size));
            file.write_all_at(&before, place).unwrap();
        }
    }
}

#[test]
fn x44_crafted_ntfs_does_not_panic_or_loop() {
    if lacks(&["mkntfs"]) {
        return;
    }
    let folder = Folder::new("crafted-ntfs");
    let image = blank(&folder, 8 << 20);
    run("mkntfs", &["-q", "-F", "-Q", &image]);
    let mut bytes = fs::read(image).unwrap();
    let records: Vec<usize> =
        (0..bytes.len()).step_by(1024).filter(|at| bytes[*at..].starts_with(b"FILE")).collect();
    assert!(records.len() >= 16, "{records:?}");
    let mut random = testkit::Xorshift64::from_seed(9);
    for round in 0..600 {
        // The boot sector, or the attributes of a file record.
        let start = if round % 8 == 0 { 0 } else { records[random.below(records.len())] };
        let range = start..start + if start == 0 { 512 } else { 1024 };
        let before = bytes[range.clone()].to_vec();
        for _ in 0..1 + round % 4 {
            bytes[range.start + random.below(range.len())] = random.below(256) as u8;
        }
        let usage = usage(&bytes[..], bytes.len() as u64).unwrap();
        assert!(usage.used.iter().all(|range| range.end <= bytes.len() as u64));
        owners(&bytes[..], bytes.len() as u64, &Ranges::of(0..1 << 20)).unwrap();
        bytes[range].copy_from_slice(&before);
    }
}

fn find(whole: &[u8], part: &[u8]) -> u64 {
    whole.chunks(512).position(|chunk| chunk == &part[..512]).unwrap() as u64 * 512
}

#[test]
fn x44_crafted_bytes_do_not_panic_or_loop() {
    if lacks(&["mke2fs"]) {
        return;
    }
    let folder = Folder::new("crafted");
    let image = image(&folder, 8 << 20, &["-t", "ext4", "-b", "1024"]);
    let sound = fs::read(image).unwrap();
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..150 {
        let mut bytes = sound.clone();
        for _ in 0..8 {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            // The offsets of the superblock, the descriptors, the first inodes and directories.
            let at = 1024 + usize::try_from(seed >> 33).unwrap() % 600_000;
            bytes[at] = (seed >> 20) as u8;
        }
        let usage = usage(&bytes[..], bytes.len() as u64).unwrap();
        assert!(usage.used.iter().all(|range| range.end <= bytes.len() as u64));
        owners(&bytes[..], bytes.len() as u64, &Ranges::of(0..8 << 20)).unwrap();
    }
}
