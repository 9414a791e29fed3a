//! Text tables.

use std::io::stdout;

use console::escape_unprintable;
use linux::tty;

/// Spaces between columns.
const GAP: usize = 2;

/// Minimum column width.
const MIN_WIDTH: usize = 8;

/// Formats a table. On a terminal that is too narrow, the widest columns are wrapped.
pub(crate) fn table<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> String {
    table_of_width(headings, rows, tty::window(stdout()).map(|(columns, _)| columns.into()))
}

fn table_of_width<const N: usize>(
    headings: [&str; N],
    rows: &[[String; N]],
    columns: Option<usize>,
) -> String {
    let mut cells = vec![headings.map(str::to_owned)];
    cells.extend(rows.iter().map(|row| row.clone().map(|cell| escape_unprintable(&cell, true))));
    let width = |at: usize| {
        cells.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max()
    };
    let mut widths: Vec<usize> = (0..N).map(|at| width(at).unwrap_or(0)).collect();
    let word = |at: usize| {
        let cells = cells.iter().filter_map(|row| row.get(at));
        cells.flat_map(|cell| cell.split_whitespace()).map(|word| word.chars().count()).max()
    };
    let words: Vec<usize> = (0..N).map(|at| word(at).unwrap_or(0).max(MIN_WIDTH)).collect();
    if let Some(columns) = columns {
        // Words are broken only if wrapping is not enough.
        narrow(&mut widths, &words, columns);
        narrow(&mut widths, &[MIN_WIDTH; N], columns);
    }
    cells.iter().map(|row| lines(row, &widths)).collect()
}

/// Shrinks the widest column until the table fits. The first column is never shrunk.
fn narrow(widths: &mut [usize], min: &[usize], columns: usize) {
    let gaps = GAP * widths.len().saturating_sub(1);
    while widths.iter().sum::<usize>() + gaps > columns {
        let rest = widths.iter_mut().zip(min).skip(1);
        match rest.filter(|(width, min)| **width > **min).map(|(width, _)| width).max() {
            Some(width) => *width -= 1,
            None => return,
        }
    }
}

/// Formats a row, which has as many lines as its longest cell.
fn lines(row: &[String], widths: &[usize]) -> String {
    let cells: Vec<Vec<String>> =
        row.iter().zip(widths).map(|(cell, width)| wrap(cell, *width)).collect();
    let count = cells.iter().map(Vec::len).max().unwrap_or(0);
    let part = |cell: &Vec<String>, at: usize| cell.get(at).cloned().unwrap_or_default();
    (0..count)
        .map(|at| line(&cells.iter().map(|cell| part(cell, at)).collect::<Vec<_>>(), widths))
        .collect()
}

/// Wraps text at blanks where possible.
fn wrap(text: &str, width: usize) -> Vec<String> {
    if text.chars().count() <= width {
        return vec![text.to_owned()];
    }
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let letters: Vec<char> = word.chars().collect();
        for piece in letters.chunks(width.max(1)) {
            let piece: String = piece.iter().collect();
            match lines.last_mut() {
                Some(last) if last.is_empty() => *last = piece,
                Some(last) if last.chars().count() + 1 + piece.chars().count() <= width => {
                    last.push(' ');
                    last.push_str(&piece);
                }
                _ => lines.push(piece),
            }
        }
    }
    lines
}

fn line(row: &[String], widths: &[usize]) -> String {
    let padded = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
    format!("{}\n", padded.collect::<Vec<_>>().join("  ").trim_end())
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn x53_table_cells_have_no_control_characters() {
        let rows =
            [["a".to_owned(), "long one".to_owned()], ["\u{1b}[2J".to_owned(), String::new()]];
        assert_eq!(
            table(["N", "WHAT"], &rows),
            "N          WHAT\na          long one\n\\u{1b}[2J\n"
        );
    }

    #[test]
    fn wide_rows_are_broken_to_fit_the_terminal() {
        let row = [
            "sda",
            "500.1 GB",
            "Samsung SSD 970 EVO Plus",
            "S4EVNF0M123456",
            "no: mounted at /home",
        ];
        let rows = [row.map(str::to_owned), ["sdb", "1 GB", "-", "-", "yes"].map(str::to_owned)];
        let headings = ["NAME", "SIZE", "MODEL", "SERIAL", "LENDABLE"];
        let text = table_of_width(headings, &rows, Some(56));
        assert!(text.lines().all(|line| line.chars().count() <= 56), "{text}");
        let wanted = "\
NAME  SIZE      MODEL        SERIAL          LENDABLE
sda   500.1 GB  Samsung SSD  S4EVNF0M123456  no: mounted
                970 EVO                      at /home
                Plus
sdb   1 GB      -            -               yes
";
        assert_eq!(text, wanted);
        let narrow = table_of_width(headings, &rows, Some(3));
        assert!(narrow.contains("S4EVNF0M\n") || narrow.contains("S4EVNF0M "), "{narrow}");
        assert_eq!(table_of_width(headings, &rows, None).lines().count(), 3);
    }
}
