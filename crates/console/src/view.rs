//! The screen: a model becomes lines, for a terminal or for plain text. It knows no terminal.
//!
//! Lines to be typed stand alone and indented with blanks, so that they can be copied whole; they are never broken.

use export::Access;

use crate::attach::{Endpoint, quoted};
use crate::{Asking, Disk, Host, Model, Pairing, host_name, printable, size};

/// How the lines are to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// Columns that there are; lines to be typed may be longer.
    pub width: usize,
    /// Whether colours may be used (ECMA-48 SGR).
    pub color: bool,
    /// Whether the locale has more than ASCII.
    pub utf8: bool,
}

impl Style {
    /// Plain text, for a pipe or a log.
    pub const PLAIN: Self = Self { width: 100, color: false, utf8: false };
}

/// The screen for `model`, line by line, without line breaks.
pub fn view(model: &Model, style: Style) -> Vec<String> {
    let mut page = Page::new(style);
    page.heading(model);
    page.ways(model);
    for (at, disk) in model.disks.iter().enumerate() {
        // All addresses are there once: where one disk is, the others are.
        page.disk(disk, model, if at == 0 { model.nbd.len() } else { 1 });
    }
    page.notes(model);
    if let Some(asking) = &model.asking {
        page.blank();
        page.asking(asking);
    }
    page.lines
}

/// What a piece of text is, from which its colour follows.
#[derive(Clone, Copy)]
pub(crate) enum Ink {
    Title,
    Typed,
    Alarm,
    Faint,
}

/// Lines as they are made.
pub(crate) struct Page {
    style: Style,
    /// Those that there are.
    pub(crate) lines: Vec<String>,
}

impl Page {
    /// An empty one.
    pub(crate) fn new(style: Style) -> Self {
        Self { style, lines: Vec::new() }
    }

    /// A sentence that stands out.
    pub(crate) fn title(&mut self, text: &str) {
        let text = self.safe(text);
        self.push(self.ink(Ink::Title, &text));
    }

    /// What matters less.
    pub(crate) fn faint(&mut self, text: &str) {
        let text = self.safe(text);
        self.push(self.ink(Ink::Faint, &text));
    }

    /// An empty line.
    pub(crate) fn blank(&mut self) {
        self.push(String::new());
    }

    fn heading(&mut self, model: &Model) {
        let disks = match model.disks.len() {
            0 => "no disk yet".to_owned(),
            1 => "1 disk".to_owned(),
            n => format!("{n} disks"),
        };
        let machine = self.safe(&model.machine);
        let ways = match (model.endpoints.is_empty(), model.nbd.is_empty()) {
            (_, true) => "NVMe/TCP",
            (true, false) => "NBD",
            (false, false) => "NVMe/TCP and NBD",
        };
        let heading = format!("storagetm: {machine} lends {disks} over {ways}");
        self.push(self.ink(Ink::Title, &heading));
    }

    fn ways(&mut self, model: &Model) {
        self.push(String::new());
        if model.is_unreachable() {
            self.push("No network address to be reached at yet: plug in a cable.".to_owned());
            return;
        }
        self.door(model);
        if model.endpoints.is_empty() {
            return;
        }
        let keyed = model.endpoints.iter().any(|at| at.keyed);
        self.push(match keyed {
            true => "To attach all disks, type there, as root, once it is let in:".to_owned(),
            false => "To attach all disks, type on the other machine, as root:".to_owned(),
        });
        for endpoint in &model.endpoints {
            self.typed(&endpoint.attach_all(model.digests));
        }
        if let Some(name) = model.endpoints.iter().find_map(|at| at.interface.as_deref()) {
            let name = self.safe(name);
            self.sentence(&format!(
                "In place of {name}, put the name that the other machine gives its own \
                 network interface to this one."
            ));
        }
    }

    /// Who is let in, and how.
    pub(crate) fn door(&mut self, model: &Model) {
        let open = |at: &&Endpoint| !at.keyed && !at.address.is_loopback();
        if model.reached().any(|at| open(&at)) {
            let line =
                "Open: whoever reaches this machine gets the disks, and nothing is encrypted.";
            self.push(self.ink(Ink::Alarm, line));
        }
        if !model.is_keyed() {
            return;
        }
        let keyed: Vec<&Endpoint> = model.endpoints.iter().filter(|at| at.keyed).collect();
        match &model.pairing {
            Some(Pairing::Code { digits, .. }) if !keyed.is_empty() => self.pairing(&keyed, digits),
            Some(Pairing::Later) => {
                self.sentence("A wrong code was tried; the next one comes in a moment.")
            }
            Some(Pairing::Stopped) => {
                let line = "Too many wrong codes: nobody new is let in until c is pressed here.";
                self.push(self.ink(Ink::Alarm, line));
            }
            Some(Pairing::Code { .. }) | None => {
                self.sentence("Only hosts that were let in can attach (storagetm host).");
            }
        }
    }

