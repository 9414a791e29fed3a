use std::time::Instant;

use protocol::Protocol;

use super::*;
use crate::example::{self, host};
use crate::{KeptByHost, KeptChanges, Key, Link};

const SMALL: Style = Style { width: 80, color: false, utf8: false };

fn render(model: &Model, state: &State, style: Style, rows: usize) -> String {
    let lines = screen(model, state, style, rows);
    let used = height(&lines, style.width);
    assert!(used <= rows, "{used} rows of {rows}:\n{}", lines.join("\n"));
    lines.join("\n")
}

fn after_keys(keys: &[Key], model: &Model) -> State {
    let mut state = State::default();
    for key in keys {
        state.handle_key(*key, model, Instant::now());
    }
    state
}

#[test]
fn one_disk_on_a_small_window() {
    let mut model = example::target_mode(1);
    model.disks[0].attached = vec![host("vm")];
    model.disks[0].read = 12_000_000;
    let wanted = "\
storagetm: this machine lends 1 disk to the machine it is plugged into  Example~

To pair the other machine, run there, as root (address 1 of 4: Tab):
    storagetm pair 169.254.7.9
with this code, valid once, for ten minutes:  1234 5678
and then one of these lines:
    storagetm attach 169.254.7.9/sda
    nvme connect-all -t tcp -a 169.254.7.9 -s 4420 --tls
    storagetm copy nvme://169.254.7.9/sda sda-copy.img

  DISK  SIZE      MODEL        SERIAL  ACCESS     ATTACHED BY
> sda   500.1 GB  Example 500  S0      read-only  vm (12 MB read)










1 disk is attached: detach there before you unplug. 0 writes since power-on.
? keys   Enter details   c large code   p power off   r restart
d detach all hosts   v overlay   t other tools";
    assert_eq!(render(&model, &State::default(), SMALL, 25), wanted);
}

#[test]
fn code_and_commands_are_shown_in_any_window() {
    let mut model = example::target_mode(12);
    model.notes = (0..8).map(|n| format!("note {n}: {}", "word ".repeat(20))).collect();
    for (width, rows) in [(80, 24), (80, 25), (100, 37), (200, 50), (60, 20)] {
        let text = render(&model, &State::default(), Style { width, ..SMALL }, rows);
        for line in [
            "storagetm pair 169.254.7.9",
            "1234 5678",
            "storagetm attach 169.254.7.9/sda",
            "nvme connect-all -t tcp -a 169.254.7.9 -s 4420 --tls",
            "> sda",
            "? keys",
        ] {
            assert!(text.contains(line), "{width}x{rows} lacks {line}:\n{text}");
        }
    }
    let text = render(&model, &State::default(), Style { width: 40, ..SMALL }, 15);
    for line in ["storagetm pair 169.254.7.9", "1234 5678", "more lines: t", "> sda", "? keys"] {
        assert!(text.contains(line), "40x15 lacks {line}:\n{text}");
    }
}

#[test]
fn hidden_disks_are_counted_and_reached_by_keys() {
    let model = example::target_mode(20);
    let text = render(&model, &State::default(), SMALL, 25);
    let first = text.matches("  sd").count() + 1;
    assert!(text.contains(&format!("{} more disks: down", 20 - first)), "{text}");
    let mut seen = vec![false; 20];
    for downs in 0..20 {
        let text = render(&model, &after_keys(&vec![Key::Down; downs], &model), SMALL, 25);
        assert_eq!(text.matches("\n> ").count(), 1, "{text}");
        for (at, disk) in model.disks.iter().enumerate() {
            seen[at] |= text.contains(&format!(" {} ", disk.short));
        }
    }
    assert!(seen.iter().all(|seen| *seen), "{seen:?}");
    let last = render(&model, &after_keys(&[Key::End], &model), SMALL, 25);
    assert!(last.contains("> sdt") && last.contains("more disks: "), "{last}");
    assert!(last.contains("storagetm attach 169.254.7.9/sdt"), "{last}");
}

