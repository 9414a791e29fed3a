//! The documents that are installed with the program, in the same directories as in the tree. Links
//! to files that are not installed are replaced by links to the repository.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result};

use crate::cargo::workspace;
use crate::credits::FOLDER;
use crate::install::{Piece, list};

/// The URL of the files of the tree.
const REPOSITORY: &str = "https://github.com/storagetm/storagetm/blob/main";
/// Documents in the root, and directories of documents with the suffix of their files.
const TOP: [&str; 3] = ["README.md", "CHANGELOG.md", "SECURITY.md"];
const FOLDERS: [(&str, &str); 2] = [("docs", ".md"), ("docs/conformance", ".md")];
/// Documents for contributors, which are not installed.
const INTERNAL: [&str; 1] = ["docs/cases.md"];

/// Reads all documents.
pub(crate) fn documents() -> Result<Vec<Piece>> {
    let paths = paths()?;
    let read = |path: &String| {
        let text = fs::read_to_string(workspace().join(path)).with_context(|| path.clone())?;
        let content = relinked(&text, path, &paths).into_bytes();
        Ok(Piece { path: format!("{FOLDER}/{path}"), content, is_program: false })
    };
    paths.iter().map(read).collect()
}

fn paths() -> Result<BTreeSet<String>> {
    let mut paths: BTreeSet<String> = TOP.map(str::to_owned).into();
    for (folder, ending) in FOLDERS {
        paths.extend(list(folder)?.into_iter().filter(|path| path.ends_with(ending)));
    }
    paths.retain(|path| !INTERNAL.contains(&path.as_str()));
    Ok(paths)
}

/// Returns the text of the document at `from`, with links to installed documents or to the
/// repository.
fn relinked(text: &str, from: &str, installed: &BTreeSet<String>) -> String {
    let mut result = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("](") {
        let (target, behind) = after.split_once(')').unwrap_or((after, ""));
        let end = if behind.is_empty() && !after.contains(')') { "" } else { ")" };
        let place = resolved(from, target);
        let kept = place.as_ref().is_none_or(|place| installed.contains(place));
        let whole = place.filter(|_| !kept).map(|place| format!("{REPOSITORY}/{place}"));
        result.push_str(&format!("{before}]({}{end}", whole.as_deref().unwrap_or(target)));
        rest = behind;
    }
    result + rest
}

/// Returns the path in the tree of a link in the document at `from`; `None` for an external link.
fn resolved(from: &str, target: &str) -> Option<String> {
    let path = target.split('#').next().filter(|path| !path.is_empty() && !path.contains(':'))?;
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in path.split('/') {
        match part {
            ".." => drop(parts.pop()),
            "." | "" => {}
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the targets of a document's links.
    fn targets(text: &str) -> impl Iterator<Item = &str> {
        text.split("](").skip(1).filter_map(|rest| rest.split(')').next())
    }

    #[test]
    fn installed_documents_have_no_dead_links() {
        let pieces = documents().unwrap();
        let installed: BTreeSet<&str> = pieces.iter().map(|piece| piece.path.as_str()).collect();
        for path in ["README.md", "docs/boot.md", "docs/conformance/nbd.md"] {
            assert!(installed.contains(format!("{FOLDER}/{path}").as_str()), "{path}");
        }
        for piece in &pieces {
            let text = String::from_utf8_lossy(&piece.content);
            for target in targets(&text) {
                if let Some(place) = resolved(&piece.path, target) {
                    assert!(installed.contains(place.as_str()), "{}: {target}", piece.path);
                }
                if let Some(path) = target.strip_prefix(&format!("{REPOSITORY}/")) {
                    let path = path.split('#').next().unwrap();
                    assert!(workspace().join(path).exists(), "{}: {target}", piece.path);
                }
            }
        }
    }

    #[test]
    fn links_lead_to_installed_documents_or_to_the_repository() {
        let installed = BTreeSet::from(["docs/b.md".to_owned()]);
        let text = "[b](b.md#x) [c](../c.md) [w](https://w.example/) [h](#here)";
        let wanted =
            format!("[b](b.md#x) [c]({REPOSITORY}/c.md) [w](https://w.example/) [h](#here)");
        assert_eq!(relinked(text, "docs/a.md", &installed), wanted);
    }
}
