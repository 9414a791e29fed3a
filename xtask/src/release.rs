//! `cargo xtask release`: makes the files of a release, the same byte for byte from the same commit.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::architecture::Architecture;
use crate::cargo;
use crate::container;
use crate::credits;
use crate::cross;
use crate::deb;
use crate::documents::documents;
use crate::install::{lay, pieces};
use crate::sbom;
use crate::tally::Tally;
use crate::vm::Pieces;

/// The list of checksums.
const SUMS: &str = "SHA256SUMS";

/// Options of `cargo xtask release`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only for this architecture; default: for all
    #[arg(long, value_enum)]
    architecture: Option<Architecture>,
    /// Use this program for its architecture instead of building it; may be repeated
    #[arg(long, value_name = "PATH")]
    program: Vec<PathBuf>,
    /// Make no images, which contain the kernel and boot loaders of Debian
    #[arg(long)]
    no_images: bool,
    /// Pack everything a second time, and compare
    #[arg(long)]
    check: bool,
    /// The directory of the files: a new or empty one, or that of an earlier release, which is replaced; default: dist in
    /// the target directory
    #[arg(long, value_name = "FOLDER")]
    to: Option<PathBuf>,
}

/// Makes the files, and the list of their checksums.
pub(crate) fn run(options: &Options) -> Result<Tally> {
    let mut tally = Tally::default();
    let target = cargo::target_directory()?;
    let folder = options.to.clone().unwrap_or_else(|| target.join("dist"));
    let sums = make(options, &folder, &mut tally)?;
    if options.check {
        let again = make(options, &target.join("dist-again"), &mut Tally::default())?;
        let same = if sums == again { Ok(()) } else { Err(anyhow::anyhow!("{sums}\n{again}")) };
        tally.check("release: the same byte for byte", same);
    }
    print!("{sums}");
    println!("# in {}", folder.display());
    Ok(tally)
}

/// Makes all files in a directory; returns the checksums.
fn make(options: &Options, folder: &Path, tally: &mut Tally) -> Result<String> {
    renew(folder)?;
    let wanted = |it: &Architecture| options.architecture.is_none_or(|only| only == *it);
    for architecture in Architecture::ALL.into_iter().filter(wanted) {
        let name = format!("release: {}", architecture.name());
        let made = program(options, architecture).and_then(|program| {
            let version = deb::version()?;
            Release { architecture, program, folder, version }.make(options)
        });
        tally.check(&name, made);
    }
    checksums(folder)
}

/// Makes an empty directory.
///
/// # Errors
/// Fails if there are files in it that are not those of a release.
fn renew(folder: &Path) -> Result<()> {
    if folder.exists() {
        let is_ours = folder.join(SUMS).is_file() || folder.read_dir()?.next().is_none();
        ensure!(is_ours, "{} is neither empty nor has a {SUMS}", folder.display());
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder)?;
    // Marks it as that of a release until the end.
    Ok(fs::write(folder.join(SUMS), "")?)
}

/// Returns the program for an architecture: one that was given, or a new build.
fn program(options: &Options, architecture: Architecture) -> Result<PathBuf> {
    for path in &options.program {
        if Architecture::of(path)? == architecture {
            return Ok(path.clone());
        }
    }
    cross::build(architecture)
}

/// The files of one architecture.
struct Release<'a> {
    architecture: Architecture,
    program: PathBuf,
    folder: &'a Path,
    version: String,
}