#[test]
fn hidden_messages_are_counted_and_shown_by_a_key() {
    let mut model = example::target_mode(12);
    model.notes = (0..8).map(|n| format!("note {n}: {}", "word ".repeat(20).trim())).collect();
    let text = render(&model, &State::default(), SMALL, 25);
    assert!(text.contains("note 7") && text.contains("7 more messages: n"), "{text}");
    let mut all = String::new();
    for downs in 0..8 {
        let keys = [vec![Key::Byte(b'n')], vec![Key::Down; downs]].concat();
        all += &render(&model, &after_keys(&keys, &model), SMALL, 25);
    }
    assert!((0..8).all(|n| all.contains(&format!("note {n}:"))), "{all}");
}

#[test]
fn each_address_has_its_commands() {
    let model = example::target_mode(1);
    let at = |tabs| render(&model, &after_keys(&vec![Key::Byte(b'\t'); tabs], &model), SMALL, 25);
    assert!(at(1).contains("    storagetm pair fe80::1%INTERFACE\n"), "{}", at(1));
    let line = "nvme connect-all -t tcp -a fe80::1 -s 4420 --host-iface INTERFACE --tls";
    assert!(at(1).contains(line) && at(1).contains("INTERFACE: the name of its own"), "{}", at(1));
    assert!(at(2).contains("storagetm pair 169.254.99.200\n"), "{}", at(2));
    assert!(at(3).contains("storagetm pair fe80::2%INTERFACE\n"), "{}", at(3));
    assert_eq!(at(4), at(0));
}

#[test]
fn nbd_commands_are_shown_where_they_work() {
    let model = example::serve(1);
    let at = |tabs| render(&model, &after_keys(&vec![Key::Byte(b'\t'); tabs], &model), SMALL, 25);
    assert!(!at(0).contains("nbdcopy") && !at(1).contains("nbds:"), "{}", at(0));
    assert!(at(2).contains("    nbdcopy nbd://127.0.0.1/sda sda-copy.img\n"), "{}", at(2));
    assert!(at(2).contains("Code for machines at the other addresses:  1234 5678"), "{}", at(2));
}

#[test]
fn host_is_shown_by_its_configured_name() {
    let mut model = example::serve(1);
    model.disks[0].attached = vec![host("vm")];
    let text = render(&model, &State::default(), SMALL, 25);
    assert!(text.contains("read-only  vm\n") && !text.contains("2f6d1c52"), "{text}");
    let text = render(&model, &State::with_view(View::Details), SMALL, 25);
    assert!(text.contains("attached by vm at 169.254.1.2"), "{text}");
    model.disks[0].attached = vec![host(""), host("vm")];
    let text = render(&model, &State::default(), SMALL, 25);
    assert!(text.contains("host 2f6d1c52 + 1 more"), "{text}");
}

#[test]
fn safe_to_unplug_is_shown_only_when_safe() {
    let mut model = example::target_mode(1);
    let at = |model: &Model| render(model, &State::default(), SMALL, 25);
    assert!(at(&model).contains("safe to unplug"));
    model.target_mode.as_mut().unwrap().flushing = true;
    assert!(!at(&model).contains("safe"));
    model.target_mode.as_mut().unwrap().flushing = false;
    model.disks[0].attached = vec![host("vm")];
    assert!(!at(&model).contains("safe"));
    let text = render(&model, &after_keys(&[Key::Byte(b'p')], &model), SMALL, 25);
    assert!(text.contains("Press p again"), "{text}");
}

#[test]
fn writes_are_highlighted_in_target_mode() {
    let mut model = example::target_mode(2);
    model.disks[1].writes = Some(3);
    let text = render(&model, &State::default(), Style { color: true, ..SMALL }, 25);
    assert!(text.contains("\x1b[1;33mWrites since power-on: sdb 3.\x1b[0m"), "{text}");
    assert!(!text.contains("0 writes"));
}

