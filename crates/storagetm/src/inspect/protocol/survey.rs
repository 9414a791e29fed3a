//! Encoding of the contents of a disk, and of patches.

use std::io::{self, Read};

use filesystem::{Content, Loaders, Survey};
use linux::gpt::{Expanded, Fitted, Patch};
use linux::partition::Scheme;

use super::{invalid, list, put_count, put_text, text, u8_value, u32_value, u64_value};

/// Maximum number of contents.
const MAX_CONTENTS: u32 = 4096;
/// Maximum number of boot loaders.
const MAX_LOADERS: u32 = 64;
/// Maximum number of patches, and size of one.
const MAX_PATCHES: u32 = 4;
const MAX_PATCH: usize = 2 << 20;

pub(super) fn put(bytes: &mut Vec<u8>, survey: &Survey) {
    bytes.push(match survey.table {
        None => 0,
        Some(Scheme::Gpt) => 1,
        Some(Scheme::Mbr) => 2,
    });
    bytes.extend(survey.block.to_le_bytes());
    bytes.extend(survey.partitions.to_le_bytes());
    bytes.extend(survey.backup_end.unwrap_or(u64::MAX).to_le_bytes());
    bytes.push(u8::from(survey.empty));
    put_count(bytes, survey.contents.len());
    for content in &survey.contents {
        bytes.extend(content.partition.to_le_bytes());
        put_text(bytes, &content.kind);
        put_text(bytes, content.label.as_deref().unwrap_or_default());
        bytes.extend(content.unit.unwrap_or(u32::MAX).to_le_bytes());
    }
}

pub(super) fn parse(from: &mut impl Read) -> io::Result<Survey> {
    let table = match u8_value(from)? {
        0 => None,
        1 => Some(Scheme::Gpt),
        2 => Some(Scheme::Mbr),
        _ => return Err(invalid()),
    };
    let (block, partitions) = (u32_value(from)?, u32_value(from)?);
    let backup_end = Some(u64_value(from)?).filter(|end| *end != u64::MAX);
    let empty = u8_value(from)? != 0;
    let content = |from: &mut _| {
        let partition = u32_value(from)?;
        let (kind, label) = (text(from)?, text(from)?);
        let unit = Some(u32_value(from)?).filter(|unit| *unit != u32::MAX);
        let label = Some(label).filter(|label| !label.is_empty());
        Ok(Content { partition, kind, label, unit })
    };
    let contents = list(from, MAX_CONTENTS, content)?;
    Ok(Survey { table, block, partitions, backup_end, contents, empty })
}

/// The number of the partition, 0 without loaders; whether there is a fallback; the others.
pub(super) fn put_loaders(bytes: &mut Vec<u8>, loaders: Option<&Loaders>) {
    let Some(loaders) = loaders else { return bytes.extend(0_u32.to_le_bytes()) };
    bytes.extend(loaders.partition.to_le_bytes());
    bytes.push(u8::from(loaders.has_fallback));
    put_count(bytes, loaders.paths.len());
    loaders.paths.iter().for_each(|path| put_text(bytes, path));
}

pub(super) fn parse_loaders(from: &mut impl Read) -> io::Result<Option<Loaders>> {
    let partition = u32_value(from)?;
    if partition == 0 {
        return Ok(None);
    }
    let has_fallback = u8_value(from)? != 0;
    let paths = list(from, MAX_LOADERS, |from| text(from))?;
    Ok(Some(Loaders { partition, has_fallback, paths }))
}

pub(super) fn put_fitted(bytes: &mut Vec<u8>, fitted: &Fitted) {
    put_count(bytes, fitted.patches.len());
    for patch in &fitted.patches {
        bytes.extend(patch.offset.to_le_bytes());
        put_count(bytes, patch.bytes.len());
        bytes.extend(&patch.bytes);
    }
    // Partitions are counted from 1.
    let expanded = fitted.expanded.unwrap_or(Expanded { number: 0, from: 0, to: 0 });
    bytes.extend(expanded.number.to_le_bytes());
    bytes.extend(expanded.from.to_le_bytes());
    bytes.extend(expanded.to.to_le_bytes());
}

pub(super) fn parse_fitted(from: &mut impl Read) -> io::Result<Fitted> {
    let patch = |from: &mut _| {
        let (offset, len) = (u64_value(from)?, u32_value(from)?);
        let len = usize::try_from(len).ok().filter(|len| (1..=MAX_PATCH).contains(len));
        let mut bytes = vec![0; len.ok_or_else(invalid)?];
        Read::read_exact(from, &mut bytes)?;
        Ok(Patch { offset, bytes })
    };
    let patches = list(from, MAX_PATCHES, patch)?;
    let (number, from, to) = (u32_value(from)?, u64_value(from)?, u64_value(from)?);
    let expanded = (number != 0).then_some(Expanded { number, from, to });
    Ok(Fitted { patches, expanded })
}
