//! Makes text from elsewhere safe to show: what could steer a terminal or deceive the eye is written out.
//! It knows no terminal.

use std::fmt::Write;

/// The longest name of a host that is shown whole, in characters.
const LONGEST_NAME: usize = 48;

/// The text with control and direction-changing characters written as `\u{..}`; without `utf8`, all that is not ASCII.
pub fn printable(text: &str, utf8: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_harmless(c) && (utf8 || c.is_ascii()) {
            out.push(c);
        } else {
            let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
        }
    }
    out
}

/// The same, of a text of several lines, in ASCII.
pub fn printable_lines(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(|line| printable(line, false)).collect();
    lines.join("\n")
}

/// Neither a control character nor one that is invisible or changes the direction of others.
fn is_harmless(c: char) -> bool {
    let hidden = matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}');
    !c.is_control() && !hidden
}

/// A host's NVMe Qualified Name as people tell hosts apart: the first eight digits of a UUID, else the name, its middle
/// left out if it is long.
pub fn host_name(nqn: &str, utf8: bool) -> String {
    let uuid = nqn.strip_prefix("nqn.2014-08.org.nvmexpress:uuid:");
    let first = uuid.and_then(|uuid| uuid.split('-').next());
    match first.filter(|digits| digits.len() == 8) {
        Some(digits) => format!("host {}", printable(digits, utf8)),
        None => shortened(&printable(nqn, utf8)),
    }
}

fn shortened(name: &str) -> String {
    let length = name.chars().count();
    if length <= LONGEST_NAME {
        return name.to_owned();
    }
    let half = (LONGEST_NAME - 3) / 2;
    let head: String = name.chars().take(half).collect();
    let tail: String = name.chars().skip(length - half).collect();
    format!("{head}...{tail}")
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn nothing_that_steers_a_terminal_or_deceives_the_eye_is_left() {
        let hostile = "a\x1b[2J\x07\r\n\u{9b}31m\u{202e}b\u{200b}c\x7f";
        let shown = printable(hostile, true);
        assert_eq!(shown, "a\\u{1b}[2J\\u{7}\\u{d}\\u{a}\\u{9b}31m\\u{202e}b\\u{200b}c\\u{7f}");
        assert!(shown.chars().all(|c| !c.is_control()));
    }

    #[test]
    fn other_scripts_stay_where_the_locale_has_them() {
        assert_eq!(printable("Müller 磁碟", true), "Müller 磁碟");
        assert_eq!(printable("Mü", false), "M\\u{fc}");
    }

    #[test]
    fn a_host_is_told_apart_by_the_first_digits_of_its_uuid() {
        let nqn = "nqn.2014-08.org.nvmexpress:uuid:2f6d1c52-0000-4000-8000-000000000000";
        assert_eq!(host_name(nqn, true), "host 2f6d1c52");
        assert_eq!(
            host_name("nqn.2024-01.com.example:host1", true),
            "nqn.2024-01.com.example:host1"
        );
    }

    #[test]
    fn a_long_name_loses_its_middle_only() {
        let name = host_name(&format!("nqn.start{}end", "x".repeat(200)), true);
        assert_eq!(name.chars().count(), 47);
        assert!(name.starts_with("nqn.start") && name.ends_with("end"), "{name}");
    }
}
