//! The vendor, product name and serial number of this machine, for display.

use crate::tree::Tree;

const DMI: &str = "sys/class/dmi/id";

/// Placeholders in fields that the vendor did not fill in.
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

/// Returns `LENOVO 21AH, serial PF2ABC`, or the known part of it; empty if nothing is known.
pub fn describe(tree: &Tree) -> String {
    let dmi = |name: &str| field(tree, &format!("{DMI}/{name}"));
    let vendor = dmi("sys_vendor");
    // Lenovo's product name is a type number; the version is the marketing name.
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
    let name = name.or_else(|| field(tree, "proc/device-tree/model"));
    let serial = dmi("product_serial").or_else(|| field(tree, "proc/device-tree/serial-number"));
    let serial = serial.map(|serial| format!("serial {serial}"));
    let parts: Vec<String> = [name, serial].into_iter().flatten().collect();
    parts.join(", ")
}

fn field(tree: &Tree, path: &str) -> Option<String> {
    tree.attribute(path).filter(|text| !FILLERS.contains(&text.to_ascii_lowercase().as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::fake::Fake;

    #[test]
    fn vendor_product_and_serial_are_joined() {
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
    fn device_tree_is_used_without_dmi() {
        let fake = Fake::new();
        fake.file("proc/device-tree/model", "Raspberry Pi 5 Model B\0");
        assert_eq!(describe(&fake.tree()), "Raspberry Pi 5 Model B");
    }
}
