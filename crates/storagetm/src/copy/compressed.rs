//! Compressed or packaged sources (gzip, xz, zstd, qcow2, ...): detected by their first bytes, and
//! unpacked or rejected. Only local files and pipes are examined; disks and remote sources are
//! copied as they are.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use ::copy::Pipe;
use filesystem::Container;
use filesystem::container::HEAD;
use linux::partition;
use protocol::commands::quoted;

use super::summary::refused;
use crate::options::copy::Copy;
use crate::unpack;
use failure::Failure;

/// Returns a pipe with the unpacked content of a file, and a note; `None` if the file is not
/// packed.
///
/// # Errors
/// Fails if the file cannot be unpacked or read.
pub(super) fn file(path: &Path, file: &File) -> Result<Option<(Pipe, Option<String>)>, Failure> {
    let name = path.display().to_string();
    let cannot = |error: std::io::Error| refused(format!("{name} cannot be read: {error}"));
    let Some(container) = unpack::detect(file).map_err(cannot)? else { return Ok(None) };
    if !container.is_supported() {
        return Err(unsupported_error(&name, container));
    }
    // A new file description starts at offset 0.
    let input = File::open(path).map_err(cannot)?;
    let pipe = unpack::unpack(container, input.into(), &name, Some(unpack::FIRST_BYTES_TIMEOUT))
        .map_err(|reason| unpack_error(&reason))?;
    Ok(Some((pipe, Some(unpacked_note(&name, container)))))
}

/// Returns a note if a block device begins like a packed file.
pub(super) fn device_note(path: &Path) -> Option<String> {
    let mut head = vec![0; HEAD];
    File::open(path).and_then(|mut file| file.read_exact(&mut head)).ok()?;
    let container = Container::detect(&head, &[])?;
    let name = path.display();
    Some(format!(
        "{name} begins like {container}; it is copied as it is, since a device is a disk itself"
    ))
}

/// Reads the head of a pipe with what this is, and unpacks it if it is packed.
///
/// # Errors
/// Fails if the format is not supported, or if the pipe cannot be read.
pub(super) fn stream(pipe: Pipe, raw: bool, name: &str) -> Result<(Pipe, Option<String>), Failure> {
    let cannot = |error: std::io::Error| refused(format!("{name} cannot be read: {error}"));
    let Pipe { descriptor, bytes, finish, .. } = pipe;
    let (mut from, mut head) = (File::from(descriptor), Vec::new());
    unpack::read_up_to(&mut from, unpack::HEAD_BYTES, &mut head, None).map_err(cannot)?;
    let container = Container::detect(&head, &[]).filter(|_| !raw);
    let pipe = Pipe { descriptor: from.into(), head, bytes, finish };
    let (pipe, note) = match container {
        None => (pipe, None),
        Some(container) if container.is_supported() && container.is_stream() => {
            let pipe = unpack::unpack_pipe(container, pipe, name)
                .map_err(|reason| unpack_error(&reason))?;
            (pipe, Some(unpacked_note(name, container)))
        }
        Some(container) => return Err(unsupported_error(name, container)),
    };
    Ok((pipe, note))
}

/// Rejects options that a stream does not support: resuming, and converting the partition table.
///
/// # Errors
/// Fails for `--map` with an unpacked stream, or for a partition table for another block size than
/// the destination's.
pub(super) fn check(
    pipe: &Pipe,
    note: Option<&String>,
    options: &Copy,
    sector: Option<u32>,
) -> Result<(), Failure> {
    if note.is_some() && options.map.is_some() {
        return Err(refused(format!(
            "{} is unpacked while it is copied, which cannot be continued from a map: leave --map out, or unpack it first",
            options.source
        )));
    }
    let source = options.source.to_string();
    let block = partition::read(&pipe.head[..]).ok().flatten().map(|table| table.block_size);
    let (Some(block), Some(sector)) = (block, sector) else { return Ok(()) };
    if block == sector || options.keep_sectors {
        return Ok(());
    }
    let (destination, table) = (&options.destination, "the partition table that it brings");
    let first =
        if note.is_some() { "unpack it into a file first" } else { "write it into a file first" };
    Err(refused(match options.convert_sectors {
        true => {
            format!("{source} is a stream, and {table} cannot be converted on the way: {first}")
        }
        false => format!(
            "{source} is a stream, {table} is for blocks of {block} bytes, and {destination} has blocks of {sector}: no partition \
             would be found there; to have the table converted, {first}, and copy that with --convert-sectors; to copy byte for \
             byte all the same, add --keep-sectors"
        ),
    }))
}

fn unpacked_note(name: &str, container: Container) -> String {
    format!("{name} is {container}, and is unpacked; --format raw copies it as it is")
}

fn unpack_error(reason: &str) -> Failure {
    refused(format!("{reason}; --format raw copies it as it is"))
}

fn unsupported_error(name: &str, container: Container) -> Failure {
    let path = quoted(name);
    let way = match container.is_stream() {
        true => format!("{} | storagetm copy - DST", container.unpack_command(&path)),
        false => container.unpack_command(&path),
    };
    refused(format!(
        "{name} is {container}, and a copy of its bytes would be no disk: unpack it first ({way}), or copy it as it is with \
         --format raw"
    ))
}