#[test]
fn writes_outside_target_mode_are_not_shown() {
    let mut model = example::serve(2);
    model.disks[1].writes = Some(3);
    let text = render(&model, &State::default(), SMALL, 25);
    assert!(!text.contains("Writes since power-on"), "{text}");
}

#[test]
fn write_access_request_is_on_every_page() {
    let mut model = example::serve(1);
    model.access_request = Some(example::access_request());
    let views =
        [View::Overview, View::Details, View::Commands, View::Messages, View::Code, View::Keys];
    for view in views {
        let text = render(&model, &State::with_view(view), SMALL, 25);
        assert!(text.contains("wants to CHANGE") && text.contains("y allow it"), "{text}");
    }
}

#[test]
fn missing_code_is_explained() {
    let mut model = example::serve(1);
    let at = |model: &Model| render(model, &State::default(), Style { width: 400, ..SMALL }, 25);
    for (pairing, part) in [
        (None, "is shown in a moment"),
        (Some(Pairing::Delayed), "A wrong code was tried"),
        (Some(Pairing::LockedOut), "until c is pressed"),
        (Some(Pairing::Unavailable(crate::Unavailable::NoTerminal)), "--pair"),
        (Some(Pairing::Unavailable(crate::Unavailable::Disabled)), "storagetm.pair=no"),
    ] {
        model.pairing = pairing;
        let text = at(&model);
        assert!(text.contains(part), "{text}");
        assert!(text.contains("With a key, run there"), "{text}");
    }
    model.pairing = Some(example::code());
    model.endpoints.retain(|at| at.protocol != Protocol::Nvme);
    let text = at(&model);
    let wanted = "No code is shown: pairing requires NVMe/TCP, and only NBD is served here. Serve \
                  NVMe/TCP, too (--protocol nvme,nbd), or add a host here (storagetm host add NQN) \
                  and give it its key (storagetm key export NAME --nbd).";
    assert!(text.contains(wanted), "{text}");
    assert!(!text.contains("1234"), "{text}");
}

#[test]
fn machine_without_disks_is_explained() {
    let text = render(&example::serve(0), &State::default(), SMALL, 25);
    assert!(text.contains("--allow-in-use") && text.contains("storagetm image"), "{text}");
    assert!(!text.contains("storagetm attach"), "{text}");
    let text = render(&example::target_mode(0), &State::default(), SMALL, 25);
    assert!(text.contains("No disk is lent.") && !text.contains("--all"), "{text}");
    let mut model = example::target_mode(0);
    model.endpoints.clear();
    let text = render(&model, &State::default(), SMALL, 25);
    assert!(text.contains("plug in a cable"), "{text}");
    for (link, reason) in [(Link::Up, "the cable is connected"), (Link::NoCard, "no network card")]
    {
        model.link = link;
        let text = render(&model, &State::default(), SMALL, 25);
        assert!(text.contains(reason) && !text.contains("plug in"), "{text}");
    }
}

#[test]
fn hostile_text_is_escaped() {
    let mut model = example::target_mode(1);
    let hostile = "\x1b]0;owned\x07\n\u{202e}".to_owned();
    (model.machine, model.notes) = (hostile.clone(), vec![hostile.clone()]);
    model.target_mode.as_mut().unwrap().hardware.clone_from(&hostile);
    let disk = &mut model.disks[0];
    (disk.title, disk.short, disk.model) = (hostile.clone(), hostile.clone(), hostile.clone());
    (disk.serial, disk.contents) = (hostile.clone(), hostile.clone());
    disk.id = hostile.as_str().into();
    disk.attached = vec![host(&hostile), crate::Host { nqn: hostile.clone(), ..host("") }];
    let mut pending = model.clone();
    pending.access_request =
        Some(crate::AccessRequest { name: hostile, ..example::access_request() });
    let views =
        [View::Overview, View::Details, View::Commands, View::Messages, View::Code, View::Keys];
    for (model, view) in [model, pending].iter().flat_map(|model| views.map(|view| (model, view))) {
        for utf8 in [false, true] {
            for line in screen(model, &State::with_view(view), Style { utf8, ..SMALL }, 60) {
                assert!(line.chars().all(|c| !c.is_control() && c != '\u{202e}'), "{line:?}");
            }
        }
    }
}

