//! The configuration of one interface, from all parameters.

use super::ether::Mac;
use super::ip_parameter::{Fixed, IpParameter, Method};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Named by a parameter, rather than one of all wired interfaces.
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
    /// Returns the plan by the parameters that name the interface, or else by those for every wired
    /// one; `None` leaves it alone. `mac` is the MAC address that may name it.
    ///
    /// Fixed addresses without an interface are not included: one interface gets them, see
    /// [`unplaced`].
    pub(super) fn of(
        name: &str,
        mac: Option<Mac>,
        wired: bool,
        parameters: &[IpParameter],
    ) -> Option<Self> {
        let named = parameters.iter().any(|parameter| names(parameter, name, mac));
        let applies = |parameter: &&IpParameter| match named {
            true => names(parameter, name, mac),
            false => wired && parameter.interface.is_none(),
        };
        let mut plan = Self { named, ..Self::default() };
        let mut any = false;
        for parameter in parameters.iter().filter(applies) {
            any |= parameter.method != Method::Off || parameter.fixed.is_some();
            plan.add(parameter);
        }
        // Settings that all name other interfaces leave this one at the default.
        let others = !named && parameters.iter().all(|parameter| parameter.interface.is_some());
        if wired && others {
            plan.add(&IpParameter::link_local());
            any = true;
        }
        any.then_some(plan)
    }

    fn add(&mut self, parameter: &IpParameter) {
        let method = parameter.method;
        let fixed = parameter.fixed.filter(|_| parameter.interface.is_some());
        let bare = method == Method::Off && parameter.fixed.is_none();
        self.link_local |= !bare && method != Method::LinkLocal6;
        self.dhcp |= matches!(method, Method::Dhcp | Method::DhcpAndSlaac);
        self.routers |= matches!(method, Method::DhcpAndSlaac | Method::Slaac);
        self.fixed.extend(fixed);
        self.hostname = self.hostname.take().or_else(|| parameter.hostname.clone());
        self.mtu = self.mtu.or(parameter.mtu);
        self.mac = self.mac.or(parameter.mac);
    }
}

fn names(parameter: &IpParameter, name: &str, mac: Option<Mac>) -> bool {
    let fits = |interface: &str| interface == name || mac.is_some() && Mac::parse(interface) == mac;
    parameter.interface.as_deref().is_some_and(fits)
}

/// Returns the fixed addresses without an interface: the first wired one with a carrier gets them.
pub(super) fn unplaced(parameters: &[IpParameter]) -> Vec<Fixed> {
    let unnamed = parameters.iter().filter(|parameter| parameter.interface.is_none());
    unnamed.filter_map(|parameter| parameter.fixed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

    fn plan(words: &[&str], wired: bool) -> Option<Plan> {
        let parameters: Vec<_> =
            words.iter().map(|word| IpParameter::parse(word).unwrap()).collect();
        Plan::of("eth0", Some(MAC), wired, &parameters)
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
        let parameter = IpParameter::parse("10.0.0.5/24").unwrap();
        assert_eq!(unplaced(std::slice::from_ref(&parameter)).len(), 1);
        assert_eq!(Plan::of("eth0", Some(MAC), true, &[parameter]), Some(link_local()));
    }
}
