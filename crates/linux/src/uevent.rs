//! What the kernel tells of block devices as they come, go and change.
//!
//! Does not know which of them are lent, nor what the device manager (udev) makes of the same events.

use crate::netlink::{Received, Socket};
use rustix::net::netlink::KOBJECT_UEVENT;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// The multicast group in which the kernel itself speaks (group 2 is udev's).
const FROM_KERNEL: u32 = 1;

/// What happened to the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It is here now.
    Add,
    /// It is gone.
    Remove,
    /// It changed: its size, its medium, its read-only flag, its partitions.
    Change,
    /// Anything else (`move`, `online`, `bind`, …).
    Other,
}

/// One event of a block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uevent {
    /// What happened.
    pub action: Action,
    /// The kernel's name, with `/` where there is a folder below `/dev`: `sda`, `cciss/c0d0`.
    pub devname: String,
    /// `disk` or `partition`.
    pub devtype: String,
    /// The major device number.
    pub major: u32,
    /// The minor device number.
    pub minor: u32,
    /// The disk's number since boot: another disk by the same name has another one (Linux 5.15).
    pub diskseq: Option<u64>,
    /// The size changed.
    pub resize: bool,
    /// The medium came or went.
    pub media_change: bool,
}

/// What [`Uevents::receive`] brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// An event.
    Event(Uevent),
    /// The kernel had more to say than the socket could hold: scan again.
    Lost,
}

/// The socket on which block device events come.
#[derive(Debug)]
pub struct Uevents {
    socket: Socket,
}

impl Uevents {
    /// Starts listening; scan the devices after this, and none is missed.
    ///
    /// Errors: no such sockets here. In a container with its own user namespace the socket opens and stays silent.
    pub fn open() -> io::Result<Self> {
        Ok(Self { socket: Socket::listening(Some(KOBJECT_UEVENT), FROM_KERNEL)? })
    }

    /// The next news of a block device, `None` if nothing waits. Never waits itself.
    pub fn receive(&mut self) -> io::Result<Option<Message>> {
        loop {
            let event = match self.socket.receive()? {
                Received::Nothing => return Ok(None),
                Received::Lost => return Ok(Some(Message::Lost)),
                Received::Datagram(datagram) => parse(datagram),
            };
            if let Some(event) = event {
                return Ok(Some(Message::Event(event)));
            }
        }
    }
}

impl AsFd for Uevents {
    /// Readable when [`Uevents::receive`] may have something.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A datagram is `ACTION@PATH` and `KEY=VALUE` strings, each ended by a NUL byte. `None` for other subsystems.
fn parse(datagram: &[u8]) -> Option<Uevent> {
    let text = std::str::from_utf8(datagram).ok()?;
    let value =
        |key: &str| text.split('\0').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
    if value("SUBSYSTEM") != Some("block") {
        return None;
    }
    Some(Uevent {
        action: action(value("ACTION")?),
        devname: value("DEVNAME")?.to_owned(),
        devtype: value("DEVTYPE").unwrap_or("disk").to_owned(),
        major: value("MAJOR")?.parse().ok()?,
        minor: value("MINOR")?.parse().ok()?,
        diskseq: value("DISKSEQ").and_then(|number| number.parse().ok()),
        resize: value("RESIZE") == Some("1"),
        media_change: value("DISK_MEDIA_CHANGE") == Some("1"),
    })
}

fn action(word: &str) -> Action {
    match word {
        "add" => Action::Add,
        "remove" => Action::Remove,
        "change" => Action::Change,
        _ => Action::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::attached::Attached;

    const CHANGE: &str = "change@/devices/virtual/block/loop0\0ACTION=change\0\
        DEVPATH=/devices/virtual/block/loop0\0SUBSYSTEM=block\0RESIZE=1\0MAJOR=7\0MINOR=0\0\
        DEVNAME=loop0\0DEVTYPE=disk\0DISKSEQ=12\0SEQNUM=99\0";

    #[test]
    fn an_event_is_parsed() {
        let event = parse(CHANGE.as_bytes()).unwrap();
        assert_eq!(event.action, Action::Change);
        assert_eq!((event.devname.as_str(), event.devtype.as_str()), ("loop0", "disk"));
        assert_eq!((event.major, event.minor, event.diskseq), (7, 0, Some(12)));
        assert!(event.resize && !event.media_change);
    }

    #[test]
    fn other_subsystems_and_broken_events_are_none() {
        assert_eq!(parse(CHANGE.replace("=block", "=net").as_bytes()), None);
        assert_eq!(parse(CHANGE.replace("MAJOR=7", "MAJOR=x").as_bytes()), None);
        assert_eq!(parse(CHANGE.replace("DEVNAME=loop0", "X=1").as_bytes()), None);
        assert_eq!(parse(b"libudev\0\xfe\xed\xca\xfe"), None);
        assert_eq!(parse(b""), None);
    }

    #[test]
    fn an_action_of_the_future_is_other() {
        let event = parse(CHANGE.replace("ACTION=change", "ACTION=vanish").as_bytes()).unwrap();
        assert_eq!(event.action, Action::Other);
    }

    #[test]
    fn a_disk_that_comes_and_goes_is_told() {
        let mut uevents = Uevents::open().unwrap();
        let Some(device) = Attached::new(&[0; 1 << 20], &[]) else { return };
        let name = device.node.file_name().unwrap().to_str().unwrap().to_owned();
        drop(device);
        // Other tests attach disks at the same time; the kernel may also still be speaking of the detachment.
        for _ in 0..1000 {
            while let Some(news) = uevents.receive().unwrap() {
                match news {
                    Message::Event(event) if event.devname == name => {
                        assert_eq!((event.major, event.devtype.as_str()), (7, "disk"));
                        return;
                    }
                    _ => {}
                }
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        panic!("no event of {name}");
    }
}
