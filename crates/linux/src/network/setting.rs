//! The words of the kernel command line about the network, in the syntax of dracut.cmdline(7) and
//! systemd-network-generator(8).

use super::ether::Mac;
use crate::boot::{Parameter, parse_command_line};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use thiserror::Error;

/// How an interface comes to its addresses, beside those that are fixed.
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
    /// `auto6`, `dhcp6`, `either6`: the prefixes that IPv6 routers announce, beside the link-local addresses.
    /// DHCPv6 itself is not spoken.
    Auto6,
    /// `none`, `off`: nothing but the fixed address; without one the interface is left alone.
    Off,
}

/// An address that is given by hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fixed {
    /// The address.
    pub address: IpAddr,
    /// The length of the network's prefix, in bits: 1 to 32, or to 128.
    pub prefix: u8,
    /// The other end of a point-to-point link.
    pub peer: Option<IpAddr>,
    /// The default router.
    pub gateway: Option<IpAddr>,
}

/// What one `ip=` word asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The interface, by its name or its hardware address (`52-54-00-12-34-56`); `None` is every wired one.
    pub interface: Option<String>,
    /// How it comes to its addresses.
    pub method: Method,
    /// An address given by hand.
    pub fixed: Option<Fixed>,
    /// The name that this machine is to have.
    pub hostname: Option<String>,
    /// The longest packet of the interface, in bytes.
    pub mtu: Option<u32>,
    /// The hardware address that the interface is to have.
    pub mac: Option<Mac>,
}

/// A word about the network that is not followed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{word} on the kernel command line is ignored: {problem}")]
pub struct BadSetting {
    /// The whole word, such as `ip=dhpc`.
    pub word: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a word about the network; the part is quoted as it was read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Problem {
    /// Nothing follows `ip=`.
    #[error("nothing follows the equals sign; write a method, such as ip=link-local")]
    Empty,
    /// A method that is not known.
    #[error(
        "\"{0}\" is no method; known are link-local, link6, dhcp, on, any, auto6, dhcp6, none and off"
    )]
    Method(String),
    /// An IPv6 address without brackets.
    #[error("an IPv6 address stands in brackets: ip=[2001:db8::2]/64:::::eth0:none")]
    NoBrackets,
    /// A prefix length that does not follow its address.
    #[error("the prefix length \"{0}\" stands directly behind the address: 192.0.2.5/24")]
    Prefix(String),
    /// `BOOTIF` as the interface, without the word that says which one that is.
    #[error("it names BOOTIF, and there is no word BOOTIF=MAC-ADDRESS")]
    NoBootInterface,
    /// An interface that would have to be made: `vlan=`, `bond=`, `team=`, `bridge=`.
    #[error("{0} interfaces are not made here; each network card is used by itself, without tags")]
    Unsupported(&'static str),
    /// A bracket that is not closed, or text behind it.
    #[error("the brackets around an IPv6 address do not match")]
    Brackets,
    /// A part that should be an address.
    #[error("\"{0}\" is no address; IPv6 addresses stand in brackets")]
    Address(String),
    /// An address that no machine can have.
    #[error("{0} is no address that a machine can have")]
    Unfit(IpAddr),
    /// Addresses of both families in one word.
    #[error("{0} is of another family than the machine's own address")]
    Family(IpAddr),
    /// No netmask.
    #[error("the netmask or prefix length is missing")]
    NoNetmask,
    /// A part that should be a netmask.
    #[error("\"{0}\" is no netmask or prefix length")]
    Netmask(String),
    /// A part that should be an interface.
    #[error("\"{0}\" is no name of a network interface")]
    Interface(String),
    /// A part that should be an MTU.
    #[error("\"{0}\" is no MTU between 68 and 65535")]
    Mtu(String),
    /// A part that should be a hardware address.
    #[error("\"{0}\" is no hardware address of a network card")]
    Mac(String),
}

impl Setting {
    /// What is done where no `ip=` word says otherwise: link-local addresses on every wired interface.
    pub fn link_local() -> Self {
        Self::by(Method::LinkLocal)
    }

    fn by(method: Method) -> Self {
        Self { interface: None, method, fixed: None, hostname: None, mtu: None, mac: None }
    }

