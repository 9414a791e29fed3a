//! The other pages: one disk, commands of all tools, messages, keys.

use std::slice;

use crate::instructions;
use crate::page::{Page, Role, attached_by};
use crate::table::traffic;
use crate::width::{fit, height};
use crate::{Disk, KeptByHost, Model, State, Style, decimal, short_host_nqn, size};

/// Renders the details of a disk, with the commands of all tools.
pub(super) fn details(model: &Model, state: &State, style: Style, rows: usize) -> Vec<String> {
    let Some((disk, which)) = selected(model, state) else { return nothing(style) };
    let mut page = Page::new(style);
    page.disk_heading(disk);
    page.sentence(&which);
    let mut paragraphs = vec![page.lines];
    let mut page = Page::new(style);
    facts(disk, &mut page);
    hosts(disk, &mut page);
    page.facts(&counters(disk, &page));
    paragraphs.push(page.lines);
    paragraphs.push(line_of_each(model, state, disk, style));
    scrolled(paragraphs, state.scroll, style, rows)
}

/// Renders the commands of all tools for a disk.
pub(super) fn lines(model: &Model, state: &State, style: Style, rows: usize) -> Vec<String> {
    let Some((disk, which)) = selected(model, state) else { return nothing(style) };
    let addresses = instructions::addresses(model);
    let mut page = Page::new(style);
    page.colored(
        Role::Title,
        &format!("To be typed on the other machine, as root: {}", disk.short),
    );
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
        instructions::interface_note(&mut page);
    }
    paragraphs.push(page.lines);
    for line in at.commands(Some(disk), model.digests) {
        let mut page = Page::new(style);
        page.sentence(&format!("{}:", line.purpose));
        page.command(&line.text);
        paragraphs.push(page.lines);
    }
    // The requirements of the other machine.
    for (text, uri) in at.key_help(disk) {
        let mut page = Page::new(style);
        page.sentence(text);
        uri.iter().for_each(|uri| page.command(uri));
        paragraphs.push(page.lines);
    }
    paragraphs.retain(|paragraph| !paragraph.is_empty());
    scrolled(paragraphs, state.scroll, style, rows)
}

/// Renders all messages, the newest first.
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
    scrolled(paragraphs, state.scroll, style, rows)
}

/// Renders the help on the keys.
pub(super) fn keys(model: &Model, state: &State, style: Style, rows: usize) -> Vec<String> {
    let mut all = vec![
        "Up, Down, j, k        select a disk; PgUp, PgDn, Home, End: further",
        "Enter                 details of the disk, and back",
        "Tab, a                the lines for the next address",
        "t                     the lines of other tools",
        "n                     all messages",
        "c                     the code, large; a new one after too many wrong ones",
        "w                     in a browser: the code, QR code and certificate; there c: a new code",
        "?                     this page",
    ];
    if model.target_mode.is_some() {
        all.extend([
            "p, r                  power off, restart",
            "d, l                  detach all hosts and lend nothing; lend again",
            "u                     lend at the USB port, too, without a key; end that",
            "v                     overlay: hosts can write, and the disk is not changed; end that",
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
    scrolled(paragraphs.collect(), state.scroll, style, rows)
}

fn nothing(style: Style) -> Vec<String> {
    let mut page = Page::new(style);
    page.sentence("There is no disk or no address to show.");
    page.lines
}

/// Returns the selected disk, and its position as text.
fn selected<'a>(model: &'a Model, state: &State) -> Option<(&'a Disk, String)> {
    let at = state.selected.min(model.disks.len().saturating_sub(1));
    let disk = model.disks.get(at)?;
    let of = model.disks.len();
    Some((disk, format!("Disk {} of {of}. Up, Down: the others.", at + 1)))
}

fn line_of_each(model: &Model, state: &State, disk: &Disk, style: Style) -> Vec<String> {
    let addresses = instructions::addresses(model);
    let mut page = Page::new(style);
    let Some(at) = addresses.get(state.address % addresses.len().max(1)) else {
        return page.lines;
    };
    page.sentence("On the other machine, as root:");
    for line in at.commands(Some(disk), model.digests) {
        page.command(&line.text);
    }
    if at.has_interface() {
        instructions::interface_note(&mut page);
    }
    page.lines
}

/// Adds size, serial number, contents and access of a disk.
pub(crate) fn facts(disk: &Disk, page: &mut Page) {
    let mut facts = vec![size(disk.size)];
    if !disk.serial.is_empty() {
        facts.push(format!("serial {}", page.escape(&disk.serial)));
    }
    facts.push(format!("blocks of {} bytes", disk.block_size));
    page.facts(&facts);
    if !disk.contents.is_empty() {
        let contents = page.escape(&disk.contents);
        page.facts(&[format!("contents: {contents}")]);
    }
    let access = page.access(disk);
    page.push(format!("  {access}"));
    let by_host = disk.kept.iter().flat_map(|kept| &kept.by_host);
    let shares = by_host.map(|KeptByHost { host, has_key, bytes }| {
        let no_key = if *has_key { "" } else { " (no key)" };
        format!("{} by {}{no_key}", decimal(*bytes), short_host_nqn(host, page.style.utf8))
    });
    let shares: Vec<String> = shares.collect();
    if !shares.is_empty() {
        page.facts(&shares);
    }
}

/// Adds the hosts that have attached a disk.
pub(crate) fn hosts(disk: &Disk, page: &mut Page) {
    if disk.attached.is_empty() {
        page.push(format!("  {}", page.colorize(Role::Dim, "not attached")));
    }
    for host in &disk.attached {
        let text = attached_by(host, page.style.utf8);
        page.push(format!("  {}", page.colorize(Role::Title, &text)));
    }
}

/// Formats the traffic of hosts and the kernel's write counter.
fn counters(disk: &Disk, page: &Page) -> Vec<String> {
    let kernel = match disk.writes {
        None => None,
        Some(0) => Some("0 writes to it since power-on".to_owned()),
        Some(count) => {
            Some(page.colorize(Role::Warning, &format!("{count} writes to it since power-on")))
        }
    };
    let traffic = traffic(disk).map(|traffic| format!("{traffic} by hosts"));
    traffic.into_iter().chain(kernel).collect()
}

/// Maximum columns of the line that counts hidden paragraphs.
const COUNT_LINE: usize = 40;

/// Renders the paragraphs from `top` on that fit, with the counts of those above and below.
fn scrolled(paragraphs: Vec<Vec<String>>, top: usize, style: Style, rows: usize) -> Vec<String> {
    let total: Vec<String> = paragraphs.iter().flatten().cloned().collect();
    let spaced = height(&total, style.width) + paragraphs.len() <= rows && paragraphs.len() < 8;
    let fits_whole = height(&total, style.width) <= rows;
    let sign = COUNT_LINE.div_ceil(style.width.max(1));
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
        let more = match (top, below) {
            (0, below) => format!("{below} more below: PgDn"),
            (top, 0) => format!("{top} more above: PgUp"),
            (top, below) => format!("{top} more above, {below} more below: PgUp, PgDn"),
        };
        // A single paragraph may be higher than the window.
        let all = lines.len();
        lines = fit(lines, style.width, room);
        let more = if lines.len() < all { "This window is too small.".to_owned() } else { more };
        lines.push(page.colorize(Role::Dim, &more));
    }
    lines
}

/// Splits paragraphs that are higher than `room`.
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
