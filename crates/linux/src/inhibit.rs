//! Prevents the machine from suspending while it serves: holds an inhibitor lock of logind
//! (systemd-logind(8)), if logind runs.
//!
//! The lock is taken by `systemd-inhibit`, which holds it while its child waits for the end of a
//! pipe: the lock is released however this process ends.

use crate::tree::Tree;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Candidate paths of `systemd-inhibit`. `PATH` is not searched, since it may be under the control
/// of others.
const PROGRAMS: [&str; 3] =
    ["usr/bin/systemd-inhibit", "bin/systemd-inhibit", "run/current-system/sw/bin/systemd-inhibit"];
/// The `PATH` in which it finds `cat`.
const PATH: &str = "/usr/bin:/bin:/run/current-system/sw/bin";
/// A directory that logind creates at startup.
const LOGIND: &str = "run/systemd/seats";
const WHAT: &str = "--what=sleep:idle:handle-lid-switch";

/// How long the lock is kept after its last use: hosts reconnect after a lost connection.
const LINGER: Duration = Duration::from_secs(10);
/// The delay after a failed attempt.
const RETRY: Duration = Duration::from_secs(60);

/// A lock that is taken when needed. Dropping it releases the lock. None of its methods fails or
/// blocks.
#[derive(Debug)]
pub struct Inhibitor {
    program: Option<PathBuf>,
    reason: &'static str,
    child: Option<Child>,
    needed: Option<Instant>,
    tried: Option<Instant>,
}

impl Inhibitor {
    /// Does not take the lock yet. `reason` is shown by `systemd-inhibit --list`. Has no effect if
    /// logind does not run.
    pub fn new(tree: &Tree, reason: &'static str) -> Self {
        let runs = tree.path(LOGIND).exists();
        let mut programs = PROGRAMS.iter().map(|program| tree.path(program));
        let program = programs.find(|program| runs && program.is_file());
        Self { program, reason, child: None, needed: None, tried: None }
    }

    /// Holds the lock while it is `needed`, and for 10 seconds after that.
    pub fn update(&mut self, needed: bool, now: Instant) {
        if let Some(child) = &mut self.child
            && !matches!(child.try_wait(), Ok(None))
        {
            self.child = None;
        }
        if needed {
            self.needed = Some(now);
            self.take(now);
        } else if self.needed.is_some_and(|needed| needed + LINGER <= now) {
            self.release();
        }
    }

    /// Returns the latest time of the next call of [`Inhibitor::update`].
    pub fn due(&self) -> Option<Instant> {
        self.needed.map(|needed| needed + LINGER)
    }

    fn take(&mut self, now: Instant) {
        if self.child.is_some() || self.tried.is_some_and(|tried| now < tried + RETRY) {
            return;
        }
        let Some(program) = &self.program else { return };
        self.tried = Some(now);
        let mut command = Command::new(program);
        command
            .args([WHAT, "--mode=block", "--who=storagetm"])
            .arg(format!("--why={}", self.reason));
        command.arg("cat").env_clear().env("PATH", PATH).current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // Its own process group, so that Ctrl-C does not reach it.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        self.child = command.spawn().ok();
    }

    fn release(&mut self) {
        self.needed = None;
        self.tried = None;
        let Some(mut child) = self.child.take() else { return };
        // Closing the pipe ends it.
        drop(child.stdin.take());
        // Reaps the process on a thread of its own, so that this one does not block.
        let _ = std::thread::Builder::new().spawn(move || child.wait());
    }
}

impl Drop for Inhibitor {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::fake::Fake;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    /// A machine whose `systemd-inhibit` runs `script` before its command.
    fn machine(script: &str) -> Fake {
        let fake = Fake::new();
        fake.file("run/systemd/seats/seat0", "");
        let root = fake.tree().path("");
        let script = format!("#!/bin/sh\nROOT={}\n{script}\n", root.display());
        fake.file("usr/bin/systemd-inhibit", script.as_str());
        let program = fake.tree().path("usr/bin/systemd-inhibit");
        fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
        fake
    }

    /// Records its arguments, and whether the lock is held.
    const HONEST: &str = "echo \"$@\" >>$ROOT/asked; touch $ROOT/held; cat; rm $ROOT/held";

    fn wait_for(what: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !what() {
            assert!(Instant::now() < end, "it does not come about");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn lock_is_held_while_needed_and_a_while_longer() {
        let fake = machine(HONEST);
        let held = fake.tree().path("held");
        let mut inhibitor = Inhibitor::new(&fake.tree(), "disks are attached");
        let begun = Instant::now();
        inhibitor.update(false, begun);
        assert_eq!(inhibitor.due(), None);
        inhibitor.update(true, begun);
        wait_for(|| held.exists());
        let asked = fs::read_to_string(fake.tree().path("asked")).unwrap();
        let wanted = "--what=sleep:idle:handle-lid-switch --mode=block --who=storagetm \
                      --why=disks are attached cat\n";
        assert_eq!(asked, wanted);
        inhibitor.update(false, begun + LINGER / 2);
        inhibitor.update(true, begun + LINGER / 2);
        assert_eq!(inhibitor.due(), Some(begun + LINGER / 2 + LINGER));
        inhibitor.update(false, begun + LINGER);
        assert!(inhibitor.child.is_some());
        inhibitor.update(false, begun + LINGER * 2);
        wait_for(|| !held.exists());
        assert_eq!(fs::read_to_string(fake.tree().path("asked")).unwrap(), wanted, "asked once");
    }

    #[test]
    fn lock_is_released_on_drop() {
        let fake = machine(HONEST);
        let held = fake.tree().path("held");
        let mut inhibitor = Inhibitor::new(&fake.tree(), "a disk is copied");
        inhibitor.update(true, Instant::now());
        wait_for(|| held.exists());
        drop(inhibitor);
        wait_for(|| !held.exists());
    }

    #[test]
    fn refused_lock_is_retried_after_a_delay() {
        let fake = machine("echo asked >>$ROOT/asked; exit 1");
        let count =
            || fs::read_to_string(fake.tree().path("asked")).map_or(0, |it| it.lines().count());
        let mut inhibitor = Inhibitor::new(&fake.tree(), "disks are attached");
        let begun = Instant::now();
        inhibitor.update(true, begun);
        wait_for(|| count() == 1);
        wait_for(|| {
            inhibitor.child.as_ref().is_none_or(|child| {
                let stat = fs::read_to_string(format!("/proc/{}/stat", child.id()));
                stat.is_ok_and(|stat| stat.contains(") Z "))
            })
        });
        for second in 0..59 {
            inhibitor.update(true, begun + Duration::from_secs(second));
        }
        assert!(inhibitor.child.is_none());
        inhibitor.update(true, begun + RETRY);
        wait_for(|| count() == 2);
    }

    #[test]
    fn without_logind_nothing_is_started() {
        let fake = machine(HONEST);
        fs::remove_dir_all(fake.tree().path("run/systemd")).unwrap();
        let mut inhibitor = Inhibitor::new(&fake.tree(), "disks are attached");
        inhibitor.update(true, Instant::now());
        assert!(inhibitor.child.is_none());
    }
}
