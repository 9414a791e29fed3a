//! A relay that records every byte from the server.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// A relay to the target; ends some time after it is dropped.
pub(crate) struct Tap {
    pub(crate) address: SocketAddr,
    received: Arc<Mutex<Vec<u8>>>,
}

impl Tap {
    pub(crate) fn on(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let received = Arc::<Mutex<Vec<u8>>>::default();
        let all = received.clone();
        thread::spawn(move || {
            for near in listener.incoming() {
                let Ok(far) = TcpStream::connect(target) else { return };
                relay(near.unwrap(), far, all.clone());
            }
        });
        Self { address, received }
    }

    /// Returns the bytes received from the target so far.
    pub(crate) fn received(&self) -> Vec<u8> {
        self.received.lock().unwrap().clone()
    }
}

fn relay(near: TcpStream, far: TcpStream, received: Arc<Mutex<Vec<u8>>>) {
    let (from, to) = (near.try_clone().unwrap(), far.try_clone().unwrap());
    thread::spawn(move || forward(from, to, |_| {}));
    thread::spawn(move || {
        forward(far, near, |bytes| received.lock().unwrap().extend_from_slice(bytes))
    });
}

fn forward(mut from: TcpStream, mut to: TcpStream, keep: impl Fn(&[u8])) {
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        keep(&bytes[..count]);
        if to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
