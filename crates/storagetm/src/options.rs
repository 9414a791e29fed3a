//! The options of the program: one table, from which parser, help, man pages and completions are made.
//! It knows no disk and no socket.

pub mod attach;
pub mod copy;
pub mod find;
pub mod host;
pub mod image;
pub mod key;
pub mod pair;
pub mod rate;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use attach::{Attach, Detach};
use daemon::lend::{DEMO, LendRequest};
use daemon::listen::{ListenOption, Protocol};
use daemon::size::Size;
use find::Find;
use host::Host;
use image::Image;
use key::Key;
use pair::Pair;

const ABOUT: &str = "\
storagetm makes disks of this machine attachable from another one over the network, by NVMe/TCP, \
with nothing but what every Linux distribution brings on the other side, and by NBD. It shows the \
exact line to type there.

Disks are lent read-only unless --writable says otherwise, and a disk that this machine uses \
itself is not lent.";

const EXAMPLES: &str = "\
Examples:
  storagetm list                             which disks are there, and which may be lent
  storagetm serve --demo                     lend a small built-in disk, to try it out
  storagetm serve /dev/sdb                   lend a disk read-only
  storagetm serve --writable disk.img        lend a disk image, and let hosts change it
  storagetm serve --all                      lend every disk that is not in use, as they come and go

Then type on the other machine the line that is shown, as root, for example:
  nvme connect-all -t tcp -a fe80::1 -s 4420 --host-iface eth0";

const USAGE: &str = "\
storagetm serve [OPTIONS] DISK...
       storagetm serve [OPTIONS] --all
       storagetm serve [OPTIONS] --demo[=SIZE]";

const SERVE_EXAMPLES: &str = "\
Examples:
  Try it out, with no disk and no rights needed:
    storagetm serve --demo
  Lend a disk and an image; hosts may change only the image:
    storagetm serve /dev/disk/by-id/usb-Example_123 --writable disk.img
  Be reachable from the whole network at one address, by machines that have a key or the code:
    storagetm serve --all --listen 192.168.1.5
  For a script: any free port, and one JSON event a line on standard output:
    storagetm serve --json --listen 127.0.0.1:0 disk.img
  For NBD clients of this machine alone, or as a server that the client starts and ends itself:
    storagetm serve --listen unix:/run/disk.sock disk.img
    nbdinfo -- [ storagetm serve disk.img ]

Exit status: 0 after SIGINT or SIGTERM, 1 if a disk cannot be lent or an address not be listened \
on, 2 if the options are wrong.";

const BOOT_EXAMPLES: &str = "\
It is the only program of the initramfs that `storagetm image` makes; the kernel starts it. It mounts \
nothing but what the kernel itself offers, loads the drivers of the hardware that is there, brings up \
the network, and lends every disk read-only. It writes to no disk.

On the kernel command line:
  storagetm.disk=PATH        lend this disk only; may be repeated
  storagetm.writable=PATH    lend this disk so that hosts can change it; may be repeated
  storagetm.protocol=NAME    speak only nvme, or only nbd
  storagetm.listen=ADDRESS   listen there, as --listen of `storagetm serve`
  storagetm.open             let in whoever comes, without a key and unencrypted, at every address
  storagetm.pair=no          show no code by which other machines are let in
  storagetm.machine_id=firmware|HEX
  ip=link-local|dhcp|...     as dracut.cmdline(7) has it; link-local addresses are always there";

const LIST_EXAMPLES: &str = "\
Examples:
  storagetm list
  storagetm list sda group/home
  storagetm list --json | jq -r '.[] | select(.lendable) | .path'";

/// Lends disks of this machine to others over NVMe/TCP and NBD.
#[derive(Debug, Parser)]
#[command(name = "storagetm", version, long_about = ABOUT, after_help = EXAMPLES)]
pub struct Options {
    /// What is to be done.
    #[command(subcommand)]
    pub task: Task,
}

