//! Command-line options: one table for the parser, help, man pages and completions.

pub mod agent;
pub mod attach;
pub mod boot;
pub mod control;
pub mod copy;
pub mod disk;
pub mod find;
pub mod home;
pub mod host;
pub mod image;
pub mod key;
pub mod list;
pub mod overlay;
pub mod pair;
mod protocol_help;
pub mod provider;
pub mod rate;
pub mod rescue;
pub mod systemd;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use agent::Agent;
use attach::{Attach, Detach};
use boot::Boot;
use daemon::lend::{DEMO, LendRequest, Writes};
use daemon::listen::ListenOption;
use daemon::reported::ReportedIdentity;
use daemon::size::Size;
use find::Find;
use home::Homes;
use host::Host;
use image::Image;
use key::Key;
use list::List;
use pair::Pair;
use protocol::Protocol;

fn about() -> String {
    format!(
        "\
storagetm lends disks of this machine to other machines over the network, by {}. The \
other machine needs no more than a Linux distribution includes; storagetm shows the command to run \
there.

Disks are read-only unless --writable is given, and a disk that is in use on this machine is not lent.",
        protocol_help::labels()
    )
}

const EXAMPLES: &str = "\
Examples:
  storagetm list                             list the disks and whether they may be lent
  storagetm serve --demo                     lend a small built-in disk, to try it out
  storagetm serve /dev/sdb                   lend a disk read-only
  storagetm serve --writable disk.img        lend a disk image, and let hosts change it
  storagetm serve --all                      lend every disk that is not in use, with hot-plug

Then run the command that is shown on the other machine, as root, for example:
  nvme connect-all -t tcp -a fe80::1 -s 4420 --host-iface eth0";

const USAGE: &str = "\
storagetm serve [OPTIONS] DISK...
       storagetm serve [OPTIONS] --all
       storagetm serve [OPTIONS] --homes[=USER,...]
       storagetm serve [OPTIONS] --demo[=SIZE]";

const SERVE_EXAMPLES: &str = "\
Examples:
  Try it without a disk and without root:
    storagetm serve --demo
  Lend a disk and an image; hosts may change only the image:
    storagetm serve /dev/disk/by-id/usb-Example_123 --writable disk.img
  Listen on one routable address; hosts need a key or the pairing code:
    storagetm serve --all --listen 192.168.1.5
  Let alice log in on another machine with the home that she has here:
    storagetm serve --homes=alice
  For a script: any free port, and JSON events on standard output:
    storagetm serve --json --protocol nvme --listen 127.0.0.1:0 disk.img
  For local NBD clients, or started by the client itself:
    storagetm serve --listen unix:/run/disk.sock disk.img
    nbdinfo -- [ storagetm serve disk.img ]

Exit status: 0 after SIGINT or SIGTERM, 1 if a disk cannot be lent or an address cannot be \
bound, 2 if the options are wrong.";

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "storagetm",
    version,
    about = format!("Lends disks of this machine to others over {}", protocol_help::labels()),
    long_about = about(),
    after_help = EXAMPLES
)]
pub struct Options {
    /// The subcommand.
    #[command(subcommand)]
    pub task: Task,
}