impl Release<'_> {
    fn make(&self, options: &Options) -> Result<()> {
        // Fails if it is not static.
        image::program::strip(&fs::read(&self.program)?)
            .with_context(|| self.program.display().to_string())?;
        self.tarball()?;
        container::make(std::slice::from_ref(&self.program), &self.file("oci.tar"))?;
        let package = deb::build(&self.program)?;
        fs::copy(
            &package,
            self.folder.join(package.file_name().context("a package without a name")?),
        )?;
        let mut packages = Vec::new();
        if !options.no_images {
            let pieces = Pieces::fetch(self.architecture)?;
            self.images(options, &pieces)?;
            packages = pieces.packages;
        }
        let bill = sbom::bill(&self.version, self.architecture, &packages)?;
        fs::write(self.file("cdx.json"), serde_json::to_string_pretty(&bill)? + "\n")?;
        Ok(())
    }

    /// Returns the path of a file with this suffix.
    fn file(&self, suffix: &str) -> PathBuf {
        self.folder.join(format!("{}.{suffix}", self.name()))
    }

    fn name(&self) -> String {
        format!("storagetm-{}-{}", self.version, self.architecture.name())
    }

    /// The program, units, manual, completions, documents and licences, as they lie below `/usr`.
    fn tarball(&self) -> Result<()> {
        let work = cargo::target_directory()?.join("tarball");
        if work.exists() {
            fs::remove_dir_all(&work)?;
        }
        fs::create_dir_all(&work)?;
        let stripped = work.join("storagetm");
        cross::strip(&self.program, &stripped)?;
        let mut files = pieces(&stripped)?;
        files.extend(credits::pieces(self.architecture)?);
        files.extend(documents()?);
        lay(&files, &work.join(self.name()))?;
        let mut tar = Command::new("tar");
        tar.args(["--create", "--sort=name", "--owner=0", "--group=0", "--numeric-owner"]);
        tar.args(["--mode=u=rwX,go=rX", "--format=gnu", "--use-compress-program=xz -6 -T1"]);
        tar.arg(format!("--mtime=@{}", deb::epoch()?));
        tar.arg("--file").arg(self.file("tar.xz")).arg("--directory").arg(&work);
        succeed(tar.arg(self.name()))
    }

    /// The initramfs for the kernel of Debian, and what boots by itself.
    fn images(&self, options: &Options, pieces: &Pieces) -> Result<()> {
        let own = Architecture::of_this_machine()?;
        let maker = program(options, own)?;
        let image = |form: &str, suffix: &str, more: &[OsString]| {
            let mut command = Command::new(&maker);
            command.args(pieces.image(&self.program)).args(more).arg(form).arg(self.file(suffix));
            succeed(command.env("SOURCE_DATE_EPOCH", deb::epoch()?))
        };
        image("--initramfs", "initramfs", &[])?;
        image("--uki", "efi", &pieces.stub())?;
        let shim = [&["--loader".into(), "shim".into()], &pieces.loaders()[..]].concat();
        image("--disk", "img", &shim)?;
        image("--iso", "iso", &shim)
    }
}

/// Writes SHA256SUMS for all files, and returns it.
fn checksums(folder: &Path) -> Result<String> {
    let names = fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name()));
    let mut names = names.collect::<Result<Vec<OsString>>>()?;
    names.retain(|name| name != SUMS);
    names.sort();
    ensure!(!names.is_empty(), "no file was made");
    let output = Command::new("sha256sum").args(&names).current_dir(folder).output()?;
    ensure!(output.status.success(), "sha256sum failed");
    let sums = String::from_utf8(output.stdout)?;
    fs::write(folder.join(SUMS), &sums)?;
    Ok(sums)
}

fn succeed(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("{name} cannot be started"))?;
    ensure!(status.success(), "{name} failed");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_directory_of_a_release_is_replaced() {
        let folder = std::env::temp_dir().join(format!("xtask-release-{}", std::process::id()));
        renew(&folder).unwrap();
        let file = folder.join("storagetm.deb");
        fs::write(&file, "").unwrap();
        renew(&folder).unwrap();
        assert!(!file.exists());
        fs::remove_file(folder.join(SUMS)).unwrap();
        renew(&folder).unwrap();
        fs::remove_file(folder.join(SUMS)).unwrap();
        fs::write(&file, "").unwrap();
        renew(&folder).unwrap_err();
        assert!(file.exists());
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn release_without_a_program_fails() {
        let temporary = std::env::temp_dir();
        let folder = temporary.join(format!("xtask-release-failed-{}", std::process::id()));
        let options = Options {
            architecture: Some(Architecture::Aarch64),
            program: vec!["/etc/passwd".into()],
            no_images: true,
            check: false,
            to: None,
        };
        let mut tally = Tally::default();
        make(&options, &folder, &mut tally).unwrap_err();
        assert_eq!(tally.failures(), ["release: aarch64"]);
        fs::remove_dir_all(&folder).unwrap();
    }
}
