//! How used bytes, and whose bytes are, are written between the two processes.

use std::collections::BTreeSet;
use std::io::{self, Read};

use filesystem::{Found, Kind, Opaque, Owner, Part, Usage};

use super::{
    MOST, byte, count_or_number, joined, list, long, nonsense, put_count, put_ranges, put_text,
    ranges, text,
};

/// Which bytes are used.
pub(super) fn put_usage(bytes: &mut Vec<u8>, usage: &Usage) {
    put_count(bytes, usage.parts.len());
    for part in &usage.parts {
        bytes.extend(part.number.to_le_bytes());
        bytes.extend(part.place.start.to_le_bytes());
        bytes.extend(part.place.end.to_le_bytes());
        bytes.push(match part.kind {
            Kind::Ext => 0,
            Kind::Ntfs => 1,
            Kind::Opaque(Opaque::Unknown) => 2,
            Kind::Opaque(Opaque::Unclean) => 3,
            Kind::Opaque(Opaque::Feature) => 4,
            Kind::Opaque(Opaque::Damaged) => 5,
        });
    }
    put_ranges(bytes, joined(&usage.used));
}

/// Which bytes are used.
pub(super) fn usage(from: &mut impl Read) -> io::Result<Usage> {
    let part = |from: &mut _| {
        let number = count_or_number(from)?;
        let place = long(from)?..long(from)?;
        let kind = match byte(from)? {
            0 => Kind::Ext,
            1 => Kind::Ntfs,
            2 => Kind::Opaque(Opaque::Unknown),
            3 => Kind::Opaque(Opaque::Unclean),
            4 => Kind::Opaque(Opaque::Feature),
            5 => Kind::Opaque(Opaque::Damaged),
            _ => return Err(nonsense()),
        };
        Ok(Part { number, place, kind })
    };
    let parts = list(from, MOST, part)?;
    Ok(Usage { parts, used: ranges(from)? })
}

/// Whose some bytes are.
pub(super) fn put_owners(bytes: &mut Vec<u8>, found: &BTreeSet<Found>) {
    put_count(bytes, found.len());
    for Found { partition, owner } in found {
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

/// Whose some bytes are.
pub(super) fn owners(from: &mut impl Read) -> io::Result<BTreeSet<Found>> {
    let found = |from: &mut _| {
        let partition = count_or_number(from)?;
        let owner = match byte(from)? {
            0 => Owner::File(text(from)?),
            1 => Owner::Structure,
            2 => Owner::Free,
            3 => Owner::Unknown,
            _ => return Err(nonsense()),
        };
        Ok(Found { partition, owner })
    };
    Ok(list(from, MOST, found)?.into_iter().collect())
}
