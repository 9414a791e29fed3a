//! Makes the requested VLANs and bonds of the interfaces that are there.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::Note;
use super::ether::Mac;
use super::link::Link;
use super::route;
use super::upper::{BondSetting, Upper, UpperKind};

/// The delay after which a missing interface that a parameter names is reported, or a missing
/// driver.
pub(super) const MISSING_AFTER: Duration = Duration::from_secs(10);

/// What is added to the kernel's interfaces.
#[derive(Debug, PartialEq, Eq)]
enum Step<'a> {
    Vlan { name: &'a str, id: u16, lower: u32 },
    Bond { name: &'a str, settings: &'a [BondSetting], mtu: Option<u32> },
    Port { bond: &'a Link, port: &'a Link, is_primary: bool },
}

/// The requested interfaces.
#[derive(Debug, Default)]
pub(super) struct Stack {
    uppers: Vec<Upper>,
    /// What the kernel has refused for good, such as `eth0` for a port: not tried again.
    refused: BTreeSet<String>,
    /// Since when the kernel has no driver for them.
    unknown: BTreeMap<String, Instant>,
}

impl Stack {
    pub(super) fn new(uppers: Vec<Upper>) -> Self {
        Self { uppers, ..Self::default() }
    }

    /// Returns the interfaces that the parameters name and do not make.
    pub(super) fn lowers(&self) -> impl Iterator<Item = &String> {
        let all = self.uppers.iter().flat_map(Upper::lowers);
        all.filter(|name| !self.is_upper(name))
    }

    /// Returns whether an interface of this name is requested.
    pub(super) fn is_upper(&self, name: &str) -> bool {
        self.uppers.iter().any(|upper| upper.name == name)
    }

    /// Returns whether the interface gets no addresses: a port of a bond, or a bond without one,
    /// which has no MAC address of its own yet. What the kernel has refused as a port, or as a port
    /// of a bond that it has refused, gets addresses of its own.
    pub(super) fn is_bare(&self, link: &Link, links: &[Link]) -> bool {
        self.uppers.iter().any(|upper| match &upper.kind {
            UpperKind::Bond { ports, .. } if upper.name == link.name => {
                ports.is_empty() || !has_ports(link, links)
            }
            UpperKind::Bond { ports, .. } => {
                let is_refused =
                    [&upper.name, &link.name].iter().any(|it| self.refused.contains(*it));
                !is_refused && ports.iter().any(|port| self.names(port, link))
            }
            UpperKind::Vlan { .. } => false,
        })
    }

    /// Makes what can be made of these interfaces, and reports what the kernel refuses. Returns
    /// whether to try again soon: the driver may not be there yet.
    pub(super) fn build(&mut self, links: &[Link], sink: &mut impl FnMut(Note)) -> bool {
        let mut failed = Vec::new();
        for step in self.steps(links) {
            if self.refused.contains(step.name()) {
                continue;
            }
            match step.apply() {
                Ok(()) => step.prefer().into_iter().for_each(&mut *sink),
                Err(error) => failed.push((step.name().to_owned(), step.what(), error)),
            }
        }
        let mut is_early = false;
        for (interface, what, error) in failed {
            if is_unknown(&error) && self.is_early(&interface, Instant::now()) {
                is_early = true;
                continue;
            }
            // A port was set down for it; nothing else that fails is there.
            if let Some(port) = links.iter().find(|link| link.name == interface) {
                let _ = route::set_up(port.index);
            }
            self.refused.insert(interface.clone());
            sink(Note::Failed { interface, what, error });
        }
        is_early
    }

    /// Returns whether the driver for an interface may still come.
    fn is_early(&mut self, interface: &str, now: Instant) -> bool {
        let since = *self.unknown.entry(interface.to_owned()).or_insert(now);
        now.saturating_duration_since(since) < MISSING_AFTER
    }

