//! NVMe/TCP: its row, and the commands of storagetm and nvme-cli.

use std::net::IpAddr;

use ::nvme::{DISCOVERY_PORT, PORT, nqn};

use crate::commands::{Command, Effect, ExportNames, Instructions, file_name, quoted};
use crate::endpoint::{Endpoint, NetAddr, percent_encoded};
use crate::{Port, Protocol, Role, Row};

/// The row of NVMe/TCP.
pub(crate) const ROW: Row = Row {
    protocol: Protocol::Nvme,
    option: "nvme",
    name: "nvme-tcp",
    label: "NVMe/TCP",
    ports: &[
        Port { number: PORT, role: Role::Disks },
        Port { number: DISCOVERY_PORT, role: Role::Discovery },
    ],
    schemes: ::nvme::auth::credential::SCHEMES,
    discovery: true,
    // NVMe TP 8009.
    service_type: Some("_nvme-disc._tcp.local."),
    txt: &[("p", "tcp"), ("nqn", ::nvme::wire::fabrics::DISCOVERY_NQN)],
    unix: false,
    optional: false,
    on_request: false,
    pairing: true,
    reading_code: false,
    key_export: "storagetm key export NAME --for-host HOST",
    member: "attach",
    instructions,
};

/// Returns the instructions for an endpoint.
fn instructions(
    endpoint: &Endpoint,
    export: Option<ExportNames<'_>>,
    digests: bool,
) -> Instructions {
    let Some(at) = endpoint.net() else { return Instructions::default() };
    let keyed = endpoint.keyed;
    let all = attach_all(at, keyed, digests);
    let mut commands =
        vec![Command::new(Effect::AttachAll, "nvme-cli: attach all disks", all.clone())];
    let mut listed = Vec::new();
    let boot = kernel_arguments(at).filter(|_| !keyed);
    if let Some(ExportNames { id, short }) = export {
        let one = attach(at, keyed, &nqn::of(id), digests);
        listed.push(one.clone());
        commands.extend([
            Command::new(Effect::Attach, "storagetm: attach the disk", attach_disk(at, short)),
            Command::new(Effect::Copy, "storagetm: copy the disk", copy(at, short)),
            Command::new(Effect::Other, "nvme-cli: attach the disk alone", one),
        ]);
    }
    if export.is_some() {
        let purpose = "Linux with dracut (module nvmf): kernel arguments to boot from the disk";
        commands.extend(boot.map(|line| Command::new(Effect::Boot, purpose, line)));
    }
    listed.push(all);
    let key_help = "To attach with a key, the other machine needs Linux 6.7 or newer with TLS; \
                    nvme-cli, if that is used, 2.9 or newer, and tlshd (package ktls-utils). storagetm \
                    copy needs none of them.";
    Instructions {
        pair: keyed.then(|| pair(at)),
        commands,
        key_help: keyed.then_some((key_help, None)),
        listed,
    }
}

/// Returns the nvme-cli command that attaches all disks.
pub fn attach_all(at: &NetAddr, keyed: bool, digests: bool) -> String {
    line("connect-all", at, keyed, None, digests)
}

/// Returns the nvme-cli command that attaches the disk with that NQN.
pub fn attach(at: &NetAddr, keyed: bool, nqn: &str, digests: bool) -> String {
    line("connect", at, keyed, Some(nqn), digests)
}

/// Returns the command that pairs the other machine by the code.
pub fn pair(at: &NetAddr) -> String {
    format!("storagetm pair {}", quoted(&machine(at)))
}

/// Returns the storagetm command that attaches the disk.
fn attach_disk(at: &NetAddr, name: &str) -> String {
    format!("storagetm attach {}", quoted(&format!("{}/{name}", machine(at))))
}

/// Returns the storagetm command that copies the disk to a file.
pub fn copy(at: &NetAddr, name: &str) -> String {
    let uri = format!("nvme://{}/{}", at.authority(PORT), percent_encoded(name, ""));
    format!("storagetm copy {} {}", quoted(&uri), file_name(name, "img"))
}

/// Returns the address as accepted by storagetm.
pub fn machine(at: &NetAddr) -> String {
    match (at.ip, at.port) {
        (_, PORT) => at.host(),
        (IpAddr::V4(_), port) => format!("{}:{port}", at.host()),
        (IpAddr::V6(_), port) => format!("[{}]:{port}", at.host()),
    }
}

/// Returns what is added to the kernel arguments of a system (`root=...`) so that an initrd of dracut with
/// its module nvmf attaches all disks; `None` for an address of one interface, which cannot be named there.
/// The module knows no keys.
fn kernel_arguments(at: &NetAddr) -> Option<String> {
    let is_near = at.interface.is_some() || at.ip.is_loopback();
    let configure = match at.ip {
        IpAddr::V4(ip) if ip.is_link_local() => "link-local",
        IpAddr::V4(_) => "dhcp",
        IpAddr::V6(_) => "auto6",
    };
    let line = format!("ip={configure} rd.neednet=1 rd.nvmf.discover=tcp,{},,{}", at.ip, at.port);
    (!is_near).then_some(line)
}

