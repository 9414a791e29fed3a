//! The program serving NBD, and how clients reach it.

use serde_json::Value;

use crate::foreign::Folder;
pub(crate) use crate::process::PROGRAM;
use crate::process::Running;

/// Both drivers of the same sessions.
pub(crate) const DRIVERS: [&str; 2] = ["uring", "blocking"];

/// The program, serving; killed at the end.
pub(crate) struct Server {
    running: Running,
    /// Events until it was ready.
    pub(crate) events: Vec<Value>,
    /// What follows the name of a disk in an address, and what goes before.
    place: (String, String),
}

impl Server {
    /// At a Unix socket in the folder. `args` are further options and disks.
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

    /// With these options and disks.
    pub(crate) fn start(args: &[&str]) -> Self {
        let own = ["--json", "--no-announce", "--protocol", "nbd"];
        let running = Running::serve(&[&own, args].concat());
        let place = (String::new(), String::new());
        let mut server = Self { running, events: Vec::new(), place };
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
        self.running.until(name)
    }

    /// Whether it still runs.
    pub(crate) fn lives(&mut self) -> bool {
        self.running.child.try_wait().unwrap().is_none()
    }
}