    /// Reads what stands behind `ip=`.
    ///
    /// Errors: the word and what is wrong with it, as a sentence.
    pub fn parse(word: &str) -> Result<Self, BadSetting> {
        let word = word.trim();
        setting(word).map_err(|problem| BadSetting { word: format!("ip={word}"), problem })
    }

    /// Parses all words of a kernel command line that are about the network: `ip=`, and `ifname=` and `BOOTIF=`, which
    /// name interfaces. Returns what they ask for, and the words that are not followed; a bad one stops none of the others.
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

    /// Whether it asks for an address that more than the other end of a cable may reach.
    pub fn asks_for_routable(&self) -> bool {
        self.fixed.is_some() || matches!(self.method, Method::Dhcp | Method::Any | Method::Auto6)
    }
}

/// Words that ask for an interface that software makes, and what that is.
const MADE: [(&str, &str); 4] =
    [("vlan", "VLAN"), ("bond", "bonding"), ("team", "team"), ("bridge", "bridge")];

/// The interfaces that other words give a name: `ifname=NAME:MAC`, and `BOOTIF=01-MAC` for the one that the firmware
/// booted from (PXELINUX writes the hardware type 01 in front).
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

    /// Puts the hardware address in place of a name that one of those words gave.
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

/// The three forms: a method; an interface and a method; an address and what belongs to it.
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

/// `CLIENT:PEER:GATEWAY:NETMASK:HOSTNAME:INTERFACE:METHOD`, each of which may be empty. Without a method and an address
/// DHCP is meant (`ip=:::::eth0`, `ip=::::NAME:BOOTIF`), as with the kernel's own `ip=` and with ipconfig of klibc.
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

/// Splits at the colons that are not within brackets.
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

/// Whether the word begins with an IPv6 address that is not in brackets.
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

/// A name that the kernel could give (15 bytes at most), or a hardware address with hyphens.
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

/// The prefix length of a netmask; `None` if its ones are not all in front.
pub(super) fn prefix_of(mask: Ipv4Addr) -> Option<u8> {
    let bits = mask.to_bits();
    let ones = bits.leading_ones();
    (bits.count_ones() == ones).then(|| u8::try_from(ones).ok()).flatten()
}

/// `MTU:MAC`, or addresses of name servers and time servers, which are passed over.
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

/// The word as it would stand on the command line, without its hardware fields.
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
    fn a_method_alone_is_for_every_interface() {
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
    fn an_interface_may_have_an_mtu_and_a_hardware_address() {
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
    fn a_fixed_address_may_have_a_mask_or_a_prefix_and_name_servers() {
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
    fn ipv6_addresses_stand_in_brackets() {
        let setting = of("[2001:db8::2]::[fe80::1]:64::thunderbolt0:none");
        let fixed = setting.fixed.unwrap();
        assert_eq!((fixed.address.to_string().as_str(), fixed.prefix), ("2001:db8::2", 64));
        assert_eq!(fixed.gateway, Some("fe80::1".parse().unwrap()));
        assert_eq!(of("[2001:db8::2]/64").fixed.unwrap().prefix, 64);
    }

    #[test]
    fn a_host_name_can_go_with_dhcp() {
        let setting = of("::::box:eth0:dhcp");
        assert_eq!((setting.method, setting.hostname.as_deref()), (Method::Dhcp, Some("box")));
        assert_eq!(setting.fixed, None);
    }

    #[test]
    fn what_is_wrong_is_named() {
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
        assert!(
            sentence.starts_with(
                "ip=dhpc on the kernel command line is ignored: \"dhpc\" is no method"
            )
        );
    }

    #[test]
    fn a_bad_word_stops_none_of_the_others() {
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
    fn bootif_and_ifname_stand_for_hardware_addresses() {
        let of_line = |line: &str| Setting::parse_all(line);
        for (word, mac) in [
            ("BOOTIF=01-52-54-00-12-34-56", "52:54:00:12:34:56"),
            ("BOOTIF=01-52-54-00-AB-CD-EF", "52:54:00:ab:cd:ef"),
            ("BOOTIF=52:54:00:12:34:56", "52:54:00:12:34:56"),
        ] {
            // MAAS writes it so.
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
    fn interfaces_that_are_not_made_are_named() {
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
        fn no_word_panics(word in "[a-z0-9:./\\[\\]-]{0,60}") {
            let _ = Setting::parse(&word);
        }
    }
}
