//! Network parameters of the kernel command line, in the syntax of dracut.cmdline(7) and
//! systemd-network-generator(8).

use super::ether::Mac;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use thiserror::Error;

/// How an interface gets addresses, in addition to fixed ones. [`parse_method`] has all spellings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// `link-local`: IPv4 and IPv6 link-local addresses, nothing else.
    LinkLocal,
    /// `link6`: an IPv6 link-local address alone.
    LinkLocal6,
    /// `dhcp`: DHCPv4, in addition to the link-local addresses.
    Dhcp,
    /// `on`, `any`: DHCPv4 and SLAAC, in addition to the link-local addresses.
    DhcpAndSlaac,
    /// `auto6`, `dhcp6`: SLAAC (addresses by router advertisements), in addition to the link-local
    /// addresses. DHCPv6 itself is not supported.
    Slaac,
    /// `none`, `off`: only the fixed address; without one the interface is not configured.
    Off,
}

/// A fixed address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fixed {
    pub address: IpAddr,
    /// The prefix length, in bits: 1 to 32 for IPv4, 1 to 128 for IPv6.
    pub prefix: u8,
    /// The other end of a point-to-point link.
    pub peer: Option<IpAddr>,
    pub gateway: Option<IpAddr>,
}

/// An `ip=` parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpParameter {
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
#[error("{parameter} on the kernel command line is ignored: {problem}")]
pub struct IgnoredParameter {
    /// The whole parameter, such as `ip=dhpc`.
    pub parameter: String,
    pub problem: Problem,
}

/// What is wrong with a network parameter.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Problem {
    #[error("the value is empty; write a method, such as ip=link-local")]
    Empty,
    /// An unknown method.
    #[error(
        "\"{0}\" is not a method; the methods are link-local, link6, dhcp, dhcp4, single-dhcp, on, any, auto6, \
         dhcp6, either6, none, off and static"
    )]
    UnknownMethod(String),
    /// An IPv6 address without brackets.
    #[error("put IPv6 addresses in brackets: ip=[2001:db8::2]/64:::::eth0:none")]
    MissingBrackets,
    /// A prefix length in the place of another field.
    #[error("put the prefix length \"{0}\" directly after the address: 192.0.2.5/24")]
    MisplacedPrefix(String),
    /// `BOOTIF` as the interface, without a parameter `BOOTIF=`.
    #[error("it names BOOTIF, but BOOTIF=MAC-ADDRESS is missing")]
    MissingBootif,
    /// An interface of a kind that is not made: `team=`, `bridge=`.
    #[error("{0} interfaces are not supported; each network card is used by itself")]
    UnsupportedInterface(&'static str),
    #[error(
        "write vlan=NAME:INTERFACE, with the number of the VLAN (1 to 4094) at the end of the name: \
         vlan=eth0.5:eth0 or vlan=vlan5:eth0"
    )]
    VlanForm,
    #[error(
        "write bond=NAME:INTERFACE,INTERFACE:OPTION=VALUE,OPTION=VALUE, such as \
         bond=bond0:eth0,eth1:mode=active-backup"
    )]
    BondForm,
    #[error("\"{name}\" is not a known bonding option; the options are {known}")]
    UnknownBondOption {
        name: String,
        /// The known ones.
        known: String,
    },
    /// An option of bonds with an invalid value.
    #[error("\"{0}\" is not a valid bonding option")]
    BondValue(String),
    /// A second interface of one name.
    #[error("an earlier parameter makes an interface of the same name")]
    DuplicateInterface,
    /// Unbalanced brackets, or text after them.
    #[error("the brackets around an IPv6 address do not match")]
    UnbalancedBrackets,
    /// Not an address.
    #[error("\"{0}\" is not an address; put IPv6 addresses in brackets")]
    InvalidAddress(String),
    #[error("{0} cannot be the address of an interface")]
    NotAssignable(IpAddr),
    /// Addresses of both families in one parameter.
    #[error("the addresses mix IPv4 and IPv6: {0}")]
    FamilyMismatch(IpAddr),
    #[error("the netmask or prefix length is missing")]
    MissingNetmask,
    /// Not a netmask.
    #[error("\"{0}\" is not a netmask or prefix length")]
    InvalidNetmask(String),
    /// Not an interface name.
    #[error("\"{0}\" is not the name of a network interface")]
    InvalidInterface(String),
    /// Not an MTU.
    #[error("\"{0}\" is not an MTU between 68 and 65535")]
    InvalidMtu(String),
    /// Not a MAC address.
    #[error("\"{0}\" is not a MAC address")]
    InvalidMac(String),
}

