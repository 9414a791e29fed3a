//! `cargo xtask words`: how the sources are written. Counts phrases in comments that CONTRIBUTING.md advises against, and
//! finds names of tests, functions and files that are too long.

use std::cmp::Reverse;
use std::fs;

use anyhow::{Context, Result};

use crate::cargo::sources;
use crate::cargo::workspace;
use crate::tally::Tally;

/// A phrase, and how often it may occur in 1000 words of comments.
struct Phrase {
    name: &'static str,
    limit: f64,
    /// Whether the phrase begins with the first of two words. The second is empty behind the last word.
    is_at: fn(&str, &str) -> bool,
}

/// The limits are what quinn, rustls, smoltcp, propolis and ripgrep keep to.
const PHRASES: [Phrase; 5] = [
    Phrase {
        name: "says, said, tells, told, hears, speaks",
        limit: 0.5,
        is_at: |word, _| matches!(word, "says" | "said" | "tells" | "told" | "hears" | "speaks"),
    },
    Phrase {
        // The owner of a file is a term.
        name: "who, owner, stranger, somebody, nobody",
        limit: 0.15,
        is_at: |word, _| matches!(word, "who" | "owner" | "stranger" | "somebody" | "nobody"),
    },
    Phrase {
        name: "knows no, knows not, knows nothing",
        limit: 0.05,
        is_at: |word, next| word == "knows" && matches!(next, "no" | "not" | "nothing"),
    },
    Phrase {
        name: "is no, are no",
        limit: 0.4,
        is_at: |word, next| matches!(word, "is" | "are") && next == "no",
    },
    Phrase {
        name: "sentences that begin with Who, Whom or Whose",
        limit: 0.05,
        is_at: |word, _| matches!(word, "Who" | "Whom" | "Whose"),
    },
];

/// A search for what is too long in a source file. It returns a line for each finding.
struct Length {
    name: &'static str,
    find: fn(&Source) -> Vec<String>,
}

const LENGTHS: [Length; 3] = [
    Length { name: "names of tests", find: long_test_names },
    Length { name: "functions", find: long_functions },
    Length { name: "files", find: long_file },
];

/// The longest name of a test, in bytes.
const TEST_NAME: usize = 60;
/// The longest function, and the longest file before its unit tests, in lines.
const FUNCTION: usize = 60;
const FILE: usize = 500;
/// How many files are printed for a phrase.
const WORST: usize = 5;

struct Source {
    /// Relative to the workspace.
    path: String,
    text: String,
}

/// The result of one check.
struct Finding {
    name: String,
    details: Vec<String>,
    holds: bool,
}

/// Prints and checks everything.
pub(crate) fn run() -> Result<Tally> {
    let mut tally = Tally::default();
    for finding in findings()? {
        if finding.holds {
            finding.details.iter().for_each(|line| println!("# {line}"));
            tally.pass(&finding.name);
        } else {
            tally.fail(&finding.name, &finding.details.join("\n"));
        }
    }
    Ok(tally)
}

fn findings() -> Result<Vec<Finding>> {
    let mut sources = read(&["crates", "xtask/src", "bench/src"])?;
    let mut found: Vec<Finding> = LENGTHS.iter().map(|it| too_long(it, &sources)).collect();
    sources.retain(|source| is_code_of_a_crate(&source.path));
    let comments: Vec<(&str, Vec<&str>)> =
        sources.iter().map(|source| (source.path.as_str(), comment_words(&source.text))).collect();
    found.extend(PHRASES.iter().map(|phrase| frequency(phrase, &comments)));
    Ok(found)
}

fn read(folders: &[&str]) -> Result<Vec<Source>> {
    let mut found = Vec::new();
    for folder in folders {
        for path in sources(&workspace().join(folder))? {
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            let path = path.strip_prefix(workspace()).unwrap_or(&path).display().to_string();
            found.push(Source { path, text });
        }
    }
    Ok(found)
}

/// Whether a path is `crates/NAME/src/...`.
fn is_code_of_a_crate(path: &str) -> bool {
    path.starts_with("crates/") && path.split('/').nth(2) == Some("src")
}

fn too_long(length: &Length, sources: &[Source]) -> Finding {
    let of = |source: &Source| {
        let lines = (length.find)(source);
        lines.into_iter().map(|line| format!("{}: {line}", source.path)).collect::<Vec<_>>()
    };
    let details: Vec<String> = sources.iter().flat_map(of).collect();
    let name = format!("words: length of {}", length.name);
    Finding { name, holds: details.is_empty(), details }
}

/// Counts a phrase in the comments of all files, and lists the files that have most of it.
fn frequency(phrase: &Phrase, comments: &[(&str, Vec<&str>)]) -> Finding {
    let words: usize = comments.iter().map(|(_, words)| words.len()).sum();
    let counted = comments.iter().map(|(path, words)| (occurrences(phrase, words), *path));
    let mut counted: Vec<(usize, &str)> = counted.filter(|(count, _)| *count > 0).collect();
    counted.sort_by_key(|(count, _)| Reverse(*count));
    let sum: usize = counted.iter().map(|(count, _)| count).sum();
    let rate = sum as f64 * 1000.0 / words.max(1) as f64;
    let mut details = vec![format!("{rate:.2} in 1000 words, limit {}", phrase.limit)];
    details.extend(counted.iter().take(WORST).map(|(count, path)| format!("{count:4} {path}")));
    let name = format!("words: {}", phrase.name);
    Finding { name, details, holds: rate <= phrase.limit }
}

