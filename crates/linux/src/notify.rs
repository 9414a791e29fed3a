//! Reports the state of the program to the service manager by `sd_notify` datagrams. Does nothing
//! without a service manager.

use std::env;
use std::ffi::OsString;
use std::io::{self, Error, ErrorKind};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// A connection to the service manager, if there is one.
#[derive(Debug)]
pub struct Notifier {
    socket: Option<UnixDatagram>,
    watchdog_timeout: Option<Duration>,
}

impl Notifier {
    /// Connects to the socket `NOTIFY_SOCKET`, and reads the watchdog timeout from `WATCHDOG_USEC` and
    /// `WATCHDOG_PID`.
    ///
    /// # Errors
    /// Fails if the socket cannot be reached.
    pub fn open() -> io::Result<Self> {
        let socket = env::var_os("NOTIFY_SOCKET").map(connect).transpose()?;
        let pid = env::var("WATCHDOG_PID").ok();
        let timeout = env::var("WATCHDOG_USEC").ok();
        Ok(Self { socket, watchdog_timeout: watchdog_timeout(timeout.as_deref(), pid.as_deref()) })
    }

    /// Returns the interval for [`Notifier::watchdog`]: half of the watchdog timeout.
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.socket.as_ref().and(self.watchdog_timeout).map(|timeout| timeout / 2)
    }

    /// Reports that startup is complete.
    pub fn ready(&self) -> io::Result<()> {
        self.send("READY=1")
    }

    /// Reports that the program shuts down.
    pub fn stopping(&self) -> io::Result<()> {
        self.send("STOPPING=1")
    }

    /// Sends a watchdog keep-alive.
    pub fn watchdog(&self) -> io::Result<()> {
        self.send("WATCHDOG=1")
    }

    /// Sets the status line that `systemctl status` shows; line breaks are replaced by spaces.
    pub fn status(&self, status: &str) -> io::Result<()> {
        self.send(&format!("STATUS={}", status.replace(['\n', '\r'], " ")))
    }

    fn send(&self, state: &str) -> io::Result<()> {
        match &self.socket {
            Some(socket) => socket.send(state.as_bytes()).map(drop),
            None => Ok(()),
        }
    }
}

fn connect(name: OsString) -> io::Result<UnixDatagram> {
    let address = match name.as_bytes() {
        [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest)?,
        [b'/', ..] => SocketAddr::from_pathname(&name)?,
        _ => {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "NOTIFY_SOCKET is not a Unix socket address",
            ));
        }
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    Ok(socket)
}

fn watchdog_timeout(microseconds: Option<&str>, pid: Option<&str>) -> Option<Duration> {
    if pid.is_some_and(|pid| pid.parse() != Ok(std::process::id())) {
        return None;
    }
    microseconds?.parse().ok().filter(|time| *time > 0).map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::fake::Fake;

    fn received(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 200];
        let length = socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }

    #[test]
    fn each_state_is_one_datagram() {
        let fake = Fake::new();
        let path = fake.root.join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let watchdog_timeout = Some(Duration::from_secs(4));
        let notifier = Notifier { socket: Some(connect(path.into()).unwrap()), watchdog_timeout };
        notifier.ready().unwrap();
        notifier.status("two\nlines").unwrap();
        notifier.watchdog().unwrap();
        notifier.stopping().unwrap();
        let states: Vec<String> = (0..4).map(|_| received(&manager)).collect();
        assert_eq!(states, ["READY=1", "STATUS=two lines", "WATCHDOG=1", "STOPPING=1"]);
        assert_eq!(notifier.watchdog_interval(), Some(Duration::from_secs(2)));
    }

    #[test]
    fn abstract_socket_is_supported() {
        let name = format!("storagetm-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        connect(format!("@{name}").into()).unwrap().send(b"READY=1").unwrap();
        assert_eq!(received(&manager), "READY=1");
    }

    #[test]
    fn without_a_service_manager_nothing_is_sent() {
        let notifier = Notifier { socket: None, watchdog_timeout: Some(Duration::from_secs(4)) };
        notifier.ready().unwrap();
        assert_eq!(notifier.watchdog_interval(), None);
    }

    #[test]
    fn watchdog_of_another_process_is_ignored() {
        let own = std::process::id().to_string();
        assert_eq!(watchdog_timeout(Some("2000000"), Some(&own)), Some(Duration::from_secs(2)));
        assert_eq!(watchdog_timeout(Some("2000000"), None), Some(Duration::from_secs(2)));
        assert_eq!(watchdog_timeout(Some("2000000"), Some("1")), None);
        assert_eq!(watchdog_timeout(Some("0"), None), None);
        assert_eq!(watchdog_timeout(Some("soon"), None), None);
    }

    #[test]
    fn vsock_address_is_unsupported() {
        assert!(connect("vsock:2:1234".into()).is_err());
    }
}
