//! Checks the dependencies between the crates, and where unsafe code is.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cargo::{list, metadata, sources, text, workspace};
use crate::modules;
use crate::tally::Tally;

/// The crates of the workspace that each crate may import. A crate that is not listed may import
/// all: it is a program, a test or a tool, and no crate may import it.
const ARROWS: &[(&str, &[&str])] = &[
    ("export", &[]),
    ("nvme", &["export"]),
    ("nbd", &["export"]),
    ("scsi", &["export"]),
    ("iscsi", &["export", "scsi"]),
    ("usb", &["export", "scsi"]),
    ("web", &["export", "filesystem"]),
    ("engine", &["export"]),
    ("linux", &["export"]),
    ("console", &["export", "protocol"]),
    ("pair", &["export"]),
    ("client", &["export", "iscsi", "nbd", "nvme", "pair"]),
    ("copy", &["client", "export", "iscsi", "nbd", "nvme"]),
    ("image", &["export", "linux"]),
    ("filesystem", &["export", "linux"]),
    ("failure", &["console"]),
    ("fetch", &[]),
    ("varlink", &[]),
    ("protocol", &["export", "iscsi", "nbd", "nvme", "web"]),
    ("ipc", &["linux"]),
    ("keys", &["console", "export", "failure", "iscsi", "linux", "nbd", "nvme", "pair"]),
    ("dnssd", &["failure", "ipc", "linux", "nvme", "protocol"]),
    (
        "remote",
        &[
            "client", "dnssd", "engine", "export", "failure", "fetch", "iscsi", "keys", "linux",
            "nvme", "protocol",
        ],
    ),
    (
        "daemon",
        &[
            "console",
            "engine",
            "export",
            "failure",
            "filesystem",
            "ipc",
            "iscsi",
            "keys",
            "linux",
            "nbd",
            "nvme",
            "pair",
            "protocol",
            "usb",
            "web",
        ],
    ),
];

/// The crates that only tests and this program may import, and what each may import.
const OF_TESTS: &[(&str, &[&str])] = &[("programs", &[]), ("testkit", &["export"])];

/// The only files that may hold unsafe code.
const UNSAFE_FILES: &[&str] = &[
    "crates/engine/src/disk/mapping.rs",
    "crates/engine/src/tls/s2n.rs",
    "crates/engine/src/uring/ring.rs",
    "crates/linux/src/syscall.rs",
];

/// The crates of those files: they deny unsafe code, the others forbid it.
const UNSAFE_CRATES: &[&str] = &["engine", "linux"];

/// Checks the workspace as four tests.
pub(crate) fn run() -> Result<Tally> {
    let mut tally = Tally::default();
    let members = members()?;
    tally.check("layers", check_arrows(&members));
    tally.check("modules", modules::check(&workspace().join("crates")));
    tally.check("unsafe forbidden", check_roots(&members));
    tally.check("unsafe files", check_files(&workspace().join("crates")));
    Ok(tally)
}

/// A crate of the workspace.
#[derive(Debug)]
struct Member {
    name: String,
    imports: Vec<String>,
    roots: Vec<PathBuf>,
}

fn members() -> Result<Vec<Member>> {
    let metadata = metadata(false)?;
    let packages = list(&metadata, "packages");
    let names: Vec<&str> = packages.iter().map(|package| text(package, "name")).collect();
    Ok(packages.iter().map(|package| member(package, &names)).collect())
}

fn member(package: &Value, ours: &[&str]) -> Member {
    // Dependencies of tests are not restricted.
    let dependencies =
        list(package, "dependencies").iter().filter(|it| text(it, "kind").is_empty());
    let imports = dependencies.map(|it| text(it, "name")).filter(|name| ours.contains(name));
    let of_code = |target: &&Value| {
        list(target, "kind").iter().any(|kind| matches!(kind.as_str(), Some("lib" | "bin")))
    };
    let roots = list(package, "targets").iter().filter(of_code);
    Member {
        name: text(package, "name").to_owned(),
        imports: imports.map(str::to_owned).collect(),
        roots: roots.map(|target| PathBuf::from(text(target, "src_path"))).collect(),
    }
}

fn check_arrows(members: &[Member]) -> Result<()> {
    let wrong: Vec<String> = members.iter().flat_map(wrong_imports).collect();
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

fn wrong_imports(member: &Member) -> Vec<String> {
    let libraries = || ARROWS.iter().map(|(name, _)| *name).chain(["storagetm"]);
    let rule = ARROWS.iter().chain(OF_TESTS).find(|(name, _)| *name == member.name);
    let allowed: Vec<&str> = rule.map_or_else(|| libraries().collect(), |(_, to)| to.to_vec());
    let of_tests = |name: &str| member.name == "xtask" && OF_TESTS.iter().any(|of| of.0 == name);
    let allows = |name: &str| allowed.contains(&name) || of_tests(name);
    let wrong = member.imports.iter().filter(|name| !allows(name));
    wrong.map(|name| format!("{} must not import {name}", member.name)).collect()
}

fn check_roots(members: &[Member]) -> Result<()> {
    for member in members {
        let word = if UNSAFE_CRATES.contains(&member.name.as_str()) { "deny" } else { "forbid" };
        for root in &member.roots {
            let source = std::fs::read_to_string(root)?;
            ensure!(
                source.contains(&format!("#![{word}(unsafe_code)]")),
                "{} lacks #![{word}(unsafe_code)]",
                root.display()
            );
        }
    }
    Ok(())
}

fn check_files(folder: &Path) -> Result<()> {
    for path in sources(folder)? {
        let name = path.strip_prefix(workspace()).unwrap_or(&path).display().to_string();
        let source = std::fs::read_to_string(&path).with_context(|| name.clone())?;
        if let Some(line) = source.lines().find(|line| has_unsafe(line)) {
            ensure!(
                UNSAFE_FILES.contains(&name.as_str()),
                "{name} holds unsafe code: {}",
                line.trim()
            );
        }
    }
    Ok(())
}

/// Returns whether the code of a line, not its comment, contains `unsafe`.
fn has_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member_of(name: &str, imports: &[&str]) -> Member {
        let imports = imports.iter().map(|&name| name.to_owned()).collect();
        Member { name: name.to_owned(), imports, roots: Vec::new() }
    }

    #[test]
    fn forbidden_import_is_reported() {
        assert!(check_arrows(&[member_of("nvme", &["export"])]).is_ok());
        assert!(check_arrows(&[member_of("storagetm", &["nvme", "engine", "linux"])]).is_ok());
        let wrong = check_arrows(&[member_of("nvme", &["export", "engine"])]).unwrap_err();
        assert_eq!(wrong.to_string(), "nvme must not import engine");
        assert!(check_arrows(&[member_of("export", &["nvme"])]).is_err());
        assert!(check_arrows(&[member_of("storagetm", &["xtask"])]).is_err());
        assert!(check_arrows(&[member_of("xtask", &["programs", "storagetm"])]).is_ok());
        assert!(check_arrows(&[member_of("storagetm", &["programs"])]).is_err());
        assert!(check_arrows(&[member_of("testkit", &["export"])]).is_ok());
        assert!(check_arrows(&[member_of("testkit", &["nbd"])]).is_err());
        assert!(check_arrows(&[member_of("nbd", &["testkit"])]).is_err());
    }

    #[test]
    fn unsafe_is_found_in_code_only() {
        assert!(has_unsafe("    let x = unsafe { y() };"));
        assert!(!has_unsafe("#![forbid(unsafe_code)]"));
        assert!(!has_unsafe("// unsafe is not used"));
    }
}
