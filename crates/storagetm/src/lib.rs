//! The program `storagetm`: the only crate that knows all others.
//!
//! | module | is |
//! |---|---|
//! | [`options`] | the table of options |
//! | `serve` | lends disks until it is told to stop: one loop that waits for what the machine, the hosts and the owner do |
//! | `lend`, `device` | from a path to an export; which block device it is |
//! | `follow` | `--all`: disks as they come, go and change |
//! | `demo` | the built-in disk |
//! | `listen`, `listeners` | where to listen: the rule, and the sockets |
//! | `mailbox`, `ledger` | what the engine says, and who has what |
//! | [`happening`], `output`, `nonblocking` | what happened, and where it is said |
//! | `list` | which disks there are |
//! | `copy` | copies a disk from a place to another |
//! | `inspect` | what is on a disk, seen by a process without rights |
//! | `examine`, `flush` | what a disk is asked by a process that may wait for ever |
//! | `helper` | starts such processes |
//! | `boot` | a machine that does nothing but lend its disks |
//! | `admission` | whom this machine lets in |
//! | `terminal_keys`, `key_parser` | what somebody at the screen answers |
//! | `settings`, `choice` | what was said when the machine was booted, and the disks that were named then |
//! | `image` | makes what boots such a machine |
//! | `announce` | tells the networks nearby that there are disks to be had here, from a process without rights |
//! | `find` | looks for machines that lend disks, and asks what they have |
//! | `attach` | hands disks of other machines to the kernel, and takes them away again |
//! | `store` | where keys and hosts are kept, and whom that lets in |
//! | `key`, `host`, `pair` | what the owner does with them |
//! | `keyring` | a key as the other machine's kernel needs it |
//! | `worker` | the process that talks to hosts, and what it is told |
//! | `hold` | keeps a terminal as it is until somebody has read it |

#![forbid(unsafe_code)]

mod attach;
mod boot;
mod confirmation;
mod console_ui;
mod copy;
mod find;
mod hold;
mod host;
mod image;
mod inspect;
mod key;
mod key_parser;
mod list;
mod nonblocking;
pub mod options;
mod output;
mod pair;
mod serve;
mod table;
mod terminal_keys;
mod unpack;

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use failure::Failure;
use options::Task;

/// Does what the command line says. The exit status is 0, 1 if something did not work, 2 if the line is wrong, or 3 if
/// another machine said no.
pub fn run(line: impl IntoIterator<Item = OsString>) -> ExitCode {
    // Nearly every task holds keys. Where it is not allowed nothing else can be done about it.
    let _ = linux::sandbox::protect_memory();
    let line: Vec<OsString> = line.into_iter().collect();
    if !is_init(&line) && options::key::contains_key(&line) {
        return failed(&Failure::usage(options::key::KEY_IN_ARGUMENTS));
    }
    let parsed =
        if is_init(&line) { options::parse(["storagetm", "boot"]) } else { options::parse(line) };
    let options = match parsed {
        Ok(options) => options,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let done = match options.task {
        Task::Serve(options) => serve::serve(&options),
        Task::Copy(options) => copy::copy(&options),
        Task::List(options) => list::list(&options),
        Task::Boot(options) => boot::boot(&options).map(|never| match never {}),
        Task::Image(options) => image::image(&options),
        Task::Key(options) => key::key(&options),
        Task::Host(options) => host::host(&options),
        Task::Pair(options) => pair::pair(&options),
        Task::Find(options) => find::find(&options),
        Task::Attach(options) => attach::attach(&options),
        Task::Detach(options) => attach::detach(&options),
        Task::Hold(options) => hold::hold(&options),
        Task::Inspect => inspect::work(),
        Task::Unpack { format } => unpack::work(&format),
        Task::Examine => daemon::examine::work(),
        Task::Flush => daemon::flush::work(),
        Task::Worker => daemon::worker::work(),
        Task::Announcer => dnssd::work(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failed(&failure),
    }
}

fn failed(failure: &Failure) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "storagetm: {failure}");
    ExitCode::from(failure.status())
}

/// Whether the kernel has started this as the first program of an initramfs: by the name `/init`, and with the words of
/// its command line that it did not know.
fn is_init(line: &[OsString]) -> bool {
    let name = line.first().map(Path::new).and_then(Path::file_name);
    std::process::id() == 1 && name.is_some_and(|name| name == "init")
}
