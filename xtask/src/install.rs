//! `cargo xtask install`: installs the program and its files where a system expects them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::architecture::Architecture;
use crate::cargo::{self, workspace};
use crate::credits;
use crate::cross;
use crate::documents::documents;
use crate::man;
use crate::tally::Tally;

/// Options of `cargo xtask install`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// DESTDIR=FOLDER is put before every path, PREFIX=FOLDER is /usr otherwise; the environment may say them too
    #[arg(value_name = "NAME=VALUE")]
    settings: Vec<String>,
    /// Lay storage-target-mode.target too, for a system whose systemd is older than 255 and does not bring it
    #[arg(long)]
    with_target: bool,
    /// Install this program instead of building storagetm
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
}

/// A file to install.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    /// The path below the prefix.
    pub(crate) path: String,
    pub(crate) content: Vec<u8>,
    /// Whether it is executable.
    pub(crate) is_program: bool,
}

/// Installs everything.
pub(crate) fn run(options: &Options) -> Result<Tally> {
    let mut tally = Tally::default();
    tally.check("install", install(options));
    Ok(tally)
}

fn install(options: &Options) -> Result<()> {
    let [destination, prefix] = settings(&options.settings)?;
    let prefix = if prefix.is_empty() { "/usr".to_owned() } else { prefix };
    ensure!(prefix.starts_with('/'), "PREFIX must be an absolute path, not {prefix}");
    let built = || cargo::build_program("storagetm");
    let program = options.program.clone().map_or_else(built, Ok)?;
    let mut pieces = pieces(&stripped(&program)?)?;
    if options.with_target {
        pieces.push(text("units/storage-target-mode.target", UNITS)?);
    }
    pieces.extend(credits::pieces(Architecture::of(&program)?)?);
    pieces.extend(documents()?);
    if prefix != "/usr" {
        println!("# the pieces for initrds are left out: their makers look below /usr only");
        pieces.retain(|piece| !piece.is_for_initrds());
    }
    for piece in &mut pieces {
        piece.move_to(&prefix);
    }
    let root = format!("{destination}{prefix}");
    lay(&pieces, Path::new(&root))?;
    println!("# {} files below {root}", pieces.len());
    Ok(())
}

/// Returns a stripped copy of the program; symbols and debug information are four fifths of it.
pub(crate) fn stripped(program: &Path) -> Result<PathBuf> {
    let to = cargo::target_directory()?.join("install").join("storagetm");
    fs::create_dir_all(to.parent().context("no folder")?)?;
    cross::strip(program, &to).context("the program cannot be stripped (package binutils)")?;
    Ok(to)
}

/// Returns the values of DESTDIR and PREFIX.
fn settings(words: &[String]) -> Result<[String; 2]> {
    let mut values = ["DESTDIR", "PREFIX"].map(|name| std::env::var(name).unwrap_or_default());
    for word in words {
        match word.split_once('=') {
            Some(("DESTDIR", value)) => value.clone_into(&mut values[0]),
            Some(("PREFIX", value)) => value.clone_into(&mut values[1]),
            _ => bail!("{word} is neither DESTDIR=FOLDER nor PREFIX=FOLDER"),
        }
    }
    Ok(values)
}

/// Writes the files below a directory.
pub(crate) fn lay(pieces: &[Piece], root: &Path) -> Result<()> {
    for piece in pieces {
        let path = root.join(&piece.path);
        let folder = path.parent().context("a piece without a folder")?;
        let mode = if piece.is_program { 0o755 } else { 0o644 };
        fs::create_dir_all(folder)
            .and_then(|()| replace(&path, &piece.content, mode))
            .with_context(|| format!("{} cannot be written", path.display()))?;
    }
    Ok(())
}

/// A running program cannot be written, but another file can replace it.
fn replace(path: &Path, content: &[u8], mode: u32) -> std::io::Result<()> {
    let beside = path.with_added_extension("new");
    fs::write(&beside, content)
        .and_then(|()| fs::set_permissions(&beside, fs::Permissions::from_mode(mode)))
        .and_then(|()| fs::rename(&beside, path))
        .inspect_err(|_| drop(fs::remove_file(&beside)))
}

/// The directory of systemd units.
pub(crate) const UNITS: &str = "lib/systemd/system";

/// Files of the tree, and the directories to which they go.
const FILES: &[(&str, &str)] = &[
    ("units/storage-target-mode.target", "share/storagetm"),
    ("units/hands-off.conf", "lib/storagetm"),
    ("polkit/io.github.storagetm.policy", "share/polkit-1/actions"),
    ("initrd/dracut/90storagetm/module-setup.sh", "lib/dracut/modules.d/90storagetm"),
    ("initrd/initramfs-tools/hooks/storagetm", "share/initramfs-tools/hooks"),
    ("initrd/initramfs-tools/scripts/storagetm", "share/initramfs-tools/scripts"),
    ("initrd/initramfs-tools/scripts/init-top/storagetm", "share/initramfs-tools/scripts/init-top"),
    ("initrd/mkinitcpio/install/storagetm", "lib/initcpio/install"),
    ("initrd/mkinitcpio/hooks/storagetm", "lib/initcpio/hooks"),
    ("initrd/mkosi/mkosi.conf", "share/storagetm/mkosi"),
    ("initrd/mkosi.uki-profiles/50-storagetm.conf", "share/storagetm/mkosi.uki-profiles"),
];

