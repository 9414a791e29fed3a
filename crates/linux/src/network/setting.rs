//! Network parameters of the kernel command line, in the syntax of dracut.cmdline(7) and
//! systemd-network-generator(8).

use super::ether::Mac;
use crate::boot::{Parameter, parse_command_line};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use thiserror::Error;

/// How an interface gets addresses, besides fixed ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// `link-local`: IPv4 and IPv6 link-local addresses, nothing else.
    LinkLocal,
    /// `link6`: an IPv6 link-local address alone.
    LinkLocal6,
    /// `dhcp`: DHCPv4 beside the link-local addresses.
    Dhcp,
    /// `on`, `any`: DHCPv4 and the prefixes that IPv6 routers announce, beside the link-local addresses.
    Any,
    /// `auto6`, `dhcp6`, `either6`: the prefixes that IPv6 routers announce, beside the link-local
    /// addresses. DHCPv6 itself is not supported.
    Auto6,
    /// `none`, `off`: only the fixed address; without one the interface is left alone.
    Off,
}

/// A fixed address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fixed {
    pub address: IpAddr,
    /// The prefix length, in bits: 1 to 32, or to 128.
    pub prefix: u8,
    /// The other end of a point-to-point link.
    pub peer: Option<IpAddr>,
    pub gateway: Option<IpAddr>,
}

/// An `ip=` parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The interface, by name or MAC address (`52-54-00-12-34-56`); `None` for every wired one.
    pub interface: Option<String>,
    pub method: Method,
    pub fixed: Option<Fixed>,
    /// The host name to set.
    pub hostname: Option<String>,
    /// The MTU, in bytes.
    pub mtu: Option<u32>,
    /// The MAC address to set.
    pub mac: Option<Mac>,
}

/// A network parameter that is ignored.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{word} on the kernel command line is ignored: {problem}")]
pub struct BadSetting {
    /// The whole parameter, such as `ip=dhpc`.
    pub word: String,
    pub problem: Problem,
}

/// What is wrong with a network parameter.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Problem {
    #[error("nothing follows the equals sign; write a method, such as ip=link-local")]
    Empty,
    /// An unknown method.
    #[error(
        "\"{0}\" is not a method; known are link-local, link6, dhcp, on, any, auto6, dhcp6, none and off"
    )]
    Method(String),
    /// An IPv6 address without brackets.
    #[error("put IPv6 addresses in brackets: ip=[2001:db8::2]/64:::::eth0:none")]
    NoBrackets,
    /// A prefix length in the place of another field.
    #[error("put the prefix length \"{0}\" directly after the address: 192.0.2.5/24")]
    Prefix(String),
    /// `BOOTIF` as the interface, without a parameter `BOOTIF=`.
    #[error("it names BOOTIF, but BOOTIF=MAC-ADDRESS is missing")]
    NoBootInterface,
    /// A virtual interface: `vlan=`, `bond=`, `team=`, `bridge=`.
    #[error("{0} interfaces are not supported; each network card is used by itself, without tags")]
    Unsupported(&'static str),
    /// Unbalanced brackets, or text after them.
    #[error("the brackets around an IPv6 address do not match")]
    Brackets,
    /// Not an address.
    #[error("\"{0}\" is not an address; put IPv6 addresses in brackets")]
    Address(String),
    /// Not a unicast address.
    #[error("{0} is not a unicast address")]
    Unfit(IpAddr),
    /// Addresses of both families in one parameter.
    #[error("{0} and the machine's own address are not of the same family")]
    Family(IpAddr),
    #[error("the netmask or prefix length is missing")]
    NoNetmask,
    /// Not a netmask.
    #[error("\"{0}\" is not a netmask or prefix length")]
    Netmask(String),
    /// Not an interface name.
    #[error("\"{0}\" is not the name of a network interface")]
    Interface(String),
    /// Not an MTU.
    #[error("\"{0}\" is not an MTU between 68 and 65535")]
    Mtu(String),
    /// Not a MAC address.
    #[error("\"{0}\" is not a MAC address")]
    Mac(String),
}

