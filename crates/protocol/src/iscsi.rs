//! iSCSI: its row, and the commands of Windows, Linux and iPXE.

use std::net::IpAddr;

use ::iscsi::iqn;
use ::iscsi::wire::PORT;

use crate::commands::{Command, Effect, ExportNames, Instructions, quoted};
use crate::endpoint::{Endpoint, NetAddr};
use crate::{Port, Protocol, Role, Row};

/// The row of iSCSI.
pub(crate) const ROW: Row = Row {
    protocol: Protocol::Iscsi,
    option: "iscsi",
    name: "iscsi",
    label: "iSCSI",
    ports: &[Port { number: PORT, role: Role::Disks }],
    schemes: ::iscsi::credential::SCHEMES,
    discovery: true,
    service_type: Some("_iscsi._tcp.local."),
    txt: &[],
    unix: false,
    optional: true,
    on_request: false,
    pairing: false,
    reading_code: false,
    key_export: "storagetm key export NAME",
    member: "iscsi",
    instructions,
};

/// Returns the instructions for an endpoint and a disk.
fn instructions(endpoint: &Endpoint, export: Option<ExportNames<'_>>, _: bool) -> Instructions {
    let Some((at, names)) = endpoint.net().zip(export) else { return Instructions::default() };
    let name = iqn::of(names.id);
    let listed = vec![uri(at, &name)];
    if endpoint.keyed {
        let key_help = "iSCSI needs a CHAP SECRET for the initiator name (INITIATOR) of the other machine, made here by \
                        storagetm host add INITIATOR; on Windows, in PowerShell:";
        let key_help = Some((key_help, Some(windows(at, &name, CHAP))));
        return Instructions { key_help, listed, ..Instructions::default() };
    }
    let other = |purpose, text| Command::new(Effect::Other, purpose, text);
    let mut commands = vec![
        other("Windows, PowerShell: attach the disk", windows(at, &name, "")),
        other("Linux, open-iscsi: attach the disk", login(at, &name)),
    ];
    let boot = |line| Command::new(Effect::Boot, "iPXE: boot from the disk", line);
    commands.extend(ipxe(at, &name).map(boot));
    Instructions { commands, listed, ..Instructions::default() }
}

/// Returns the URI of a disk, as libiscsi and qemu take it: `iscsi://192.168.1.5/IQN/0`.
fn uri(at: &NetAddr, iqn: &str) -> String {
    format!("iscsi://{}/{iqn}/0", at.authority(PORT))
}

/// Options of both PowerShell commands for CHAP.
const CHAP: &str = " -AuthenticationType ONEWAYCHAP -ChapUsername INITIATOR -ChapSecret SECRET";

/// Returns the PowerShell commands that attach a disk, with options for the authentication.
fn windows(at: &NetAddr, iqn: &str, chap: &str) -> String {
    let port = if at.port == PORT {
        String::new()
    } else {
        format!(" -TargetPortalPortNumber {}", at.port)
    };
    let portal = format!("New-IscsiTargetPortal -TargetPortalAddress {}{port}{chap}", at.host());
    format!("Start-Service MSiSCSI; {portal}; Connect-IscsiTarget -NodeAddress {iqn}{chap}")
}

/// Returns the commands of open-iscsi that log in to one target.
fn login(at: &NetAddr, iqn: &str) -> String {
    let portal = portal(at);
    format!(
        "iscsiadm -m discovery -t sendtargets -p {portal} && iscsiadm -m node -T {iqn} -p {portal} -l"
    )
}

fn portal(at: &NetAddr) -> String {
    let host = match at.ip {
        IpAddr::V4(_) => at.host(),
        IpAddr::V6(_) => format!("[{}]", at.host()),
    };
    quoted(&if at.port == PORT { host } else { format!("{host}:{}", at.port) })
}

/// Returns the command of iPXE that boots from the disk; `None` for a link-local IPv6 address, whose
/// interface cannot be named in it.
fn ipxe(at: &NetAddr, iqn: &str) -> Option<String> {
    let host = match at.ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) if at.interface.is_none() => format!("[{ip}]"),
        IpAddr::V6(_) => return None,
    };
    let port = if at.port == PORT { String::new() } else { at.port.to_string() };
    Some(format!("sanboot iscsi:{host}::{port}:0:{iqn}"))
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::endpoint::EndpointAddr;

    fn at(ip: &str, interface: Option<&str>, port: u16, keyed: bool) -> Endpoint {
        let interface = interface.map(str::to_owned);
        let addr = EndpointAddr::Net(NetAddr { ip: ip.parse().unwrap(), interface, port });
        Endpoint { protocol: Protocol::Iscsi, addr, keyed, pin: None }
    }

    fn of(endpoint: &Endpoint) -> Instructions {
        let id = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-8000-8000-000000000000".into();
        endpoint.instructions(Some(ExportNames { id: &id, short: "sda" }), false)
    }

    fn iqn() -> String {
        iqn::of(&"nqn.2014-08.org.nvmexpress:uuid:00000000-0000-8000-8000-000000000000".into())
    }

    #[test]
    fn lines_for_windows_linux_and_ipxe_are_complete() {
        let iqn = iqn();
        let lines: Vec<String> =
            of(&at("10.0.0.1", None, 3260, false)).commands.into_iter().map(|it| it.text).collect();
        assert_eq!(
            lines,
            [
                format!(
                    "Start-Service MSiSCSI; New-IscsiTargetPortal -TargetPortalAddress 10.0.0.1; Connect-IscsiTarget -NodeAddress {iqn}"
                ),
                format!(
                    "iscsiadm -m discovery -t sendtargets -p 10.0.0.1 && iscsiadm -m node -T {iqn} -p 10.0.0.1 -l"
                ),
                format!("sanboot iscsi:10.0.0.1:::0:{iqn}"),
            ]
        );
        let near = of(&at("fe80::1", Some("eth0"), 77, false));
        assert_eq!(near.listed, [format!("iscsi://[fe80::1%25eth0]:77/{iqn}/0")]);
        let lines: Vec<&str> = near.commands.iter().map(|it| it.text.as_str()).collect();
        assert!(
            lines[0].contains("-TargetPortalAddress fe80::1%eth0 -TargetPortalPortNumber 77;"),
            "{lines:?}"
        );
        assert!(lines[1].contains(" -p '[fe80::1%eth0]:77' "), "{lines:?}");
        assert_eq!(lines.len(), 2);
        let port = of(&at("2001:db8::1", None, 77, false)).commands.pop().unwrap().text;
        assert_eq!(port, format!("sanboot iscsi:[2001:db8::1]::77:0:{iqn}"));
    }

    #[test]
    fn keyed_endpoint_says_how_a_secret_is_made() {
        let keyed = of(&at("10.0.0.1", None, 3260, true));
        assert_eq!(keyed.commands, []);
        let (help, line) = keyed.key_help.unwrap();
        assert!(help.contains("storagetm host add INITIATOR"));
        assert_eq!(line.unwrap().matches("-ChapUsername INITIATOR -ChapSecret SECRET").count(), 2);
    }
}