/// Returns the program, the files of the tree, except the target that systemd may bring itself, and
/// the shell completions.
pub(crate) fn pieces(program: &Path) -> Result<Vec<Piece>> {
    let content = fs::read(program).with_context(|| program.display().to_string())?;
    let mut pieces = vec![Piece { path: "bin/storagetm".to_owned(), content, is_program: true }];
    for (from, folder) in FILES {
        pieces.push(text(from, folder)?);
    }
    for unit in list("units")? {
        if unit.ends_with(".service") || unit.ends_with(".socket") {
            pieces.push(text(&unit, UNITS)?);
        } else if let Some((_, folder)) = unit.split_once('/').filter(|_| unit.ends_with(".d")) {
            pieces.push(text(&format!("{unit}/50-storagetm.conf"), &format!("{UNITS}/{folder}"))?);
        }
    }
    for page in list("docs/man")? {
        let section = page.rsplit('.').next().unwrap_or_default();
        pieces.push(text(&page, &format!("share/man/man{section}"))?);
    }
    pieces.extend(man::completions());
    Ok(pieces)
}

/// Returns the files in a directory of the tree, sorted.
pub(crate) fn list(folder: &str) -> Result<Vec<String>> {
    let entries = workspace().join(folder).read_dir().with_context(|| folder.to_owned())?;
    let name = |entry: std::io::Result<fs::DirEntry>| {
        Ok(format!("{folder}/{}", entry?.file_name().to_string_lossy()))
    };
    let mut names = entries.map(name).collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// Returns a file of the tree; it is executable if it is so in the tree.
fn text(from: &str, folder: &str) -> Result<Piece> {
    let place = workspace().join(from);
    let content = fs::read(&place).with_context(|| place.display().to_string())?;
    let is_program = fs::metadata(&place)?.permissions().mode() & 0o111 != 0;
    let name = from.rsplit('/').next().unwrap_or(from);
    Ok(Piece { path: format!("{folder}/{name}"), content, is_program })
}

/// The directories of initrd generators.
const INITRDS: [&str; 4] =
    ["lib/dracut/", "lib/initcpio/", "share/initramfs-tools/", "share/storagetm/mkosi"];

impl Piece {
    fn is_for_initrds(&self) -> bool {
        INITRDS.iter().any(|folder| self.path.starts_with(folder))
    }

    /// Replaces the prefix /usr in the text.
    fn move_to(&mut self, prefix: &str) {
        if prefix == "/usr" || self.path == "bin/storagetm" {
            return;
        }
        let mut content = String::from_utf8_lossy(&self.content).into_owned();
        for place in ["bin/storagetm", "lib/storagetm", "share/storagetm"] {
            content = content.replace(&format!("/usr/{place}"), &format!("{prefix}/{place}"));
        }
        self.content = content.into_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_installed_below_the_prefix() {
        let program = workspace().join("Cargo.toml");
        let pieces = pieces(&program).unwrap();
        let find = |path: &str| pieces.iter().find(|piece| piece.path == path).cloned();
        for path in [
            "lib/systemd/system/storagetm@.service",
            "lib/systemd/system/systemd-storagetm.service.d/50-storagetm.conf",
            "share/man/man1/storagetm-serve.1",
            "share/man/man7/storage-target-mode.target.7",
            "share/bash-completion/completions/storagetm",
            "share/zsh/site-functions/_storagetm",
            "share/fish/vendor_completions.d/storagetm.fish",
        ] {
            assert!(find(path).is_some(), "{path}");
        }
        assert!(find("share/initramfs-tools/hooks/storagetm").unwrap().is_program);
        assert!(find("lib/systemd/system/storage-target-mode.target").is_none());
        let mut unit = find("lib/systemd/system/storagetm.service").unwrap();
        unit.move_to("/opt/x");
        let unit = String::from_utf8(unit.content).unwrap();
        assert!(unit.contains("ExecStart=/opt/x/bin/storagetm serve"));
        assert!(!unit.contains("/usr/"));
    }

    #[test]
    fn unknown_variables_are_reported() {
        let words = ["DESTDIR=/d".to_owned(), "PREFIX=/p".to_owned()];
        assert_eq!(settings(&words).unwrap(), ["/d", "/p"]);
        assert!(settings(&["prefix=/p".to_owned()]).is_err());
    }
}
