//! `storagetm image`: builds a bootable image of target mode.

mod inputs;
mod medium;
mod progress;
mod report;
pub(crate) mod target;

use std::path::Path;

use ::image::disk::Disk;
use ::image::drivers::{Machine, select};
use ::image::initramfs::{self, Contents, Firmware, Initramfs};
use ::image::kernel::Kernel;
use ::image::{efi, program};
use linux::module::modaliases;
use linux::tree::Tree;

use crate::confirmation::{self, OverwriteTarget};
use crate::options::image::{For, Image};
use failure::Failure;
use inputs::{Inputs, Modules};
use progress::Progress;
use report::{Kind, Report};

/// Shown in the menu of boot loaders.
const OS_RELEASE: &str = concat!(
    "ID=storagetm\nNAME=storagetm\nPRETTY_NAME=\"Lend this machine's disks (storagetm ",
    env!("CARGO_PKG_VERSION"),
    ")\"\nVERSION_ID=",
    env!("CARGO_PKG_VERSION"),
    "\n"
);
/// Size limit of firmware files in a generic image, which includes many drivers.
const MAX_FIRMWARE_FILE: u64 = 256 << 10;

/// Builds the image.
pub(crate) fn image(options: &Image) -> Result<(), Failure> {
    let progress = Progress::open();
    let inputs = Inputs { tree: Tree::machine(), options };
    // Determined once, so that hot-plug during the build cannot turn a file into a disk or back.
    let is_device = options.disk.as_deref().is_some_and(medium::is_device);
    let overwrite = check_target(options, is_device)?;
    let made = make(&inputs, overwrite.as_ref().filter(|_| is_device), &progress);
    progress.clear();
    let (report, path) = made?;
    report.print(path, options.json)
}

fn make<'a>(
    inputs: &Inputs<'a>,
    device: Option<&OverwriteTarget>,
    progress: &Progress,
) -> Result<(Report, &'a Path), Failure> {
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

/// Checks the target, and asks before overwriting, before anything slow is done.
fn check_target(options: &Image, is_device: bool) -> Result<Option<OverwriteTarget>, Failure> {
    let overwrite = match (&options.disk, &options.initramfs, &options.uki) {
        (Some(disk), _, _) if is_device => Some(medium::check(&Tree::machine(), disk)?),
        (Some(file), _, _) | (_, Some(file), _) | (_, _, Some(file)) => {
            target::check(file)?;
            OverwriteTarget::file(file, "--force").map_err(Failure::new)?
        }
        _ => None,
    };
    if let Some(overwrite) = &overwrite {
        confirmation::confirm(overwrite, "a new image", options.force).map_err(Failure::new)?;
    }
    Ok(overwrite)
}

fn write_initramfs(
    inputs: &Inputs<'_>,
    path: &Path,
    progress: &Progress,
) -> Result<Report, Failure> {
    let modules = inputs.modules(None)?;
    let (made, report) = make_initramfs(inputs, &modules, Kind::Initramfs, progress)?;
    target::write(path, &made.bytes)?;
    Ok(report.of_size(made.bytes.len()))
}

fn write_uki(inputs: &Inputs<'_>, path: &Path, progress: &Progress) -> Result<Report, Failure> {
    let (program, report) = make_uki(inputs, Kind::Uki, progress)?;
    target::write(path, &program)?;
    Ok(report.of_size(program.len()))
}

fn write_device(
    inputs: &Inputs<'_>,
    path: &Path,
    confirmed: &OverwriteTarget,
    progress: &Progress,
) -> Result<Report, Failure> {
    let (program, report) = make_uki(inputs, Kind::Disk, progress)?;
    let written = medium::write(&inputs.tree, path, confirmed, &program, progress)?;
    Ok(report.of_size(written))
}

fn write_disk(inputs: &Inputs<'_>, path: &Path, progress: &Progress) -> Result<Report, Failure> {
    let (program, report) = make_uki(inputs, Kind::Disk, progress)?;
    let disk = Disk::image(&program).map_err(Failure::new)?.whole();
    target::write(path, &disk)?;
    Ok(report.of_size(disk.len()))
}

/// Builds an EFI program of the kernel, the drivers and this program.
fn make_uki(
    inputs: &Inputs<'_>,
    kind: Kind,
    progress: &Progress,
) -> Result<(Vec<u8>, Report), Failure> {
    let (kernel_path, kernel) = inputs.kernel()?;
    let stub = inputs.stub()?;
    let kernel = Kernel::parse(&kernel)
        .map_err(|error| Failure::new(format!("{}: {error}", kernel_path.display())))?;
    let modules = inputs.modules(Some(&kernel.release))?;
    let (initramfs, report) = make_initramfs(inputs, &modules, kind, progress)?;
    let parts = efi::Parts {
        stub: &stub,
        kernel: &kernel,
        initramfs: &initramfs.bytes,
        command_line: &inputs.options.command_line,
        os_release: OS_RELEASE,
    };
    Ok((efi::make(&parts).map_err(Failure::new)?, report))
}

/// Builds an initramfs of the drivers and this program.
fn make_initramfs(
    inputs: &Inputs<'_>,
    modules: &Modules,
    kind: Kind,
    progress: &Progress,
) -> Result<(Initramfs, Report), Failure> {
    let program = program::strip(&inputs.program()?).map_err(Failure::new)?;
    let machine = inputs.options.machine;
    let chosen = match machine {
        For::Generic => select(&modules.index, Machine::Any),
        For::ThisMachine => select(&modules.index, Machine::Known(&modaliases(&inputs.tree))),
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
    let made = initramfs::make(&contents, &|done| progress.update("packing drivers", done, all));
    let made = made.map_err(Failure::new)?;
    let report = Report::new(kind, &modules.release, all, made.firmware.len());
    Ok((made, report))
}

fn firmware(options: &Image) -> Option<Firmware<'_>> {
    let max_size = match options.machine {
        For::Generic => MAX_FIRMWARE_FILE,
        For::ThisMachine => u64::MAX,
    };
    (!options.no_firmware).then_some(Firmware { folder: &options.firmware, max_size })
}