    fn pairing(&mut self, keyed: &[&Endpoint], digits: &str) {
        self.push("To let the other machine in, type there, as root:".to_owned());
        for endpoint in keyed.iter().take(2) {
            self.typed(&endpoint.pair());
        }
        let code = self.ink(Ink::Typed, &in_groups(digits));
        self.push(format!("and then this code, which is good once, for ten minutes:  {code}"));
    }

    /// Who knew the code, and waits for an answer.
    pub(crate) fn asking(&mut self, asking: &Asking) {
        let name = self.safe(&asking.name);
        let line = format!(
            "{name} at {} knows the code and wants to CHANGE the disks that are writable here.",
            asking.address
        );
        self.push(self.ink(Ink::Alarm, &line));
        self.push("Press y to allow it, o to let it only read, n to refuse it.".to_owned());
    }

    /// A disk, with the first `uris` addresses for NBD clients.
    fn disk(&mut self, disk: &Disk, model: &Model, uris: usize) {
        self.push(String::new());
        self.rule(disk);
        self.facts(disk);
        if disk.attached.is_empty() {
            self.push(format!("  {}", self.ink(Ink::Faint, "not attached")));
        }
        for host in &disk.attached {
            self.push(format!("  {}", self.host(host)));
        }
        if !model.endpoints.is_empty() {
            self.push("  To attach only this disk:".to_owned());
        }
        for endpoint in &model.endpoints {
            self.one(endpoint, disk, model.digests);
        }
        if !model.nbd.is_empty() {
            self.push("  For NBD clients, such as qemu and nbdcopy:".to_owned());
        }
        for at in model.nbd.iter().take(uris) {
            self.typed(&quoted(&at.uri(&disk.short)));
        }
    }

    /// The disk's name, on a terminal with a line to the right of it.
    pub(crate) fn rule(&mut self, disk: &Disk) {
        let title = self.safe(&disk.title);
        let name = match self.safe(&disk.model) {
            model if model.is_empty() => title,
            model => format!("{title}: {model}"),
        };
        let used = name.chars().count() + 1;
        let left = self.style.width.saturating_sub(used).min(60);
        let line = if self.style.color { self.stroke().repeat(left) } else { String::new() };
        let name = self.ink(Ink::Title, &name);
        self.push(format!("{name} {}", self.ink(Ink::Faint, &line)).trim_end().to_owned());
    }