/// The subcommands. A long description stands here: the comment of a variant replaces that of its options.
#[derive(Debug, Subcommand)]
pub enum Task {
    /// Lend disks until Ctrl-C
    #[command(after_help = SERVE_EXAMPLES)]
    Serve(Box<Serve>),
    /// Copy a disk from or to another machine, or on this one
    #[command(long_about = copy::ABOUT)]
    Copy(Box<copy::Copy>),
    /// Copy as environment variables or a file say, for containers and installers
    #[command(long_about = agent::ABOUT)]
    Agent(Agent),
    /// List the disks of this machine, what is on them, and whether they may be lent
    List(List),
    /// Restart this machine into target mode, in which it only lends its disks
    Boot(Boot),
    /// Build an image that boots into target mode: an initramfs, an EFI program, or a USB stick
    Image(Image),
    /// Generate, import, export and list keys
    #[command(long_about = key::ABOUT)]
    Key(Key),
    /// Manage which hosts may attach which disks, and until when
    #[command(long_about = host::ABOUT)]
    Host(Host),
    /// List, discard, commit and export what hosts have written under an overlay in files
    #[command(long_about = overlay::ABOUT)]
    Overlay(overlay::Overlay),
    /// Pair with a machine that lends disks, by the code on its screen
    #[command(long_about = pair::ABOUT)]
    Pair(Pair),
    /// Show what running storagetm serve lend, and to which hosts
    #[command(long_about = control::STATUS)]
    Status(control::Status),
    /// Lend more disks by the running storagetm serve
    #[command(long_about = control::ADD)]
    Add(control::Add),
    /// Withdraw disks from the running storagetm serve
    #[command(long_about = control::REMOVE)]
    Remove(control::Remove),
    /// Find machines on the local network that lend disks
    #[command(long_about = find::ABOUT)]
    Find(Find),
    /// Attach disks of another machine with the kernel's NVMe/TCP driver
    #[command(long_about = attach::ATTACH)]
    Attach(Attach),
    /// Detach disks
    #[command(long_about = attach::DETACH)]
    Detach(Detach),
    /// Do TLS handshakes for the kernel's NVMe/TCP connections, where tlshd does not run
    #[command(long_about = attach::TLS_AGENT)]
    TlsAgent(attach::TlsAgent),
    /// Give disks of other machines to mount, systemd-vmspawn and storagectl of systemd
    #[command(long_about = provider::ABOUT)]
    Provider(provider::Provider),
    /// Wait for a key press
    Hold(Hold),
    /// Parse the contents of a disk (child process of `storagetm copy`)
    #[command(hide = true)]
    Inspect,
    /// Unpack a file (child process of `storagetm copy`)
    #[command(hide = true)]
    Unpack {
        /// The format
        format: String,
    },
    /// Read an image of a virtual machine (child process of `storagetm serve`)
    #[command(hide = true)]
    Index {
        /// The format
        format: String,
        /// Most bytes of the index
        limit: u64,
    },
    /// Read whose home directory a disk is (child process of `storagetm serve`)
    #[command(hide = true)]
    Recognize,
    /// Open a disk that may hang (child process)
    #[command(hide = true)]
    Open,
    /// Examine disks that may hang (child process)
    #[command(hide = true)]
    Examine,
    /// Flush a disk that may hang (child process)
    #[command(hide = true)]
    Flush,
    /// Serve hosts (child process of `storagetm serve`)
    #[command(hide = true)]
    Worker,
    /// Multicast DNS (child process of `storagetm serve` and `storagetm find`)
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

    /// Lend every disk that is not in use, with hot-plug and size changes
    #[arg(long, group = "what", conflicts_with = "disks")]
    pub all: bool,

    /// Home directories of systemd-homed.
    #[command(flatten)]
    pub homes: Homes,

