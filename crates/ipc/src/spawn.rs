//! Starts the program once more for one task, which the calling process must not do itself: because its input is not to
//! be trusted, or because a disk that does not answer would keep it from ever ending.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// The program that runs, whatever has become of its file.
const SELF: &str = "/proc/self/exe";

/// Starts `storagetm TASK` with one end of a socket as its standard input, and returns the other end.
///
/// # Errors
/// There is no descriptor, no memory, or nothing to start.
pub fn with_socket(task: &str) -> io::Result<(Child, UnixStream)> {
    let (own, other) = UnixStream::pair()?;
    Ok((with_stdin(task, other.into())?, own))
}

/// Starts `storagetm TASK` with `input` as its standard input, and no other descriptor, environment or folder.
///
/// # Errors
/// As [`converse`].
pub fn with_stdin(task: &str, input: OwnedFd) -> io::Result<Child> {
    command(&[task], input).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
}

/// What starts `storagetm WORDS` with `input` as its standard input, without environment and folder.
pub fn command(arguments: &[&str], input: OwnedFd) -> Command {
    linux::sandbox::set_cloexec_on_all();
    let mut command = Command::new(executable());
    command
        .arg0("storagetm")
        .args(arguments)
        .env_clear()
        .current_dir("/")
        .process_group(0)
        .stdin(input);
    command
}

/// Where nothing is mounted, the path by which the program was started.
pub fn executable() -> PathBuf {
    let proc = PathBuf::from(SELF);
    if proc.symlink_metadata().is_ok() {
        return proc;
    }
    let path = rustix::param::linux_execfn().to_bytes().to_vec();
    std::path::absolute(PathBuf::from(OsString::from_vec(path))).unwrap_or(proc)
}
