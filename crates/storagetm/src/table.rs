//! Rows of text in columns. It knows not what is in them.

use console::printable;

/// Columns as wide as what is in them; the last is as long as it is.
pub(crate) fn table<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> String {
    let mut cells = vec![headings.map(str::to_owned)];
    cells.extend(rows.iter().map(|row| row.clone().map(|cell| printable(&cell, true))));
    let width = |at: usize| {
        cells.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..N).map(|at| width(at).unwrap_or(0)).collect();
    cells.iter().map(|row| line(row, &widths)).collect()
}

fn line(row: &[String], widths: &[usize]) -> String {
    let padded = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
    format!("{}\n", padded.collect::<Vec<_>>().join("  ").trim_end())
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn x53_columns_hold_what_they_are_given_and_nothing_that_steers_a_terminal() {
        let rows =
            [["a".to_owned(), "long one".to_owned()], ["\u{1b}[2J".to_owned(), String::new()]];
        assert_eq!(
            table(["N", "WHAT"], &rows),
            "N          WHAT\na          long one\n\\u{1b}[2J\n"
        );
    }
}
