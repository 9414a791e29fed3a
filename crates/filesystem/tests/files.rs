//! Reads the files of file systems that were made by their own programs, and compares each byte.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test that cannot go on ends, and contents are any bytes"
)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use filesystem::{Cursor, EntryKind, Extent, FileEntry, FileError, ReadAt, Refusal, Volume};

/// A directory that is removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("files-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Makes an image of this length.
    fn image(&self, bytes: u64) -> String {
        let image = self.path("image");
        File::create(&image).unwrap().set_len(bytes).unwrap();
        image.to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A mounted file system, unmounted when dropped.
struct Mount<'a>(&'a Path);

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        run("umount", &[self.0.to_str().unwrap()]);
    }
}

fn lacks(names: &[&str]) -> bool {
    programs::lacks("files of file systems", names)
}

fn run(program: &str, arguments: &[&str]) -> String {
    let mut command = programs::command(program);
    let output = command.args(arguments).env("LC_ALL", "C.UTF-8").output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// All files and directories by their path; directories with `None`.
type Tree = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// Reads a tree of the machine.
fn tree_at(folder: &Path) -> Tree {
    let (mut tree, mut todo) = (Tree::new(), vec![folder.to_owned()]);
    while let Some(at) = todo.pop() {
        for entry in fs::read_dir(at).unwrap().map(Result::unwrap) {
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            let name = path.strip_prefix(folder).unwrap().as_os_str().as_bytes().to_vec();
            if kind.is_dir() {
                tree.insert(name, None);
                todo.push(path);
            } else if kind.is_file() {
                tree.insert(name, Some(fs::read(path).unwrap()));
            }
        }
    }
    tree
}

/// Returns the entries of a directory, with their details.
fn list<R: ReadAt + ?Sized>(
    disk: &R,
    volume: &Volume,
    directory: &FileEntry,
) -> Result<Vec<FileEntry>, FileError> {
    let (mut all, mut from) = (Vec::new(), Some(Cursor::default()));
    let mut calls = 0;
    while let Some(at) = from {
        let (entries, next) = volume.entries(disk, directory, &at)?;
        for entry in entries {
            all.push(volume.details(disk, &entry));
        }
        from = next;
        calls += 1;
        assert!(calls < 1 << 20, "a directory does not end");
    }
    Ok(all)
}

/// Reads a tree of a volume.
fn tree_of<R: ReadAt + ?Sized>(disk: &R, volume: &Volume) -> Tree {
    let (mut tree, mut todo) = (Tree::new(), vec![(Vec::new(), volume.root())]);
    while let Some((path, directory)) = todo.pop() {
        for entry in list(disk, volume, &directory).unwrap() {
            let separator: &[u8] = if path.is_empty() { b"" } else { b"/" };
            let name = [&path, separator, &entry.name].concat();
            match entry.kind {
                EntryKind::Directory if entry.name != b"lost+found" => {
                    tree.insert(name.clone(), None);
                    todo.push((name, entry));
                }
                EntryKind::File => {
                    let file = volume.check(disk, &entry).unwrap();
                    let content = volume.read(disk, &file, 1 << 30).unwrap();
                    assert_eq!(content.len() as u64, file.bytes);
                    tree.insert(name, Some(content));
                }
                _ => {}
            }
        }
    }
    tree
}

/// Checks that a volume has exactly the files of a tree.
fn assert_same(found: &Tree, wanted: &Tree, what: &str) {
    let names = |tree: &Tree| tree.keys().cloned().collect::<Vec<_>>();
    let shown: Vec<_> =
        names(found).iter().map(|it| String::from_utf8_lossy(it).into_owned()).collect();
    assert!(names(found) == names(wanted), "{what}: {shown:?}");
    for (name, content) in wanted {
        assert!(found[name] == *content, "{what}: {} differs", String::from_utf8_lossy(name));
    }
}

fn open(image: &str) -> (File, Volume) {
    let file = File::open(image).unwrap();
    let bytes = file.metadata().unwrap().len();
    let volume = Volume::open(&file, &(0..bytes)).unwrap();
    (file, volume)
}

/// Makes files of many sizes, long names, a deep path, a directory with `count` files, and fragments; `is_posix`: also names that
/// Windows does not have, and holes.
fn fill(folder: &Path, is_posix: bool, count: u32) {
    let deep: PathBuf = (0..40).map(|level| format!("level {level}")).collect();
    fs::create_dir_all(folder.join(&deep)).unwrap();
    fs::write(folder.join(&deep).join("bottom"), "bottom").unwrap();
    let sizes = [0, 1, 100, 511, 512, 4096, 5000, 70_000, 3_000_000];
    for (at, size) in sizes.into_iter().enumerate() {
        let bytes: Vec<u8> = (0..size).map(|byte| (byte * 7 + byte / 256 + at) as u8).collect();
        fs::write(folder.join(format!("file-{at}.bin")), bytes).unwrap();
    }
    fs::write(folder.join("x".repeat(240)), "long").unwrap();
    fs::write(folder.join("Grüße € & 'x'.txt"), "unicode").unwrap();
    let many = folder.join("many");
    fs::create_dir(&many).unwrap();
    for at in 0..count {
        fs::write(many.join(format!("entry number {at}")), format!("{at}")).unwrap();
    }
    // Two files that grow in turns.
    let names = ["one", "other"].map(|name| File::create(folder.join(name)).unwrap());
    for at in 0..60_u64 {
        for (file, salt) in names.iter().zip([1, 2]) {
            file.write_all_at(&[at as u8 ^ salt; 10_000], at * 10_000).unwrap();
            // Some programs do not support it; then the files are fragmented or not.
            let _ = file.sync_all();
        }
    }
    if is_posix {
        fs::write(folder.join("new\nline\"\\<b>"), "hostile").unwrap();
        fs::write(folder.join(std::ffi::OsString::from_vec(b"latin \xe9".to_vec())), "latin")
            .unwrap();
        let sparse = File::create(folder.join("sparse")).unwrap();
        (0..40).for_each(|at| sparse.write_all_at(&[at + 1; 4096], u64::from(at) * 65536).unwrap());
        sparse.set_len(30 << 20).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", folder.join("link")).unwrap();
    }
}

#[test]
fn files_of_ext_are_read_byte_for_byte() {
    if lacks(&["mke2fs", "debugfs"]) {
        return;
    }
    let kinds: [&[&str]; 8] = [
        &["-t", "ext4"],
        &["-t", "ext4", "-b", "1024"],
        &["-t", "ext4", "-O", "^64bit,^metadata_csum,^flex_bg"],
        &["-t", "ext4", "-O", "bigalloc"],
        &["-t", "ext4", "-O", "inline_data", "-I", "512"],
        &["-t", "ext3"],
        &["-t", "ext2", "-b", "1024"],
        &["-t", "ext2", "-O", "^filetype", "-r", "1"],
    ];
    let folder = Folder::new("ext");
    fill(&folder.path("tree"), true, 2500);
    let tree = folder.path("tree").display().to_string();
    let all = tree_at(&folder.path("tree"));
    for options in kinds {
        let mut wanted = all.clone();
        let image = folder.image(128 << 20);
        run("mke2fs", &[&["-q", "-F", "-d", &tree], options, &[&image]].concat());
        let (disk, volume) = open(&image);
        assert!(volume.is_clean());
        let mut found = tree_of(&disk, &volume);
        if options.contains(&"inline_data") {
            // mke2fs 1.47 leaves out the hole at its end.
            let (one, other) =
                (found.remove(&b"sparse"[..]).flatten(), wanted.remove(&b"sparse"[..]).flatten());
            assert!(other.unwrap().starts_with(&one.unwrap()), "sparse differs");
        }
        assert_same(&found, &wanted, &format!("{options:?}"));
        let link = list(&disk, &volume, &volume.root()).unwrap();
        let link = link.into_iter().find(|entry| entry.name == b"link").unwrap();
        assert_eq!(link.kind, EntryKind::Link);
        let error = volume.check(&disk, &link).unwrap_err();
        assert!(matches!(error, FileError::Refused(Refusal::NoContents)), "{error}");
        // A file system that was not unmounted cleanly is read all the same.
        run("debugfs", &["-w", "-R", "ssv state 0", &image]);
        assert!(!open(&image).1.is_clean());
    }
}

/// What a directory with an index looks like, and preallocated blocks: made by debugfs.
#[test]
fn unwritten_and_encrypted_files_of_ext() {
    if lacks(&["mke2fs", "debugfs"]) {
        return;
    }
    let folder = Folder::new("ext-flags");
    let image = folder.image(32 << 20);
    run("mke2fs", &["-q", "-F", "-t", "ext4", &image]);
    let content = folder.path("content");
    fs::write(&content, vec![7; 20_000]).unwrap();
    for name in ["plain", "secret"] {
        run("debugfs", &["-w", "-R", &format!("write {} {name}", content.display()), &image]);
    }
    // Blocks that are allocated but not written read as zeros.
    run("debugfs", &["-w", "-R", "fallocate plain 10 19", &image]);
    run("debugfs", &["-w", "-R", "sif plain size 81920", &image]);
    run("debugfs", &["-w", "-R", "sif secret flags 0x80800", &image]);
    let (disk, volume) = open(&image);
    let plain = volume.find(&disk, &[b"plain"]).unwrap();
    let mut wanted = vec![7; 20_000];
    wanted.resize(81920, 0);
    assert!(volume.read(&disk, &plain, 1 << 20).unwrap() == wanted);
    let error = volume.find(&disk, &[b"secret"]).unwrap_err();
    assert!(matches!(error, FileError::Refused(Refusal::Encrypted)), "{error}");
    for path in [&[&b"none"[..]][..], &[b"plain", b"x"], &[b".."], &[b""], &[b"PLAIN"]] {
        assert!(volume.find(&disk, path).is_err(), "{path:?}");
    }
}

/// There it is an index of extended attributes of OS/2 and Windows NT.
#[test]
fn high_half_of_the_cluster_counts_on_fat32_only() {
    if lacks(&["mkfs.vfat", "mcopy"]) {
        return;
    }
    let folder = Folder::new("fat-high");
    let (image, text) = (folder.image(64 << 20), folder.path("text"));
    fs::write(&text, b"contents").unwrap();
    run("mkfs.vfat", &["-F", "16", &image]);
    run("mcopy", &["-i", &image, text.to_str().unwrap(), "::TEXT.TXT"]);
    let mut disk = fs::read(&image).unwrap();
    let entry = disk.windows(11).position(|name| name == b"TEXT    TXT").unwrap();
    disk[entry + 20] = 1;
    let volume = Volume::open(&disk[..], &(0..disk.len() as u64)).unwrap();
    let file = volume.find(&disk[..], &[b"TEXT.TXT"]).unwrap();
    assert_eq!(volume.read(&disk[..], &file, 100).unwrap(), b"contents");
}

#[test]
fn files_of_fat_are_read_byte_for_byte() {
    if lacks(&["mkfs.vfat", "mcopy", "mdel", "mmd"]) {
        return;
    }
    let kinds: [(u64, &[&str]); 4] = [
        (16, &["-F", "12", "-s", "16"]),
        (64, &["-F", "16"]),
        (96, &["-F", "32", "-s", "1"]),
        (640, &[]),
    ];
    let folder = Folder::new("fat");
    let tree = folder.path("tree");
    fill(&tree, false, 300);
    for (size, options) in kinds {
        let image = folder.image(size << 20);
        run("mkfs.vfat", &[options, &[&image]].concat());
        // Holes for the files to be fragmented.
        let (small, big) = (folder.path("small"), folder.path("big"));
        fs::write(&small, vec![1; 5000]).unwrap();
        fs::write(&big, (0..400_000_u32).map(|at| (at / 100) as u8).collect::<Vec<u8>>()).unwrap();
        run("mmd", &["-i", &image, "::holes"]);
        for at in 0..20 {
            run("mcopy", &["-i", &image, small.to_str().unwrap(), &format!("::holes/small {at}")]);
        }
        for at in (0..20).step_by(2) {
            run("mdel", &["-i", &image, &format!("::holes/small {at}")]);
        }
        run("mcopy", &["-i", &image, big.to_str().unwrap(), "::holes/BIG.TXT"]);
        let mut wanted = Tree::new();
        let mut entries: Vec<_> = fs::read_dir(&tree).unwrap().map(Result::unwrap).collect();
        // mtools does not extend a directory for a long name.
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.file_name().len()));
        for entry in entries {
            // The image of FAT12 has not so many clusters, and paths of mtools are limited.
            let name = entry.file_name().into_string().unwrap();
            if (name == "many" && size < 64) || name.starts_with("level") {
                continue;
            }
            run("mcopy", &["-s", "-i", &image, entry.path().to_str().unwrap(), "::"]);
            match entry.file_type().unwrap().is_dir() {
                true => wanted.extend(
                    tree_at(&entry.path())
                        .into_iter()
                        .map(|(path, it)| ([b"many/", &path[..]].concat(), it)),
                ),
                false => drop(
                    wanted.insert(name.clone().into_bytes(), Some(fs::read(entry.path()).unwrap())),
                ),
            }
            if name == "many" {
                wanted.insert(name.into_bytes(), None);
            }
        }
        wanted.insert(b"holes".to_vec(), None);
        wanted.insert(b"holes/BIG.TXT".to_vec(), Some(fs::read(&big).unwrap()));
        for at in (1..20).step_by(2) {
            wanted.insert(format!("holes/small {at}").into_bytes(), Some(vec![1; 5000]));
        }
        let (disk, volume) = open(&image);
        assert!(volume.is_clean());
        assert_same(&tree_of(&disk, &volume), &wanted, &format!("{options:?}"));
        let found = volume.find(&disk, &[b"HOLES", b"big.txt"]).unwrap();
        assert_eq!((&found.name[..], found.bytes), (&b"BIG.TXT"[..], 400_000));
        assert!(volume.find(&disk, &[b"holes", b"small 0"]).is_err(), "it was deleted");
    }
}