    fn stroke(&self) -> &'static str {
        if self.style.utf8 { "\u{2500}" } else { "-" }
    }

    fn facts(&mut self, disk: &Disk) {
        let mut facts = vec![size(disk.size)];
        if !disk.serial.is_empty() {
            facts.push(format!("serial {}", self.safe(&disk.serial)));
        }
        facts.push(format!("blocks of {} bytes", disk.block_size));
        self.facts_of(&facts);
        let access = self.access(disk);
        self.push(format!("  {access}"));
    }

    /// Facts with commas between them, indented.
    pub(crate) fn facts_of(&mut self, facts: &[String]) {
        for line in filled(facts, ", ", self.style.width.saturating_sub(2)) {
            self.push(format!("  {line}"));
        }
    }

    /// What hosts may do with a disk.
    pub(crate) fn access(&self, disk: &Disk) -> String {
        match disk.access {
            Access::ReadOnly => "read-only".to_owned(),
            Access::Writable => self.ink(Ink::Alarm, "writable: hosts can change it"),
        }
    }

    fn host(&self, host: &Host) -> String {
        self.ink(Ink::Title, &attached_by(host, self.style.utf8))
    }

    fn one(&mut self, endpoint: &Endpoint, disk: &Disk, digests: bool) {
        self.typed(&endpoint.attach(&disk.nqn, digests));
    }

    fn notes(&mut self, model: &Model) {
        if !model.notes.is_empty() {
            self.push(String::new());
        }
        for note in &model.notes {
            self.sentence(note);
        }
    }

    /// A line to be typed: indented, never broken.
    pub(crate) fn typed(&mut self, line: &str) {
        let line = self.safe(line);
        self.push(format!("    {}", self.ink(Ink::Typed, &line)));
    }

    /// A sentence, broken between words.
    pub(crate) fn sentence(&mut self, text: &str) {
        let words: Vec<String> = self.safe(text).split(' ').map(str::to_owned).collect();
        let lines = filled(&words, " ", self.style.width);
        self.lines.extend(lines);
    }

    fn push(&mut self, line: String) {
        self.lines.push(line);
    }

    pub(crate) fn safe(&self, text: &str) -> String {
        printable(text, self.style.utf8)
    }

    pub(crate) fn ink(&self, ink: Ink, text: &str) -> String {
        if !self.style.color || text.is_empty() {
            return text.to_owned();
        }
        let code = match ink {
            Ink::Title => "1",
            Ink::Typed => "32",
            Ink::Alarm => "1;33",
            Ink::Faint => "2",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// Who has attached a disk, and from where.
pub(crate) fn attached_by(host: &Host, utf8: bool) -> String {
    if host.name.is_empty() {
        return format!("attached from {}", host.address);
    }
    format!("attached by {} at {}", host_name(&host.name, utf8), host.address)
}

/// Digits as they are read aloud: in groups of four.
pub(crate) fn in_groups(digits: &str) -> String {
    let all: Vec<char> = digits.chars().collect();
    all.chunks(4).map(String::from_iter).collect::<Vec<_>>().join(" ")
}

/// The parts with `between` them, on as many lines as their width needs; a part is never broken.
pub(crate) fn filled(parts: &[String], between: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for part in parts {
        let room = lines
            .last_mut()
            .filter(|line| line.chars().count() + between.len() + part.chars().count() <= width);
        match room {
            Some(line) => line.extend([between, part]),
            None => lines.push(part.clone()),
        }
    }
    lines
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::attach::Nbd;

    fn disk() -> Disk {
        Disk {
            title: "/dev/sda".to_owned(),
            nqn: "nqn.2014-08.org.nvmexpress:uuid:1".to_owned(),
            short: "sda".to_owned(),
            size: 500_107_862_016,
            block_size: 512,
            model: "Example 500".to_owned(),
            serial: "S1".to_owned(),
            access: Access::ReadOnly,
            attached: Vec::new(),
            read: 0,
            written: 0,
            writes: None,
        }
    }

    fn model() -> Model {
        let at = |address: &str, interface: Option<&str>| Endpoint {
            address: address.parse().unwrap(),
            interface: interface.map(str::to_owned),
            port: 4420,
            keyed: false,
        };
        Model {
            machine: "laptop".to_owned(),
            endpoints: vec![at("192.168.1.5", None), at("fe80::1", Some("eth0"))],
            nbd: Vec::new(),
            digests: false,
            disks: vec![disk()],
            pairing: None,
            asking: None,
            notes: vec!["Ctrl-C ends it.".to_owned()],
        }
    }

    #[test]
    fn plain_text_has_all_and_can_be_pasted() {
        let lines = view(&model(), Style::PLAIN);
        let wanted = "\
storagetm: laptop lends 1 disk over NVMe/TCP

Open: whoever reaches this machine gets the disks, and nothing is encrypted.
To attach all disks, type on the other machine, as root:
    nvme connect-all -t tcp -a 192.168.1.5 -s 4420
    nvme connect-all -t tcp -a fe80::1 -s 4420 --host-iface eth0
In place of eth0, put the name that the other machine gives its own network interface to this one.

/dev/sda: Example 500
  500.1 GB (465.8 GiB), serial S1, blocks of 512 bytes
  read-only
  not attached
  To attach only this disk:
    nvme connect -t tcp -a 192.168.1.5 -s 4420 -n nqn.2014-08.org.nvmexpress:uuid:1
    nvme connect -t tcp -a fe80::1 -s 4420 -n nqn.2014-08.org.nvmexpress:uuid:1 --host-iface eth0

Ctrl-C ends it.";
        assert_eq!(lines.join("\n"), wanted);
    }

    #[test]
    fn nbd_clients_get_all_addresses_once_and_one_for_each_other_disk() {
        let mut model = model();
        let at = |at: &Endpoint| Nbd::Net(Endpoint { port: 10809, ..at.clone() });
        model.nbd = model.endpoints.iter().map(at).collect();
        model.nbd.push(Nbd::Path("/run/x.sock".to_owned()));
        model.disks.push(Disk { title: "/dev/sdb".to_owned(), short: "sdb".to_owned(), ..disk() });
        let text = view(&model, Style::PLAIN).join("\n");
        assert!(text.starts_with("storagetm: laptop lends 2 disks over NVMe/TCP and NBD\n"));
        let first = "\
  For NBD clients, such as qemu and nbdcopy:
    nbd://192.168.1.5/sda
    nbd://[fe80::1%25eth0]/sda
    nbd+unix:///sda?socket=/run/x.sock

/dev/sdb: Example 500
";
        // A question mark is the shell's, too.
        let first = first
            .replace("nbd+unix:///sda?socket=/run/x.sock", "'nbd+unix:///sda?socket=/run/x.sock'");
        let first = first.replace("nbd://[fe80::1%25eth0]/sda", "'nbd://[fe80::1%25eth0]/sda'");
        assert!(text.contains(&first), "{text}");
        assert!(text.contains("and nbdcopy:\n    nbd://192.168.1.5/sdb\n\nCtrl-C"), "{text}");
        model.endpoints.clear();
        let text = view(&model, Style::PLAIN).join("\n");
        assert!(text.contains("lends 2 disks over NBD\n\nOpen: whoever"), "{text}");
        assert!(!text.contains("nvme") || text.contains("nvmexpress"), "{text}");
        assert!(!text.contains("No network address"), "{text}");
    }

    #[test]
    fn where_a_key_is_needed_the_screen_says_how_to_get_one() {
        let mut model = model();
        model.endpoints.iter_mut().for_each(|at| at.keyed = true);
        let text = |model: &Model| view(model, Style::PLAIN).join("\n");
        assert!(text(&model).contains("Only hosts that were let in can attach"));
        assert!(!text(&model).contains("Open:"));
        model.pairing =
            Some(Pairing::Code { digits: "12345678".to_owned(), link: "storagetm:x".to_owned() });
        let wanted = "\
To let the other machine in, type there, as root:
    storagetm pair 192.168.1.5
    storagetm pair fe80::1%eth0
and then this code, which is good once, for ten minutes:  1234 5678
To attach all disks, type there, as root, once it is let in:
    nvme connect-all -t tcp -a 192.168.1.5 -s 4420 --tls
";
        assert!(text(&model).contains(wanted), "{}", text(&model));
        model.pairing = Some(Pairing::Stopped);
        assert!(text(&model).contains("until c is pressed"));
        model.asking =
            Some(Asking { name: "a\x1b[2J".to_owned(), address: "10.0.0.2".parse().unwrap() });
        assert!(text(&model).contains(" at 10.0.0.2 knows the code and wants to CHANGE"));
        assert!(!text(&model).contains('\x1b'));
    }

    #[test]
    fn who_has_a_disk_is_shown_with_its_address() {
        let mut model = model();
        model.disks[0].access = Access::Writable;
        let name =
            "nqn.2014-08.org.nvmexpress:uuid:2f6d1c52-0000-4000-8000-000000000000".to_owned();
        model.disks[0].attached = vec![Host { name, address: "192.168.1.7".parse().unwrap() }];
        let text = view(&model, Style::PLAIN).join("\n");
        assert!(text.contains("  writable: hosts can change it\n"), "{text}");
        assert!(text.contains("  attached by host 2f6d1c52 at 192.168.1.7\n"), "{text}");
        assert!(!text.contains("not attached"));
        model.disks[0].attached[0].name.clear();
        let text = view(&model, Style::PLAIN).join("\n");
        assert!(text.contains("  attached from 192.168.1.7\n"), "{text}");
    }

    #[test]
    fn a_machine_without_an_address_says_what_to_do() {
        let model = Model { endpoints: Vec::new(), ..model() };
        let text = view(&model, Style::PLAIN).join("\n");
        assert!(text.contains("No network address to be reached at yet"), "{text}");
    }

    #[test]
    fn text_that_others_wrote_cannot_steer_the_terminal() {
        let mut model = model();
        let hostile = "\x1b]0;owned\x07\n\u{202e}";
        model.machine = hostile.to_owned();
        model.notes = vec![hostile.to_owned()];
        let disk = &mut model.disks[0];
        (disk.title, disk.model, disk.serial, disk.nqn) =
            (hostile.to_owned(), hostile.to_owned(), hostile.to_owned(), hostile.to_owned());
        disk.attached =
            vec![Host { name: hostile.to_owned(), address: "10.0.0.1".parse().unwrap() }];
        for utf8 in [false, true] {
            for line in view(&model, Style { width: 80, color: false, utf8 }) {
                assert!(line.chars().all(|c| !c.is_control() && c != '\u{202e}'), "{line:?}");
            }
        }
    }

    #[test]
    fn colours_and_drawn_lines_are_for_terminals_only() {
        let plain = view(&model(), Style::PLAIN);
        assert!(plain.iter().all(|line| line.is_ascii() && !line.contains('\x1b')));
        let shown = view(&model(), Style { width: 80, color: true, utf8: true });
        assert!(shown.iter().any(|line| line.contains("\u{2500}\u{2500}")));
        assert!(shown.iter().any(|line| line.contains("\x1b[32mnvme connect-all")));
        let ascii = view(&model(), Style { width: 80, color: true, utf8: false });
        assert!(ascii.iter().all(|line| line.is_ascii()));
    }

    #[test]
    fn a_narrow_screen_breaks_facts_between_and_never_a_line_to_be_typed() {
        let lines = view(&model(), Style { width: 30, ..Style::PLAIN });
        let typed = |line: &&String| line.starts_with("    nvme ");
        assert_eq!(lines.iter().filter(typed).count(), 4);
        assert!(lines.contains(&"  500.1 GB (465.8 GiB)".to_owned()), "{lines:?}");
        assert!(lines.contains(&"  serial S1".to_owned()), "{lines:?}");
    }
}
