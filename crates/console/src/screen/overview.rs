//! The overview: all disks, one line each, below the commands for the other machine.

use protocol::commands::Effect;

use crate::instructions::{self, Address};
use crate::page::{Page, Role, disk_count, protocols};
use crate::reading;
use crate::table::table;
use crate::width::{columns, cut, height};
use crate::{Model, Pairing, State, Style};

/// Rows reserved for messages.
const MESSAGES: usize = 3;
/// Rows reserved for disks, before less important commands: heading, two disks, count of the
/// others.
const DISKS: usize = 4;

/// Lines that are shown together or not at all.
type Block = Vec<String>;

/// Renders the overview in `rows` rows.
pub(super) fn overview(model: &Model, state: &State, style: Style, rows: usize) -> Vec<String> {
    let title = title(model, style);
    let instructions = instructions(model, state, style);
    let mut room = rows.saturating_sub(1);
    let few = height(&messages(model, style, MESSAGES), style.width).min(room / 4);
    let disks = DISKS.min(model.disks.len() + 1);
    let instructions = first(instructions, style, room.saturating_sub(few + disks));
    room = room.saturating_sub(height(&instructions, style.width));
    let disks = self::disks(model, state, style, room.saturating_sub(few));
    room = room.saturating_sub(height(&disks, style.width));
    let messages = messages(model, style, room);
    room = room.saturating_sub(height(&messages, style.width));
    let mut lines = vec![title];
    for part in [instructions, disks, messages] {
        // Spare rows separate the parts.
        if room > 0 && !part.is_empty() {
            lines.push(String::new());
            room -= 1;
        }
        lines.extend(part);
    }
    lines
}

fn title(model: &Model, style: Style) -> String {
    let page = Page::new(style);
    let disks = disk_count(model.disks.len());
    let title = match &model.target_mode {
        Some(_) => {
            format!("storagetm: this machine lends {disks} to the machine it is plugged into")
        }
        None => format!(
            "storagetm: {} lends {disks} over {}",
            page.escape(&model.machine),
            protocols(model)
        ),
    };
    let title = cut(&title, style.width, style.utf8);
    let hardware = model.target_mode.as_ref().map(|mode| page.escape(&mode.hardware));
    let hardware = hardware.unwrap_or_default();
    let left = style.width.saturating_sub(columns(&title) + 2);
    let title = page.colorize(Role::Title, &title);
    if hardware.is_empty() || left < 8 {
        return title;
    }
    format!("{title}  {}", page.colorize(Role::Dim, &cut(&hardware, left, style.utf8)))
}

/// Returns as many blocks as fit, and the count of the others with the key that shows them.
fn first(blocks: Vec<Block>, style: Style, room: usize) -> Vec<String> {
    let all = blocks.len();
    for kept in (0..=all).rev() {
        let mut lines: Vec<String> = blocks.iter().take(kept).flatten().cloned().collect();
        if kept < all {
            let page = Page::new(style);
            lines.push(page.colorize(Role::Dim, &format!("{} more lines: t", all - kept)));
        }
        if height(&lines, style.width) <= room || kept == 1 {
            return lines;
        }
    }
    Vec::new()
}

/// Returns the commands for the other machine, most important first.
fn instructions(model: &Model, state: &State, style: Style) -> Vec<Block> {
    let addresses = instructions::addresses(model);
    let Some(at) = addresses.get(state.address % addresses.len().max(1)) else {
        let mut page = Page::new(style);
        page.sentence(model.link.sentence());
        return vec![page.lines];
    };
    let which = match addresses.len() {
        1 => String::new(),
        n => format!(" (address {} of {n}: Tab)", state.address % n + 1),
    };
    let mut blocks = vec![pairing_instructions(model, at, &which, style)];
    let disk = model.disks.get(state.selected.min(model.disks.len().saturating_sub(1)));
    let commands = at.commands(disk, model.digests).into_iter();
    let lines = commands.filter(|line| line.effect < Effect::Other).enumerate();
    blocks.extend(lines.map(|(n, line)| {
        let mut page = Page::new(style);
        if n == 0 {
            page.sentence(&match (at.requires_key(), at.pair().is_some() && has_code(model)) {
                (true, true) => "and then one of these lines:".to_owned(),
                (true, false) => format!("With a key, run there, as root{which}:"),
                (false, _) => format!("Type on the other machine, as root{which}:"),
            });
        }
        page.command(&line.text);
        if n == 0 && at.has_interface() && !(at.requires_key() && has_code(model)) {
            instructions::interface_note(&mut page);
        }
        page.lines
    }));
    blocks.insert(1, reading::overview(model, at.page_with_code(), style));
    blocks.retain(|block| !block.is_empty());
    blocks
}