    fn steps<'a>(&'a self, links: &'a [Link]) -> Vec<Step<'a>> {
        let mut steps = Vec::new();
        for upper in &self.uppers {
            let there = links.iter().find(|link| link.name == upper.name);
            match (&upper.kind, there) {
                (UpperKind::Vlan { .. }, Some(_)) => {}
                (UpperKind::Vlan { id, lower }, None) => {
                    let lower = links.iter().find(|link| self.names(lower, link));
                    let lower = lower.filter(|link| !self.is_bare(link, links));
                    let name = &upper.name;
                    steps.extend(lower.map(|link| Step::Vlan { name, id: *id, lower: link.index }));
                }
                (UpperKind::Bond { settings, mtu, .. }, None) => {
                    steps.push(Step::Bond { name: &upper.name, settings, mtu: *mtu });
                }
                (UpperKind::Bond { .. }, Some(_)) if self.refused.contains(&upper.name) => {}
                (UpperKind::Bond { ports, primary, .. }, Some(bond)) => {
                    // The first becomes the one whose MAC address the bond has.
                    let found = ports.iter().filter_map(|port| {
                        links.iter().find(|link| link.master.is_none() && self.names(port, link))
                    });
                    steps.extend(found.map(|port| {
                        let is_primary =
                            primary.as_ref().is_some_and(|name| self.names(name, port));
                        Step::Port { bond, port, is_primary }
                    }));
                }
            }
        }
        steps
    }

    /// Returns whether a parameter means the interface: by its name, or a network card by its own
    /// MAC address.
    fn names(&self, interface: &str, link: &Link) -> bool {
        let is_card = !link.is_virtual && !self.is_upper(&link.name);
        let mac = || Mac::parse(interface);
        interface == link.name || (is_card && link.own_mac.is_some() && link.own_mac == mac())
    }
}

fn has_ports(bond: &Link, links: &[Link]) -> bool {
    links.iter().any(|link| link.master == Some(bond.index))
}

/// Returns whether the kernel does not know such interfaces, for lack of a module.
fn is_unknown(error: &io::Error) -> bool {
    error.raw_os_error().map(Errno::from_raw_os_error) == Some(Errno::OPNOTSUPP)
}

