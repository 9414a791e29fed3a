//! Case R55: NBD clients that disconnect with writes in flight on a disk that hangs, and later
//! clients.

use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use crate::device::{Device, skip_without_loop_devices};
use crate::foreign::{Folder, LONG, MIB, wait_for};
use crate::hang::{uri, writes_in_flight};
use crate::raw::{EXPORT_NAME, READ, WRITE, haggling, option, reply, request, transmitting};
use crate::serve::Serve;

const BLOCK: usize = 512;
const FUA: u16 = 1;

/// A durable write of the first block.
fn write(cookie: u64, version: u8) -> Vec<u8> {
    let header = request(FUA, WRITE, cookie, 0, u32::try_from(BLOCK).unwrap());
    [header, vec![version; BLOCK]].concat()
}

/// A client writes the first block `count` times and disconnects while the disk hangs. Then another
/// client writes it.
fn newest_data_win(io: &str, writes: u64) {
    let folder = Folder::new();
    let image = folder.random_bytes("hanging.img", 16 * MIB);
    let Some(mut disk) = Device::pausing(&folder, "hanging", &image) else { return };
    let args = ["--io", io, "--protocol", "nbd", "--writable", &disk.path];
    let mut serve = Serve::start(&args);
    let uri = uri(&serve.until_named("ready"), &disk);
    let (place, name) = uri.strip_prefix("nbd://127.0.0.1:").unwrap().split_once('/').unwrap();
    let port = place.parse().unwrap();
    let mut lost = transmitting(port, name);
    disk.pause();
    let all: Vec<_> = (0..writes).map(|cookie| write(cookie, 1)).collect();
    lost.write_all(&all.concat()).unwrap();
    wait_for("a write", || (writes_in_flight(&disk) > 0).then_some(()));
    drop(lost);
    let mut next = haggling(port);
    next.write_all(&option(EXPORT_NAME, name.as_bytes())).unwrap();
    next.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let early = next.read(&mut [0; 1]).map_err(|error| error.kind());
    assert_eq!(
        early,
        Err(ErrorKind::WouldBlock),
        "{io}: let in beside a write of a client that ended"
    );
    next.set_read_timeout(Some(LONG)).unwrap();
    disk.resume();
    next.read_exact(&mut [0; 10]).unwrap();
    next.write_all(&write(1, 2)).unwrap();
    assert_eq!(reply(&mut next), 0);
    serve.until_named("detached");
    next.write_all(&request(0, READ, 2, 0, u32::try_from(BLOCK).unwrap())).unwrap();
    assert_eq!(reply(&mut next), 0);
    let mut block = [0; BLOCK];
    next.read_exact(&mut block).unwrap();
    assert_eq!(block, [2; BLOCK], "{io}");
    drop(next);
    serve.terminate();
}

#[test]
fn r55_newest_data_win_after_a_client_with_one_write() {
    if skip_without_loop_devices("newest data win after a client with one write") {
        return;
    }
    ["uring", "blocking"].into_iter().for_each(|io| newest_data_win(io, 1));
}

/// More writes than the server has slots: the rest is unread when the client disconnects.
#[test]
fn r55_newest_data_win_after_a_client_with_all_slots() {
    if skip_without_loop_devices("newest data win after a client with all slots taken") {
        return;
    }
    ["uring", "blocking"].into_iter().for_each(|io| newest_data_win(io, 160));
}