#[test]
fn non_ascii_names_are_shown_in_utf8() {
    let mut model = example::serve(1);
    model.disks[0].model = "Müller 磁碟".to_owned();
    let text = render(&model, &State::default(), Style { utf8: true, ..SMALL }, 25);
    assert!(text.contains("Müller 磁碟  S0 "), "{text}");
    assert!(render(&model, &State::default(), SMALL, 25).is_ascii());
}

#[test]
fn page_with_more_below_is_nearly_full() {
    let mut model = example::serve(1);
    let iscsi =
        protocol::endpoint::Endpoint { protocol: Protocol::Iscsi, ..model.endpoints[0].clone() };
    model.endpoints.push(iscsi);
    for rows in [20, 25, 30] {
        let keys = [Key::Byte(b't'), Key::PageDown];
        for pressed in 1..=keys.len() {
            let text = render(&model, &after_keys(&keys[..pressed], &model), SMALL, rows);
            let empty = text.lines().filter(|line| line.is_empty()).count();
            assert!(!text.contains(" below: ") || empty <= 6, "{rows} rows:\n{text}");
            assert!(!text.contains("0 more"), "{text}");
        }
    }
}

#[test]
fn hidden_details_are_reached_by_keys() {
    let mut model = example::serve(1);
    model.disks[0].attached = (0..30).map(|n| host(&format!("host-{n}"))).collect();
    let whole = render(&model, &after_keys(&[Key::Byte(b'\r')], &model), SMALL, 99);
    for (width, rows) in [(80, 15), (80, 25), (60, 15)] {
        let mut all = String::new();
        for downs in 0..40 {
            let keys = [vec![Key::Byte(b'\r')], vec![Key::PageDown; downs]].concat();
            let style = Style { width, ..SMALL };
            all += &render(&model, &after_keys(&keys, &model), style, rows);
            all.push('\n');
        }
        let commands = whole.lines().filter(|line| line.starts_with("  "));
        for line in commands.filter(|line| !line.contains(", ")) {
            assert!(all.contains(&format!("{line}\n")), "{width}x{rows} lacks {line}");
        }
    }
}

#[test]
fn too_small_window_is_reported() {
    let model = example::serve(1);
    let is_reported = |downs| {
        let keys = [vec![Key::Byte(b'\r')], vec![Key::PageDown; downs]].concat();
        let text = render(&model, &after_keys(&keys, &model), Style { width: 12, ..SMALL }, 11);
        text.contains("This window is too small.")
    };
    assert!((0..12).any(is_reported));
}

#[test]
fn contents_of_disks_are_shown_where_there_is_room() {
    let mut model = example::target_mode(2);
    model.disks[1].contents = "ext4 \"home\"".to_owned();
    let wide = render(&model, &State::default(), Style { width: 120, ..SMALL }, 25);
    assert!(wide.contains("CONTENTS") && wide.contains("ext4 \"home\""), "{wide}");
    let small = render(&model, &State::default(), Style { width: 60, ..SMALL }, 25);
    assert!(!small.contains("CONTENTS"), "{small}");
    let mut state = State::with_view(View::Details);
    state.selected = 1;
    let details = render(&model, &state, SMALL, 25);
    assert!(details.contains("contents: ext4 \"home\""), "{details}");
    let unknown = render(&example::target_mode(2), &State::default(), SMALL, 25);
    assert!(!unknown.contains("CONTENTS"), "{unknown}");
}

