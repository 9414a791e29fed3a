//! The pages behind the overview: one disk, the lines of all tools, all messages, the keys.

use std::slice;

use crate::page::{Ink, Page, attached_by};
use crate::table::traffic;
use crate::ways;
use crate::width::{fit, height};
use crate::{Disk, Model, State, Style, size};

/// One disk in full, with the lines of all tools for it.
pub(super) fn details(model: &Model, state: &State, style: Style, rows: usize) -> Vec<String> {
    let Some((disk, which)) = selected(model, state) else { return nothing(style) };
    let mut page = Page::new(style);
    page.rule(disk);
    page.sentence(&which);
    let mut paragraphs = vec![page.lines];
    let mut page = Page::new(style);
    facts(disk, &mut page);
    hosts(disk, &mut page);
    page.facts(&counters(disk, &page));
    paragraphs.push(page.lines);
    paragraphs.push(line_of_each(model, state, disk, style));
    scrolled(paragraphs, state.top, style, rows)
}

/// The lines of all tools for one disk.
pub(super) fn lines(model: &Model, state: &State, style: Style, rows: usize) -> Vec<String> {
    let Some((disk, which)) = selected(model, state) else { return nothing(style) };
    let addresses = ways::addresses(model);
    let mut page = Page::new(style);
    page.colored(Ink::Title, &format!("To be typed on the other machine, as root: {}", disk.short));
    page.sentence(&which);
    let mut paragraphs = vec![page.lines];
    let Some(at) = addresses.get(state.address % addresses.len().max(1)) else {
        return nothing(style);
    };
    let mut page = Page::new(style);
    if addresses.len() > 1 {
        let (at_now, of) = (state.address % addresses.len() + 1, addresses.len());
        page.sentence(&format!("Address {at_now} of {of}: {}. Tab: the next.", at.name()));
    }
    if at.has_interface() {
        ways::interface_note(&mut page);
    }
    paragraphs.push(page.lines);
    for line in
        at.lines(Some(disk), model.digests).into_iter().chain(at.other_lines(disk, model.digests))
    {
        let mut page = Page::new(style);
        page.sentence(&format!("{}:", line.what));
        page.typed(&line.text);
        paragraphs.push(page.lines);
    }
    let mut page = Page::new(style);
    needs(at, disk, &mut page);
    paragraphs.push(page.lines);
    paragraphs.retain(|paragraph| !paragraph.is_empty());
    scrolled(paragraphs, state.top, style, rows)
}

/// What the other machine needs for it.
fn needs(at: &ways::Address, disk: &Disk, page: &mut Page) {
    if at.is_keyed() {
        page.sentence(
            "To attach with a key, the other machine needs Linux 6.7 or newer with TLS and tlshd \
             (package ktls-utils); nvme-cli, if that is used, 2.9 or newer. storagetm copy needs \
             none of them.",
        );
    }
    if let Some(uri) = at.nbd_with_key(disk) {
        page.sentence(
            "NBD clients need the key of a HOST in a FILE (made here by storagetm key export KEY \
             --nbd --to FILE), and its name in the address:",
        );
        page.typed(&uri);
    }
}

/// All messages, the newest first.
pub(super) fn messages(model: &Model, state: &State, style: Style, rows: usize) -> Vec<String> {
    let paragraph = |note: &String| {
        let mut page = Page::new(style);
        page.sentence(note);
        page.lines
    };
    let mut paragraphs: Vec<Vec<String>> = model.notes.iter().rev().map(paragraph).collect();
    if paragraphs.is_empty() {
        paragraphs.push(vec!["No messages.".to_owned()]);
    }
    scrolled(paragraphs, state.top, style, rows)
}

/// What the keys do.
pub(super) fn keys(model: &Model, state: &State, style: Style, rows: usize) -> Vec<String> {
    let mut all = vec![
        "Up, Down, j, k        select a disk; PgUp, PgDn, Home, End: further",
        "Enter                 details of the disk, and back",
        "Tab, a                the lines for the next address",
        "t                     the lines of other tools",
        "n                     all messages",
        "c                     the code, large; a new one after too many wrong ones",
        "?                     this page",
    ];
    if model.target_mode.is_some() {
        all.extend([
            "p, r                  power off, restart",
            "d, l                  detach all hosts and lend nothing; lend again",
            "Ctrl-L                draw the screen anew",
        ]);
    } else {
        all.push("Ctrl-C                end");
    }
    let paragraphs = all.into_iter().map(|line| {
        let mut page = Page::new(style);
        page.sentence(line);
        page.lines
    });
    scrolled(paragraphs.collect(), state.top, style, rows)
}

fn nothing(style: Style) -> Vec<String> {
    let mut page = Page::new(style);
    page.sentence("There is no disk or no address to show.");
    page.lines
}

