//! Interfaces on top of others: VLANs and bonds, as the parameters `vlan=` and `bond=` of
//! dracut.cmdline(7) request them.

use super::ip_parameter::{Problem, parse_interface, parse_mtu};

/// An interface on top of others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upper {
    /// Its name.
    pub name: String,
    pub kind: UpperKind,
}

/// What an interface on top of others does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpperKind {
    /// A VLAN (IEEE 802.1Q).
    Vlan {
        /// 1 to 4094.
        id: u16,
        /// The interface that has it, by name or MAC address.
        lower: String,
    },
    /// A bond.
    Bond {
        /// Its ports, by name or MAC address.
        ports: Vec<String>,
        settings: Vec<BondSetting>,
        /// The preferred port.
        primary: Option<String>,
        /// In bytes.
        mtu: Option<u32>,
    },
}

/// An option of a bond as an attribute of netlink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BondSetting {
    pub(super) attribute: u16,
    pub(super) value: Value,
}

/// The value of an attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value {
    Byte(u8),
    Word(u32),
}

impl Value {
    /// Returns its bytes in a message.
    pub(super) fn bytes(self) -> Vec<u8> {
        match self {
            Self::Byte(byte) => vec![byte],
            Self::Word(word) => word.to_ne_bytes().to_vec(),
        }
    }
}

/// The values that an option of bonds takes.
#[derive(Debug, Clone, Copy)]
enum Values {
    /// One of these, by name or number.
    Names(&'static [&'static str]),
    Number,
}

/// Options of bonds by name, with their attributes (`linux/if_link.h`).
const OPTIONS: &[(&str, u16, Values)] = &[
    ("mode", MODE, Values::Names(MODES)),
    ("miimon", MIIMON, Values::Number),
    ("updelay", 4, Values::Number),
    ("downdelay", 5, Values::Number),
    ("fail_over_mac", 13, Values::Names(&["none", "active", "follow"])),
    ("xmit_hash_policy", 14, Values::Names(POLICIES)),
    ("min_links", 18, Values::Number),
    ("lacp_rate", 21, Values::Names(&["slow", "fast"])),
    ("ad_select", 22, Values::Names(&["stable", "bandwidth", "count"])),
];
const MODE: u16 = 1;
const MIIMON: u16 = 3;
const MODES: &[&str] = &[
    "balance-rr",
    "active-backup",
    "balance-xor",
    "broadcast",
    "802.3ad",
    "balance-tlb",
    "balance-alb",
];
const POLICIES: &[&str] =
    &["layer2", "layer3+4", "layer2+3", "encap2+3", "encap3+4", "vlan+srcmac"];
/// Milliseconds between checks of the carrier of ports: without one, a broken port is not noticed.
const CHECK: u32 = 100;

impl Upper {
    /// Parses the value of `vlan=NAME:INTERFACE`; the number is at the end of the name.
    pub(super) fn vlan(value: &str) -> Result<Self, Problem> {
        let (name, lower) = value.split_once(':').ok_or(Problem::VlanForm)?;
        let id = vlan_id(name).ok_or(Problem::VlanForm)?;
        let (name, lower) = (parse_interface(name)?, parse_interface(lower)?);
        Ok(Self { name, kind: UpperKind::Vlan { id, lower } })
    }

    /// Parses the value of `bond=NAME:INTERFACES:OPTIONS:MTU`. The defaults are those of dracut; with
    /// ports, the options may be missing.
    pub(super) fn bond(value: &str) -> Result<Self, Problem> {
        let fields: Vec<&str> = value.split(':').collect();
        let field = |number: usize| fields.get(number).copied().filter(|field| !field.is_empty());
        if fields.len() > 4 {
            return Err(Problem::BondForm);
        }
        let name = parse_interface(field(0).unwrap_or("bond0"))?;
        let ports = field(1).unwrap_or("eth0,eth1").split(',').map(parse_interface);
        let ports = ports.collect::<Result<_, _>>()?;
        let (settings, primary) = bond_settings(field(2).unwrap_or("mode=balance-rr"))?;
        let mtu = field(3).map(parse_mtu).transpose()?;
        Ok(Self { name, kind: UpperKind::Bond { ports, settings, primary, mtu } })
    }

    /// Returns the interfaces below it, by name or MAC address.
    pub(super) fn lowers(&self) -> &[String] {
        match &self.kind {
            UpperKind::Vlan { lower, .. } => std::slice::from_ref(lower),
            UpperKind::Bond { ports, .. } => ports,
        }
    }

    /// Returns the kernel module that it needs.
    pub fn module(&self) -> &'static str {
        match self.kind {
            UpperKind::Vlan { .. } => "8021q",
            UpperKind::Bond { .. } => "bonding",
        }
    }
}

/// Returns the number of a VLAN from its name: `vlan5`, `vlan0005`, `eth0.5`.
pub(super) fn vlan_id(name: &str) -> Option<u16> {
    let digits = name.strip_prefix("vlan").or_else(|| Some(name.rsplit_once('.')?.1))?;
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|id| is_number && (1..=4094).contains(id))
}

