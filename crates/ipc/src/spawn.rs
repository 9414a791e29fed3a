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
use std::thread;

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
    linux::sandbox::set_cloexec_on_all();
    let mut command = Command::new(executable());
    command.arg0("storagetm").args(arguments).env_clear().current_dir("/").stdin(input);
    command
}

/// Reaps a process that ends soon, or when the disk responds on which it is blocked. Does not wait for it.
pub fn reap(mut child: Child) {
    if matches!(child.try_wait(), Ok(None)) {
        let wait = move || drop(child.wait());
        drop(thread::Builder::new().name("reaper".to_owned()).spawn(wait));
    }
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
