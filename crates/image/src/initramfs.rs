//! Builds an initramfs with the program and the drivers, of two concatenated archives.
//!
//! The first one is not compressed as a whole, since each module in it is: modules that the machine
//! does not need are never decompressed. The second one is compressed and contains everything else.

use crate::architecture::Architecture;
use crate::cpio::Archive;
use crate::error::Error;
use linux::module::{Index, unpack};
use object::read::elf::ElfFile64;
use object::{Object, ObjectSection};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Compression level: slow to compress, as fast to decompress as any other.
const LEVEL: i32 = 19;
/// Mount points and directories for files.
const DIRECTORIES: &[&str] = &["dev", "etc", "proc", "run", "sys"];
/// Suffixes of firmware files, the uncompressed one first.
const FIRMWARE_SUFFIXES: &[&str] = &["", ".zst", ".xz"];

/// Contents of an initramfs.
#[derive(Debug)]
pub struct Contents<'a> {
    /// Modules of the kernel.
    pub index: &'a Index,
    /// Names of the selected modules.
    pub modules: &'a [String],
    /// Kernel release, which names the module directory.
    pub release: &'a str,
    /// The init program, stripped.
    pub program: &'a [u8],
    /// Firmware to include, if any.
    pub firmware: Option<Firmware<'a>>,
    /// Modification time of all files, in seconds since 1970. Fixed, so that the result is
    /// reproducible.
    pub time: u32,
}

/// Firmware files that drivers load.
#[derive(Debug, Clone, Copy)]
pub struct Firmware<'a> {
    /// The firmware directory, usually `/lib/firmware`.
    pub folder: &'a Path,
    /// Maximum size of a file, in bytes on disk; larger ones are left out.
    pub max_size: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Initramfs {
    /// The archives.
    pub bytes: Vec<u8>,
    /// Included firmware files, relative to the firmware directory.
    pub firmware: Vec<String>,
    /// Firmware files that exist and were left out because of their size.
    pub too_large: Vec<String>,
}

/// Builds an initramfs. Calls `progress` with the number of modules compressed so far, from several
/// threads.
///
/// # Errors
/// Fails if a file cannot be read or decompressed, or if the program is for another architecture than
/// the modules.
pub fn make(
    contents: &Contents<'_>,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<Initramfs, Error> {
    let modules = pack_all(contents, progress)?;
    let own = Architecture::of_elf(contents.program);
    if let Some(other) = modules.iter().find_map(|it| it.architecture).filter(|it| own != Some(*it))
    {
        return Err(Error::ForeignProgram(other));
    }
    let folder = format!("lib/modules/{}", contents.release);
    let mut first = Archive::new(contents.time);
    for module in &modules {
        first.file(&format!("{folder}/{}", module.file), &module.packed);
    }
    let mut rest = Archive::new(contents.time);
    add_base(&mut rest, contents.program);
    for (name, text) in depmod_files(contents, &modules) {
        rest.file(&format!("{folder}/{name}"), text.as_bytes());
    }
    let (firmware, too_large) = add_firmware(&mut rest, contents, &modules)?;
    let mut bytes = first.finish();
    bytes.extend(zstd::bulk::compress(&rest.finish(), LEVEL)?);
    Ok(Initramfs { bytes, firmware, too_large })
}

fn add_base(archive: &mut Archive, program: &[u8]) {
    for folder in DIRECTORIES {
        archive.directory(folder);
    }
    archive.world_writable_directory("tmp");
    archive.console("dev/console");
    archive.program("init", program);
}

/// A module as stored in the archive.
#[derive(Debug)]
struct Packed {
    name: String,
    architecture: Option<Architecture>,
    /// Path relative to the module directory, with its new suffix.
    file: String,
    packed: Vec<u8>,
    firmware: Vec<String>,
}

