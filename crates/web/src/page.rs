//! The list of disks: a page for people, and JSON for programs.

use std::fmt::Write as _;
use std::sync::Arc;

use export::Export;
use serde::Serialize;

use crate::response::percent_encoded;
use crate::version::may_change;

/// The style sheet of the page: it also fits the screen of a phone, and a dark theme.
pub(crate) const STYLE: &str = "\
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 44rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; }
ul { list-style: none; padding: 0; }
li { border: 1px solid #8886; border-radius: .5rem; padding: .8rem 1rem; margin: 0 0 1rem; }
h2 { font-size: 1.1rem; margin: 0; overflow-wrap: anywhere; }
p { margin: .3rem 0; overflow-wrap: anywhere; }
span { white-space: nowrap; }
.files li { border-width: 0 0 1px; border-radius: 0; padding: .5rem 0; margin: 0; overflow-wrap: anywhere; }
.note { opacity: .8; font-size: .9rem; }
a.get.plain { background: none; color: inherit; border: 1px solid #8886; }
.problem { font-weight: bold; }
input, button { font: inherit; padding: .5rem .6rem; }
input { font-family: ui-monospace, monospace; width: 16ch; }
a.get { display: inline-block; margin-top: .4rem; padding: .5rem 1rem; border-radius: .4rem; \
background: #1a5fb4; color: #fff; text-decoration: none; overflow-wrap: anywhere; }
";

/// The path that the form with the code is sent to.
pub(crate) const FORM_PATH: &str = "/code";

/// The path of the style sheet.
pub(crate) const STYLE_PATH: &str = "/style.css";

/// Returns the start of a page with this title, which is escaped.
pub(crate) fn start(title: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<link rel=\"stylesheet\" href=\"{STYLE_PATH}\">\n\
         </head>\n<body>\n<h1>{title}</h1>\n"
    )
}

/// Returns the page that asks for the code, with a sentence about the last one. It has nothing about this
/// machine, as it is shown before the code.
pub(crate) fn form(problem: &str) -> String {
    let mut page = start("Disks");
    if !problem.is_empty() {
        let _ = writeln!(page, "<p class=\"problem\" role=\"alert\">{problem}</p>");
    }
    let _ = write!(
        page,
        "<form method=\"post\" action=\"{}\">\n<p><label for=\"code\">The code on the screen of the \
         machine that lends its disks:</label></p>\n<p><input id=\"code\" name=\"code\" \
         required autofocus maxlength=\"40\" autocomplete=\"off\" autocapitalize=\"characters\" \
         spellcheck=\"false\" placeholder=\"XXXX-XXXX-XXXX\"> <button>Open</button></p>\n</form>\n\
         <p class=\"note\">The browser has warned that it does not know who answers here. Type the \
         code only if the fingerprint of the certificate is the one on that screen.</p>\n\
         </body>\n</html>\n",
        FORM_PATH
    );
    page
}

/// Returns the page with the disks of this machine.
pub(crate) fn html(machine: &str, exports: &[Arc<Export>], is_encrypted: bool) -> String {
    let mut page = start(&format!("Disks of {}", escaped(machine)));
    if exports.is_empty() {
        page.push_str("<p>There is no disk here now.</p>\n");
    } else {
        page.push_str("<ul>\n");
        exports.iter().for_each(|export| page.push_str(&item(export)));
        page.push_str("</ul>\n");
    }
    let encryption = if is_encrypted { "" } else { " Nothing is encrypted." };
    let _ = write!(
        page,
        "<p class=\"note\">Disks can only be read here. A download that was interrupted can be \
         continued where the disk is read-only.{encryption}</p>\n</body>\n</html>\n"
    );
    page
}

/// Returns the note for a disk that hosts may change.
pub(crate) fn note(export: &Export) -> &'static str {
    match may_change(export) {
        true => {
            "<p class=\"note\">Other machines may write to this disk, also during a download, which \
             is then of no use.</p>\n"
        }
        false => "",
    }
}

fn item(export: &Export) -> String {
    let (name, model) = (escaped(&export.short), escaped(&export.identity.model));
    let mut item = format!("<li>\n<h2>{name}</h2>\n");
    let model = if model.is_empty() { String::new() } else { format!("{model}, ") };
    let (size, bytes) = (size(export.bytes()), export.bytes());
    let _ = writeln!(item, "<p>{model}{size} <span class=\"note\">({bytes} bytes)</span></p>");
    if !export.contents.is_empty() {
        let _ = writeln!(item, "<p>On it: {}</p>", escaped(&export.contents));
    }
    item.push_str(note(export));
    let href = percent_encoded(&export.short);
    let _ =
        writeln!(item, "<a class=\"get\" href=\"/{href}.raw\" download>Download {name}.raw</a>");
    let _ = writeln!(
        item,
        "<a class=\"get plain\" href=\"/{href}.raw.zst\" download>Compressed: {name}.raw.zst</a>"
    );
    let _ = writeln!(item, "<a class=\"get plain\" href=\"/{href}/\">Files</a>");
    item.push_str("</li>\n");
    item
}

/// A disk in the list for programs.
#[derive(Debug, Serialize)]
struct Item<'a> {
    name: &'a str,
    path: String,
    /// The path of the disk as it is compressed.
    compressed: String,
    bytes: u64,
    block_size: u32,
    model: &'a str,
    /// What is on it, for people; empty if unknown.
    contents: &'a str,
    /// Whether hosts may change by other protocols what is read here.
    writable: bool,
}

