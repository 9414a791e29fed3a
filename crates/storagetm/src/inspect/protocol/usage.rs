//! Encoding of allocated ranges, and of owners.

use std::collections::BTreeSet;
use std::io::{self, Read};

use filesystem::{OpaqueReason, Owner, Part, PartKind, RangeOwner, Usage};

use super::{
    MAX_COUNT, invalid, joined, list, put_count, put_ranges, put_text, ranges, text, u8_value,
    u32_value, u64_value,
};

pub(super) fn put_usage(bytes: &mut Vec<u8>, usage: &Usage) {
    put_count(bytes, usage.parts.len());
    for part in &usage.parts {
        bytes.extend(part.number.to_le_bytes());
        bytes.extend(part.range.start.to_le_bytes());
        bytes.extend(part.range.end.to_le_bytes());
        bytes.push(match part.kind {
            PartKind::Ext => 0,
            PartKind::Ntfs => 1,
            PartKind::Opaque(OpaqueReason::Unknown) => 2,
            PartKind::Opaque(OpaqueReason::Unclean) => 3,
            PartKind::Opaque(OpaqueReason::Feature) => 4,
            PartKind::Opaque(OpaqueReason::Damaged) => 5,
            PartKind::Fat => 6,
            PartKind::Exfat => 7,
            PartKind::Xfs => 8,
            PartKind::Btrfs => 9,
        });
    }
    put_ranges(bytes, joined(&usage.used));
}

pub(super) fn usage(from: &mut impl Read) -> io::Result<Usage> {
    let part = |from: &mut _| {
        let number = u32_value(from)?;
        let range = u64_value(from)?..u64_value(from)?;
        let kind = match u8_value(from)? {
            0 => PartKind::Ext,
            1 => PartKind::Ntfs,
            2 => PartKind::Opaque(OpaqueReason::Unknown),
            3 => PartKind::Opaque(OpaqueReason::Unclean),
            4 => PartKind::Opaque(OpaqueReason::Feature),
            5 => PartKind::Opaque(OpaqueReason::Damaged),
            6 => PartKind::Fat,
            7 => PartKind::Exfat,
            8 => PartKind::Xfs,
            9 => PartKind::Btrfs,
            _ => return Err(invalid()),
        };
        Ok(Part { number, range, kind })
    };
    let parts = list(from, MAX_COUNT, part)?;
    Ok(Usage { parts, used: ranges(from)? })
}

pub(super) fn put_owners(bytes: &mut Vec<u8>, found: &BTreeSet<RangeOwner>) {
    put_count(bytes, found.len());
    for RangeOwner { partition, owner } in found {
        bytes.extend(partition.to_le_bytes());
        match owner {
            Owner::File(path) => {
                bytes.push(0);
                put_text(bytes, path);
            }
            Owner::Structure => bytes.push(1),
            Owner::Free => bytes.push(2),
            Owner::Unknown => bytes.push(3),
        }
    }
}

pub(super) fn owners(from: &mut impl Read) -> io::Result<BTreeSet<RangeOwner>> {
    let found = |from: &mut _| {
        let partition = u32_value(from)?;
        let owner = match u8_value(from)? {
            0 => Owner::File(text(from)?),
            1 => Owner::Structure,
            2 => Owner::Free,
            3 => Owner::Unknown,
            _ => return Err(invalid()),
        };
        Ok(RangeOwner { partition, owner })
    };
    Ok(list(from, MAX_COUNT, found)?.into_iter().collect())
}
