//! Detects compressed streams and virtual disk formats by the first and last bytes of a file.

use std::fmt;

/// Bytes of the start of a file that are needed.
pub const HEAD: usize = 512;
/// Bytes of the end of a file that are needed.
pub const TAIL: usize = 512;

/// Container format of a disk image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // The names are those of the formats.
pub enum Container {
    Gzip,
    Xz,
    Zstd,
    Bzip2,
    Lz4,
    Qcow2,
    Vmdk,
    Vdi,
    Vhd,
    Vhdx,
    Tar,
}

const ALL: [Container; 11] = [
    Container::Gzip,
    Container::Xz,
    Container::Zstd,
    Container::Bzip2,
    Container::Lz4,
    Container::Qcow2,
    Container::Vmdk,
    Container::Vdi,
    Container::Vhd,
    Container::Vhdx,
    Container::Tar,
];

/// Offset of the signature of a VDI.
const VDI: usize = 64;
/// Offset of the signature of a tar archive (POSIX.1-2024, pax, ustar Interchange Format).
const USTAR: usize = 257;

impl Container {
    /// Detects the format of a file from its first [`HEAD`] bytes and its last [`TAIL`] bytes.
    /// Either may be shorter; a stream has no `tail`. Returns `None` for an unknown format.
    pub fn detect(head: &[u8], tail: &[u8]) -> Option<Self> {
        let has_magic =
            |at: usize, mark: &[u8]| head.get(at..).is_some_and(|rest| rest.starts_with(mark));
        let bzip2 = || {
            let block = has_magic(4, b"\x31\x41\x59\x26\x53\x59")
                || has_magic(4, b"\x17\x72\x45\x38\x50\x90");
            has_magic(0, b"BZh") && block
        };
        let found = |container: &Self| match container {
            Self::Gzip => has_magic(0, b"\x1f\x8b\x08"),
            Self::Xz => has_magic(0, b"\xfd7zXZ\0"),
            Self::Zstd => has_magic(0, b"\x28\xb5\x2f\xfd"),
            Self::Bzip2 => bzip2(),
            Self::Lz4 => has_magic(0, b"\x04\x22\x4d\x18"),
            Self::Qcow2 => has_magic(0, b"QFI\xfb"),
            Self::Vmdk => {
                has_magic(0, b"KDMV")
                    || has_magic(0, b"COWD")
                    || has_magic(0, b"# Disk DescriptorFile")
            }
            Self::Vdi => has_magic(VDI, b"\x7f\x10\xda\xbe"),
            Self::Vhd => has_magic(0, b"conectix") || tail.starts_with(b"conectix"),
            Self::Vhdx => has_magic(0, b"vhdxfile"),
            // As GNU tar writes it, and as POSIX has it.
            Self::Tar => has_magic(USTAR, b"ustar\x20\x20\0") || has_magic(USTAR, b"ustar\x0000"),
        };
        ALL.into_iter().find(found)
    }

    /// The name of the format, as parsed by [`Container::from_name`].
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
            Self::Lz4 => "lz4",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "VMDK",
            Self::Vdi => "VDI",
            Self::Vhd => "VHD",
            Self::Vhdx => "VHDX",
            Self::Tar => "tar",
        }
    }

    /// QEMU's name of the format, if it is one of virtual disks.
    pub fn qemu_name(self) -> Option<&'static str> {
        match self {
            Self::Qcow2 => Some("qcow2"),
            Self::Vmdk => Some("vmdk"),
            Self::Vdi => Some("vdi"),
            Self::Vhd => Some("vpc"),
            Self::Vhdx => Some("vhdx"),
            Self::Gzip | Self::Xz | Self::Zstd | Self::Bzip2 | Self::Lz4 | Self::Tar => None,
        }
    }

    /// The format with this name.
    pub fn from_name(word: &str) -> Option<Self> {
        ALL.into_iter().find(|container| container.name() == word)
    }

    /// Whether [`unpack`](crate::unpack()) or [`virtual_disk::open`](crate::virtual_disk::open) supports it.
    pub fn is_supported(self) -> bool {
        matches!(self, Self::Gzip | Self::Xz | Self::Zstd) || self.is_virtual_disk()
    }

    /// Whether it is the format of virtual disks.
    pub fn is_virtual_disk(self) -> bool {
        matches!(self, Self::Qcow2 | Self::Vmdk | Self::Vdi | Self::Vhd | Self::Vhdx)
    }

    /// Whether it can be read sequentially.
    pub fn is_stream(self) -> bool {
        matches!(self, Self::Gzip | Self::Xz | Self::Zstd | Self::Bzip2 | Self::Lz4)
    }

    /// A shell command that unpacks the file: to standard output for a stream, else to `disk.img`.
    pub fn unpack_command(self, path: &str) -> String {
        match self {
            Self::Gzip => format!("gzip -dc {path}"),
            Self::Xz => format!("xz -dc {path}"),
            Self::Zstd => format!("zstd -dc {path}"),
            Self::Bzip2 => format!("bzip2 -dc {path}"),
            Self::Lz4 => format!("lz4 -dc {path}"),
            Self::Tar => format!("tar -xf {path}"),
            _ => format!("qemu-img convert -O raw {path} disk.img"),
        }
    }
}

impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn r50_containers_are_detected_by_signature() {
        let at = |at: usize, mark: &[u8]| {
            let mut head = vec![0; HEAD];
            head[at..at + mark.len()].copy_from_slice(mark);
            Container::detect(&head, &[0; TAIL])
        };
        assert_eq!(at(0, b"\x1f\x8b\x08\x08"), Some(Container::Gzip));
        assert_eq!(at(0, b"BZh91AY&SY"), Some(Container::Bzip2));
        assert_eq!(at(0, b"BZh9 text"), None);
        assert_eq!(at(64, b"\x7f\x10\xda\xbe"), Some(Container::Vdi));
        assert_eq!(at(0, b"QFI\xfb"), Some(Container::Qcow2));
        assert_eq!(at(1, b"QFI\xfb"), None);
        assert_eq!(at(257, b"ustar\x0000"), Some(Container::Tar));
        assert_eq!(at(257, b"ustar fs"), None);
        assert_eq!(Container::detect(&[0; HEAD], b"conectix"), Some(Container::Vhd));
        assert_eq!(Container::detect(b"", b""), None);
        ALL.iter().for_each(|it| assert_eq!(Container::from_name(it.name()), Some(*it)));
    }
}
