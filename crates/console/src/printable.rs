//! Sanitizes text from untrusted sources for terminals.

use std::fmt::Write;

/// Maximum number of characters of a host name shown in full.
const MAX_NAME: usize = 48;

/// Escapes control, invisible and bidirectional characters as `\u{..}`; without `utf8`, everything
/// except ASCII.
pub fn printable(text: &str, utf8: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_printable(c) && (utf8 || c.is_ascii()) {
            out.push(c);
        } else {
            let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
        }
    }
    out
}

/// Sanitizes a text of several lines, as ASCII.
pub fn printable_lines(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(|line| printable(line, false)).collect();
    lines.join("\n")
}

/// Returns whether a character is neither a control character, nor invisible, nor changes text
/// direction.
fn is_printable(c: char) -> bool {
    let hidden = matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}');
    !c.is_control() && !hidden
}

/// Returns a short name for a host NQN: the first eight digits of its UUID, else the NQN, shortened
/// in the middle if it is long.
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
    if length <= MAX_NAME {
        return name.to_owned();
    }
    let half = (MAX_NAME - 3) / 2;
    let head: String = name.chars().take(half).collect();
    let tail: String = name.chars().skip(length - half).collect();
    format!("{head}...{tail}")
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn control_and_deceptive_characters_are_escaped() {
        let hostile = "a\x1b[2J\x07\r\n\u{9b}31m\u{202e}b\u{200b}c\x7f";
        let shown = printable(hostile, true);
        assert_eq!(shown, "a\\u{1b}[2J\\u{7}\\u{d}\\u{a}\\u{9b}31m\\u{202e}b\\u{200b}c\\u{7f}");
        assert!(shown.chars().all(|c| !c.is_control()));
    }

    #[test]
    fn other_scripts_are_kept_in_utf8() {
        assert_eq!(printable("Müller 磁碟", true), "Müller 磁碟");
        assert_eq!(printable("Mü", false), "M\\u{fc}");
    }

    #[test]
    fn host_is_named_by_the_first_uuid_digits() {
        let nqn = "nqn.2014-08.org.nvmexpress:uuid:2f6d1c52-0000-4000-8000-000000000000";
        assert_eq!(host_name(nqn, true), "host 2f6d1c52");
        assert_eq!(
            host_name("nqn.2024-01.com.example:host1", true),
            "nqn.2024-01.com.example:host1"
        );
    }

    #[test]
    fn long_name_is_shortened_in_the_middle() {
        let name = host_name(&format!("nqn.start{}end", "x".repeat(200)), true);
        assert_eq!(name.chars().count(), 47);
        assert!(name.starts_with("nqn.start") && name.ends_with("end"), "{name}");
    }
}
