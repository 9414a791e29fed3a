//! Clients that disconnect, send wrong lengths, or send nothing: none may end the server or block
//! other clients.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use socket2::SockRef;

use crate::foreign::{Folder, MIB};
use crate::raw::{EXPORT_NAME, READ, WRITE, haggling, option, reply, request};
use crate::server::{DRIVERS, Server};

const STRUCTURED_REPLY: u32 = 8;
const WRITE_ZEROES: u16 = 6;
const FAST_ZERO: u16 = 1 << 4;

/// Returns a client in the transmission phase.
fn transmitting(port: u16) -> TcpStream {
    crate::raw::transmitting(port, "disk")
}

/// Closes the connection with a reset.
fn reset(socket: TcpStream) {
    SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
    drop(socket);
}

/// Checks that the next client is served.
fn serves(server: &mut Server) {
    let mut socket = transmitting(server.port());
    socket.write_all(&request(0, READ, 1, 0, 512)).unwrap();
    assert_eq!(reply(&mut socket), 0);
    let mut data = [0; 512];
    socket.read_exact(&mut data).unwrap();
    assert!(server.lives());
}

fn on_both(test: impl Fn(&mut Server)) {
    for io in DRIVERS {
        let folder = Folder::new();
        let disk = folder.random_bytes("disk.img", 64 * MIB);
        let mut server = Server::tcp(&["--io", io, "--writable", &disk]);
        test(&mut server);
        serves(&mut server);
    }
}

#[test]
fn reset_during_replies_ends_only_its_connection() {
    on_both(|server| {
        for round in 0..40u64 {
            let mut socket = transmitting(server.port());
            let all = (0..64).map(|at| request(0, READ, at, at << 20, 1 << 20));
            socket.write_all(&all.collect::<Vec<_>>().concat()).unwrap();
            let mut some = vec![0; 1 + 4093 * usize::try_from(round).unwrap()];
            socket.read_exact(&mut some).unwrap();
            reset(socket);
        }
    });
}

#[test]
fn reset_during_a_write_ends_only_its_connection() {
    on_both(|server| {
        for round in 0..40u32 {
            let mut socket = transmitting(server.port());
            socket.write_all(&request(0, WRITE, 1, 0, 1 << 20)).unwrap();
            socket.write_all(&vec![7; 26_000 * round as usize]).unwrap();
            reset(socket);
        }
    });
}

#[test]
fn reset_during_negotiation_ends_only_its_connection() {
    on_both(|server| {
        let go = option(7, &[&4u32.to_be_bytes()[..], b"disk", &[0, 0]].concat());
        for cut in 0..go.len() {
            let mut socket = haggling(server.port());
            socket.write_all(&go[..cut]).unwrap();
            if cut % 2 == 0 { reset(socket) } else { drop(socket) }
        }
    });
}

#[test]
fn unnegotiated_request_is_refused() {
    on_both(|server| {
        let mut socket = transmitting(server.port());
        let wrong = [
            request(FAST_ZERO, READ, 1, 0, 512),
            request(0, 0xffff, 2, 0, 0),
            request(1 << 15, READ, 3, 0, 512),
            // Block status without a context.
            request(0, 7, 4, 0, 512),
            request(0, READ, 5, u64::MAX - 100, 512),
            request(0, READ, 6, 0, u32::MAX),
        ];
        for bytes in &wrong {
            socket.write_all(bytes).unwrap();
            assert_ne!(reply(&mut socket), 0, "{bytes:x?}");
        }
        // This request may succeed or fail, but it must be answered.
        socket.write_all(&request(FAST_ZERO, WRITE_ZEROES, 7, 1 << 20, 1 << 16)).unwrap();
        reply(&mut socket);
        socket.write_all(&request(0, READ, 8, 0, 512)).unwrap();
        assert_eq!(reply(&mut socket), 0);
    });
}

/// X26: 32 MiB less a byte, 32 MiB, and a byte more.
#[test]
fn x26_request_above_the_maximum_is_refused() {
    on_both(|server| {
        let max = 32u32 << 20;
        let mut socket = transmitting(server.port());
        for len in [max - 512, max] {
            socket.write_all(&request(0, READ, 1, 0, len)).unwrap();
            assert_eq!(reply(&mut socket), 0, "{len}");
            let read = std::io::copy(&mut (&socket).take(len.into()), &mut std::io::sink());
            assert_eq!(read.unwrap(), u64::from(len));
        }
        socket.write_all(&request(0, READ, 1, 0, max + 512)).unwrap();
        assert_ne!(reply(&mut socket), 0);
        // A write that is too long may end the connection, because its data cannot be received.
        let mut writer = transmitting(server.port());
        writer.write_all(&request(0, WRITE, 1, 0, u32::MAX)).unwrap();
        let _ = writer.write_all(&vec![1; MIB]);
    });
}

/// X22: option lengths beyond the data.
#[test]
fn x22_wrong_lengths_end_only_their_connection() {
    on_both(|server| {
        for number in [EXPORT_NAME, 2, 3, 5, 6, 7, STRUCTURED_REPLY, 9, 10, 11, 0, u32::MAX] {
            for len in [0, 1, 3, 4097, 1 << 20, 1 << 31, u32::MAX] {
                let mut socket = haggling(server.port());
                let head = [&b"IHAVEOPT"[..], &number.to_be_bytes(), &len.to_be_bytes()].concat();
                socket.write_all(&head).unwrap();
                let _ = socket.write_all(&[0xff; 5000]);
                if len % 2 == 0 { reset(socket) } else { drop(socket) }
            }
        }
    });
}

#[test]
fn garbage_instead_of_nbd_is_survived() {
    on_both(|server| {
        for random_bytes in
            ["GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\x02\x00\x01", "\0\0\u{80}\0", "IHAVEOPT"]
        {
            let address = SocketAddr::from(([127, 0, 0, 1], server.port()));
            let mut socket = TcpStream::connect(address).unwrap();
            socket.write_all(random_bytes.repeat(300).as_bytes()).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            let _ = std::io::copy(&mut socket, &mut std::io::sink());
        }
    });
}

#[test]
fn client_that_does_not_read_does_not_block_others() {
    on_both(|server| {
        let mut silent = transmitting(server.port());
        let all: Vec<Vec<u8>> = (0..512).map(|at| request(0, READ, at, 0, 1 << 20)).collect();
        silent.write_all(&all.concat()).unwrap();
        for _ in 0..5 {
            serves(server);
        }
        reset(silent);
    });
}
