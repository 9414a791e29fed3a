//! HTTPS: its row, and the addresses for browsers and other clients.

use ::web::TLS_PORT;

use crate::commands::{Command, Effect, ExportNames, Instructions, file_name, quoted};
use crate::endpoint::{Endpoint, NetAddr};
use crate::http::{disk_uri, is_browsable};
use crate::{Port, Protocol, Role, Row};

/// The port of URIs without one (RFC 9110 §4.2.2).
const URI_PORT: u16 = 443;

/// The row of HTTPS. Its clients have no keys: where one is required, the code for reading admits them.
pub(crate) const ROW: Row = Row {
    protocol: Protocol::Https,
    option: "https",
    name: "https",
    label: "HTTPS",
    ports: &[Port { number: TLS_PORT, role: Role::Disks }],
    reading_code: true,
    member: "https",
    instructions,
    ..crate::http::ROW
};

/// Returns the instructions for an endpoint and a disk. curl does not verify the signature of
/// the certificate, which is that of this machine, but compares its public key; it asks for the code.
fn instructions(endpoint: &Endpoint, export: Option<ExportNames<'_>>, _: bool) -> Instructions {
    let Some((at, names)) = endpoint.net().zip(export) else { return Instructions::default() };
    let base = base(at);
    let uri = disk_uri(&base, names);
    let mut listed = vec![uri.clone()];
    let mut commands = Vec::new();
    if let Some(pin) = &endpoint.pin {
        let user = if endpoint.keyed { " -u disk" } else { "" };
        let (file, uri) = (file_name(names.short, "raw"), quoted(&uri));
        let download = format!("curl -k --pinnedpubkey sha256//{pin}{user} -o {file} {uri}");
        listed.push(download.clone());
        commands.push(Command::new(Effect::CopyByClient, "HTTPS: copy the disk", download));
    }
    if is_browsable(at) {
        commands.push(Command::new(Effect::Other, "HTTPS: address for a browser", base));
    }
    Instructions { commands, listed, ..Instructions::default() }
}

fn base(at: &NetAddr) -> String {
    format!("https://{}/", at.authority(URI_PORT))
}

/// Returns the address of the page with the disks, if a browser takes it.
pub fn page(endpoint: &Endpoint) -> Option<String> {
    let is_https = endpoint.protocol == Protocol::Https;
    endpoint.net().filter(|at| is_https && is_browsable(at)).map(base)
}

/// Returns the address that begins a session with the code, for a camera.
pub fn link(page: &str, code: &str) -> String {
    format!("{page}?code={code}")
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::endpoint::EndpointAddr;

    fn at(ip: &str, interface: Option<&str>, keyed: bool) -> Endpoint {
        let interface = interface.map(str::to_owned);
        let addr = EndpointAddr::Net(NetAddr { ip: ip.parse().unwrap(), interface, port: 8443 });
        Endpoint { protocol: Protocol::Https, addr, keyed, pin: Some("a+/b=".into()) }
    }

    #[test]
    fn curl_compares_the_public_key_and_asks_for_the_code() {
        let lines = |endpoint: &Endpoint| {
            let names = ExportNames { id: &"nqn.x".into(), short: "sda" };
            let commands = endpoint.instructions(Some(names), false).commands;
            commands.into_iter().map(|it| it.text).collect::<Vec<_>>()
        };
        let keyed = lines(&at("10.0.0.1", None, true));
        let curl = "curl -k --pinnedpubkey sha256//a+/b= -u disk -o sda-copy.raw https://10.0.0.1:8443/sda.raw";
        assert_eq!(keyed, [curl, "https://10.0.0.1:8443/"]);
        assert_eq!(lines(&at("10.0.0.1", None, false))[0], curl.replace(" -u disk", ""));
        assert_eq!(lines(&at("fe80::1", Some("eth0"), true)).len(), 1);
        assert_eq!(lines(&Endpoint { pin: None, ..at("10.0.0.1", None, true) }).len(), 1);
    }

    #[test]
    fn link_for_a_camera_has_the_code() {
        let page = page(&at("10.0.0.1", None, true)).unwrap();
        assert_eq!(link(&page, "0123"), "https://10.0.0.1:8443/?code=0123");
        assert_eq!(super::page(&at("fe80::1", Some("eth0"), true)), None);
    }
}
