//! Checks the licence of every dependency against `deny.toml`, for machines without cargo-deny.

use std::collections::BTreeSet;

use anyhow::{Context, Result};

use crate::cargo::{list, metadata, text, workspace};
use crate::tally::Tally;

/// Checks all dependencies.
pub(crate) fn run() -> Result<Tally> {
    let mut tally = Tally::default();
    tally.check("licences", check());
    Ok(tally)
}

fn check() -> Result<()> {
    let allowed = allowed(&std::fs::read_to_string(workspace().join("deny.toml"))?)?;
    let metadata = metadata(true)?;
    let refused = |package: &&serde_json::Value| !permits(text(package, "license"), &allowed);
    let name = |package| {
        format!(
            "{} {}: {}",
            text(package, "name"),
            text(package, "version"),
            text(package, "license")
        )
    };
    let refused: Vec<String> =
        list(&metadata, "packages").iter().filter(refused).map(name).collect();
    anyhow::ensure!(refused.is_empty(), "not allowed by deny.toml:\n{}", refused.join("\n"));
    Ok(())
}

/// Returns the allowed licences of `deny.toml`.
fn allowed(deny: &str) -> Result<BTreeSet<String>> {
    let deny: toml::Table = deny.parse()?;
    let names = deny.get("licenses").and_then(|section| section.get("allow")?.as_array());
    let names = names.context("deny.toml has no list licenses.allow")?;
    Ok(names.iter().filter_map(|name| Some(name.as_str()?.to_owned())).collect())
}

/// Returns whether an expression can be satisfied by allowed licences.
fn permits(expression: &str, allowed: &BTreeSet<String>) -> bool {
    // The slash is the old notation of OR.
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut words = words.into_iter().peekable();
    any(&mut words, allowed) && words.peek().is_none()
}

type Words<'a> = std::iter::Peekable<std::vec::IntoIter<&'a str>>;

fn any(words: &mut Words<'_>, allowed: &BTreeSet<String>) -> bool {
    let mut permitted = all(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        permitted |= all(words, allowed);
    }
    permitted
}

fn all(words: &mut Words<'_>, allowed: &BTreeSet<String>) -> bool {
    let mut permitted = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        permitted &= one(words, allowed);
    }
    permitted
}

fn one(words: &mut Words<'_>, allowed: &BTreeSet<String>) -> bool {
    if words.next_if_eq(&"(").is_some() {
        return any(words, allowed) & words.next_if_eq(&")").is_some();
    }
    let Some(name) = words.next() else { return false };
    match words.next_if_eq(&"WITH").and_then(|_| words.next()) {
        // An exception only adds permissions.
        Some(exception) => {
            allowed.contains(&format!("{name} WITH {exception}")) || allowed.contains(name)
        }
        None => allowed.contains(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_read_with_their_operators() {
        let allowed = allowed("[licenses]\nallow = ['MIT', 'Unicode-3.0']").unwrap();
        for good in
            ["MIT", "MIT OR GPL-3.0", "Apache-2.0/MIT", "(MIT OR X) AND Unicode-3.0", "MIT WITH y"]
        {
            assert!(permits(good, &allowed), "{good}");
        }
        for bad in ["", "GPL-3.0", "MIT AND GPL-3.0", "(MIT", "MIT MIT", "X OR Y", "X AND MIT OR Z"]
        {
            assert!(!permits(bad, &allowed), "{bad}");
        }
    }
}
