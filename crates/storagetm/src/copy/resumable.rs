//! Files of servers from which a copy can be continued by its map.

use std::path::Path;

use ::copy::map::Map;
use fetch::{Error, Location, Parts};
use filesystem::Container;
use filesystem::container::{HEAD, TAIL};

use super::access::{Opener, access};
use super::checked::agreed;
use super::expected_contents::ExpectedContents;
use super::hash_list::Expected;
use super::local_disk::CopyEnd;
use super::summary::refused;
use super::web_disk::{Source, WebDisk};
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
    opener: &mut Opener<'_>,
) -> Result<CopyEnd, Failure> {
    let name = location.to_string();
    let (access, patience) = (access(location)?, opener.patience);
    let parts = opener.open(&name, || {
        let mut parts = Parts::open(location, &access, patience)?;
        let container = match options.format {
            None => container(&mut parts)?,
            Some(_) => None,
        };
        Ok((parts, container))
    });
    let (mut parts, container) = parts.map_err(|error| not_continued(&name, &error))?;
    if let Some(container) = container {
        return Err(refused(format!(
            "{name} is {container}, which is unpacked from its start to its end, so that a copy could not be continued from a \
             map: leave --map out, or copy it as it is with --format raw"
        )));
    }
    let named = parts.hash().map(|hash| Expected::Sha256(hash.to_vec()));
    let expected = agreed(&name, named, expected)?;
    if expected.is_some() && (options.allocated || options.convert_sectors) {
        return Err(Failure::usage(format!(
            "{name} must have a hash, which what --allocated and --convert-sectors copy does not have: leave them out, or the \
             hash"
        )));
    }
    if expected.is_some() {
        parts.let_hash_decide();
    }
    let source = Source { name: name.clone(), identity: location.identity(&access) };
    let before = map.map(|map| map.metadata.source.as_str()).unwrap_or_default();
    let disk = match expected.is_some() {
        // The hash decides whether the version of the map is the same file.
        true => WebDisk::of_map(source, parts, before),
        false => WebDisk::new(source, parts),
    };
    if let Some(path) = &options.map {
        check_version(&name, &disk, before, path)?;
    }
    let expected = expected.map(|expected| ExpectedContents::new(disk.clone(), name, expected));
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

/// Returns the format of a compressed or packaged file.
fn container(parts: &mut Parts) -> Result<Option<Container>, Error> {
    let bytes = parts.length();
    let mut part = |offset: u64, max: usize| {
        let len = usize::try_from(bytes.saturating_sub(offset)).unwrap_or(max).min(max);
        let mut part = vec![0; len];
        parts.read_at(offset, &mut part).map(|()| part)
    };
    let head = part(0, HEAD)?;
    let tail = part(bytes.saturating_sub(TAIL as u64), TAIL)?;
    Ok(Container::detect(&head, &tail))
}

/// Fails if a map is of another version of the file.
fn check_version(name: &str, disk: &WebDisk, before: &str, path: &Path) -> Result<(), Failure> {
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
