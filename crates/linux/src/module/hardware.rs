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

/// How urgently the driver of a device is needed, the most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Urgency {
    /// Network cards: a link takes seconds to be negotiated once its driver is loaded.
    Network,
    /// NVMe disks.
    Nvme,
    /// Controllers behind which further disks, network cards and keyboards are found.
    Controller,
    /// Everything else.
    Other,
}

/// Returns the urgency of the device with this modalias, by its PCI class (PCI Code and ID
/// Assignment 1.16 §1) or virtio device type (Virtio 1.3 §5).
pub(super) fn urgency(modalias: &str) -> Urgency {
    if let Some(device) = modalias.strip_prefix("virtio:d") {
        return match device.get(..8) {
            Some("00000001") => Urgency::Network,
            Some("00000002" | "00000008") => Urgency::Controller,
            _ => Urgency::Other,
        };
    }
    // `pci:v00008086d000015F3sv00000000sd00000000bc02sc00i00`
    let class =
        modalias.strip_prefix("pci:").and_then(|ids| ids.split_once("bc")?.1.split_once("sc"));
    match class.map(|(base, sub)| (base, sub.get(..2).unwrap_or_default())) {
        Some(("02", _)) => Urgency::Network,
        Some(("01", "08")) => Urgency::Nvme,
        Some(("01", _) | ("0C", "03")) => Urgency::Controller,
        _ => Urgency::Other,
    }
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
    fn network_and_nvme_are_more_urgent_than_their_names() {
        let pci = |class| format!("pci:v00008086d000015F3sv00001AF4sd00001100{class}");
        let mut found = [
            "acpi:PNP0C0C:".to_owned(),
            "input:b0003v0627p0001e0001-e0,1".to_owned(),
            pci("bc01sc06i01"),
            pci("bc01sc08i02"),
            pci("bc02sc00i00"),
            pci("bc03sc00i00"),
            pci("bc0Csc03i30"),
            pci("bc0Csc05i00"),
            "virtio:d00000001v00001AF4".to_owned(),
            "virtio:d00000002v00001AF4".to_owned(),
            "virtio:d00000004v00001AF4".to_owned(),
            "pci:".to_owned(),
        ];
        found.sort_by_key(|modalias| urgency(modalias));
        let class = |modalias: &String| {
            modalias.strip_prefix("pci:v00008086d000015F3sv00001AF4sd00001100").map(str::to_owned)
        };
        let found: Vec<String> = found
            .iter()
            .map(|modalias| class(modalias).unwrap_or_else(|| modalias.clone()))
            .collect();
        assert_eq!(
            found[..6],
            [
                "bc02sc00i00",
                "virtio:d00000001v00001AF4",
                "bc01sc08i02",
                "bc01sc06i01",
                "bc0Csc03i30",
                "virtio:d00000002v00001AF4"
            ]
        );
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
