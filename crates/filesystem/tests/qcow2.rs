//! qcow2 images made by QEMU, compared with QEMU's reading, and damaged images.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test that cannot go on ends, and contents are any bytes"
)]

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use filesystem::Qcow2;
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
    let file = File::open(path)?;
    let mut bytes = Vec::new();
    Qcow2::open(&file)?.write_to(&mut bytes)?;
    Ok(bytes)
}

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
fn r50_truncated_image_fails_at_any_length() {
    if !has_qemu_img() {
        return;
    }
    let folder = Folder::new("cut");
    let (image, qcow2) = (folder.path("raw"), folder.path("qcow2"));
    raw(&image, 4096, &[(0, 4096)]);
    qemu_img(&["convert", "-O", "qcow2", &image, &qcow2]);
    let whole = fs::read(&qcow2).unwrap();
    for cut in [0, 100, 70_000, whole.len() / 2, whole.len() - 65_537] {
        let mut file = File::create(&qcow2).unwrap();
        file.write_all(&whole[..cut]).unwrap();
        assert!(unpacked(&qcow2).is_err(), "cut at {cut}");
    }
}
