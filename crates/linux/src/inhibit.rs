//! Keeps the machine from going to sleep while it works: an inhibitor lock of logind (systemd-logind(8)), where there is
//! one.
//!
//! The lock is taken and held by `systemd-inhibit`, which keeps it as long as a program runs that waits for the end of a
//! pipe: it is released however this process ends.

use crate::tree::Tree;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Where `systemd-inhibit` may be. Not looked for in `PATH`, which may be anybody's.
const PROGRAMS: [&str; 3] =
    ["usr/bin/systemd-inhibit", "bin/systemd-inhibit", "run/current-system/sw/bin/systemd-inhibit"];
/// Where it finds the program that waits.
const PATH: &str = "/usr/bin:/bin:/run/current-system/sw/bin";
/// What logind makes when it starts.
const LOGIND: &str = "run/systemd/seats";
const WHAT: &str = "--what=sleep:idle:handle-lid-switch";

/// How long the lock is kept when nothing needs it any more: hosts come back after a lost connection.
const LINGER: Duration = Duration::from_secs(10);
/// After an attempt that failed, before the next one.
const RETRY: Duration = Duration::from_secs(60);

/// The lock, or the wish for one. Dropping it releases the lock. Nothing of this fails or waits.
#[derive(Debug)]
pub struct Inhibitor {
    program: Option<PathBuf>,
    why: &'static str,
    child: Option<Child>,
    needed: Option<Instant>,
    tried: Option<Instant>,
}

impl Inhibitor {
    /// Without the lock so far. `why` is shown by `systemd-inhibit --list`. Has no effect where logind does not run.
    pub fn new(tree: &Tree, why: &'static str) -> Self {
        let runs = tree.path(LOGIND).exists();
        let mut programs = PROGRAMS.iter().map(|program| tree.path(program));
        let program = programs.find(|program| runs && program.is_file());
        Self { program, why, child: None, needed: None, tried: None }
    }

    /// Holds the lock while it is `needed`, and for a while after that.
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

    /// When to call [`Inhibitor::update`] at the latest.
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
        command.args([WHAT, "--mode=block", "--who=storagetm"]).arg(format!("--why={}", self.why));
        command.arg("cat").env_clear().env("PATH", PATH).current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // A Ctrl-C is not meant for it.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        self.child = command.spawn().ok();
    }

    fn release(&mut self) {
        self.needed = None;
        self.tried = None;
        let Some(mut child) = self.child.take() else { return };
        // The end of the pipe is what it waits for.
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

    /// A machine with a `systemd-inhibit` that runs `script` before what it is to run.
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

    /// Takes down its arguments, and whether it is held.
    const HONEST: &str = "echo \"$@\" >>$ROOT/asked; touch $ROOT/held; cat; rm $ROOT/held";

    fn wait_for(what: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !what() {
            assert!(Instant::now() < end, "it does not come about");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn the_lock_is_held_while_needed_and_a_while_longer() {
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
    fn the_lock_goes_with_its_owner() {
        let fake = machine(HONEST);
        let held = fake.tree().path("held");
        let mut inhibitor = Inhibitor::new(&fake.tree(), "a disk is copied");
        inhibitor.update(true, Instant::now());
        wait_for(|| held.exists());
        drop(inhibitor);
        wait_for(|| !held.exists());
    }

    #[test]
    fn a_lock_that_is_refused_is_asked_for_seldom() {
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
