//! What a file is packed in, by its first and last bytes: compressed streams and formats of virtual disks.

use std::fmt;

/// Bytes of a file's start that are needed.
pub const HEAD: usize = 512;
/// Bytes of a file's end that are needed.
pub const TAIL: usize = 512;

/// What a file is packed in.
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
}

const ALL: [Container; 10] = [
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
];

/// Where the mark of a VDI is.
const VDI: usize = 64;

impl Container {
    /// The format of a file that begins with `head` ([`HEAD`] bytes, if it has so many) and ends with `tail` ([`TAIL`]
    /// bytes, which only a file has and a stream has not); nothing if it is none of these.
    pub fn recognise(head: &[u8], tail: &[u8]) -> Option<Self> {
        let marked =
            |at: usize, mark: &[u8]| head.get(at..).is_some_and(|rest| rest.starts_with(mark));
        let bzip2 = || {
            let block =
                marked(4, b"\x31\x41\x59\x26\x53\x59") || marked(4, b"\x17\x72\x45\x38\x50\x90");
            marked(0, b"BZh") && block
        };
        let found = |container: &Self| match container {
            Self::Gzip => marked(0, b"\x1f\x8b\x08"),
            Self::Xz => marked(0, b"\xfd7zXZ\0"),
            Self::Zstd => marked(0, b"\x28\xb5\x2f\xfd"),
            Self::Bzip2 => bzip2(),
            Self::Lz4 => marked(0, b"\x04\x22\x4d\x18"),
            Self::Qcow2 => marked(0, b"QFI\xfb"),
            Self::Vmdk => {
                marked(0, b"KDMV") || marked(0, b"COWD") || marked(0, b"# Disk DescriptorFile")
            }
            Self::Vdi => marked(VDI, b"\x7f\x10\xda\xbe"),
            Self::Vhd => marked(0, b"conectix") || tail.starts_with(b"conectix"),
            Self::Vhdx => marked(0, b"vhdxfile"),
        };
        ALL.into_iter().find(found)
    }

    /// The word for it, by which it is also found again ([`Container::named`]).
    pub fn word(self) -> &'static str {
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
        }
    }

    /// The format of that word.
    pub fn named(word: &str) -> Option<Self> {
        ALL.into_iter().find(|container| container.word() == word)
    }

    /// Whether [`unpack`](crate::unpack()) knows it.
    pub fn is_unpacked(self) -> bool {
        matches!(self, Self::Gzip | Self::Xz | Self::Zstd | Self::Qcow2)
    }

    /// Whether it can be read from its start to its end.
    pub fn is_stream(self) -> bool {
        matches!(self, Self::Gzip | Self::Xz | Self::Zstd | Self::Bzip2 | Self::Lz4)
    }

    /// The command that makes the disk itself of the file: standard output is the disk for a stream, `disk.img` else.
    pub fn unpacked_by(self, path: &str) -> String {
        match self {
            Self::Gzip => format!("gzip -dc {path}"),
            Self::Xz => format!("xz -dc {path}"),
            Self::Zstd => format!("zstd -dc {path}"),
            Self::Bzip2 => format!("bzip2 -dc {path}"),
            Self::Lz4 => format!("lz4 -dc {path}"),
            _ => format!("qemu-img convert -O raw {path} disk.img"),
        }
    }
}

impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn r50_containers_are_recognised_by_their_marks() {
        let at = |at: usize, mark: &[u8]| {
            let mut head = vec![0; HEAD];
            head[at..at + mark.len()].copy_from_slice(mark);
            Container::recognise(&head, &[0; TAIL])
        };
        assert_eq!(at(0, b"\x1f\x8b\x08\x08"), Some(Container::Gzip));
        assert_eq!(at(0, b"BZh91AY&SY"), Some(Container::Bzip2));
        assert_eq!(at(0, b"BZh9 text"), None);
        assert_eq!(at(64, b"\x7f\x10\xda\xbe"), Some(Container::Vdi));
        assert_eq!(at(0, b"QFI\xfb"), Some(Container::Qcow2));
        assert_eq!(at(1, b"QFI\xfb"), None);
        assert_eq!(Container::recognise(&[0; HEAD], b"conectix"), Some(Container::Vhd));
        assert_eq!(Container::recognise(b"", b""), None);
        ALL.iter().for_each(|it| assert_eq!(Container::named(it.word()), Some(*it)));
    }
}