    /// Lend a built-in disk in memory, of 256M or the given size: 64M, 1G (--writable demo: writable)
    #[arg(
        long,
        group = "what",
        value_name = "SIZE",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "256M"
    )]
    pub demo: Option<Size>,

    /// Where what hosts write goes.
    #[command(flatten)]
    pub access: disk::DiskOptions,

    /// Lend what the kernel's NVMe target did, as nvmetcli saved it (/etc/nvmet/config.json)
    ///
    /// Disks keep the NVMe Qualified Names, serial numbers and UUIDs that hosts know, and are lent at the saved addresses unless
    /// --listen is given. They are read-only unless --writable or --overlay names them as the file does. Hosts need a key. What
    /// is not taken over is reported.
    #[arg(long, group = "what", value_name = "FILE", conflicts_with_all = ["stdin", "boot_settings", "nqn"])]
    pub nvmet_config: Option<PathBuf>,

    /// How a disk that fails is lent.
    #[command(flatten)]
    pub rescue: Box<rescue::Rescue>,

    // Help that names protocols is made from their table.
    #[arg(
        long,
        value_name = "PROTOCOL",
        value_enum,
        value_delimiter = ',',
        help = protocol_help::protocol(),
        long_help = protocol_help::protocol_long()
    )]
    pub protocol: Vec<Protocol>,

    #[arg(
        long,
        value_name = "ADDRESS",
        help = protocol_help::LISTEN,
        long_help = protocol_help::listen_long()
    )]
    pub listen: Vec<ListenOption>,

    /// Also serve the disks at a USB port of this machine: a computer at the other end of the cable finds them by itself
    ///
    /// The port must be able to act as a device, which those of most desktop computers are not. The computer needs no
    /// software and no key: it reads at most the first eight disks, and writes to those that are lent writable. Needs
    /// root.
    #[arg(long, conflicts_with = "stdin")]
    pub usb: bool,

    /// Announce disks as removable media, as USB sticks are, so that hosts can eject them: over iSCSI and at a USB port
    ///
    /// Windows then writes at once what it would keep in memory. A disk that one host has ejected is still there for the
    /// others. A Linux host does not repeat what it was doing with such a disk when its connection was lost: it fails.
    #[arg(long)]
    pub removable: bool,

    /// Serve one NBD client, connected to standard input, and exit when it disconnects
    ///
    /// As for inetd. Nothing is written to standard output. A client from the network needs a key, unless --open is
    /// given.
    #[arg(long, conflicts_with_all = ["listen", "pair", "json", "boot_settings"])]
    pub stdin: bool,

    /// Allow access without a key and without encryption
    ///
    /// Anyone who can reach a listening address can then read the disks, and write to the writable ones. Without
    /// --listen, this listens on all addresses. Without --open, only the loopback addresses need no key; hosts get one
    /// by `storagetm pair` and the code on the screen, or by `storagetm host add`.
    #[arg(long)]
    pub open: bool,

    /// Show a pairing code (storagetm pair), also without a terminal
    ///
    /// On a terminal a code is shown anyway if keys are required. With --json it is an event. Ten wrong codes in a row
    /// lock pairing for an hour, the next ten for two, and so on; SIGUSR1 unlocks it with a new code. Also shows the
    /// code for reading by HTTPS, which SIGUSR1 replaces, too.
    #[arg(long, conflicts_with = "open")]
    pub pair: bool,

    /// Directory of keys and hosts
    ///
    /// Default: $STATE_DIRECTORY, else /var/lib/storagetm for root and ~/.local/state/storagetm for others.
    #[arg(long, value_name = "DIR")]
    pub keys: Option<PathBuf>,

    /// Accept NBD clients with TLS certificates: DIR holds server-cert.pem, server-key.pem and ca-cert.pem
    ///
    /// The file names are those of qemu, nbdkit and libnbd. A client certificate of that authority replaces the key: its
    /// first name must be that of an authorized host (storagetm host), whose rules apply. Without ca-cert.pem client
    /// certificates are not accepted.
    #[arg(long, value_name = "DIR")]
    pub tls_certificates: Option<PathBuf>,

    /// Accept DH-HMAC-CHAP without a Diffie-Hellman exchange, for hosts that do not support it
    ///
    /// A recorded connection then allows offline guessing of the key.
    #[arg(long)]
    pub allow_null_dh: bool,

    #[arg(
        long,
        help = protocol_help::NO_ANNOUNCE,
        long_help = protocol_help::no_announce_long()
    )]
    pub no_announce: bool,

    /// Announce at this UDP port, and on the loopback interface too, instead of 5353
    #[arg(long, value_name = "PORT", hide = true)]
    pub mdns_port: Option<u16>,

    /// Name disks BASE.NAME, where NAME is the last part of the path
    ///
    /// BASE is an NVMe Qualified Name, such as nqn.2026-01.com.example:laptop. By default the name is derived from
    /// the identity of the disk, and does not depend on the kernel's name for it.
    #[arg(long, value_name = "BASE")]
    pub nqn: Option<String>,

    /// Lend files as they are, whatever their format
    ///
    /// By default an image in qcow2, VHD, VHDX, VMDK or VDI format is lent as the disk in it, read-only or with --overlay, and a
    /// compressed file (gzip, xz, ...) is refused, since hosts cannot use it.
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub format: Option<Format>,

    /// Lend disks read-only even if they are in use on this machine
    ///
    /// Hosts may then read inconsistent data. A disk in use is never lent writable, and --all still leaves it out.
    #[arg(long)]
    pub allow_in_use: bool,

    /// Lend a disk writable even if its contents cannot be examined
    ///
    /// A disk whose first or last sectors are unreadable may be part of an array or a volume group. Reading it needs no
    /// --force.
    #[arg(long)]
    pub force: bool,

    /// I/O driver: io_uring, blocking calls, or the first that works
    #[arg(long, value_name = "DRIVER", value_enum, default_value_t = Io::Auto)]
    pub io: Io,

    /// Worker threads; default: the number of processors
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: Option<u16>,

    /// Show attach commands with header and data digests, for unreliable networks
    #[arg(long)]
    pub digests: bool,

    /// Also apply boot parameters: storagetm.disk=, storagetm.writable=, storagetm.overlay=, storagetm.protocol=,
    /// storagetm.listen=, storagetm.open, storagetm.pair= and storagetm.machine_id=
    ///
    /// They are read from the kernel command line, the service's credentials, and the firmware's SMBIOS strings
    /// (io.systemd.credential:storagetm.disk=…). With storagetm.disk=, --all means those disks.
    #[arg(long, requires = "all")]
    pub boot_settings: bool,

    /// Listen for storagetm status, add and remove on this Unix socket
    ///
    /// Default: /run/storagetm/io.github.storagetm.Serve for root, $XDG_RUNTIME_DIR/storagetm/io.github.storagetm.Serve for
    /// others, with the process number at its end if another storagetm serve listens there. Only root and the user that starts
    /// this program may connect.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["stdin", "boot_settings"])]
    pub control: Option<PathBuf>,

    /// Write JSON events, one per line, instead of the screen
    #[arg(long)]
    pub json: bool,

    /// Identification that is reported instead of that of the disks.
    #[arg(skip)]
    pub reported: ReportedIdentity,

    /// Messages for the user.
    #[arg(skip)]
    pub notes: Vec<String>,
}