impl Setting {
    /// Returns the default: link-local addresses on every wired interface.
    pub fn link_local() -> Self {
        Self::by(Method::LinkLocal)
    }

    fn by(method: Method) -> Self {
        Self { interface: None, method, fixed: None, hostname: None, mtu: None, mac: None }
    }

    /// Parses the value of an `ip=` parameter.
    ///
    /// # Errors
    /// Returns the parameter and what is wrong with it, as a sentence.
    pub fn parse(word: &str) -> Result<Self, BadSetting> {
        let word = word.trim();
        setting(word).map_err(|problem| BadSetting { word: format!("ip={word}"), problem })
    }

    /// Parses all network parameters of a kernel command line: `ip=`, and `ifname=` and `BOOTIF=`,
    /// which name interfaces. Returns the settings and the ignored parameters; a bad one does not
    /// affect the others.
    pub fn parse_all(command_line: &str) -> (Vec<Self>, Vec<BadSetting>) {
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        let words = parse_command_line(command_line);
        let names = Names::of(&words);
        for word in &words {
            let value = word.value.as_deref().unwrap_or_default();
            let found = match (word.name.as_str(), MADE.iter().find(|(name, _)| *name == word.name))
            {
                ("ip", _) => Self::parse(value).and_then(|setting| names.resolve(setting, value)),
                (name, Some((_, what))) => Err(BadSetting {
                    word: format!("{name}={value}"),
                    problem: Problem::Unsupported(what),
                }),
                _ => continue,
            };
            match found {
                Ok(setting) => good.push(setting),
                Err(error) => bad.push(error),
            }
        }
        (good, bad)
    }

    /// Returns whether it may assign an address that is reachable beyond the link.
    pub fn asks_for_routable(&self) -> bool {
        self.fixed.is_some() || matches!(self.method, Method::Dhcp | Method::Any | Method::Auto6)
    }
}

/// Parameters that create virtual interfaces, and their kind.
const MADE: [(&str, &str); 4] =
    [("vlan", "VLAN"), ("bond", "bonding"), ("team", "team"), ("bridge", "bridge")];

/// Interface names defined by other parameters: `ifname=NAME:MAC`, and `BOOTIF=01-MAC` for the one
/// that the firmware booted from (PXELINUX adds the hardware type 01 in front).
struct Names(Vec<(String, Mac)>);

impl Names {
    fn of(words: &[Parameter]) -> Self {
        let name = |word: &Parameter| {
            let value = word.value.as_deref()?;
            match word.name.as_str() {
                "ifname" => {
                    let (name, mac) = value.split_once(':')?;
                    Some((name.to_owned(), Mac::parse(mac)?))
                }
                BOOTIF => {
                    let typed = value.strip_prefix("01-").or_else(|| value.strip_prefix("01:"));
                    let mac = typed.and_then(Mac::parse).or_else(|| Mac::parse(value))?;
                    Some((BOOTIF.to_owned(), mac))
                }
                _ => None,
            }
        };
        Self(words.iter().filter_map(name).collect())
    }

    /// Replaces such a name by the MAC address.
    fn resolve(&self, mut setting: Setting, word: &str) -> Result<Setting, BadSetting> {
        let Some(interface) = &setting.interface else { return Ok(setting) };
        match self.0.iter().find(|(name, _)| name == interface) {
            Some((_, mac)) => setting.interface = Some(mac.to_string()),
            None if interface == BOOTIF => {
                let problem = Problem::NoBootInterface;
                return Err(BadSetting { word: format!("ip={word}"), problem });
            }
            None => {}
        }
        Ok(setting)
    }
}

const BOOTIF: &str = "BOOTIF";

/// Parses the three forms: a method; an interface and a method; an address and its fields.
fn setting(word: &str) -> Result<Setting, Problem> {
    let fields = fields(word)?;
    let (first, rest) = fields.split_first().ok_or(Problem::Empty)?;
    if rest.is_empty() && first.is_empty() {
        return Err(Problem::Empty);
    }
    if first.is_empty() || is_address(first) {
        return long_form(&fields);
    }
    if is_bare_ipv6(word) {
        return Err(Problem::NoBrackets);
    }
    let Some((method, rest)) = rest.split_first() else {
        return parse_method(first).map(Setting::by);
    };
    let mut setting = Setting::by(match *method {
        "" => Method::Dhcp,
        method => parse_method(method)?,
    });
    setting.interface = Some(parse_interface(first)?);
    parse_hardware(rest, &mut setting)?;
    Ok(setting)
}

