//! Spawns the worker process.

use std::io::{self, BufRead, BufReader, PipeReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::Arc;
use std::thread;

use rustix::rand::{GetRandomFlags, getrandom};

use super::Shared;
use crate::inbox::WorkerEvent;
use ipc::spawn::executable;

/// Most lines of output that are forwarded, and their longest length: only panics should cause
/// output.
const MAX_LINES: usize = 64;
const MAX_LINE: u64 = 1000;

/// Spawns the worker with the other end of the socket as standard input. Its output goes to a pipe
/// and is reported as notes. It inherits no environment and no other descriptor, and is in a
/// process group of its own.
///
/// Waits until the kernel's random number generator is initialized, which takes a second after the
/// start of a machine without RDRAND: the TLS library would wait too, and print so.
///
/// # Errors
/// Fails if descriptors, memory or processes are exhausted.
pub(super) fn spawn(shared: &Arc<Shared>) -> io::Result<(Child, UnixStream)> {
    rustix::io::retry_on_intr(|| getrandom(&mut [0; 1], GetRandomFlags::empty()))?;
    linux::sandbox::set_cloexec_on_all();
    let (own, other) = UnixStream::pair()?;
    let (output, pipe) = io::pipe()?;
    let child = Command::new(executable())
        .arg0("storagetm")
        .arg("worker")
        .env_clear()
        .current_dir("/")
        .process_group(0)
        .stdin(OwnedFd::from(other))
        .stdout(pipe.try_clone()?)
        .stderr(pipe)
        .spawn()?;
    let shared = shared.clone();
    let listen = move || forward_output(output, &shared);
    thread::Builder::new().name("output".to_owned()).spawn(listen)?;
    Ok((child, own))
}

/// Forwards the worker's output, such as panic messages, as notes.
fn forward_output(output: PipeReader, shared: &Arc<Shared>) {
    let mut output = BufReader::new(output);
    for _ in 0..MAX_LINES {
        let mut line = Vec::new();
        match output.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
            Ok(1..) => shared.emit(WorkerEvent::Note(output_note(&line))),
            _ => return,
        }
    }
    // Drain the pipe so that the worker does not block on it.
    let _ = io::copy(&mut output, &mut io::sink());
}

fn output_note(line: &[u8]) -> String {
    format!("The process that talks to hosts says: {}", String::from_utf8_lossy(line).trim_end())
}
