//! `cargo xtask cross`: builds the program for an architecture in a reproducible way, on a machine of any of them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::architecture::Architecture;
use crate::cargo::{self, workspace};
use crate::chroot::{self, Chroot, NEXT, Recipe};
use crate::tally::Tally;

/// Options of `cargo xtask cross`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The architecture
    #[arg(value_enum)]
    architecture: Architecture,
    /// Run the tests of the crates that make no system calls instead, by qemu's user emulation
    #[arg(long)]
    tests: bool,
}

/// The crates without system calls, which user emulation does not have all of.
const PURE: [&str; 7] = ["console", "dnssd", "export", "filesystem", "nbd", "nvme", "pair"];

/// Builds the program, or builds and runs the tests.
pub(crate) fn run(options: &Options) -> Result<Tally> {
    let mut tally = Tally::default();
    let name = format!("cross {}", options.architecture.name());
    if let Some(reason) = missing(options.architecture) {
        tally.skip(&name, &reason);
        return Ok(tally);
    }
    if options.tests {
        tally.check(&format!("{name}: tests"), tests(options.architecture));
    } else {
        let program = build(options.architecture)?;
        println!("# {}", program.display());
        tally.pass(&name);
    }
    Ok(tally)
}

/// Returns why this machine cannot build for an architecture, if so.
pub(crate) fn missing(architecture: Architecture) -> Option<String> {
    if is_here(architecture) { None } else { chroot::missing() }
}

/// Builds the program, and returns its path. No path of this machine is in it.
pub(crate) fn build(architecture: Architecture) -> Result<PathBuf> {
    let toolchain = Toolchain::open(architecture)?;
    let homes = [(workspace(), "/storagetm"), (cargo_home()?, "/cargo")];
    let maps = homes.map(|(from, to)| format!("{}={to}", from.display()));
    let flags = maps.each_ref().map(|map| format!("\"--remap-path-prefix={map}\""));
    let rust = format!("target.{}.rustflags=[{}]", architecture.triple(), flags.join(","));
    let c = maps.map(|map| format!("-ffile-prefix-map={map}")).join(" ");
    let words = ["cargo", "--config", &rust, "build", "--locked", "--release", "-p", "storagetm"];
    toolchain.run(&words, &[("CFLAGS", c)])?;
    Ok(toolchain.builds().join(architecture.triple()).join("release/storagetm"))
}

fn tests(architecture: Architecture) -> Result<()> {
    let toolchain = Toolchain::open(architecture)?;
    let crates = PURE.iter().flat_map(|name| ["-p", name]);
    let words = ["cargo", "test", "--locked", "--lib", "--tests"].into_iter().chain(crates);
    toolchain.run(&words.collect::<Vec<_>>(), &[])
}

/// Writes a stripped copy of a program to a path in the target directory.
pub(crate) fn strip(program: &Path, to: &Path) -> Result<()> {
    std::fs::copy(program, to).with_context(|| program.display().to_string())?;
    let toolchain = Toolchain::open(Architecture::of(program)?)?;
    let (strip, to) = (toolchain.architecture.tool("strip"), to.display().to_string());
    let sections = ["--remove-section=.comment", "--remove-section=.note"];
    toolchain.run(&[&[&strip, "--strip-all"], &sections[..], &[&to]].concat(), &[])
}

/// Variables of the caller that would replace the flags of the configuration, which make a static program.
const FLAGS: [&str; 2] = ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS"];

/// Compilers for an architecture.
struct Toolchain {
    architecture: Architecture,
    /// That of the workspace.
    target_directory: PathBuf,
    /// The Debian that has them, if this machine does not.
    debian: Option<Chroot>,
}

impl Toolchain {
    /// Opens that of this machine, or of a Debian that is made for it. No Rust target is installed
    /// on this machine.
    fn open(architecture: Architecture) -> Result<Self> {
        let target_directory = cargo::target_directory()?;
        if is_here(architecture) {
            return Ok(Self { architecture, target_directory, debian: None });
        }
        if let Some(reason) = chroot::missing() {
            anyhow::bail!("{reason}");
        }
        let foreign = architecture.debian();
        let gcc = format!("gcc-{}-linux-gnu", architecture.name().replace('_', "-"));
        let packages = [
            "ca-certificates",
            "cargo",
            "gcc",
            &gcc,
            &format!("libc6-dev-{foreign}-cross"),
            &format!("libstd-rust-dev:{foreign}"),
            "qemu-user",
            "rustc",
        ];
        let name = format!("cross-{}", architecture.name());
        let recipe =
            Recipe { name: &name, suite: NEXT, foreign: Some(architecture), packages: &packages };
        let debian = Some(Chroot::open(&recipe)?);
        Ok(Self { architecture, target_directory, debian })
    }

    /// Runs one of its programs in the workspace, with more variables of the environment.
    fn run(&self, words: &[&str], more: &[(&str, String)]) -> Result<()> {
        let mut environment = self.environment();
        environment.extend(more.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        let Some(debian) = &self.debian else {
            let (program, arguments) = words.split_first().context("no program")?;
            let mut command = Command::new(program);
            for name in FLAGS {
                command.env_remove(name);
            }
            command.args(arguments).envs(environment).current_dir(workspace());
            let status =
                command.status().with_context(|| format!("{program} cannot be started"))?;
            ensure!(status.success(), "{} failed", words.join(" "));
            return Ok(());
        };
        // The Debian has no network: all crates are fetched before.
        cargo::run(&["fetch", "--locked"])?;
        let home = cargo_home()?;
        environment.push(("CARGO_NET_OFFLINE".to_owned(), "true".to_owned()));
        environment.push(("CARGO_HOME".to_owned(), home.display().to_string()));
        let variables = environment.iter().map(|(name, value)| format!("{name}={}", quoted(value)));
        let variables = variables.collect::<Vec<_>>().join(" ");
        let words = words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
        let place = quoted(&workspace().display().to_string());
        let line = format!("cd {place}\nunset {}\nenv {variables} {words}", FLAGS.join(" "));
        debian.stream(&line, &[workspace(), home, self.target_directory.clone()])
    }

    fn builds(&self) -> PathBuf {
        self.target_directory.join("cross")
    }

    fn environment(&self) -> Vec<(String, String)> {
        let triple = self.architecture.triple();
        let section = format!("CARGO_TARGET_{}", triple.to_uppercase().replace('-', "_"));
        let mut set = vec![
            ("CARGO_BUILD_TARGET".to_owned(), triple),
            ("CARGO_TARGET_DIR".to_owned(), self.builds().display().to_string()),
            (format!("{section}_LINKER"), self.architecture.tool("gcc")),
        ];
        if Architecture::of_this_machine().is_ok_and(|own| own != self.architecture) {
            let emulator = format!("qemu-{}", self.architecture.name());
            set.push((format!("{section}_RUNNER"), emulator));
        }
        set
    }
}

/// Whether this machine has the compilers.
fn is_here(architecture: Architecture) -> bool {
    let mut rustc = Command::new("rustc");
    rustc.args(["--print", "target-libdir", "--target", &architecture.triple()]);
    let has_library = rustc.stderr(Stdio::inherit()).output().is_ok_and(|output| {
        let folder = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success() && Path::new(&folder).is_dir()
    });
    has_library && ["gcc", "strip"].iter().all(|it| programs::is_installed(&architecture.tool(it)))
}

/// Returns the directory of fetched crates.
fn cargo_home() -> Result<PathBuf> {
    let home = || std::env::home_dir().map(|home| home.join(".cargo"));
    let named = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    named.or_else(home).context("there is no home directory")
}

/// A word in the shell's language.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
