//! Help texts that name the protocols, from their table.

use protocol::{PROTOCOLS, Protocol, Role, Row, joined, option_names};

/// Returns the protocols that are served unless the user names others.
fn by_default() -> impl Iterator<Item = &'static Row> {
    PROTOCOLS.iter().filter(|row| !row.on_request)
}

/// Returns the names of the protocols that are served by default, for people: `NVMe/TCP and NBD`.
pub(super) fn labels() -> String {
    joined(by_default().map(|row| row.label), "and")
}

/// Returns the short help of `--protocol`.
pub(super) fn protocol() -> String {
    let names: Vec<&str> = option_names().collect();
    format!("Protocols to serve, separated by commas: {}", names.join(", "))
}

/// Returns the help of `--protocol`.
pub(super) fn protocol_long() -> String {
    let optional = by_default().filter(|row| row.optional).map(|row| row.label);
    let on_request = || PROTOCOLS.iter().filter(|row| row.on_request);
    let open = on_request().filter(|row| !row.protocol.admits_hosts()).map(|row| row.label);
    let coded = on_request().filter(|row| row.reading_code).map(|row| row.label);
    format!(
        "{}\n\nDefault: all but {on_request}, which are read-only; {} are then left out where their ports are \
         in use. {} is served where no key is required; {} also elsewhere, to who has the code on the screen.",
        protocol(),
        joined(optional, "and"),
        joined(open, "and"),
        joined(coded, "and"),
        on_request = joined(on_request().map(|row| row.label), "and"),
    )
}

/// The short help of `--listen`.
pub(super) const LISTEN: &str = "Listen on this address: 192.168.1.5, 127.0.0.1:4420, \
    [fe80::1%eth0], nbd:[::]:10809, unix:/run/x.sock; may be repeated";

/// Returns the help of `--listen`.
pub(super) fn listen_long() -> String {
    let first = &PROTOCOLS[0];
    let discovery = if first.discovery { " (discovery and disks)" } else { "" };
    let ports: Vec<String> = PROTOCOLS.iter().flat_map(ports).collect();
    format!(
        "{LISTEN}\n\nThe form is [PROTOCOL:]ADDRESS[:PORT], or unix:PATH for {unix} on a Unix socket; PROTOCOL \
         is {names}, an IPv6 address is in brackets. A given port serves one protocol: PROTOCOL, \
         else {first}{discovery} if that is served; 0 is any free port, another one for each protocol. The default ports are \
         {ports}. Default: every loopback and link-local address of this machine, also new ones; \
         or the sockets passed by systemd or by a client that starts its own server (LISTEN_FDS).",
        unix = Protocol::on_unix().row().label,
        names = joined(option_names(), "or"),
        first = first.option,
        ports = joined(ports.iter().map(String::as_str), "and"),
    )
}

fn ports(row: &Row) -> impl Iterator<Item = String> {
    row.ports.iter().map(|port| match port.role {
        Role::Disks => format!("{} ({})", port.number, row.option),
        Role::Discovery => format!("{} ({}, discovery only)", port.number, row.option),
    })
}

/// The short help of `--no-announce`.
pub(super) const NO_ANNOUNCE: &str = "Do not announce the disks by multicast DNS";

/// Returns the help of `--no-announce`.
pub(super) fn no_announce_long() -> String {
    let types = PROTOCOLS.iter().filter_map(|row| row.service_type);
    let services = types.map(|service_type| service_type.trim_end_matches(".local."));
    format!(
        "{NO_ANNOUNCE}\n\nDefault: `storagetm find` on other machines finds this one ({}). Where a \
         key is required it is announced under a random name.",
        joined(services, "and")
    )
}

/// Returns the help of `storagetm.protocol=`.
pub(super) fn boot_parameter() -> String {
    let names: Vec<&str> = option_names().collect();
    let keyless = PROTOCOLS.iter().filter(|row| !row.protocol.admits_hosts()).map(|row| row.option);
    let keyless = joined(keyless, "and");
    format!("serve only {}; {keyless} needs storagetm.open", names.join(", or only "))
}
