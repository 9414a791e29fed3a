//! The project's tools, called as `cargo xtask COMMAND`: tests, checks and test machines.
#![forbid(unsafe_code)]

mod architecture;
mod cargo;
mod cases;
mod chroot;
mod ci;
mod container;
mod credits;
mod cross;
mod deb;
mod documents;
mod initrds;
mod install;
mod layers;
mod licences;
mod man;
mod modules;
mod release;
mod sbom;
mod soak;
mod tally;
mod test;
mod tools;
mod units;
mod vm;
mod words;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Tools of the storagetm workspace.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Everything that must pass: format, lints, layers, licences, unit, doc and interop tests, test machines
    Test(test::Options),
    /// The same as `test`, but a test that is skipped although a package would help fails the run
    Ci(test::Options),
    /// Check the imports of each crate, and where unsafe code is
    Layers,
    /// Write the list of test cases without a test into docs/cases.md
    Cases,
    /// Count phrases to avoid in comments, and find names of tests, functions and files that are too long
    Words,
    /// Check the licence of every dependency against deny.toml
    Licences,
    /// Write the man pages to docs, from the program's table of options
    Man(man::Options),
    /// Check the systemd units and the scripts of the initrds with the tools of this machine
    Units,
    /// Install the program, units, manual, completions and initrd files
    Install(install::Options),
    /// Build a Debian package, and with --check install, test and remove it in a minimal Debian
    Deb(deb::Options),
    /// Build the program for an architecture, in a Debian of its own if this machine lacks the compilers
    Cross(cross::Options),
    /// Make the files of a release for all architectures: packages, tarballs, images, checksums
    Release(release::Options),
    /// Make a container image with the program, for `storagetm agent`
    Container(container::Options),
    /// Build initrds by dracut, initramfs-tools and mkosi in a minimal Debian (nightly)
    Initrds(initrds::Options),
    /// Compare storagetm with the limit of the machine; arguments are those of `bench run`
    Bench {
        /// Passed on unchanged
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Copy to and from a target for hours with a fault each minute (nightly, as root)
    Soak(soak::Options),
    /// Boot distribution kernels under qemu and attach disks that storagetm serves
    Vm(vm::Options),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Test(options) => test::run(&options),
        Command::Ci(options) => ci::run(&options),
        Command::Layers => layers::run(),
        Command::Cases => cases::run(),
        Command::Words => words::run(),
        Command::Licences => licences::run(),
        Command::Man(options) => man::run(&options),
        Command::Units => units::run(),
        Command::Install(options) => install::run(&options),
        Command::Deb(options) => deb::run(&options),
        Command::Cross(options) => cross::run(&options),
        Command::Release(options) => release::run(&options),
        Command::Container(options) => container::run(&options),
        Command::Initrds(options) => initrds::run(&options),
        Command::Bench { arguments } => bench(&arguments),
        Command::Soak(options) => soak::run(&options),
        Command::Vm(options) => vm::run(&options),
    };
    match outcome {
        Ok(tally) => {
            println!("{}", tally.summary());
            if tally.all_passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the benchmark program as a release build.
fn bench(arguments: &[String]) -> anyhow::Result<tally::Tally> {
    let mut line = vec!["run", "--release", "--package", "bench", "--", "run"];
    line.extend(arguments.iter().map(String::as_str));
    // These measure the whole program.
    let program =
        match arguments.iter().any(|it| ["--nbd", "--copy", "--web"].contains(&it.as_str())) {
            true => Some(cargo::build_program("storagetm")?.display().to_string()),
            false => None,
        };
    line.extend(program.iter().flat_map(|path| ["--program", path]));
    let mut tally = tally::Tally::default();
    tally.check("bench", cargo::run(&line));
    Ok(tally)
}
