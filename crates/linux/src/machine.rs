//! What this machine is, for people: its maker's name for it, and its serial number.
//!
//! Does not know its disks.

use crate::tree::Tree;

const DMI: &str = "sys/class/dmi/id";

/// What makers write who did not fill the field in.
const FILLERS: [&str; 8] = [
    "to be filled by o.e.m.",
    "default string",
    "system manufacturer",
    "system product name",
    "system serial number",
    "not specified",
    "none",
    "0",
];

/// `LENOVO 21AH, serial PF2ABC`, or what of that is known; empty if nothing is.
pub fn describe(tree: &Tree) -> String {
    let dmi = |name: &str| said(tree, &format!("{DMI}/{name}"));
    let vendor = dmi("sys_vendor");
    // Where the maker's number means nothing to people, the version is the name.
    let product = match (&vendor, dmi("product_version")) {
        (Some(vendor), Some(version)) if vendor == "LENOVO" => Some(version),
        _ => dmi("product_name"),
    };
    let name = match (vendor, product) {
        (Some(vendor), Some(product)) if !product.starts_with(&vendor) => {
            Some(format!("{vendor} {product}"))
        }
        (vendor, product) => product.or(vendor),
    };
    let name = name.or_else(|| said(tree, "proc/device-tree/model"));
    let serial = dmi("product_serial").or_else(|| said(tree, "proc/device-tree/serial-number"));
    let serial = serial.map(|serial| format!("serial {serial}"));
    let parts: Vec<String> = [name, serial].into_iter().flatten().collect();
    parts.join(", ")
}

fn said(tree: &Tree, path: &str) -> Option<String> {
    tree.attribute(path).filter(|text| !FILLERS.contains(&text.to_ascii_lowercase().as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::fake::Fake;

    #[test]
    fn a_machine_is_called_as_its_maker_does() {
        let fake = Fake::new();
        assert_eq!(describe(&fake.tree()), "");
        fake.file("sys/class/dmi/id/sys_vendor", "Dell Inc.\n");
        fake.file("sys/class/dmi/id/product_name", "XPS 13\n");
        fake.file("sys/class/dmi/id/product_serial", "To Be Filled By O.E.M.\n");
        assert_eq!(describe(&fake.tree()), "Dell Inc. XPS 13");
        fake.file("sys/class/dmi/id/product_serial", "ABC123\n");
        assert_eq!(describe(&fake.tree()), "Dell Inc. XPS 13, serial ABC123");
    }

    #[test]
    fn a_board_without_such_firmware_has_a_device_tree() {
        let fake = Fake::new();
        fake.file("proc/device-tree/model", "Raspberry Pi 5 Model B\0");
        assert_eq!(describe(&fake.tree()), "Raspberry Pi 5 Model B");
    }
}
