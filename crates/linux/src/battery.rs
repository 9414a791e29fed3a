//! Whether this machine lives on its battery, and how long it may.
//!
//! Does not know what happens when it is empty.

use crate::tree::Tree;

const SUPPLIES: &str = "sys/class/power_supply";

/// The charge in percent of the fullest battery if the machine runs on batteries; nothing if it is plugged in or has
/// none. What a mouse or a keyboard runs on does not count.
pub fn charge(tree: &Tree) -> Option<u8> {
    let supplies = tree.names(SUPPLIES);
    let said = |name: &str, what: &str| tree.attribute(format!("{SUPPLIES}/{name}/{what}"));
    let is_plugged = supplies
        .iter()
        .filter(|name| matches!(said(name, "type").as_deref(), Some("Mains" | "USB")))
        .any(|name| tree.flag(format!("{SUPPLIES}/{name}/online")));
    if is_plugged {
        return None;
    }
    let of_machine = |name: &&String| {
        said(name, "type").as_deref() == Some("Battery")
            && said(name, "scope").as_deref() != Some("Device")
            && said(name, "status").as_deref() == Some("Discharging")
    };
    let charges = supplies.iter().filter(of_machine);
    charges.filter_map(|name| said(name, "capacity")?.parse().ok()).max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::fake::Fake;

    fn supply(fake: &Fake, name: &str, said: &[(&str, &str)]) {
        for (what, value) in said {
            fake.file(&format!("sys/class/power_supply/{name}/{what}"), value);
        }
    }

    #[test]
    fn a_plugged_machine_and_one_without_a_battery_have_no_charge_to_tell() {
        let fake = Fake::new();
        assert_eq!(charge(&fake.tree()), None);
        supply(
            &fake,
            "BAT0",
            &[("type", "Battery"), ("status", "Discharging"), ("capacity", "34")],
        );
        assert_eq!(charge(&fake.tree()), Some(34));
        supply(&fake, "BAT1", &[("type", "Battery"), ("status", "Charging"), ("capacity", "80")]);
        assert_eq!(charge(&fake.tree()), Some(34));
        supply(&fake, "AC", &[("type", "Mains"), ("online", "1")]);
        assert_eq!(charge(&fake.tree()), None);
    }

    #[test]
    fn the_battery_of_a_mouse_is_none_of_the_machine() {
        let fake = Fake::new();
        let mouse = [("type", "Battery"), ("status", "Discharging"), ("scope", "Device")];
        supply(&fake, "hidpp_battery_0", &mouse);
        supply(&fake, "hidpp_battery_0", &[("capacity", "5")]);
        assert_eq!(charge(&fake.tree()), None);
    }
}
