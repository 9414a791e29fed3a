//! `cargo xtask deb`: builds a reproducible Debian package of what `install` installs.

mod check;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::architecture::Architecture;
use crate::cargo::{self, list, metadata, text, workspace};
use crate::credits::{paper, third_parties};
use crate::cross;
use crate::documents::documents;
use crate::install::{Piece, lay, pieces};
use crate::tally::Tally;

/// Options of `cargo xtask deb`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Try the package too: install it in a small Debian, look at all that it brings, and remove it again
    #[arg(long)]
    check: bool,
    /// The architecture; default: that of this machine
    #[arg(long, value_enum, conflicts_with = "program")]
    architecture: Option<Architecture>,
    /// Package this program, for its architecture, instead of building storagetm
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
}

const MAINTAINER: &str = "storagetm developers <storagetm@users.noreply.github.com>";

const COPYRIGHT: &str = "\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: storagetm
Source: https://github.com/storagetm/storagetm
Comment:
 What is linked into the program, with the licences of each part, stands in
 third-party-licences.txt.gz beside this file.

Files: *
Copyright: The storagetm developers
License: Apache-2.0 or Expat

License: Apache-2.0
 On Debian systems the text is in /usr/share/common-licenses/Apache-2.0.

License: Expat
";

/// A static binary, so that it runs in every initrd without other files.
const OVERRIDES: &str = "\
storagetm: statically-linked-binary [usr/bin/storagetm]
storagetm: shared-library-lacks-prerequisites [usr/bin/storagetm]
storagetm: initial-upload-closes-no-bugs [usr/share/doc/storagetm/changelog.gz:1]
";

/// Reloads systemd after installation and removal. The initramfs is rebuilt only if it contains the
/// program; dpkg does that once, at the end (initramfs-tools turns the call into a trigger).
const RELOAD: &str = "\
#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then
    systemctl --system daemon-reload > /dev/null || true
