//! The screen of a machine that was booted only to lend its disks: it fits its window, and turns pages where there are
//! too many disks for it. It knows no terminal.

use export::Access;

use crate::attach::quoted;
use crate::model::{Pairing, Question};
use crate::view::{Ink, Page, attached_by, filled};
use crate::{Disk, Model, Station, Style, code, decimal, size};

/// Endpoints that are shown at most; the others are counted.
const ENDPOINTS: usize = 4;
/// Hosts of a disk that are named at most; the others are counted.
const HOSTS: usize = 3;
/// Rows that are kept for disks, however many notes there are: a disk in short, and a row of its model that is long.
const BODY: usize = 5;

/// The lines of the window, without line breaks; `rows` is its height. A page beyond the last is the first again.
pub fn board(model: &Model, station: &Station, style: Style, rows: usize) -> Vec<String> {
    let large = station.large && model.asking.is_none();
    if let (true, Some(Pairing::Code { digits, link })) = (large, &model.pairing) {
        return self::large(digits, link, style, rows);
    }
    let head = head(model, station, style);
    let room =
        |foot: &[String]| rows.saturating_sub(height(&head, style) + height(foot, style)).max(1);
    let most = rows.saturating_sub(height(&head, style) + BODY);
    let mut foot = foot(model, station, style, None, most);
    let mut blocks = blocks(model, style, true);
    if total(&blocks, style) > room(&foot) {
        blocks = self::blocks(model, style, false);
    }
    if total(&blocks, style) + blocks.len() <= room(&foot) {
        blocks.iter_mut().skip(1).for_each(|block| block.insert(0, String::new()));
    }
    let pages = pages(blocks, room(&foot), style);
    let at = station.page % pages.len();
    if pages.len() > 1 {
        foot = self::foot(model, station, style, Some((at + 1, pages.len())), most);
    }
    let body = pages.into_iter().nth(at).unwrap_or_default();
    let used = height(&head, style) + height(&body, style) + height(&foot, style);
    let blank = std::iter::repeat_n(String::new(), rows.saturating_sub(used));
    head.into_iter().chain(body).chain(blank).chain(foot).collect()
}

/// The code alone, for who sits further away and for a camera; without what there is no room for.
fn large(digits: &str, link: &str, style: Style, rows: usize) -> Vec<String> {
    let code = code::digits(digits);
    let qr = code::qr(link, style.utf8);
    let mut lines = code;
    let wide = qr.iter().map(|line| columns(line)).max().unwrap_or(0);
    if wide <= style.width && lines.len() + qr.len() + 2 <= rows {
        lines.push(String::new());
        lines.extend(qr);
    }
    lines.resize(rows.saturating_sub(1).max(lines.len()), String::new());
    lines.push("c back".to_owned());
    lines
}

/// Rows that the lines take in the window: a line to be typed may be longer than a row.
fn height(lines: &[String], style: Style) -> usize {
    lines.iter().map(|line| columns(line).div_ceil(style.width.max(1)).max(1)).sum()
}

/// Columns that a line takes: its characters without colours.
pub fn columns(line: &str) -> usize {
    let mut count = 0;
    let mut hidden = false;
    for c in line.chars() {
        match c {
            '\x1b' => hidden = true,
            'm' if hidden => hidden = false,
            _ => count += usize::from(!hidden),
        }
    }
    count
}

fn head(model: &Model, station: &Station, style: Style) -> Vec<String> {
    let mut page = Page::new(style);
    page.title("storagetm: this machine lends its disks to the machine it is plugged into");
    if !station.hardware.is_empty() {
        page.faint(&station.hardware);
    }
    page.blank();
    if model.is_unreachable() {
        page.sentence("No network address to be reached at yet: plug in a cable.");
    } else {
        page.door(model);
    }
    if !model.endpoints.is_empty() {
        page.sentence(if model.is_keyed() {
            "Once it is let in, type there, as root, one of these lines:"
        } else {
            "Type on the other machine, as root, one of these lines:"
        });
    }
    for endpoint in model.endpoints.iter().take(ENDPOINTS) {
        page.typed(&endpoint.attach_all(model.digests));
    }
    if let Some(more) = model.endpoints.len().checked_sub(ENDPOINTS).filter(|more| *more > 0) {
        page.faint(&format!("    and at {more} more addresses"));
    }
    if let Some(name) = model.endpoints.iter().find_map(|at| at.interface.as_deref()) {
        page.sentence(&format!("({name}: there, the name of its own network interface)"));
    }
    page.blank();
    page.lines
}

fn blocks(model: &Model, style: Style, long: bool) -> Vec<Vec<String>> {
    if model.disks.is_empty() {
        let mut page = Page::new(style);
        page.sentence("No disk is lent.");
        return vec![page.lines];
    }
    model.disks.iter().map(|disk| block(disk, model, style, long)).collect()
}

