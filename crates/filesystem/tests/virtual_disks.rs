//! Virtual disks made by QEMU, compared with what they were made from, and damaged ones.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test that cannot go on ends, and contents are any bytes"
)]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use filesystem::{BackingFile, Container, Qcow2Writer, virtual_disk};
use proptest::prelude::*;

#[path = "../../../fuzz/src/qcow2.rs"]
#[allow(unreachable_pub, reason = "public where the fuzzer is")]
mod fuzz;

fn has_qemu_img() -> bool {
    !programs::lacks("images of QEMU", &["qemu-img"])
}

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("qcow2-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn qemu_img(words: &[&str]) {
    let output = programs::command("qemu-img").args(words).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {said}");
}

/// Data with holes, in `blocks` blocks of 512 bytes.
fn raw(path: &str, blocks: u64, pieces: &[(u64, u64)]) {
    let file = File::create(path).unwrap();
    file.set_len(blocks * 512).unwrap();
    for (at, len) in pieces {
        let at = at % blocks;
        let len = usize::try_from((*len).min(blocks - at) * 512).unwrap();
        let bytes: Vec<u8> = (0..len).map(|it| (it * 7 / 3 + it / 512) as u8 | 1).collect();
        file.write_all_at(&bytes, at * 512).unwrap();
    }
}

fn unpacked(path: &str) -> io::Result<Vec<u8>> {
    unpacked_as(Container::Qcow2, path)
}

fn unpacked_as(format: Container, path: &str) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let disk = virtual_disk::open(format, &file, file.metadata()?.len())?;
    let mut bytes = Vec::new();
    disk.write_to(&file, &mut bytes)?;
    assert_eq!(bytes.len() as u64, disk.bytes());
    Ok(bytes)
}

/// Formats of QEMU with their options.
const OTHERS: [(Container, &str, &str); 8] = [
    (Container::Vhd, "vpc", "subformat=dynamic,force_size=on"),
    (Container::Vhd, "vpc", "subformat=fixed,force_size=on"),
    (Container::Vhdx, "vhdx", "subformat=dynamic"),
    (Container::Vhdx, "vhdx", "subformat=dynamic,block_size=1M"),
    (Container::Vmdk, "vmdk", "subformat=monolithicSparse"),
    (Container::Vmdk, "vmdk", "subformat=streamOptimized"),
    (Container::Vdi, "vdi", "static=off"),
    (Container::Vdi, "vdi", "static=on"),
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn r50_images_are_read_as_by_qemu(
        blocks in 1_u64..9000,
        pieces in prop::collection::vec((0_u64..9000, 1_u64..700), 0..6),
        cluster in prop::sample::select(vec!["512", "4k", "64k", "2M"]),
        version in prop::sample::select(vec!["compat=0.10", "compat=1.1", "compat=1.1,compression_type=zstd"]),
        compressed: bool,
    ) {
        if !has_qemu_img() {
            return Ok(());
        }
        let folder = Folder::new("law");
        let (image, qcow2) = (folder.path("raw"), folder.path("qcow2"));
        raw(&image, blocks, &pieces);
        let options = format!("{version},cluster_size={cluster}");
        let mut words = vec!["convert", "-f", "raw", "-O", "qcow2", "-o", &options];
        words.extend(compressed.then_some("-c"));
        words.extend([&image[..], &qcow2]);
        qemu_img(&words);
        prop_assert!(unpacked(&qcow2).unwrap() == fs::read(&image).unwrap());
    }

    #[test]
    fn r50_other_formats_are_read_as_by_qemu(
        blocks in 1_u64..9000,
        pieces in prop::collection::vec((0_u64..9000, 1_u64..700), 0..6),
        number in 0..OTHERS.len(),
    ) {
        if !has_qemu_img() {
            return Ok(());
        }
        let folder = Folder::new("others");
        let (image, made) = (folder.path("raw"), folder.path("made"));
        raw(&image, blocks, &pieces);
        let (format, name, options) = OTHERS[number];
        qemu_img(&["convert", "-f", "raw", "-O", name, "-o", options, &image, &made]);
        let head = fs::read(&made).unwrap();
        let tail = &head[head.len().saturating_sub(512)..];
        prop_assert_eq!(Container::detect(&head[..head.len().min(512)], tail), Some(format));
        let mut found = unpacked_as(format, &made).unwrap();
        // QEMU rounds the sizes of some formats up.
        let whole = fs::read(&image).unwrap();
        prop_assert!(found.len() >= whole.len() && found.len() < whole.len() + (1 << 20));
        prop_assert!(found.split_off(whole.len()).iter().all(|byte| *byte == 0));
        prop_assert!(found == whole);
    }

    #[test]
    fn damaged_images_of_other_formats_are_no_danger(
        number in 0..OTHERS.len(),
        // Tables are at the start, and those of a VHDX in the first 3 MiB.
        changes in prop::collection::vec((0_usize..4096, 0_u32..12, any::<u8>()), 1..8),
    ) {
        if !has_qemu_img() {
            return Ok(());
        }
        let mut bytes = made()[number].clone();
        for (at, scale, byte) in changes {
            let len = bytes.len();
            bytes[(at << scale) % len] = byte;
        }
        fuzz::run(&bytes);
    }

    #[test]
    fn damaged_images_neither_panic_nor_exhaust_memory(
        number in 0_usize..100,
        changes in prop::collection::vec((0_usize..8192, any::<u8>()), 0..8),
    ) {
        let inputs = corpus();
        let mut bytes = fs::read(&inputs[number % inputs.len()]).unwrap();
        for (at, byte) in changes {
            let len = bytes.len().max(1);
            if let Some(place) = bytes.get_mut(at % len) {
                *place = byte;
            }
        }
        fuzz::run(&bytes);
    }
}

