//! The machine does not suspend while a disk is used by another one, or copied. In a mount namespace in which logind seems
//! to run, and `systemd-inhibit` records how it is called.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::nbd_client::NbdClient;
use crate::process::find;
use crate::{ANY_PORT, Folder, PROGRAM, Running, geteuid, text};

/// Makes the machine look as with logind, in a mount namespace. `$0` takes the place of `systemd-inhibit`.
const SCENE: &str = "mount -t tmpfs tmpfs /run || exit 77
    mkdir -p /run/systemd/seats /run/current-system/sw/bin
    cp \"$0\" /run/current-system/sw/bin/systemd-inhibit
    for it in /bin/systemd-inhibit /usr/bin/systemd-inhibit; do
        [ ! -e $it ] || mount --bind \"$0\" $it || exit 77
    done
    exec \"$@\"";

/// The locks that were taken, a line each.
struct Locks {
    folder: Folder,
}

impl Locks {
    /// Returns `None`, with a note, where there are no mount namespaces.
    fn new() -> Option<Self> {
        if programs::lacks("a machine that must not suspend", &["unshare", "mount"]) {
            return None;
        }
        let locks = Self { folder: Folder::new() };
        let script = format!("#!/bin/sh\necho \"$@\" >>{}\nexec cat\n", locks.log());
        fs::write(locks.program(), script).unwrap();
        fs::set_permissions(locks.program(), fs::Permissions::from_mode(0o755)).unwrap();
        if locks.command(&["true"]).status().unwrap().success() {
            return Some(locks);
        }
        println!("skip a machine that must not suspend: nothing can be mounted here");
        None
    }

    fn program(&self) -> String {
        text(&self.folder.0.0.join("inhibit"))
    }

    fn log(&self) -> String {
        text(&self.folder.0.0.join("log"))
    }

    /// Returns a command to be run on that machine.
    fn command(&self, line: &[&str]) -> Command {
        let mut command = Command::new("unshare");
        if !geteuid().is_root() {
            command.arg("--map-root-user");
        }
        command.args(["--mount", "sh", "-c", SCENE]).arg(self.program()).args(line);
        command
    }

    /// Waits for a lock, and returns what it was taken for.
    fn taken(&self) -> String {
        let log = self.log();
        let read = || fs::read_to_string(&log).ok().filter(|text| text.ends_with('\n'));
        find(read).expect("a lock is taken")
    }
}

const WHAT: &str = "--what=sleep:idle:handle-lid-switch --mode=block --who=storagetm --why=";

#[test]
fn machine_stays_awake_while_a_host_has_a_disk() {
    let Some(locks) = Locks::new() else { return };
    let image = locks.folder.image("disk.img", 1 << 20);
    let line =
        [PROGRAM, "serve", "--json", "--no-announce", "--protocol", "nbd", "--listen", ANY_PORT];
    let running = Running::start(&mut locks.command(&[&line[..], &[&image]].concat()));
    let (address, _) = running.ready();
    assert!(!Path::new(&locks.log()).exists(), "no host has the disk");
    let mut client = NbdClient::connected(TcpStream::connect(address).unwrap()).unwrap();
    client.go("disk").unwrap().unwrap();
    assert!(locks.taken().starts_with(WHAT));
}

#[test]
fn machine_stays_awake_while_a_disk_is_copied() {
    let Some(locks) = Locks::new() else { return };
    let (image, to) = (locks.folder.image("disk.img", 1 << 20), locks.folder.0.0.join("copy"));
    let copy = locks.command(&[PROGRAM, "copy", &image, &text(&to)]).output().unwrap();
    assert!(copy.status.success(), "{copy:?}");
    assert!(locks.taken().starts_with(&format!("{WHAT}a disk is copied")));
}