/// Parses `CLIENT:PEER:GATEWAY:NETMASK:HOSTNAME:INTERFACE:METHOD`, each of which may be empty.
/// Without a method and an address the default is DHCP (`ip=:::::eth0`, `ip=::::NAME:BOOTIF`), as
/// with the kernel's own `ip=` and with ipconfig of klibc.
fn long_form(fields: &[&str]) -> Result<Setting, Problem> {
    let field = |number: usize| fields.get(number).copied().filter(|field| !field.is_empty());
    let unnamed = if field(0).is_some() { Method::Off } else { Method::Dhcp };
    let mut setting = Setting::by(field(6).map_or(Ok(unnamed), parse_method)?);
    setting.fixed = field(0).map(|client| parse_fixed(client, field)).transpose()?;
    setting.hostname = field(4).map(str::to_owned);
    setting.interface = field(5).map(parse_interface).transpose()?;
    parse_hardware(fields.get(7..).unwrap_or_default(), &mut setting)?;
    Ok(setting)
}

/// Splits at colons outside of brackets.
fn fields(word: &str) -> Result<Vec<&str>, Problem> {
    let mut depth = 0i32;
    let mut wrong = false;
    let fields = word
        .split(|c| {
            depth += i32::from(c == '[') - i32::from(c == ']');
            wrong |= !(0..=1).contains(&depth);
            c == ':' && depth == 0
        })
        .collect();
    if wrong || depth != 0 { Err(Problem::Brackets) } else { Ok(fields) }
}

fn is_address(field: &str) -> bool {
    let address = field.split_once('/').map_or(field, |(address, _)| address);
    field.starts_with('[') || address.parse::<Ipv4Addr>().is_ok()
}

/// Returns whether the value begins with an IPv6 address without brackets.
fn is_bare_ipv6(word: &str) -> bool {
    let fields: Vec<&str> = word.split('/').next().unwrap_or_default().split(':').collect();
    (3..=fields.len()).any(|n| fields[..n].join(":").parse::<Ipv6Addr>().is_ok())
}

fn parse_method(field: &str) -> Result<Method, Problem> {
    match field {
        "link-local" => Ok(Method::LinkLocal),
        "link6" => Ok(Method::LinkLocal6),
        "dhcp" | "dhcp4" | "single-dhcp" => Ok(Method::Dhcp),
        "on" | "any" => Ok(Method::Any),
        "auto6" | "dhcp6" | "either6" => Ok(Method::Auto6),
        "none" | "off" | "static" => Ok(Method::Off),
        _ => Err(Problem::Method(field.to_owned())),
    }
}

/// Parses an interface name (at most 15 bytes), or a MAC address with hyphens.
fn parse_interface(field: &str) -> Result<String, Problem> {
    let fits = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | '[' | ']');
    let name = (1..=15).contains(&field.len()) && field.chars().all(fits);
    if (name && field != "." && field != "..") || Mac::parse(field).is_some() {
        Ok(field.to_owned())
    } else {
        Err(Problem::Interface(field.to_owned()))
    }
}

fn parse_fixed<'a>(
    client: &str,
    field: impl Fn(usize) -> Option<&'a str>,
) -> Result<Fixed, Problem> {
    let (address, after) = match client.rsplit_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (client, None),
    };
    let address = parse_address(address)?;
    if let Some(prefix) = field(1).filter(|field| field.starts_with('/')) {
        return Err(Problem::Prefix(prefix.to_owned()));
    }
    let same_family = |field: &str| match parse_address(field)? {
        other if other.is_ipv4() == address.is_ipv4() => Ok(other),
        other => Err(Problem::Family(other)),
    };
    let netmask = after.or_else(|| field(3)).ok_or(Problem::NoNetmask)?;
    Ok(Fixed {
        address,
        prefix: parse_netmask(netmask, address)?,
        peer: field(1).map(same_family).transpose()?,
        gateway: field(2).map(same_family).transpose()?,
    })
}

