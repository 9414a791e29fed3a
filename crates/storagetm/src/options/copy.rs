//! The options of `storagetm copy`.

use std::ffi::OsStr;
use std::path::PathBuf;

use clap::Args;
use clap::builder::TypedValueParser;
use clap::error::ErrorKind;
use clap::{Arg, Command, Error};

use crate::options::Format;
use crate::options::rate::Rate;
use remote::uri::Locator;

/// The long description.
pub(super) const ABOUT: &str = "\
Copies a whole disk from or to another machine that lends it, or between disks and files of this machine. No kernel \
driver is needed on either side. Holes and zeros are not sent, the destination is read back and verified at the end, \
and an interrupted copy with a map can be resumed.

SRC and DST are each one of:
  a path                      a disk, a partition, or an image file of this machine
  nvme://HOST[:PORT]/NAME     a disk of storagetm or another NVMe/TCP target; NAME is its name or its NQN
  nbd://HOST[:PORT]/NAME      an export of an NBD server
  nbds://[USER@]HOST/NAME     the same with TLS: with ?tls-psk-file=FILE, ?tls-certificates=DIRECTORY, or the key
                              from storagetm pair
  nbd+unix:///NAME?socket=PATH
                              an NBD server on a local socket; nbds+unix as well
  iscsi://[USER%SECRET@]HOST[:PORT]/IQN[/LUN]
                              a disk of an iSCSI target, in the clear
  https://HOST/FILE           a file of a web server; http:// as well (only SRC)
  oci://REGISTRY/NAME:TAG     a disk image in a registry of container images, or NAME@sha256:DIGEST (only SRC)
  s3://BUCKET/KEY             an object of S3 or of a server with its interface; as DST, compressed if KEY ends with .zst
  -                           standard input or output
NAME may be omitted if there is only one disk.

A disk with bad sectors is read as GNU ddrescue does: first the good areas, in large blocks, then the edges of the \
bad areas, then their sectors, with retries. All readable data is copied, and the bad sectors are reported at the \
end.

A disk of this machine is written only if it is not in use. Before an existing disk or file is overwritten, its \
contents are shown, and its name must be typed; without a terminal, --yes (a disk, here or on another machine) or \
--force (a file or an object) is needed.";

const EXAMPLES: &str = "\
Examples:
  Copy the disk of an old laptop in target mode to the new one:
    storagetm copy nvme://192.168.1.5/sda /dev/nvme0n1
  Save it as an image; the copy can be resumed:
    storagetm copy --map laptop.map nvme://192.168.1.5/sda laptop.img
  Write an image to a writable disk of another machine:
    storagetm copy laptop.img nvme://192.168.1.5/sda
  Write a compressed image:
    storagetm copy system.img.xz /dev/sdb
  Write an image while it arrives, and check that it is the published one:
    storagetm copy --hash-file SHA256SUMS https://example.com/system.raw.xz /dev/sdb
  The same, and check that its publisher has signed the list:
    storagetm copy --hash-file SHA256SUMS --signature SHA256SUMS.gpg --keyring publisher.gpg \\
      https://example.com/system.raw.xz /dev/sdb
  Compress an image:
    storagetm copy nvme://192.168.1.5/sda - | zstd > laptop.img.zst
  Keep a disk as a compressed object of a bucket:
    storagetm copy /dev/sda s3://backups/laptop.raw.zst

Environment:
  HTTPS_PROXY, HTTP_PROXY, NO_PROXY
                              proxies for URLs
  REGISTRY_USERNAME, REGISTRY_PASSWORD
                              the user of registries
  AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_PROFILE, AWS_REGION, AWS_ENDPOINT_URL
                              the credentials and the server for s3://

Exit status:
  0  everything was copied, and verified unless --no-verify was given
  1  the copy failed; with --map it can be resumed
  2  the options are wrong
  3  everything readable was copied, but there were bad sectors
  4  verification failed: the destination differs from what was read
  5  the copy was refused, and nothing was written
  6  the copy was interrupted; with --map it can be resumed
  7  a peer violated its protocol
  8  the source does not have the expected hash; the destination has no partition table";

/// Parses the location of a disk. Its errors do not repeat what was typed as clap does: that may
/// contain a secret.
#[derive(Debug, Clone, Copy)]
struct LocatorParser;

impl TypedValueParser for LocatorParser {
    type Value = Locator;

    fn parse_ref(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
    ) -> Result<Locator, Error> {
        Locator::parse(value.to_owned()).map_err(|reason| {
            let arg = arg.map(ToString::to_string).unwrap_or_default();
            let message = format!("invalid value for '{arg}': {reason}");
            Error::raw(ErrorKind::ValueValidation, message).with_cmd(command)
        })
    }
}

/// When the destination is read and compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum VerifyTime {
    /// All of it after the last write
    After,
    /// While the copy goes on, and a sample once more after the last write: faster if the source is
    /// slower than the destination, but may miss what a later write destroys
    During,
}

