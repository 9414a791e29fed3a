//! The options of `storagetm copy`. They know no disk.

use std::path::PathBuf;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};

use crate::options::Format;
use crate::options::rate::Rate;
use remote::uri::Locator;

const ABOUT: &str = "\
Copies a whole disk: from another machine that lends it, to one, or between disks and files of this machine. Nothing \
of the kernel's is needed on either side. Holes and zeros are not sent, the destination is read back and compared at \
the end, and a copy that was broken off goes on from where it was if it was told to keep a map.

SRC and DST are each one of:
  a path                      a disk, a partition, or an image file of this machine
  nvme://HOST[:PORT]/NAME     a disk that storagetm or another NVMe/TCP target lends; NAME is its name or its NQN
  nbd://HOST[:PORT]/NAME      an export of an NBD server
  nbds://[USER@]HOST/NAME     the same, encrypted: by ?tls-psk-file=FILE, by ?tls-certificates=FOLDER, else by the key
                              that storagetm pair has left
  nbd+unix:///NAME?socket=PATH
                              an NBD server at a socket of this machine; nbds+unix as well
  -                           standard input or output
NAME may be left out where there is only one disk.

A disk with bad sectors is read as GNU ddrescue does: first all that is good, in large pieces, then the edges of the \
bad areas, then their sectors, which are tried again a few times. Its good parts are copied even so, and what was bad \
is said at the end.

A disk of this machine is written only if nothing uses it. What is on a disk or in a file that is there is shown, and it \
is overwritten only after its name was typed; where there is no terminal, only with --yes (a disk, here or on another \
machine) or --force (a file).";

const EXAMPLES: &str = "\
Examples:
  Move an old laptop's disk, which boots target mode, onto the new one's:
    storagetm copy nvme://192.168.1.5/sda /dev/nvme0n1
  Take an image of it, so that it can be gone on with after an interruption:
    storagetm copy --map laptop.map nvme://192.168.1.5/sda laptop.img
  Write an image onto a disk that another machine lends writable:
    storagetm copy laptop.img nvme://192.168.1.5/sda
  Write a compressed image, which is unpacked on the way:
    storagetm copy system.img.xz /dev/sdb
  Compress it on the way:
    storagetm copy nvme://192.168.1.5/sda - | zstd > laptop.img.zst

Exit status:
  0  all was copied, and verified unless --no-verify was given
  1  it could not go on; with --map it can be tried again
  2  the options are wrong
  3  all that could be read was copied, but there were bad sectors
  4  the destination does not hold what was read
  5  it was refused, and nothing was written
  6  it was interrupted; with --map it can be gone on with
  7  a peer violated its protocol";

/// The options of `storagetm copy`.
#[derive(Debug, Args)]
#[command(long_about = ABOUT, after_help = EXAMPLES)]
pub struct Copy {
    /// What is copied
    #[arg(value_name = "SRC", value_parser = OsStringValueParser::new().try_map(Locator::parse))]
    pub source: Locator,

    /// Where it is copied to
    #[arg(value_name = "DST", value_parser = OsStringValueParser::new().try_map(Locator::parse))]
    pub destination: Locator,

    /// Read the destination at the end and compare it with what was read from the source; this is the default
    #[arg(long, overrides_with = "no_verify")]
    pub verify: bool,

    /// Do not read the destination at the end
    #[arg(long, overrides_with = "verify")]
    pub no_verify: bool,

    /// Keep in FILE how far the copy is, in the format of GNU ddrescue, and go on from there if FILE is there
    #[arg(long, value_name = "FILE")]
    pub map: Option<PathBuf>,