/// Compresses all modules with one thread per processor, in the order of their names.
fn pack_all(
    contents: &Contents<'_>,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<Vec<Packed>, Error> {
    let next = AtomicUsize::new(0);
    let done = AtomicUsize::new(0);
    let packed = Mutex::new(Vec::new());
    let work = || {
        while let Some(name) = contents.modules.get(next.fetch_add(1, Ordering::Relaxed)) {
            let module = pack(contents.index, name);
            packed.lock().unwrap_or_else(PoisonError::into_inner).push(module);
            progress(done.fetch_add(1, Ordering::Relaxed).saturating_add(1));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let packed = packed.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut packed = packed.into_iter().collect::<Result<Vec<_>, _>>()?;
    packed.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(packed)
}

fn pack(index: &Index, name: &str) -> Result<Packed, Error> {
    let file = index.file(name).unwrap_or_else(|| Path::new(name));
    let path = index.folder().join(file);
    let module_error = |error| Error::Module { path: path.clone(), error };
    let module = unpack(&path).map_err(module_error)?;
    Ok(Packed {
        name: name.to_owned(),
        architecture: Architecture::of_elf(&module),
        file: packed_name(file),
        packed: zstd::bulk::compress(&module, LEVEL)?,
        firmware: firmware_names(&module),
    })
}

/// Returns the file name of a compressed module: `…/nvme.ko.zst` for `…/nvme.ko.xz`. A module outside of the module directory is moved into
/// it.
fn packed_name(file: &Path) -> String {
    let file = file.to_string_lossy();
    let plain = file.find(".ko").and_then(|at| file.get(..at)).unwrap_or(&file);
    format!("{}.ko.zst", plain.trim_start_matches('/'))
}

/// The firmware files of a module: the `firmware=` entries of its section `.modinfo`.
fn firmware_names(module: &[u8]) -> Vec<String> {
    let file: Option<ElfFile64<'_>> = ElfFile64::parse(module).ok();
    let section = file.as_ref().and_then(|file| file.section_by_name(".modinfo")?.data().ok());
    let strings = section.unwrap_or_default().split(|&byte| byte == 0);
    let names =
        strings.filter_map(|string| std::str::from_utf8(string.strip_prefix(b"firmware=")?).ok());
    // Rejects names that leave the directory.
    let leaves = |name: &&str| name.starts_with('/') || name.split('/').any(|part| part == "..");
    names.filter(|name| !leaves(name)).map(str::to_owned).collect()
}

/// The files of `depmod`, reduced to the included modules.
fn depmod_files(contents: &Contents<'_>, modules: &[Packed]) -> [(&'static str, String); 4] {
    let index = contents.index;
    let included: BTreeSet<&str> = modules.iter().map(|module| module.name.as_str()).collect();
    [
        ("modules.dep", dependencies(index, modules)),
        ("modules.alias", aliases(index, &included)),
        ("modules.softdep", softdeps(index, &included)),
        (
            "modules.builtin",
            std::fs::read_to_string(index.folder().join("modules.builtin")).unwrap_or_default(),
        ),
    ]
}

fn dependencies(index: &Index, modules: &[Packed]) -> String {
    let mut text = String::new();
    for module in modules {
        let _ = write!(text, "{}:", module.file);
        for needed in index.needs(&module.name) {
            let found = modules.binary_search_by(|other| other.name.as_str().cmp(needed));
            if let Some(needed) = found.ok().and_then(|at| modules.get(at)) {
                let _ = write!(text, " {}", needed.file);
            }
        }
        text.push('\n');
    }
    text
}

fn aliases(index: &Index, included: &BTreeSet<&str>) -> String {
    let mut aliases: Vec<_> = index.aliases().filter(|(_, name)| included.contains(name)).collect();
    aliases.sort_unstable();
    aliases.iter().map(|(pattern, name)| format!("alias {pattern} {name}\n")).collect()
}

fn softdeps(index: &Index, included: &BTreeSet<&str>) -> String {
    let mut text = String::new();
    for name in included {
        let (before, after) = index.soft(name);
        if !before.is_empty() || !after.is_empty() {
            let _ = writeln!(
                text,
                "softdep {name} pre: {} post: {}",
                before.join(" "),
                after.join(" ")
            );
        }
    }
    text
}

/// Adds the firmware of the modules as far as it exists and is not too large, in its existing
/// compression. Returns what was added, and what is too large.
fn add_firmware(
    archive: &mut Archive,
    contents: &Contents<'_>,
    modules: &[Packed],
) -> io::Result<(Vec<String>, Vec<String>)> {
    let (mut added, mut too_large) = (Vec::new(), Vec::new());
    let Some(firmware) = contents.firmware else { return Ok((added, too_large)) };
    let names: BTreeSet<&str> =
        modules.iter().flat_map(|module| module.firmware.iter().map(String::as_str)).collect();
    for (path, bytes, name) in names.iter().filter_map(|name| firmware.find(name)) {
        if bytes > firmware.max_size {
            too_large.push(name);
            continue;
        }
        archive.file(&format!("lib/firmware/{name}"), &std::fs::read(path)?);
        added.push(name);
    }
    Ok((added, too_large))
}

impl Firmware<'_> {
    /// The file with this name, its size on disk, and its name with suffix.
    fn find(self, name: &str) -> Option<(PathBuf, u64, String)> {
        FIRMWARE_SUFFIXES.iter().find_map(|suffix| {
            let name = format!("{name}{suffix}");
            let path = self.folder.join(&name);
            let file = path.metadata().ok().filter(|file| file.is_file())?;
            Some((path, file.len(), name))
        })
    }
}

#[cfg(test)]
pub(crate) mod fake;

