//! Modaliases of present hardware, and of hardware that is added.

use crate::tree::Tree;
use std::collections::BTreeSet;
use std::path::Path;

/// Classes of devices that have modaliases and are not on a bus.
const CLASSES: &[&str] = &["dmi", "input"];

/// Returns the modaliases of all present hardware, each once.
///
/// Looks where the kernel lists devices by bus: that is some hundred directories, where the tree of
/// all devices has thousands.
pub fn modaliases(tree: &Tree) -> BTreeSet<String> {
    let buses = tree.names("sys/bus").into_iter().map(|bus| format!("sys/bus/{bus}/devices"));
    let classes = CLASSES.iter().map(|class| format!("sys/class/{class}"));
    let mut found = BTreeSet::new();
    for folder in buses.chain(classes) {
        for device in tree.names(&folder) {
            found.extend(tree.attribute(Path::new(&folder).join(device).join("modalias")));
        }
    }
    found
}

/// Returns the modalias in a uevent; `None` for a removal, or without a modalias.
///
/// A datagram is `ACTION@PATH` and `KEY=VALUE` strings, each ended by a NUL byte.
pub(super) fn hardware_of_event(datagram: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(datagram);
    let value =
        |key: &str| text.split('\0').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
    let goes = matches!(value("ACTION")?, "remove" | "unbind" | "offline");
    value("MODALIAS").filter(|name| !goes && !name.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::fake::Fake;

    #[test]
    fn hardware_of_buses_and_classes_is_found() {
        let fake = Fake::new();
        fake.file("sys/devices/pci0/0000:00:01.0/modalias", "pci:v1\n")
            .file("sys/devices/pci0/0000:00:02.0/modalias", "pci:v1\n")
            .file("sys/devices/pci0/0000:00:02.0/input0/modalias", "input:b1\n")
            .file("sys/devices/pci0/0000:00:03.0/modalias", "\n")
            .link("sys/bus/pci/devices/0000:00:01.0", "sys/devices/pci0/0000:00:01.0")
            .link("sys/bus/pci/devices/0000:00:02.0", "sys/devices/pci0/0000:00:02.0")
            .link("sys/bus/pci/devices/0000:00:03.0", "sys/devices/pci0/0000:00:03.0")
            .link("sys/class/input/input0", "sys/devices/pci0/0000:00:02.0/input0")
            .link("sys/class/net/eth0", "sys/devices/pci0/0000:00:02.0/net/eth0");
        let names: Vec<String> = modaliases(&fake.tree()).into_iter().collect();
        assert_eq!(names, ["input:b1", "pci:v1"]);
    }

    #[test]
    fn modalias_is_read_from_a_uevent() {
        let event = b"add@/devices/x\0ACTION=add\0SUBSYSTEM=usb\0MODALIAS=usb:v1\0SEQNUM=1\0";
        assert_eq!(hardware_of_event(event).as_deref(), Some("usb:v1"));
        for event in [
            &b"remove@/x\0ACTION=remove\0MODALIAS=usb:v1\0"[..],
            b"add@/x\0ACTION=add\0SUBSYSTEM=block\0",
            b"add@/x\0ACTION=add\0MODALIAS=\0",
            b"MODALIAS=usb:v1\0",
            b"\xff\0\xfe",
            b"",
        ] {
            assert_eq!(hardware_of_event(event), None);
        }
    }
}