/// Mounts an image by a FUSE program; `None` if that is not possible here.
fn mounted<'a>(program: &str, disk: &str, at: &'a Path) -> Option<Mount<'a>> {
    fs::create_dir_all(at).unwrap();
    let output = programs::command(program).args([disk, at.to_str().unwrap()]).output().unwrap();
    if !output.status.success() {
        println!("skip {program}: {}", String::from_utf8_lossy(&output.stderr));
    }
    output.status.success().then_some(Mount(at))
}

#[test]
fn files_of_ntfs_are_read_byte_for_byte() {
    if lacks(&["mkntfs", "ntfs-3g", "fusermount3"]) {
        return;
    }
    for options in [&[][..], &["-c", "512"], &["-c", "65536"]] {
        let folder = Folder::new(&format!("ntfs-{}", options.concat()));
        let image = folder.image(256 << 20);
        run("mkntfs", &[&["-q", "-F", "-Q"], options, &[&image]].concat());
        let at = folder.path("mount");
        let Some(mount) = mounted("ntfs-3g", &image, &at) else { return };
        fill(&at, false, 2500);
        let sparse = File::create(at.join("sparse")).unwrap();
        (0..40)
            .for_each(|at| sparse.write_all_at(&[at + 1; 4096], u64::from(at) * 131_072).unwrap());
        sparse.set_len(30 << 20).unwrap();
        // So many fragments that the file takes several records.
        let names = ["a", "b"].map(|name| File::create(at.join(name)).unwrap());
        for turn in 0..600_u64 {
            for (file, salt) in names.iter().zip([1, 2]) {
                file.write_all_at(&[turn as u8 ^ salt; 4096], turn * 20_000).unwrap();
            }
        }
        drop((names, sparse));
        let wanted = tree_at(&at);
        drop(mount);
        let (disk, volume) = open(&image);
        assert_same(&tree_of(&disk, &volume), &wanted, &format!("{options:?}"));
        let found = volume.find(&disk, &[b"MANY", b"ENTRY number 7"]).unwrap();
        assert_eq!(volume.read(&disk, &found, 100).unwrap(), b"7");
    }
}

