//! Plain text for pipes, files and the journal: all commands for all addresses and disks.

use protocol::commands::{Command, Effect};

use crate::instructions::{self, Address};
use crate::page::{Page, Role, disk_count, group_digits, protocols};
use crate::reading;
use crate::screen::{facts, hosts, no_disk};
use crate::{AccessRequest, Disk, Model, Pairing, Style};

/// Renders the model as lines without line breaks.
pub fn text(model: &Model, style: Style) -> Vec<String> {
    let mut page = Page::new(style);
    let machine = page.escape(&model.machine);
    let heading = format!(
        "storagetm: {machine} lends {} over {}",
        disk_count(model.disks.len()),
        protocols(model)
    );
    page.push(page.colorize(Role::Title, &heading));
    page.blank();
    let addresses = instructions::addresses(model);
    instructions(model, &addresses, &mut page);
    if model.disks.is_empty() {
        page.blank();
        no_disk(model, &mut page);
    }
    for disk in &model.disks {
        self::disk(disk, &addresses, model, &mut page);
    }
    if !model.notes.is_empty() {
        page.blank();
    }
    model.notes.iter().for_each(|note| page.sentence(note));
    if let Some(request) = &model.access_request {
        access_request(request, &mut page);
    }
    page.lines
}

/// Returns the single line for a boot splash: the first command to run on the other machine.
pub fn splash(model: &Model) -> String {
    let addresses = instructions::addresses(model);
    let Some(at) = addresses.first() else { return model.link.sentence().to_owned() };
    if let (Some(Pairing::Code { digits, .. }), Some(line)) = (&model.pairing, at.pair()) {
        return format!("{line}  code: {}", group_digits(digits));
    }
    let lines = at.commands(model.disks.first(), model.digests);
    let all = lines.iter().find(|line| line.effect == Effect::AttachAll);
    all.or_else(|| lines.first()).map(|line| line.text.clone()).unwrap_or_default()
}

/// Adds the commands for all disks.
fn instructions(model: &Model, addresses: &[Address], page: &mut Page) {
    if addresses.is_empty() {
        page.sentence(model.link.sentence());
        return;
    }
    instructions::warn_if_open(model, page);
    let pair: Vec<String> = addresses.iter().filter_map(Address::pair).collect();
    if model.requires_key() {
        pairing_instructions(model, &pair, page);
    }
    reading::text(model, page);
    let attaches_all = |line: &Command| line.effect == Effect::AttachAll;
    let all = addresses.iter().flat_map(|at| {
        let lines = at.commands(None, model.digests).into_iter().filter(attaches_all);
        lines.map(|line| (at.has_interface(), line.text))
    });
    let all: Vec<(bool, String)> = all.collect();
    if all.is_empty() {
        return;
    }
    page.sentence(match pair.is_empty() {
        false => "To attach all disks, run there, as root, once it is paired:",
        true => "To attach all disks, type on the other machine, as root:",
    });
    all.iter().for_each(|(_, line)| page.command(line));
    if all.iter().any(|(has_interface, _)| *has_interface) {
        instructions::interface_note(page);
    }
}

fn pairing_instructions(model: &Model, pair: &[String], page: &mut Page) {
    match &model.pairing {
        Some(Pairing::Code { digits, .. }) if !pair.is_empty() => {
            page.sentence("To pair the other machine, run there, as root, one of these lines:");
            pair.iter().for_each(|line| page.command(line));
            instructions::code_line(page, instructions::WITH_CODE, digits);
        }
        _ => instructions::explain_missing_code(model, page),
    }
}

fn disk(disk: &Disk, addresses: &[Address], model: &Model, page: &mut Page) {
    page.blank();
    page.disk_heading(disk);
    facts(disk, page);
    hosts(disk, page);
    let all = addresses.iter().flat_map(|at| at.commands(Some(disk), model.digests));
    // Commands for all disks are listed above.
    let all: Vec<Command> = all.filter(|line| line.effect != Effect::AttachAll).collect();
    let mut kinds: Vec<&str> = Vec::new();
    all.iter().for_each(|line| {
        if !kinds.contains(&line.purpose) {
            kinds.push(line.purpose)
        }
    });
    for kind in kinds {
        page.push(format!("  {kind}:"));
        all.iter().filter(|line| line.purpose == kind).for_each(|line| page.command(&line.text));
    }
}

