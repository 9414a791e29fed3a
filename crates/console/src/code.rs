//! Renders a pairing code as text: a QR code, and large digits.

use qrcode::{Color, EcLevel, QrCode};

/// Width of the quiet zone around a QR code, in modules. The standard requires four (ISO/IEC 18004
/// §9.1), but scanners were seen to read a code on a dark background with one, and a console has
/// few rows.
const QUIET_ZONE: usize = 2;

/// Rows of a large digit.
const ROWS: usize = 5;
/// Columns of a large digit; digits are separated by one more.
const COLUMNS: usize = 5;

/// Font of the digits: `#` is foreground.
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

/// Renders `text` as a QR code, as lines of equal width for light text on a dark background: light
/// modules are drawn. Uses half blocks with `utf8`, else two columns and one row per module.
/// Returns nothing if the text exceeds the capacity of a QR code (2953 bytes).
pub fn qr(text: &str, utf8: bool) -> Vec<String> {
    let Ok(code) = QrCode::with_error_correction_level(text, EcLevel::L) else { return Vec::new() };
    let side = code.width() + 2 * QUIET_ZONE;
    let is_light = |x: usize, y: usize| is_light(&code, x, y);
    if utf8 {
        let line = |y| (0..side).map(|x| half(is_light(x, y), is_light(x, y + 1))).collect();
        (0..side).step_by(2).map(line).collect()
    } else {
        let line = |y| (0..side).map(|x| if is_light(x, y) { "##" } else { "  " }).collect();
        (0..side).map(line).collect()
    }
}

/// Returns whether a module is light, including the quiet zone; rows below it are not.
fn is_light(code: &QrCode, x: usize, y: usize) -> bool {
    let width = code.width();
    let inside = |at: usize| at.checked_sub(QUIET_ZONE).filter(|at| *at < width);
    match (inside(x), inside(y)) {
        (Some(x), Some(y)) => code[(x, y)] == Color::Light,
        _ => y < width + 2 * QUIET_ZONE,
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

/// Renders the digits of `code` as five lines in groups of four. Other characters are ignored.
/// ASCII only, for any console.
pub fn digits(code: &str) -> Vec<String> {
    let digits: Vec<usize> =
        code.chars().filter_map(|c| c.to_digit(10)).filter_map(|n| n.try_into().ok()).collect();
    (0..ROWS).map(|row| line(&digits, row)).collect()
}

/// Renders one row of all digits, without trailing blanks.
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
    fn qr_code_as_half_blocks() {
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

    /// Both forms show the same modules, including the quiet zone.
    #[test]
    fn ascii_form_matches_half_blocks() {
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
    fn too_long_text_has_no_qr_code() {
        assert_eq!(qr(&"x".repeat(3000), true), Vec::<String>::new());
    }
}
