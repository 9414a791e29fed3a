//! Renders model and state for a window of a given size. What does not fit is counted, along with
//! the key that shows it.

mod overview;
mod pages;

use crate::page::{Page, Role, group_digits, wrap};
use crate::state::{Confirmation, View};
use crate::width::{columns, fit, height};
use crate::{Disk, Model, Pairing, State, Style, UsbPort, code, reading};
use overview::overview;

pub(crate) use overview::no_disk;
pub(crate) use pages::{facts, hosts};

/// Renders the window as lines that take at most `rows` rows.
pub fn screen(model: &Model, state: &State, style: Style, rows: usize) -> Vec<String> {
    let footer = footer(model, state, style, rows);
    let room = rows.saturating_sub(height(&footer, style.width));
    let body = match (state.view, &model.pairing) {
        (View::Code, Some(Pairing::Code { digits, link })) if model.access_request.is_none() => {
            large_code(digits, link, style, room)
        }
        (View::Reading, _) if model.access_request.is_none() => match &model.reading {
            Some(access) => reading::page(access, (model, state), style, room),
            None => overview(model, state, style, room),
        },
        (View::Overview | View::Code | View::Reading, _) => overview(model, state, style, room),
        (View::Details, _) => pages::details(model, state, style, room),
        (View::Commands, _) => pages::lines(model, state, style, room),
        (View::Messages, _) => pages::messages(model, state, style, room),
        (View::Keys, _) => pages::keys(model, state, style, room),
    };
    let mut lines = fit(body, style.width, room);
    let blank = room.saturating_sub(height(&lines, style.width));
    lines.extend(std::iter::repeat_n(String::new(), blank));
    lines.extend(footer);
    fit(lines, style.width, rows)
}

/// Returns the terminal output that draws the lines over the current content without flicker.
pub fn frame(lines: &[String], width: usize) -> String {
    // After the last character of a full row the cursor stays on it, so that clearing would erase
    // the character.
    let is_full = |line: &str| matches!(columns(line), n @ 1.. if n.is_multiple_of(width.max(1)));
    let clear = |line: &String| if is_full(line) { "" } else { "\x1b[K" };
    let below = if lines.last().is_some_and(|line| is_full(line)) { "" } else { "\x1b[J" };
    let lines: Vec<String> = lines.iter().map(|line| format!("{line}{}", clear(line))).collect();
    format!("\x1b[H{}{below}", lines.join("\n"))
}

/// Renders the code in large digits and as a QR code, as far as there is room.
fn large_code(digits: &str, link: &str, style: Style, room: usize) -> Vec<String> {
    let mut lines = code::digits(digits);
    if lines.iter().any(|line| columns(line) > style.width) {
        lines = vec![group_digits(digits)];
    }
    let qr = code::qr(link, style.utf8);
    let wide = qr.iter().map(|line| columns(line)).max().unwrap_or(0);
    if wide <= style.width && lines.len() + qr.len() < room {
        lines.push(String::new());
        lines.extend(qr);
    }
    lines
}

/// Renders the footer of every page: status, pending question, keys.
fn footer(model: &Model, state: &State, style: Style, rows: usize) -> Vec<String> {
    let mut page = Page::new(style);
    if state.view == View::Code && model.access_request.is_none() {
        page.sentence("c back");
        return page.lines;
    }
    if state.view == View::Reading && model.access_request.is_none() && model.reading.is_some() {
        page.sentence("w back   c new code");
        return page.lines;
    }
    status(model, &mut page);
    if let Some(request) = &model.access_request {
        let line = format!(
            "{} at {} has the right code and wants to CHANGE the disks that are writable.",
            request.name, request.address
        );
        page.colored(Role::Warning, &line);
        page.sentence("y allow it   o let it only read   n refuse it");
        return page.lines;
    }
    if let Some(confirmation) = state.confirmation() {
        page.colored(Role::Title, &pending(confirmation, model));
        return page.lines;
    }
    let keys = wrap(&keys(model, state), "   ", style.width);
    // Keys cut off here are listed on the help page, whose key comes first.
    page.lines.extend(keys.into_iter().take((rows / 8).max(1)));
    page.lines
}

