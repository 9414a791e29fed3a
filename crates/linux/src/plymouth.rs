//! Shows a line on the boot splash (plymouth), if there is one. Never blocks or fails.

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use rustix::net::{connect, recv, send, socket_with};

/// The abstract socket of plymouthd, which accepts only root.
const SOCKET: &[u8] = b"/org/freedesktop/plymouthd";

/// The length of an argument is one byte, and includes the terminating NUL.
const LONGEST: usize = 254;

const SHOW_MESSAGE: u8 = b'M';
const HIDE_MESSAGE: u8 = b'm';
const PAUSE_PROGRESS: u8 = b'A';
const UNPAUSE_PROGRESS: u8 = b'a';
/// Separates a request from its argument.
const ARGUMENT: u8 = 2;

/// A connection to plymouthd.
///
/// plymouthd keeps every message until exactly that one is hidden, and shows them all when the
/// splash is shown again. So the previous line is hidden before another is shown, and on drop.
#[derive(Debug)]
pub struct Plymouth {
    name: &'static [u8],
    link: Option<OwnedFd>,
    shown: Option<String>,
}

impl Default for Plymouth {
    fn default() -> Self {
        Self::open()
    }
}

impl Plymouth {
    /// Does not connect yet: [`Plymouth::show`] does, on each call until it succeeds.
    pub fn open() -> Self {
        Self::at(SOCKET)
    }

    fn at(name: &'static [u8]) -> Self {
        Self { name, link: None, shown: None }
    }

    /// Replaces the line shown. A line of more than 254 bytes is truncated.
    ///
    /// Call it again periodically with the same line: that costs a system call or two, and shows
    /// the line on a splash that was started, or restarted, since.
    pub fn show(&mut self, text: &str) {
        let text = fit(text);
        let is_new_link = self.reach();
        if self.link.is_none() || (!is_new_link && self.shown.as_deref() == Some(text)) {
            return;
        }
        // Also on a new connection: the daemon may still have the line of the previous one.
        let mut requests = self.hide_request();
        emit(&mut requests, SHOW_MESSAGE, Some(text));
        emit(&mut requests, PAUSE_PROGRESS, None);
        self.send(&requests);
        self.shown = Some(text.to_owned());
    }

    /// Hides the line, and resumes the progress bar of the splash.
    pub fn hide(&mut self) {
        if self.shown.is_none() {
            return;
        }
        self.reach();
        let mut requests = self.hide_request();
        emit(&mut requests, UNPAUSE_PROGRESS, None);
        self.send(&requests);
        self.shown = None;
    }

    fn hide_request(&self) -> Vec<u8> {
        let mut requests = Vec::with_capacity(2 * LONGEST + 12);
        if let Some(text) = &self.shown {
            emit(&mut requests, HIDE_MESSAGE, Some(text));
        }
        requests
    }

    /// Connects if not connected. Returns whether the connection is new.
    fn reach(&mut self) -> bool {
        self.link.take_if(|link| is_gone(link));
        if self.link.is_some() {
            return false;
        }
        self.link = dial(self.name).ok();
        self.link.is_some()
    }

    /// Sends all or nothing: if the socket is full, the next call tries again.
    fn send(&mut self, requests: &[u8]) {
        let Some(link) = &self.link else { return };
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        if send(link, requests, flags) != Ok(requests.len()) {
            self.link = None;
        }
    }
}

impl Drop for Plymouth {
    fn drop(&mut self) {
        self.hide();
    }
}

fn dial(name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new_abstract_name(name)?)?;
    Ok(socket)
}

/// Discards replies. Returns whether the connection was closed.
fn is_gone(link: &OwnedFd) -> bool {
    let mut answers = [0; 64];
    loop {
        match recv(link, &mut answers, RecvFlags::DONTWAIT) {
            Ok((0, _)) => return true,
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return false,
            Err(_) => return true,
        }
    }
}