/// An image of each of the other formats.
fn made() -> &'static [Vec<u8>] {
    static MADE: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    MADE.get_or_init(|| {
        let folder = Folder::new("made");
        let (image, made) = (folder.path("raw"), folder.path("made"));
        raw(&image, 3000, &[(0, 100), (1000, 700)]);
        let one = |(_, name, options): &(Container, &str, &str)| {
            qemu_img(&["convert", "-f", "raw", "-O", name, "-o", options, &image, &made]);
            fs::read(&made).unwrap()
        };
        OTHERS.iter().map(one).collect()
    })
}

fn corpus() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/qcow2");
    let mut inputs: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    inputs
}

#[test]
fn x21_corpus_of_qcow2_is_replayed() {
    let inputs = corpus();
    assert!(inputs.len() >= 6, "the corpus is there");
    inputs.iter().for_each(|input| fuzz::run(&fs::read(input).unwrap()));
}

#[test]
fn x58_external_and_encrypted_images_are_refused() {
    if !has_qemu_img() {
        return;
    }
    let folder = Folder::new("refused");
    let image = folder.path("a.qcow2");
    let error = || unpacked(&image).unwrap_err().to_string();
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", "extended_l2=on", &image, "1M"]);
    assert!(error().contains("features"), "{}", error());
    qemu_img(&["create", "-q", "-f", "qcow2", &image, "1M"]);
    let mut whole = fs::read(&image).unwrap();
    // crypt_method LUKS. qemu-img would benchmark this machine for a new key, which fails under
    // load.
    whole[32..36].copy_from_slice(&2u32.to_be_bytes());
    fs::write(&image, whole).unwrap();
    assert!(error().contains("encrypted"), "{}", error());
}

#[test]
fn x58_other_formats_with_other_files_are_refused() {
    if !has_qemu_img() {
        return;
    }
    let folder = Folder::new("parents");
    let (base, child) = (folder.path("base"), folder.path("child"));
    let error = |format| unpacked_as(format, &child).unwrap_err().to_string();
    qemu_img(&["create", "-q", "-f", "vmdk", &base, "1M"]);
    qemu_img(&["create", "-q", "-f", "vmdk", "-b", &base, "-F", "vmdk", &child]);
    assert!(error(Container::Vmdk).contains("backing file"), "{}", error(Container::Vmdk));
    for subformat in ["monolithicFlat", "twoGbMaxExtentSparse"] {
        fs::remove_file(&child).unwrap();
        let option = format!("subformat={subformat}");
        qemu_img(&["create", "-q", "-f", "vmdk", "-o", &option, &child, "1M"]);
        assert!(error(Container::Vmdk).contains("another file"), "{}", error(Container::Vmdk));
    }
    // A differencing image: the kind in the footer, with its checksum.
    qemu_img(&["create", "-q", "-f", "vpc", "-o", "subformat=fixed,force_size=on", &child, "1M"]);
    let mut image = fs::read(&child).unwrap();
    let footer = image.len() - 512;
    image[footer + 63] = 4;
    let sum = u32::from_be_bytes(image[footer + 64..footer + 68].try_into().unwrap()) - 2;
    image[footer + 64..footer + 68].copy_from_slice(&sum.to_be_bytes());
    fs::write(&child, image).unwrap();
    assert!(error(Container::Vhd).contains("backing file"), "{}", error(Container::Vhd));
}

