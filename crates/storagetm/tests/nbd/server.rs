//! The program serving NBD, and how clients reach it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use serde_json::Value;

use crate::foreign::{Folder, LONG};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_storagetm");

/// Both drivers of the same sessions.
pub(crate) const DRIVERS: [&str; 2] = ["uring", "blocking"];

/// The program, serving; killed at the end.
pub(crate) struct Server {
    child: Child,
    lines: Receiver<String>,
    /// Events until it was ready.
    pub(crate) events: Vec<Value>,
    /// What follows the name of a disk in an address, and what goes before.
    place: (String, String),
}

impl Server {
    /// At a Unix socket in the folder. `words` are further options and disks.
    pub(crate) fn unix(folder: &Folder, args: &[&str]) -> Self {
        let socket = folder.path("socket");
        let at = format!("nbd:unix:{socket}");
        let mut server = Self::start(&[&["--listen", &at], args].concat());
        server.place = ("nbd+unix:///".to_owned(), format!("?socket={socket}"));
        server
    }

    /// At a free port of the loopback.
    pub(crate) fn tcp(args: &[&str]) -> Self {
        let mut server = Self::start(&[&["--listen", "nbd:127.0.0.1:0"], args].concat());
        server.place.0 = format!("nbd://127.0.0.1:{}/", server.port());
        server
    }

    /// Where `words` say.
    pub(crate) fn start(args: &[&str]) -> Self {
        let mut child = Command::new(PROGRAM)
            .args(["serve", "--json", "--no-announce", "--protocol", "nbd"])
            .args(args)
            .env_remove("NOTIFY_SOCKET")
            .env_remove("CREDENTIALS_DIRECTORY")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (send, lines) = channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| send.send(line))
        });
        let place = (String::new(), String::new());
        let mut server = Self { child, lines, events: Vec::new(), place };
        server.events = server.until("ready");
        server
    }

    /// The address of the disk of that name; the empty one is the only disk.
    pub(crate) fn uri(&self, name: &str) -> String {
        format!("{}{name}{}", self.place.0, self.place.1)
    }

    /// The port that it listens on.
    pub(crate) fn port(&self) -> u16 {
        let port = self.events.iter().find_map(|event| event["port"].as_u64());
        port.expect("a port").try_into().unwrap()
    }

    /// The events up to the next of that name.
    pub(crate) fn until(&self, name: &str) -> Vec<Value> {
        let mut events = Vec::new();
        while events.last().is_none_or(|event: &Value| event["event"] != name) {
            let line = self.lines.recv_timeout(LONG).expect("an event");
            events.push(
                serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}")),
            );
        }
        events
    }

    /// Whether it still runs.
    pub(crate) fn lives(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
