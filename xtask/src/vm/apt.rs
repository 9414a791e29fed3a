//! Fetches Debian packages with a private apt state: the machine's own apt and dpkg are not
//! touched.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::mirror::Mirror;
use crate::architecture::Architecture;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A private apt for one suite.
#[derive(Debug)]
pub(super) struct Apt {
    folder: PathBuf,
}

impl Apt {
    /// Initializes the private state in a directory and updates the package lists.
    pub(super) fn open(
        folder: &Path,
        mirror: &Mirror,
        suite: &str,
        architecture: Architecture,
    ) -> Result<Self> {
        for part in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(part))?;
        }
        fs::write(folder.join("status"), "")?;
        fs::write(folder.join("sources.list"), source_list(mirror, suite))?;
        fs::write(folder.join("apt.conf"), configuration(folder, architecture))?;
        let apt = Self { folder: folder.to_owned() };
        apt.run("apt-get", &["-q", "-o", "APT::Update::Error-Mode=any", "update"])?;
        Ok(apt)
    }

    /// Returns the transitive dependencies of a metapackage whose names have this suffix.
    pub(super) fn parts_of(&self, package: &str, ending: &str) -> Result<Vec<String>> {
        let mut parts = vec![package.to_owned()];
        let mut next = 0;
        while let Some(part) = parts.get(next) {
            let answer = self.run("apt-cache", &["depends", part])?;
            let names = answer.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
            for name in names.filter(|name| name.ends_with(ending)) {
                if !parts.iter().any(|part| part == name) {
                    parts.push(name.to_owned());
                }
            }
            next += 1;
        }
        ensure!(parts.len() > 1, "{package} depends on nothing");
        Ok(parts)
    }

    /// Fetches packages, optionally with dependencies, and unpacks them. Returns the names of their files.
    pub(super) fn unpack(
        &self,
        packages: &[&str],
        closure: bool,
        into: &Path,
    ) -> Result<Vec<String>> {
        let archives = self.folder.join("cache/archives");
        clear(&archives)?;
        if closure {
            let install = ["-q", "-y", "--no-install-recommends", "--download-only", "install"];
            self.run("apt-get", &[&install[..], packages].concat())?;
        } else {
            self.run("apt-get", &[&["-q", "download"], packages].concat())?;
        }
        fs::create_dir_all(into)?;
        let mut names = Vec::new();
        for archive in debs(&archives)? {
            let mut unpack = Command::new("dpkg-deb");
            unpack.arg("-x").arg(&archive).arg(into);
            succeed(&mut unpack)?;
            names.extend(archive.file_name().map(|name| name.to_string_lossy().into_owned()));
        }
        clear(&archives)?;
        merge_usr(into)?;
        names.sort();
        Ok(names)
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(self.folder.join("cache/archives"));
        succeed(command.env("APT_CONFIG", self.folder.join("apt.conf")).env("LC_ALL", "C"))
    }
}

fn source_list(mirror: &Mirror, suite: &str) -> String {
    let line =
        |address: &str, suite: &str| format!("deb [signed-by={KEYRING}] {address} {suite} main\n");
    let mut list = line(&mirror.main, suite);
    if let Some(security) = &mirror.security {
        list.push_str(&line(security, &format!("{suite}-security")));
    }
    list
}

fn configuration(folder: &Path, architecture: Architecture) -> String {
    let path = |part: &str| folder.join(part).display().to_string();
    let (state, status) = (path("state"), path("status"));
    let (cache, sources) = (path("cache"), path("sources.list"));
    let debian = architecture.debian();
    // apt downloads as a user that may not be able to read the cache directory. Hooks and
    // additional downloads of the machine's own configuration are disabled.
    format!(
        "Dir::State \"{state}\";\nDir::State::status \"{status}\";\nDir::Cache \"{cache}\";\n\
         Dir::Etc::sourcelist \"{sources}\";\nDir::Etc::sourceparts \"/dev/null\";\n\
         Dir::Etc::preferencesparts \"/dev/null\";\nAPT::Sandbox::User \"root\";\n\
         APT::Architecture \"{debian}\";\nAPT::Architectures {{ \"{debian}\"; }};\n\
         Acquire::Languages \"none\";\nAcquire::Retries \"3\";\nDebug::NoLocking \"1\";\n\
         #clear APT::Update;\n#clear Acquire::IndexTargets::deb::DEP-11;\n"
    )
}

/// Moves the contents of `/bin`, `/lib`, `/lib64` and `/sbin` to `/usr`, as the installation of a release
/// does whose packages have files in both (Debian 12).
fn merge_usr(root: &Path) -> Result<()> {
    for name in ["bin", "lib", "lib64", "sbin"] {
        let from = root.join(name);
        if from.is_dir() && !from.is_symlink() {
            move_contents(&from, &root.join("usr").join(name))?;
            symlink(format!("usr/{name}"), from)?;
        }
    }
    Ok(())
}

/// Moves the contents of a directory to another one, and removes it.
fn move_contents(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in from.read_dir()? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() && target.is_dir() {
            move_contents(&entry.path(), &target)?;
        } else {
            fs::rename(entry.path(), target)?;
        }
    }
    Ok(fs::remove_dir(from)?)
}

fn debs(folder: &Path) -> Result<Vec<PathBuf>> {
    let paths = folder.read_dir()?.map(|entry| Ok(entry?.path()));
    let mut paths = paths.collect::<Result<Vec<_>>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "deb"));
    Ok(paths)
}

fn clear(folder: &Path) -> Result<()> {
    debs(folder)?.iter().try_for_each(|path| Ok(fs::remove_file(path)?))
}

/// Returns a command for a program of the packages, run by their loader with their libraries.
/// `argv[0]` is set for programs with several names.
pub(super) fn program(packages: &Path, path: &str) -> Command {
    let libraries = packages.join("usr/lib/x86_64-linux-gnu");
    let search = format!("{0}:{0}/systemd", libraries.display());
    let mut command = Command::new(libraries.join("ld-linux-x86-64.so.2"));
    command.args(["--library-path", &search, "--argv0", path]).arg(packages.join(path));
    command
}

/// Runs a program and returns its output.
///
/// # Errors
/// Fails if the program does, with its output.
pub(super) fn succeed(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("{name} cannot be started"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name} failed: {}", complaint.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_beside_usr_are_merged_into_it() {
        let root = std::env::temp_dir().join(format!("xtask-apt-{}", std::process::id()));
        for (path, text) in [("lib/a/own", "1"), ("usr/lib/a/other", "2"), ("sbin/x", "3")] {
            fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            fs::write(root.join(path), text).unwrap();
        }
        for _ in 0..2 {
            merge_usr(&root).unwrap();
            let read = |path| fs::read_to_string(root.join(path)).unwrap();
            assert_eq!(
                [read("usr/lib/a/own"), read("usr/lib/a/other"), read("usr/sbin/x")],
                ["1", "2", "3"]
            );
            assert_eq!(fs::read_link(root.join("lib")).unwrap(), Path::new("usr/lib"));
            assert!(!root.join("bin").exists());
        }
        fs::remove_dir_all(&root).unwrap();
    }
}