/// Returns the list for programs: `{"machine":…,"disks":[{"name":…}]}`.
pub(crate) fn json(machine: &str, exports: &[Arc<Export>]) -> String {
    let item = |export: &Arc<Export>| {
        serde_json::json!(Item {
            name: &export.short,
            path: format!("/{}.raw", percent_encoded(&export.short)),
            compressed: format!("/{}.raw.zst", percent_encoded(&export.short)),
            bytes: export.bytes(),
            block_size: export.geometry.block(),
            model: &export.identity.model,
            contents: &export.contents,
            writable: may_change(export),
        })
    };
    let disks: Vec<_> = exports.iter().map(item).collect();
    format!("{}\n", serde_json::json!({ "machine": machine, "disks": disks }))
}

/// Escapes text for HTML. Control characters, also those that change the direction of text, are
/// replaced.
pub(crate) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\u{61c}'
            | '\u{200e}'
            | '\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}' => {
                escaped.push('\u{fffd}');
            }
            c if c.is_control() => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Formats a number of bytes in the units of disk vendors (powers of 1000): `500 GB`, `1.5 MB`.
pub(crate) fn size(bytes: u64) -> String {
    let (mut unit, mut power) = ("bytes", 1u64);
    for name in ["kB", "MB", "GB", "TB", "PB", "EB"] {
        let next = power * 1000;
        if bytes < next {
            break;
        }
        (unit, power) = (name, next);
    }
    let (whole, tenth) = (bytes / power, bytes % power * 10 / power);
    if whole >= 100 || tenth == 0 {
        format!("{whole} {unit}")
    } else {
        format!("{whole}.{tenth} {unit}")
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn hostile_names_are_escaped() {
        assert_eq!(
            escaped("<a href='x'>&\"\n\u{202e}"),
            "&lt;a href=&#39;x&#39;&gt;&amp;&quot;\u{fffd}\u{fffd}"
        );
    }

    #[test]
    fn sizes_are_readable() {
        let sizes = [0, 999, 1000, 1_500_000, 500_107_862_016, u64::MAX].map(size);
        assert_eq!(sizes, ["0 bytes", "999 bytes", "1 kB", "1.5 MB", "500 GB", "18.4 EB"]);
    }
}
