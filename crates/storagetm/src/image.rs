//! `storagetm image`: builds a bootable image of target mode.

mod entry;
mod inputs;
mod loader;
mod medium;
mod progress;
mod report;
mod stick;
pub(crate) mod target;

use std::path::{Path, PathBuf};

use ::image::disk::{Contents as Medium, Disk};
use ::image::drivers::{Machine, left_out, select, select_for_lent_root};
use ::image::initramfs::{self, Contents, Firmware, Initramfs};
use ::image::kernel::Kernel;
use ::image::signature::is_signed;
use ::image::{Architecture, efi, program};
use linux::module::modaliases;
use linux::tree::Tree;

use crate::confirmation::{self, OverwriteTarget};
use crate::options::image::{For, Image, LoaderChoice};
use entry::Loader;
use failure::Failure;
use inputs::{Inputs, Modules};
use progress::Progress;
use report::{Firmware as StartedBy, Kind, Report, Starts};
use stick::{Efi, Parts};

/// Shown in the menu of boot loaders.
fn os_release(boot: bool) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let what = if boot { "Start a system from a lent disk" } else { "Lend this machine's disks" };
    format!(
        "ID=storagetm\nNAME=storagetm\nPRETTY_NAME=\"{what} (storagetm {version})\"\nVERSION_ID={version}\n"
    )
}
/// Size limit of firmware files in a generic image, which includes many drivers.
const MAX_FIRMWARE_FILE: u64 = 768 << 10;

/// Builds the image.
pub(crate) fn image(options: &Image) -> Result<(), Failure> {
    let progress = Progress::open();
    let inputs = Inputs { tree: Tree::machine(), options };
    if options.entry {
        let made = write_entry(&inputs, &progress);
        progress.clear();
        let (report, path) = made?;
        return report.print(&path, options.json);
    }
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
        (Image { disk: Some(path), .. }, None) => {
            Ok((write_disk(inputs, path, Kind::Disk, progress)?, path))
        }
        (Image { iso: Some(path), .. }, _) => {
            Ok((write_disk(inputs, path, Kind::Iso, progress)?, path))
        }
        _ => Err(Failure::usage("say what to make: --initramfs, --uki, --disk, --iso or --entry")),
    }
}

/// Checks the target, and asks before overwriting, before anything slow is done.
fn check_target(options: &Image, is_device: bool) -> Result<Option<OverwriteTarget>, Failure> {
    let Image { disk, initramfs, uki, iso, .. } = options;
    let overwrite = match (disk, initramfs.as_ref().or(uki.as_ref()).or(iso.as_ref())) {
        (Some(disk), _) if is_device => Some(medium::check(&Tree::machine(), disk)?),
        (Some(file), _) | (None, Some(file)) => {
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
    let (kernel_path, kernel) = inputs.kernel()?;
    let kernel = parse_kernel(inputs, &kernel_path, &kernel)?;
    let stub = inputs.stub(kernel.architecture)?;
    let modules = inputs.modules(Some(&kernel.release))?;
    let (initramfs, report) = make_initramfs(inputs, &modules, Kind::Uki, progress)?;
    let program = make_uki(inputs, &stub, &kernel, &initramfs)?;
    target::write(path, &program)?;
    Ok(report.of_size(program.len()))
}

fn write_device(
    inputs: &Inputs<'_>,
    path: &Path,
    confirmed: &OverwriteTarget,
    progress: &Progress,
) -> Result<Report, Failure> {
    let (contents, report) = make_medium(inputs, Kind::Disk, progress)?;
    let (written, block) = medium::write(&inputs.tree, path, confirmed, &contents, progress)?;
    Ok(report.of_size(written).on_blocks(block))
}

fn write_disk(
    inputs: &Inputs<'_>,
    path: &Path,
    kind: Kind,
    progress: &Progress,
) -> Result<Report, Failure> {
    let (contents, report) = make_medium(inputs, kind, progress)?;
    let disk = Disk::image(&contents).map_err(Failure::new)?.whole();
    target::write(path, &disk)?;
    Ok(report.of_size(disk.len()))
}

/// Adds an entry to the boot loader of this machine.
fn write_entry(inputs: &Inputs<'_>, progress: &Progress) -> Result<(Report, PathBuf), Failure> {
    let loader = Loader::find(&inputs.tree)?;
    loader.confirm(inputs.options.force)?;
    let (kernel_path, kernel) = inputs.kernel()?;
    let parsed = parse_kernel(inputs, &kernel_path, &kernel)?;
    let modules = inputs.modules(Some(&parsed.release))?;
    let (initramfs, report) = make_initramfs(inputs, &modules, Kind::Entry, progress)?;
    let mut starts = Starts::default();
    // Whether this machine's firmware or shim trusts the signature is not known here.
    if !is_signed(&kernel) {
        let reason = format!("the kernel {} is not signed", kernel_path.display());
        starts.not_on(StartedBy::UefiSecureBoot, reason);
    }
    let line = &inputs.options.command_line;
    let written = loader.write(&kernel, &initramfs.bytes, line)?;
    Ok((
        report.with(starts).of_size(written).once(loader.once(), loader.forgets_choice()),
        loader.files(),
    ))
}

/// Returns the file of the running kernel, and an initramfs of target mode for it and for the
/// hardware of this machine.
pub(crate) fn for_this_machine() -> Result<(PathBuf, Vec<u8>), Failure> {
    let options = Image::for_this_machine();
    let inputs = Inputs { tree: Tree::machine(), options: &options };
    let progress = Progress::open();
    let (path, _) = inputs.kernel()?;
    let modules = inputs.modules(None)?;
    let made = make_initramfs(&inputs, &modules, Kind::Initramfs, &progress);
    progress.clear();
    Ok((path, made?.0.bytes))
}

fn parse_kernel<'a>(
    inputs: &Inputs<'_>,
    path: &Path,
    bytes: &'a [u8],
) -> Result<Kernel<'a>, Failure> {
    let kernel = Kernel::parse(bytes);
    let kernel = kernel.map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
    check_architecture(inputs.options.machine, "kernel", kernel.architecture)?;
    Ok(kernel)
}

