//! Generates the man pages from the program's own options, or checks that those in the tree are up
//! to date. The pages are in the tree because they are reviewed as text; shell completions are
//! generated when they are installed.

mod page;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap_complete::Shell;

use crate::cargo::workspace;
use crate::install::Piece;
use crate::tally::Tally;

/// Options of `cargo xtask man`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Write nothing; fail if a file is not what would be written
    #[arg(long)]
    check: bool,
}

/// Writes or checks all files.
pub(crate) fn run(options: &Options) -> Result<Tally> {
    let mut tally = Tally::default();
    if options.check {
        tally.check("man pages", check());
    } else {
        tally.check("man pages", write());
    }
    Ok(tally)
}

/// Checks that the files in the tree are up to date.
pub(crate) fn check() -> Result<()> {
    for (path, content) in pages()? {
        let found = fs::read(&path).unwrap_or_default();
        ensure!(found == content, "{} is out of date: cargo xtask man", path.display());
    }
    Ok(())
}

fn write() -> Result<()> {
    for (path, content) in pages()? {
        let folder = path.parent().unwrap_or(&path);
        fs::create_dir_all(folder)?;
        fs::write(&path, content).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Returns every file with its content.
fn pages() -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut command = storagetm::options::command().disable_help_subcommand(true);
    command.build();
    manuals(&command, &workspace().join("docs/man"))
}

fn manuals(command: &clap::Command, folder: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut pages = vec![manual(command, folder)?];
    for part in command.get_subcommands().filter(|part| !part.is_hide_set()) {
        pages.extend(manuals(part, folder)?);
    }
    Ok(pages)
}

fn manual(command: &clap::Command, folder: &Path) -> Result<(PathBuf, Vec<u8>)> {
    let manual = clap_mangen::Man::new(command.clone()).section(section(title(command)));
    let path = folder.join(manual.get_filename());
    Ok((path, page::render(command, manual)?.into_bytes()))
}

/// Returns the name of a command's page.
fn title(command: &clap::Command) -> &str {
    command.get_display_name().unwrap_or_else(|| command.get_name())
}

/// Returns the section of the manual: 8 for commands of administrators.
fn section(name: &str) -> &'static str {
    match name {
        "storagetm-boot" => "8",
        "storage-target-mode.target" => "7",
        _ => "1",
    }
}

/// The shells with completions, and where each shell looks for them.
const SHELLS: [(Shell, &str); 3] = [
    // Bash finds the file by the name of the program.
    (Shell::Bash, "share/bash-completion/completions/storagetm"),
    (Shell::Zsh, "share/zsh/site-functions/_storagetm"),
    (Shell::Fish, "share/fish/vendor_completions.d/storagetm.fish"),
];

/// Returns the completions of each shell, as they are installed.
pub(crate) fn completions() -> impl Iterator<Item = Piece> {
    SHELLS.into_iter().map(|(shell, path)| {
        let mut content = Vec::new();
        let mut command = visible(&storagetm::options::command());
        clap_complete::generate(shell, &mut command, "storagetm", &mut content);
        Piece { path: path.to_owned(), content, is_program: false }
    })
}

/// Returns the command without hidden options and subcommands, which clap_complete would offer.
fn visible(command: &clap::Command) -> clap::Command {
    // Names are leaked; the program ends soon.
    let mut copy = clap::Command::new(&*command.get_name().to_owned().leak())
        .args(command.get_arguments().filter(|argument| !argument.is_hide_set()))
        .subcommands(command.get_subcommands().filter(|part| !part.is_hide_set()).map(visible))
        .disable_help_subcommand(command.is_disable_help_subcommand_set());
    if let Some(version) = command.get_version() {
        copy = copy.version(&*version.to_owned().leak());
    }
    match command.get_about() {
        Some(about) => copy.about(about.clone()),
        None => copy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_options_and_commands_are_not_completed() {
        for Piece { path, content, .. } in completions() {
            let script = String::from_utf8(content).unwrap();
            assert!(script.contains("writable") && script.contains("generate"), "{path}");
            for hidden in ["mdns-port", "announcer", "inspect"] {
                assert!(!script.contains(hidden), "{path}: {hidden}");
            }
        }
    }
}
