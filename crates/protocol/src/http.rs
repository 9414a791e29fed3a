//! HTTP: its row, and the addresses for browsers and other clients.

use std::net::IpAddr;

use ::web::PORT;

use crate::commands::{Command, Effect, ExportNames, Instructions, file_name, quoted};
use crate::endpoint::{Endpoint, NetAddr, percent_encoded};
use crate::{Port, Protocol, Role, Row};

/// The port of URIs without one (RFC 9110 §4.2.1).
const URI_PORT: u16 = 80;

/// The row of HTTP. It has no credentials, so it is served only where no key is required. It is not
/// announced: `_http._tcp` stands for web pages of all kinds, and a browser cannot choose among them.
pub(crate) const ROW: Row = Row {
    protocol: Protocol::Http,
    option: "http",
    name: "http",
    label: "HTTP",
    ports: &[Port { number: PORT, role: Role::Disks }],
    schemes: &[],
    discovery: false,
    service_type: None,
    txt: &[],
    unix: false,
    optional: true,
    on_request: true,
    pairing: false,
    reading_code: false,
    key_export: "",
    member: "http",
    instructions,
};

/// Returns the instructions for an endpoint and a disk.
fn instructions(endpoint: &Endpoint, export: Option<ExportNames<'_>>, _: bool) -> Instructions {
    let Some((at, names)) = endpoint.net().zip(export) else { return Instructions::default() };
    let base = format!("http://{}/", at.authority(URI_PORT));
    let uri = disk_uri(&base, names);
    let listed = vec![uri.clone()];
    if endpoint.keyed {
        return Instructions { listed, ..Instructions::default() };
    }
    let download = format!("curl -o {} {}", file_name(names.short, "raw"), quoted(&uri));
    let mut commands = vec![Command::new(Effect::CopyByClient, "HTTP: copy the disk", download)];
    if is_browsable(at) {
        commands.push(Command::new(Effect::Other, "HTTP: address for a browser", base));
    }
    Instructions { commands, listed, ..Instructions::default() }
}

/// Returns the address of a disk.
pub(crate) fn disk_uri(base: &str, names: ExportNames<'_>) -> String {
    format!("{base}{}.raw", percent_encoded(names.short, ""))
}

/// Returns whether a browser takes the address: not one with an interface.
pub(crate) fn is_browsable(at: &NetAddr) -> bool {
    !matches!(at.ip, IpAddr::V6(_) if at.interface.is_some())
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::endpoint::EndpointAddr;

    fn of(ip: &str, interface: Option<&str>, port: u16, short: &str) -> Instructions {
        let interface = interface.map(str::to_owned);
        let addr = EndpointAddr::Net(NetAddr { ip: ip.parse().unwrap(), interface, port });
        let endpoint = Endpoint { protocol: Protocol::Http, addr, keyed: false, pin: None };
        endpoint.instructions(Some(ExportNames { id: &"nqn.x".into(), short }), false)
    }

    #[test]
    fn disk_is_downloaded_by_curl_or_a_browser() {
        let lines = |instructions: Instructions| {
            instructions.commands.into_iter().map(|it| it.text).collect::<Vec<_>>()
        };
        let near = of("10.0.0.1", None, 8080, "sda");
        assert_eq!(near.listed, ["http://10.0.0.1:8080/sda.raw"]);
        let curl = "curl -o sda-copy.raw http://10.0.0.1:8080/sda.raw";
        assert_eq!(lines(near), [curl, "http://10.0.0.1:8080/"]);
        let link = of("fe80::1", Some("eth0"), 80, "a b");
        assert_eq!(lines(link), ["curl -o 'a b-copy.raw' 'http://[fe80::1%25eth0]/a%20b.raw'"]);
    }
}