/// A disk: what it is, who has it, what was done with it; if `long`, how to attach it alone.
fn block(disk: &Disk, model: &Model, style: Style, long: bool) -> Vec<String> {
    let mut page = Page::new(style);
    page.rule(disk);
    let mut facts = vec![size(disk.size)];
    if !disk.serial.is_empty() {
        facts.push(format!("serial {}", page.safe(&disk.serial)));
    }
    facts.push(page.access(disk));
    // A row of its own would leave no room for a second disk.
    facts.extend(uri(disk, model).map(|uri| page.safe(&uri)));
    page.facts_of(&facts);
    let use_of_it = [Some(attached(disk, style)), traffic(disk), Some(written_here(disk, &page))];
    page.facts_of(&use_of_it.into_iter().flatten().collect::<Vec<_>>());
    if long {
        for endpoint in &model.endpoints {
            page.typed(&endpoint.attach(&disk.nqn, model.digests));
        }
    }
    page.lines
}

/// Where NBD clients find a disk: at the first address.
fn uri(disk: &Disk, model: &Model) -> Option<String> {
    model.nbd.first().map(|at| quoted(&at.uri(&disk.short)))
}

fn attached(disk: &Disk, style: Style) -> String {
    match disk.attached.as_slice() {
        [] => "not attached".to_owned(),
        [host] => attached_by(host, style.utf8),
        hosts => {
            let names = hosts.iter().take(HOSTS).map(|host| host.address.to_string());
            let more = hosts.len().checked_sub(HOSTS).filter(|more| *more > 0);
            let more = more.map(|more| format!("{more} more"));
            format!("attached from {}", names.chain(more).collect::<Vec<_>>().join(" and "))
        }
    }
}

/// What hosts did with it, if anything.
fn traffic(disk: &Disk) -> Option<String> {
    let (read, written) = (decimal(disk.read), decimal(disk.written));
    (disk.read > 0 || disk.written > 0).then(|| format!("{read} read, {written} written by hosts"))
}

/// What the kernel's own counter says of writes to the disk.
fn written_here(disk: &Disk, page: &Page) -> String {
    match disk.writes {
        None => "no write counter".to_owned(),
        Some(0) => "0 writes to it since power-on".to_owned(),
        Some(n) if disk.access == Access::Writable => format!("{n} writes to it since power-on"),
        Some(n) => page.ink(Ink::Alarm, &format!("{n} writes to it since power-on")),
    }
}

/// The newest notes that there is room for, and what follows them, on `most` rows if that is enough.
fn foot(
    model: &Model,
    station: &Station,
    style: Style,
    pages: Option<(usize, usize)>,
    most: usize,
) -> Vec<String> {
    let end = end(model, station, style, pages);
    let room = most.saturating_sub(height(&end, style) + 1);
    let mut lines = vec![String::new()];
    lines.extend(notes(&model.notes, style, room));
    lines.extend(end);
    lines
}

/// Of what does not fit, the oldest is left out, and that is said.
fn notes(notes: &[String], style: Style, room: usize) -> Vec<String> {
    let all = |left_out: usize| {
        let mut page = Page::new(style);
        if left_out > 0 {
            page.faint(&format!("({left_out} older messages are not shown: no room)"));
        }
        notes.iter().skip(left_out).for_each(|note| page.sentence(note));
        page.lines
    };
    let fit = (0..=notes.len()).map(all).find(|lines| height(lines, style) <= room);
    fit.unwrap_or_default()
}

/// Whether it is safe to unplug, and the keys.
fn end(
    model: &Model,
    station: &Station,
    style: Style,
    pages: Option<(usize, usize)>,
) -> Vec<String> {
    let mut page = Page::new(style);
    let state = state(model, station, &page);
    page.lines.push(state);
    if let Some(asking) = &model.asking {
        page.asking(asking);
        return page.lines;
    }
    if let Some(question) = station.question {
        page.title(match question {
            Question::PowerOff => "Disks are attached. Press p again to power off all the same.",
            Question::Restart => "Disks are attached. Press r again to restart all the same.",
            Question::Detach => {
                "Disks are attached. Press d again to take them away from the hosts."
            }
        });
        return page.lines;
    }
    let lend = if station.lending { "d detach all hosts" } else { "l lend again" };
    let mut keys = vec!["p power off".to_owned(), "r restart".to_owned(), lend.to_owned()];
    match model.pairing {
        Some(Pairing::Code { .. }) => keys.push("c large code".to_owned()),
        Some(Pairing::Stopped) => keys.push("c new code".to_owned()),
        Some(Pairing::Later) | None => {}
    }
    if let Some((at, of)) = pages {
        keys.push(format!("space more disks ({at} of {of})"));
    }
    page.lines.extend(filled(&keys, "   ", style.width));
    page.lines
}

