//! The power button, read from the kernel's input devices.

use crate::tree::Tree;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::mem::size_of;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

/// `struct input_event` of `linux/input.h`: a time of two words, type, code, value.
const EVENT: usize = 2 * size_of::<usize>() + 8;
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;
const PRESSED: i32 = 1;

/// All input devices: the power button is a device of its own, or a key of a keyboard.
#[derive(Debug)]
pub struct Buttons {
    tree: Tree,
    devices: BTreeMap<String, File>,
}

impl Buttons {
    /// Opens all input devices.
    pub fn open(tree: &Tree) -> Self {
        let mut buttons = Self { tree: tree.clone(), devices: BTreeMap::new() };
        buttons.refresh();
        buttons
    }

    /// Opens new input devices and closes removed ones.
    pub fn refresh(&mut self) {
        let names = self.tree.names("dev/input");
        let names = names.into_iter().filter(|name| name.starts_with("event"));
        let known = std::mem::take(&mut self.devices);
        self.devices = known.into_iter().filter(|(name, _)| self.is_there(name)).collect();
        for name in names {
            let path = self.tree.path("dev/input").join(&name);
            let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
            let open = || OpenOptions::new().read(true).custom_flags(flags).open(path).ok();
            if !self.devices.contains_key(&name)
                && let Some(device) = open()
            {
                self.devices.insert(name, device);
            }
        }
    }

    fn is_there(&self, name: &str) -> bool {
        self.tree.path("dev/input").join(name).exists()
    }

    /// Become readable when [`Buttons::receive`] may return an event.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.devices.values().map(AsFd::as_fd)
    }

    /// Returns whether the power button was pressed since the last call. Does not block.
    pub fn receive(&mut self) -> bool {
        let mut pressed = false;
        self.devices.retain(|_, device| {
            let mut bytes = [0; 64 * EVENT];
            loop {
                match device.read(&mut bytes) {
                    Ok(0) => return false,
                    Ok(n) => pressed |= has_press(bytes.get(..n).unwrap_or_default()),
                    Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
                }
            }
        });
        pressed
    }
}

fn has_press(events: &[u8]) -> bool {
    events.chunks_exact(EVENT).any(|event| {
        let rest = &event[EVENT - 8..];
        let [k0, k1, c0, c1, v0, v1, v2, v3] = *rest else { return false };
        let (kind, code) = (u16::from_ne_bytes([k0, k1]), u16::from_ne_bytes([c0, c1]));
        kind == EV_KEY && code == KEY_POWER && i32::from_ne_bytes([v0, v1, v2, v3]) == PRESSED
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::fake::Fake;

    fn event(kind: u16, code: u16, value: i32) -> Vec<u8> {
        let mut bytes = vec![0; EVENT - 8];
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&code.to_ne_bytes());
        bytes.extend_from_slice(&value.to_ne_bytes());
        bytes
    }

    #[test]
    fn only_a_press_of_the_power_key_counts() {
        let other = [event(EV_KEY, 30, 1), event(0, 0, 0), event(EV_KEY, KEY_POWER, 0)].concat();
        assert!(!has_press(&other));
        let press = [other, event(EV_KEY, KEY_POWER, 1)].concat();
        assert!(has_press(&press));
        assert!(!has_press(&press[..press.len() - 1]), "truncated event");
    }

    #[test]
    fn new_devices_are_opened_and_removed_ones_closed() {
        let fake = Fake::new();
        let mut buttons = Buttons::open(&fake.tree());
        assert!(!buttons.receive());
        fake.file("dev/input/event0", event(EV_KEY, KEY_POWER, 1)).file("dev/input/mice", "x");
        buttons.refresh();
        assert_eq!(buttons.descriptors().count(), 1);
        assert!(buttons.receive());
        assert!(!buttons.receive());
    }
}
