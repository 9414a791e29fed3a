//! All network parameters of a kernel command line.

use super::ether::Mac;
use super::ip_parameter::{IgnoredParameter, IpParameter, Problem};
use super::upper::{Upper, UpperKind};
use crate::boot::{Parameter, parse_command_line};

/// The network that a kernel command line requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkParameters {
    /// The addresses; without one, link-local addresses on every wired interface.
    pub ip: Vec<IpParameter>,
    /// Interfaces that are made of others.
    pub uppers: Vec<Upper>,
}

impl NetworkParameters {
    /// Parses `ip=`, `vlan=` and `bond=`, and `ifname=` and `BOOTIF=`, which name interfaces. Returns
    /// the valid and the ignored parameters; an invalid one does not affect the others.
    pub fn parse(command_line: &str) -> (Self, Vec<IgnoredParameter>) {
        let (mut good, mut bad) = (Self::default(), Vec::new());
        let parameters = parse_command_line(command_line);
        let names = Names::from_parameters(&parameters);
        for parameter in &parameters {
            let value = parameter.value.as_deref().unwrap_or_default();
            if let Err(problem) = good.add(&parameter.name, value, &names) {
                let parameter = format!("{}={value}", parameter.name);
                bad.push(IgnoredParameter { parameter, problem });
            }
        }
        (good, bad)
    }

    fn add(&mut self, name: &str, value: &str, names: &Names) -> Result<(), Problem> {
        let upper = match name {
            "ip" => {
                let mut ip = IpParameter::parse(value).map_err(|ignored| ignored.problem)?;
                ip.interface = ip.interface.map(|name| names.resolve(name)).transpose()?;
                self.ip.push(ip);
                return Ok(());
            }
            "vlan" => Upper::vlan(value)?,
            "bond" => Upper::bond(value)?,
            _ => {
                let kind = UNSUPPORTED.iter().find(|(unsupported, _)| *unsupported == name);
                return kind.map_or(Ok(()), |(_, kind)| Err(Problem::UnsupportedInterface(kind)));
            }
        };
        if self.uppers.iter().any(|other| other.name == upper.name) {
            return Err(Problem::DuplicateInterface);
        }
        self.uppers.push(names.resolve_all(upper)?);
        Ok(())
    }

    /// Returns whether an address may be assigned that is reachable beyond the link.
    pub fn may_be_routable(&self) -> bool {
        self.ip.iter().any(IpParameter::may_be_routable)
    }
}

/// Parameters that make interfaces of other kinds.
const UNSUPPORTED: [(&str, &str); 2] = [("team", "team"), ("bridge", "bridge")];

/// Interface names defined by other parameters: `ifname=NAME:MAC`, and `BOOTIF=01-MAC` for the one
/// that the firmware booted from (PXELINUX adds the hardware type 01 in front).
struct Names(Vec<(String, Mac)>);

impl Names {
    fn from_parameters(parameters: &[Parameter]) -> Self {
        let name = |parameter: &Parameter| {
            let value = parameter.value.as_deref()?;
            match parameter.name.as_str() {
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
        Self(parameters.iter().filter_map(name).collect())
    }

    /// Replaces an interface name of `ifname=` or `BOOTIF` by the MAC address.
    fn resolve(&self, interface: String) -> Result<String, Problem> {
        match self.0.iter().find(|(name, _)| *name == interface) {
            Some((_, mac)) => Ok(mac.to_string()),
            None if interface == BOOTIF => Err(Problem::MissingBootif),
            None => Ok(interface),
        }
    }

    fn resolve_all(&self, mut upper: Upper) -> Result<Upper, Problem> {
        let resolve = |name: &mut String| {
            *name = self.resolve(std::mem::take(name))?;
            Ok(())
        };
        match &mut upper.kind {
            UpperKind::Vlan { lower, .. } => resolve(lower)?,
            UpperKind::Bond { ports, primary, .. } => {
                ports.iter_mut().chain(primary).try_for_each(resolve)?;
            }
        }
        Ok(upper)
    }
}

const BOOTIF: &str = "BOOTIF";

#[cfg(test)]
mod tests {
    use super::super::ip_parameter::Method;
    use super::*;

    #[test]
    fn bad_parameter_does_not_affect_the_others() {
        let line = "quiet ip=dhpc ip=eth0:dhcp \"ip=link-local\" rd.ip=x ip=";
        let (good, bad) = NetworkParameters::parse(line);
        assert_eq!(good.ip.len(), 2);
        assert_eq!(
            bad.iter().map(|bad| bad.parameter.as_str()).collect::<Vec<_>>(),
            ["ip=dhpc", "ip="]
        );
    }

    #[test]
    fn bootif_and_ifname_resolve_to_mac_addresses() {
        for (bootif, mac) in [
            ("BOOTIF=01-52-54-00-12-34-56", "52:54:00:12:34:56"),
            ("BOOTIF=01-52-54-00-AB-CD-EF", "52:54:00:ab:cd:ef"),
            ("BOOTIF=52:54:00:12:34:56", "52:54:00:12:34:56"),
        ] {
            // As MAAS writes it.
            let (good, bad) =
                NetworkParameters::parse(&format!("{bootif} ip=::::maas-enlist:BOOTIF"));
            assert!(bad.is_empty(), "{bad:?}");
            let interface = good.ip[0].interface.as_deref().and_then(Mac::parse);
            assert_eq!((interface, good.ip[0].method), (Mac::parse(mac), Method::Dhcp), "{bootif}");
        }
        let (good, _) = NetworkParameters::parse("ip=lan:dhcp ifname=lan:52:54:00:12:34:56");
        assert_eq!(good.ip[0].interface.as_deref(), Some("52:54:00:12:34:56"));
        let (good, bad) = NetworkParameters::parse("ip=::::maas:BOOTIF");
        assert_eq!((good.ip.len(), bad[0].problem.clone()), (0, Problem::MissingBootif));
    }

    #[test]
    fn vlans_and_bonds_are_parsed_and_others_refused() {
        let line = "vlan=lan.5:lan ifname=lan:52:54:00:12:34:56 bond=bond0:eth0,lan:mode=802.3ad vlan=lan.5:eth1 \
                    team=t:eth0 bridge=b:eth0 bond=b:eth0:mode=x";
        let (good, bad) = NetworkParameters::parse(line);
        let lowers: Vec<String> =
            good.uppers.iter().map(|upper| upper.lowers().join(" ")).collect();
        assert_eq!(lowers, ["52:54:00:12:34:56", "eth0 52:54:00:12:34:56"]);
        let bad: Vec<String> = bad.iter().map(ToString::to_string).collect();
        assert!(bad[0].starts_with("vlan=lan.5:eth1 on the kernel command line"), "{bad:?}");
        assert!(bad[1].contains("team interfaces are not supported"), "{bad:?}");
        assert!(bad[2].contains("bridge") && bad[3].contains("mode=x"), "{bad:?}");
    }

    proptest::proptest! {
        #[test]
        fn any_line_parses_without_panic(
            line in "((vlan|bond|ip)=[a-z0-9:.,=\\[\\]-]{0,40} ){0,3}"
        ) {
            let _ = NetworkParameters::parse(&line);
        }
    }
}
