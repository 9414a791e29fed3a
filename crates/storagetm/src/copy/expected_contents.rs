//! The check that a destination has the expected hash, after a copy whose source was not read from its start to its end.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ::copy::{Check, CopyError, Endpoint, Unchecked};

use super::hash_list::Expected;
use super::recorded::Reads;
use super::web_disk::WebDisk;

/// Bytes that are read at a time to compute a hash.
const PIECE: usize = 256 << 10;

/// The hash that the destination must have after a copy.
pub(super) struct ExpectedContents {
    source: WebDisk,
    name: String,
    expected: Expected,
    /// What was read of the source before the copy to change its partition table, and where: the file must have it.
    table: Reads,
}

impl ExpectedContents {
    /// What the destination must hold after a copy of all of `source`, which is called `name`.
    pub(super) fn new(source: WebDisk, name: String, expected: Expected) -> Self {
        Self { source, name, expected, table: Reads::new() }
    }

    /// Adds what was read of the source, and was not verified.
    pub(super) fn must_have(&mut self, reads: Reads) {
        self.table.extend(reads);
    }

    /// Returns the check of a destination. What is not copied yet is read from the source.
    pub(super) fn check(self) -> Check {
        Check(Box::new(move |unchecked| {
            let mut is_same_table = true;
            let hash = self.hash(unchecked, &mut is_same_table).map_err(|error| match error {
                error @ CopyError::Internal => error,
                error => CopyError::Incomplete(format!(
                    "{}: the hash of what was copied cannot be computed: {error}",
                    self.name
                )),
            })?;
            if hash != self.expected {
                return Err(CopyError::Unexpected(format!(
                    "what was copied from {} has the {} {hash}, and {} was expected: the destination is not to be used",
                    self.name,
                    hash.kind(),
                    self.expected
                )));
            }
            match is_same_table {
                true => Ok(()),
                false => Err(CopyError::Incomplete(format!(
                    "{} has the expected hash, but when its partition table was read to change it, the server sent another one: \
                     try again",
                    self.name
                ))),
            }
        }))
    }

    /// Returns the hash, and whether the file has what was read of its partition table.
    fn hash(&self, unchecked: &Unchecked, is_same_table: &mut bool) -> Result<Expected, CopyError> {
        let source: Arc<dyn Endpoint> = Arc::new(self.source.clone());
        let mut source = unchecked.reader(source, self.source.disk());
        let mut there = unchecked.destination();
        there.drop_caches()?;
        let (mut hasher, mut piece, mut at) = (self.expected.hasher(), vec![0; PIECE], 0);
        let bytes = self.source.bytes();
        while at < bytes {
            let (end, is_held) = run(&unchecked.held, at, bytes);
            let disk = if is_held { &mut source } else { &mut there };
            let len = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
            let part = piece.get_mut(..len).unwrap_or_default();
            let count = disk.read(at, part)?;
            if count == 0 {
                return Err(CopyError::Incomplete(format!("it ends at byte {at}")));
            }
            let part = part.get(..count).unwrap_or_default();
            if is_held {
                self.source.keep_checked(at, part);
            }
            *is_same_table &= self.table.iter().all(|read| agrees(read, at, part));
            hasher.update(part);
            at += count as u64;
            unchecked.done.store(at, Ordering::Relaxed);
        }
        Ok(hasher.finish())
    }
}

/// Returns whether what was read is what the file has from `at` on, as far as that is in `part`.
fn agrees((offset, read): &(u64, Vec<u8>), at: u64, part: &[u8]) -> bool {
    let end = |start: u64, bytes: &[u8]| start.saturating_add(bytes.len() as u64);
    let both = at.max(*offset)..end(at, part).min(end(*offset, read));
    if both.is_empty() {
        return true;
    }
    let within = |bytes: &'_ [u8], start: u64| {
        let index = |position: u64| usize::try_from(position - start).ok();
        bytes.get(index(both.start)?..index(both.end)?).map(<[u8]>::to_vec)
    };
    within(read, *offset) == within(part, at)
}

/// Returns where the range ends that has the byte `at`, and whether it is one of those that are `held`.
fn run(held: &[Range<u64>], at: u64, bytes: u64) -> (u64, bool) {
    match held.iter().find(|range| range.end > at) {
        Some(range) if range.start <= at => (range.end.min(bytes), true),
        Some(range) => (range.start.min(bytes), false),
        None => (bytes, false),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn held_ranges_are_read_from_the_source() {
        // The destination is padded to whole blocks.
        let held = [0..10, 90..100];
        assert_eq!(run(&held, 0, 95), (10, true));
        assert_eq!(run(&held, 10, 95), (90, false));
        assert_eq!(run(&held, 89, 95), (90, false));
        assert_eq!(run(&held, 90, 95), (95, true));
        assert_eq!(run(&held, 95, 120), (100, true));
        assert_eq!(run(&held, 100, 120), (120, false));
    }
    #[test]
    fn unverified_reads_are_compared_where_they_overlap() {
        let read = (100, vec![7; 10]);
        for (at, part, is_same) in [
            (0, &[1; 100][..], true),
            (110, &[1; 5], true),
            (95, &[0, 0, 0, 0, 0, 7, 7], true),
            (95, &[0, 0, 0, 0, 0, 7, 8], false),
            (109, &[7, 1], true),
            (109, &[6, 1], false),
            (104, &[7, 7], true),
        ] {
            assert_eq!(agrees(&read, at, part), is_same, "{at}");
        }
    }
}
