//! `storagetm image`: makes something that boots into target mode. It knows no network.

mod inputs;
mod medium;
mod outcome;
mod progress;
pub(crate) mod target;

use std::path::Path;

use ::image::disk::Disk;
use ::image::drivers::{Machine, select};
use ::image::initramfs::{self, Contents, Firmware, Initramfs};
use ::image::kernel::Kernel;
use ::image::{efi, program};
use linux::module::modaliases;
use linux::tree::Tree;

use crate::consent::{self, Stake};
use crate::options::image::{For, Image};
use failure::Failure;
use inputs::{Inputs, Modules};
use outcome::{Kind, Outcome};
use progress::Progress;

/// What boot loaders show in their menu.
const OS_RELEASE: &str = concat!(
    "ID=storagetm\nNAME=storagetm\nPRETTY_NAME=\"Lend this machine's disks (storagetm ",
    env!("CARGO_PKG_VERSION"),
    ")\"\nVERSION_ID=",
    env!("CARGO_PKG_VERSION"),
    "\n"
);
/// For any machine the firmware of many drivers comes along, and that must stay small.
const LARGEST_FIRMWARE: u64 = 256 << 10;

/// Makes the image.
pub(crate) fn image(options: &Image) -> Result<(), Failure> {
    let progress = Progress::open();
    let inputs = Inputs { tree: Tree::machine(), options };
    // Found out once: a stick that comes or goes while the image is made turns no file into a disk, nor back.
    let is_device = options.disk.as_deref().is_some_and(medium::is_device);
    let stake = check_target(options, is_device)?;
    let made = make(&inputs, stake.as_ref().filter(|_| is_device), &progress);
    progress.clear();
    let (outcome, path) = made?;
    outcome.say(path, options.json)
}

fn make<'a>(
    inputs: &Inputs<'a>,
    device: Option<&Stake>,
    progress: &Progress,
) -> Result<(Outcome, &'a Path), Failure> {
    match (inputs.options, device) {
        (Image { initramfs: Some(path), .. }, _) => {
            Ok((write_initramfs(inputs, path, progress)?, path))
        }
        (Image { uki: Some(path), .. }, _) => Ok((write_uki(inputs, path, progress)?, path)),
        (Image { disk: Some(path), .. }, Some(device)) => {
            Ok((write_device(inputs, path, device, progress)?, path))
        }
        (Image { disk: Some(path), .. }, None) => Ok((write_disk(inputs, path, progress)?, path)),
        _ => Err(Failure::usage("say what to make: --initramfs, --uki or --disk")),
    }
}

/// What speaks against the target is said, and what would be lost is agreed to, before anything slow is done.
fn check_target(options: &Image, is_device: bool) -> Result<Option<Stake>, Failure> {
    let stake = match (&options.disk, &options.initramfs, &options.uki) {
        (Some(disk), _, _) if is_device => Some(medium::check(&Tree::machine(), disk)?),
        (Some(file), _, _) | (_, Some(file), _) | (_, _, Some(file)) => {
            target::check(file)?;
            Stake::file(file, "--force").map_err(Failure::new)?
        }
        _ => None,
    };
    if let Some(stake) = &stake {
        consent::ask(stake, "a new image", options.force).map_err(Failure::new)?;
    }
    Ok(stake)
}

fn write_initramfs(
    inputs: &Inputs<'_>,
    path: &Path,
    progress: &Progress,
) -> Result<Outcome, Failure> {
    let modules = inputs.modules(None)?;
    let (made, outcome) = make_initramfs(inputs, &modules, Kind::Initramfs, progress)?;
    target::write(path, &made.bytes)?;
    Ok(outcome.of_size(made.bytes.len()))
}

fn write_uki(inputs: &Inputs<'_>, path: &Path, progress: &Progress) -> Result<Outcome, Failure> {
    let (program, outcome) = make_uki(inputs, Kind::Uki, progress)?;
    target::write(path, &program)?;
    Ok(outcome.of_size(program.len()))
}

fn write_device(
    inputs: &Inputs<'_>,
    path: &Path,
    agreed: &Stake,
    progress: &Progress,
) -> Result<Outcome, Failure> {
    let (program, outcome) = make_uki(inputs, Kind::Disk, progress)?;
    let written = medium::write(&inputs.tree, path, agreed, &program, progress)?;
    Ok(outcome.of_size(written))
}

fn write_disk(inputs: &Inputs<'_>, path: &Path, progress: &Progress) -> Result<Outcome, Failure> {
    let (program, outcome) = make_uki(inputs, Kind::Disk, progress)?;
    let disk = Disk::image(&program).map_err(Failure::new)?.whole();
    target::write(path, &disk)?;
    Ok(outcome.of_size(disk.len()))
}

/// A kernel, the drivers and this program as one EFI program.
fn make_uki(
    inputs: &Inputs<'_>,
    kind: Kind,
    progress: &Progress,
) -> Result<(Vec<u8>, Outcome), Failure> {
    let (kernel_path, kernel) = inputs.kernel()?;
    let stub = inputs.stub()?;
    let kernel = Kernel::parse(&kernel)
        .map_err(|error| Failure::new(format!("{}: {error}", kernel_path.display())))?;
    let modules = inputs.modules(Some(&kernel.release))?;
    let (initramfs, outcome) = make_initramfs(inputs, &modules, kind, progress)?;
    let parts = efi::Parts {
        stub: &stub,
        kernel: &kernel,
        initramfs: &initramfs.bytes,
        command_line: &inputs.options.command_line,
        os_release: OS_RELEASE,
    };
    Ok((efi::make(&parts).map_err(Failure::new)?, outcome))
}

/// The drivers and this program.
fn make_initramfs(
    inputs: &Inputs<'_>,
    modules: &Modules,
    kind: Kind,
    progress: &Progress,
) -> Result<(Initramfs, Outcome), Failure> {
    let program = program::strip(&inputs.program()?).map_err(Failure::new)?;
    let machine = inputs.options.machine;
    let chosen = match machine {
        For::Generic => select(&modules.index, Machine::Any),
        For::ThisMachine => select(&modules.index, Machine::Of(&modaliases(&inputs.tree))),
    };
    let contents = Contents {
        index: &modules.index,
        modules: &chosen,
        release: &modules.release,
        program: &program,
        firmware: firmware(inputs.options),
        time: inputs::time()?,
    };
    let all = chosen.len();
    let made = initramfs::make(&contents, &|done| progress.say("packing drivers", done, all));
    let made = made.map_err(Failure::new)?;
    let outcome = Outcome::new(kind, &modules.release, all, made.firmware.len());
    Ok((made, outcome))
}

fn firmware(options: &Image) -> Option<Firmware<'_>> {
    let largest = match options.machine {
        For::Generic => LARGEST_FIRMWARE,
        For::ThisMachine => u64::MAX,
    };
    (!options.no_firmware).then_some(Firmware { folder: &options.firmware, largest })
}