fn pending(confirmation: Confirmation, model: &Model) -> String {
    let (key, what) = match &confirmation {
        Confirmation::PowerOff => ("p", "to power off all the same"),
        Confirmation::Restart => ("r", "to restart all the same"),
        Confirmation::Detach => ("d", "to take them away from the hosts"),
        Confirmation::EndUsb => ("u", "to unplug the USB port"),
        Confirmation::SetOverlay { wanted: true, .. } => ("v", "to lend it with an overlay"),
        Confirmation::SetOverlay { wanted: false, .. } => ("v", "to lend it read-only"),
    };
    let why = match &confirmation {
        Confirmation::SetOverlay { wanted: false, title, .. } => {
            &format!("What was written to {title} will be lost.")
        }
        Confirmation::SetOverlay { wanted: true, title, .. } => &format!("{title} is attached."),
        Confirmation::EndUsb => "Disks are attached.",
        _ if !model.is_attached() => "Changes in overlays will be lost.",
        _ => "Disks are attached.",
    };
    format!("{why} Press {key} again {what}.")
}

/// Adds whether disks may be unplugged and, in target mode, the write counters.
fn status(model: &Model, page: &mut Page) {
    let attached = model.disks.iter().filter(|disk| !disk.attached.is_empty()).count();
    let disks = if attached == 1 { "1 disk is" } else { &format!("{attached} disks are") };
    let writes = model.target_mode.as_ref().map_or("", |_| writes(model, page));
    match &model.target_mode {
        Some(mode) if mode.flushing => {
            page.colored(Role::Warning, "Writing to the disks: do not unplug or power off.");
        }
        Some(_) if attached > 0 => page.colored(
            Role::Warning,
            &format!("{disks} attached: detach there before you unplug. {writes}"),
        ),
        Some(_) => page.colored(
            Role::Command,
            &format!("Nothing is attached: safe to unplug and to power off. {writes}"),
        ),
        None if attached > 0 => {
            page.colored(
                Role::Warning,
                &format!("{disks} attached: detach there before you end this."),
            );
        }
        None => page.colored(Role::Command, "Nothing is attached."),
    }
}

/// Returns the summary of the kernel's write counters; adds a line for disks that were written.
fn writes(model: &Model, page: &mut Page) -> &'static str {
    let written = model.disks.iter().filter(|disk| disk.writes.is_some_and(|count| count > 0));
    let each: Vec<String> =
        written.map(|disk| format!("{} {}", disk.short, disk.writes.unwrap_or_default())).collect();
    if !each.is_empty() {
        let line = format!("Writes since power-on: {}.", each.join(", "));
        page.colored(Role::Warning, &line);
        return "";
    }
    let all = !model.disks.is_empty() && model.disks.iter().all(|disk| disk.writes == Some(0));
    if all { "0 writes since power-on." } else { "" }
}

/// Returns the keys, most important first.
fn keys(model: &Model, state: &State) -> Vec<String> {
    let mut keys: Vec<&str> = vec!["? keys"];
    if state.view != View::Overview {
        keys.push("Enter back");
    } else if !model.disks.is_empty() {
        keys.push("Enter details");
    }
    match model.pairing {
        Some(Pairing::Code { .. }) => keys.push("c large code"),
        Some(Pairing::LockedOut) => keys.push("c new code"),
        _ => {}
    }
    if model.reading.is_some() {
        keys.push("w in a browser");
    }
    match &model.target_mode {
        Some(mode) => {
            let lend = if mode.serving { "d detach all hosts" } else { "l lend again" };
            keys.extend(["p power off", "r restart", lend]);
            match mode.usb {
                UsbPort::Absent => {}
                UsbPort::Idle => keys.push("u USB"),
                UsbPort::Waiting => keys.push("u cancel USB"),
                UsbPort::Serving => keys.push("u end USB"),
            }
            let selected = state.selected.min(model.disks.len().saturating_sub(1));
            match model.disks.get(selected).and_then(Disk::can_set_overlay) {
                Some(true) => keys.push("v overlay"),
                Some(false) => keys.push("v end overlay"),
                None => {}
            }
        }
        None => keys.push("Ctrl-C end"),
    }
    keys.push("t other tools");
    if !model.notes.is_empty() {
        keys.push("n messages");
    }
    keys.into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod test;