/// Truncates at the first NUL, and to what one byte can count.
fn fit(text: &str) -> &str {
    let text = text.split('\0').next().unwrap_or_default();
    text.get(..text.floor_char_boundary(LONGEST)).unwrap_or(text)
}

/// Appends a request: its letter, and its argument or NUL. The text must be [`fit`].
fn emit(requests: &mut Vec<u8>, request: u8, argument: Option<&str>) {
    requests.push(request);
    let length = argument.map(|text| u8::try_from(text.len() + 1).unwrap_or(u8::MAX));
    requests.extend(length.into_iter().flat_map(|length| [ARGUMENT, length]));
    requests.extend_from_slice(argument.unwrap_or_default().as_bytes());
    requests.push(0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
    use std::time::Duration;

    fn name(test: &str) -> &'static [u8] {
        format!("storagetm-plymouth-{test}-{}", std::process::id()).leak().as_bytes()
    }

    fn daemon(name: &[u8]) -> UnixListener {
        UnixListener::bind_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap()
    }

    fn accept(daemon: &UnixListener) -> UnixStream {
        let client = daemon.accept().unwrap().0;
        client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        client
    }

    #[track_caller]
    fn assert_received(client: &mut UnixStream, requests: &[u8]) {
        let mut heard = vec![0; requests.len()];
        client.read_exact(&mut heard).unwrap();
        assert_eq!(heard.escape_ascii().to_string(), requests.escape_ascii().to_string());
    }

    fn assert_silent(client: &mut UnixStream) {
        client.set_nonblocking(true).unwrap();
        assert!(client.read(&mut [0]).is_err(), "the daemon hears no more");
        client.set_nonblocking(false).unwrap();
    }

    #[test]
    fn old_line_is_hidden_before_the_new_one_is_shown() {
        let name = name("replace");
        let daemon = daemon(name);
        let mut plymouth = Plymouth::at(name);
        plymouth.show("first");
        let mut client = accept(&daemon);
        assert_received(&mut client, b"M\x02\x06first\0A\0");
        plymouth.show("second");
        assert_received(&mut client, b"m\x02\x06first\0M\x02\x07second\0A\0");
        plymouth.show("second");
        assert_silent(&mut client);
        drop(plymouth);
        assert_received(&mut client, b"m\x02\x07second\0a\0");
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn splash_that_is_started_later_shows_the_line() {
        let name = name("late");
        let mut plymouth = Plymouth::at(name);
        plymouth.show("line");
        let first = daemon(name);
        plymouth.show("line");
        let mut client = accept(&first);
        assert_received(&mut client, b"M\x02\x05line\0A\0");
        drop((client, first));
        plymouth.show("line");
        let second = daemon(name);
        plymouth.show("line");
        assert_received(&mut accept(&second), b"m\x02\x05line\0M\x02\x05line\0A\0");
    }

    #[test]
    fn without_a_splash_nothing_happens() {
        let mut plymouth = Plymouth::at(name("none"));
        plymouth.hide();
        plymouth.show("line");
        plymouth.hide();
        assert!(plymouth.link.is_none());
    }

    #[test]
    fn stalled_splash_does_not_block() {
        let name = name("stuck");
        let daemon = daemon(name);
        let mut plymouth = Plymouth::at(name);
        // Far more than the socket buffer holds: the daemon reads none of it.
        for number in 0..10_000 {
            plymouth.show(&format!("{number:0>200}"));
        }
        drop(plymouth);
        drop(daemon);
    }

    #[test]
    fn long_line_is_cut_at_a_character_boundary() {
        assert_eq!(fit(&"x".repeat(300)).len(), 254);
        let long = format!("x{}", "ä".repeat(200));
        assert_eq!(fit(&long).len(), 253);
        assert_eq!(fit("a\0b"), "a");
        let mut request = Vec::new();
        emit(&mut request, SHOW_MESSAGE, Some(fit(&"x".repeat(300))));
        assert_eq!((request[2], request.len()), (255, 258));
    }
}
