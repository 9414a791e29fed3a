//! A relay that records every byte from the server.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// Where to connect to instead of the target; until dropped, and a little longer.
pub(crate) struct Tap {
    pub(crate) address: SocketAddr,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl Tap {
    pub(crate) fn on(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let heard = Arc::<Mutex<Vec<u8>>>::default();
        let all = heard.clone();
        thread::spawn(move || {
            for near in listener.incoming() {
                let Ok(far) = TcpStream::connect(target) else { return };
                relay(near.unwrap(), far, all.clone());
            }
        });
        Self { address, heard }
    }

    /// All that has come back so far.
    pub(crate) fn heard(&self) -> Vec<u8> {
        self.heard.lock().unwrap().clone()
    }
}

fn relay(near: TcpStream, far: TcpStream, heard: Arc<Mutex<Vec<u8>>>) {
    let (from, to) = (near.try_clone().unwrap(), far.try_clone().unwrap());
    thread::spawn(move || pour(from, to, |_| {}));
    thread::spawn(move || pour(far, near, |bytes| heard.lock().unwrap().extend_from_slice(bytes)));
}

fn pour(mut from: TcpStream, mut to: TcpStream, keep: impl Fn(&[u8])) {
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        keep(&bytes[..count]);
        if to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
