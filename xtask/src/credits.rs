//! The documents that are distributed with the program: its own licences, and those of everything
//! that is linked into it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::architecture::Architecture;
use crate::cargo::{self, list, text, workspace};
use crate::install::Piece;

/// Prefixes of the names of licence files.
const NAMES: [&str; 4] = ["LICENSE", "LICENCE", "COPYING", "UNLICENSE"];

/// The introduction of the list.
const HEAD: &str = "\
The program storagetm is linked with the crates below, and with the standard library of Rust (Apache-2.0 OR MIT).
Where it was built for the GNU C library, it also holds parts of that library, under LGPL-2.1-or-later; to relink it with
another version, build it again from its source.
";

/// The directory of the documents.
pub(crate) const FOLDER: &str = "share/doc/storagetm";

/// Returns all documents.
pub(crate) fn pieces(architecture: Architecture) -> Result<Vec<Piece>> {
    let mut pieces =
        vec![paper("third-party-licences.txt", third_parties(architecture)?.into_bytes())];
    for name in ["LICENSE-APACHE", "LICENSE-MIT"] {
        pieces.push(paper(name, fs::read(workspace().join(name))?));
    }
    Ok(pieces)
}

/// Returns a document.
pub(crate) fn paper(name: &str, content: Vec<u8>) -> Piece {
    Piece { path: format!("{FOLDER}/{name}"), content, is_program: false }
}

/// Each crate with its licence, then each licence text once.
pub(crate) fn third_parties(architecture: Architecture) -> Result<String> {
    let metadata = metadata(architecture)?;
    let mut page = HEAD.to_owned();
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in foreign(&metadata)? {
        let name = format!("{} {}", text(package, "name"), text(package, "version"));
        writeln!(page, "\n{name}: {}", text(package, "license"))?;
        for content in licence_texts(Path::new(text(package, "manifest_path")))? {
            texts.entry(content).or_default().push(name.clone());
        }
    }
    for (content, names) in texts {
        let rule = "-".repeat(80);
        write!(page, "\n{rule}\n{}\n{rule}\n{}\n", names.join(", "), content.trim_end())?;
    }
    Ok(page)
}

/// Returns the crates of others that are linked into storagetm.
pub(crate) fn foreign(metadata: &Value) -> Result<Vec<&Value>> {
    let linked = linked(metadata)?;
    let is_foreign = |package: &&Value| {
        linked.contains(text(package, "id")) && !package.get("source").is_none_or(Value::is_null)
    };
    Ok(list(metadata, "packages").iter().filter(is_foreign).collect())
}

pub(crate) fn metadata(architecture: Architecture) -> Result<Value> {
    let mut command = cargo::command(&["metadata", "--format-version", "1", "--locked"]);
    let output = command.args(["--filter-platform", &architecture.triple()]).output()?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Returns the identifiers of the packages that are linked into storagetm.
fn linked(metadata: &Value) -> Result<BTreeSet<&str>> {
    let nodes = list(metadata.get("resolve").context("nothing is resolved")?, "nodes");
    let packages = list(metadata, "packages");
    let macros = packages.iter().filter(|package| is_macro(package));
    let macros: BTreeSet<&str> = macros.map(|package| text(package, "id")).collect();
    let own = packages.iter().find(|package| text(package, "name") == "storagetm");
    let mut linked = BTreeSet::new();
    let mut open = vec![text(own.context("there is no package storagetm")?, "id")];
    while let Some(id) = open.pop() {
        if !macros.contains(id) && linked.insert(id) {
            let node = nodes.iter().find(|node| text(node, "id") == id);
            let dependencies = node.map_or(&[][..], |node| list(node, "deps"));
            open.extend(dependencies.iter().filter(|it| is_linked(it)).map(|it| text(it, "pkg")));
        }
    }
    Ok(linked)
}

/// Procedural macros run in the compiler only.
fn is_macro(package: &Value) -> bool {
    let mut kinds = list(package, "targets").iter().flat_map(|target| list(target, "kind"));
    kinds.any(|kind| kind.as_str() == Some("proc-macro"))
}

/// Not only for tests, and not only while building.
fn is_linked(dependency: &Value) -> bool {
    list(dependency, "dep_kinds").iter().any(|kind| kind.get("kind").is_none_or(Value::is_null))
}

fn licence_texts(manifest: &Path) -> Result<Vec<String>> {
    let folder = manifest.parent().context("a manifest without a folder")?;
    let mut texts = Vec::new();
    for entry in folder.read_dir().with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
        if path.is_file() && NAMES.iter().any(|start| name.starts_with(start)) {
            texts.push(fs::read_to_string(path)?);
        }
    }
    texts.sort();
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linked_crates_are_credited_and_build_tools_are_not() {
        let page = third_parties(Architecture::Aarch64).unwrap();
        assert!(page.contains("\nrustix "));
        assert!(page.contains("\nclap "));
        assert!(!page.contains("\nproptest "), "only tests use it");
        assert!(!page.contains("\nsyn "), "only the compiler uses it");
        assert!(page.contains("Permission is hereby granted"));
    }
}