/// What is to be done.
#[derive(Debug, Subcommand)]
pub enum Task {
    /// Lend disks until Ctrl-C
    #[command(after_help = SERVE_EXAMPLES)]
    Serve(Serve),
    /// Copy a disk: from another machine, to one, or on this one
    Copy(Box<copy::Copy>),
    /// List the disks of this machine, what is on them, and whether they may be lent
    #[command(after_help = LIST_EXAMPLES)]
    List(List),
    /// Be the first program of a machine that is booted only to lend its disks
    #[command(after_help = BOOT_EXAMPLES)]
    Boot(Boot),
    /// Make something that boots into target mode: an initramfs, an EFI program, or a USB stick
    Image(Image),
    /// Make, keep and hand over the keys by which other machines are let in
    Key(Key),
    /// Say which machines are let in, to which disks, and until when
    Host(Host),
    /// Be let in by another machine that lends disks, by the code on its screen
    Pair(Pair),
    /// Look for machines that lend disks on the networks that this one is on
    Find(Find),
    /// Have this machine's kernel attach disks that another one lends
    Attach(Attach),
    /// Have this machine's kernel let go of disks that were attached
    Detach(Detach),
    /// Keep what is on the terminal until a key is pressed
    Hold(Hold),
    /// Be the process that looks at what is on a disk; `storagetm copy` starts it
    #[command(hide = true)]
    Inspect,
    /// Be the process that unpacks a file; `storagetm copy` starts it
    #[command(hide = true)]
    Unpack {
        /// What it is packed in
        format: String,
    },
    /// Be the process that examines disks, which may not answer
    #[command(hide = true)]
    Examine,
    /// Be the process that flushes a disk, which may not answer
    #[command(hide = true)]
    Flush,
    /// Be the process that talks to hosts; `storagetm serve` starts it
    #[command(hide = true)]
    Worker,
    /// Be the process that speaks multicast DNS; `storagetm serve` and `storagetm find` start it
    #[command(hide = true)]
    Announcer,
}

/// The options of `storagetm serve`.
#[derive(Debug, Args)]
#[command(
    group = clap::ArgGroup::new("what").required(true).multiple(true),
    override_usage = USAGE
)]
pub struct Serve {
    /// Disks, partitions or disk images to lend read-only, by path or name: /dev/sda, sda, GROUP/VOLUME
    #[arg(value_name = "DISK", group = "what")]
    pub disks: Vec<PathBuf>,

    /// Lend every disk that is not in use, and follow disks as they come, go and change size
    #[arg(long, group = "what", conflicts_with = "disks")]
    pub all: bool,

