//! TLS handshakes for connections of the kernel (Linux 6.5, `net/handshake`), in the place of tlshd: receives the
//! kernel's requests by generic netlink (`Documentation/netlink/specs/handshake.yaml`), and gives the keys of a
//! connection to the kernel, which encrypts it from then on (kTLS, `Documentation/networking/tls.rst`).

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use zeroize::Zeroizing;

use crate::netlink::{Attributes, Messages, Received, Socket, ask, put};
use crate::syscall::{set_socket_option, take_opened};

/// `GENL_ID_CTRL`: the family that knows the numbers of all others.
const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const GROUPS: u16 = 7;
const GROUP_NAME: u16 = 1;
const GROUP_ID: u16 = 2;
/// The part of an attribute's type without its flags (`NLA_TYPE_MASK`).
const TYPE: u16 = 0x3fff;

const READY: u8 = 1;
const ACCEPT: u8 = 2;
const DONE: u8 = 3;
/// The attributes of ACCEPT.
const SOCKET: u16 = 1;
const HANDLER_CLASS: u16 = 2;
const MESSAGE_TYPE: u16 = 3;
const TIMEOUT: u16 = 4;
const AUTH_MODE: u16 = 5;
const PEER_IDENTITY: u16 = 6;
/// The attributes of DONE.
const DONE_STATUS: u16 = 1;
const DONE_SOCKET: u16 = 2;
const DONE_REMOTE_AUTH: u16 = 3;
/// `HANDSHAKE_HANDLER_CLASS_TLSHD`.
const TLSHD: u32 = 1;
const CLIENT_HELLO: u32 = 1;
const PSK: u32 = 2;

const SOL_TCP: i32 = 6;
const TCP_ULP: i32 = 31;
const SOL_TLS: i32 = 282;
const TLS_TX: i32 = 1;
const TLS_RX: i32 = 2;
const TLS_1_3: u16 = 0x0304;

/// Receives the kernel's requests.
#[derive(Debug)]
pub struct Handshakes {
    socket: Socket,
    family: u16,
}

/// A handshake that the kernel wants on one of its connections.
#[derive(Debug)]
pub struct Request {
    /// The connection.
    pub socket: OwnedFd,
    /// The serial numbers of the PSKs that may be used; empty unless this end is the client and PSKs are wanted.
    pub keys: Vec<i32>,
    /// How long it may take, if that is limited.
    pub timeout: Option<Duration>,
}

/// A cipher that the kernel's TLS supports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cipher {
    Aes128Gcm = 51,
    Aes256Gcm = 52,
    ChaCha20Poly1305 = 54,
}

/// The key and the IV of one direction (RFC 8446 §7.3), for the first record.
#[allow(missing_debug_implementations, reason = "a key is not printed")]
pub struct TrafficKey<'a> {
    pub cipher: Cipher,
    pub key: &'a [u8],
    pub iv: &'a [u8; 12],
}

impl Handshakes {
    /// Registers this process for handshakes: from now on the kernel asks it, or another that does the same.
    ///
    /// # Errors
    /// Fails if the kernel has no such requests, or this user is not root.
    pub fn listen() -> io::Result<Self> {
        let mut body = general(GET_FAMILY);
        put(&mut body, FAMILY_NAME, b"handshake\0");
        let answer = ask(CONTROL, false, &body)?;
        let (family, group) = family(&answer).ok_or(io::ErrorKind::Unsupported)?;
        let socket = Socket::generic(None)?;
        socket.join(group)?;
        Ok(Self { socket, family })
    }

    /// Waits for a request.
    ///
    /// # Errors
    /// Fails if the socket does. A request that another process has taken, or that ended meanwhile, is skipped.
    pub fn receive(&mut self) -> io::Result<Request> {
        loop {
            // A request that was there before is noticed, too: each is asked for until there is none.
            match self.accept() {
                Ok(Some(request)) => return Ok(request),
                Ok(None) => {}
                Err(error) if error.raw_os_error().is_some() => {}
                Err(error) => return Err(error),
            }
            self.wait()?;
        }
    }

