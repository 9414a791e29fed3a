//! The program `storagetm`: combines all other crates, with a command line and screens.
//!
//! | module | content |
//! |---|---|
//! | [`options`] | the table of command-line options |
//! | `serve` | `serve`: the event loop of the daemon |
//! | `output`, `nonblocking` | events as JSON, text, screen and journal entries |
//! | `console_ui`, `terminal_keys`, `key_parser` | consoles of target mode; keys of a terminal |
//! | `boot` | `boot`: PID 1 and its child in target mode |
//! | `image` | `image`: bootable images of target mode |
//! | `list` | `list`: the disks of this machine |
//! | `copy` | `copy` |
//! | `agent` | `agent`: a copy as the environment or a file says |
//! | `inspect`, `unpack` | child processes without privileges that parse disk contents and unpack files |
//! | `confirmation` | confirmation before overwriting |
//! | `find`, `attach` | `find`, `attach`, `detach`: disks of other machines |
//! | `tls_agent` | `tls-agent`: TLS handshakes for the kernel, in the place of tlshd |
//! | `control` | `status`, `add`, `remove`: control of a running `serve` |
//! | `provider` | `provider`: disks of other machines as volumes for systemd |
//! | `key`, `host`, `pair` | `key`, `host`, `pair`: keys, access rules, pairing |
//! | `systemd` | the program under the name of systemd-storagetm |
//! | `hold` | `hold`: waits for a key |
//! | `table` | text in columns |

#![forbid(unsafe_code)]

mod agent;
mod attach;
mod boot;
mod confirmation;
mod console_ui;
mod control;
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
mod overlay;
mod pair;
mod provider;
mod serve;
mod systemd;
mod table;
mod terminal_keys;
mod tls_agent;
mod unpack;

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use failure::Failure;
use options::Task;

/// Runs the program. Exit status 0 on success, 1 on failure, 2 for a usage error, 3 if another
/// machine refused; `copy` has more.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    // Nearly every task handles keys. Errors are ignored: the program also works without this.
    let _ = linux::sandbox::protect_memory();
    let args: Vec<OsString> = args.into_iter().collect();
    if has_name(&args, options::systemd::NAME) {
        return systemd::run(args);
    }
    if !is_init(&args) && options::key::contains_key(&args) {
        return print_failure(&Failure::usage(options::key::KEY_IN_ARGUMENTS));
    }
    let parsed =
        if is_init(&args) { options::parse(["storagetm", "boot"]) } else { options::parse(args) };
    let options = match parsed {
        Ok(options) => options,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let result = match options.task {
        Task::Serve(options) => serve::serve(*options),
        Task::Copy(options) => copy::copy(&options),
        Task::Agent(options) => agent::agent(&options),
        Task::List(options) => list::list(&options),
        Task::Boot(options) => boot::boot(&options),
        Task::Image(options) => image::image(&options),
        Task::Key(options) => key::key(&options),
        Task::Host(options) => host::host(&options),
        Task::Overlay(options) => overlay::overlay(&options),
        Task::Status(options) => control::status(&options),
        Task::Add(options) => control::add(&options),
        Task::Remove(options) => control::remove(&options),
        Task::Pair(options) => pair::pair(&options),
        Task::Find(options) => find::find(&options),
        Task::Attach(options) => attach::attach(&options),
        Task::Detach(options) => attach::detach(&options),
        Task::TlsAgent(options) => tls_agent::serve(&options),
        Task::Provider(options) => provider::provide(&options),
        Task::Hold(options) => hold::hold(&options),
        Task::Inspect => inspect::work(),
        Task::Unpack { format } => unpack::work(&format),
        Task::Index { format, limit } => daemon::lend::index(&format, limit),
        Task::Recognize => daemon::lend::recognize(),
        Task::Open => daemon::lend::open_disk(),
        Task::Examine => daemon::examine::work(),
        Task::Flush => daemon::flush::work(),
        Task::Worker => daemon::worker::work(),
        Task::Announcer => dnssd::work(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => print_failure(&failure),
    }
}

/// Prints the failure to standard error. Returns its exit status.
fn print_failure(failure: &Failure) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "storagetm: {failure}");
    ExitCode::from(failure.status())
}

/// Returns whether the kernel started this as PID 1 of an initramfs, by the name `/init`. Its
/// arguments are then kernel parameters that the kernel did not recognize.
fn is_init(args: &[OsString]) -> bool {
    std::process::id() == 1 && has_name(args, "init")
}

/// Returns whether the program was started by this name.
fn has_name(args: &[OsString], name: &str) -> bool {
    args.first().map(Path::new).and_then(Path::file_name).is_some_and(|it| it == name)
}
