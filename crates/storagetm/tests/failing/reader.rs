//! The reader of the events ends before the server.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::foreign::{Background, Folder, MIB, wait_for};
use crate::serve::PROGRAM;

/// Starts the program, reads one line, and closes the pipe. The program must end by itself.
fn ends_without_a_reader(args: &[&str]) {
    let mut child = Command::new(PROGRAM)
        .args(args)
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut running = Background(child);
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert!(line.starts_with('{'), "{line}");
    drop(output);
    wait_for("the end without a reader", || running.0.try_wait().unwrap());
}

#[test]
fn serve_stops_if_the_event_reader_is_gone() {
    let folder = Folder::new();
    let image = folder.hole("image", MIB);
    ends_without_a_reader(&["serve", "--json", "--no-announce", "--listen", "127.0.0.1:0", &image]);
}

#[test]
fn copy_stops_if_the_event_reader_is_gone() {
    let folder = Folder::new();
    let (source, copied) = (folder.random_bytes("source", 8 * MIB), folder.path("copied"));
    // At this rate it would take longer than the test waits.
    ends_without_a_reader(&["copy", "--json", "--rate", "16K", &source, &copied]);
}
