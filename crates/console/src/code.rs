//! A pairing code as a picture of text: a QR code to be scanned, and digits that are read across a room. It knows not
//! what the code opens.

use qrcode::{Color, EcLevel, QrCode};

/// Light modules around a QR code, by which scanners find it. The standard asks for four (ISO/IEC 18004 §9.1); one is
/// the least with which a reader was seen to read it on a dark ground, and a console has few rows.
const QUIET: usize = 2;

/// Rows of a large digit.
const ROWS: usize = 5;
/// Columns of a large digit; a column is left between two.
const COLUMNS: usize = 5;

/// Rows from top to bottom, columns from left to right, a `#` where there is ink.
const DIGITS: [[&str; ROWS]; 10] = [
    [" ### ", "#   #", "#   #", "#   #", " ### "],
    ["  #  ", " ##  ", "  #  ", "  #  ", " ### "],
    [" ### ", "#   #", "  ## ", " #   ", "#####"],
    ["#### ", "    #", " ### ", "    #", "#### "],
    ["#  # ", "#  # ", "#####", "   # ", "   # "],
    ["#####", "#    ", "#### ", "    #", "#### "],
    [" ### ", "#    ", "#### ", "#   #", " ### "],
    ["#####", "   # ", "  #  ", " #   ", " #   "],
    [" ### ", "#   #", " ### ", "#   #", " ### "],
    [" ### ", "#   #", " ####", "    #", " ### "],
];

/// The QR code of `text` as lines of equal width, for light text on a dark ground: what is light in the code is drawn.
/// With half blocks if the terminal has UTF-8, else with two columns and one row a module. Nothing if the text is too
/// long for a QR code (2953 bytes).
pub fn qr(text: &str, utf8: bool) -> Vec<String> {
    let Ok(code) = QrCode::with_error_correction_level(text, EcLevel::L) else { return Vec::new() };
    let side = code.width() + 2 * QUIET;
    let is_light = |x: usize, y: usize| is_light(&code, x, y);
    if utf8 {
        let line = |y| (0..side).map(|x| half(is_light(x, y), is_light(x, y + 1))).collect();
        (0..side).step_by(2).map(line).collect()
    } else {
        let line = |y| (0..side).map(|x| if is_light(x, y) { "##" } else { "  " }).collect();
        (0..side).map(line).collect()
    }
}

/// Whether the module is light; the quiet zone is, and what is below it is the screen's.
fn is_light(code: &QrCode, x: usize, y: usize) -> bool {
    let width = code.width();
    let inside = |at: usize| at.checked_sub(QUIET).filter(|at| *at < width);
    match (inside(x), inside(y)) {
        (Some(x), Some(y)) => code[(x, y)] == Color::Light,
        _ => y < width + 2 * QUIET,
    }
}

fn half(upper: bool, lower: bool) -> char {
    match (upper, lower) {
        (true, true) => '█',
        (true, false) => '▀',
        (false, true) => '▄',
        (false, false) => ' ',
    }
}

/// The digits of `code` as five lines of large ones, in groups of four; what is no digit is left out. In plain ASCII:
/// any console has that.
pub fn digits(code: &str) -> Vec<String> {
    let digits: Vec<usize> =
        code.chars().filter_map(|c| c.to_digit(10)).filter_map(|n| n.try_into().ok()).collect();
    (0..ROWS).map(|row| line(&digits, row)).collect()
}

/// A row of all digits, without blanks at its end.
fn line(digits: &[usize], row: usize) -> String {
    let group = |group: &[usize]| {
        let rows = group.iter().filter_map(|digit| DIGITS.get(*digit)?.get(row).copied());
        rows.collect::<Vec<_>>().join(" ")
    };
    let gap = " ".repeat(COLUMNS);
    let whole = digits.chunks(4).map(group).collect::<Vec<_>>().join(&gap);
    whole.trim_end().to_owned()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn large_digits() {
        let all = [digits("0123 4567"), digits("89")].concat().join("\n");
        let wanted = "
 ###    #    ###  ####      #  #  #####  ###  #####
#   #  ##   #   #     #     #  #  #     #        #
#   #   #     ##   ###      ##### ####  ####    #
#   #   #    #        #        #      # #   #  #
 ###   ###  ##### ####         #  ####   ###   #
 ###   ###
#   # #   #
 ###   ####
#   #     #
 ###   ###";
        assert_eq!(all, wanted.trim_start_matches('\n'));
        assert!(digits("12345678").iter().all(|line| line.len() <= 55));
        assert_eq!(digits("\x1b[x"), [""; ROWS]);
    }

    #[test]
    fn a_qr_code_as_half_blocks() {
        let text = qr("storagetm", true).join("\n");
        assert_eq!(text, QR.trim_start_matches('\n'));
    }

    const QR: &str = "
█████████████████████████
██ ▄▄▄▄▄ █ ▄ ▄ █ ▄▄▄▄▄ ██
██ █   █ █ ▀▀▀██ █   █ ██
██ █▄▄▄█ █▀▀█▀▄█ █▄▄▄█ ██
██▄▄▄▄▄▄▄█▄▀ ▀ █▄▄▄▄▄▄▄██
██▄▄██  ▄▀▀ █ ▀█▀ ▀  ▄▄██
███ █▀▀ ▄█▄  ▄█▀██ ▄█ ▀██
████▄██▄▄▄  ██ ▄█▄▀▀█▄▄██
██ ▄▄▄▄▄ █▀▀ ▀ ▄██▄█▄ ███
██ █   █ █▄▀▀ ▀▄▄▄▀▄▀ ▀██
██ █▄▄▄█ █▀██▄█▀ █ ▄▄████
██▄▄▄▄▄▄▄█▄▄▄█▄▄▄█████▄██
▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀";

    /// Both ways to draw it show the same modules, all of them and light ones around.
    #[test]
    fn the_plain_form_shows_the_same() {
        let invite = "STORAGETM:PAIR/GAYTEMZUGU3DOOBZMFRGGZDFMY/169.254.7.9:4420";
        let (small, plain) = (qr(invite, true), qr(invite, false));
        assert_eq!((small.len(), plain.len()), (17, 33), "with the digits it fits 25 rows");
        for (y, line) in plain.iter().enumerate() {
            assert_eq!(line.len(), 66);
            let half: Vec<char> = small[y / 2].chars().collect();
            for (x, light) in line.as_bytes().chunks(2).map(|pair| pair == b"##").enumerate() {
                let shown = matches!((half[x], y % 2), ('█', _) | ('▀', 0) | ('▄', 1));
                assert_eq!(shown, light, "{x} {y}");
                let inside = 2..31;
                assert!(light || (inside.contains(&x) && inside.contains(&y)), "{x} {y}");
            }
        }
        assert!(small[16].chars().all(|c| c == '▀'), "nothing below the quiet zone");
    }

    #[test]
    fn a_text_that_is_too_long_has_no_picture() {
        assert_eq!(qr(&"x".repeat(3000), true), Vec::<String>::new());
    }
}
