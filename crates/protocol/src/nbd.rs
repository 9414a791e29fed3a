//! NBD: its row, the commands of its clients, and its URIs.

use ::nbd::wire::PORT;

use crate::commands::{Command, Effect, ExportNames, Instructions, file_name, quoted};
use crate::endpoint::{Endpoint, EndpointAddr, percent_encoded};
use crate::{Port, Protocol, Role, Row};

/// The row of NBD.
pub(crate) const ROW: Row = Row {
    protocol: Protocol::Nbd,
    option: "nbd",
    name: "nbd",
    label: "NBD",
    ports: &[Port { number: PORT, role: Role::Disks }],
    schemes: ::nbd::credential::SCHEMES,
    discovery: false,
    service_type: Some("_nbd._tcp.local."),
    txt: &[],
    unix: true,
    optional: true,
    on_request: false,
    pairing: false,
    reading_code: false,
    key_export: "storagetm key export NAME --nbd",
    member: "nbd",
    instructions,
};

/// Returns the instructions for an endpoint. The commands work without a key only.
fn instructions(endpoint: &Endpoint, export: Option<ExportNames<'_>>, _: bool) -> Instructions {
    let Some(ExportNames { short: name, .. }) = export else { return Instructions::default() };
    let uri = uri(endpoint, name);
    if endpoint.keyed {
        let with_key = uri.replacen("://", "://HOST@", 1);
        let key_help = "NBD clients need the key of a HOST in a FILE (made here by storagetm key \
                        export KEY --nbd --to FILE), and its name in the address:";
        return Instructions {
            key_help: Some((key_help, Some(quoted(&format!("{with_key}?tls-psk-file=FILE"))))),
            listed: vec![uri],
            ..Instructions::default()
        };
    }
    let from = quoted(&uri);
    let copy = format!("nbdcopy {from} {}", file_name(name, "img"));
    let convert = format!("qemu-img convert -f raw -O qcow2 {from} {}", file_name(name, "qcow2"));
    let commands = vec![
        Command::new(Effect::CopyByClient, "NBD: copy the disk", copy),
        Command::new(Effect::Other, "NBD: convert the disk", convert),
    ];
    Instructions { commands, listed: vec![uri], ..Instructions::default() }
}

/// Returns the NBD URI of an export: `nbd://127.0.0.1/sda`.
fn uri(endpoint: &Endpoint, name: &str) -> String {
    let name = percent_encoded(name, "");
    match &endpoint.addr {
        EndpointAddr::Net(at) => {
            let scheme = if endpoint.keyed { "nbds" } else { "nbd" };
            format!("{scheme}://{}/{name}", at.authority(PORT))
        }
        EndpointAddr::Path(path) => {
            format!("nbd+unix:///{name}?socket={}", percent_encoded(path, "/"))
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::endpoint::NetAddr;

    fn at(ip: &str, interface: Option<&str>, port: u16, keyed: bool) -> Endpoint {
        let interface = interface.map(str::to_owned);
        let addr = EndpointAddr::Net(NetAddr { ip: ip.parse().unwrap(), interface, port });
        Endpoint { protocol: Protocol::Nbd, addr, keyed, pin: None }
    }

    fn of(endpoint: &Endpoint, short: &str) -> Instructions {
        endpoint.instructions(Some(ExportNames { id: &"nqn.x".into(), short }), false)
    }

    #[test]
    fn nbd_commands_need_no_key() {
        let lines = |name| {
            let commands = of(&at("10.0.0.1", None, 10809, false), name).commands;
            commands.into_iter().map(|command| command.text).collect::<Vec<_>>()
        };
        let copy = "nbdcopy nbd://10.0.0.1/sda sda-copy.img";
        let convert = "qemu-img convert -f raw -O qcow2 nbd://10.0.0.1/sda sda-copy.qcow2";
        assert_eq!(lines("sda"), [copy, convert]);
        assert_eq!(lines("-r/a b")[0], "nbdcopy nbd://10.0.0.1/-r%2Fa%20b 'r_a b-copy.img'");
        assert_eq!(of(&at("10.0.0.1", None, 10809, false), "sda").key_help, None);
        let keyed = of(&at("10.0.0.1", None, 10809, true), "sda");
        assert_eq!(keyed.commands, []);
        let wanted = "'nbds://HOST@10.0.0.1/sda?tls-psk-file=FILE'";
        assert_eq!(keyed.key_help.unwrap().1.unwrap(), wanted);
    }

    #[test]
    fn nbd_uris_are_encoded() {
        let net = |at: Endpoint| uri(&at, "my disk/é");
        let name = "my%20disk%2F%C3%A9";
        assert_eq!(net(at("10.0.0.1", None, 10809, false)), format!("nbd://10.0.0.1/{name}"));
        assert_eq!(net(at("::1", None, 1, false)), format!("nbd://[::1]:1/{name}"));
        let near = at("fe80::1", Some("eth0"), 10809, true);
        assert_eq!(net(near), format!("nbds://[fe80::1%25eth0]/{name}"));
        let path = Endpoint {
            addr: EndpointAddr::Path("/run/a b?c".to_owned()),
            ..at("::1", None, 1, false)
        };
        assert_eq!(uri(&path, "sda"), "nbd+unix:///sda?socket=/run/a%20b%3Fc");
    }
}
