//! Checks that the modules of each crate import each other in one direction only.
//!
//! Modules with the same parent form a graph: an import from anywhere inside one of them to anywhere
//! inside another is an edge. The graph must have no cycle. Imports between a module and those
//! inside it do not count: they are one unit for everybody else.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::cargo::sources;

/// Path of a module in its crate; empty for the root.
type Module = Vec<String>;

/// Edges between modules with the same parent, with an example of each.
type Graph = BTreeMap<String, BTreeMap<String, String>>;

/// Checks every crate in `folder`.
pub(crate) fn check(folder: &Path) -> Result<()> {
    let mut cycles = Vec::new();
    for entry in folder.read_dir()? {
        let krate = entry?;
        let source = krate.path().join("src");
        if source.is_dir() {
            let name = krate.file_name().to_string_lossy().into_owned();
            cycles.extend(cycles_of(&name, &read(&source)?));
        }
    }
    ensure!(cycles.is_empty(), "{}", cycles.join("\n"));
    Ok(())
}

/// Reads the code of each module, without comments, strings and tests.
fn read(source: &Path) -> Result<BTreeMap<Module, String>> {
    let mut modules = BTreeMap::new();
    for path in sources(source)? {
        let relative = path.strip_prefix(source)?.with_extension("");
        let mut module: Module =
            relative.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        if matches!(module.last().map(String::as_str), Some("lib" | "main" | "mod")) {
            module.pop();
        }
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        modules.insert(module, code(&text));
    }
    Ok(modules)
}

/// Returns the code before the tests, without comments and the contents of strings.
fn code(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let is_test = line.trim() == "#[cfg(test)]";
        if is_test && lines.peek().is_some_and(|next| next.contains("mod ")) {
            if lines.next().is_some_and(|next| next.trim_end().ends_with('{')) {
                break;
            }
            continue;
        }
        let line = line.split("//").next().unwrap_or_default();
        code.extend(line.split('"').step_by(2).flat_map(|part| [part, "\"\""]));
        code.push('\n');
    }
    code
}

fn cycles_of(name: &str, modules: &BTreeMap<Module, String>) -> Vec<String> {
    let mut graphs: BTreeMap<Module, Graph> = BTreeMap::new();
    for (from, code) in modules {
        for to in imports(from, code, modules) {
            let common = from.iter().zip(&to).take_while(|(one, other)| one == other).count();
            let (Some(one), Some(other)) = (from.get(common), to.get(common)) else { continue };
            let graph = graphs.entry(from[..common].to_vec()).or_default();
            let edge = format!("{} imports {}", from.join("::"), to.join("::"));
            graph.entry(one.clone()).or_default().entry(other.clone()).or_insert(edge);
        }
    }
    let cycle = |graph: &Graph| graph.keys().find_map(|start| path_back(graph, start));
    let cycles = graphs.values().filter_map(cycle);
    cycles
        .map(|edges| format!("modules of {name} import each other: {}", edges.join(", ")))
        .collect()
}

/// Returns the edges of a path from `start` back to it, if there is one.
fn path_back(graph: &Graph, start: &str) -> Option<Vec<String>> {
    let mut seen = BTreeSet::new();
    let mut paths = vec![(start, Vec::new())];
    while let Some((at, edges)) = paths.pop() {
        for (to, edge) in graph.get(at).into_iter().flatten() {
            let edges = [edges.as_slice(), std::slice::from_ref(edge)].concat();
            if to == start {
                return Some(edges);
            }
            if seen.insert(to) {
                paths.push((to, edges));
            }
        }
    }
    None
}

/// Returns the modules that the code of `from` names in imports and paths.
fn imports(from: &Module, code: &str, modules: &BTreeMap<Module, String>) -> BTreeSet<Module> {
    let mut found = BTreeSet::new();
    let mut rest = String::new();
    let mut statements = code.split("use ");
    rest.push_str(statements.next().unwrap_or_default());
    for statement in statements {
        let (tree, after) = statement.split_once(';').unwrap_or((statement, ""));
        let tree: String = tree.split_whitespace().collect::<Vec<_>>().join(" ");
        found.extend(expand(&tree).iter().filter_map(|path| resolve(from, path, modules)));
        rest.push_str(after);
    }
    let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let paths = rest.split(|c| !is_path(c)).filter(|path| path.contains("::"));
    found.extend(paths.filter_map(|path| resolve(from, path, modules)));
    found
}

/// Expands `a::{b, c::{d, e}}` to `a::b`, `a::c::d` and `a::c::e`.
fn expand(tree: &str) -> Vec<String> {
    let Some((before, inside)) = tree.split_once('{') else {
        return vec![tree.split(" as ").next().unwrap_or_default().trim().to_owned()];
    };
    let inside = inside.rsplit_once('}').map_or(inside, |(inside, _)| inside);
    let parts = split_at_commas(inside);
    let paths = parts.iter().flat_map(|part| expand(part));
    paths.map(|path| format!("{}{path}", before.trim())).collect()
}

/// Splits at the commas that are not inside braces.
fn split_at_commas(text: &str) -> Vec<String> {
    let (mut depth, mut parts) = (0, vec![String::new()]);
    for c in text.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if c == ',' && depth == 0 {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    parts.into_iter().filter(|part| !part.trim().is_empty()).collect()
}

/// Returns the module that a path leads to, if it is one of this crate.
fn resolve(from: &Module, path: &str, modules: &BTreeMap<Module, String>) -> Option<Module> {
    let mut parts = path.trim().split("::").peekable();
    let mut at = match *parts.peek()? {
        "crate" => {
            parts.next();
            Module::new()
        }
        "self" => {
            parts.next();
            from.clone()
        }
        "super" => from.clone(),
        first => {
            let child = [from.as_slice(), &[first.to_owned()]].concat();
            return modules.contains_key(&child).then(|| deepest(from.clone(), parts, modules));
        }
    };
    while parts.next_if_eq(&"super").is_some() {
        at.pop();
    }
    Some(deepest(at, parts, modules))
}

/// Follows the parts of a path as far as they are modules.
fn deepest<'a>(
    mut at: Module,
    parts: impl Iterator<Item = &'a str>,
    modules: &BTreeMap<Module, String>,
) -> Module {
    for part in parts {
        at.push(part.to_owned());
        if !modules.contains_key(&at) {
            at.pop();
            break;
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crate_of(files: &[(&str, &str)]) -> BTreeMap<Module, String> {
        let module = |path: &str| -> Module {
            path.split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect()
        };
        files.iter().map(|(path, text)| (module(path), code(text))).collect()
    }

    #[test]
    fn siblings_that_import_each_other_are_named() {
        let one = ("a", "use crate::b::{self, c::D};");
        let other = ("b::c", "fn f() { super::super::a::g(); }");
        let found = cycles_of("x", &crate_of(&[("", ""), one, ("b", "mod c;"), other]));
        assert_eq!(found, ["modules of x import each other: a imports b, b::c imports a"]);
    }

    #[test]
    fn modules_and_those_inside_them_are_one_unit() {
        let parent = ("a", "mod b;\nuse b::B;");
        let child = ("a::b", "use super::A;");
        assert!(cycles_of("x", &crate_of(&[("", "use a::A;"), parent, child])).is_empty());
    }

    #[test]
    fn tests_comments_and_strings_do_not_count() {
        let one =
            ("a", "// crate::b::x\n\"crate::b::x\";\n#[cfg(test)]\nmod test {\nuse crate::b;\n}");
        let other = ("b", "use crate::a::A;");
        assert!(cycles_of("x", &crate_of(&[("", ""), one, other])).is_empty());
    }
}
