//! The program as an NBD server.

use serde_json::Value;

use crate::foreign::Folder;
pub(crate) use crate::process::PROGRAM;
use crate::process::Running;

/// Both drivers.
pub(crate) const DRIVERS: [&str; 2] = ["uring", "blocking"];

/// The program as a server; killed when dropped.
pub(crate) struct Server {
    running: Running,
    /// Events up to `ready`.
    pub(crate) events: Vec<Value>,
    /// The parts of a URI after and before the name of an export.
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

    /// Starts the server at a free port of the loopback interface.
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

    /// Returns the URI of an export; an empty name selects the only one.
    pub(crate) fn uri(&self, name: &str) -> String {
        format!("{}{name}{}", self.place.0, self.place.1)
    }

    /// Returns the event of the first disk.
    pub(crate) fn lent(&self) -> &Value {
        self.events.iter().find(|event| event["event"] == "lent").expect("a disk")
    }

    /// Returns the port of the listener.
    pub(crate) fn port(&self) -> u16 {
        let port = self.events.iter().find_map(|event| event["port"].as_u64());
        port.expect("a port").try_into().unwrap()
    }

    /// Returns the events up to the next of that name.
    pub(crate) fn until(&self, name: &str) -> Vec<Value> {
        self.running.until(name)
    }

    /// Returns whether the server still runs.
    pub(crate) fn lives(&mut self) -> bool {
        self.running.child.try_wait().unwrap().is_none()
    }
}