fi
if command -v update-initramfs > /dev/null && grep -qsx 'STORAGETM=yes' /etc/initramfs-tools/conf.d/*; then
    update-initramfs -u
fi
";

/// Builds the package, and tests it if requested.
pub(crate) fn run(options: &Options) -> Result<Tally> {
    let mut tally = Tally::default();
    let program = match (&options.program, options.architecture) {
        (Some(program), _) => program.clone(),
        (None, Some(architecture)) => cross::build(architecture)?,
        (None, None) => cargo::build_program("storagetm")?,
    };
    let package = build(&program)?;
    println!("# {}, {} KiB", package.display(), fs::metadata(&package)?.len() >> 10);
    tally.pass("deb");
    if options.check {
        let first = fs::read(&package)?;
        let again = fs::read(build(&program)?)?;
        let same = if first == again { Ok(()) } else { Err(anyhow::anyhow!("it is not")) };
        tally.check("deb: the same byte for byte", same);
        check::run(&package, Architecture::of(&program)?, &mut tally)?;
    }
    Ok(tally)
}

/// Builds the package of a program, for its architecture.
pub(crate) fn build(program: &Path) -> Result<PathBuf> {
    let (version, architecture) = (version()?, Architecture::of(program)?);
    let folder = cargo::target_directory()?.join("deb");
    let root = folder.join("root");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    let stripped = folder.join("storagetm");
    fs::create_dir_all(&folder)?;
    cross::strip(program, &stripped)?;
    let pieces = contents(&stripped, &version, architecture)?;
    lay(&pieces, &root.join("usr"))?;
    describe(&root, &pieces, &version, architecture)?;
    open_folders(&root)?;
    let package = folder.join(format!("storagetm_{version}_{}.deb", architecture.debian()));
    let mut make = Command::new("dpkg-deb");
    make.args(["--root-owner-group", "-Zxz", "--build"]).arg(&root).arg(&package);
    succeed(make.env("SOURCE_DATE_EPOCH", epoch()?), &[])?;
    Ok(package)
}

/// Sets the permissions of directories independently of the umask.
fn open_folders(folder: &Path) -> Result<()> {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    for entry in folder.read_dir()? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            open_folders(&entry.path())?;
        }
    }
    Ok(())
}

pub(crate) fn version() -> Result<String> {
    let metadata = metadata(false)?;
    let packages = list(&metadata, "packages");
    let own = packages.iter().find(|package| text(package, "name") == "storagetm");
    Ok(text(own.context("there is no package storagetm")?, "version").to_owned())
}

/// Returns the time of the newest commit, in seconds: the package must not depend on the build
/// time.
pub(crate) fn epoch() -> Result<String> {
    if let Ok(epoch) = std::env::var("SOURCE_DATE_EPOCH") {
        return Ok(epoch);
    }
    let mut git = Command::new("git");
    git.args(["log", "-1", "--format=%ct"]).current_dir(workspace());
    let told = succeed(&mut git, &[])?;
    Ok(String::from_utf8_lossy(&told).trim().to_owned())
}

/// Adapts the files to Debian: compresses manual and documents, and moves zsh's completion to
/// Debian's directory.
fn contents(program: &Path, version: &str, architecture: Architecture) -> Result<Vec<Piece>> {
    let mut all = pieces(program)?;
    for piece in &mut all {
        if piece.path.starts_with("share/man/") {
            compress(piece)?;
        }
        piece.path = piece.path.replace("zsh/site-functions", "zsh/vendor-completions");
    }
    all.extend(documents()?);
    let mut changelog = paper("changelog", changelog(version)?.into_bytes());
    let mut licences = paper("third-party-licences.txt", third_parties(architecture)?.into_bytes());
    compress(&mut changelog)?;
    compress(&mut licences)?;
    all.extend([changelog, licences, paper("copyright", copyright()?.into_bytes())]);
    all.push(Piece {
        path: "share/lintian/overrides/storagetm".to_owned(),
        content: OVERRIDES.into(),
        is_program: false,
    });
    Ok(all)
}

fn compress(piece: &mut Piece) -> Result<()> {
    piece.content = succeed(Command::new("gzip").args(["-9", "-n", "-c"]), &piece.content)?;
    piece.path.push_str(".gz");
    Ok(())
}

/// Debian's changelog, which requires an entry for each version and refers to the project's own.
fn changelog(version: &str) -> Result<String> {
    let when = format!("@{}", epoch()?);
    let date = succeed(Command::new("date").args(["--utc", "-R", "-d", &when]), &[])?;
    let date = String::from_utf8_lossy(&date).trim().to_owned();
    Ok(format!(
        "storagetm ({version}) unstable; urgency=medium\n\n  * What is new stands in CHANGELOG.md of the \
         source.\n\n -- {MAINTAINER}  {date}\n"
    ))
}

fn copyright() -> Result<String> {
    let licence = fs::read_to_string(workspace().join("LICENSE-MIT"))?;
    let line =
        |line: &str| if line.trim().is_empty() { " .\n".into() } else { format!(" {line}\n") };
    Ok(format!("{COPYRIGHT}{}", licence.trim().lines().map(line).collect::<String>()))
}

/// Writes the control files.
fn describe(
    root: &Path,
    pieces: &[Piece],
    version: &str,
    architecture: Architecture,
) -> Result<()> {
    let folder = root.join("DEBIAN");
    fs::create_dir_all(&folder)?;
    let sizes = pieces.iter().map(|piece| piece.content.len().div_ceil(1024));
    fs::write(folder.join("control"), control(version, architecture, sizes.sum()))?;
    fs::write(folder.join("md5sums"), sums(root, pieces)?)?;
    for name in ["control", "md5sums"] {
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o644))?;
    }
    for name in ["postinst", "postrm"] {
        fs::write(folder.join(name), RELOAD)?;
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

fn control(version: &str, architecture: Architecture, kibibytes: usize) -> String {
    let debian = architecture.debian();
    format!(
        "Package: storagetm\nVersion: {version}\nArchitecture: {debian}\nMaintainer: {MAINTAINER}\n\
         Installed-Size: {kibibytes}\nSection: admin\nPriority: optional\n\
         Suggests: ktls-utils, libnbd-bin, nbd-client, nvme-cli, systemd-boot-efi\n\
         Enhances: dracut, initramfs-tools, mkosi, systemd\n\
         Homepage: https://github.com/storagetm/storagetm\n\
         Description: makes disks of this machine attachable over the network\n \
         storagetm lends disks by NVMe/TCP to other machines, which need nothing but the\n \
         kernel and nvme-cli of their distribution, and shows the line to type there.\n \
         .\n \
         With storage-target-mode.target on the kernel command line, the machine boots\n \
         only to lend its disks, and writes to none of them.\n"
    )
}

fn sums(root: &Path, pieces: &[Piece]) -> Result<Vec<u8>> {
    let mut paths: Vec<String> = pieces.iter().map(|piece| format!("usr/{}", piece.path)).collect();
    paths.sort();
    succeed(Command::new("md5sum").args(paths).current_dir(root), &[])
}

/// Runs a program with `input` on its standard input; returns its standard output.
fn succeed(command: &mut Command, input: &[u8]) -> Result<Vec<u8>> {
    let name = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("{name} cannot be started"))?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output()?;
    // A program that does not read all input reports an error by its status.
    drop(writer.join());
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name} failed: {}", complaint.trim());
    Ok(output.stdout)
}