#[test]
fn compressed_files_of_ntfs_are_refused() {
    if lacks(&["mkntfs", "ntfs-3g", "fusermount3"]) {
        return;
    }
    let folder = Folder::new("ntfs-compressed");
    let image = folder.image(64 << 20);
    run("mkntfs", &["-q", "-F", &image, "-C"]);
    let at = folder.path("mount");
    let Some(mount) = mounted("ntfs-3g", &image, &at) else { return };
    fs::write(at.join("text"), "a text that repeats ".repeat(50_000)).unwrap();
    drop(mount);
    let (disk, volume) = open(&image);
    let error = volume.find(&disk, &[b"text"]).unwrap_err();
    assert!(matches!(error, FileError::Refused(Refusal::Compressed)), "{error}");
}

/// A loop device, detached when dropped, as soon as the program that has mounted it has ended.
struct Loop(String);

impl Drop for Loop {
    fn drop(&mut self) {
        for _ in 0..100 {
            if programs::command("losetup").args(["-d", &self.0]).output().unwrap().status.success()
            {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }
}

/// Links, files whose contents are elsewhere, and files that are in a cloud, too.
#[test]
fn reparse_points_of_ntfs_are_read_or_refused() {
    if lacks(&["mkntfs", "ntfs-3g", "fusermount3", "python3"]) {
        return;
    }
    let folder = Folder::new("ntfs-reparse");
    let image = folder.image(64 << 20);
    run("mkntfs", &["-q", "-F", "-Q", &image]);
    let at = folder.path("mount");
    let Some(mount) = mounted("ntfs-3g", &image, &at) else { return };
    let tags: [(&str, u32, u64); 5] = [
        ("link", 0xa000_000c, 0),
        ("packed", 0x8000_0017, 0),
        ("deduplicated", 0x8000_0013, 0),
        ("cloud", 0x9000_101a, 50_000),
        ("placeholder", 0x9000_701a, 1 << 20),
    ];
    for (name, tag, bytes) in tags {
        let path = at.join(name);
        match name {
            "cloud" => fs::write(&path, vec![9; bytes as usize]).unwrap(),
            _ => File::create(&path).unwrap().set_len(bytes).unwrap(),
        }
        // Where the names of a link are, and the names; of other tags anything.
        let data = match name {
            "link" => "0000020002000200010000007800".to_owned() + "7800",
            _ => "00".repeat(8),
        };
        let header = "struct.pack('<IHH', int(tag), len(data), 0)";
        let script = format!(
            "import os, struct; tag, data = {tag}, bytes.fromhex('{data}'); \
             os.setxattr({path:?}, 'system.ntfs_reparse_data', {header} + data)"
        );
        run("python3", &["-c", &script]);
    }
    drop(mount);
    let (disk, volume) = open(&image);
    let find = |name: &str| volume.find(&disk, &[name.as_bytes()]);
    let cloud = find("cloud").unwrap();
    assert!(volume.read(&disk, &cloud, 1 << 20).unwrap() == vec![9; 50_000]);
    let refused = |error| match error {
        FileError::Refused(refusal) => refusal,
        FileError::Io(error) => panic!("{error}"),
    };
    assert_eq!(refused(find("link").unwrap_err()), Refusal::NoContents);
    assert_eq!(refused(find("packed").unwrap_err()), Refusal::Elsewhere);
    assert_eq!(refused(find("deduplicated").unwrap_err()), Refusal::Elsewhere);
    let placeholder = find("placeholder").unwrap();
    let result = volume.read(&disk, &placeholder, 1 << 20).map(|content| content.len());
    assert_eq!(refused(result.unwrap_err()), Refusal::Elsewhere);
}

#[test]
fn files_of_exfat_are_read_byte_for_byte() {
    if lacks(&["mkfs.exfat", "mount.exfat-fuse", "losetup", "fusermount3"]) {
        return;
    }
    let kinds: [(u64, &[&str]); 3] =
        [(512 << 20, &[]), (512 << 20, &["-c", "512"]), (4 << 30, &["-c", "1M"])];
    for (size, options) in kinds {
        let folder = Folder::new(&format!("exfat-{}", options.concat()));
        let image = folder.image(size);
        run("mkfs.exfat", &[options, &[&image]].concat());
        let device = programs::command("losetup").args(["-f", "--show", &image]).output().unwrap();
        if !device.status.success() {
            println!("skip exFAT: {}", String::from_utf8_lossy(&device.stderr));
            return;
        }
        let device = Loop(String::from_utf8(device.stdout).unwrap().trim().to_owned());
        let at = folder.path("mount");
        let Some(mount) = mounted("mount.exfat-fuse", &device.0, &at) else { return };
        fill(&at, false, 2500);
        File::create(at.join("preallocated")).unwrap().set_len(1 << 20).unwrap();
        let wanted = tree_at(&at);
        drop(mount);
        drop(device);
        let (disk, volume) = open(&image);
        assert!(volume.is_clean());
        assert_same(&tree_of(&disk, &volume), &wanted, &format!("{options:?}"));
    }
}

#[path = "../../../fuzz/src/files.rs"]
#[allow(unreachable_pub, reason = "public where the fuzzer is")]
mod fuzzed;

/// The beginnings of small volumes, and what the fuzzer has found.
#[test]
fn x21_corpus_of_files_is_replayed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/files");
    let mut entries = 0;
    for input in fs::read_dir(folder).unwrap() {
        let path = input.unwrap().path();
        let count = fuzzed::run(&fs::read(&path).unwrap());
        println!("{}: {count}", path.display());
        entries += u32::from(count > 3);
    }
    assert!(entries >= 5, "only {entries} of the volumes have files");
}

/// Reads what can be read of a damaged volume. Returns how many files and directories that were.
fn read_all(disk: &[u8], bytes: u64) -> u32 {
    let Ok(volume) = Volume::open(disk, &(0..bytes)) else { return 0 };
    let (mut todo, mut count) = (vec![volume.root()], 0);
    while let Some(directory) = todo.pop().filter(|_| count < 5000) {
        let mut from = Some(Cursor::default());
        let mut calls = 0;
        while let Some((entries, next)) =
            from.and_then(|at| volume.entries(disk, &directory, &at).ok())
        {
            from = next;
            calls += 1;
            assert!(calls < 1 << 17, "a directory does not end");
            for entry in entries {
                count += 1;
                let Ok(entry) = volume.check(disk, &entry) else { continue };
                match entry.kind {
                    EntryKind::Directory if todo.len() < 100 => todo.push(entry),
                    EntryKind::File => read_extents(disk, &volume, &entry, bytes),
                    _ => {}
                }
            }
        }
    }
    count
}

/// Locates a file, and checks that all of it is on the disk.
fn read_extents(disk: &[u8], volume: &Volume, file: &FileEntry, bytes: u64) {
    let (mut at, mut calls) = (Cursor::default(), 0);
    while at.offset() < file.bytes && calls < 1000 {
        let Ok((extents, next)) = volume.extents(disk, file, &at) else { return };
        let len: u64 = extents.iter().map(Extent::bytes).sum();
        assert_eq!(at.offset() + len, next.offset());
        for extent in extents {
            if let Extent::Disk(range) = extent {
                assert!(range.start < range.end && range.end <= bytes, "{range:?}");
            }
        }
        (at, calls) = (next, calls + 1);
    }
}

/// Changes bytes of the metadata of a volume with some files.
fn crafted(image: &str, rounds: u32, is_metadata: impl Fn(&[u8]) -> bool) {
    let mut bytes = fs::read(image).unwrap();
    let len = bytes.len() as u64;
    let sound = read_all(&bytes, len);
    assert!(sound > 3, "{sound}");
    let places: Vec<usize> =
        (0..bytes.len()).step_by(512).filter(|at| is_metadata(&bytes[*at..at + 512])).collect();
    let (mut random, mut differ) = (testkit::Xorshift64::from_seed(17), 0);
    for round in 0..rounds {
        let at = places[random.below(places.len())];
        let before = bytes[at..at + 512].to_vec();
        for _ in 0..1 + round % 4 {
            bytes[at + random.below(512)] = random.below(256) as u8;
        }
        differ += u32::from(read_all(&bytes, len) != sound);
        bytes[at..at + 512].copy_from_slice(&before);
    }
    assert!(differ > 0, "no change had an effect");
}

#[test]
fn x44_crafted_directories_do_not_panic_or_loop() {
    let is_used = |sector: &[u8]| sector.iter().any(|byte| *byte != 0) && sector[..4] != [7; 4];
    let folder = Folder::new("crafted");
    let (small, tree) = (folder.path("small"), folder.path("tree"));
    fs::write(&small, vec![7; 9000]).unwrap();
    fs::create_dir_all(tree.join("a/b")).unwrap();
    for at in 0..20 {
        fs::copy(&small, tree.join(format!("a/b/a name that is long {at}"))).unwrap();
    }
    let tree = tree.to_str().unwrap();
    if !lacks(&["mke2fs"]) {
        for options in [["-t", "ext4"], ["-t", "ext2"]] {
            let image = folder.image(4 << 20);
            run("mke2fs", &[&["-q", "-F", "-d", tree], &options[..], &[&image]].concat());
            crafted(&image, 1500, is_used);
        }
    }
    if !lacks(&["mkfs.vfat", "mcopy"]) {
        for (size, width) in [(2 << 20, "12"), (36 << 20, "32")] {
            let image = folder.image(size);
            run("mkfs.vfat", &["-F", width, "-s", "1", &image]);
            run("mcopy", &["-s", "-i", &image, &format!("{tree}/a"), "::"]);
            crafted(&image, 1500, is_used);
        }
    }
    if !lacks(&["mkntfs", "ntfscp"]) {
        let image = folder.image(4 << 20);
        run("mkntfs", &["-q", "-F", "-Q", &image]);
        for at in 0..8 {
            run(
                "ntfscp",
                &["-q", &image, small.to_str().unwrap(), &format!("a name that is long {at}")],
            );
        }
        // Records, index blocks, and their other sectors, but for tables of letters.
        let is_record = |sector: &[u8]| {
            sector.starts_with(b"FILE")
                || sector.starts_with(b"INDX")
                || sector[3..].starts_with(b"NTFS")
        };
        crafted(&image, 3000, is_record);
    }
}
