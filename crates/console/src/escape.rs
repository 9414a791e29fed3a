//! Escapes text from untrusted sources for terminals.

use std::fmt::Write;

/// Maximum length of a host NQN that is shown unabbreviated, in characters.
const MAX_NQN: usize = 48;

/// Escapes control, invisible and bidirectional characters as `\u{..}`, and, without `utf8`, all
/// non-ASCII characters.
pub fn escape_unprintable(text: &str, utf8: bool) -> String {
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

/// Escapes a text of several lines, with all non-ASCII characters.
pub fn escape_lines_to_ascii(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(|line| escape_unprintable(line, false)).collect();
    lines.join("\n")
}

/// Returns whether a character is neither a control character, nor invisible, nor a bidirectional
/// control. Invisible are those with the property Default_Ignorable_Code_Point (UAX #44), line
/// separators, and annotation marks.
fn is_printable(c: char) -> bool {
    let hidden = matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
        | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
        | '\u{e0000}'..='\u{e0fff}');
    !c.is_control() && !hidden
}

/// Returns a short form of a host NQN: the first eight digits of its UUID. An NQN without a UUID is
/// abbreviated in the middle if it is long.
pub fn short_host_nqn(nqn: &str, utf8: bool) -> String {
    let uuid = nqn.strip_prefix("nqn.2014-08.org.nvmexpress:uuid:");
    let first = uuid.and_then(|uuid| uuid.split('-').next());
    match first.filter(|digits| digits.len() == 8) {
        Some(digits) => format!("host {}", escape_unprintable(digits, utf8)),
        None => abbreviate(&escape_unprintable(nqn, utf8)),
    }
}

fn abbreviate(nqn: &str) -> String {
    let length = nqn.chars().count();
    if length <= MAX_NQN {
        return nqn.to_owned();
    }
    let half = (MAX_NQN - 3) / 2;
    let head: String = nqn.chars().take(half).collect();
    let tail: String = nqn.chars().skip(length - half).collect();
    format!("{head}...{tail}")
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn control_and_deceptive_characters_are_escaped() {
        let hostile = "a\x1b[2J\x07\r\n\u{9b}31m\u{202e}b\u{200b}c\x7f";
        let shown = escape_unprintable(hostile, true);
        assert_eq!(shown, "a\\u{1b}[2J\\u{7}\\u{d}\\u{a}\\u{9b}31m\\u{202e}b\\u{200b}c\\u{7f}");
        assert!(shown.chars().all(|c| !c.is_control()));
    }

    #[test]
    fn invisible_characters_are_escaped() {
        let hidden = [
            0xad, 0x34f, 0x61c, 0x115f, 0x1160, 0x17b4, 0x180b, 0x180e, 0x180f, 0x200b, 0x200d,
            0x200f, 0x2028, 0x202a, 0x202e, 0x2060, 0x2066, 0x2069, 0x206f, 0x3164, 0xfe0f, 0xfeff,
            0xffa0, 0xfff0, 0xfff9, 0x1bca0, 0x1d173, 0xe0001, 0xe0020, 0xe0100,
        ];
        for code in hidden {
            let text = format!("a{}b", char::from_u32(code).unwrap());
            assert_eq!(escape_unprintable(&text, true), format!("a\\u{{{code:x}}}b"));
        }
    }

    #[test]
    fn other_scripts_are_kept_in_utf8() {
        assert_eq!(escape_unprintable("Müller 磁碟", true), "Müller 磁碟");
        assert_eq!(escape_unprintable("Mü", false), "M\\u{fc}");
    }

    #[test]
    fn short_host_nqn_is_the_first_digits_of_its_uuid() {
        let nqn = "nqn.2014-08.org.nvmexpress:uuid:2f6d1c52-0000-4000-8000-000000000000";
        assert_eq!(short_host_nqn(nqn, true), "host 2f6d1c52");
        assert_eq!(
            short_host_nqn("nqn.2024-01.com.example:host1", true),
            "nqn.2024-01.com.example:host1"
        );
    }

    #[test]
    fn long_nqn_is_abbreviated_in_the_middle() {
        let name = short_host_nqn(&format!("nqn.start{}end", "x".repeat(200)), true);
        assert_eq!(name.chars().count(), 47);
        assert!(name.starts_with("nqn.start") && name.ends_with("end"), "{name}");
    }
}
