//! Instructions for the other machine: for each address the commands of each tool, and how to
//! obtain a key.

use export::Access;
use protocol::commands::{Command, Effect, Instructions};
use protocol::endpoint::{Endpoint, EndpointAddr, INTERFACE};
use protocol::{PROTOCOLS, https};

use crate::page::{Page, Role, group_digits, labels};
use crate::width::columns;
use crate::{Disk, Model, Pairing, Unavailable};

/// An address of this machine, and what is served there.
#[derive(Debug, Clone)]
pub(crate) struct Address {
    addr: EndpointAddr,
    /// At most one of each protocol, as seen from other machines.
    endpoints: Vec<Endpoint>,
}

/// Returns the addresses in the order of the model, each with its protocols.
pub(crate) fn addresses(model: &Model) -> Vec<Address> {
    let mut addresses: Vec<Address> = Vec::new();
    for endpoint in &model.endpoints {
        let has_room = |address: &&mut Address| {
            let is_other = |at: &Endpoint| at.protocol != endpoint.protocol;
            address.addr.has_same_host(&endpoint.addr) && address.endpoints.iter().all(is_other)
        };
        let seen = endpoint.as_seen_remotely();
        match addresses.iter_mut().find(has_room) {
            Some(address) => address.endpoints.push(seen),
            None => {
                addresses.push(Address { addr: endpoint.addr.clone(), endpoints: vec![seen] });
            }
        }
    }
    addresses
}

impl Address {
    /// Returns the display name: `169.254.7.9`, `fe80::1 (eth0)`, `/run/x.sock`.
    pub(crate) fn name(&self) -> String {
        match &self.addr {
            EndpointAddr::Net(at) => match &at.interface {
                Some(interface) => format!("{} ({interface})", at.ip),
                None => at.ip.to_string(),
            },
            EndpointAddr::Path(path) => path.clone(),
        }
    }

    /// Returns whether commands contain [`INTERFACE`].
    pub(crate) fn has_interface(&self) -> bool {
        matches!(&self.addr, EndpointAddr::Net(at) if at.interface.is_some())
    }

    /// Returns whether an endpoint requires a key.
    pub(crate) fn requires_key(&self) -> bool {
        self.endpoints.iter().any(|at| at.keyed && !at.protocol.row().reading_code)
    }

    /// Returns the address for a browser that requires the code.
    pub(crate) fn page_with_code(&self) -> Option<String> {
        self.endpoints.iter().filter(|at| at.keyed).find_map(https::page)
    }

    /// Returns the command that pairs the other machine.
    pub(crate) fn pair(&self) -> Option<String> {
        self.instructions(None, false).find_map(|protocol| protocol.pair)
    }

    /// Returns the commands of all protocols for `disk`, or those for all disks: to boot from it only if
    /// hosts may write to it.
    pub(crate) fn commands(&self, disk: Option<&Disk>, digests: bool) -> Vec<Command> {
        let boots = disk.is_some_and(|disk| disk.access == Access::Writable);
        let mut commands: Vec<Command> =
            self.instructions(disk, digests).flat_map(|protocol| protocol.commands).collect();
        commands.retain(|command| boots || command.effect != Effect::Boot);
        commands.sort_by_key(|command| command.effect);
        commands
    }

    /// Returns what a host with a key needs for `disk`, with the URI to use.
    pub(crate) fn key_help(
        &self,
        disk: &Disk,
    ) -> impl Iterator<Item = (&'static str, Option<String>)> {
        self.instructions(Some(disk), false).filter_map(|protocol| protocol.key_help)
    }

    fn instructions(
        &self,
        disk: Option<&Disk>,
        digests: bool,
    ) -> impl Iterator<Item = Instructions> {
        self.endpoints.iter().map(move |at| at.instructions(disk.map(Disk::names), digests))
    }
}

/// Explains [`INTERFACE`].
pub(crate) fn interface_note(page: &mut Page) {
    page.sentence(&format!("{INTERFACE}: the name of its own network interface to this machine."));
}

/// Warns that an endpoint other than loopback requires no key.
pub(crate) fn warn_if_open(model: &Model, page: &mut Page) {
    let is_remote = |at: &Endpoint| at.net().is_some_and(|at| !at.ip.is_loopback());
    if model.endpoints.iter().any(|at| !at.keyed && is_remote(at)) {
        let line = "No key required: any machine can attach the disks; nothing is encrypted.";
        page.colored(Role::Warning, line);
    }
}

/// Text before the code, long and short.
pub(crate) const WITH_CODE: [&str; 2] =
    ["with this code, valid once, for ten minutes:", "with this code:"];

/// Adds the code at the end of a line.
pub(crate) fn code_line(page: &mut Page, before: [&str; 2], digits: &str) {
    let code = group_digits(digits);
    let [long, short] = before;
    let fits = columns(long) + 2 + columns(&code) <= page.style.width;
    let before = if fits { long } else { short };
    let code = page.colorize(Role::Command, &code);
    page.push(format!("{before}  {code}"));
}

/// Explains why no code is shown although a key is required.
pub(crate) fn explain_missing_code(model: &Model, page: &mut Page) {
    if model.requires_key_without_pairing() {
        page.sentence(&missing_pairing(model));
        return;
    }
    match &model.pairing {
        Some(Pairing::Code { .. }) => {}
        None => page.sentence("Only hosts with a key can attach; a code is shown in a moment."),
        Some(Pairing::Delayed) => {
            page.sentence("A wrong code was tried; the next code is shown in a moment.");
        }
        Some(Pairing::LockedOut) => page.colored(
            Role::Warning,
            "Too many wrong codes: pairing is locked for an hour or more, or until c is pressed here.",
        ),
        Some(Pairing::Unavailable(reason)) => page.sentence(unavailable(*reason)),
    }
}

/// Explains how a host gets its key if no protocol that is served has pairing.
fn missing_pairing(model: &Model) -> String {
    let served = PROTOCOLS
        .iter()
        .filter(|row| model.keyed_endpoints().any(|at| at.protocol == row.protocol));
    let pairing = PROTOCOLS.iter().filter(|row| row.pairing);
    let with = protocol::joined(pairing.clone().map(|row| row.label), "and");
    let only = labels(model.keyed_endpoints());
    let options: Vec<&str> = pairing.chain(served.clone()).map(|row| row.option).collect();
    let options = options.join(",");
    let exports: Vec<&str> = served.map(|row| row.key_export).collect();
    let exports = exports.join("; ");
    format!(
        "Only hosts with a key can attach. No code is shown: pairing requires {with}, and only \
         {only} is served here. Serve {with}, too (--protocol {options}), or add a host here \
         (storagetm host add NQN) and give it its key ({exports})."
    )
}

fn unavailable(reason: Unavailable) -> &'static str {
    match reason {
        Unavailable::NoTerminal => {
            "Only hosts with a key can attach. No code is shown, because the output is not a \
             terminal: run it on one, add --pair, or add a host with storagetm host add."
        }
        Unavailable::Disabled => {
            "Only hosts with a key can attach. Pairing by a code is turned off (storagetm.pair=no)."
        }
        Unavailable::NoStore => {
            "Only hosts with a key can attach, and none can be added: this machine cannot store keys."
        }
        Unavailable::Hidden => "Only hosts with a key can attach; the code is on the screen only.",
    }
}