#[cfg(test)]
mod tests {
    use super::fake::{Modules, PROGRAM};
    use super::*;
    use crate::cpio::read::{Entry, entries};
    use crate::drivers::{Machine, select};

    fn make_initramfs(modules: &Modules, firmware: Option<Firmware<'_>>) -> Initramfs {
        let index = modules.index();
        let chosen = select(&index, Machine::Any(Architecture::X86_64));
        let contents = Contents {
            index: &index,
            modules: &chosen,
            release: "6.12.0-test",
            program: PROGRAM,
            firmware,
            time: 7,
        };
        make(&contents, &|_| ()).unwrap()
    }

    fn file<'a>(entries: &'a [Entry], path: &str) -> &'a [u8] {
        let found = entries.iter().find(|(name, _, _)| name == path);
        &found.unwrap_or_else(|| panic!("{path}")).2
    }

    #[test]
    fn compressed_modules_precede_the_program() {
        let initramfs = make_initramfs(&Modules::new(), None);
        let (first, rest) = entries(&initramfs.bytes);
        let nvme = file(&first, "lib/modules/6.12.0-test/kernel/drivers/nvme/host/nvme.ko.zst");
        assert!(zstd::decode_all(nvme).unwrap().starts_with(b"\x7fELF"));
        let rest = zstd::decode_all(rest).unwrap();
        let (rest, nothing) = entries(&rest);
        assert!(nothing.is_empty());
        assert_eq!(file(&rest, "init"), PROGRAM);
        for folder in ["dev", "proc", "sys", "run", "tmp", "dev/console"] {
            assert!(file(&rest, folder).is_empty());
        }
    }

    #[test]
    fn depmod_files_list_included_modules_only() {
        let initramfs = make_initramfs(&Modules::new(), None);
        let (_, rest) = entries(&initramfs.bytes);
        let rest = zstd::decode_all(rest).unwrap();
        let (rest, _) = entries(&rest);
        let folder = std::env::temp_dir().join(format!("storagetm-image-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        for name in ["modules.dep", "modules.alias", "modules.softdep", "modules.builtin"] {
            let text = file(&rest, &format!("lib/modules/6.12.0-test/{name}"));
            std::fs::write(folder.join(name), text).unwrap();
        }
        let index = Index::read(&folder).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(index.closure("nvme"), ["crc_t10", "nvme_core", "nvme"]);
        assert_eq!(index.closure("ahci"), ["sd_mod", "ahci"]);
        assert_eq!(index.matching("pci:nvme1"), ["nvme"]);
        assert!(index.matching("pci:gpu").is_empty() && index.is_builtin("virtio"));
        let file = index.file("nvme").unwrap();
        assert_eq!(file, Path::new("kernel/drivers/nvme/host/nvme.ko.zst"));
    }

    #[test]
    fn initramfs_is_reproducible() {
        let (one, two) = (Modules::new(), Modules::new());
        assert_eq!(make_initramfs(&one, None), make_initramfs(&two, None));
    }

    #[test]
    fn small_existing_firmware_is_included() {
        let modules = Modules::new();
        let folder = modules.firmware(&[("net/small.bin.xz", 10), ("net/large.bin", 1000)]);
        let initramfs = make_initramfs(&modules, Some(Firmware { folder: &folder, max_size: 100 }));
        assert_eq!(initramfs.firmware, ["net/small.bin.xz"]);
        assert_eq!(initramfs.too_large, ["net/large.bin"]);
        let all = make_initramfs(&modules, Some(Firmware { folder: &folder, max_size: 1000 }));
        assert_eq!(all.firmware, ["net/large.bin", "net/small.bin.xz"]);
        assert!(all.too_large.is_empty());
    }

    #[test]
    fn program_for_another_architecture_is_refused() {
        let modules = Modules::new();
        let mut program = PROGRAM.to_vec();
        program[18] = 183;
        let index = modules.index();
        let contents = Contents {
            index: &index,
            modules: &select(&index, Machine::Any(Architecture::X86_64)),
            release: "x",
            program: &program,
            firmware: None,
            time: 0,
        };
        let error = make(&contents, &|_| ()).unwrap_err();
        assert!(matches!(error, Error::ForeignProgram(Architecture::X86_64)), "{error}");
    }

    #[test]
    fn missing_module_is_named_in_the_error() {
        let modules = Modules::new();
        let index = modules.index();
        modules.remove("kernel/drivers/nvme/host/nvme.ko");
        let contents = Contents {
            index: &index,
            modules: &["nvme".to_owned()],
            release: "x",
            program: PROGRAM,
            firmware: None,
            time: 0,
        };
        let error = make(&contents, &|_| ()).unwrap_err().to_string();
        assert!(error.contains("kernel/drivers/nvme/host/nvme.ko cannot be read"), "{error}");
    }
}
