//! Raw NBD messages, for tests that violate the protocol.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::foreign::LONG;

const FIXED_NO_ZEROES: u32 = 3;
pub(crate) const EXPORT_NAME: u32 = 1;
pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;

/// Returns a client in the option haggling phase.
pub(crate) fn haggling(port: u16) -> TcpStream {
    let mut socket = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
    socket.set_nodelay(true).unwrap();
    socket.set_read_timeout(Some(LONG)).unwrap();
    let mut hello = [0; 18];
    socket.read_exact(&mut hello).unwrap();
    assert_eq!(&hello[..16], b"NBDMAGICIHAVEOPT");
    socket.write_all(&FIXED_NO_ZEROES.to_be_bytes()).unwrap();
    socket
}

/// Returns an encoded option.
pub(crate) fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap();
    [&b"IHAVEOPT"[..], &number.to_be_bytes(), &len.to_be_bytes(), data].concat()
}

/// Returns a client in the transmission phase with that export.
pub(crate) fn transmitting(port: u16, name: &str) -> TcpStream {
    let mut socket = haggling(port);
    socket.write_all(&option(EXPORT_NAME, name.as_bytes())).unwrap();
    let mut size_and_flags = [0; 10];
    socket.read_exact(&mut size_and_flags).unwrap();
    socket
}

/// The header of a request.
pub(crate) fn request(flags: u16, kind: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let head = [&0x2560_9513u32.to_be_bytes()[..], &flags.to_be_bytes(), &kind.to_be_bytes()];
    let tail = [&cookie.to_be_bytes()[..], &offset.to_be_bytes(), &len.to_be_bytes()];
    [head.concat(), tail.concat()].concat()
}

/// The error of a simple reply.
pub(crate) fn reply(socket: &mut TcpStream) -> u32 {
    let mut bytes = [0; 16];
    socket.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes[..4], 0x6744_6698u32.to_be_bytes());
    u32::from_be_bytes(bytes[4..8].try_into().unwrap())
}
