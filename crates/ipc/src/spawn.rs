//! Spawns this program again for one task: because its input is untrusted, or because a process
//! that is blocked on an unresponsive disk cannot exit.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// Processes for which no thread could be started: reaped by a later call of [`reap`] or [`command`].
static UNREAPED: Mutex<Vec<Child>> = Mutex::new(Vec::new());

/// The running executable, even if its file was replaced.
const SELF: &str = "/proc/self/exe";

/// Spawns `storagetm TASK` with one end of a socket pair as standard input. Returns the other end.
///
/// # Errors
/// Fails if descriptors, memory or processes are exhausted.
pub fn with_socket(task: &str) -> io::Result<(Child, UnixStream)> {
    let (own, other) = UnixStream::pair()?;
    Ok((with_stdin(task, other.into())?, own))
}

/// Spawns `storagetm TASK` with `input` as standard input and no other descriptor, environment or
/// working directory.
///
/// # Errors
/// As [`with_socket`].
pub fn with_stdin(task: &str, input: OwnedFd) -> io::Result<Child> {
    let mut command = command(&[task], input);
    // In a process group of its own: Ctrl-C does not end it.
    command.process_group(0).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
}

/// The command `storagetm ARGUMENTS` with `input` as standard input, without environment and
/// working directory. It is in the process group of this process, so that Ctrl-C ends it, too.
pub fn command(arguments: &[&str], input: OwnedFd) -> Command {
    reap_ended();
    linux::sandbox::set_cloexec_on_all();
    let mut command = Command::new(executable());
    command.arg0("storagetm").args(arguments).env_clear().current_dir("/").stdin(input);
    command
}

/// Reaps a process that ends soon, or when the disk responds on which it is blocked. Does not wait for it. If no thread can
/// be started for that, it is reaped when the next process is started or reaped after its end.
pub fn reap(child: Child) {
    reap_on(child, |wait| thread::Builder::new().name("reaper".to_owned()).spawn(wait).map(drop));
}

/// Reaps a process on a thread that `start` starts.
fn reap_on(mut child: Child, start: impl FnOnce(Box<dyn FnOnce() + Send>) -> io::Result<()>) {
    reap_ended();
    if !matches!(child.try_wait(), Ok(None)) {
        return;
    }
    // The thread takes it, unless it cannot be started.
    let child = Arc::new(Mutex::new(Some(child)));
    let take =
        |child: &Mutex<Option<Child>>| child.lock().unwrap_or_else(PoisonError::into_inner).take();
    let of_thread = child.clone();
    let wait = move || drop(take(&of_thread).map(|mut child| child.wait()));
    if start(Box::new(wait)).is_err() {
        UNREAPED.lock().unwrap_or_else(PoisonError::into_inner).extend(take(&child));
    }
}

/// Reaps those of [`UNREAPED`] that have ended.
fn reap_ended() {
    let mut unreaped = UNREAPED.lock().unwrap_or_else(PoisonError::into_inner);
    unreaped.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
}

/// Path of the executable: [`SELF`], or the path that was executed if `/proc` is not mounted.
pub fn executable() -> PathBuf {
    let proc = PathBuf::from(SELF);
    if proc.symlink_metadata().is_ok() {
        return proc;
    }
    let path = rustix::param::linux_execfn().to_bytes().to_vec();
    std::path::absolute(PathBuf::from(OsString::from_vec(path))).unwrap_or(proc)
}

#[cfg(test)]
mod test {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn process_is_reaped_also_without_a_thread() {
        let child = Command::new("/bin/sleep").arg("0.1").spawn().unwrap();
        let place = PathBuf::from(format!("/proc/{}", child.id()));
        reap_on(child, |_| Err(io::ErrorKind::WouldBlock.into()));
        let end = Instant::now() + Duration::from_secs(60);
        while place.exists() {
            assert!(Instant::now() < end, "{} is still there", place.display());
            thread::sleep(Duration::from_millis(20));
            reap_on(Command::new("/bin/true").spawn().unwrap(), |wait| {
                wait();
                Ok(())
            });
        }
    }
}
