//! The table of disks.

use crate::page::{Page, Role, name_of};
use crate::width::{columns, cut, tail};
use crate::{Disk, Style, decimal};
use export::Access;

/// Blanks between columns.
const GAP: usize = 2;
/// Marks of other disks, and of the selected one.
const MARKS: [&str; 2] = ["  ", "> "];

/// A column of the table.
struct Column {
    heading: &'static str,
    cells: Vec<String>,
    /// Minimum width; 0 if the column must not be cut.
    min: usize,
    /// Columns are dropped in descending order of this value in a narrow window; 0 is never
    /// dropped.
    drop_order: usize,
    /// Cut at the start instead of the end.
    cut_start: bool,
}

/// Renders the heading and one row per disk. The selected row is marked.
pub(crate) fn table(disks: &[Disk], selected: usize, style: Style) -> (String, Vec<String>) {
    let page = Page::new(style);
    let mut all = all(disks, style);
    let room = style.width.saturating_sub(columns(MARKS[0]));
    while min(&all) > room {
        let Some(at) = first_to_drop(&all) else { break };
        all.remove(at);
    }
    let widths = widths(&all, room);
    let heading = line(&all, &widths, style, |column| column.heading.to_owned());
    let heading = page.colorize(Role::Dim, &format!("{}{heading}", MARKS[0]));
    let row = |at: usize, disk: &Disk| {
        let cell = |column: &Column| column.cells.get(at).cloned().unwrap_or_default();
        let text = line(&all, &widths, style, cell);
        let role = match (at == selected, disk.access, &disk.kept) {
            (true, ..) => Some(Role::Title),
            (false, Access::Writable, None) => Some(Role::Warning),
            (false, ..) => None,
        };
        let text = format!("{}{text}", MARKS[usize::from(at == selected)]);
        match role {
            Some(role) => page.colorize(role, &text),
            None => text,
        }
    };
    (heading, disks.iter().enumerate().map(|(at, disk)| row(at, disk)).collect())
}

fn all(disks: &[Disk], style: Style) -> Vec<Column> {
    let page = Page::new(style);
    let column = |heading, min, drop_order, cell: &dyn Fn(&Disk) -> String| Column {
        heading,
        cells: disks.iter().map(cell).collect(),
        min,
        drop_order,
        cut_start: heading == "SERIAL",
    };
    let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    let mut all = vec![
        column("DISK", 12, 0, &|disk| page.escape(&disk.short)),
        column("SIZE", 0, 1, &|disk| decimal(disk.size)),
        column("MODEL", 8, 3, &|disk| or_dash(page.escape(&disk.model))),
        column("SERIAL", 6, 4, &|disk| or_dash(page.escape(&disk.serial))),
        column("ACCESS", 0, 2, &access),
        column("ATTACHED BY", 12, 0, &|disk| used(disk, style.utf8)),
    ];
    if disks.iter().any(|disk| !disk.contents.is_empty()) {
        let contents = column("CONTENTS", 8, 5, &|disk| or_dash(page.escape(&disk.contents)));
        all.insert(4, contents);
    }
    all
}

fn access(disk: &Disk) -> String {
    match (disk.access, &disk.kept) {
        (Access::ReadOnly, _) => "read-only".to_owned(),
        (Access::Writable, Some(kept)) if kept.bytes > 0 => {
            format!("overlay {}", decimal(kept.bytes))
        }
        (Access::Writable, Some(_)) => "overlay".to_owned(),
        (Access::Writable, None) => "WRITABLE".to_owned(),
    }
}

/// Formats the hosts that have attached a disk, and their traffic.
fn used(disk: &Disk, utf8: bool) -> String {
    let who = match disk.attached.as_slice() {
        [] => "-".to_owned(),
        [host] => name_of(host, utf8),
        [host, more @ ..] => format!("{} + {} more", name_of(host, utf8), more.len()),
    };
    match traffic(disk) {
        Some(traffic) => format!("{who} ({traffic})"),
        None => who,
    }
}

/// Formats the bytes that hosts have read and written, if any.
pub(crate) fn traffic(disk: &Disk) -> Option<String> {
    let read = (disk.read > 0).then(|| format!("{} read", decimal(disk.read)));
    let written = (disk.written > 0).then(|| format!("{} written", decimal(disk.written)));
    let parts: Vec<String> = [read, written].into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

impl Column {
    fn natural_width(&self) -> usize {
        let widest = self.cells.iter().map(|cell| columns(cell)).max().unwrap_or(0);
        widest.max(columns(self.heading))
    }

    fn smallest_width(&self) -> usize {
        match self.min {
            0 => self.natural_width(),
            min => min.min(self.natural_width()),
        }
    }
}

fn sum(widths: impl ExactSizeIterator<Item = usize>) -> usize {
    let gaps = GAP * widths.len().saturating_sub(1);
    widths.sum::<usize>() + gaps
}

fn min(all: &[Column]) -> usize {
    sum(all.iter().map(Column::smallest_width))
}

fn first_to_drop(all: &[Column]) -> Option<usize> {
    let drop_order = all.iter().enumerate().filter(|(_, column)| column.drop_order > 0);
    drop_order.max_by_key(|(_, column)| column.drop_order).map(|(at, _)| at)
}

/// Returns the column widths: the widest column shrinks until all fit.
fn widths(all: &[Column], room: usize) -> Vec<usize> {
    let mut widths: Vec<usize> = all.iter().map(Column::natural_width).collect();
    while sum(widths.iter().copied()) > room {
        let can = widths.iter_mut().zip(all).filter(|(width, it)| **width > it.smallest_width());
        let Some((widest, _)) = can.max_by_key(|(width, _)| **width) else { break };
        *widest -= 1;
    }
    widths
}

fn line(
    all: &[Column],
    widths: &[usize],
    style: Style,
    cell: impl Fn(&Column) -> String,
) -> String {
    let mut out = String::new();
    for (column, width) in all.iter().zip(widths) {
        let text = cell(column);
        let fit = if column.cut_start { tail } else { cut };
        let text = fit(&text, *width, style.utf8);
        let blank = (width + GAP).saturating_sub(columns(&text));
        out.push_str(&text);
        out.extend(std::iter::repeat_n(' ', blank));
    }
    cut(out.trim_end(), style.width.saturating_sub(GAP), style.utf8)
}
