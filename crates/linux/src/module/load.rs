//! Loads modules into the kernel, each once, and decompresses those that the kernel cannot.

use super::Note;
use super::index::Index;
use super::refused::refused;
use super::settings::Settings;
use crate::tree::Tree;
use rustix::io::Errno;
use rustix::system::{finit_module, init_module};
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// The maximum size of a decompressed module: the largest driver of a distribution has 30 MiB with
/// its symbols.
const LONGEST: u64 = 256 << 20;
/// `MODULE_INIT_COMPRESSED_FILE` of `linux/module.h` (Linux 5.17).
const COMPRESSED: i32 = 4;

/// Loads modules. Can be used by several threads at once.
#[derive(Debug)]
pub(super) struct Loader {
    tree: Tree,
    pub(super) index: Index,
    settings: Settings,
    /// The suffix of the files that the kernel decompresses itself.
    unpacked_by_kernel: Option<&'static str>,
    begun: Mutex<HashMap<String, Arc<OnceLock<()>>>>,
}

impl Loader {
    pub(super) fn new(tree: Tree, index: Index, settings: Settings) -> Self {
        let unpacked_by_kernel = match tree.attribute("sys/module/compression").as_deref() {
            Some("xz") => Some("xz"),
            Some("zstd") => Some("zst"),
            Some("gzip") => Some("gz"),
            _ => None,
        };
        Self { tree, index, settings, unpacked_by_kernel, begun: Mutex::default() }
    }

    /// Loads a module and its dependencies, hard and soft.
    pub(super) fn load(&self, name: &str, note: &mut dyn FnMut(Note)) {
        for name in self.index.closure(name) {
            let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
            let once = Arc::clone(begun.entry(name.to_owned()).or_default());
            drop(begun);
            // A thread that needs a module which another one is loading blocks here.
            once.get_or_init(|| {
                if let Some(said) = self.load_alone(name) {
                    note(said);
                }
            });
        }
    }

    /// Returns `None` if there is nothing to do.
    fn load_alone(&self, name: &str) -> Option<Note> {
        let owned = name.to_owned();
        if self.tree.path("sys/module").join(name).exists() || self.settings.is_blacklisted(name) {
            return None;
        }
        if let Some(reason) = refused(name) {
            return Some(Note::Refused { name: owned, reason });
        }
        match self.give(name) {
            Ok(()) => Some(Note::Loaded(owned)),
            Err(error) if is_harmless(&error) => None,
            Err(error) => Some(Note::Failed { name: owned, error }),
        }
    }

    fn give(&self, name: &str) -> io::Result<()> {
        let file = self.index.file(name).ok_or(io::ErrorKind::NotFound)?;
        let path = self.index.folder().join(file);
        let parameters = CString::new(self.settings.parameters(name))?;
        let ending = ending(&path);
        if !is_packed(ending) || self.unpacked_by_kernel == Some(ending) {
            let flags = if is_packed(ending) { COMPRESSED } else { 0 };
            match finit_module(File::open(&path)?, &parameters, flags) {
                // The file system or a security policy does not let the kernel read the file
                // itself.
                Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => {}
                answer => return Ok(answer?),
            }
        }
        init(&unpack(&path)?, &parameters)
    }
}

fn init(image: &[u8], parameters: &CStr) -> io::Result<()> {
    Ok(init_module(image, parameters)?)
}

/// Already loaded, or its hardware does not exist.
fn is_harmless(error: &io::Error) -> bool {
    let number = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(number, Some(Errno::EXIST | Errno::NODEV))
}

fn ending(path: &Path) -> &str {
    path.extension().and_then(|ending| ending.to_str()).unwrap_or_default()
}

fn is_packed(ending: &str) -> bool {
    matches!(ending, "xz" | "zst" | "gz")
}

/// Reads a module or a firmware file, and decompresses it by its suffix (`.xz`, `.zst`, `.gz`).
///
/// # Errors
/// Fails if the file cannot be read or decompressed.
pub fn unpack(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    match ending(path) {
        "xz" => all(lzma_rust2::XzReader::new(io::BufReader::new(file), true)),
        "zst" => all(zstd::Decoder::new(file)?),
        "gz" => all(flate2::read::MultiGzDecoder::new(file)),
        _ => all(file),
    }
}