    /// Waits until the kernel announces a request, or announcements were lost.
    fn wait(&mut self) -> io::Result<()> {
        loop {
            let Received::Datagram(datagram) = self.socket.receive()? else { return Ok(()) };
            let mut messages = Messages(datagram).filter(|it| it.kind == self.family);
            if messages.any(|it| it.payload.first() == Some(&READY)) {
                return Ok(());
            }
        }
    }

    /// Takes the next request, if there is one.
    fn accept(&self) -> io::Result<Option<Request>> {
        let mut body = general(ACCEPT);
        put(&mut body, HANDLER_CLASS, &TLSHD.to_ne_bytes());
        match ask(self.family, false, &body) {
            Ok(answer) => request(&answer).map(Some),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns what tells the kernel how a handshake has ended, for another thread.
    pub fn answer(&self) -> Answer {
        Answer { family: self.family }
    }
}

/// Tells the kernel how a handshake has ended.
#[derive(Debug, Clone, Copy)]
pub struct Answer {
    family: u16,
}

impl Answer {
    /// Tells the kernel how a handshake has ended: with the serial number of the PSK, or with an error.
    ///
    /// # Errors
    /// Fails if the kernel no longer waits for it.
    pub fn send(self, request: &Request, outcome: &io::Result<i32>) -> io::Result<()> {
        let mut body = general(DONE);
        let status = outcome.as_ref().err().map_or(0, |error| error.raw_os_error().unwrap_or(13));
        put(&mut body, DONE_STATUS, &status.to_ne_bytes());
        put(&mut body, DONE_SOCKET, &request.socket.as_raw_fd().to_ne_bytes());
        if let Ok(key) = outcome {
            put(&mut body, DONE_REMOTE_AUTH, &key.to_ne_bytes());
        }
        ask(self.family, true, &body).map(drop)
    }
}

/// The header of a generic netlink message: command and version.
fn general(command: u8) -> Vec<u8> {
    vec![command, 1, 0, 0]
}

fn number(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

fn attributes(payload: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    Attributes(payload).map(|(kind, value)| (kind & TYPE, value))
}

/// Returns the numbers of the family and of its multicast group `tlshd`.
fn family(answer: &[u8]) -> Option<(u16, u32)> {
    let body = answer.get(4..)?;
    let value = |wanted| attributes(body).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let id = u16::from_ne_bytes(*value(FAMILY_ID)?.first_chunk()?);
    let group = attributes(value(GROUPS)?).find_map(|(_, group)| {
        let part = |wanted| attributes(group).find(|(kind, _)| *kind == wanted);
        let is_it = part(GROUP_NAME)?.1.starts_with(b"tlshd\0");
        if is_it { number(part(GROUP_ID)?.1) } else { None }
    })?;
    Some((id, group))
}

/// Parses the reply to ACCEPT, and takes ownership of the socket in it.
fn request(answer: &[u8]) -> io::Result<Request> {
    let body = answer.get(4..).unwrap_or_default();
    let one = |wanted| attributes(body).find(|(kind, _)| *kind == wanted);
    let value = |wanted| one(wanted).and_then(|(_, value)| number(value));
    let socket = value(SOCKET).ok_or(io::ErrorKind::InvalidData)?;
    let socket = take_opened(socket.cast_signed())?;
    let is_ours = value(MESSAGE_TYPE) == Some(CLIENT_HELLO) && value(AUTH_MODE) == Some(PSK);
    let keys = attributes(body).filter(|(kind, _)| is_ours && *kind == PEER_IDENTITY);
    let keys = keys.filter_map(|(_, value)| number(value)).map(u32::cast_signed).collect();
    let timeout = value(TIMEOUT).map(|ms| Duration::from_millis(ms.into()));
    Ok(Request { socket, keys, timeout })
}

/// Gives the kernel the keys of a connection after its handshake: those for sending and for receiving.
///
/// # Errors
/// Fails if the kernel lacks its TLS (the module `tls`) or the cipher.
pub fn install(
    socket: impl AsFd,
    send: &TrafficKey<'_>,
    receive: &TrafficKey<'_>,
) -> io::Result<()> {
    let socket = socket.as_fd();
    set_socket_option(socket, (SOL_TCP, TCP_ULP), b"tls")?;
    set_socket_option(socket, (SOL_TLS, TLS_TX), &info(send))?;
    Ok(set_socket_option(socket, (SOL_TLS, TLS_RX), &info(receive))?)
}

/// `struct tls12_crypto_info_…` of `linux/tls.h`: version, cipher, IV, key, salt, number of the next record. The first
/// four bytes of the IV are the salt of AES-GCM; ChaCha20-Poly1305 has none.
fn info(key: &TrafficKey<'_>) -> Zeroizing<Vec<u8>> {
    let mut info = Zeroizing::new(Vec::with_capacity(64));
    info.extend_from_slice(&TLS_1_3.to_ne_bytes());
    info.extend_from_slice(&(key.cipher as u16).to_ne_bytes());
    let salt = if key.cipher == Cipher::ChaCha20Poly1305 { 0 } else { 4 };
    let (salt, iv) = key.iv.split_at(salt);
    for part in [iv, key.key, salt, &[0; 8]] {
        info.extend_from_slice(part);
    }
    info
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn family_and_group_are_found_by_their_names() {
        let mut group = Vec::new();
        put(&mut group, GROUP_ID, &9u32.to_ne_bytes());
        put(&mut group, GROUP_NAME, b"tlshd\0");
        let mut other = Vec::new();
        put(&mut other, GROUP_ID, &8u32.to_ne_bytes());
        put(&mut other, GROUP_NAME, b"none\0");
        let mut groups = Vec::new();
        put(&mut groups, 1, &other);
        put(&mut groups, 2 | 0x8000, &group);
        let mut answer = vec![1, 2, 0, 0];
        put(&mut answer, FAMILY_NAME, b"handshake\0");
        put(&mut answer, FAMILY_ID, &31u16.to_ne_bytes());
        put(&mut answer, GROUPS | 0x8000, &groups);
        assert_eq!(family(&answer), Some((31, 9)));
        for cut in 0..answer.len() {
            assert_eq!(family(&answer[..cut]), None, "cut at {cut}");
        }
    }

    #[test]
    fn keys_are_those_of_a_client_with_psks() {
        for (kind, mode, wanted) in [(1, 2, vec![7, -9]), (2, 2, vec![]), (1, 3, vec![])] {
            let file = std::fs::File::open("/dev/null").unwrap();
            let number = std::os::fd::IntoRawFd::into_raw_fd(file);
            let mut answer = vec![ACCEPT, 1, 0, 0];
            put(&mut answer, SOCKET, &number.to_ne_bytes());
            put(&mut answer, MESSAGE_TYPE, &u32::to_ne_bytes(kind));
            put(&mut answer, AUTH_MODE, &u32::to_ne_bytes(mode));
            put(&mut answer, TIMEOUT, &1500u32.to_ne_bytes());
            put(&mut answer, PEER_IDENTITY, &7i32.to_ne_bytes());
            put(&mut answer, PEER_IDENTITY, &(-9i32).to_ne_bytes());
            let request = request(&answer).unwrap();
            assert_eq!(request.socket.as_raw_fd(), number);
            assert_eq!(request.keys, wanted, "type {kind}, mode {mode}");
            assert_eq!(request.timeout, Some(Duration::from_millis(1500)));
        }
        assert!(request(&[ACCEPT, 1, 0, 0]).is_err());
    }

    /// `linux/tls.h`: 40 bytes with AES-128-GCM, 56 with the others.
    #[test]
    fn keys_have_the_layout_of_the_kernel() {
        let iv = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
        let of = |cipher, length| {
            info(&TrafficKey { cipher, key: &vec![0xaa; length], iv: &iv }).to_vec()
        };
        let aes = of(Cipher::Aes128Gcm, 16);
        assert_eq!(aes.len(), 40);
        assert_eq!(aes[..4], [TLS_1_3.to_ne_bytes(), 51u16.to_ne_bytes()].concat());
        assert_eq!(aes[4..12], iv[4..]);
        assert_eq!(aes[12..28], [0xaa; 16]);
        assert_eq!(aes[28..32], iv[..4]);
        assert_eq!(aes[32..], [0; 8]);
        assert_eq!(of(Cipher::Aes256Gcm, 32).len(), 56);
        let chacha = of(Cipher::ChaCha20Poly1305, 32);
        assert_eq!((chacha.len(), &chacha[4..16]), (56, &iv[..]));
    }
}
