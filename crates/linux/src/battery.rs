//! The battery charge of this machine.

use crate::tree::Tree;

const SUPPLIES: &str = "sys/class/power_supply";

/// Returns the charge in percent of the fullest discharging battery, or `None` if the machine is on
/// mains power or has no battery. Batteries of peripherals (mice, keyboards) are ignored.
pub fn charge(tree: &Tree) -> Option<u8> {
    let supplies = tree.names(SUPPLIES);
    let attribute = |name: &str, what: &str| tree.attribute(format!("{SUPPLIES}/{name}/{what}"));
    let is_plugged = supplies
        .iter()
        .filter(|name| matches!(attribute(name, "type").as_deref(), Some("Mains" | "USB")))
        .any(|name| tree.flag(format!("{SUPPLIES}/{name}/online")));
    if is_plugged {
        return None;
    }
    let of_machine = |name: &&String| {
        attribute(name, "type").as_deref() == Some("Battery")
            && attribute(name, "scope").as_deref() != Some("Device")
            && attribute(name, "status").as_deref() == Some("Discharging")
    };
    let charges = supplies.iter().filter(of_machine);
    charges.filter_map(|name| attribute(name, "capacity")?.parse().ok()).max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::fake::Fake;

    fn supply(fake: &Fake, name: &str, attributes: &[(&str, &str)]) {
        for (what, value) in attributes {
            fake.file(&format!("sys/class/power_supply/{name}/{what}"), value);
        }
    }

    #[test]
    fn charge_is_reported_only_while_on_battery_power() {
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
    fn battery_of_a_mouse_is_ignored() {
        let fake = Fake::new();
        let mouse = [("type", "Battery"), ("status", "Discharging"), ("scope", "Device")];
        supply(&fake, "hidpp_battery_0", &mouse);
        supply(&fake, "hidpp_battery_0", &[("capacity", "5")]);
        assert_eq!(charge(&fake.tree()), None);
    }
}
