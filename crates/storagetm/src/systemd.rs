//! The program under the name of systemd-storagetm: its options, environment and exit status, with
//! the defaults of `storagetm serve`
//! ([decision 26](../../../docs/decisions/026-in-place-of-systemd-storagetm.md)).

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;
use std::{env, io};

use clap::Parser;
use daemon::reported::ReportedIdentity;
use failure::Failure;
use linux::block::{self, Disk};
use linux::tree::Tree;
use linux::tty;

use crate::options::systemd::{NAME, SystemdStoragetm};
use crate::serve;

/// Shown at the start: people who type this line expect something else.
const DIFFERS: &str = "This is storagetm in place of systemd-storagetm: disks are lent read-only, and \
                       to hosts with a key. As systemd's own does: storagetm serve --open --writable \
                       DEVICE.";

/// Shown if `--all` is given twice.
const NEVER_IN_USE: &str = "A disk in use, such as the one of the running system, is not lent.";

/// Runs the program. Exit status 0 on success, 1 on any failure.
pub(crate) fn run(args: Vec<OsString>) -> ExitCode {
    let options = match SystemdStoragetm::try_parse_from(args) {
        Ok(options) => options,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::from(error.exit_code() != 0));
        }
    };
    let result = if options.list_devices { list() } else { expose(options) };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = writeln!(io::stderr(), "{NAME}: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn expose(options: SystemdStoragetm) -> Result<(), Failure> {
    let is_one_disk = options.devices.len() == 1;
    let twice = (options.all > 1).then(|| NEVER_IN_USE.to_owned());
    let mut serve = options.serve()?;
    let (reported, ignored) =
        ReportedIdentity::read(|name| env::var_os(name)?.into_string().ok(), is_one_disk);
    serve.reported = reported;
    serve.notes.push(DIFFERS.to_owned());
    serve.notes.extend(twice.into_iter().chain(ignored));
    serve::serve(serve)
}

/// Prints all block devices, each with the links that udev made to it.
fn list() -> Result<(), Failure> {
    let tree = Tree::machine();
    let disks = block::scan(&tree)
        .map_err(|error| Failure::new(format!("block devices cannot be listed: {error}")))?;
    let text = device_list(&tree, &disks, tty::is_terminal(&io::stdout()));
    let written = io::stdout().write_all(text.as_bytes());
    written.map_err(|error| Failure::new(format!("standard output cannot be written: {error}")))
}

fn device_list(tree: &Tree, disks: &[Disk], is_terminal: bool) -> String {
    let (before, after) = if is_terminal { ("    \x1b[38;5;245m", "\x1b[0m") } else { ("", "") };
    let mut text = String::new();
    for disk in disks.iter().filter(|disk| !disk.name.starts_with("zram")) {
        let mut line = |start: &str, path: &str, end: &str| {
            text.push_str(start);
            text.push_str(&console::escape_unprintable(path, true));
            text.push_str(end);
            text.push('\n');
        };
        line("", &disk.node.to_string_lossy(), "");
        for link in links(tree, disk) {
            line(before, &link, after);
        }
    }
    text
}

/// Returns the links in udev's database, sorted.
fn links(tree: &Tree, disk: &Disk) -> Vec<String> {
    let entry = format!("run/udev/data/b{}:{}", disk.number.major, disk.number.minor);
    let entry = tree.text(entry).unwrap_or_default();
    let names = entry.lines().filter_map(|line| line.strip_prefix("S:"));
    let mut links: Vec<String> = names.map(|name| format!("/dev/{name}")).collect();
    links.sort();
    links
}

#[cfg(test)]
mod test {
    use super::*;
    use testkit::Scratch;

    #[test]
    fn devices_are_listed_with_their_links() {
        let folder = Scratch::new();
        let file = |path: &str, content: &str| {
            let path = folder.0.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        };
        for (name, number) in [("sda", "8:0"), ("zram0", "252:0")] {
            file(&format!("sys/class/block/{name}/dev"), number);
            file(&format!("sys/class/block/{name}/size"), "2048");
        }
        file("run/udev/data/b8:0", "S:disk/by-path/b\nS:disk/by-id/a\nE:ID_MODEL=x\n");
        let tree = Tree::at(&folder.0);
        let disks = block::scan(&tree).unwrap();
        let text = device_list(&tree, &disks, false);
        assert_eq!(text, "/dev/sda\n/dev/disk/by-id/a\n/dev/disk/by-path/b\n");
        assert!(
            device_list(&tree, &disks, true).contains("\n    \u{1b}[38;5;245m/dev/disk/by-id/a")
        );
    }
}