/// The options of `storagetm hold`.
#[derive(Debug, Args)]
pub struct Hold {
    /// Continue after this time
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub timeout: u64,
}

/// I/O drivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Io {
    /// io_uring if the kernel supports it, else blocking calls
    Auto,
    /// io_uring only
    Uring,
    /// Blocking calls
    Blocking,
}

/// Formats of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The bytes of a disk
    Raw,
}

impl Serve {
    /// Returns the disks named by path, each once, in the order given; `--overlay` takes precedence
    /// over `--writable`, and both over a disk that is only named.
    pub fn lend_requests(&self) -> Vec<LendRequest> {
        let is_other = |path: &Path| {
            (self.demo.is_some() && path == Path::new(DEMO)) || self.homes.names(path)
        };
        let is_named = |request: &LendRequest| self.disks.contains(&request.path);
        let mut requests = self.access.requests(&self.disks);
        requests.retain(|request| is_named(request) || !is_other(&request.path));
        requests
    }

    /// Returns where what hosts write to the demo disk goes.
    pub fn demo_writes(&self) -> Writes {
        self.access.writes(Path::new(DEMO))
    }

    /// Returns the names of the home directories that get an overlay.
    pub fn overlaid_homes(&self) -> Vec<PathBuf> {
        self.access.overlay.iter().filter(|path| self.homes.names(path)).cloned().collect()
    }
}

/// Returns the definition of the command line, for man pages and completions.
pub fn command() -> clap::Command {
    Options::command()
}