fn has_code(model: &Model) -> bool {
    matches!(model.pairing, Some(Pairing::Code { .. }))
}

/// Returns how the other machine obtains a key, if one is required.
fn pairing_instructions(model: &Model, at: &Address, which: &str, style: Style) -> Block {
    let mut page = Page::new(style);
    instructions::warn_if_open(model, &mut page);
    if !model.requires_key() {
        return page.lines;
    }
    match (&model.pairing, at.pair()) {
        _ if model.requires_key_without_pairing() => {
            instructions::explain_missing_code(model, &mut page)
        }
        (Some(Pairing::Code { digits, .. }), Some(line)) => {
            page.sentence(&format!("To pair the other machine, run there, as root{which}:"));
            page.command(&line);
            if at.has_interface() {
                instructions::interface_note(&mut page);
            }
            instructions::code_line(&mut page, instructions::WITH_CODE, digits);
        }
        (Some(Pairing::Code { digits, .. }), None) => {
            instructions::code_line(
                &mut page,
                ["Code for machines at the other addresses:", "Code elsewhere:"],
                digits,
            );
        }
        _ => instructions::explain_missing_code(model, &mut page),
    }
    page.lines
}

/// Renders the table around the selected disk, and the count of the others.
fn disks(model: &Model, state: &State, style: Style, room: usize) -> Vec<String> {
    if model.disks.is_empty() {
        return none(model, style);
    }
    let selected = state.selected.min(model.disks.len() - 1);
    let (heading, rows) = table(&model.disks, selected, style);
    let count = rows.len();
    let with_heading = usize::from(room > 3);
    let all = room >= count + with_heading;
    let shown = if all { count } else { room.saturating_sub(with_heading + 1).max(1) };
    let start = selected.saturating_sub(shown / 2).min(count - shown);
    let mut lines: Vec<String> = Vec::new();
    if with_heading == 1 {
        lines.push(heading);
    }
    lines.extend(rows.into_iter().skip(start).take(shown));
    let (above, below) = (start, count - start - shown);
    let more = match (above, below) {
        (0, 0) => return lines,
        (0, below) => format!("{below} more disks: down"),
        (above, 0) => format!("{above} more disks: up"),
        (above, below) => format!("{} more disks: {above} up, {below} down", above + below),
    };
    if room > 1 {
        lines.push(Page::new(style).colorize(Role::Dim, &format!("  {more}")));
    }
    lines
}

/// Returns the text in place of an empty table.
fn none(model: &Model, style: Style) -> Vec<String> {
    let mut page = Page::new(style);
    no_disk(model, &mut page);
    page.lines
}

/// Adds the text in place of an empty table.
pub(crate) fn no_disk(model: &Model, page: &mut Page) {
    page.sentence("No disk is lent.");
    if model.target_mode.is_none() {
        page.sentence(
            "A disk in use is left out by --all: name it, with --allow-in-use, to lend it read-only \
             all the same, or boot this machine into target mode (storagetm image).",
        );
    }
}

/// Renders the newest messages that fit, and the count of the others.
fn messages(model: &Model, style: Style, room: usize) -> Vec<String> {
    let all = model.notes.len();
    for skipped in 0..=all {
        let mut page = Page::new(style);
        if skipped > 0 {
            let more = if skipped == all { "" } else { "more " };
            let plural = if skipped == 1 { "" } else { "s" };
            page.colored(Role::Dim, &format!("{skipped} {more}message{plural}: n"));
        }
        model.notes.iter().skip(skipped).for_each(|note| page.sentence(note));
        if height(&page.lines, style.width) <= room.max(1) {
            return page.lines;
        }
    }
    Vec::new()
}