    /// Lend a built-in disk held in memory, of 256M or as large as said: 64M, 1G
    #[arg(
        long,
        group = "what",
        value_name = "SIZE",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "256M"
    )]
    pub demo: Option<Size>,

    /// Lend DISK so that hosts can change it; may be repeated ("demo" for the built-in disk)
    #[arg(long, value_name = "DISK", group = "what")]
    pub writable: Vec<PathBuf>,

    /// Speak these protocols: nvme, nbd, or both with a comma between them
    ///
    /// Without this option both are spoken; NBD is then left out where another program has its port already.
    #[arg(long, value_name = "PROTOCOL", value_enum, value_delimiter = ',')]
    pub protocol: Vec<Protocol>,

    /// ListenOption there: 192.168.1.5, 127.0.0.1:4420, [fe80::1%eth0], nbd:[::]:10809, unix:/run/x.sock; may be repeated
    ///
    /// The form is [PROTOCOL:]ADDRESS[:PORT], or unix:PATH for NBD at a Unix socket; the protocol is nvme or nbd, an IPv6
    /// address stands in brackets. A port that is given has one protocol: the one that is said, else nvme if that is
    /// spoken, with discovery and the disks; 0 means any free one. Otherwise the ports are 4420 (nvme), 8009 (nvme,
    /// discovery only) and 10809 (nbd). Without this option: every loopback and link-local address of this machine, as
    /// they come and go; or the sockets that systemd, or a client that starts its own server, has opened for this program
    /// (LISTEN_FDS).
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Vec<ListenOption>,

    /// Speak NBD with the one client at the other end of standard input, and end when it has gone
    ///
    /// As for inetd. Nothing is written to standard output. A client that came over the network needs a key as anywhere
    /// else, unless --open.
    #[arg(long, conflicts_with_all = ["listen", "pair", "json", "boot_settings"])]
    pub stdin: bool,

    /// Let in whoever comes, without a key, and encrypt nothing
    ///
    /// Whoever reaches an address that is listened on can then read the disks, and change the writable ones. Without
    /// --listen, this listens on all addresses. Without --open, only this machine itself (the loopback addresses) needs no
    /// key; hosts get one by `storagetm pair` and the code on the screen, or by `storagetm host add`.
    #[arg(long)]
    pub open: bool,

    /// Show a code by which other machines are let in (storagetm pair), also without a screen
    ///
    /// On a terminal a code is shown anyway, where keys are needed. With --json it is an event. Ten wrong codes in a row stop
    /// pairing for an hour, the next ten for two, and so on; the signal SIGUSR1 makes a new code at once.
    #[arg(long, conflicts_with = "open")]
    pub pair: bool,

    /// Where the keys and the hosts that have them are kept
    ///
    /// Without this option: $STATE_DIRECTORY, else /var/lib/storagetm for root and ~/.local/state/storagetm for others.
    #[arg(long, value_name = "DIR")]
    pub keys: Option<PathBuf>,

    /// Let NBD clients come by TLS with certificates, too: DIR holds server-cert.pem, server-key.pem and ca-cert.pem
    ///
    /// These are the names that qemu, nbdkit and libnbd have for them. Where a key is needed, a certificate of that
    /// authority does instead: the first name in it must be that of a host that was let in (storagetm host), whose rules
    /// then hold. Without ca-cert.pem no certificate will do there.
    #[arg(long, value_name = "DIR")]
    pub tls_certificates: Option<PathBuf>,

    /// Accept DH-HMAC-CHAP without a Diffie-Hellman exchange, for hosts that can do no other
    ///
    /// Whoever has recorded such a connection can then try out keys at leisure.
    #[arg(long)]
    pub allow_null_dh: bool,

    /// Do not tell the networks nearby that there are disks to be had here
    ///
    /// Without this option `storagetm find` on other machines finds this one, by multicast DNS (_nvme-disc._tcp and
    /// _nbd._tcp). Where a key is needed it is announced under a name made up anew each time, which tells nothing.
    #[arg(long)]
    pub no_announce: bool,

    /// Announce at this UDP port, and on the loopback interface too, instead of 5353
    #[arg(long, value_name = "PORT", hide = true)]
    pub mdns_port: Option<u16>,

    /// Name disks BASE.NAME, where NAME is the last part of the path
    ///
    /// BASE is an NVMe Qualified Name, such as nqn.2026-01.com.example:laptop. Without this option the name comes from
    /// the disk's own identity, and stays the same whatever the kernel calls the disk.
    #[arg(long, value_name = "BASE")]
    pub nqn: Option<String>,

    /// Lend files as they are, also what is packed (qcow2, VMDK, gzip and the like) and of which hosts could make nothing
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub format: Option<Format>,

    /// Lend disks read-only even if this machine uses them
    ///
    /// What hosts then read may be half-written. A disk in use is never lent writable, and --all leaves it out even so.
    #[arg(long)]
    pub allow_in_use: bool,

    /// Lend a disk writable even if what is on it cannot be read
    ///
    /// A disk that fails to read its first or last sectors may be part of an array or a volume group that cannot be
    /// seen. Reading it needs no --force.
    #[arg(long)]
    pub force: bool,

    /// How to reach the disks and the network: by io_uring, by blocking calls, or the first that works
    #[arg(long, value_name = "DRIVER", value_enum, default_value_t = Io::Auto)]
    pub io: Io,

    /// Threads that serve hosts; as many as there are processors if not given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: Option<u16>,

    /// Put header and data digests into the lines to be typed, against faulty networks
    #[arg(long)]
    pub digests: bool,

    /// Follow also what the machine was booted with: storagetm.disk=, storagetm.writable=, storagetm.protocol=,
    /// storagetm.listen=, storagetm.open, storagetm.pair= and storagetm.machine_id=
    ///
    /// They are looked for on the kernel command line, among the service's credentials, and in the firmware's SMBIOS
    /// strings (io.systemd.credential:storagetm.disk=…). With storagetm.disk=, --all means those disks.
    #[arg(long, requires = "all")]
    pub boot_settings: bool,

    /// Write what happens as JSON, one event a line, instead of the screen
    #[arg(long)]
    pub json: bool,
}

/// The options of `storagetm boot`: all else is on the kernel command line.
#[derive(Debug, Args)]
pub struct Boot {}

/// The options of `storagetm hold`.
#[derive(Debug, Args)]
pub struct Hold {
    /// Go on by itself after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub timeout: u64,
}

/// The options of `storagetm list`.
#[derive(Debug, Args)]
pub struct List {
    /// Only these, each with its partitions: sda, /dev/sda, mapper/NAME, GROUP/VOLUME
    #[arg(value_name = "DISK")]
    pub disks: Vec<String>,
    /// Write a JSON array, one object a disk
    #[arg(long)]
    pub json: bool,
}

/// How to reach the disks and the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Io {
    /// By io_uring where the kernel allows it
    Auto,
    /// By io_uring, or not at all
    Uring,
    /// By blocking calls
    Blocking,
}

/// What a file is taken for, whatever it looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The bytes of a disk
    Raw,
}

impl Serve {
    /// Every disk, as they come and go, and nothing else that differs from the defaults.
    pub(crate) fn everything() -> Self {
        Self {
            disks: Vec::new(),
            all: true,
            demo: None,
            writable: Vec::new(),
            protocol: Vec::new(),
            listen: Vec::new(),
            stdin: false,
            open: false,
            pair: true,
            keys: None,
            tls_certificates: None,
            allow_null_dh: false,
            no_announce: false,
            mdns_port: None,
            nqn: None,
            format: None,
            allow_in_use: false,
            force: false,
            io: Io::Auto,
            threads: None,
            digests: false,
            boot_settings: true,
            json: false,
        }
    }

