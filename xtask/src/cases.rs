//! Checks the ids of test cases: a test whose name begins with `r41_` or `x53_` names a case, which docs/cases.md defines.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::cargo::sources;
use crate::cargo::workspace;
use crate::tally::Tally;

const PAGE: &str = "docs/cases.md";
/// The heading of the list of cases without a test, which ends the page.
const UNTESTED: &str = "## Without a test of its name\n";
/// The maximum line length of the page.
const WIDTH: usize = 120;

/// Writes the list of cases without a test into the page, then checks the page.
pub(crate) fn run() -> Result<Tally> {
    let mut tally = Tally::default();
    tally.check("cases", write().and_then(|()| check()));
    Ok(tally)
}

fn write() -> Result<()> {
    let page = read()?;
    let untested: BTreeSet<String> = defined(&page).difference(&named()?).cloned().collect();
    let body = page.split_once(UNTESTED).context("the page has no list of untested cases")?.0;
    Ok(fs::write(workspace().join(PAGE), format!("{body}{UNTESTED}\n{}", lines(&untested)))?)
}

/// Fails if a test names a case that is not defined, or if a case has no test and the page does not list it as such.
pub(crate) fn check() -> Result<()> {
    compare(&read()?, &named()?)
}

fn compare(page: &str, named: &BTreeSet<String>) -> Result<()> {
    let defined = defined(page);
    let unknown: Vec<&str> = named.difference(&defined).map(String::as_str).collect();
    ensure!(unknown.is_empty(), "tests name {}, which {PAGE} does not define", unknown.join(", "));
    let listed = listed(page);
    let lost = defined.iter().filter(|id| !named.contains(*id) && !listed.contains(*id));
    let lost: Vec<&str> = lost.map(String::as_str).collect();
    ensure!(
        lost.is_empty(),
        "no test names {}: write one, or list it in {PAGE} (cargo xtask cases)",
        lost.join(", ")
    );
    let gained: Vec<&str> = listed.intersection(named).map(String::as_str).collect();
    if !gained.is_empty() {
        println!("# {} have tests now: cargo xtask cases", gained.join(", "));
    }
    Ok(())
}

fn read() -> Result<String> {
    fs::read_to_string(workspace().join(PAGE)).context(PAGE)
}

/// Returns the ids in the page's tables.
fn defined(page: &str) -> BTreeSet<String> {
    let cells = page.lines().filter_map(|line| line.strip_prefix("| ")?.split_once(" |"));
    cells.map(|(id, _)| id.to_owned()).filter(|id| is_id(id)).collect()
}

/// Returns the ids in the page's list of untested cases.
fn listed(page: &str) -> BTreeSet<String> {
    let list = page.split_once(UNTESTED).map_or("", |(_, list)| list);
    list.split([',', ' ', '\n']).filter(|word| is_id(word)).map(str::to_owned).collect()
}

/// Returns the ids with which names of tests begin.
fn named() -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for folder in ["crates", "xtask/src", "bench/src"] {
        for path in sources(Path::new(&workspace().join(folder)))? {
            let source = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            found.extend(source.lines().flat_map(ids));
        }
    }
    Ok(found)
}

/// Returns the ids at the beginning of the function name that a line of code declares.
fn ids(line: &str) -> Vec<String> {
    let Some((_, name)) = line.split_once("fn ") else { return Vec::new() };
    let words = name.split('_').map(str::to_ascii_uppercase);
    words.skip_while(|word| word == "INTEROP").take_while(|word| is_id(word)).collect()
}

/// A letter and two digits.
fn is_id(word: &str) -> bool {
    let digits = word.strip_prefix(['R', 'X']).unwrap_or_default();
    digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_digit())
}

fn lines(ids: &BTreeSet<String>) -> String {
    let mut text = String::new();
    let mut width = 0;
    for (at, id) in ids.iter().enumerate() {
        let end = if at + 1 == ids.len() { "" } else { "," };
        if width + id.len() + 2 > WIDTH {
            text.push('\n');
            width = 0;
        } else if width > 0 {
            text.push(' ');
            width += 1;
        }
        text.push_str(id);
        text.push_str(end);
        width += id.len() + end.len();
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ids: &[&str]) -> BTreeSet<String> {
        ids.iter().map(|&id| id.to_owned()).collect()
    }

    #[test]
    fn ids_are_read_from_names_of_functions_only() {
        assert_eq!(ids("    fn r15_r46_nbdkit_reads_our_map() {"), ["R15", "R46"]);
        assert_eq!(ids("fn interop_x02_plain_connection() {"), ["X02"]);
        assert!(ids("fn read_x01(x86: u8) {").is_empty());
        assert!(ids("// r15_ is a prefix").is_empty());
    }

    #[test]
    fn undefined_and_untested_cases_fail() {
        let page = format!("| id | case |\n| R01 | a |\n| X02 | b |\n{UNTESTED}\nX02\n");
        assert!(compare(&page, &set(&["R01"])).is_ok());
        // A new test does not fail the check, so that it can be added without a change of the page.
        assert!(compare(&page, &set(&["R01", "X02"])).is_ok());
        let unknown = compare(&page, &set(&["R01", "R99"])).unwrap_err().to_string();
        assert!(unknown.starts_with("tests name R99"), "{unknown}");
        let lost = compare(&page, &set(&[])).unwrap_err().to_string();
        assert!(lost.starts_with("no test names R01:"), "{lost}");
    }

    #[test]
    fn list_of_untested_cases_round_trips() {
        let ids: BTreeSet<String> = (0..99).map(|number| format!("R{number:02}")).collect();
        let page = format!("{UNTESTED}\n{}", lines(&ids));
        assert_eq!(listed(&page), ids);
        assert!(page.lines().all(|line| line.len() <= WIDTH));
    }
}