#[test]
fn any_window_size_works() {
    let mut model = example::target_mode(3);
    model.notes = vec!["a note of some length, which is broken".to_owned()];
    for rows in 0..30 {
        for width in [0, 1, 7, 20, 40, 80] {
            for view in [View::Overview, View::Details, View::Commands, View::Messages, View::Code]
            {
                let style = Style { width, ..SMALL };
                render(&model, &State::with_view(view), style, rows);
            }
        }
    }
}

#[test]
fn large_code_has_a_qr_code_where_there_is_room() {
    let model = example::serve(1);
    let state = State::with_view(View::Code);
    let style = Style { utf8: true, ..SMALL };
    assert!(render(&model, &state, style, 40).contains('\u{2584}'));
    let text = render(&model, &state, SMALL, 24);
    assert!(text.contains("#####") && text.ends_with("c back"), "{text}");
    assert!(render(&model, &state, Style { width: 40, ..SMALL }, 15).contains("1234 5678"));
}

#[test]
fn picture_ends_each_line_and_does_not_scroll() {
    let lines = ["a".to_owned(), "b".to_owned()];
    assert_eq!(frame(&lines, 80), "\x1b[Ha\x1b[K\nb\x1b[K\x1b[J");
}

#[test]
fn last_character_of_a_full_row_is_kept() {
    let lines = ["\x1b[1mabcd\x1b[0m".to_owned(), "abcdefgh".to_owned(), String::new()];
    let wanted = "\x1b[H\x1b[1mabcd\x1b[0m\nabcdefgh\n\x1b[K\x1b[J";
    assert_eq!(frame(&lines, 4), wanted);
}

#[test]
fn overlay_is_shown_on_a_small_window_of_target_mode() {
    let mut model = example::target_mode(2);
    let style = Style { width: 80, ..Style::PLAIN };
    model.disks.iter_mut().for_each(|disk| disk.writes = Some(0));
    let shown = render(&model, &State::default(), style, 25);
    assert!(shown.contains("v overlay"), "{shown}");
    model.disks[0].access = export::Access::Writable;
    model.disks[0].kept = Some(KeptChanges { bytes: 37_200_000, ..KeptChanges::default() });
    let shown = render(&model, &State::default(), style, 25);
    for text in ["overlay 37.2 MB", "read-only", "v end overlay", "0 writes since power-on"] {
        assert!(shown.contains(text), "{text}: {shown}");
    }
    assert!(shown.lines().count() <= 25 && shown.lines().all(|line| line.len() <= 80), "{shown}");
    let asked = after_keys(&[Key::Byte(b'v')], &model);
    let shown = render(&model, &asked, style, 25);
    assert!(shown.contains("will be lost. Press v again to lend it read-only."), "{shown}");
}

#[test]
fn changes_of_an_overlay_are_shown_for_each_host() {
    let mut model = example::serve(1);
    let nqn = "nqn.2014-08.org.nvmexpress:uuid:2f6d1c52-0000-4000-8000-000000000000".to_owned();
    let kept = |host: &str, has_key, bytes| KeptByHost { host: host.to_owned(), has_key, bytes };
    let by_host = vec![kept(&nqn, true, 30_000_000), kept(&nqn, false, 7_200_000)];
    model.disks[0].access = export::Access::Writable;
    model.disks[0].kept = Some(KeptChanges { in_files: false, bytes: 37_200_000, by_host });
    let mut page = Page::new(Style::PLAIN);
    facts(&model.disks[0], &mut page);
    let lines = page.lines.join("\n");
    assert!(lines.contains("overlay: 37.2 MB of changes in memory"), "{lines}");
    assert!(lines.contains("30 MB by host 2f6d1c52,"), "{lines}");
    assert!(lines.contains("7.2 MB by host 2f6d1c52 (no key)"), "{lines}");
}