fn occurrences(phrase: &Phrase, words: &[&str]) -> usize {
    let next = words.iter().skip(1).chain(&[""]);
    words.iter().zip(next).filter(|(word, next)| (phrase.is_at)(word, next)).count()
}

/// The words of the comment lines, without punctuation. Backticks stay, so that code is not counted as a word.
fn comment_words(source: &str) -> Vec<&str> {
    let lines = source.lines().filter_map(|line| line.trim_start().strip_prefix("//"));
    let words = lines.flat_map(|line| line.trim_start_matches(['/', '!']).split_whitespace());
    let is_mark = |c: char| !c.is_alphanumeric() && c != '`';
    words.map(|word| word.trim_matches(is_mark)).filter(|word| !word.is_empty()).collect()
}

fn long_test_names(source: &Source) -> Vec<String> {
    let mut names = Vec::new();
    let mut is_test = false;
    for line in source.text.lines().map(str::trim) {
        is_test |= line == "#[test]";
        if let Some((_, rest)) = line.split_once("fn ").filter(|_| is_test) {
            let name = rest.split('(').next().unwrap_or_default();
            names.extend((name.len() > TEST_NAME).then(|| name.to_owned()));
            is_test = false;
        }
    }
    names
}

/// Expects the layout of rustfmt: a function ends at the next brace that is indented as its first line is.
fn long_functions(source: &Source) -> Vec<String> {
    let lines = code_lines(source);
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let Some((before, rest)) = code.split_once("fn ") else { continue };
        let qualifiers = ["pub", "pub(crate)", "pub(super)", "const", "unsafe"];
        if before.split_whitespace().any(|word| !qualifiers.contains(&word)) {
            continue;
        }
        let end = format!("{}}}", &line[..line.len() - code.len()]);
        let is_one_line = line.ends_with([';', '}']);
        let last = lines[at..].iter().position(|line| *line == end).filter(|_| !is_one_line);
        if let Some(last) = last.filter(|last| *last >= FUNCTION) {
            let name = rest.split(['(', '<']).next().unwrap_or_default();
            found.push(format!("{name}: {} lines", last + 1));
        }
    }
    found
}

fn long_file(source: &Source) -> Vec<String> {
    let length = code_lines(source).len();
    (length > FILE).then(|| format!("{length} lines")).into_iter().collect()
}

/// The lines before the unit tests; none of a file of tests.
fn code_lines(source: &Source) -> Vec<&str> {
    let mut folders = source.path.split('/');
    let is_test = |name: &str| matches!(name, "tests" | "test" | "test.rs" | "tests.rs");
    if folders.any(is_test) {
        return Vec::new();
    }
    source.text.lines().take_while(|line| *line != "#[cfg(test)]").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn phrases_are_counted_in_comments_only() {
        let text = "//! Whose is it? It knows\n//! nothing of `who`.\nlet owner = 1; // who\n";
        let comments = [("a.rs", comment_words(text))];
        assert_eq!(comments[0].1.len(), 8);
        let counts = PHRASES.map(|phrase| occurrences(&phrase, &comments[0].1));
        assert_eq!(counts, [0, 0, 1, 0, 1]);
        let finding = frequency(&PHRASES[2], &comments);
        assert_eq!(finding.details, ["125.00 in 1000 words, limit 0.05", "   1 a.rs"]);
        assert!(!finding.holds);
    }

    #[test]
    fn long_names_of_tests_are_found() {
        let [long, longest] = [61, 60].map(|length| "n".repeat(length));
        let text = format!("#[test]\n#[ignore]\nfn {long}() {{}}\nfn {long}_helper() {{}}\n");
        assert_eq!(long_test_names(&source("a.rs", &text)), [long]);
        assert!(
            long_test_names(&source("a.rs", &format!("#[test]\nfn {longest}() {{}}"))).is_empty()
        );
    }

    #[test]
    fn long_functions_and_files_are_found() {
        let body = "        line;\n".repeat(59);
        let text = format!(
            "impl A {{\n    pub fn long(&self) {{\n{body}    }}\n    fn short() {{}}\n}}\n"
        );
        assert_eq!(long_functions(&source("a.rs", &text)), ["long: 61 lines"]);
        assert!(long_functions(&source("crates/a/tests/a.rs", &text)).is_empty());
        let text = "line\n".repeat(501);
        assert_eq!(long_file(&source("a.rs", &text)), ["501 lines"]);
        assert!(long_file(&source("a.rs", &text.replacen("line", "#[cfg(test)]", 9))).is_empty());
    }

    #[test]
    fn phrases_are_counted_in_the_code_of_crates() {
        assert!(is_code_of_a_crate("crates/a/src/b.rs"));
        assert!(!is_code_of_a_crate("crates/a/tests/b.rs"));
        assert!(!is_code_of_a_crate("xtask/src/b.rs"));
    }
}