impl IpParameter {
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
    /// Fails if the value has another form, or one of its parts is invalid.
    pub fn parse(value: &str) -> Result<Self, IgnoredParameter> {
        let value = value.trim();
        parse_value(value)
            .map_err(|problem| IgnoredParameter { parameter: format!("ip={value}"), problem })
    }

    /// Returns whether the parameter may assign an address that is reachable beyond the link.
    pub fn may_be_routable(&self) -> bool {
        self.fixed.is_some()
            || matches!(self.method, Method::Dhcp | Method::DhcpAndSlaac | Method::Slaac)
    }
}

/// Parses the three forms: a method; an interface and a method; an address and its fields.
fn parse_value(value: &str) -> Result<IpParameter, Problem> {
    let fields = split_fields(value)?;
    let (first, rest) = fields.split_first().ok_or(Problem::Empty)?;
    if rest.is_empty() && first.is_empty() {
        return Err(Problem::Empty);
    }
    if first.is_empty() || is_address(first) {
        return long_form(&fields);
    }
    if is_bare_ipv6(value) {
        return Err(Problem::MissingBrackets);
    }
    let Some((method, rest)) = rest.split_first() else {
        return parse_method(first).map(IpParameter::by);
    };
    let mut ip = IpParameter::by(match *method {
        "" => Method::Dhcp,
        method => parse_method(method)?,
    });
    ip.interface = Some(parse_interface(first)?);
    parse_mtu_and_mac(rest, &mut ip)?;
    Ok(ip)
}

/// Positions of the fields of the long form.
const CLIENT: usize = 0;
const PEER: usize = 1;
const GATEWAY: usize = 2;
const NETMASK: usize = 3;
const HOSTNAME: usize = 4;
const INTERFACE: usize = 5;
const METHOD: usize = 6;

/// Parses `CLIENT:PEER:GATEWAY:NETMASK:HOSTNAME:INTERFACE:METHOD`, each of which may be empty.
/// Without a method and an address the default is DHCP (`ip=:::::eth0`, `ip=::::NAME:BOOTIF`), as
/// with the kernel's own `ip=` and with ipconfig of klibc.
fn long_form(fields: &[&str]) -> Result<IpParameter, Problem> {
    let field = |number: usize| fields.get(number).copied().filter(|field| !field.is_empty());
    let default_method = if field(CLIENT).is_some() { Method::Off } else { Method::Dhcp };
    let mut ip = IpParameter::by(field(METHOD).map_or(Ok(default_method), parse_method)?);
    ip.fixed = field(CLIENT).map(|client| parse_fixed(client, field)).transpose()?;
    ip.hostname = field(HOSTNAME).map(str::to_owned);
    ip.interface = field(INTERFACE).map(parse_interface).transpose()?;
    parse_mtu_and_mac(fields.get(METHOD + 1..).unwrap_or_default(), &mut ip)?;
    Ok(ip)
}

/// Splits at colons outside of brackets.
fn split_fields(value: &str) -> Result<Vec<&str>, Problem> {
    let mut depth = 0i32;
    let mut wrong = false;
    let fields = value
        .split(|c| {
            depth += i32::from(c == '[') - i32::from(c == ']');
            wrong |= !(0..=1).contains(&depth);
            c == ':' && depth == 0
        })
        .collect();
    if wrong || depth != 0 { Err(Problem::UnbalancedBrackets) } else { Ok(fields) }
}

fn is_address(field: &str) -> bool {
    let address = field.split_once('/').map_or(field, |(address, _)| address);
    field.starts_with('[') || address.parse::<Ipv4Addr>().is_ok()
}