#[test]
fn vhdx_with_a_log_is_refused() {
    if !has_qemu_img() {
        return;
    }
    let folder = Folder::new("log");
    let path = folder.path("a.vhdx");
    qemu_img(&["create", "-q", "-f", "vhdx", &path, "8M"]);
    let mut image = fs::read(&path).unwrap();
    for header in [64 << 10, 128 << 10] {
        image[header + 48] = 1;
        image[header + 4..header + 8].fill(0);
        let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &image[header..][..4096]);
        image[header + 4..header + 8].copy_from_slice(&(sum as u32).to_le_bytes());
    }
    fs::write(&path, image).unwrap();
    let error = unpacked_as(Container::Vhdx, &path).unwrap_err().to_string();
    assert!(error.contains("log"), "{error}");
}

#[test]
fn r50_truncated_image_fails_at_any_length() {
    if !has_qemu_img() {
        return;
    }
    let folder = Folder::new("cut");
    let (image, made) = (folder.path("raw"), folder.path("made"));
    raw(&image, 4096, &[(0, 4096)]);
    let qcow2 = [(Container::Qcow2, "qcow2", "compat=1.1")];
    for (format, name, options) in qcow2.iter().chain(&OTHERS) {
        qemu_img(&["convert", "-O", name, "-o", options, &image, &made]);
        let whole = fs::read(&made).unwrap();
        let last = whole.len() - 65_537;
        for cut in [0, 100, 70_000, whole.len() / 2, last] {
            // A block of a VHDX is larger than this disk.
            if cut == last && *format == Container::Vhdx {
                continue;
            }
            let mut file = File::create(&made).unwrap();
            file.write_all(&whole[..cut]).unwrap();
            assert!(unpacked_as(*format, &made).is_err(), "{name} {options} cut at {cut}");
        }
    }
}

/// Returns a file whose first and last block have this byte.
fn with_ends(path: &str, size: u64, byte: u8) -> File {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    let len = size.min(512);
    for at in [0, size - len] {
        file.write_all_at(&vec![byte; len as usize], at).unwrap();
    }
    file
}

/// Clusters are data, zeros or left out; sizes end inside a cluster, at its end, and in a second table.
#[test]
fn written_images_are_read_as_by_qemu() {
    const CLUSTER: u64 = Qcow2Writer::<File>::CLUSTER;
    if !has_qemu_img() {
        return;
    }
    let folder = Folder::new("written");
    let sizes = [512, CLUSTER, 5 * CLUSTER + 512, (1 << 29) + 7 * CLUSTER];
    for (size, has_backing) in sizes.into_iter().flat_map(|size| [(size, false), (size, true)]) {
        let path = |what: &str| folder.path(&format!("{size}-{has_backing}.{what}"));
        let (base, wanted, image) = (path("base"), path("wanted"), path("qcow2"));
        with_ends(&base, size, 9);
        let disk = with_ends(&wanted, size, if has_backing { 9 } else { 0 });
        let (file, backing) = (File::create(&image).unwrap(), has_backing.then_some(&*base));
        let mut writer =
            Qcow2Writer::new(file, size, backing.map(|path| BackingFile { path, format: "raw" }))
                .unwrap();
        let last = size.div_ceil(CLUSTER) - 1;
        let indices = BTreeSet::from([0, 1, 3, 8191, 8192, last]);
        for (number, index) in indices.into_iter().filter(|index| *index <= last).enumerate() {
            let len = CLUSTER.min(size - index * CLUSTER) as usize;
            // The second and the fifth read as zeros.
            let byte = if number % 3 == 1 { 0 } else { number as u8 + 1 };
            match byte {
                0 => writer.zeros(index).unwrap(),
                byte => writer.data(index, &vec![byte; len]).unwrap(),
            }
            disk.write_all_at(&vec![byte; len], index * CLUSTER).unwrap();
        }
        writer.finish().unwrap();
        qemu_img(&["check", "-q", "-f", "qcow2", &image]);
        qemu_img(&["compare", "-q", "-f", "qcow2", "-F", "raw", &image, &wanted]);
        match has_backing {
            true => assert!(unpacked(&image).is_err(), "other files are not opened"),
            false if size < 1 << 29 => {
                assert!(unpacked(&image).unwrap() == fs::read(&wanted).unwrap());
            }
            false => {}
        }
    }
}