fn state(model: &Model, station: &Station, page: &Page) -> String {
    let attached = model.disks.iter().filter(|disk| !disk.attached.is_empty()).count();
    if station.flushing {
        page.ink(Ink::Alarm, "Writing to the disks: do not unplug or power off.")
    } else if attached > 0 {
        let disks = if attached == 1 { "1 disk is" } else { &format!("{attached} disks are") };
        page.ink(
            Ink::Alarm,
            &format!("{disks} attached: detach on the other machine before you unplug."),
        )
    } else {
        page.ink(Ink::Typed, "Nothing is attached: safe to unplug and to power off.")
    }
}

fn total(blocks: &[Vec<String>], style: Style) -> usize {
    blocks.iter().map(|block| height(block, style)).sum()
}

/// Blocks on as many pages as they need; a block stays whole. There is a page at least.
fn pages(blocks: Vec<Vec<String>>, room: usize, style: Style) -> Vec<Vec<String>> {
    let mut pages: Vec<Vec<String>> = Vec::new();
    for block in blocks {
        let fits = |page: &&mut Vec<String>| height(page, style) + height(&block, style) <= room;
        match pages.last_mut().filter(fits) {
            Some(page) => page.extend(block),
            None => pages.push(block),
        }
    }
    if pages.is_empty() { vec![Vec::new()] } else { pages }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::Host;
    use crate::attach::{Endpoint, Nbd};

    fn disk(n: usize) -> Disk {
        Disk {
            title: format!("/dev/sd{}", char::from(b'a' + u8::try_from(n).unwrap())),
            nqn: format!("nqn.2014-08.org.nvmexpress:uuid:00000000-0000-8000-8000-{n:012}"),
            short: format!("sd{}", char::from(b'a' + u8::try_from(n).unwrap())),
            size: 500_107_862_016,
            block_size: 512,
            model: "Example 500".to_owned(),
            serial: format!("S{n}"),
            access: Access::ReadOnly,
            attached: Vec::new(),
            read: 0,
            written: 0,
            writes: Some(0),
        }
    }

    fn model(disks: usize) -> Model {
        let at = |address: &str, interface: Option<&str>| Endpoint {
            address: address.parse().unwrap(),
            interface: interface.map(str::to_owned),
            port: 4420,
            keyed: false,
        };
        Model {
            machine: "laptop".to_owned(),
            endpoints: vec![at("169.254.7.9", None), at("fe80::1", Some("eth0"))],
            nbd: vec![Nbd::Net(Endpoint { port: 10809, ..at("169.254.7.9", None) })],
            digests: false,
            disks: (0..disks).map(disk).collect(),
            pairing: None,
            asking: None,
            notes: Vec::new(),
        }
    }

    fn station() -> Station {
        Station {
            hardware: "Example Laptop 13, serial L1".to_owned(),
            lending: true,
            ..Station::default()
        }
    }

    const SMALL: Style = Style { width: 80, color: false, utf8: false };

    #[test]
    fn one_disk_on_a_small_window() {
        let mut model = model(1);
        model.disks[0].attached =
            vec![Host { name: "host-nqn".to_owned(), address: "169.254.1.2".parse().unwrap() }];
        model.disks[0].read = 12_000_000;
        let text = board(&model, &station(), SMALL, 25).join("\n");
        let wanted = "\
storagetm: this machine lends its disks to the machine it is plugged into
Example Laptop 13, serial L1

Open: whoever reaches this machine gets the disks, and nothing is encrypted.
Type on the other machine, as root, one of these lines:
    nvme connect-all -t tcp -a 169.254.7.9 -s 4420
    nvme connect-all -t tcp -a fe80::1 -s 4420 --host-iface eth0
(eth0: there, the name of its own network interface)

/dev/sda: Example 500
  500.1 GB (465.8 GiB), serial S0, read-only, nbd://169.254.7.9/sda
  attached by host-nqn at 169.254.1.2, 12 MB read, 0 bytes written by hosts
  0 writes to it since power-on
    nvme connect -t tcp -a 169.254.7.9 -s 4420 -n nqn.2014-08.org.nvmexpress:uuid:00000000-0000-8000-8000-000000000000
    nvme connect -t tcp -a fe80::1 -s 4420 -n nqn.2014-08.org.nvmexpress:uuid:00000000-0000-8000-8000-000000000000 --host-iface eth0






1 disk is attached: detach on the other machine before you unplug.
p power off   r restart   d detach all hosts";
        assert_eq!(text, wanted);
    }

    #[test]
    fn many_disks_fit_by_leaving_lines_out_and_then_by_pages() {
        for disks in 0..12 {
            let model = model(disks);
            let mut seen = 0;
            for page in 0..6 {
                let station = Station { page, ..station() };
                let lines = board(&model, &station, SMALL, 25);
                assert!(height(&lines, SMALL) <= 25, "{disks} disks, page {page}");
                assert!(lines.iter().any(|line| line.contains("connect-all -t tcp -a 169")));
                assert!(lines.last().unwrap().starts_with("p power off"));
                seen += lines.iter().filter(|line| line.starts_with("/dev/sd")).count();
            }
            assert!(seen >= disks, "{disks} disks, {seen} seen");
        }
    }

    #[test]
    fn a_small_window_has_room_for_the_code_the_disks_and_the_keys() {
        let mut model = model(2);
        model.endpoints.iter_mut().for_each(|at| at.keyed = true);
        model.notes = vec!["note: ".repeat(10)];
        let link = "storagetm:pair?code=aaaaaaaaaaaaaaaaaaaaaaaaaa&at=169.254.7.9:4420".to_owned();
        model.pairing = Some(Pairing::Code { digits: "12345678".to_owned(), link });
        let lines = board(&model, &station(), SMALL, 24);
        let text = lines.join("\n");
        assert!(height(&lines, SMALL) <= 24, "{text}");
        for wanted in ["storagetm pair 169.254.7.9", "1234 5678", "/dev/sda", "c large code"] {
            assert!(text.contains(wanted), "{text}");
        }
        let large = Station { large: true, ..station() };
        let lines = board(&model, &large, Style { utf8: true, ..SMALL }, 40);
        assert!(lines.len() <= 40 && lines.iter().any(|line| line.contains('\u{2584}')));
        let lines = board(&model, &large, SMALL, 24);
        assert!(lines.len() <= 24 && lines.last().unwrap() == "c back", "{lines:?}");
        model.asking =
            Some(crate::Asking { name: "laptop".to_owned(), address: [169, 254, 1, 2].into() });
        let text = board(&model, &station(), SMALL, 24).join("\n");
        assert!(text.contains("wants to CHANGE") && text.contains("Press y"), "{text}");
    }

    #[test]
    fn many_notes_take_neither_the_lines_to_be_typed_nor_the_disks_off_the_screen() {
        let mut model = model(2);
        model.notes = (0..12).map(|n| format!("note {n}: {}", "word ".repeat(20))).collect();
        for rows in [24, 25] {
            let lines = board(&model, &station(), SMALL, rows);
            let text = lines.join("\n");
            assert!(height(&lines, SMALL) <= rows, "{text}");
            assert!(text.contains("/dev/sda") && text.contains("p power off"), "{text}");
            assert!(text.contains("older messages are not shown"), "{text}");
            assert!(text.contains("note 11") && !text.contains("note 0:"), "{text}");
        }
    }

    #[test]
    fn a_disk_that_many_hosts_have_stays_short() {
        let mut model = model(1);
        let host = |n| Host { name: "h".to_owned(), address: [169, 254, 1, n].into() };
        model.disks[0].attached = (1..=100).map(host).collect();
        let text = board(&model, &station(), SMALL, 25).join("\n");
        let wanted = "attached from 169.254.1.1 and 169.254.1.2 and 169.254.1.3 and 97 more";
        assert!(text.contains(wanted), "{text}");
    }

    #[test]
    fn a_disk_that_was_written_to_is_an_alarm() {
        let mut model = model(1);
        model.disks[0].writes = Some(3);
        let text = board(&model, &station(), Style { color: true, ..SMALL }, 25).join("\n");
        assert!(text.contains("\x1b[1;33m3 writes to it since power-on\x1b[0m"), "{text}");
    }

    #[test]
    fn safe_to_unplug_is_said_only_when_it_is() {
        let mut model = model(1);
        let last = |model: &Model, station: &Station| board(model, station, SMALL, 25).join("\n");
        assert!(last(&model, &station()).contains("safe to unplug"));
        let flushing = Station { flushing: true, ..station() };
        assert!(!last(&model, &flushing).contains("safe"));
        model.disks[0].attached =
            vec![Host { name: "h".to_owned(), address: "169.254.1.2".parse().unwrap() }];
        assert!(!last(&model, &station()).contains("safe"));
        let asked = Station { question: Some(Question::PowerOff), ..station() };
        assert!(last(&model, &asked).contains("Press p again"));
    }

    #[test]
    fn a_tiny_window_shows_what_matters_and_does_not_fail() {
        for rows in 0..12 {
            for width in [0, 1, 20] {
                board(&model(3), &station(), Style { width, ..SMALL }, rows);
            }
        }
    }
}
