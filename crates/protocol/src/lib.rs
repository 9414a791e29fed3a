//! The table of the storage protocols that disks are served over, and what to type on another
//! machine to use them.
//!
//! A new protocol is one variant of [`Protocol`], one module with its row and the function for its
//! commands, and its sessions in the worker.
#![forbid(unsafe_code)]

pub mod commands;
pub mod endpoint;
pub(crate) mod http;
pub mod https;
pub(crate) mod iscsi;
pub(crate) mod nbd;
pub mod nvme;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use commands::{ExportNames, Instructions};
use endpoint::Endpoint;

/// A storage protocol.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// NVMe/TCP, which Linux attaches by itself
    Nvme,
    /// NBD, which qemu, libguestfs, nbdcopy and many others speak
    Nbd,
    /// iSCSI, which Windows, ESXi, FreeBSD, firmware and iPXE attach by themselves
    Iscsi,
    /// HTTP, read-only and only if named: any browser, curl and qemu
    Http,
    /// HTTPS, read-only and only if named: any browser and curl, with a code
    Https,
}

/// What a listener of a protocol offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Disks, and discovery where the protocol has it.
    Disks,
    /// Discovery only.
    Discovery,
}

/// A standard TCP port.
#[derive(Debug, Clone, Copy)]
pub struct Port {
    /// Its number, as registered with IANA.
    pub number: u16,
    /// What is offered there.
    pub role: Role,
}

/// A row of the table.
#[derive(Debug)]
pub struct Row {
    /// The protocol.
    pub protocol: Protocol,
    /// Its name in options, and what the name of an inherited socket begins with.
    pub option: &'static str,
    /// Its name in JSON events.
    pub name: &'static str,
    /// Its name for people.
    pub label: &'static str,
    /// The standard ports; the first one offers disks.
    pub ports: &'static [Port],
    /// Schemes of the credentials that it uses (see the policy of `export`).
    pub schemes: &'static [&'static str],
    /// Whether disks come with discovery.
    pub discovery: bool,
    /// Service type in DNS-SD (RFC 6763 §4.1.2); `None` if it is not announced.
    pub service_type: Option<&'static str>,
    /// Keys and values of the TXT record in DNS-SD.
    pub txt: &'static [(&'static str, &'static str)],
    /// Whether it can be served on Unix sockets.
    pub unix: bool,
    /// Whether another program may have its port, unless the user has named the protocol.
    pub optional: bool,
    /// Whether it is served only if the user has named it.
    pub on_request: bool,
    /// Whether hosts are paired over it by a code.
    pub pairing: bool,
    /// Whether a code on the screen admits to reading where a key is required.
    pub reading_code: bool,
    /// The command that writes the key of a host in a form for its clients; empty without schemes.
    pub key_export: &'static str,
    /// The member of the JSON event of an export that holds [`Instructions::listed`].
    pub member: &'static str,
    /// What to type on another machine to use an endpoint: for an export or for all, with digests
    /// or without.
    pub instructions: fn(&Endpoint, Option<ExportNames<'_>>, bool) -> Instructions,
}

/// All protocols, in the order in which they are preferred.
pub const PROTOCOLS: &[Row] = &[nvme::ROW, nbd::ROW, iscsi::ROW, http::ROW, https::ROW];

impl Protocol {
    /// Returns the row of the protocol.
    pub fn row(self) -> &'static Row {
        let row = PROTOCOLS.iter().find(|row| row.protocol == self);
        row.unwrap_or(&PROTOCOLS[0])
    }

    /// Returns the name in JSON events.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// Returns whether hosts can show a key. Other protocols are served only where none is required.
    pub fn has_keys(self) -> bool {
        !self.row().schemes.is_empty()
    }

    /// Returns whether hosts can be admitted where a key is required: by a key, or by the code for reading.
    pub fn admits_hosts(self) -> bool {
        self.has_keys() || self.row().reading_code
    }

    /// Returns the protocol with this name in options.
    pub fn from_option(name: &str) -> Option<Self> {
        PROTOCOLS.iter().find(|row| row.option == name).map(|row| row.protocol)
    }

    /// Returns the protocol that is served on Unix sockets.
    pub fn on_unix() -> Self {
        PROTOCOLS.iter().find(|row| row.unix).unwrap_or(&PROTOCOLS[0]).protocol
    }
}

/// Returns the names of the protocols in options.
pub fn option_names() -> impl Iterator<Item = &'static str> {
    PROTOCOLS.iter().map(|row| row.option)
}

/// Joins words: `one, two and three`, with "and" as the `last` separator.
pub fn joined<'a>(words: impl IntoIterator<Item = &'a str>, last: &str) -> String {
    let mut words: Vec<&str> = words.into_iter().collect();
    let end = words.pop().unwrap_or_default();
    if words.is_empty() { end.to_owned() } else { format!("{} {last} {end}", words.join(", ")) }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn every_protocol_has_one_row() {
        for protocol in Protocol::value_variants() {
            let rows = PROTOCOLS.iter().filter(|row| row.protocol == *protocol);
            assert_eq!(rows.count(), 1, "{protocol:?}");
            let value = protocol.to_possible_value().unwrap();
            assert_eq!(Protocol::from_option(value.get_name()), Some(*protocol));
            assert_eq!(protocol.row().ports[0].role, Role::Disks);
        }
    }

    #[test]
    fn protocols_are_sorted_as_in_the_table() {
        assert!(PROTOCOLS.is_sorted_by_key(|row| row.protocol));
    }

    #[test]
    fn words_are_joined() {
        let by_and = |words: &[&'static str]| joined(words.iter().copied(), "and");
        assert_eq!([by_and(&[]), by_and(&["a"]), by_and(&["a", "b"])], ["", "a", "a and b"]);
        assert_eq!(joined(["a", "b", "c"], "or"), "a, b or c");
    }

    #[test]
    fn standard_ports_are_distinct() {
        let ports: Vec<u16> =
            PROTOCOLS.iter().flat_map(|row| row.ports).map(|port| port.number).collect();
        assert!((1..ports.len()).all(|n| !ports[n..].contains(&ports[n - 1])), "{ports:?}");
    }
}
