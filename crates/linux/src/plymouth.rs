//! Shows a line on the boot splash (plymouth), where there is one.
//!
//! Does not know what the line says. Nothing here waits, and nothing fails: without a splash nothing happens.

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use rustix::net::{connect, recv, send, socket_with};

/// The abstract socket of plymouthd, which answers none but root.
const SOCKET: &[u8] = b"/org/freedesktop/plymouthd";

/// The length of an argument is one byte on the wire, and counts the NUL behind the text.
const LONGEST: usize = 254;

const SHOW_MESSAGE: u8 = b'M';
const HIDE_MESSAGE: u8 = b'm';
const PAUSE_PROGRESS: u8 = b'A';
const UNPAUSE_PROGRESS: u8 = b'a';
/// Stands between a request and its argument.
const ARGUMENT: u8 = 2;

/// The way to the splash.
///
/// plymouthd keeps every message until it is told to hide just that one, and shows them all when the splash comes back.
/// So what was shown is hidden before anything else is, also when this is dropped.
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
    /// Looks for no splash yet: [`Plymouth::show`] does, each time anew while there is none.
    pub fn open() -> Self {
        Self::at(SOCKET)
    }

    fn at(name: &'static [u8]) -> Self {
        Self { name, link: None, shown: None }
    }

    /// Shows one line of at most 254 bytes instead of the one shown before; what is longer is cut.
    ///
    /// Call it again now and then with the same line: that costs a system call or two, and shows the line to a splash
    /// that came, or came back, since.
    pub fn show(&mut self, text: &str) {
        let text = fit(text);
        let is_new_link = self.reach();
        if self.link.is_none() || (!is_new_link && self.shown.as_deref() == Some(text)) {
            return;
        }
        // Also on a new link: it may lead to the same daemon, which still has the line of the last one.
        let mut requests = self.hide_request();
        emit(&mut requests, SHOW_MESSAGE, Some(text));
        emit(&mut requests, PAUSE_PROGRESS, None);
        self.send(&requests);
        self.shown = Some(text.to_owned());
    }

    /// Takes the line away, and lets the splash's progress bar go on.
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

    /// Connects if there is no link, or none any more. Returns whether the link is a new one.
    fn reach(&mut self) -> bool {
        self.link.take_if(|link| is_gone(link));
        if self.link.is_some() {
            return false;
        }
        self.link = dial(self.name).ok();
        self.link.is_some()
    }

    /// All or nothing: a splash that does not take it at once is not waited for, but asked anew the next time.
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

/// Reads the answers, of which none matters, up to the end of the link if it has one.
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

/// Up to the first NUL, which would end the text on the other side, and no longer than one byte can say.
fn fit(text: &str) -> &str {
    let text = text.split('\0').next().unwrap_or_default();
    text.get(..text.floor_char_boundary(LONGEST)).unwrap_or(text)
}

/// Adds a request: its letter, and its argument if it has one, or NUL. The text must [`fit`].
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
    fn assert_heard(client: &mut UnixStream, requests: &[u8]) {
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
    fn the_old_line_is_hidden_before_the_new_one_is_shown() {
        let name = name("replace");
        let daemon = daemon(name);
        let mut plymouth = Plymouth::at(name);
        plymouth.show("first");
        let mut client = accept(&daemon);
        assert_heard(&mut client, b"M\x02\x06first\0A\0");
        plymouth.show("second");
        assert_heard(&mut client, b"m\x02\x06first\0M\x02\x07second\0A\0");
        plymouth.show("second");
        assert_silent(&mut client);
        drop(plymouth);
        assert_heard(&mut client, b"m\x02\x07second\0a\0");
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_splash_that_starts_late_or_starts_again_is_shown_the_line() {
        let name = name("late");
        let mut plymouth = Plymouth::at(name);
        plymouth.show("line");
        let first = daemon(name);
        plymouth.show("line");
        let mut client = accept(&first);
        assert_heard(&mut client, b"M\x02\x05line\0A\0");
        drop((client, first));
        plymouth.show("line");
        let second = daemon(name);
        plymouth.show("line");
        assert_heard(&mut accept(&second), b"m\x02\x05line\0M\x02\x05line\0A\0");
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
    fn a_splash_that_does_not_answer_is_not_waited_for() {
        let name = name("stuck");
        let daemon = daemon(name);
        let mut plymouth = Plymouth::at(name);
        // Far more than a socket holds: the daemon reads none of it.
        for number in 0..10_000 {
            plymouth.show(&format!("{number:0>200}"));
        }
        drop(plymouth);
        drop(daemon);
    }

    #[test]
    fn a_line_is_cut_to_what_one_byte_can_count_and_never_inside_a_letter() {
        assert_eq!(fit(&"x".repeat(300)).len(), 254);
        let long = format!("x{}", "ä".repeat(200));
        assert_eq!(fit(&long).len(), 253);
        assert_eq!(fit("a\0b"), "a");
        let mut request = Vec::new();
        emit(&mut request, SHOW_MESSAGE, Some(fit(&"x".repeat(300))));
        assert_eq!((request[2], request.len()), (255, 258));
    }
}