/// Returns the names of the options of bonds, except that of the preferred port.
pub(super) fn bond_options() -> impl Iterator<Item = &'static str> {
    OPTIONS.iter().map(|(name, ..)| *name)
}

fn bond_settings(text: &str) -> Result<(Vec<BondSetting>, Option<String>), Problem> {
    let (mut settings, mut primary) = (Vec::new(), None);
    for option in text.split(',').filter(|option| !option.is_empty()) {
        let (name, value) = option.split_once('=').ok_or(Problem::BondForm)?;
        match OPTIONS.iter().find(|(known, ..)| *known == name) {
            _ if name == "primary" => primary = Some(parse_interface(value)?),
            Some((_, attribute, values)) => {
                let value = values.parse(value).ok_or_else(|| Problem::BondValue(option.into()))?;
                settings.push(BondSetting { attribute: *attribute, value });
            }
            None => {
                let known = bond_options().chain(["primary"]).collect::<Vec<_>>().join(", ");
                return Err(Problem::UnknownBondOption { name: name.to_owned(), known });
            }
        }
    }
    if !settings.iter().any(|it| it.attribute == MIIMON) {
        settings.push(BondSetting { attribute: MIIMON, value: Value::Word(CHECK) });
    }
    // Others depend on it.
    settings.sort_by_key(|it| it.attribute != MODE);
    Ok((settings, primary))
}

impl Values {
    fn parse(self, text: &str) -> Option<Value> {
        match self {
            Self::Number => text.parse().ok().map(Value::Word),
            Self::Names(names) => {
                let number = names.iter().position(|name| *name == text);
                let number = number.or_else(|| text.parse().ok().filter(|&it| it < names.len()))?;
                u8::try_from(number).ok().map(Value::Byte)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vlan_number_is_at_the_end_of_the_name() {
        for (value, wanted) in
            [("eth0.5:eth0", 5), ("vlan0005:eth0", 5), ("vlan4094:bond0", 4094), ("e.1.7:e.1", 7)]
        {
            let vlan = Upper::vlan(value).unwrap();
            assert!(matches!(vlan.kind, UpperKind::Vlan { id, .. } if id == wanted), "{vlan:?}");
        }
        for value in ["", "eth0.5", "lan:eth0", "vlan0:eth0", "eth0.4095:eth0", "vlan+5:eth0"] {
            assert_eq!(Upper::vlan(value).unwrap_err(), Problem::VlanForm, "{value}");
        }
        let long = Upper::vlan("a-name-that-is-too-long.5:eth0").unwrap_err();
        assert!(matches!(long, Problem::InvalidInterface(_)), "{long}");
    }

    #[test]
    fn bond_has_the_defaults_of_dracut() {
        let byte = |attribute, value| BondSetting { attribute, value: Value::Byte(value) };
        let word = |attribute, value| BondSetting { attribute, value: Value::Word(value) };
        let bond = |value: &str| match Upper::bond(value).unwrap() {
            Upper { name, kind: UpperKind::Bond { ports, settings, primary, mtu } } => {
                (name, ports.join(" "), settings, primary, mtu)
            }
            other => panic!("{other:?}"),
        };
        let plain = ("bond0".to_owned(), "eth0 eth1".to_owned());
        let (name, ports) = plain.clone();
        let check = word(MIIMON, 100);
        assert_eq!(bond(""), (name, ports, vec![byte(MODE, 0), check], None, None));
        let (name, ports) = plain;
        let line = "bond0:eth0,eth1:miimon=50,mode=active-backup,primary=eth1:1400";
        let settings = vec![byte(MODE, 1), word(MIIMON, 50)];
        assert_eq!(bond(line), (name, ports, settings, Some("eth1".into()), Some(1400)));
        let (.., settings, _, _) = bond("b:52-54-00-12-34-56:mode=4,lacp_rate=fast");
        assert_eq!(settings, [byte(MODE, 4), byte(21, 1), check]);
    }

    #[test]
    fn malformed_bond_names_the_wrong_part() {
        let problem = |value: &str| Upper::bond(value).unwrap_err();
        assert_eq!(problem("bond0:eth0:mode"), Problem::BondForm);
        assert_eq!(problem("bond0:eth0:mode=1:1400:x"), Problem::BondForm);
        assert_eq!(problem("b:eth0:mode=fast"), Problem::BondValue("mode=fast".into()));
        assert_eq!(problem("b:eth0:mode=7"), Problem::BondValue("mode=7".into()));
        assert_eq!(problem("b:eth0:mode=1:12"), Problem::InvalidMtu("12".into()));
        assert_eq!(problem("b:eth0,:mode=1"), Problem::InvalidInterface(String::new()));
        let unknown = problem("b:e:../x=1").to_string();
        assert!(unknown.starts_with("\"../x\" is not a known bonding option"), "{unknown}");
        assert!(unknown.ends_with("ad_select, primary"), "{unknown}");
    }
}
