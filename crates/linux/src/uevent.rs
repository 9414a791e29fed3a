//! Kernel uevents of block devices.

use crate::netlink::{Received, Socket};
use rustix::net::netlink::KOBJECT_UEVENT;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// The multicast group of the kernel (group 2 is udev's).
const FROM_KERNEL: u32 = 1;

/// The action of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Added.
    Add,
    /// Removed.
    Remove,
    /// Changed: its size, medium, read-only flag or partitions.
    Change,
    /// Anything else (`move`, `online`, `bind`, …).
    Other,
}

/// An event of a block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uevent {
    pub action: Action,
    /// The kernel's name, with `/` for directories below `/dev`: `sda`, `cciss/c0d0`.
    pub devname: String,
    /// `disk` or `partition`.
    pub devtype: String,
    pub major: u32,
    pub minor: u32,
    /// The disk's sequence number since boot (Linux 5.15): differs for another disk with the same
    /// name.
    pub diskseq: Option<u64>,
    /// The size changed.
    pub resize: bool,
    /// The medium was inserted or removed.
    pub media_change: bool,
}

/// The result of [`Uevents::receive`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    Event(Uevent),
    /// Events were lost because the socket buffer was full: scan again.
    Lost,
}

/// A socket for block device events.
#[derive(Debug)]
pub struct Uevents {
    socket: Socket,
}

impl Uevents {
    /// Opens the socket. Scan the devices after this, so that none is missed.
    ///
    /// # Errors
    /// Fails if such sockets are not supported. In a container with its own user namespace the socket
    /// opens but never receives anything.
    pub fn open() -> io::Result<Self> {
        Ok(Self { socket: Socket::listening(Some(KOBJECT_UEVENT), FROM_KERNEL)? })
    }

    /// Returns the next event of a block device, `None` if there is none. Does not block.
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
    /// Becomes readable when [`Uevents::receive`] may have something.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Parses a datagram: `ACTION@PATH` and `KEY=VALUE` strings, each ended by a NUL byte. Returns
/// `None` for other subsystems.
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
    fn event_is_parsed() {
        let event = parse(CHANGE.as_bytes()).unwrap();
        assert_eq!(event.action, Action::Change);
        assert_eq!((event.devname.as_str(), event.devtype.as_str()), ("loop0", "disk"));
        assert_eq!((event.major, event.minor, event.diskseq), (7, 0, Some(12)));
        assert!(event.resize && !event.media_change);
    }

    #[test]
    fn other_subsystems_and_malformed_events_are_ignored() {
        assert_eq!(parse(CHANGE.replace("=block", "=net").as_bytes()), None);
        assert_eq!(parse(CHANGE.replace("MAJOR=7", "MAJOR=x").as_bytes()), None);
        assert_eq!(parse(CHANGE.replace("DEVNAME=loop0", "X=1").as_bytes()), None);
        assert_eq!(parse(b"libudev\0\xfe\xed\xca\xfe"), None);
        assert_eq!(parse(b""), None);
    }

    #[test]
    fn unknown_action_is_other() {
        let event = parse(CHANGE.replace("ACTION=change", "ACTION=vanish").as_bytes()).unwrap();
        assert_eq!(event.action, Action::Other);
    }

    #[test]
    fn added_and_removed_disks_are_reported() {
        let mut uevents = Uevents::open().unwrap();
        let Some(device) = Attached::new(&[0; 1 << 20], &[]) else { return };
        let name = device.node.file_name().unwrap().to_str().unwrap().to_owned();
        drop(device);
        // Other tests attach disks at the same time; events of the detachment may also still be
        // pending.
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
