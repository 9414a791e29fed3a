//! A module directory of a fake kernel, for tests.

use linux::module::Index;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

/// Contents of the fake program.
pub(crate) const PROGRAM: &[u8] =
    b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0 the rest of a program for x86-64, more than a header";

const DEP: &str = "\
kernel/drivers/nvme/host/nvme.ko: kernel/drivers/nvme/host/nvme-core.ko kernel/lib/crc-t10.ko
kernel/drivers/nvme/host/nvme-core.ko: kernel/lib/crc-t10.ko
kernel/drivers/nvme/host/nvme-tcp.ko: kernel/drivers/nvme/host/nvme-core.ko
kernel/lib/crc-t10.ko:
kernel/drivers/ata/ahci.ko:
kernel/drivers/ata/assembler.ko: kernel/drivers/md/md-mod.ko
kernel/drivers/scsi/sd_mod.ko:
kernel/drivers/scsi/raid_class.ko:
kernel/drivers/scsi/qla2xxx/qla2xxx.ko:
kernel/drivers/net/virtio_net.ko:
kernel/drivers/net/wireless/intel/iwlwifi.ko:
kernel/drivers/md/md-mod.ko:
kernel/drivers/md/raid1.ko: kernel/drivers/md/md-mod.ko
kernel/drivers/gpu/drm/i915.ko:
kernel/drivers/clk/clk-board.ko:
";

const ALIAS: &str = "alias pci:nvme* nvme\nalias pci:gpu* i915\nalias pci:raid* raid1\n";

/// The directory, removed when dropped.
#[derive(Debug)]
pub(crate) struct Modules {
    root: PathBuf,
}

impl Modules {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("storagetm-modules-{}-{number}", std::process::id());
        let modules = Self { root: std::env::temp_dir().join(name) };
        modules.file("modules.dep", DEP.as_bytes());
        modules.file("modules.alias", ALIAS.as_bytes());
        modules.file("modules.softdep", b"softdep ahci pre: sd-mod post: absent\n");
        modules.file("modules.builtin", b"kernel/drivers/virtio/virtio.ko\n");
        for line in DEP.lines() {
            let file = line.split(':').next().unwrap();
            modules.file(
                file,
                &module("license=GPL\0firmware=net/small.bin\0firmware=net/large.bin\0"),
            );
        }
        modules
    }

    pub(crate) fn index(&self) -> Index {
        Index::read(&self.root).unwrap()
    }

    pub(crate) fn remove(&self, file: &str) {
        fs::remove_file(self.root.join(file)).unwrap();
    }

    /// A directory of firmware files of these sizes.
    pub(crate) fn firmware(&self, files: &[(&str, usize)]) -> PathBuf {
        for (name, size) in files {
            self.file(&format!("firmware/{name}"), &vec![1; *size]);
        }
        self.root.join("firmware")
    }

    fn file(&self, name: &str, content: &[u8]) {
        let path = self.root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

impl Drop for Modules {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// A relocatable ELF file with only a section `.modinfo`.
fn module(modinfo: &str) -> Vec<u8> {
    const NAMES: &[u8] = b"\0.modinfo\0.shstrtab\0";
    let (info, names) = (64, 64 + modinfo.len());
    let table = (names + NAMES.len()).next_multiple_of(8);
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    // e_type ET_REL, e_machine EM_X86_64, e_version, e_entry, e_phoff, e_shoff, e_flags
    file.extend([1, 0, 62, 0, 1, 0, 0, 0]);
    file.extend([0; 16]);
    file.extend((table as u64).to_le_bytes());
    file.extend([0; 4]);
    // e_ehsize, e_phentsize, e_phnum, e_shentsize, e_shnum, e_shstrndx
    file.extend([64, 0, 0, 0, 0, 0, 64, 0, 3, 0, 2, 0]);
    file.extend(modinfo.as_bytes());
    file.extend(NAMES);
    file.resize(table, 0);
    file.extend([0; 64]);
    for (name, kind, offset, size) in
        [(1_u32, 1_u32, info, modinfo.len()), (10, 3, names, NAMES.len())]
    {
        file.extend(name.to_le_bytes());
        file.extend(kind.to_le_bytes());
        file.extend([0; 16]);
        file.extend((offset as u64).to_le_bytes());
        file.extend((size as u64).to_le_bytes());
        file.extend([0; 24]);
    }
    file
}