/// Returns whether the value begins with an IPv6 address without brackets.
fn is_bare_ipv6(value: &str) -> bool {
    let fields: Vec<&str> = value.split('/').next().unwrap_or_default().split(':').collect();
    (3..=fields.len()).any(|n| fields[..n].join(":").parse::<Ipv6Addr>().is_ok())
}

fn parse_method(field: &str) -> Result<Method, Problem> {
    match field {
        "link-local" => Ok(Method::LinkLocal),
        "link6" => Ok(Method::LinkLocal6),
        "dhcp" | "dhcp4" | "single-dhcp" => Ok(Method::Dhcp),
        "on" | "any" => Ok(Method::DhcpAndSlaac),
        "auto6" | "dhcp6" | "either6" => Ok(Method::Slaac),
        "none" | "off" | "static" => Ok(Method::Off),
        _ => Err(Problem::UnknownMethod(field.to_owned())),
    }
}

/// Parses an interface name (at most 15 bytes), or a MAC address with hyphens.
pub(super) fn parse_interface(field: &str) -> Result<String, Problem> {
    let fits = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | '[' | ']');
    let name = (1..=15).contains(&field.len()) && field.chars().all(fits);
    if (name && field != "." && field != "..") || Mac::parse(field).is_some() {
        Ok(field.to_owned())
    } else {
        Err(Problem::InvalidInterface(field.to_owned()))
    }
}

fn parse_fixed<'a>(
    client: &str,
    field: impl Fn(usize) -> Option<&'a str>,
) -> Result<Fixed, Problem> {
    let (address, prefix) = match client.rsplit_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (client, None),
    };
    let address = parse_address(address)?;
    if let Some(prefix) = field(PEER).filter(|field| field.starts_with('/')) {
        return Err(Problem::MisplacedPrefix(prefix.to_owned()));
    }
    let same_family = |field: &str| match parse_address(field)? {
        other if other.is_ipv4() == address.is_ipv4() => Ok(other),
        other => Err(Problem::FamilyMismatch(other)),
    };
    let netmask = prefix.or_else(|| field(NETMASK)).ok_or(Problem::MissingNetmask)?;
    Ok(Fixed {
        address,
        prefix: parse_netmask(netmask, address)?,
        peer: field(PEER).map(same_family).transpose()?,
        gateway: field(GATEWAY).map(same_family).transpose()?,
    })
}

fn parse_address(field: &str) -> Result<IpAddr, Problem> {
    let inner = field.strip_prefix('[').and_then(|field| field.strip_suffix(']'));
    let address: IpAddr =
        inner.unwrap_or(field).parse().map_err(|_| Problem::InvalidAddress(field.to_owned()))?;
    let broadcast = address == IpAddr::V4(Ipv4Addr::BROADCAST);
    if address.is_unspecified() || address.is_multicast() || address.is_loopback() || broadcast {
        return Err(Problem::NotAssignable(address));
    }
    Ok(address)
}

fn parse_netmask(field: &str, address: IpAddr) -> Result<u8, Problem> {
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let from_mask = || address.is_ipv4().then(|| prefix_len(field.parse().ok()?)).flatten();
    let prefix = field.parse().ok().or_else(from_mask);
    let prefix = prefix.filter(|prefix| (1..=longest).contains(prefix));
    prefix.ok_or_else(|| Problem::InvalidNetmask(field.to_owned()))
}

/// Returns the prefix length of a netmask; `None` if its ones are not contiguous.
pub(super) fn prefix_len(mask: Ipv4Addr) -> Option<u8> {
    let bits = mask.to_bits();
    let ones = bits.leading_ones();
    (bits.count_ones() == ones).then(|| u8::try_from(ones).ok()).flatten()
}

/// Parses `MTU:MAC`; ignores addresses of name servers and time servers.
fn parse_mtu_and_mac(fields: &[&str], ip: &mut IpParameter) -> Result<(), Problem> {
    let Some((first, rest)) = fields.split_first() else { return Ok(()) };
    if is_address(first) {
        return Ok(());
    }
    ip.mtu = Some(*first).filter(|field| !field.is_empty()).map(parse_mtu).transpose()?;
    let address = rest.join(":");
    // Without an MTU, name servers may follow an empty field: `::DNS1:DNS2`.
    let has_mac =
        !address.trim_matches(':').is_empty() && !rest.iter().any(|field| is_address(field));
    ip.mac = has_mac.then(|| parse_mac(&address)).transpose()?;
    Ok(())
}

