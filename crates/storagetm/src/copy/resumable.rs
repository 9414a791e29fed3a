//! Files of servers from which a copy can be continued by its map.

use std::path::Path;
use std::time::Duration;

use ::copy::map::Map;
use fetch::{Error, Location, Parts};
use filesystem::Container;
use filesystem::container::{HEAD, TAIL};

use super::access::access;
use super::checked::agreed;
use super::expected_contents::ExpectedContents;
use super::hash_list::Expected;
use super::local_disk::CopyEnd;
use super::summary::refused;
use super::web_disk::WebDisk;
use crate::options::copy::Copy;
use failure::Failure;

/// Opens a file of a server as a disk, for a copy with a map.
///
/// # Errors
/// Fails if the server cannot be reached, sends no parts of a certain version of it, names another hash than the expected
/// one, or has another version of the file than that of the `map`; and if the file has to be unpacked.
pub(super) fn source(
    location: &Location,
    options: &Copy,
    expected: Option<Expected>,
    map: Option<&Map>,
) -> Result<CopyEnd, Failure> {
    let name = location.to_string();
    let (access, patience) = (access(location)?, Duration::from_secs(options.patience));
    let parts = match options.wait {
        true => Parts::open_waiting(location, &access, patience),
        false => Parts::open(location, &access, patience),
    };
    let mut parts = parts.map_err(|error| not_continued(&name, &error))?;
    if options.format.is_none() {
        check_format(&name, &mut parts)?;
    }
    let disk = WebDisk::new(location, access, patience, &parts);
    if let (Some(map), Some(path)) = (map, &options.map) {
        check_version(&name, &disk, map, path)?;
    }
    let named = parts.hash().map(|hash| Expected::Sha256(hash.to_vec()));
    let expected = agreed(&name, named, expected)?;
    if expected.is_some() && (options.allocated || options.convert_sectors) {
        return Err(Failure::usage(format!(
            "{name} must have a hash, which what --allocated and --convert-sectors copy does not have: leave them out, or the \
             hash"
        )));
    }
    let bytes = parts.length();
    let contents = |expected| ExpectedContents::new(disk.clone(), name, bytes, expected);
    let expected = expected.map(contents);
    Ok(CopyEnd::web(Box::new(disk), expected))
}

fn not_continued(name: &str, error: &Error) -> Failure {
    match error {
        Error::NoParts(reason) => refused(format!(
            "a copy of {name} could not be continued from a map: {reason}; leave --map out, or fetch it into a file first and \
             copy that"
        )),
        error => refused(format!("{name} cannot be read: {error}")),
    }
}

/// Fails if the file is a compressed or packaged one, which is unpacked from its start to its end.
fn check_format(name: &str, parts: &mut Parts) -> Result<(), Failure> {
    let cannot = |error: Error| refused(format!("{name} cannot be read: {error}"));
    let bytes = parts.length();
    let mut part = |offset: u64, max: usize| {
        let len = usize::try_from(bytes.saturating_sub(offset)).unwrap_or(max).min(max);
        let mut part = vec![0; len];
        parts.read_at(offset, &mut part).map(|()| part)
    };
    let head = part(0, HEAD).map_err(cannot)?;
    let tail = part(bytes.saturating_sub(TAIL as u64), TAIL).map_err(cannot)?;
    match Container::detect(&head, &tail) {
        None => Ok(()),
        Some(container) => Err(refused(format!(
            "{name} is {container}, which is unpacked from its start to its end, so that a copy could not be continued from a \
             map: leave --map out, or copy it as it is with --format raw"
        ))),
    }
}

/// Fails if a map is of another version of the file.
fn check_version(name: &str, disk: &WebDisk, map: &Map, path: &Path) -> Result<(), Failure> {
    let before = &map.metadata.source;
    if !disk.is_other_version(before) {
        return Ok(());
    }
    Err(refused(format!(
        "the map {} is of another version of {name}: it was \"{before}\", now it is \"{}\"; remove the map to copy this one from \
         its start",
        path.display(),
        disk.identity()
    )))
}