impl Step<'_> {
    fn name(&self) -> &str {
        match self {
            Self::Vlan { name, .. } | Self::Bond { name, .. } => name,
            Self::Port { port, .. } => &port.name,
        }
    }

    fn what(&self) -> String {
        match self {
            Self::Vlan { .. } | Self::Bond { .. } => "made".to_owned(),
            Self::Port { bond, .. } => format!("made a port of {}", bond.name),
        }
    }

    fn apply(&self) -> io::Result<()> {
        match *self {
            Self::Vlan { name, id, lower } => {
                // The kernel sets no VLAN up whose interface is down.
                route::set_up(lower)?;
                route::add_vlan(name, id, lower)
            }
            Self::Bond { name, settings, mtu } => route::add_bond(name, settings, mtu),
            Self::Port { bond, port, .. } => {
                // The bond sets its ports up itself.
                route::set_down(port.index)?;
                route::set_master(port.index, bond.index)
            }
        }
    }

    /// Makes a new port the preferred one of its bond, if it is requested. The bond works without
    /// one, and most modes have none.
    fn prefer(&self) -> Option<Note> {
        let Self::Port { bond, port, is_primary: true } = self else { return None };
        let error = route::set_primary(bond.index, port.index).err()?;
        let what = format!("made the preferred port of {}", bond.name);
        Some(Note::Failed { interface: port.name.clone(), what, error })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, own_mac: Option<u8>) -> Link {
        let mac = own_mac.map(|last| Mac([2, 0, 0, 0, 0, last]));
        Link {
            index,
            name: name.to_owned(),
            mac,
            own_mac: mac,
            up: true,
            running: true,
            loopback: false,
            ethernet: true,
            is_virtual: own_mac.is_none(),
            master: None,
        }
    }

    fn stack() -> Stack {
        Stack::new(vec![
            Upper::vlan("bond0.5:bond0").unwrap(),
            Upper::bond("bond0:eth0,02-00-00-00-00-02:mode=1,primary=eth0").unwrap(),
        ])
    }

    fn names(stack: &Stack, links: &[Link]) -> Vec<String> {
        stack.steps(links).iter().map(|step| format!("{} {}", step.name(), step.what())).collect()
    }

    #[test]
    fn vlan_on_a_bond_is_made_step_by_step() {
        let stack = stack();
        let mut links = vec![link(2, "eth0", Some(1)), link(3, "eth1", Some(2))];
        assert_eq!(names(&stack, &links), ["bond0 made"]);
        links.push(link(4, "bond0", None));
        let steps = names(&stack, &links);
        assert_eq!(steps, ["eth0 made a port of bond0", "eth1 made a port of bond0"]);
        let is_primary = |step: &Step<'_>| matches!(step, Step::Port { is_primary: true, .. });
        assert!(is_primary(&stack.steps(&links)[0]) && !is_primary(&stack.steps(&links)[1]));
        links[0].master = Some(4);
        assert_eq!(names(&stack, &links), ["bond0.5 made", "eth1 made a port of bond0"]);
        links[1].master = Some(4);
        links.push(link(5, "bond0.5", None));
        assert_eq!(names(&stack, &links), Vec::<String>::new());
    }

    #[test]
    fn ports_and_empty_bonds_get_no_addresses() {
        let stack = stack();
        let mut links = vec![link(2, "eth0", Some(1)), link(4, "bond0", None)];
        let bare = |links: &[Link]| -> Vec<bool> {
            links.iter().map(|link| stack.is_bare(link, links)).collect()
        };
        assert_eq!(bare(&links), [true, true]);
        links[0].master = Some(4);
        links.push(link(6, "eth7", Some(7)));
        assert_eq!(bare(&links), [true, false, false]);
        assert_eq!(stack.lowers().collect::<Vec<_>>(), ["eth0", "02-00-00-00-00-02"]);
    }

    #[test]
    fn refused_ports_and_those_of_refused_bonds_get_addresses() {
        let links = [link(2, "eth0", Some(1)), link(3, "eth1", Some(2)), link(4, "bond0", None)];
        for (refused, bare) in
            [("eth1", [true, false, true]), ("bond0", [false, false, true]), ("", [true; 3])]
        {
            let stack = Stack { refused: [refused.to_owned()].into(), ..stack() };
            let found = links.each_ref().map(|link| stack.is_bare(link, &links));
            assert_eq!(found, bare, "{refused}");
        }
        let stack = Stack { refused: ["bond0".to_owned()].into(), ..stack() };
        assert_eq!(names(&stack, &links), Vec::<String>::new());
    }

    #[test]
    fn mac_address_means_the_card_and_not_what_is_on_it() {
        let stack = Stack::new(vec![Upper::vlan("vlan5:02-00-00-00-00-01").unwrap()]);
        let other = Link { is_virtual: true, ..link(9, "macvlan0", Some(1)) };
        let links = [other, link(2, "eth0", Some(1))];
        assert_eq!(stack.steps(&links), [Step::Vlan { name: "vlan5", id: 5, lower: 2 }]);
    }

    #[test]
    fn missing_driver_is_waited_for_and_then_reported() {
        let mut stack = stack();
        let start = Instant::now();
        assert!(stack.is_early("bond0", start));
        assert!(stack.is_early("bond0", start + MISSING_AFTER / 2));
        assert!(stack.is_early("eth0", start + MISSING_AFTER));
        assert!(!stack.is_early("bond0", start + MISSING_AFTER));
    }

    #[test]
    fn port_without_preference_has_a_sentence_of_its_own() {
        let nobody = [link(u32::MAX >> 1, "none", None), link((u32::MAX >> 1) - 1, "gone", None)];
        let [bond, port] = &nobody;
        let note = Step::Port { bond, port, is_primary: true }.prefer().unwrap().to_string();
        assert!(note.starts_with("gone: could not be made the preferred port of none: "), "{note}");
        assert!(Step::Port { bond, port, is_primary: false }.prefer().is_none());
    }

    #[test]
    fn refused_step_is_reported_once() {
        let mut stack = Stack::new(vec![Upper::vlan("none.5:none").unwrap()]);
        let nobody = link(i32::MAX.unsigned_abs(), "none", Some(1));
        let mut notes = Vec::new();
        for _ in 0..2 {
            stack.build(std::slice::from_ref(&nobody), &mut |note| notes.push(note.to_string()));
        }
        assert_eq!(notes.len(), 1, "{notes:?}");
        assert!(notes[0].starts_with("none.5: could not be made: "), "{notes:?}");
    }
}
