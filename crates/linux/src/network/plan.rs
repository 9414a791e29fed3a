//! The configuration of one interface, from all settings.

use super::ether::Mac;
use super::setting::{Fixed, Method, Setting};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Named by a setting, rather than one of all wired interfaces.
    pub(super) named: bool,
    /// Assign an IPv4 link-local address; IPv6 ones are the kernel's.
    pub(super) link_local: bool,
    pub(super) dhcp: bool,
    /// Accept router advertisements.
    pub(super) routers: bool,
    pub(super) fixed: Vec<Fixed>,
    pub(super) hostname: Option<String>,
    pub(super) mtu: Option<u32>,
    pub(super) mac: Option<Mac>,
}

impl Plan {
    /// Returns the plan by the settings that name the interface, or else by those for every wired
    /// one; `None` leaves it alone.
    ///
    /// Fixed addresses without an interface are not included: one interface gets them, see
    /// [`unplaced`].
    pub(super) fn of(name: &str, mac: Mac, wired: bool, settings: &[Setting]) -> Option<Self> {
        let named = settings.iter().any(|setting| names(setting, name, mac));
        let applies = |setting: &&Setting| match named {
            true => names(setting, name, mac),
            false => wired && setting.interface.is_none(),
        };
        let mut plan = Self { named, ..Self::default() };
        let mut any = false;
        for setting in settings.iter().filter(applies) {
            any |= setting.method != Method::Off || setting.fixed.is_some();
            plan.add(setting);
        }
        // Settings that all name other interfaces leave this one at the default.
        let others = !named && settings.iter().all(|setting| setting.interface.is_some());
        if wired && others {
            plan.add(&Setting::link_local());
            any = true;
        }
        any.then_some(plan)
    }

    fn add(&mut self, setting: &Setting) {
        let method = setting.method;
        let fixed = setting.fixed.filter(|_| setting.interface.is_some());
        let bare = method == Method::Off && setting.fixed.is_none();
        self.link_local |= !bare && method != Method::LinkLocal6;
        self.dhcp |= matches!(method, Method::Dhcp | Method::Any);
        self.routers |= matches!(method, Method::Any | Method::Auto6);
        self.fixed.extend(fixed);
        self.hostname = self.hostname.take().or_else(|| setting.hostname.clone());
        self.mtu = self.mtu.or(setting.mtu);
        self.mac = self.mac.or(setting.mac);
    }
}

fn names(setting: &Setting, name: &str, mac: Mac) -> bool {
    let fits = |interface: &str| interface == name || Mac::parse(interface) == Some(mac);
    setting.interface.as_deref().is_some_and(fits)
}

/// Returns the fixed addresses without an interface: the first wired one with a carrier gets them.
pub(super) fn unplaced(settings: &[Setting]) -> Vec<Fixed> {
    let unnamed = settings.iter().filter(|setting| setting.interface.is_none());
    unnamed.filter_map(|setting| setting.fixed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

    fn plan(words: &[&str], wired: bool) -> Option<Plan> {
        let settings: Vec<_> = words.iter().map(|word| Setting::parse(word).unwrap()).collect();
        Plan::of("eth0", MAC, wired, &settings)
    }

    fn link_local() -> Plan {
        Plan { link_local: true, ..Plan::default() }
    }

    #[test]
    fn wired_interfaces_are_link_local_by_default() {
        assert_eq!(plan(&[], true), Some(link_local()));
        assert_eq!(plan(&[], false), None);
        assert_eq!(plan(&["eth1:dhcp"], true), Some(link_local()));
    }

    #[test]
    fn other_methods_include_link_local_addresses() {
        let dhcp = Plan { dhcp: true, ..link_local() };
        assert_eq!(plan(&["dhcp"], true), Some(dhcp.clone()));
        assert_eq!(plan(&["any"], true), Some(Plan { routers: true, ..dhcp }));
        assert_eq!(plan(&["auto6"], true), Some(Plan { routers: true, ..link_local() }));
        let fixed = plan(&["10.0.0.5/24:::::eth0"], true).unwrap();
        assert!(fixed.link_local && fixed.fixed.len() == 1 && !fixed.dhcp);
        assert_eq!(plan(&["link6"], true), Some(Plan::default()));
    }

    #[test]
    fn named_interface_follows_only_its_own_settings() {
        assert!(plan(&["dhcp", "eth0:link-local"], false).is_some_and(|plan| !plan.dhcp));
        assert!(
            plan(&["link-local", "52-54-00-12-34-56:dhcp"], true).is_some_and(|plan| plan.dhcp)
        );
        let both = plan(&["eth0:dhcp:1400", "[2001:db8::2]/64:::::eth0"], true).unwrap();
        assert!(both.dhcp && both.fixed.len() == 1 && both.mtu == Some(1400));
    }

    #[test]
    fn off_leaves_the_interface_alone() {
        assert_eq!(plan(&["off"], true), None);
        assert_eq!(plan(&["dhcp", "eth0:off"], true), None);
    }

    #[test]
    fn address_without_interface_is_unplaced() {
        let setting = Setting::parse("10.0.0.5/24").unwrap();
        assert_eq!(unplaced(std::slice::from_ref(&setting)).len(), 1);
        assert_eq!(Plan::of("eth0", MAC, true, &[setting]), Some(link_local()));
    }
}