/// The interface is passed as an option: a discovery log page entry has no room for the zone of
/// a link-local address, and `connect-all` uses the addresses from the entries.
fn line(verb: &str, at: &NetAddr, keyed: bool, nqn: Option<&str>, digests: bool) -> String {
    let host = quoted(&at.ip.to_string());
    let interface = at.interface.as_deref().map(quoted);
    let interface = interface.map(|name| format!(" --host-iface {name}")).unwrap_or_default();
    let nqn = nqn.map(|nqn| format!(" -n {}", quoted(nqn))).unwrap_or_default();
    let digests = if digests { " --hdr-digest --data-digest" } else { "" };
    let tls = if keyed { " --tls" } else { "" };
    format!("nvme {verb} -t tcp -a {host} -s {}{nqn}{interface}{digests}{tls}", at.port)
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::endpoint::EndpointAddr;

    fn at(ip: &str, interface: Option<&str>) -> NetAddr {
        NetAddr { ip: ip.parse().unwrap(), interface: interface.map(str::to_owned), port: 4420 }
    }

    #[test]
    fn keyed_endpoint_uses_tls_and_has_a_pair_command() {
        let here = at("fe80::1", Some("eth0"));
        assert_eq!(
            attach_all(&here, true, false),
            "nvme connect-all -t tcp -a fe80::1 -s 4420 --host-iface eth0 --tls"
        );
        assert_eq!(pair(&here), "storagetm pair fe80::1%eth0");
        assert_eq!(pair(&NetAddr { port: 1, ..here }), "storagetm pair '[fe80::1%eth0]:1'");
        let there = NetAddr { port: 1, ..at("10.0.0.1", None) };
        assert_eq!(pair(&there), "storagetm pair 10.0.0.1:1");
    }

    #[test]
    fn nvme_cli_commands() {
        let here = at("192.168.1.5", None);
        assert_eq!(
            attach_all(&here, false, false),
            "nvme connect-all -t tcp -a 192.168.1.5 -s 4420"
        );
        assert_eq!(
            attach(&here, false, "nqn.2014-08.org.nvmexpress:uuid:1", true),
            "nvme connect -t tcp -a 192.168.1.5 -s 4420 -n nqn.2014-08.org.nvmexpress:uuid:1 \
             --hdr-digest --data-digest"
        );
    }

    #[test]
    fn boot_line_is_shown_where_dracut_can_use_it() {
        let lines = |ip, interface, keyed| {
            let addr = EndpointAddr::Net(at(ip, interface));
            let endpoint = Endpoint { protocol: Protocol::Nvme, addr, keyed, pin: None };
            let id = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-8000-8000-000000000000".into();
            let names = ExportNames { id: &id, short: "sda" };
            let commands = endpoint.instructions(Some(names), false).commands;
            let texts = commands.into_iter().map(|command| command.text);
            texts.filter(|text| text.contains("rd.nvmf")).collect::<Vec<_>>()
        };
        let line = "ip=dhcp rd.neednet=1 rd.nvmf.discover=tcp,192.168.1.5,,4420";
        assert_eq!(lines("192.168.1.5", None, false), [line]);
        let line = "ip=auto6 rd.neednet=1 rd.nvmf.discover=tcp,2001:db8::5,,4420";
        assert_eq!(lines("2001:db8::5", None, false), [line]);
        assert!(lines("169.254.7.9", None, false)[0].starts_with("ip=link-local "));
        for (ip, interface, keyed) in [
            ("192.168.1.5", None, true),
            ("fe80::1", Some("eth0"), false),
            ("127.0.0.1", None, false),
        ] {
            assert!(lines(ip, interface, keyed).is_empty(), "{ip} {keyed}");
        }
    }

    #[test]
    fn link_local_address_has_its_zone() {
        let here = at("fe80::1", Some("eth0"));
        assert_eq!(
            attach_all(&here, false, false),
            "nvme connect-all -t tcp -a fe80::1 -s 4420 --host-iface eth0"
        );
        assert_eq!(here.to_string(), "[fe80::1%eth0]:4420");
    }

    /// The common options of nvme-cli 2.3, 2.13 and 3; `--tls` exists since 2.9.
    #[test]
    fn nvme_commands_use_options_of_all_versions_only() {
        let here = at("fe80::1", Some("eth0"));
        let known =
            ["-t", "-a", "-s", "-n", "--host-iface", "--hdr-digest", "--data-digest", "--tls"];
        for line in [attach_all(&here, true, true), attach(&here, true, "nqn.x", true)] {
            let mut options = line.split(' ').filter(|word| word.starts_with('-'));
            assert!(options.all(|option| known.contains(&option)), "{line}");
        }
    }
}
