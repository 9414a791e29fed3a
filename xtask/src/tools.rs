//! External programs that the tests run: reports the missing ones, and installs them with apt-get and pipx.
//! The table of them is in the crate `programs`.

use std::collections::BTreeSet;
use std::io::{IsTerminal, Write};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use programs::{PIPX, Program};

/// Installs missing programs if `install`, or if the user agrees on the terminal; otherwise prints
/// that tests will be skipped.
///
/// # Errors
/// Fails if programs of Debian are still missing after an installation.
pub(crate) fn provide(install: bool) -> Result<()> {
    let missing = programs::missing();
    if missing.is_empty() {
        return Ok(());
    }
    println!("# not installed: {}", names(&missing).join(", "));
    if install || is_agreed_to(&missing)? {
        until_complete(|| of_debian(programs::missing()), apt_get)?;
        install_python(&programs::missing());
        return Ok(());
    }
    println!(
        "# tests that need them will be skipped; `cargo xtask test --install` installs them on Debian"
    );
    Ok(())
}

/// Prints which tests do not run on this machine, by missing program.
pub(crate) fn report() {
    for program in programs::missing() {
        let Program { name, package, tests } = program;
        println!("not tested: {tests}: needs {name} (package {package})");
    }
}

fn names(programs: &[&Program]) -> Vec<&'static str> {
    programs.iter().map(|program| program.name).collect()
}

fn packages(programs: &[&Program]) -> BTreeSet<&'static str> {
    programs.iter().map(|program| program.package).collect()
}

/// Asks the user, if there is a terminal and apt-get.
fn is_agreed_to(missing: &[&Program]) -> Result<bool> {
    let mut input = std::io::stdin();
    let can_ask = input.is_terminal() && std::io::stdout().is_terminal();
    if !can_ask || !programs::is_installed("apt-get") {
        return Ok(false);
    }
    let list: Vec<&str> = packages(missing).into_iter().collect();
    print!("Install the packages {} with apt-get, as root, and pipx? [y/N] ", list.join(" "));
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(&mut input), &mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Installs until nothing is missing. apt-get may remove a package to make room for another
/// (qemu-utils of a newer release for qemu-system-x86), so it is called again with all packages
/// requested so far.
///
/// # Errors
/// Fails if the same programs are missing for a second time.
fn until_complete(
    mut missing: impl FnMut() -> Vec<&'static Program>,
    mut install: impl FnMut(&BTreeSet<&str>) -> Result<()>,
) -> Result<()> {
    let mut wanted = BTreeSet::new();
    let mut seen = BTreeSet::new();
    loop {
        let now = missing();
        if now.is_empty() {
            return Ok(());
        }
        let list: Vec<String> =
            now.iter().map(|program| format!("{} ({})", program.name, program.package)).collect();
        ensure!(seen.insert(names(&now)), "still not installed: {}", list.join(", "));
        wanted.extend(packages(&now));
        install(&wanted)?;
    }
}

/// The programs that apt-get installs.
fn of_debian(mut missing: Vec<&'static Program>) -> Vec<&'static Program> {
    missing.retain(|program| !program.package.starts_with(PIPX));
    missing
}

/// Installs packages of PyPI. Without them their tests are skipped: not every machine reaches it.
fn install_python(missing: &[&Program]) {
    for package in missing.iter().filter_map(|program| program.package.strip_prefix(PIPX)) {
        println!("# pipx install {package}");
        let status = programs::command("pipx").args(["install", package]).status();
        if !status.is_ok_and(|status| status.success()) {
            println!("# pipx could not install {package}");
        }
    }
}

/// Installs packages as root, by sudo if necessary.
fn apt_get(packages: &BTreeSet<&str>) -> Result<()> {
    let list: Vec<&str> = packages.iter().copied().collect();
    println!("# apt-get install {}", list.join(" "));
    let is_root = rustix::process::geteuid().is_root();
    if !is_root && programs::find("sudo").is_none() {
        bail!("only root can install packages; as root, run: apt-get install {}", list.join(" "));
    }
    run(is_root, &["update"])?;
    let install = ["install", "-y", "--no-install-recommends"];
    run(is_root, &[&install[..], &list].concat())
}

fn run(is_root: bool, words: &[&str]) -> Result<()> {
    let mut command = Command::new(if is_root { "env" } else { "sudo" });
    command.args((!is_root).then_some("env"));
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-q"]);
    // Another apt-get may run on a machine that has just started.
    command.args(["-o", "DPkg::Lock::Timeout=300"]).args(words);
    let status = command.status().context("apt-get cannot be started")?;
    ensure!(status.success(), "apt-get {} failed", words[0]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str) -> &'static Program {
        programs::PROGRAMS.iter().find(|program| program.name == name).unwrap()
    }

    /// Simulates lists of missing programs. Returns the packages of each installation, and the
    /// outcome.
    fn played(lists: &[&[&str]]) -> (Vec<String>, Result<()>) {
        let mut lists = lists.iter();
        let mut installed = Vec::new();
        let missing = || lists.next().unwrap().iter().map(|name| row(name)).collect();
        let outcome = until_complete(missing, |packages| {
            installed.push(packages.iter().copied().collect::<Vec<_>>().join(" "));
            Ok(())
        });
        (installed, outcome)
    }

    #[test]
    fn removed_program_is_installed_again() {
        let (installed, outcome) =
            played(&[&["qemu-system-x86_64"], &["qemu-img", "qemu-nbd"], &[]]);
        assert_eq!(installed, ["qemu-system-x86", "qemu-system-x86 qemu-utils"]);
        outcome.unwrap();
        let (installed, outcome) = played(&[&[]]);
        assert!(installed.is_empty() && outcome.is_ok());
    }

    #[test]
    fn packages_of_pypi_are_not_asked_of_apt_get() {
        let missing = of_debian(vec![row("qemu-img"), row("moto_server")]);
        assert_eq!(names(&missing), ["qemu-img"]);
    }

    #[test]
    fn conflicting_packages_are_reported() {
        let (system, utils) = (&["qemu-system-x86_64"][..], &["qemu-img"][..]);
        let (installed, outcome) = played(&[system, utils, system]);
        assert_eq!(installed.len(), 2);
        let error = outcome.unwrap_err().to_string();
        assert_eq!(error, "still not installed: qemu-system-x86_64 (qemu-system-x86)");
    }
}