fn parse_address(field: &str) -> Result<IpAddr, Problem> {
    let inner = field.strip_prefix('[').and_then(|field| field.strip_suffix(']'));
    let address: IpAddr =
        inner.unwrap_or(field).parse().map_err(|_| Problem::Address(field.to_owned()))?;
    let broadcast = address == IpAddr::V4(Ipv4Addr::BROADCAST);
    if address.is_unspecified() || address.is_multicast() || address.is_loopback() || broadcast {
        return Err(Problem::Unfit(address));
    }
    Ok(address)
}

fn parse_netmask(field: &str, of: IpAddr) -> Result<u8, Problem> {
    let longest = if of.is_ipv4() { 32 } else { 128 };
    let from_mask = || of.is_ipv4().then(|| prefix_of(field.parse().ok()?)).flatten();
    let prefix = field.parse().ok().or_else(from_mask);
    let prefix = prefix.filter(|prefix| (1..=longest).contains(prefix));
    prefix.ok_or_else(|| Problem::Netmask(field.to_owned()))
}

/// Returns the prefix length of a netmask; `None` if its ones are not contiguous.
pub(super) fn prefix_of(mask: Ipv4Addr) -> Option<u8> {
    let bits = mask.to_bits();
    let ones = bits.leading_ones();
    (bits.count_ones() == ones).then(|| u8::try_from(ones).ok()).flatten()
}

/// Parses `MTU:MAC`; ignores addresses of name servers and time servers.
fn parse_hardware(fields: &[&str], setting: &mut Setting) -> Result<(), Problem> {
    let Some((first, rest)) = fields.split_first() else { return Ok(()) };
    if is_address(first) {
        return Ok(());
    }
    setting.mtu = Some(*first).filter(|field| !field.is_empty()).map(parse_mtu).transpose()?;
    let address = rest.join(":");
    // Without an MTU there may be an empty field and then the name servers.
    let none = address.trim_matches(':').is_empty() || rest.iter().any(|field| is_address(field));
    setting.mac = (!none).then(|| parse_mac(&address)).transpose()?;
    Ok(())
}

fn parse_mtu(field: &str) -> Result<u32, Problem> {
    let mtu = field.parse().ok().filter(|mtu| (68..=65535).contains(mtu));
    mtu.ok_or_else(|| Problem::Mtu(field.to_owned()))
}

fn parse_mac(field: &str) -> Result<Mac, Problem> {
    let mac = Mac::parse(field).filter(|mac| mac.is_unicast());
    mac.ok_or_else(|| Problem::Mac(field.to_owned()))
}