    /// How often bad sectors are tried again
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(..=1000))]
    pub retries: u32,

    /// Connections to each machine
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub connections: u8,

    /// Copy no faster than so many bytes a second: 500K, 20M
    ///
    /// A destination on this machine is read back as fast as it goes.
    #[arg(long, value_name = "RATE")]
    pub rate: Option<Rate>,

    /// Copy only what file systems use; all else becomes zeros
    ///
    /// ext2, ext3, ext4 and NTFS are understood, if they were unmounted in order. Whatever else is on the disk is copied whole,
    /// and so is what lies outside of partitions.
    #[arg(long)]
    pub allocated: bool,

    /// Say at the end which files have bad sectors (ext2, ext3, ext4, NTFS)
    ///
    /// The copy is looked at for that, by a process without rights.
    #[arg(long)]
    pub files: bool,

    /// Write zeros, too, where the destination could have holes
    #[arg(long)]
    pub no_sparse: bool,

    /// Take SRC for the bytes of a disk, whatever it looks like
    ///
    /// Without this option a file or a pipe that is recognised as gzip, xz, zstd or qcow2 is unpacked, and one that is bzip2,
    /// lz4, VMDK, VDI, VHD or VHDX is refused. What disks and other machines bring is always taken as it is.
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub format: Option<Format>,

    /// Write the partition table for the block size of DST, if SRC has another one
    ///
    /// A disk with blocks of 512 bytes and one with blocks of 4096 do not read each other's partition tables. The partitions
    /// stay where they are; file systems whose own blocks are smaller than those of DST are named, since they cannot be
    /// mounted there.
    #[arg(long)]
    pub convert_sectors: bool,

    /// Copy byte for byte even if the partition table of SRC is for another block size than that of DST
    #[arg(long, conflicts_with = "convert_sectors")]
    pub keep_sectors: bool,

    /// Move the backup of a GUID partition table to the end of DST, if that is larger than SRC
    #[arg(long)]
    pub fix_gpt: bool,

    /// Overwrite the file DST, if it is there, without asking, or the disk DST if what is on it cannot be read
    #[arg(long)]
    pub force: bool,

    /// Overwrite the disk DST, here or on another machine, without asking
    #[arg(long)]
    pub yes: bool,

    /// Copy SRC even if this machine uses it; what is read may be half-written
    ///
    /// DST is never written while it is in use.
    #[arg(long)]
    pub allow_in_use: bool,

    /// How long to try to reach a machine again that was lost, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub patience: u64,

    /// Use header and data digests with nvme://, against faulty networks
    #[arg(long)]
    pub digests: bool,

    /// The key with which nvme://, nbd:// and nbds:// are secured, in a file: NVMeTLSkey-1:… or, for nvme://, DHHC-1:…
    ///
    /// Without this option the key that `storagetm pair` has left for that machine, if there is one. A connection that
    /// was to be secured is never made without it.
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,

    /// Speak in the clear with a machine that accepts none of the keys that this machine has
    ///
    /// Whoever is on the way can then read and change everything. Without a key for any machine, and on the loopback interface,
    /// it is done without this option.
    #[arg(long)]
    pub insecure: bool,

    /// Where the keys of storagetm pair are kept
    ///
    /// Without this option: $STATE_DIRECTORY, else /var/lib/storagetm for root and ~/.local/state/storagetm for others.
    #[arg(long, value_name = "DIR")]
    pub keys: Option<PathBuf>,

    /// The name under which this machine is let in, if not its usual one
    #[arg(long, value_name = "NQN")]
    pub hostnqn: Option<String>,

    /// Write what happens as JSON, one event a line
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod test {
    use crate::options::Task;
    use crate::options::parse;

    fn copy(line: &str) -> Result<super::Copy, clap::Error> {
        let words = format!("storagetm copy {line}");
        match parse(words.split_whitespace())?.task {
            Task::Copy(copy) => Ok(*copy),
            _ => unreachable!("the line says copy"),
        }
    }

    #[test]
    fn lines_that_are_right() {
        for line in [
            "a b",
            "nvme://a/b c",
            "- b",
            "a -",
            "a b --no-verify --verify",
            "a b --convert-sectors --fix-gpt",
            "a b --format raw",
            "a b --map m --retries 0 --connections 16 --rate 20M --no-sparse --force --yes --patience 0",
            "--key k --keys d --digests --json --hostnqn nqn.2024-01.test:a nvme://a/b nbd://b/c",
        ] {
            assert!(copy(line).is_ok(), "{line}: {:?}", copy(line));
        }
    }

    #[test]
    fn lines_that_are_wrong_end_with_status_2() {
        for line in [
            "",
            "a",
            "a b c",
            "a nvme://",
            "ftp://a/b c",
            "a b --connections 0",
            "a b --rate fast",
            "a b --size 4",
            "a b --keep-sectors --convert-sectors",
        ] {
            let error = copy(line).err().unwrap_or_else(|| panic!("{line}"));
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn the_last_word_on_verifying_counts() {
        assert!(!copy("a b").unwrap().no_verify);
        assert!(copy("a b --verify --no-verify").unwrap().no_verify);
        assert!(!copy("a b --no-verify --verify").unwrap().no_verify);
    }
}