/// Adds the request for write access.
fn access_request(request: &AccessRequest, page: &mut Page) {
    page.blank();
    let name = page.escape(&request.name);
    page.sentence(&format!(
        "{name} at {} has the right code and wants to CHANGE the disks that are writable.",
        request.address
    ));
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::example::{self, nbd, nvme};
    use protocol::Protocol;
    use protocol::endpoint::{Endpoint, EndpointAddr};

    fn plain(model: &Model) -> String {
        text(model, Style::PLAIN).join("\n")
    }

    fn open() -> Model {
        let mut model = example::serve(1);
        model.endpoints = vec![nvme("192.168.1.5", None), nvme("fe80::1", Some("eth0"))];
        model.endpoints.extend([nbd("192.168.1.5", None), nbd("fe80::1", Some("eth0"))]);
        let addr = EndpointAddr::Path("/run/x.sock".to_owned());
        model.endpoints.push(Endpoint { addr, ..nbd("::1", None) });
        model.pairing = None;
        model
    }

    #[test]
    fn plain_text_is_complete_and_can_be_pasted() {
        let mut model = open();
        model.notes = vec!["A note.".to_owned()];
        let wanted = "\
storagetm: laptop lends 1 disk over NVMe/TCP and NBD

No key required: any machine can attach the disks; nothing is encrypted.
To attach all disks, type on the other machine, as root:
    nvme connect-all -t tcp -a 192.168.1.5 -s 4420
    nvme connect-all -t tcp -a fe80::1 -s 4420 --host-iface INTERFACE
INTERFACE: the name of its own network interface to this machine.

/dev/sda: Example 500
  500.1 GB (465.8 GiB), serial S0, blocks of 512 bytes
  read-only
  not attached
  storagetm: attach the disk:
    storagetm attach 192.168.1.5/sda
    storagetm attach fe80::1%INTERFACE/sda
  NBD: copy the disk:
    nbdcopy nbd://192.168.1.5/sda sda-copy.img
    nbdcopy 'nbd://[fe80::1%25INTERFACE]/sda' sda-copy.img
    nbdcopy 'nbd+unix:///sda?socket=/run/x.sock' sda-copy.img
  storagetm: copy the disk:
    storagetm copy nvme://192.168.1.5/sda sda-copy.img
    storagetm copy 'nvme://[fe80::1%25INTERFACE]/sda' sda-copy.img
  nvme-cli: attach the disk alone:
    nvme connect -t tcp -a 192.168.1.5 -s 4420 -n nqn.2014-08.org.nvmexpress:uuid:00000000-0000-8000-8000-000000000000
    nvme connect -t tcp -a fe80::1 -s 4420 -n nqn.2014-08.org.nvmexpress:uuid:00000000-0000-8000-8000-000000000000 --host-iface INTERFACE
  NBD: convert the disk:
    qemu-img convert -f raw -O qcow2 nbd://192.168.1.5/sda sda-copy.qcow2
    qemu-img convert -f raw -O qcow2 'nbd://[fe80::1%25INTERFACE]/sda' sda-copy.qcow2
    qemu-img convert -f raw -O qcow2 'nbd+unix:///sda?socket=/run/x.sock' sda-copy.qcow2

A note.";
        assert_eq!(plain(&model), wanted);
    }

    #[test]
    fn every_keyed_address_has_a_pair_command() {
        let wanted = "\
To pair the other machine, run there, as root, one of these lines:
    storagetm pair 169.254.7.9
    storagetm pair fe80::1%INTERFACE
with this code, valid once, for ten minutes:  1234 5678
To attach all disks, run there, as root, once it is paired:
    nvme connect-all -t tcp -a 169.254.7.9 -s 4420 --tls
";
        let text = plain(&example::serve(1));
        assert!(text.contains(wanted), "{text}");
        assert!(!text.contains("nbds:") && !text.contains("Open:"), "{text}");
    }

    #[test]
    fn splash_has_the_first_command() {
        let mut model = example::serve(1);
        assert_eq!(splash(&model), "storagetm pair 169.254.7.9  code: 1234 5678");
        model.pairing = None;
        assert_eq!(splash(&model), "nvme connect-all -t tcp -a 169.254.7.9 -s 4420 --tls");
        let mut model = open();
        model.endpoints.retain(|at| at.protocol != Protocol::Nvme);
        assert_eq!(splash(&model), "nbdcopy nbd://192.168.1.5/sda sda-copy.img");
        model.endpoints.clear();
        assert!(splash(&model).starts_with("No network address"));
    }

    #[test]
    fn nbd_alone_has_no_nvme_commands() {
        let mut model = open();
        model.endpoints.retain(|at| at.protocol != Protocol::Nvme);
        let text = plain(&model);
        assert!(text.contains("lends 1 disk over NBD\n"), "{text}");
        assert!(!text.contains("nvme connect") && !text.contains("storagetm attach"), "{text}");
        assert!(!text.contains("No network address"), "{text}");
    }

    #[test]
    fn code_is_not_written_to_the_journal() {
        let mut model = example::serve(1);
        model.pairing = Some(Pairing::Unavailable(crate::Unavailable::Hidden));
        assert!(plain(&model).contains("on the screen only"));
    }

    #[test]
    fn colours_and_rules_are_for_terminals_only() {
        assert!(plain(&open()).is_ascii() && !plain(&open()).contains('\x1b'));
        let shown = text(&open(), Style { width: 80, color: true, utf8: true });
        assert!(shown.iter().any(|line| line.contains("\u{2500}\u{2500}")));
        let ascii = text(&open(), Style { width: 80, color: true, utf8: false });
        assert!(ascii.iter().all(|line| line.is_ascii()));
    }

    #[test]
    fn narrow_page_wraps_facts_and_not_commands() {
        let lines = text(&open(), Style { width: 30, ..Style::PLAIN });
        let typed = lines.iter().filter(|line| line.starts_with("    nvme "));
        assert_eq!(typed.count(), 4);
        assert!(lines.contains(&"  500.1 GB (465.8 GiB)".to_owned()), "{lines:?}");
    }
}