/// Fails if a part of an image for this machine only is for another architecture.
fn check_architecture(machine: For, part: &str, architecture: Architecture) -> Result<(), Failure> {
    if machine == For::ThisMachine && Architecture::of_this_machine() != Some(architecture) {
        return Err(Failure::new(format!(
            "the {part} is for {architecture}, which this machine is not; leave out --for this-machine"
        )));
    }
    Ok(())
}

/// Builds the contents of a stick or CD of the kernel, the drivers, this program and boot loaders.
fn make_medium(
    inputs: &Inputs<'_>,
    kind: Kind,
    progress: &Progress,
) -> Result<(Medium, Report), Failure> {
    let (kernel_path, kernel) = inputs.kernel()?;
    let places = inputs.loaders();
    let parsed = parse_kernel(inputs, &kernel_path, &kernel)?;
    let signed = places.signed(parsed.architecture.into(), &kernel_path, &kernel);
    // Before anything slow: what is missing.
    let signed = match (inputs.options.loader, signed) {
        (LoaderChoice::Shim, Err(reason)) => {
            return Err(Failure::new(format!("no stick for Secure Boot can be made: {reason}")));
        }
        (LoaderChoice::Stub, _) => Err("its loader is not signed (--loader stub)".to_owned()),
        (_, signed) => signed,
    };
    let stub = signed.as_ref().err().map(|_| inputs.stub(parsed.architecture)).transpose()?;
    let modules = inputs.modules(Some(&parsed.release))?;
    let (initramfs, report) = make_initramfs(inputs, &modules, kind, progress)?;
    let efi = match (signed, stub) {
        (Ok(loader), _) => Efi::Shim(loader),
        (Err(reason), stub) => {
            let stub = stub.unwrap_or_default();
            Efi::Image(make_uki(inputs, &stub, &parsed, &initramfs)?, reason)
        }
    };
    let parts = Parts {
        architecture: parsed.architecture,
        kernel: &kernel,
        initramfs: &initramfs.bytes,
        command_line: &inputs.options.kernel_line(),
        places: &places,
        iso: kind == Kind::Iso,
    };
    let (contents, starts) = parts.compose(efi)?;
    Ok((contents, report.with(starts)))
}

/// Builds an EFI program of the kernel, the drivers and this program.
fn make_uki(
    inputs: &Inputs<'_>,
    stub: &[u8],
    kernel: &Kernel<'_>,
    initramfs: &Initramfs,
) -> Result<Vec<u8>, Failure> {
    let parts = efi::Parts {
        stub,
        kernel,
        initramfs: &initramfs.bytes,
        command_line: &inputs.options.kernel_line(),
        os_release: &os_release(inputs.options.boot),
    };
    efi::make(&parts).map_err(Failure::new)
}

/// Builds an initramfs of the drivers and this program.
fn make_initramfs(
    inputs: &Inputs<'_>,
    modules: &Modules,
    kind: Kind,
    progress: &Progress,
) -> Result<(Initramfs, Report), Failure> {
    let program = program::strip(&inputs.program()?).map_err(Failure::new)?;
    let architecture = Architecture::of_elf(&program).ok_or_else(|| {
        Failure::new("the program is for neither x86-64 nor ARM64, and images are for these only")
    })?;
    let machine = inputs.options.machine;
    check_architecture(machine, "program", architecture)?;
    let select = if inputs.options.boot { select_for_lent_root } else { select };
    let chosen = match machine {
        For::Generic => select(&modules.index, Machine::Any(architecture)),
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
    let mut report = Report::new(kind, &modules.release, all, made.firmware.len());
    report.boots_lent = inputs.options.boot;
    if machine == For::Generic {
        report.left_out_drivers = left_out(&modules.index);
    }
    report.left_out_firmware.clone_from(&made.too_large);
    Ok((made, report))
}

fn firmware(options: &Image) -> Option<Firmware<'_>> {
    let max_size = match options.machine {
        For::Generic if !options.all_firmware => MAX_FIRMWARE_FILE,
        For::Generic | For::ThisMachine => u64::MAX,
    };
    (!options.no_firmware).then_some(Firmware { folder: &options.firmware, max_size })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_for_this_machine_is_of_its_architecture() {
        let own = Architecture::of_this_machine().unwrap();
        let other = match own {
            Architecture::X86_64 => Architecture::Aarch64,
            Architecture::Aarch64 => Architecture::X86_64,
        };
        assert!(check_architecture(For::ThisMachine, "kernel", own).is_ok());
        assert!(check_architecture(For::Generic, "kernel", other).is_ok());
        let refused = check_architecture(For::ThisMachine, "kernel", other).unwrap_err();
        let sentence = refused.to_string();
        assert!(sentence.starts_with(&format!("the kernel is for {other}")), "{sentence}");
    }
}