pub(super) fn parse_mtu(field: &str) -> Result<u32, Problem> {
    let mtu = field.parse().ok().filter(|mtu| (68..=65535).contains(mtu));
    mtu.ok_or_else(|| Problem::InvalidMtu(field.to_owned()))
}

fn parse_mac(field: &str) -> Result<Mac, Problem> {
    let mac = Mac::parse(field).filter(|mac| mac.is_unicast());
    mac.ok_or_else(|| Problem::InvalidMac(field.to_owned()))
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LinkLocal => "link-local",
            Self::LinkLocal6 => "link6",
            Self::Dhcp => "dhcp",
            Self::DhcpAndSlaac => "any",
            Self::Slaac => "auto6",
            Self::Off => "off",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: &str) -> IpParameter {
        IpParameter::parse(value).unwrap()
    }

    fn problem(value: &str) -> Problem {
        IpParameter::parse(value).unwrap_err().problem
    }

    #[test]
    fn method_alone_applies_to_every_interface() {
        for (value, method) in [
            ("link-local", Method::LinkLocal),
            ("link6", Method::LinkLocal6),
            ("dhcp", Method::Dhcp),
            ("on", Method::DhcpAndSlaac),
            ("any", Method::DhcpAndSlaac),
            ("auto6", Method::Slaac),
            ("dhcp6", Method::Slaac),
            ("none", Method::Off),
            ("off", Method::Off),
        ] {
            assert_eq!(parse(value), IpParameter::by(method), "{value}");
            assert_eq!(parse(&method.to_string()).method, method);
        }
    }

    #[test]
    fn interface_may_have_an_mtu_and_a_mac_address() {
        let eth0 = IpParameter { interface: Some("eth0".into()), ..IpParameter::by(Method::Dhcp) };
        assert_eq!(parse("eth0:dhcp"), eth0);
        assert_eq!(parse("eth0:dhcp:9000"), IpParameter { mtu: Some(9000), ..eth0.clone() });
        let mac = Mac::parse("52:54:00:12:34:56");
        assert_eq!(
            parse("eth0:dhcp:9000:52:54:00:12:34:56"),
            IpParameter { mtu: Some(9000), mac, ..eth0.clone() }
        );
        assert_eq!(parse("eth0:dhcp::52:54:00:12:34:56"), IpParameter { mac, ..eth0 });
        assert_eq!(parse("52-54-00-12-34-56:any").interface.as_deref(), Some("52-54-00-12-34-56"));
    }

    #[test]
    fn fixed_address_has_a_mask_or_a_prefix() {
        let fixed = Fixed {
            address: [192, 168, 7, 2].into(),
            prefix: 24,
            peer: None,
            gateway: Some([192, 168, 7, 1].into()),
        };
        for value in [
            "192.168.7.2::192.168.7.1:255.255.255.0:box:eth0:none",
            "192.168.7.2::192.168.7.1:24:box:eth0:off",
            "192.168.7.2/24::192.168.7.1::box:eth0",
            "192.168.7.2::192.168.7.1:24:box:eth0:none:192.168.7.1:8.8.8.8",
            "192.168.7.2::192.168.7.1:24:box:eth0:none::192.168.7.1",
        ] {
            let ip = parse(value);
            assert_eq!(ip.fixed, Some(fixed), "{value}");
            assert_eq!(ip.hostname.as_deref(), Some("box"));
            assert_eq!((ip.interface.as_deref(), ip.method), (Some("eth0"), Method::Off));
            assert_eq!((ip.mtu, ip.mac), (None, None));
        }
        let wide = parse("192.168.7.2::192.168.7.1:24:box:eth0:none:1400:52:54:00:12:34:56");
        assert_eq!((wide.mtu, wide.mac), (Some(1400), Mac::parse("52:54:00:12:34:56")));
    }

    #[test]
    fn ipv6_addresses_are_in_brackets() {
        let ip = parse("[2001:db8::2]::[fe80::1]:64::thunderbolt0:none");
        let fixed = ip.fixed.unwrap();
        assert_eq!((fixed.address.to_string().as_str(), fixed.prefix), ("2001:db8::2", 64));
        assert_eq!(fixed.gateway, Some("fe80::1".parse().unwrap()));
        assert_eq!(parse("[2001:db8::2]/64").fixed.unwrap().prefix, 64);
    }

    #[test]
    fn dhcp_can_have_a_host_name() {
        let ip = parse("::::box:eth0:dhcp");
        assert_eq!((ip.method, ip.hostname.as_deref()), (Method::Dhcp, Some("box")));
        assert_eq!(ip.fixed, None);
    }

    #[test]
    fn errors_name_the_wrong_part() {
        assert_eq!(problem(""), Problem::Empty);
        assert_eq!(problem("dhpc"), Problem::UnknownMethod("dhpc".into()));
        assert_eq!(problem("eth0:ibft"), Problem::UnknownMethod("ibft".into()));
        assert_eq!(problem("[fe80::1:64"), Problem::UnbalancedBrackets);
        assert_eq!(problem("1.2.3.4]::x"), Problem::UnbalancedBrackets);
        assert_eq!(problem("1.2.3.4"), Problem::MissingNetmask);
        assert_eq!(problem("1.2.3.4:::255.0.255.0"), Problem::InvalidNetmask("255.0.255.0".into()));
        assert_eq!(problem("1.2.3.4/33"), Problem::InvalidNetmask("33".into()));
        assert_eq!(problem("1.2.3.4/0"), Problem::InvalidNetmask("0".into()));
        assert_eq!(
            problem("1.2.3.4::[fe80::1]:24"),
            Problem::FamilyMismatch("fe80::1".parse().unwrap())
        );
        assert_eq!(problem("1.2.3.4::nine:24"), Problem::InvalidAddress("nine".into()));
        assert_eq!(problem("224.0.0.1/24"), Problem::NotAssignable([224, 0, 0, 1].into()));
        assert_eq!(
            problem("a-name-that-is-too-long:dhcp"),
            Problem::InvalidInterface("a-name-that-is-too-long".into())
        );
        assert_eq!(problem("eth/0:dhcp"), Problem::InvalidInterface("eth/0".into()));
        assert_eq!(problem("eth0:dhcp:12"), Problem::InvalidMtu("12".into()));
        assert_eq!(
            problem("eth0:dhcp::52:54:00:12:34"),
            Problem::InvalidMac("52:54:00:12:34".into())
        );
        assert_eq!(
            problem("eth0:dhcp::01:00:00:00:00:00"),
            Problem::InvalidMac("01:00:00:00:00:00".into())
        );
        let sentence = IpParameter::parse("dhpc").unwrap_err().to_string();
        assert!(sentence.starts_with(
            "ip=dhpc on the kernel command line is ignored: \"dhpc\" is not a method"
        ));
    }

    #[test]
    fn interface_without_method_or_address_gets_dhcp() {
        let eth0 = IpParameter { interface: Some("eth0".into()), ..IpParameter::by(Method::Dhcp) };
        assert_eq!(parse(":::::eth0"), eth0);
        assert_eq!(parse(":::::eth0:"), eth0);
        assert_eq!(parse("eth0:"), eth0);
        assert_eq!(parse(":::::eth0:none").method, Method::Off);
        assert_eq!(parse("192.0.2.5/24:::::eth0").method, Method::Off);
    }

    #[test]
    fn ipv6_address_without_brackets_gets_the_hint() {
        for value in ["2001:db8::2", "2001:db8::2/64", "fe80::2::fe80::1:64::eth0:none"] {
            assert_eq!(problem(value), Problem::MissingBrackets, "{value}");
        }
        assert_eq!(problem("[2001:db8::2]:/64:"), Problem::MisplacedPrefix("/64".into()));
    }

    proptest::proptest! {
        #[test]
        fn any_value_parses_without_panic(value in "[a-z0-9:./\\[\\]-]{0,60}") {
            let _ = IpParameter::parse(&value);
        }
    }
}
