//! Instructions for the other machine: for each address the commands of each tool, and how to
//! obtain a key.

use std::net::IpAddr;

use crate::attach::{Endpoint, INTERFACE, Nbd};
use crate::page::{Page, Role, group_digits};
use crate::width::columns;
use crate::{Disk, Model, Pairing, Unavailable};

/// An address of this machine, and what is served there.
#[derive(Debug, Clone)]
pub(crate) struct Address {
    nvme: Option<Endpoint>,
    nbd: Option<Nbd>,
    /// The interface of a link-local IPv6 address.
    interface: Option<String>,
}

/// A command, and its purpose.
pub(crate) struct CommandLine {
    pub(crate) purpose: &'static str,
    pub(crate) text: String,
}

/// Returns the addresses in the order of the model, those with both protocols once.
pub(crate) fn addresses(model: &Model) -> Vec<Address> {
    let is_same_address = |nbd: &Nbd, at: &Endpoint| {
        nbd.endpoint().is_some_and(|it| it.address == at.address && it.interface == at.interface)
    };
    let with_nvme = model.endpoints.iter().map(|at| Address {
        nvme: Some(at.as_seen_remotely()),
        nbd: model.nbd.iter().find(|nbd| is_same_address(nbd, at)).map(Nbd::as_seen_remotely),
        interface: at.interface.clone(),
    });
    let is_nbd_only = |nbd: &&Nbd| !model.endpoints.iter().any(|at| is_same_address(nbd, at));
    let nbd_only = model.nbd.iter().filter(is_nbd_only).map(|nbd| Address {
        nvme: None,
        nbd: Some(nbd.as_seen_remotely()),
        interface: nbd.endpoint().and_then(|at| at.interface.clone()),
    });
    with_nvme.chain(nbd_only).collect()
}

impl Address {
    /// Returns the display name: `169.254.7.9`, `fe80::1 (eth0)`, `/run/x.sock`.
    pub(crate) fn name(&self) -> String {
        let endpoint = self.nvme.as_ref().or_else(|| self.nbd.as_ref()?.endpoint());
        match (endpoint, &self.nbd) {
            (Some(at), _) => match &self.interface {
                Some(interface) => format!("{} ({interface})", at.address),
                None => at.address.to_string(),
            },
            (None, Some(Nbd::Path(path))) => path.clone(),
            (None, _) => String::new(),
        }
    }

    /// Returns whether commands contain [`INTERFACE`].
    pub(crate) fn has_interface(&self) -> bool {
        self.interface.is_some()
    }

    /// Returns whether NVMe/TCP requires a key.
    pub(crate) fn requires_key(&self) -> bool {
        self.nvme.as_ref().is_some_and(|at| at.keyed)
    }

    /// Returns the NBD URI of a disk with placeholders for host name and key file.
    pub(crate) fn nbd_with_key(&self, disk: &Disk) -> Option<String> {
        self.nbd.as_ref().and_then(|at| at.uri_with_key(&disk.short))
    }

    /// Returns the command that pairs the other machine.
    pub(crate) fn pair(&self) -> Option<String> {
        self.nvme.as_ref().filter(|at| at.keyed).map(Endpoint::pair)
    }

    /// Returns one command per tool: those that attach and copy `disk`, and the one that attaches
    /// all disks.
    pub(crate) fn commands(&self, disk: Option<&Disk>, digests: bool) -> Vec<CommandLine> {
        let mut commands = Vec::new();
        let mut add = |purpose, text: Option<String>| {
            commands.extend(text.map(|text| CommandLine { purpose, text }))
        };
        let nvme = self.nvme.as_ref();
        add("storagetm: attach the disk", nvme.zip(disk).map(|(at, it)| at.attach_disk(&it.short)));
        add("nvme-cli: attach all disks", nvme.map(|at| at.attach_all(digests)));
        add(
            "NBD: copy the disk",
            self.nbd.as_ref().zip(disk).and_then(|(at, it)| at.copy(&it.short)),
        );
        add("storagetm: copy the disk", nvme.zip(disk).map(|(at, it)| at.copy(&it.short)));
        commands
    }

    /// Returns less common commands.
    pub(crate) fn other_commands(&self, disk: &Disk, digests: bool) -> Vec<CommandLine> {
        let one = self.nvme.as_ref().map(|at| at.attach(&disk.nqn, digests));
        let convert = self.nbd.as_ref().and_then(|at| at.convert(&disk.short));
        let one = one.map(|text| CommandLine { purpose: "nvme-cli: attach the disk alone", text });
        let convert = convert.map(|text| CommandLine { purpose: "NBD: convert the disk", text });
        one.into_iter().chain(convert).collect()
    }
}

/// Explains [`INTERFACE`].
pub(crate) fn interface_note(page: &mut Page) {
    page.sentence(&format!("{INTERFACE}: the name of its own network interface to this machine."));
}

/// Warns that an endpoint other than loopback requires no key.
pub(crate) fn warn_if_open(model: &Model, page: &mut Page) {
    let is_loopback = |ip: IpAddr| ip.is_loopback();
    if model.all_endpoints().any(|at| !at.keyed && !is_loopback(at.address)) {
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
    if model.requires_key_for_nbd_only() {
        page.sentence(
            "Only hosts with a key can attach. No code is shown: pairing requires NVMe/TCP, and only \
             NBD is served here. Serve NVMe/TCP, too (--protocol nvme,nbd), or add a host here \
             (storagetm host add NQN) and give it its key (storagetm key export NAME --nbd).",
        );
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