/// Parses the command line.
///
/// # Errors
/// Fails with the error of [`clap`], also for `--help` and `--version`.
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
            Task::Serve(serve) => Ok(*serve),
            _ => unreachable!("another subcommand"),
        }
    }

    fn disk(path: &str, writes: Writes) -> LendRequest {
        LendRequest::new(PathBuf::from(path), writes)
    }

    #[test]
    fn command_line_definition_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn long_descriptions_are_in_the_help() {
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let mut command = command();
        for (name, description) in [
            ("agent", agent::ABOUT),
            ("add", control::ADD),
            ("attach", attach::ATTACH),
            ("copy", copy::ABOUT),
            ("detach", attach::DETACH),
            ("find", find::ABOUT),
            ("host", host::ABOUT),
            ("key", key::ABOUT),
            ("overlay", overlay::ABOUT),
            ("pair", pair::ABOUT),
            ("provider", provider::ABOUT),
            ("remove", control::REMOVE),
            ("status", control::STATUS),
        ] {
            let subcommand = command.find_subcommand_mut(name).unwrap();
            let help = subcommand.render_long_help().to_string();
            assert!(words(&help).contains(&words(description)), "{help}");
        }
    }

    #[test]
    fn valid_lines_are_accepted() {
        for line in [
            "/dev/sda",
            "/dev/sda /dev/sdb --writable /dev/sdb",
            "--writable /dev/sda",
            "--all",
            "--all --writable /dev/sda",
            "--overlay /dev/sda",
            "--all --overlay /dev/sda --writable /dev/sdb",
            "--demo",
            "--demo=1G --writable demo",
            "--map disk.map --image rescued.img --retry-bad /dev/sda",
            "--map disk.map --overlay /dev/sda",
            "--demo disk.img",
            "--homes",
            "--homes=alice,bob --overlay home-alice",
            "disk.img --io uring --threads 4 --digests --json --allow-in-use --force --open --allow-null-dh",
            "disk.img --pair --keys /tmp/keys",
            "disk.img --protocol nbd --tls-certificates /tmp/pki",
            "disk.img --protocol nvme,nbd --protocol nbd --listen unix:/run/x --listen nbd:[::1]:0",
            "disk.img --stdin",
            "disk.img --stdin --open",
            "--nvmet-config config.json --writable /dev/sda",
            "disk.img --listen 127.0.0.1 --listen nvme:[::1]:0 --nqn nqn.2026-01.com.example:a",
        ] {
            assert!(serve(line).is_ok(), "{line}: {:?}", serve(line));
        }
    }

    #[test]
    fn invalid_lines_fail_with_status_2() {
        for line in [
            "",
            "--all /dev/sda",
            "--writable",
            "--demo=0",
            "--demo=many",
            "--demo=1K",
            "--homes=../a",
            "--nvmet-config config.json --nqn nqn.2026-01.com.example:a",
            "--homes --open",
            "--homes --usb",
            "--homes --stdin",
            "disk.img --listen here",
            "disk.img --threads 0",
            "disk.img --io magic",
            "disk.img --unknown",
            "disk.img --open --pair",
            "disk.img --protocol aoe",
            "disk.img --protocol",
            "disk.img --listen nvme:unix:/run/x",
            "disk.img --stdin --listen unix:/run/x",
            "disk.img --stdin --json",
            "disk.img --image rescued.img",
            "--map disk.map --allow-in-use /dev/sda",
            "disk.img --retry-bad",
            "--all --map disk.map",
            "--writable disk.img --map disk.map",
            "--overlay disk.img --overlay-dir x --map disk.map",
        ] {
            let error = serve(line).err().unwrap_or_else(|| panic!("{line}"));
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn disk_is_read_only_unless_named_writable() {
        let options = serve("a b --writable b --writable c --overlay a --overlay d").unwrap();
        let (overlay, writable) = (Writes::ToOverlay, Writes::ToDisk);
        let requests = [("a", overlay), ("b", writable), ("c", writable), ("d", overlay)];
        assert_eq!(options.lend_requests(), requests.map(|(path, writes)| disk(path, writes)));
        assert_eq!(serve("a").unwrap().lend_requests(), [disk("a", Writes::Refused)]);
    }

    #[test]
    fn a_disk_given_twice_is_lent_once() {
        assert_eq!(serve("a a").unwrap().lend_requests(), [disk("a", Writes::Refused)]);
    }

    #[test]
    fn demo_is_the_built_in_disk_only_if_that_is_lent() {
        let options = serve("--demo --writable demo").unwrap();
        assert_eq!(options.demo_writes(), Writes::ToDisk);
        assert_eq!(options.lend_requests(), []);
        let named = serve("--writable demo").unwrap().lend_requests();
        assert_eq!(named, [disk("demo", Writes::ToDisk)]);
    }

    #[test]
    fn homes_are_all_or_those_of_named_users() {
        assert_eq!(serve("--homes disk.img").unwrap().homes.users(), Some(Vec::new()));
        let options = serve("--homes=alice,bob --overlay home-alice --writable disk.img").unwrap();
        assert_eq!(options.homes.users(), Some(vec!["alice".to_owned(), "bob".to_owned()]));
        assert_eq!(options.lend_requests(), [disk("disk.img", Writes::ToDisk)]);
        let writes = |name| home::writes(&options.overlaid_homes(), name);
        assert_eq!([writes("home-alice"), writes("home-bob")], [Writes::ToOverlay, Writes::ToDisk]);
    }

    #[test]
    fn demo_takes_its_size_only_after_an_equals_sign() {
        let options = serve("--demo 64M").unwrap();
        assert_eq!(options.demo.unwrap().bytes(), 256 << 20);
        assert_eq!(options.lend_requests(), [disk("64M", Writes::Refused)]);
        assert_eq!(serve("--demo=64M").unwrap().demo.unwrap().bytes(), 64 << 20);
    }
}