/// The options of `storagetm copy`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Copy {
    /// Source
    #[arg(value_name = "SRC", value_parser = LocatorParser)]
    pub source: Locator,

    /// Destination
    #[arg(value_name = "DST", value_parser = LocatorParser)]
    pub destination: Locator,

    /// SHA-256 that SRC must have, as its publisher names it: of the file as it is, also if it is unpacked
    ///
    /// SRC is a file, a pipe or a URL. Until its hash is known, DST has no partition table.
    #[arg(long, value_name = "HEX", conflicts_with = "hash_file")]
    pub sha256: Option<String>,

    /// File or URL with the SHA-256 or SHA-512 that SRC must have, in the format of sha256sum (SHA256SUMS, CHECKSUM)
    ///
    /// The line with the file name of SRC counts.
    #[arg(long, value_name = "FILE")]
    pub hash_file: Option<String>,

    /// File or URL with the signature of the --hash-file: by OpenPGP (SHA256SUMS.gpg) or minisign (SHA256SUMS.minisig)
    ///
    /// Not needed if the --hash-file has its signature in it.
    #[arg(long, value_name = "FILE", requires = "hash_file", requires = "keyring")]
    pub signature: Option<String>,

    /// Keys of which one must have signed the --hash-file: a keyring for gpgv, or a public key of minisign
    ///
    /// The signature is verified by gpgv or minisign, which has to be installed.
    #[arg(long, value_name = "FILE", requires = "hash_file")]
    pub keyring: Option<PathBuf>,

    /// When the destination is read and compared with what was read from the source
    ///
    /// Only disks and files of this machine are read during the copy; others are read after it, and so is what is copied with
    /// --map from a URL that must have a hash.
    #[arg(
        long,
        value_name = "WHEN",
        value_enum,
        num_args = 0..=1,
        require_equals = true,
        default_value_t = VerifyTime::After,
        default_missing_value = "after",
        overrides_with = "no_verify"
    )]
    pub verify: VerifyTime,

    /// Do not verify the destination
    #[arg(long, overrides_with = "verify")]
    pub no_verify: bool,

    /// Do not show the BLAKE3 hash of the whole disk: faster if most of it is holes, or if the
    /// destination is a file in memory
    #[arg(long)]
    pub no_hash: bool,

    /// Record progress in FILE, in the format of GNU ddrescue, and resume from it if it exists
    ///
    /// Neither SRC nor DST is a pipe or an image that is packed or unpacked, and DST is not an object. The server of a URL as SRC
    /// must send parts of files and name their version (a strong ETag, or a Last-Modified of at least a minute ago); another
    /// version is refused, unless the hash that SRC must have decides.
    #[arg(long, value_name = "FILE")]
    pub map: Option<PathBuf>,

    /// Retries of bad sectors
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(..=1000))]
    pub retries: u32,

    /// Connections to each machine
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub connections: u8,

    /// Rate limit in bytes per second: 500K, 20M
    ///
    /// Verification of a local destination is not limited.
    #[arg(long, value_name = "RATE")]
    pub rate: Option<Rate>,

    /// Copy only allocated blocks of file systems; the rest becomes zeros
    ///
    /// Supports ext2, ext3, ext4, XFS, btrfs, NTFS, FAT and exFAT that were unmounted cleanly. Everything else on the disk is copied completely,
    /// including data outside of partitions.
    #[arg(long)]
    pub allocated: bool,

    /// Report the files that have bad sectors (ext2, ext3, ext4, NTFS)
    ///
    /// The copy is examined for that, by a process without privileges.
    #[arg(long)]
    pub files: bool,

    /// Write zeros instead of leaving holes in the destination
    #[arg(long)]
    pub no_sparse: bool,

    /// Copy SRC as it is, whatever its format
    ///
    /// By default a file or pipe in gzip, xz or zstd format and a file in qcow2, VHD, VHDX, VMDK or VDI format are
    /// unpacked, and those in bzip2 or lz4 format are refused. Disks and remote sources are always copied as they are. A
    /// DST whose name ends with .qcow2 becomes a qcow2 image by default, and with "raw" a copy byte by byte.
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub format: Option<Format>,

    /// Convert the partition table to the block size of DST
    ///
    /// A partition table for blocks of 512 bytes is not valid on a disk with blocks of 4096 bytes, and vice versa. The
    /// partitions stay where they are; file systems with blocks smaller than those of DST are reported, since they cannot
    /// be mounted there.
    #[arg(long)]
    pub convert_sectors: bool,

    /// Keep the partition table even if it is for another block size than that of DST
    #[arg(long, conflicts_with = "convert_sectors")]
    pub keep_sectors: bool,

    /// Move the backup GPT to the end of DST, if that is larger than SRC
    #[arg(long)]
    pub fix_gpt: bool,

    /// After the copy, expand the last partition to the end of DST
    ///
    /// This changes the partition table alone: its file system is to be expanded after that, by resize2fs, xfs_growfs, btrfs
    /// or the system itself. Moves the backup GPT, too. Swap space and the partitions of boot loaders and of Windows'
    /// recovery environment are not expanded.
    #[arg(long)]
    pub expand: bool,

    /// After the copy, give DST a new disk identifier and its partitions new ones
    ///
    /// Two disks with the same identifiers in one machine are mistaken for each other. What names partitions by PARTUUID
    /// (fstab, kernel command lines, boot entries) has to be changed on DST. The UUIDs of file systems, LVM, LUKS and RAID are
    /// kept.
    #[arg(long)]
    pub new_ids: bool,

    /// Overwrite an existing file or object DST without asking, or a disk DST whose contents cannot be examined
    #[arg(long)]
    pub force: bool,

    /// Overwrite the disk DST, here or on another machine, without asking
    #[arg(long)]
    pub yes: bool,

    /// Copy SRC even if it is in use on this machine; the data may be inconsistent
    ///
    /// DST is never written while it is in use.
    #[arg(long)]
    pub allow_in_use: bool,

    /// How long to try to reconnect to a machine, or to wait for one that is connected and does not answer
    ///
    /// One that is connected is given at least ten seconds: a disk that was asleep takes that long to start.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub patience: u64,

    /// Also wait for a server of a URL that does not answer at first, for as long as --patience says
    ///
    /// That of SRC, of DST, of the --hash-file and of the --signature, and those that they redirect to.
    #[arg(long)]
    pub wait: bool,

    /// Use header and data digests with nvme://, for unreliable networks
    #[arg(long)]
    pub digests: bool,

    /// File with the key for nvme://, nbd:// and nbds://: NVMeTLSkey-1:… or, for nvme://, DHHC-1:…; for iscsi://, the CHAP
    /// secret
    ///
    /// Default: the key from `storagetm pair` for that machine, if there is one. With a key there is no fallback to an
    /// unencrypted connection.
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,

    /// Connect without encryption to a machine that accepts none of the keys of this machine
    ///
    /// Anyone on the network path can then read and change everything. Not needed if this machine has no keys, nor on
    /// the loopback interface; without effect at an address at which a machine was paired.
    #[arg(long)]
    pub insecure: bool,

    /// Directory of the keys of paired machines
    ///
    /// Default: $STATE_DIRECTORY, else /var/lib/storagetm for root and ~/.local/state/storagetm for others.
    #[arg(long, value_name = "DIR")]
    pub keys: Option<PathBuf>,

    /// Host NQN; default: the content of /etc/nvme/hostnqn, or the one used at pairing
    #[arg(long, value_name = "NQN")]
    pub hostnqn: Option<String>,

    /// Time between two reports of progress, unless to a terminal
    ///
    /// Default: ten seconds; one second with --json.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub progress_interval: Option<u64>,

    /// Write JSON events, one per line
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod test {
    use super::VerifyTime;
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
    fn valid_lines_are_accepted() {
        for line in [
            "a b",
            "nvme://a/b c",
            "- b",
            "a -",
            "a b --no-verify --verify",
            "a b --verify=during",
            "a b --no-hash",
            "a b --convert-sectors --fix-gpt",
            "a b --format raw",
            "a b --map m --retries 0 --connections 16 --rate 20M --no-sparse --force --yes --patience 0",
            "--key k --keys d --digests --json --hostnqn nqn.2024-01.test:a nvme://a/b nbd://b/c",
        ] {
            assert!(copy(line).is_ok(), "{line}: {:?}", copy(line));
        }
    }

    #[test]
    fn secret_of_a_malformed_uri_is_not_repeated() {
        for line in ["iscsi://me%s3cret@host/ b", "a iscsi://me%s3/cret@host/iqn.a:b/c"] {
            let error = copy(line).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
            let message = error.to_string();
            assert!(message.contains("invalid value for '<"), "{message}");
            assert!(message.contains("me%SECRET@host"), "{message}");
            assert!(!message.contains("s3") && !message.contains("cret@"), "{message}");
        }
    }

    #[test]
    fn invalid_lines_fail_with_status_2() {
        for line in [
            "",
            "a",
            "a b c",
            "a nvme://",
            "ftp://a/b c",
            "a b --connections 0",
            "a b --rate fast",
            "a b --size 4",
            "a b --verify=before",
            "a b --verify during",
            "a b --keep-sectors --convert-sectors",
            "a b --keyring k",
            "a b --hash-file h --signature s",
            "a b --signature s --keyring k",
        ] {
            let error = copy(line).err().unwrap_or_else(|| panic!("{line}"));
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn last_verify_option_takes_precedence() {
        assert!(!copy("a b").unwrap().no_verify);
        assert!(copy("a b --verify --no-verify").unwrap().no_verify);
        assert!(!copy("a b --no-verify --verify").unwrap().no_verify);
        assert!(copy("a b --verify=during --no-verify").unwrap().no_verify);
    }

    #[test]
    fn destination_is_verified_after_unless_said_otherwise() {
        for (line, when) in [
            ("a b", VerifyTime::After),
            ("--verify a b", VerifyTime::After),
            ("--verify=after a b", VerifyTime::After),
            ("--verify=during a b", VerifyTime::During),
        ] {
            assert_eq!(copy(line).unwrap().verify, when, "{line}");
        }
    }
}
