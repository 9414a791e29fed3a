//! Display width of text, and cutting to fit.

/// Returns the number of columns of a line, not counting SGR sequences.
pub fn columns(line: &str) -> usize {
    let mut count = 0;
    let mut hidden = false;
    for c in line.chars() {
        match c {
            '\x1b' => hidden = true,
            'm' if hidden => hidden = false,
            _ if hidden => {}
            c => count += width(c),
        }
    }
    count
}

/// Returns the columns of a character: two for East Asian wide characters, none for combining marks
/// (after Unicode UAX #11).
fn width(c: char) -> usize {
    match u32::from(c) {
        0x300..=0x36f
        | 0x1ab0..=0x1aff
        | 0x1dc0..=0x1dff
        | 0x20d0..=0x20ff
        | 0xfe00..=0xfe0f
        | 0xfe20..=0xfe2f => 0,
        0x1100..=0x115f
        | 0x2e80..=0x303e
        | 0x3041..=0xa4cf
        | 0xac00..=0xd7a3
        | 0xf900..=0xfaff
        | 0xfe30..=0xfe6f
        | 0xff00..=0xff60
        | 0xffe0..=0xffe6
        | 0x1f300..=0x1f64f
        | 0x1f900..=0x1f9ff
        | 0x20000..=0x3fffd => 2,
        _ => 1,
    }
}

/// Cuts text without SGR sequences to at most `max` columns, with a mark at the cut.
pub(crate) fn cut(text: &str, max: usize, utf8: bool) -> String {
    if columns(text) <= max {
        return text.to_owned();
    }
    let mark = if utf8 { '\u{2026}' } else { '~' };
    let mut out = String::new();
    let mut used = 0;
    for c in text.chars() {
        used += width(c);
        if used >= max {
            break;
        }
        out.push(c);
    }
    if max > 0 {
        out.push(mark);
    }
    out
}

/// Cuts the start of a text without SGR sequences, with a mark at the cut.
pub(crate) fn tail(text: &str, max: usize, utf8: bool) -> String {
    if columns(text) <= max {
        return text.to_owned();
    }
    let backwards: String = text.chars().rev().collect();
    cut(&backwards, max, utf8).chars().rev().collect()
}

/// Returns the number of rows of the lines in a window of that width.
pub(crate) fn height(lines: &[String], width: usize) -> usize {
    lines.iter().map(|line| columns(line).div_ceil(width.max(1)).max(1)).sum()
}

/// Returns the first lines that fit into `room` rows of a window of that width.
pub(crate) fn fit(lines: Vec<String>, width: usize, room: usize) -> Vec<String> {
    let mut used = 0;
    let fits = |line: &String| {
        used += height(std::slice::from_ref(line), width);
        used <= room
    };
    lines.into_iter().take_while(fits).collect()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn wide_characters_take_two_columns_and_colours_none() {
        assert_eq!(columns("\x1b[1;33mab\x1b[0m"), 2);
        assert_eq!(columns("磁碟é"), 5);
        assert_eq!(columns("e\u{301}"), 1);
    }

    #[test]
    fn cut_text_is_marked_and_fits() {
        assert_eq!(cut("Samsung SSD", 8, false), "Samsung~");
        assert_eq!(cut("磁碟磁碟", 5, true), "磁碟…");
        assert_eq!(cut("abc", 3, false), "abc");
        assert_eq!(cut("abc", 0, false), "");
        assert_eq!(tail("WD-WCC4N1234567", 8, true), "…1234567");
        assert_eq!(height(&["a".repeat(81), String::new()], 80), 3);
    }
}