/// The selected disk, and which of all it is.
fn selected<'a>(model: &'a Model, state: &State) -> Option<(&'a Disk, String)> {
    let at = state.selected.min(model.disks.len().saturating_sub(1));
    let disk = model.disks.get(at)?;
    let of = model.disks.len();
    Some((disk, format!("Disk {} of {of}. Up, Down: the others.", at + 1)))
}

fn line_of_each(model: &Model, state: &State, disk: &Disk, style: Style) -> Vec<String> {
    let addresses = ways::addresses(model);
    let mut page = Page::new(style);
    let Some(at) = addresses.get(state.address % addresses.len().max(1)) else {
        return page.lines;
    };
    page.sentence("On the other machine, as root:");
    for line in
        at.lines(Some(disk), model.digests).into_iter().chain(at.other_lines(disk, model.digests))
    {
        page.typed(&line.text);
    }
    if at.has_interface() {
        ways::interface_note(&mut page);
    }
    page.lines
}

/// Size, serial number, contents, access.
pub(crate) fn facts(disk: &Disk, page: &mut Page) {
    let mut facts = vec![size(disk.size)];
    if !disk.serial.is_empty() {
        facts.push(format!("serial {}", page.safe(&disk.serial)));
    }
    facts.push(format!("blocks of {} bytes", disk.block_size));
    page.facts(&facts);
    if !disk.contents.is_empty() {
        let contents = page.safe(&disk.contents);
        page.facts(&[format!("contents: {contents}")]);
    }
    let access = page.access(disk);
    page.push(format!("  {access}"));
}

/// The hosts that have attached a disk.
pub(crate) fn hosts(disk: &Disk, page: &mut Page) {
    if disk.attached.is_empty() {
        page.push(format!("  {}", page.ink(Ink::Faint, "not attached")));
    }
    for host in &disk.attached {
        let text = attached_by(host, page.style.utf8);
        page.push(format!("  {}", page.ink(Ink::Title, &text)));
    }
}

/// Bytes that hosts have read and written, and what the kernel counts.
fn counters(disk: &Disk, page: &Page) -> Vec<String> {
    let kernel = match disk.writes {
        None => None,
        Some(0) => Some("0 writes to it since power-on".to_owned()),
        Some(count) => Some(page.ink(Ink::Alarm, &format!("{count} writes to it since power-on"))),
    };
    let traffic = traffic(disk).map(|traffic| format!("{traffic} by hosts"));
    traffic.into_iter().chain(kernel).collect()
}

/// Columns of the sentence that counts what is not shown.
const SIGN: usize = 40;

/// The paragraphs from `top` on, as many as fit, with the number of those above and below.
fn scrolled(paragraphs: Vec<Vec<String>>, top: usize, style: Style, rows: usize) -> Vec<String> {
    let total: Vec<String> = paragraphs.iter().flatten().cloned().collect();
    let spaced = height(&total, style.width) + paragraphs.len() <= rows && paragraphs.len() < 8;
    let fits_whole = height(&total, style.width) <= rows;
    let sign = SIGN.div_ceil(style.width.max(1));
    let room = if fits_whole { rows } else { rows.saturating_sub(sign) };
    let paragraphs = split(paragraphs, style.width, room);
    let of = paragraphs.len();
    let top = if fits_whole { 0 } else { top.min(of.saturating_sub(1)) };
    let mut lines: Vec<String> = Vec::new();
    let mut shown = 0;
    for paragraph in paragraphs.into_iter().skip(top) {
        let used = height(&lines, style.width);
        if shown > 0 && used + height(&paragraph, style.width) > room {
            break;
        }
        if spaced && shown > 0 {
            lines.push(String::new());
        }
        lines.extend(paragraph);
        shown += 1;
    }
    let below = of - top - shown;
    if top + below > 0 {
        let page = Page::new(style);
        let more = format!("{top} more above, {below} more below: PgUp, PgDn");
        // One line may be higher than the window.
        let all = lines.len();
        lines = fit(lines, style.width, room);
        let more = if lines.len() < all { "This window is too small.".to_owned() } else { more };
        lines.push(page.ink(Ink::Faint, &more));
    }
    lines
}

/// Makes several of a paragraph that is higher than `room`.
fn split(paragraphs: Vec<Vec<String>>, width: usize, room: usize) -> Vec<Vec<String>> {
    let mut parts: Vec<Vec<String>> = Vec::new();
    for paragraph in paragraphs {
        parts.push(Vec::new());
        for line in paragraph {
            match parts.last_mut() {
                Some(part)
                    if part.is_empty()
                        || height(part, width) + height(slice::from_ref(&line), width) <= room =>
                {
                    part.push(line)
                }
                _ => parts.push(vec![line]),
            }
        }
    }
    parts
}
