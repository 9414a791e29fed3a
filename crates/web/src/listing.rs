//! The pages of files: the partitions of a disk, and folders.

use std::fmt::Write as _;

use export::Export;
use filesystem::{EntryKind, FileEntry, Modified};
use jiff::Timestamp;

use crate::files::{Folder, MAX_PARTITIONS, Partition, Target};
use crate::page::{escaped, note, size, start};
use crate::response::percent_encoded;

/// Returns the page with the partitions of a disk.
pub(crate) fn partitions(export: &Export, partitions: &[Partition]) -> String {
    let name = escaped(&export.short);
    let mut page = start(&format!("Files of {name}"));
    page.push_str("<p><a href=\"/\">All disks</a></p>\n");
    page.push_str(note(export));
    page.push_str("<ul>\n");
    for partition in partitions {
        let title = match partition.number {
            0 => "The whole disk".to_owned(),
            number => format!("Partition {number}"),
        };
        let kinds = partition.contents.kinds.join(", ");
        let kinds = if kinds.is_empty() { "not recognized" } else { &kinds };
        let label = partition.contents.label.as_deref().map(escaped);
        let label = label.map_or(String::new(), |label| format!(" <bdi>“{label}”</bdi>"));
        let size = size(partition.bytes);
        let _ = write!(page, "<li>\n<h2>{title}</h2>\n<p>{kinds}{label}, {size}</p>\n");
        let _ = match partition.contents.has_files {
            true => {
                let (href, number) = (percent_encoded(&export.short), partition.number);
                writeln!(page, "<a class=\"get\" href=\"/{href}/{number}/\">Files</a>")
            }
            false => writeln!(page, "<p class=\"note\">Its files are not shown here.</p>"),
        };
        page.push_str("</li>\n");
    }
    page.push_str("</ul>\n");
    if partitions.is_empty() {
        page.push_str("<p>Which partitions this disk has is not certain.</p>\n");
    }
    if partitions.len() >= MAX_PARTITIONS {
        page.push_str("<p>Further partitions are not shown.</p>\n");
    }
    page.push_str("</body>\n</html>\n");
    page
}

/// Returns the page with a folder. Its links are relative to its path, which ends with a slash: so its length does not
/// depend on that of the path.
pub(crate) fn folder(export: &Export, target: &Target, folder: &Folder) -> String {
    let name = target.names.last().map(|name| shown(name));
    let partition = match target.partition {
        Some(0) | None => "the whole disk".to_owned(),
        Some(number) => format!("partition {number}"),
    };
    let title = name.unwrap_or_else(|| format!("{}, {partition}", escaped(&export.short)));
    let mut page = start(&title);
    links_up(&mut page, export, target, &partition);
    page.push_str(note(export));
    if !folder.is_clean {
        page.push_str(
            "<p class=\"problem\">This file system was not unmounted cleanly: what was written last may be \
             missing, old or wrong.</p>\n",
        );
    }
    if folder.entries.is_empty() {
        page.push_str("<p>Nothing is here.</p>\n");
    }
    page.push_str("<ul class=\"files\">\n");
    folder.entries.iter().for_each(|entry| item(&mut page, entry));
    page.push_str("</ul>\n");
    if let Some(next) = folder.next {
        let _ = writeln!(page, "<p><a class=\"get\" href=\"?from={next}\">More</a></p>");
    }
    page.push_str("</body>\n</html>\n");
    page
}

/// Adds links to the folders on the path.
fn links_up(page: &mut String, export: &Export, target: &Target, partition: &str) {
    let depth = target.names.len();
    let up = |levels: usize| if levels == 0 { "./".to_owned() } else { "../".repeat(levels) };
    let _ = write!(
        page,
        "<p><a href=\"/\">All disks</a> / <a href=\"{}\">{}</a> / <a href=\"{}\">{partition}</a>",
        up(depth + 1),
        escaped(&export.short),
        up(depth)
    );
    for (name, levels) in target.names.iter().zip((0..depth).rev()) {
        let _ = write!(page, " / <a href=\"{}\"><bdi>{}</bdi></a>", up(levels), shown(name));
    }
    page.push_str("</p>\n");
}

fn item(page: &mut String, entry: &FileEntry) {
    let (name, href) = (shown(&entry.name), percent_encoded(&entry.name));
    let link = match entry.kind {
        EntryKind::Directory => format!("<a href=\"{href}/\"><bdi>{name}</bdi>/</a>"),
        EntryKind::File => format!("<a href=\"{href}\" download><bdi>{name}</bdi></a>"),
        EntryKind::Link | EntryKind::Special | EntryKind::Damaged => format!("<bdi>{name}</bdi>"),
    };
    let about = match entry.kind {
        EntryKind::Directory => "folder".to_owned(),
        EntryKind::File => size(entry.bytes),
        EntryKind::Link => "link, not followed".to_owned(),
        EntryKind::Special => "device, socket or pipe".to_owned(),
        EntryKind::Damaged => "damaged".to_owned(),
    };
    let time = entry.modified.and_then(time).map_or(String::new(), |time| format!(", {time}"));
    let _ = writeln!(page, "<li>{link} <span class=\"note\">{about}{time}</span></li>");
}

/// Formats a time to the minute.
fn time(modified: Modified) -> Option<String> {
    let time = Timestamp::from_second(modified.seconds).ok()?.strftime("%Y-%m-%d %H:%M");
    Some(format!("{time}{}", if modified.is_utc { " UTC" } else { "" }))
}

/// Returns a name for HTML, which need not be UTF-8.
fn shown(name: &[u8]) -> String {
    escaped(&String::from_utf8_lossy(name))
}

/// Returns the page that says why there is nothing.
pub(crate) fn problem(export: &Export, problem: &str) -> String {
    let mut page = start(&format!("Files of {}", escaped(&export.short)));
    let disk = percent_encoded(&export.short);
    let _ = write!(
        page,
        "<p><a href=\"/\">All disks</a> / <a href=\"/{disk}/\">{}</a></p>\n<p class=\"problem\">{}</p>\n\
         </body>\n</html>\n",
        escaped(&export.short),
        escaped(problem)
    );
    page
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn times_are_shown_to_the_minute() {
        let time = |seconds, is_utc| time(Modified { seconds, is_utc });
        assert_eq!(time(784_111_777, true).as_deref(), Some("1994-11-06 08:49 UTC"));
        assert_eq!(time(784_111_777, false).as_deref(), Some("1994-11-06 08:49"));
        assert_eq!(time(i64::MAX, true), None);
    }
}
