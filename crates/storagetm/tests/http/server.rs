//! The program as an HTTP server.

use crate::process::Running;

/// Both drivers.
pub(crate) const DRIVERS: [&str; 2] = ["uring", "blocking"];

/// The program as a server at a free port of the loopback interface; killed when dropped.
pub(crate) struct Server {
    _running: Running,
    /// Its URL, with a slash at the end.
    pub(crate) url: String,
}

impl Server {
    /// `args` are further options, and disks.
    pub(crate) fn start(args: &[&str]) -> Self {
        let own = ["--json", "--no-announce", "--protocol", "http", "--listen", "http:127.0.0.1:0"];
        let running = Running::serve(&[&own, args].concat());
        let (at, _) = running.ready();
        Self { _running: running, url: format!("http://{at}/") }
    }

    pub(crate) fn url_of(&self, name: &str) -> String {
        format!("{}{name}.raw", self.url)
    }
}