    /// The disks that were asked for by path, each once, in the order given; `--writable` wins.
    pub fn wanted(&self) -> Vec<LendRequest> {
        let mut wanted: Vec<LendRequest> = Vec::new();
        let writable = self.writable.iter().filter(|path| !self.is_demo(path));
        for path in self.disks.iter().chain(writable) {
            if !wanted.iter().any(|known| known.path == *path) {
                wanted.push(LendRequest { path: path.clone(), writable: self.is_writable(path) });
            }
        }
        wanted
    }

    /// Whether the demo disk may be changed.
    pub fn demo_writable(&self) -> bool {
        self.writable.iter().any(|path| self.is_demo(path))
    }

    fn is_demo(&self, path: &Path) -> bool {
        self.demo.is_some() && path == Path::new(DEMO)
    }

    fn is_writable(&self, path: &Path) -> bool {
        self.writable.iter().any(|other| other == path)
    }
}

/// The table itself, for man pages and completions.
pub fn command() -> clap::Command {
    Options::command()
}

/// Reads the command line.
///
/// # Errors
/// What [`clap`] says of it: also when help or the version is asked for.
pub fn parse<I, T>(line: I) -> Result<Options, clap::Error>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    Options::try_parse_from(line)
}

#[cfg(test)]
mod test {
    use super::*;

    fn serve(line: &str) -> Result<Serve, clap::Error> {
        let words = format!("storagetm serve {line}");
        match parse(words.split_whitespace())?.task {
            Task::Serve(serve) => Ok(serve),
            _ => unreachable!("the line says serve"),
        }
    }

    fn disk(path: &str, writable: bool) -> LendRequest {
        LendRequest { path: PathBuf::from(path), writable }
    }

    #[test]
    fn the_table_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn lines_that_are_right() {
        for line in [
            "/dev/sda",
            "/dev/sda /dev/sdb --writable /dev/sdb",
            "--writable /dev/sda",
            "--all",
            "--all --writable /dev/sda",
            "--demo",
            "--demo=1G --writable demo",
            "--demo disk.img",
            "disk.img --io uring --threads 4 --digests --json --allow-in-use --force --open --allow-null-dh",
            "disk.img --pair --keys /tmp/keys",
            "disk.img --protocol nbd --tls-certificates /tmp/pki",
            "disk.img --protocol nvme,nbd --protocol nbd --listen unix:/run/x --listen nbd:[::1]:0",
            "disk.img --stdin",
            "disk.img --stdin --open",
            "disk.img --listen 127.0.0.1 --listen nvme:[::1]:0 --nqn nqn.2026-01.com.example:a",
        ] {
            assert!(serve(line).is_ok(), "{line}: {:?}", serve(line));
        }
    }

    #[test]
    fn lines_that_are_wrong_end_with_status_2() {
        for line in [
            "",
            "--all /dev/sda",
            "--writable",
            "--demo=0",
            "--demo=many",
            "--demo=1K",
            "disk.img --listen here",
            "disk.img --threads 0",
            "disk.img --io magic",
            "disk.img --unknown",
            "disk.img --open --pair",
            "disk.img --protocol iscsi",
            "disk.img --protocol",
            "disk.img --listen nvme:unix:/run/x",
            "disk.img --stdin --listen unix:/run/x",
            "disk.img --stdin --json",
        ] {
            let error = serve(line).err().unwrap_or_else(|| panic!("{line}"));
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn a_disk_is_read_only_unless_it_is_named_writable() {
        let options = serve("a b --writable b --writable c").unwrap();
        assert_eq!(options.wanted(), [disk("a", false), disk("b", true), disk("c", true)]);
    }

    #[test]
    fn a_disk_given_twice_is_lent_once() {
        assert_eq!(serve("a a").unwrap().wanted(), [disk("a", false)]);
    }

    #[test]
    fn demo_is_the_built_in_disk_only_if_that_is_lent() {
        let options = serve("--demo --writable demo").unwrap();
        assert!(options.demo_writable());
        assert_eq!(options.wanted(), []);
        assert_eq!(serve("--writable demo").unwrap().wanted(), [disk("demo", true)]);
    }

    #[test]
    fn demo_takes_its_size_only_after_an_equals_sign() {
        let options = serve("--demo 64M").unwrap();
        assert_eq!(options.demo.unwrap().bytes(), 256 << 20);
        assert_eq!(options.wanted(), [disk("64M", false)]);
        assert_eq!(serve("--demo=64M").unwrap().demo.unwrap().bytes(), 64 << 20);
    }
}
