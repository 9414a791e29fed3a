//! Access of callers: root may acquire volumes, and others if polkit allows it. polkit is asked by its program
//! `pkcheck`, as systemd-inhibit is asked for the inhibitor lock: one call does not need a client of
//! D-Bus.

use std::io::ErrorKind;
use std::process::{Command, Stdio};

use linux::peer::Peer;
use varlink::message::Reply;
use varlink::service::permission_denied;

use super::interface::authentication_required;
use super::report;

/// The action of polkit (io.github.storagetm.policy).
const ACTION: &str = "io.github.storagetm.provider.acquire";

/// Where distributions install pkcheck. `PATH` is not used: the service may be started by hand.
const PROGRAM: &str = "/usr/bin/pkcheck";

/// The process at the other end of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller {
    peer: Peer,
}

impl Caller {
    pub(super) fn new(peer: Peer) -> Self {
        Self { peer }
    }

    pub(super) fn is_root(self) -> bool {
        self.peer.user.is_root()
    }

    /// Succeeds if the caller may acquire the volume `name`. With `interactive` polkit may ask the
    /// user for a password, which takes as long as the user does.
    ///
    /// # Errors
    /// Fails with the reply.
    pub(super) fn may_acquire(self, name: &str, interactive: bool) -> Result<(), Reply> {
        if self.is_root() { Ok(()) } else { self.ask_polkit(Some(name), interactive) }
    }

    /// Succeeds if the caller may see which volumes there are: other machines are asked for that
    /// with the keys of this one. No password is asked for: `ListVolumes` has no parameter that allows it.
    ///
    /// # Errors
    /// Fails with the reply.
    pub(super) fn may_list(self) -> Result<(), Reply> {
        if self.is_root() { Ok(()) } else { self.ask_polkit(None, false) }
    }

    fn ask_polkit(self, volume: Option<&str>, interactive: bool) -> Result<(), Reply> {
        // polkit cannot look at a process of a PID namespace that is not seen from here.
        let process = self.peer.process.ok_or_else(permission_denied)?.as_raw_nonzero();
        let begun = start_time(process.get()).ok_or_else(permission_denied)?;
        // The start time tells the process from a later one, and the user from that of a program
        // that it may have started since it connected.
        let subject = format!("{process},{begun},{}", self.peer.user.as_raw());
        let mut check = Command::new(PROGRAM);
        check.args(["--action-id", ACTION, "--process", &subject]);
        if let Some(volume) = volume {
            check.args(["--detail", "name", volume]);
        }
        if interactive {
            check.arg("--allow-user-interaction");
        }
        check.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        match check.status().map(|status| status.code()) {
            Ok(Some(0)) => Ok(()),
            // pkcheck(1): 2 if a user would have to authenticate.
            Ok(Some(2)) if !interactive => Err(authentication_required()),
            Ok(_) => Err(permission_denied()),
            Err(error) => {
                if error.kind() != ErrorKind::NotFound {
                    report(&format!("{PROGRAM} cannot be started: {error}"));
                }
                Err(permission_denied())
            }
        }
    }
}

/// Returns when a process was started, in clock ticks since boot: field 22 of proc_pid_stat(5).
fn start_time(process: i32) -> Option<u64> {
    started(&std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?)
}

fn started(stat: &str) -> Option<u64> {
    // The second field, in parentheses, may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn start_time_does_not_depend_on_the_name_of_a_process() {
        let rest = "S 1 2 3 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 8765 9 10";
        for name in ["sh", "a b", "x) S 9 (y"] {
            assert_eq!(started(&format!("77 ({name}) {rest}")), Some(8765), "{name}");
        }
        assert_eq!(started("77 (sh) S 1"), None);
        assert!(start_time(std::process::id().try_into().unwrap()).is_some());
    }
}