fn all(source: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(LONGEST).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::fake::Fake;
    use std::io::Write;

    const MODULE: &[u8] = b"\x7fELF not really a module";

    fn packed(ending: &str) -> Vec<u8> {
        match ending {
            "zst" => zstd::encode_all(MODULE, 3).unwrap(),
            "gz" => {
                let mut writer = flate2::write::GzEncoder::new(Vec::new(), Default::default());
                writer.write_all(MODULE).unwrap();
                writer.finish().unwrap()
            }
            // printf '\x7fELF not really a module' | xz --check=crc32
            "xz" => XZ.to_vec(),
            _ => MODULE.to_vec(),
        }
    }

    const XZ: &[u8] = &[
        0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x01, 0x69, 0x22, 0xde, 0x36, 0x02, 0x00, 0x21,
        0x01, 0x16, 0x00, 0x00, 0x00, 0x74, 0x2f, 0xe5, 0xa3, 0x01, 0x00, 0x17, 0x7f, 0x45, 0x4c,
        0x46, 0x20, 0x6e, 0x6f, 0x74, 0x20, 0x72, 0x65, 0x61, 0x6c, 0x6c, 0x79, 0x20, 0x61, 0x20,
        0x6d, 0x6f, 0x64, 0x75, 0x6c, 0x65, 0x00, 0xd3, 0x8a, 0xfa, 0x44, 0x00, 0x01, 0x2c, 0x18,
        0xd3, 0x46, 0xdb, 0x0a, 0x90, 0x42, 0x99, 0x0d, 0x01, 0x00, 0x00, 0x00, 0x00, 0x01, 0x59,
        0x5a,
    ];

    #[test]
    fn every_compression_is_supported() {
        let fake = Fake::new();
        for name in ["a.ko", "a.ko.gz", "a.ko.xz", "a.ko.zst"] {
            let path = fake.root.join(name);
            fake.file(name, packed(ending(&path)));
            assert_eq!(unpack(&path).unwrap(), MODULE, "{name}");
            let bytes = packed(ending(&path));
            fake.file(name, &bytes[..bytes.len() / 2]);
            assert!(unpack(&path).is_err() || name == "a.ko", "half of {name}");
        }
    }

    fn loader(fake: &Fake) -> Loader {
        fake.file(
            "m/modules.dep",
            "dm-mod.ko:\nhere.ko:\nbad.ko.zst: here.ko\nblack.ko:\ngone.ko:\n",
        );
        fake.file("m/bad.ko.zst", b"no zstd").file("m/here.ko", b"").file("sys/module/here/x", "");
        let settings = Settings::parse("modprobe.blacklist=black");
        Loader::new(fake.tree(), Index::read(fake.root.join("m")).unwrap(), settings)
    }

    #[test]
    fn failures_and_refusals_are_reported_once() {
        let fake = Fake::new();
        let loader = loader(&fake);
        let mut said = Vec::new();
        for name in ["dm-mod", "bad", "bad", "here", "black", "gone", "absent"] {
            loader.load(name, &mut |note| said.push(note));
        }
        let words: Vec<String> = said
            .iter()
            .map(|note| match note {
                Note::Loaded(name) => format!("loaded {name}"),
                Note::Refused { name, .. } => format!("refused {name}"),
                Note::Failed { name, .. } => format!("failed {name}"),
            })
            .collect();
        assert_eq!(words, ["refused dm_mod", "failed bad", "failed gone"]);
    }

    #[test]
    fn compression_of_the_kernel_is_read_from_sysfs() {
        let fake = Fake::new();
        assert_eq!(loader(&fake).unpacked_by_kernel, None);
        fake.file("sys/module/compression", "zstd\n");
        assert_eq!(loader(&fake).unpacked_by_kernel, Some("zst"));
    }
}