/// Prints the parameter as on the command line, without MTU and MAC address.
impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LinkLocal => "link-local",
            Self::LinkLocal6 => "link6",
            Self::Dhcp => "dhcp",
            Self::Any => "any",
            Self::Auto6 => "auto6",
            Self::Off => "off",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(word: &str) -> Setting {
        Setting::parse(word).unwrap()
    }

    fn problem(word: &str) -> Problem {
        Setting::parse(word).unwrap_err().problem
    }

    #[test]
    fn method_alone_applies_to_every_interface() {
        for (word, method) in [
            ("link-local", Method::LinkLocal),
            ("link6", Method::LinkLocal6),
            ("dhcp", Method::Dhcp),
            ("on", Method::Any),
            ("any", Method::Any),
            ("auto6", Method::Auto6),
            ("dhcp6", Method::Auto6),
            ("none", Method::Off),
            ("off", Method::Off),
        ] {
            assert_eq!(of(word), Setting::by(method), "{word}");
            assert_eq!(of(&method.to_string()).method, method);
        }
    }

    #[test]
    fn interface_may_have_an_mtu_and_a_mac_address() {
        let eth0 = Setting { interface: Some("eth0".into()), ..Setting::by(Method::Dhcp) };
        assert_eq!(of("eth0:dhcp"), eth0);
        assert_eq!(of("eth0:dhcp:9000"), Setting { mtu: Some(9000), ..eth0.clone() });
        let mac = Mac::parse("52:54:00:12:34:56");
        assert_eq!(
            of("eth0:dhcp:9000:52:54:00:12:34:56"),
            Setting { mtu: Some(9000), mac, ..eth0.clone() }
        );
        assert_eq!(of("eth0:dhcp::52:54:00:12:34:56"), Setting { mac, ..eth0 });
        assert_eq!(of("52-54-00-12-34-56:any").interface.as_deref(), Some("52-54-00-12-34-56"));
    }

    #[test]
    fn fixed_address_has_a_mask_or_a_prefix() {
        let fixed = Fixed {
            address: [192, 168, 7, 2].into(),
            prefix: 24,
            peer: None,
            gateway: Some([192, 168, 7, 1].into()),
        };
        for word in [
            "192.168.7.2::192.168.7.1:255.255.255.0:box:eth0:none",
            "192.168.7.2::192.168.7.1:24:box:eth0:off",
            "192.168.7.2/24::192.168.7.1::box:eth0",
            "192.168.7.2::192.168.7.1:24:box:eth0:none:192.168.7.1:8.8.8.8",
            "192.168.7.2::192.168.7.1:24:box:eth0:none::192.168.7.1",
        ] {
            let setting = of(word);
            assert_eq!(setting.fixed, Some(fixed), "{word}");
            assert_eq!(setting.hostname.as_deref(), Some("box"));
            assert_eq!((setting.interface.as_deref(), setting.method), (Some("eth0"), Method::Off));
            assert_eq!((setting.mtu, setting.mac), (None, None));
        }
        let wide = of("192.168.7.2::192.168.7.1:24:box:eth0:none:1400:52:54:00:12:34:56");
        assert_eq!((wide.mtu, wide.mac), (Some(1400), Mac::parse("52:54:00:12:34:56")));
    }

    #[test]
    fn ipv6_addresses_are_in_brackets() {
        let setting = of("[2001:db8::2]::[fe80::1]:64::thunderbolt0:none");
        let fixed = setting.fixed.unwrap();
        assert_eq!((fixed.address.to_string().as_str(), fixed.prefix), ("2001:db8::2", 64));
        assert_eq!(fixed.gateway, Some("fe80::1".parse().unwrap()));
        assert_eq!(of("[2001:db8::2]/64").fixed.unwrap().prefix, 64);
    }

    #[test]
    fn dhcp_can_have_a_host_name() {
        let setting = of("::::box:eth0:dhcp");
        assert_eq!((setting.method, setting.hostname.as_deref()), (Method::Dhcp, Some("box")));
        assert_eq!(setting.fixed, None);
    }

    #[test]
    fn errors_name_the_wrong_part() {
        assert_eq!(problem(""), Problem::Empty);
        assert_eq!(problem("dhpc"), Problem::Method("dhpc".into()));
        assert_eq!(problem("eth0:ibft"), Problem::Method("ibft".into()));
        assert_eq!(problem("[fe80::1:64"), Problem::Brackets);
        assert_eq!(problem("1.2.3.4]::x"), Problem::Brackets);
        assert_eq!(problem("1.2.3.4"), Problem::NoNetmask);
        assert_eq!(problem("1.2.3.4:::255.0.255.0"), Problem::Netmask("255.0.255.0".into()));
        assert_eq!(problem("1.2.3.4/33"), Problem::Netmask("33".into()));
        assert_eq!(problem("1.2.3.4/0"), Problem::Netmask("0".into()));
        assert_eq!(problem("1.2.3.4::[fe80::1]:24"), Problem::Family("fe80::1".parse().unwrap()));
        assert_eq!(problem("1.2.3.4::nine:24"), Problem::Address("nine".into()));
        assert_eq!(problem("224.0.0.1/24"), Problem::Unfit([224, 0, 0, 1].into()));
        assert_eq!(
            problem("a-name-that-is-too-long:dhcp"),
            Problem::Interface("a-name-that-is-too-long".into())
        );
        assert_eq!(problem("eth/0:dhcp"), Problem::Interface("eth/0".into()));
        assert_eq!(problem("eth0:dhcp:12"), Problem::Mtu("12".into()));
        assert_eq!(problem("eth0:dhcp::52:54:00:12:34"), Problem::Mac("52:54:00:12:34".into()));
        assert_eq!(
            problem("eth0:dhcp::01:00:00:00:00:00"),
            Problem::Mac("01:00:00:00:00:00".into())
        );
        let sentence = Setting::parse("dhpc").unwrap_err().to_string();
        assert!(sentence.starts_with(
            "ip=dhpc on the kernel command line is ignored: \"dhpc\" is not a method"
        ));
    }

    #[test]
    fn bad_parameter_does_not_affect_the_others() {
        let line = "quiet ip=dhpc ip=eth0:dhcp \"ip=link-local\" rd.ip=x ip=";
        let (good, bad) = Setting::parse_all(line);
        assert_eq!(good.len(), 2);
        assert_eq!(bad.iter().map(|bad| bad.word.as_str()).collect::<Vec<_>>(), ["ip=dhpc", "ip="]);
    }

    #[test]
    fn interface_without_method_or_address_gets_dhcp() {
        let eth0 = Setting { interface: Some("eth0".into()), ..Setting::by(Method::Dhcp) };
        assert_eq!(of(":::::eth0"), eth0);
        assert_eq!(of(":::::eth0:"), eth0);
        assert_eq!(of("eth0:"), eth0);
        assert_eq!(of(":::::eth0:none").method, Method::Off);
        assert_eq!(of("192.0.2.5/24:::::eth0").method, Method::Off);
    }

    #[test]
    fn bootif_and_ifname_resolve_to_mac_addresses() {
        let of_line = |line: &str| Setting::parse_all(line);
        for (word, mac) in [
            ("BOOTIF=01-52-54-00-12-34-56", "52:54:00:12:34:56"),
            ("BOOTIF=01-52-54-00-AB-CD-EF", "52:54:00:ab:cd:ef"),
            ("BOOTIF=52:54:00:12:34:56", "52:54:00:12:34:56"),
        ] {
            // The form of MAAS.
            let (good, bad) = of_line(&format!("{word} ip=::::maas-enlist:BOOTIF"));
            assert!(bad.is_empty(), "{bad:?}");
            let interface = good[0].interface.as_deref().and_then(Mac::parse);
            assert_eq!((interface, good[0].method), (Mac::parse(mac), Method::Dhcp), "{word}");
        }
        let (good, _) = of_line("ip=lan:dhcp ifname=lan:52:54:00:12:34:56");
        assert_eq!(good[0].interface.as_deref(), Some("52:54:00:12:34:56"));
        let (good, bad) = of_line("ip=::::maas:BOOTIF");
        assert_eq!((good.len(), bad[0].problem.clone()), (0, Problem::NoBootInterface));
    }

    #[test]
    fn virtual_interfaces_are_refused() {
        let line = "vlan=eth0.5:eth0 bond=bond0:eth0,eth1:mode=802.3ad team=t:eth0 bridge=b:eth0";
        let (good, bad) = Setting::parse_all(line);
        assert!(good.is_empty());
        assert_eq!(bad.len(), 4);
        assert!(bad[0].to_string().starts_with("vlan=eth0.5:eth0 on the kernel command line"));
    }

    #[test]
    fn ipv6_address_without_brackets_gets_the_hint() {
        for word in ["2001:db8::2", "2001:db8::2/64", "fe80::2::fe80::1:64::eth0:none"] {
            assert_eq!(problem(word), Problem::NoBrackets, "{word}");
        }
        assert_eq!(problem("[2001:db8::2]:/64:"), Problem::Prefix("/64".into()));
    }

    proptest::proptest! {
        #[test]
        fn any_value_parses_without_panic(word in "[a-z0-9:./\\[\\]-]{0,60}") {
            let _ = Setting::parse(&word);
        }
    }
}
